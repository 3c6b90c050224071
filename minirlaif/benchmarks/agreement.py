"""How far a judge agrees with a person, and whether position or length pulls at it. Numbers with 95 % intervals, no disk.

Choices are "A", "B" and "none" (a tie, a disagreement between the orders, an unreadable reply), in names of the order in which
the pair is stored. Clips are drawn whole, since pairs about one clip go together.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from minirlaif.stats import paired_bootstrap, quantile, wilson

T = TypeVar("T")
FEW = 30  # labels below which a figure is only a hint


@dataclass(frozen=True)
class Ballot:
    """One pair. judge: its choice; orders: what the judge chose with A shown first and with B shown first; person: "" where
    nobody has labelled it; person_first: the answer that the person was shown first; lengths: letters of A and of B."""

    clip: str
    judge: str
    orders: tuple[str, str]
    person: str
    person_first: str
    lengths: tuple[int, int]


@dataclass(frozen=True)
class Figure:
    """A value with its interval, out of n; None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa: agreement beyond what two raters reach who keep their own habits but look at nothing. None when they would
    always agree by habit alone, or without pairs."""
    n = len(pairs)
    if not n:
        return None
    agreed = sum(a == b for a, b in pairs) / n
    first, second = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    by_habit = sum(first[name] * second[name] for name in first) / n**2
    return None if by_habit == 1 else (agreed - by_habit) / (1 - by_habit)


def audit(ballots: Sequence[Ballot], resamples: int, seed: int) -> dict[str, Figure]:
    """Every figure of an audit.

    agreement: of pairs that both decided, how many alike; kappa: over A, B and none; judge_first: how often the judge took the
    answer that it was shown first (0.5 without position bias); judge_longer and person_longer: how often the longer answer won;
    longer_gap: judge minus person, on pairs that both decided; person_first: as judge_first, of the person.
    """
    labelled = [ballot for ballot in ballots if ballot.person]
    both = [ballot for ballot in labelled if _decided(ballot.judge) and _decided(ballot.person)]
    seen = [(b.clip, float(_shown_first(b.orders[side], side))) for b in ballots for side in (0, 1) if _decided(b.orders[side])]
    uneven = [b for b in both if b.lengths[0] != b.lengths[1]]
    gaps = [(b.clip, float(_longer(b.judge, b)) - float(_longer(b.person, b))) for b in uneven]
    longer = [(b.clip, float(_longer(b.judge, b))) for b in ballots if _decided(b.judge) and b.lengths[0] != b.lengths[1]]
    own = [b for b in labelled if _decided(b.person)]
    return {
        "agreement": _share([b.judge == b.person for b in both]),
        "kappa": _drawn(labelled, lambda some: kappa([(b.judge, b.person) for b in some]), resamples, seed),
        "judge_first": _mean(seen, resamples, seed),
        "judge_longer": _mean(longer, resamples, seed),
        "person_longer": _share([_longer(b.person, b) for b in own if b.lengths[0] != b.lengths[1]]),
        "longer_gap": _mean(gaps, resamples, seed),
        "person_first": _share([b.person == b.person_first for b in own]),
    }


def plain_choice(choice: str) -> str:
    """A, B, or none for whatever is no decision."""
    return choice if _decided(choice) else "none"


def _decided(choice: str) -> bool:
    return choice in ("A", "B")


def _shown_first(choice: str, side: int) -> bool:
    """side 0: A was shown first, 1: B was. Choices are in names of the first order."""
    return choice == ("A", "B")[side]


def _longer(choice: str, ballot: Ballot) -> bool:
    return (choice == "A") == (ballot.lengths[0] > ballot.lengths[1])


def _share(hits: Sequence[bool]) -> Figure:
    if not hits:
        return Figure(None, None, None, 0)
    return Figure(sum(hits) / len(hits), *wilson(sum(hits), len(hits)), len(hits))


def _mean(values: Sequence[tuple[str, float]], resamples: int, seed: int) -> Figure:
    if not values:
        return Figure(None, None, None, 0)
    clusters: dict[str, list[float]] = {}
    for clip, value in values:
        clusters.setdefault(clip, []).append(value)
    return Figure(*paired_bootstrap(clusters, resamples, seed), len(values))


def _drawn(ballots: Sequence[Ballot], statistic: Callable[[Sequence[Ballot]], float | None], resamples: int, seed: int) -> Figure:
    """A statistic with the interval of its values on redrawn clips; draws for which there is none are left out."""
    value = statistic(ballots)
    clusters: dict[str, list[Ballot]] = {}
    for ballot in ballots:
        clusters.setdefault(ballot.clip, []).append(ballot)
    names, generator = sorted(clusters), random.Random(seed)
    draws = []
    for _ in range(resamples if value is not None else 0):
        drawn = statistic([b for name in generator.choices(names, k=len(names)) for b in clusters[name]])
        if drawn is not None:
            draws.append(drawn)
    draws.sort()
    if not draws:
        return Figure(value, None, None, len(ballots))
    return Figure(value, quantile(draws, 0.025), quantile(draws, 0.975), len(ballots))


def as_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """For a file."""
    return {name: vars(figure) for name, figure in figures.items()}
