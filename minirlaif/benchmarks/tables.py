"""Tables of grades: a mean with its interval per model and metric, differences between two models, ungraded rows. Numbers only.

Grades of one judge make one table; another judge, or another version or prompt of it, makes another. Means are over graded rows;
beside them stands how many have no grade and where the mean would lie if all of those were worst or best.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from minirlaif.benchmarks import kinds
from minirlaif.benchmarks.kinds import metrics
from minirlaif.benchmarks.kinds.videoinstruct import FIVE
from minirlaif.benchmarks.scores import Scores
from minirlaif.stats import FEW, grouped, mean_of_means, sign_flip

RESAMPLES = 2000
SEED = 0
PAIRED = 4  # up to so many models in a table all pairs are compared; above it each with the first one


NO_PROTOCOL = "protocol not named"  # judge of published figures whose paper does not say how they were graded


@dataclass(frozen=True)
class Cell:
    """One model under one metric. rows: all; marked: those with a grade (of the mean of five: grades of all five); low, high: a
    95 % bootstrap interval over clips; worst, best: the mean if all rows without a grade had the worst or the best one; None
    without any grade. clips: that have a grade, of the mean of five the fewest that one of them has."""

    rows: int
    marked: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    worst: float | None = None
    best: float | None = None
    clips: int = 0


@dataclass(frozen=True)
class Change:
    """Second model minus first, over rows that both have a grade for. left_out: rows that only one of them, or none, has; p: of a
    sign-flip test by clips. Rows of the mean of five are grades of all five; clips: as in `Cell`."""

    rows: int
    left_out: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    clips: int = 0


@dataclass(frozen=True)
class Published:
    """One model's row of figures that others have published. values: by metric, scores 0 to 5, shares 0 to 1; read_off: measured
    from the pixels of a figure (about 0.1 of a score or half a point off)."""

    model: str
    values: Mapping[str, float]
    judge: str
    read_off: bool = False


def published(name: str, kind: str) -> tuple[Published, ...]:
    """Rows for a benchmark of this name and kind, none for one that the VLM-RLAIF paper and its project page do not know.

    The judge was an unversioned name of a paid service: with its version alone, accuracies of one model moved by ten points, so
    these rows stand in tables of their own. Names are matched as whole words, with "qa" behind them or not: "planet_qa" is not
    ActivityNet's "anet_qa".
    """
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    for table in json.loads(files(__package__).joinpath("published.json").read_text("utf-8")):
        if table["kind"] == kind and re.search(table["name"], words):
            return tuple(Published(**row, judge=table["judge"]) for row in table["rows"])
    return ()


def uncertain(figure: Mapping[str, Any]) -> bool:
    """Whether a cell or a change has too few clips for its interval and p to be reliable: a bootstrap of a few clips is too
    narrow, and cannot leave the values that they happen to have."""
    return figure["mean"] is not None and int(figure["clips"]) < FEW


def judge_head(judge: Mapping[str, Any]) -> str:
    """The judge's short name: "tiny (hf)". Version, prompt and dates are shown elsewhere."""
    name, kind = str(judge["name"]), str(judge["kind"])
    return name if kind in name or kind == "likelihood" else f"{name} ({kind})"


def metrics_of(scores: Scores) -> list[str]:
    """Names of the metrics in order, with the mean of five where all five are there."""
    used = {grade.metric for grade in scores.grades}
    used |= {"mean"} if set(FIVE) <= used else set()
    return [name for name in metrics() if name in used]


def cells(scores: Scores) -> dict[str, Cell]:
    """A cell per metric."""
    return {name: _cell(scores, FIVE if name == "mean" else (name,)) for name in metrics_of(scores)}


def cells_by_part(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, rows and rows with a grade by part and metric, of kinds whose parts are compared; empty where there is one part."""
    if not any(kind.name == scores.kind and kind.has_breakdown for kind in kinds.KINDS):
        return {}
    parts = grouped((grade.id.split(":")[0], grade) for grade in scores.grades)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for part, of_part in sorted(parts.items()):
        for metric, grades in grouped((grade.metric, grade) for grade in of_part).items():
            values = [grade.value for grade in grades if grade.value is not None]
            mean = sum(values) / len(values) if values else None
            result.setdefault(part, {})[metric] = {"rows": len(grades), "marked": len(values), "mean": mean}
    return result if len(result) > 1 else {}


def changes(first: Scores, second: Scores) -> dict[str, Change]:
    """Second minus first per metric. ValueError for grades of different judges or benchmarks: they are not comparable."""
    if first.key != second.key:
        raise ValueError("grades of different judges or benchmarks have no difference")
    return {name: _change(first, second, FIVE if name == "mean" else (name,)) for name in metrics_of(first)}


def why_ungraded(scores: Scores) -> dict[str, int]:
    """Reasons, and how many grades (rows under a metric) are missing for each. A reply that names no option has the worst one."""
    return dict(Counter(_short(grade.why) for grade in scores.grades if grade.why).most_common())


def rows_ungraded(scores: Scores) -> dict[str, int]:
    """The same reasons, and how many rows lack at least one grade for each."""
    return dict(Counter(why for why, _ in {(_short(grade.why), grade.id) for grade in scores.grades if grade.why}))


def judged(group: Sequence[Scores], pairs: Sequence[tuple[Scores, Scores]]) -> dict[str, Any]:
    """One judge's table: a row per model, and the differences of the pairs (second minus first)."""
    rows = [
        {
            "model": scores.title,
            "rows": len({grade.id for grade in scores.grades}),
            "clips": len({grade.clip for grade in scores.grades if grade.value is not None}),
            "cells": {metric: vars(cell) for metric, cell in cells(scores).items()},
            **({"parts": parts} if (parts := cells_by_part(scores)) else {}),
            "without_mark": why_ungraded(scores),
            "rows_without_mark": rows_ungraded(scores),
            "counts": dict(scores.counts),
        }
        for scores in group
    ]
    differences = [
        {"first": a.title, "second": b.title, "changes": {m: vars(c) for m, c in changes(a, b).items()}} for a, b in pairs
    ]
    judge = group[0].judge
    dates = tuple(sorted({date for scores in group for date in scores.judge.dates}))
    dates = (dates[0], dates[-1]) if dates else ()
    name = {"kind": judge.kind, "name": judge.name, "version": judge.version, "asked": judge.settings, "prompt": judge.prompt}
    return {
        "judge": name | {"dates": dates},
        "title": replace(judge, dates=dates).title,
        "rows": rows,
        "differences": differences,
    }


def table_json(all_scores: Sequence[Scores], together: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that the pages show of one benchmark, for programs. together: titles of models that were named together, and are
    compared in any case. ValueError without scores."""
    if not all_scores:
        raise ValueError("no scores")
    tables = [
        {**judged(group, pairs_of(group, together)), "first_only": len(group) > PAIRED}
        for group in grouped((scores.key, scores) for scores in all_scores).values()
    ]
    first = all_scores[0]
    head = {"benchmark": first.benchmark, "kind": first.kind, "sha256": first.sha256}
    return {**head, "tables": tables, "published": [vars(row) for row in published(first.benchmark, first.kind)]}


def pairs_of(group: Sequence[Scores], together: Sequence[str]) -> list[tuple[Scores, Scores]]:
    """The models that a table compares: ten models would make 45 pairs, which nobody reads. together: see `table_json`."""
    pairs = list(itertools.combinations(group, 2))
    if len(group) <= PAIRED:
        return pairs
    titles = together if len(together) <= PAIRED else ()
    return [(a, b) for a, b in pairs if a is group[0] or (a.title in titles and b.title in titles)]


def examples(scores: Scores, count: int) -> tuple[list[str], list[str]]:
    """Ids of the worst and of the best items by their mean grade (as shares of the best one), `count` of each, none in both: the
    best possible one is never among the worst, nor the worst possible one among the best."""
    shares = [(g.id, g.value / metrics()[g.metric].best) for g in scores.grades if g.value is not None]
    means = {id_: sum(each) / len(each) for id_, each in grouped(shares).items()}
    order = sorted(means, key=lambda id_: (means[id_], id_))
    count = min(count, len(order) // 2)
    return [i for i in order[:count] if means[i] < 1], [i for i in order[len(order) - count :][::-1] if means[i] > 0]


def _cell(scores: Scores, names: Sequence[str]) -> Cell:
    """One metric, or the mean of five means, as the paper's authors average, not of all grades: generic_qa has four times as many
    rows."""
    parts = [grouped((g.clip, g.value) for g in scores.grades if g.metric == name and g.value is not None) for name in names]
    rows = [sum(grade.metric == name for grade in scores.grades) for name in names]
    grades = [[value for values in part.values() for value in values] for part in parts]
    if not all(parts):
        return Cell(sum(rows), sum(map(len, grades)))
    mean, low, high = mean_of_means(parts, RESAMPLES, SEED)
    sides = zip(names, grades, rows, strict=True)
    ends = [(sum(each) / n, (sum(each) + (n - len(each)) * metrics()[name].best) / n) for name, each, n in sides]
    worst, best = (sum(each) / len(names) for each in zip(*ends, strict=True))
    return Cell(sum(rows), sum(map(len, grades)), mean, low, high, worst, best, min(map(len, parts)))


def _change(first: Scores, second: Scores, names: Sequence[str]) -> Change:
    """The difference under one metric, or of the mean of five."""
    parts, count = [], 0
    for name in names:
        a, b = ({grade.id: grade for grade in scores.grades if grade.metric == name} for scores in (first, second))
        pairs = [(a[id_], b[id_]) for id_ in a.keys() & b.keys()]
        parts.append(grouped((x.clip, y.value - x.value) for x, y in pairs if x.value is not None and y.value is not None))
        count += len(a.keys() | b.keys())
    rows = sum(len(values) for part in parts for values in part.values())
    if not all(parts):
        return Change(rows, count - rows)
    p = sign_flip(parts, RESAMPLES, SEED)
    return Change(rows, count - rows, *mean_of_means(parts, RESAMPLES, SEED), p, min(map(len, parts)))


def _short(why: str) -> str:
    """Reasons without what differs from row to row."""
    if why.startswith(("the part from ", "the part ends ")):
        return "the clip does not have the part"
    return why.split(":")[0] if why.startswith(("unreadable:", "refused:")) else why
