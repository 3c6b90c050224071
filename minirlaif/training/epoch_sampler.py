"""Which rows a step trains on, as a pure function of the step, so that a resumed run needs no sampler state."""

from collections.abc import Sequence
from typing import Any, TypeVar

from minirlaif import distributed
from minirlaif.models.seeds import shuffled

T = TypeVar("T")


def capped_batch_size(size: int, rows: int, setting: str, kind: str) -> int:
    """At most as many as there are rows: a larger batch would hold some of them twice. Prints when that is fewer."""
    if size > rows and distributed.leads():
        print(f"{setting}: {size} is more than the {rows} {kind} there are; batches have {rows}", flush=True)
    return min(size, rows)


def epoch_batch(rows: Sequence[T], size: int, step: int, seed: int, *place: Any) -> list[T]:
    """The `size` rows of step `step` (from 0). Epochs follow each other without a gap, each in an order drawn from
    (seed, *place, epoch); a batch may span two of them."""
    positions = [divmod(position, len(rows)) for position in range(step * size, (step + 1) * size)]
    orders = {epoch: shuffled(len(rows), seed, *place, epoch) for epoch in {epoch for epoch, _ in positions}}
    return [rows[orders[epoch][index]] for epoch, index in positions]
