"""Several processes on one machine, each with a copy of the model: work is divided and the results are gathered.

`accelerate launch --multi_gpu --num_processes 2 -m minirlaif …` starts them (on a CPU as well, where model.device is cpu). All of
them do the same steps in the same order; costly work is divided (`share`, `mapped`) and gathered (`collect`, `total`,
`sum_gradients`), so every process has the same numbers after each step. Process 0 is the leader: it alone writes to the run
folder and to the terminal. With one process every function here changes nothing, and torch is not imported.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


_alone = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process counts as the only one."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def count() -> int:
    """How many processes work on this run."""
    return 1 if _alone.get() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def leads() -> bool:
    """Whether this process is the leader, which writes to the run folder and to the terminal."""
    return rank() == 0


def start(on_cpu: bool) -> None:
    """Join the other processes, once per command. A process may wait up to seven days for another one."""
    if count() > 1:
        from datetime import timedelta

        import torch
        from accelerate import PartialState

        on_cpu = on_cpu or not torch.cuda.is_available()
        PartialState(cpu=on_cpu, timeout=timedelta(days=7))
        if on_cpu:  # gloo's threads abort a process that ends while they run; NCCL may wait for the others, so not after an error
            atexit.register(stop)


def stop() -> None:
    """Leave the other processes, after the last common step."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the work: every n-th item. Empty where there are fewer items than processes."""
    return items[rank() :: count()]


def collect(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks. Every process waits for all others."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def mapped(make: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """make(item) for each item, in their order; every process makes its share and gets all results."""
    mine = [(number, make(item)) for number, item in share(list(enumerate(items)))]
    return [result for _, result in sorted((pair for part in collect(mine) for pair in part), key=lambda pair: pair[0])]


def total(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers summed over all processes, by name; a process may lack names."""
    result: dict[str, float] = {}
    for part in collect(numbers):
        for name, value in part.items():
            result[name] = result.get(name, 0) + value
    return result


def from_leader(make: Callable[[], T]) -> T:
    """The result of process 0, for all processes; the others only wait."""
    if count() == 1:
        return make()
    return collect(make() if leads() else None)[0]  # type: ignore[return-value]


def wait() -> None:
    """Wait until all processes are here."""
    collect(None)


def sum_gradients(parameters: Iterable[Any]) -> None:
    """Sum the gradients of all processes, in place. A parameter without a gradient counts as zeros."""
    if count() == 1:
        return
    import torch
    from accelerate.utils import reduce

    weights = list(parameters)
    gradients = reduce([torch.zeros_like(p) if p.grad is None else p.grad for p in weights], "sum")
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
