"""Scores of answers and how sure they are: exact match, guessing rate, intervals. No torch, no global randomness.

All intervals are 95 %.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
# Two-sided 95 % points of Student's t for 1 to 10 degrees of freedom: seeds are few, and there 1.96 is far too narrow.
T95 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)


def exact_match(answer: str, truth: str) -> bool:
    """Equal up to case, spaces and one final full stop. Nothing else is forgiven."""
    return normalised(answer) == normalised(truth)


def normalised(text: str) -> str:
    """The form in which answers are compared: lower case, single spaces, no final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def guess_rate(truths_by_type: Mapping[str, Sequence[str]], known_by_type: Mapping[str, Sequence[str]] | None = None) -> float:
    """Share right for somebody who sees only the question's type and always gives its most frequent answer.

    The constant per type is read off `known_by_type`, truths of other clips; a type that is missing there, or None, falls
    back on the truths themselves, which makes the figure an upper bound. ValueError without truths.
    """
    total = sum(len(truths) for truths in truths_by_type.values())
    if total == 0:
        raise ValueError("guess_rate: no truths")
    right = 0
    for kind, truths in truths_by_type.items():
        known = Counter(map(normalised, (known_by_type or {}).get(kind) or truths))
        right += Counter(map(normalised, truths))[known.most_common(1)[0][0]] if truths else 0
    return right / total


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low and high by Student's t, for a few independent values such as seeds. ValueError below two values."""
    n = len(values)
    if n < 2:
        raise ValueError("mean_interval: an interval needs at least two values")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = _t95(n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def paired_bootstrap(
    differences_by_cluster: Mapping[str, Sequence[float]], resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean difference per item with a percentile interval; whole clusters (clips) are drawn, not items.

    Questions about one clip go right or wrong together, so drawing items would make the interval too narrow. Each value
    is one item's score under one model minus its score under the other. The same seed gives the same interval, whatever
    the order of clusters and items. ValueError without any item.
    """
    clusters = [differences_by_cluster[name] for name in sorted(differences_by_cluster) if differences_by_cluster[name]]
    if not clusters or resamples < 1:
        raise ValueError("paired_bootstrap: needs at least one difference and one resample")
    sums = [math.fsum(cluster) for cluster in clusters]
    counts = [len(cluster) for cluster in clusters]
    generator = random.Random(seed)
    means = []
    for _ in range(resamples):
        drawn = generator.choices(range(len(clusters)), k=len(clusters))
        means.append(math.fsum(sums[i] for i in drawn) / sum(counts[i] for i in drawn))
    means.sort()
    return math.fsum(sums) / sum(counts), _quantile(means, 0.025), _quantile(means, 0.975)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Low and high for a share of `successes` in `n` (Wilson 1927): inside [0, 1], and honest at 0 and at n."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    share = successes / n
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    width = 1 + Z95**2 / n
    # At the ends the bounds are 0 and 1 exactly; rounding must not push them out.
    low = 0.0 if successes == 0 else (centre - half) / width
    high = 1.0 if successes == n else (centre + half) / width
    return low, high


def win_rate(choices: Sequence[str]) -> tuple[float, float, float]:
    """Share of "A" among decided choices ("A" and "B") with its Wilson interval; ties, invalid and disagree stay out.

    ValueError when nothing was decided.
    """
    wins = sum(choice == "A" for choice in choices)
    decided = wins + sum(choice == "B" for choice in choices)
    if decided == 0:
        raise ValueError("win_rate: no decided choice")
    return (wins / decided, *wilson(wins, decided))


def _t95(freedom: int) -> float:
    if freedom <= len(T95):
        return T95[freedom - 1]
    z = Z95  # expansion in 1 / freedom around the normal point; from 11 degrees on it is right to four digits
    first, second = z**3 + z, 5 * z**5 + 16 * z**3 + 3 * z
    third = 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + first / (4 * freedom) + second / (96 * freedom**2) + third / (384 * freedom**3)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
