"""Tables of grades: a mean with its interval per model and metric, differences between two models, ungraded rows. Numbers only.

Grades of one judge make one table; another judge, or another version or prompt of it, makes another. Means are over graded rows;
beside them stands how many have no grade and where the mean would lie if all of those were worst or best.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minirlaif.benchmarks.kinds import metrics
from minirlaif.benchmarks.kinds.videoinstruct import FIVE
from minirlaif.benchmarks.published import published
from minirlaif.benchmarks.scores import Scores
from minirlaif.stats import FEW, mean_of_means, paired_bootstrap, sign_flip

RESAMPLES = 2000
SEED = 0
PAIRED = 4  # up to so many models in a table all pairs are compared; above it each with the first one


@dataclass(frozen=True)
class Cell:
    """One model under one metric. rows: all; marked: those with a grade (of the mean of five: grades of all five); low, high: a
    95 % bootstrap interval over clips; worst, best: the mean if all rows without a grade had the worst or the best one; None
    without any grade. clips: that have a grade, of the mean of five the fewest that one of them has."""

    rows: int
    marked: int
    mean: float | None
    low: float | None
    high: float | None
    worst: float | None
    best: float | None
    clips: int


@dataclass(frozen=True)
class Change:
    """Second model minus first, over rows that both have a grade for. left_out: rows that only one of them, or none, has; p: of a
    sign-flip test by clips. Rows of the mean of five are grades of all five; clips: as in `Cell`."""

    rows: int
    left_out: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    clips: int


def uncertain(figure: Mapping[str, Any]) -> bool:
    """Whether a cell or a change has too few clips for its interval and p to be reliable: a bootstrap of a few clips is too
    narrow, and cannot leave the values that they happen to have."""
    return figure["mean"] is not None and int(figure["clips"]) < FEW


def judge_head(judge: Mapping[str, Any]) -> str:
    """The judge's short name: "tiny (hf)". Version, prompt and dates are shown elsewhere."""
    name, kind = str(judge["name"]), str(judge["kind"])
    return name if kind in name or kind == "likelihood" else f"{name} ({kind})"


def metrics_of(scores: Scores) -> list[str]:
    """Names of the metrics in order, the mean of five at the end where all five are there."""
    used = {grade.metric for grade in scores.grades}
    names = [name for name in metrics() if name in used]
    return [*names, "mean"] if set(FIVE) <= used else names


def cells(scores: Scores) -> dict[str, Cell]:
    """A cell per metric."""
    names = metrics_of(scores)
    result = {name: _cell(scores, name) for name in names if name != "mean"}
    return {**result, "mean": _mean_cell(scores, [result[name] for name in FIVE])} if "mean" in names else result


def changes(first: Scores, second: Scores) -> dict[str, Change]:
    """Second minus first per metric. ValueError for grades of different judges or benchmarks: they are not comparable."""
    if first.judge.key != second.judge.key or first.sha256 != second.sha256 or first.benchmark != second.benchmark:
        raise ValueError("grades of different judges or benchmarks have no difference")
    pairs = {m: _paired(first, second, m) for m in metrics_of(first) if m != "mean"}
    result = {m: _change([differences], left_out) for m, (differences, left_out) in pairs.items()}
    if set(FIVE) <= set(pairs):
        result["mean"] = _change([pairs[m][0] for m in FIVE], sum(pairs[m][1] for m in FIVE))
    return result


def why_ungraded(scores: Scores) -> dict[str, int]:
    """Reasons, and how many grades (rows under a metric) are missing for each. A reply that names no option has the worst one."""
    return dict(Counter(_short(grade.why) for grade in scores.grades if grade.why).most_common())


def rows_ungraded(scores: Scores) -> dict[str, int]:
    """The same reasons, and how many rows lack at least one grade for each."""
    return dict(Counter(why for why, _ in {(_short(grade.why), grade.id) for grade in scores.grades if grade.why}))


def blocks(all_scores: Sequence[Scores]) -> list[list[Scores]]:
    """Scores in groups that may stand in one table."""
    groups: dict[Any, list[Scores]] = {}
    for scores in all_scores:
        groups.setdefault((scores.benchmark, scores.sha256, scores.judge.key), []).append(scores)
    return list(groups.values())


def judged(group: Sequence[Scores], pairs: Sequence[tuple[Scores, Scores]]) -> dict[str, Any]:
    """One judge's table: a row per model, and the differences of the pairs (second minus first)."""
    rows = [
        {
            "model": scores.title,
            "rows": len({grade.id for grade in scores.grades}),
            "clips": len({grade.clip for grade in scores.grades if grade.value is not None}),
            "cells": {metric: vars(cell) for metric, cell in cells(scores).items()},
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
    tables = [{**judged(group, pairs_of(group, together)), "first_only": len(group) > PAIRED} for group in blocks(all_scores)]
    first = all_scores[0]
    rows = [
        {"model": row.model, "values": dict(row.values), "judge": row.judge, "read_off": row.read_off}
        for row in published(first.benchmark, first.kind)
    ]
    head = {"benchmark": first.benchmark, "kind": first.kind, "sha256": first.sha256}
    return {**head, "tables": tables, "published": rows}


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
    values: dict[str, list[float]] = {}
    for grade in scores.grades:
        if grade.value is not None:
            values.setdefault(grade.id, []).append(grade.value / metrics()[grade.metric].best)
    means = {id_: sum(each) / len(each) for id_, each in values.items()}
    order = sorted(means, key=lambda id_: (means[id_], id_))
    count = min(count, len(order) // 2)
    return [i for i in order[:count] if means[i] < 1], [i for i in order[len(order) - count :][::-1] if means[i] > 0]


def _cell(scores: Scores, metric: str) -> Cell:
    rows = sum(grade.metric == metric for grade in scores.grades)
    by_clip = _by_clip(scores, metric)
    known = [value for values in by_clip.values() for value in values]
    if not known:
        return Cell(rows, 0, None, None, None, None, None, 0)
    mean, low, high = paired_bootstrap(by_clip, RESAMPLES, SEED)
    missing, best = rows - len(known), metrics()[metric].best
    return Cell(rows, len(known), mean, low, high, sum(known) / rows, (sum(known) + missing * best) / rows, len(by_clip))


def _mean_cell(scores: Scores, five: Sequence[Cell]) -> Cell:
    """The mean of the five means, as the paper's authors average, not of all grades: generic_qa has four times as many rows."""
    rows, marked = sum(cell.rows for cell in five), sum(cell.marked for cell in five)
    if not all(cell.marked for cell in five):
        return Cell(rows, marked, None, None, None, None, None, 0)
    mean, low, high = mean_of_means([_by_clip(scores, metric) for metric in FIVE], RESAMPLES, SEED)
    worst, best = (sum(values) / 5 for values in zip(*((cell.worst or 0.0, cell.best or 0.0) for cell in five), strict=True))
    return Cell(rows, marked, mean, low, high, worst, best, min(cell.clips for cell in five))


def _by_clip(scores: Scores, metric: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for grade in scores.grades:
        if grade.metric == metric and grade.value is not None:
            values.setdefault(grade.clip, []).append(grade.value)
    return values


def _paired(first: Scores, second: Scores, metric: str) -> tuple[dict[str, list[float]], int]:
    """Differences by clip, and how many rows have none."""
    sides = [{grade.id: grade for grade in scores.grades if grade.metric == metric} for scores in (first, second)]
    differences: dict[str, list[float]] = {}
    for id_ in sides[0].keys() & sides[1].keys():
        a, b = sides[0][id_], sides[1][id_]
        if a.value is not None and b.value is not None:
            differences.setdefault(a.clip, []).append(b.value - a.value)
    return differences, len(sides[0].keys() | sides[1].keys()) - sum(map(len, differences.values()))


def _change(parts: Sequence[Mapping[str, Sequence[float]]], left_out: int) -> Change:
    rows = sum(len(values) for part in parts for values in part.values())
    if not all(part for part in parts):
        return Change(rows, left_out, None, None, None, None, 0)
    mean, low, high = paired_bootstrap(parts[0], RESAMPLES, SEED) if len(parts) == 1 else mean_of_means(parts, RESAMPLES, SEED)
    return Change(rows, left_out, mean, low, high, sign_flip(parts, RESAMPLES, SEED), min(map(len, parts)))


def _short(why: str) -> str:
    """Reasons without what differs from row to row."""
    return why.split(":")[0] if why.startswith(("unreadable:", "refused:")) else why
