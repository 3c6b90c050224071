"""From figures per item to intervals, and from intervals to a verdict on a claim. Pure functions on numbers.

Items are (cluster, value): the clip that an item is about, and what it counts, 0 to 1. Their keys are equal where two arms speak
of the same item. Whole clips are drawn for the intervals, all seeds together or one seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minirlaif.stats import paired_bootstrap

Items = Mapping[str, tuple[str, float]]  # item -> (clip, value)
COUNTS = 0.01  # a difference of less than a point does not count
FEW = 30  # below so many items no interval is to be trusted
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
MISSING = "not measured"  # an arm that the claim stands on failed; no figures, so not a matter of RULE
RULE = (
    "A claim is a difference that should be above zero. It holds when the whole 95 % interval over all seeds lies above zero"
    " and no seed by itself points the other way. Otherwise it does not hold when the whole interval lies below one point, so"
    f" that any advantage would be smaller than that. Everything else is undecided, as is what stands on fewer than {FEW} items."
    " The intervals draw whole clips and speak of these seeds; about one in forty claims without any truth would still seem to"
    " hold."
)


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval, over n items."""

    mean: float
    low: float
    high: float
    n: int


def verdict(pooled: Figure, seeds: Mapping[int, Figure]) -> str:
    """HOLDS, FAILS or OPEN, by RULE."""
    if pooled.n < FEW:
        return OPEN
    if pooled.low > 0 and all(figure.mean >= 0 for figure in seeds.values()):
        return HOLDS
    return FAILS if pooled.high < COUNTS else OPEN


def figure(items: Items, resamples: int) -> Figure:
    """Mean and interval of the items. ValueError when there are none."""
    clusters: dict[str, list[float]] = {}
    for clip, value in items.values():
        clusters.setdefault(clip, []).append(value)
    mean, low, high = paired_bootstrap(clusters, resamples, seed=0)
    return Figure(mean, low, high, len(items))


def ahead(better: Items, worse: Items) -> dict[str, tuple[str, float]]:
    """Item by item how far one arm is ahead of another, of the items that both have."""
    return {key: (clip, value - worse[key][1]) for key, (clip, value) in better.items() if key in worse}


def common(arms: Mapping[str, Items]) -> dict[str, dict[str, tuple[str, float]]]:
    """The same arms with those items alone that all of them have."""
    kept = set.intersection(*(set(items) for items in arms.values())) if arms else set()
    return {name: {key: items[key] for key in items if key in kept} for name, items in arms.items()}


def pooled(seeds: Mapping[int, Items]) -> dict[str, tuple[str, float]]:
    """The items of all seeds together. A clip's name is the same in all seeds only where the clip is."""
    return {f"{seed}/{key}": item for seed, items in seeds.items() for key, item in items.items()}
