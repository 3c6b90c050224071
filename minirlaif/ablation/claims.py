"""From figures per item to intervals, and from intervals to a verdict on a claim. Pure functions on numbers.

Items are (clip, value from 0 to 1), by a key that is equal where two arms have the same item. Whole clips are resampled for the
intervals, of all seeds together or of one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minirlaif.stats import paired_bootstrap

Items = dict[str, tuple[str, float]]  # item -> (clip, value)
COUNTS = 0.01  # a difference of less than a point does not count
FEW = 30  # with fewer items an interval is too unsure
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
MISSING = "not measured"  # an arm of the claim failed, so there are no figures
RULE = (
    "A claim is a difference that should be above zero. It holds when the whole 95 % interval over all seeds lies above zero"
    " and no seed has a difference below zero. Otherwise it does not hold when the whole interval lies below one point, so"
    f" that any advantage would be smaller than that. Everything else is undecided, as is a claim with fewer than {FEW} items."
    " Intervals resample whole clips and do not cover the variation over other seeds; a claim with no true difference holds by"
    " chance in about one of forty cases."
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


def differences(better: Items, worse: Items) -> Items:
    """Value of the better arm minus that of the worse one, for the items that both have."""
    return {key: (clip, value - worse[key][1]) for key, (clip, value) in better.items() if key in worse}


def common(arms: Mapping[str, Items]) -> dict[str, Items]:
    """The same arms with only the items that all of them have."""
    kept = set.intersection(*(set(items) for items in arms.values())) if arms else set()
    return {name: {key: items[key] for key in items if key in kept} for name, items in arms.items()}


def pooled(seeds: Mapping[int, Items]) -> Items:
    """The items of all seeds together. Equal names of clips in two seeds mean the same clip."""
    return {f"{seed}/{key}": item for seed, items in seeds.items() for key, item in items.items()}
