"""Exact match, guessing rate, 95 % intervals (bootstrap over clips and runs, Wilson, Student's t), sign-flip test.

No torch, no global randomness.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
FEW = 30  # clusters below which a bootstrap interval is too narrow to rely on

_OPTION = re.compile(r"([A-Z])\. (.+)", re.DOTALL)

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
# The same of Student's t with 1, 2 … 20 degrees of freedom.
T975: Sequence[float] = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


def grouped(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    """Values by key, both in the order in which they come."""
    groups: dict[K, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def exact_match(answer: str, truth: str) -> bool:
    """Equal up to case, spaces and one final full stop; of a truth that is an option behind its letter ("B. dog"), also the
    letter or the option alone. Nothing else is forgiven."""
    option = _OPTION.fullmatch(truth.strip())
    forms = [truth, option[1], f"({option[1]})", f"{option[1]})", option[2]] if option else [truth]
    return normalised(answer) in map(normalised, forms)


def normalised(text: str) -> str:
    """The form in which answers are compared: lower case, single spaces, no final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def guess_rate(truths_by_type: Mapping[str, Sequence[str]], known_by_type: Mapping[str, Sequence[str]] | None = None) -> float:
    """Share right when every question gets the most frequent answer of its type.

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


def paired_bootstrap(
    differences_by_cluster: Mapping[str, Sequence[float]], resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean difference per item with a percentile interval; whole clusters (clips) are resampled, not items.

    Questions about one clip go right or wrong together, so drawing items would make the interval too narrow. Each value
    is one item's score under one model minus its score under the other. The same seed gives the same interval, whatever
    the order of clusters and items. ValueError without any item.
    """
    return mean_of_means([differences_by_cluster], resamples, seed)


def mean_of_means(parts: Sequence[Mapping[str, Sequence[float]]], resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean of several means, such as a benchmark's five metrics, with a percentile interval.

    parts: per metric its values by clip; a draw of clips is the same for all of them, since one clip's rows go right or wrong
    together whatever is graded. A draw in which a metric has no value is drawn again. ValueError for a part without values.
    """
    names = sorted({name for part in parts for name in part if part[name]})
    if not parts or resamples < 1 or any(not any(part.values()) for part in parts):
        raise ValueError("mean_of_means: needs values in every part and at least one resample")
    sums = [[(math.fsum(part.get(name, ())), len(part.get(name, ()))) for name in names] for part in parts]
    generator = random.Random(seed)

    def mean(places: Sequence[int]) -> float | None:
        counts = [sum(part[i][1] for i in places) for part in sums]
        if 0 in counts:
            return None
        return math.fsum(math.fsum(part[i][0] for i in places) / n for part, n in zip(sums, counts, strict=True)) / len(sums)

    means: list[float] = []
    while len(means) < resamples:
        drawn = mean(generator.choices(range(len(names)), k=len(names)))
        if drawn is not None:
            means.append(drawn)
    means.sort()
    return mean(range(len(names))) or 0.0, quantile(means, 0.025), quantile(means, 0.975)


def two_level_bootstrap(seeds: Sequence[Mapping[str, Sequence[float]]], resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean of all values of several runs with a percentile interval that draws runs, and then whole clips.

    seeds: of each run (one per random seed) its values by clip. A draw of clips is the same for all drawn runs, since an equal
    name is the same clip. With few runs the interval is too narrow, by a factor of about sqrt((n - 1) / n) in what they differ
    by: `t_interval` is the check. A draw without a value is drawn again. ValueError without any value.
    """
    names = sorted({name for values in seeds for name in values if values[name]})
    if resamples < 1 or not names:
        raise ValueError("two_level_bootstrap: needs values and at least one resample")
    sums = [[math.fsum(values.get(name, ())) for name in names] for values in seeds]
    counts = [[len(values.get(name, ())) for name in names] for values in seeds]
    generator, places = random.Random(seed), range(len(names))
    means: list[float] = []
    while len(means) < resamples:
        runs = generator.choices(range(len(seeds)), k=len(seeds))
        clips = generator.choices(places, k=len(names))
        if total := sum(counts[run][i] for run in runs for i in clips):
            means.append(math.fsum(sums[run][i] for run in runs for i in clips) / total)
    means.sort()
    mean = math.fsum(map(math.fsum, sums)) / sum(map(sum, counts))
    return mean, quantile(means, 0.025), quantile(means, 0.975)


def t_interval(means: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over runs by Student's t with n - 1 degrees of freedom; None for a single run."""
    n = len(means)
    if n < 2:
        return None
    mean = math.fsum(means) / n
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in means) / (n - 1))
    half = (T975[n - 2] if n - 2 < len(T975) else Z95) * deviation / math.sqrt(n)
    return mean - half, mean + half


def sign_flip(parts: Sequence[Mapping[str, Sequence[float]]], resamples: int, seed: int) -> float:
    """Two-sided p-value that a mean difference (of one metric, or the mean of several) is no more than chance.

    parts: per metric its differences by clip. If the two models were the same, each clip's differences could as well have the
    other sign: the share of random signs, one per clip, under which the mean is at least as far from 0 as it is. The true signs
    count as one of the draws, so it is never 0. ValueError for a part without values.
    """
    names = sorted({name for part in parts for name in part if part[name]})
    if not parts or resamples < 1 or any(not any(part.values()) for part in parts):
        raise ValueError("sign_flip: needs differences in every part and one resample")
    counts = [sum(len(values) for values in part.values()) for part in parts]
    shares = [math.fsum(math.fsum(part.get(name, ())) / n for part, n in zip(parts, counts, strict=True)) for name in names]
    observed = abs(math.fsum(shares))
    generator = random.Random(seed)
    as_far = 0
    for _ in range(resamples):
        signs = generator.getrandbits(len(shares))
        flipped = math.fsum(-share if signs >> i & 1 else share for i, share in enumerate(shares))
        as_far += abs(flipped) >= observed - 1e-12 * max(1.0, observed)
    return (as_far + 1) / (resamples + 1)


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa: agreement of two raters beyond what their label frequencies give by chance. None when chance alone makes
    them agree always, or without pairs."""
    n = len(pairs)
    if not n:
        return None
    agreed = sum(a == b for a, b in pairs) / n
    first, second = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    by_chance = sum(first[name] * second[name] for name in first) / n**2
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def cluster_bootstrap(
    clusters: Mapping[str, Sequence[T]], statistic: Callable[[Sequence[T]], float | None], resamples: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """Any statistic of all items with the percentile interval of its values on redrawn clusters; draws for which it is None are
    left out."""
    value = statistic([item for cluster in clusters.values() for item in cluster])
    names, generator = sorted(clusters), random.Random(seed)
    draws = []
    for _ in range(resamples if value is not None else 0):
        drawn = statistic([item for name in generator.choices(names, k=len(names)) for item in clusters[name]])
        if drawn is not None:
            draws.append(drawn)
    draws.sort()
    return (value, quantile(draws, 0.025), quantile(draws, 0.975)) if draws else (value, None, None)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Low and high for a share of `successes` in `n` (Wilson 1927): inside [0, 1], also at 0 and at n."""
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


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of sorted values lies, between two of them where it must."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
