"""Tables of marks: a mean with its interval per model and metric, differences between two models, what has no mark. Numbers only.

Marks of one judge make one table; another judge, or another version or prompt of it, makes another. Means are over rows that have
a mark; beside them stands how many have none and where the mean would lie if all of those were worst or best.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minirlaif.benchmarks.agreement import FEW
from minirlaif.benchmarks.published import published
from minirlaif.benchmarks.scores import Scores
from minirlaif.judges.rubric import FIVE, HIGHEST, LABELS, SHARES
from minirlaif.stats import mean_of_means, paired_bootstrap, sign_flip

RESAMPLES = 2000
SEED = 0
PAIRED = 4  # up to so many models in a table all pairs are told apart; above it each from the first one


@dataclass(frozen=True)
class Cell:
    """One model under one metric. rows: all; marked: those with a mark (of the mean of five: marks of all five); low, high: 95 %
    of bootstrap draws of clips; worst, best: the mean if all rows without a mark had the worst or the best one; None without any
    mark. clips: that have a mark, of the mean of five the fewest that one of them has."""

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
    """Second model minus first, over rows that both have a mark for. left_out: rows that only one of them, or none, has; p: of a
    sign-flip test by clips. Rows of the mean of five are marks of all five; clips: as in `Cell`."""

    rows: int
    left_out: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    clips: int


def uncertain(figure: Mapping[str, Any]) -> bool:
    """Whether so few clips stand behind a cell or a change that neither its interval nor its p is to be trusted: a bootstrap of a
    few clips is too narrow, and cannot leave the values that they happen to have."""
    return figure["mean"] is not None and int(figure["clips"]) < FEW


def judge_head(judge: Mapping[str, Any]) -> str:
    """Who marked, in a few words: "tiny (hf)". The rest of its name (version, prompt, dates) is told apart."""
    name, kind = str(judge["name"]), str(judge["kind"])
    return name if kind in name or kind == "likelihood" else f"{name} ({kind})"


def metrics_of(scores: Scores) -> list[str]:
    """Metrics in order, the mean of five at the end where all five are there."""
    found = [name for name in LABELS if name in {mark.metric for mark in scores.marks}]
    return [*found, "mean"] if set(FIVE) <= set(found) else found


def cells(scores: Scores) -> dict[str, Cell]:
    """A cell per metric."""
    found = {metric: _cell(scores, metric) for metric in metrics_of(scores) if metric != "mean"}
    return {**found, "mean": _mean_cell(scores, [found[metric] for metric in FIVE])} if set(FIVE) <= set(found) else found


def changes(first: Scores, second: Scores) -> dict[str, Change]:
    """Second minus first per metric. ValueError for marks of different judges or benchmarks: they are not comparable."""
    if first.judge.key != second.judge.key or first.sha256 != second.sha256 or first.benchmark != second.benchmark:
        raise ValueError("marks of different judges or benchmarks have no difference")
    pairs = {m: _paired(first, second, m) for m in metrics_of(first) if m != "mean"}
    found = {m: _change([differences], left_out) for m, (differences, left_out) in pairs.items()}
    if set(FIVE) <= set(pairs):
        found["mean"] = _change([pairs[m][0] for m in FIVE], sum(pairs[m][1] for m in FIVE))
    return found


def why_unmarked(scores: Scores) -> dict[str, int]:
    """Reasons, and how many marks (rows under a metric) are missing for each. Replies that name no option have the worst mark."""
    return dict(Counter(_short(mark.why) for mark in scores.marks if mark.why).most_common())


def rows_unmarked(scores: Scores) -> dict[str, int]:
    """The same reasons, and how many rows lack at least one mark for each."""
    return dict(Counter(why for why, _ in {(_short(mark.why), mark.id) for mark in scores.marks if mark.why}))


def blocks(found: Sequence[Scores]) -> list[list[Scores]]:
    """Scores in groups that may stand in one table."""
    groups: dict[Any, list[Scores]] = {}
    for scores in found:
        groups.setdefault((scores.benchmark, scores.sha256, scores.judge.key), []).append(scores)
    return list(groups.values())


def judged(group: Sequence[Scores], pairs: Sequence[tuple[Scores, Scores]]) -> dict[str, Any]:
    """One judge's table: a row per model, and the differences of the pairs (second minus first)."""
    rows = [
        {
            "model": scores.title,
            "rows": len({mark.id for mark in scores.marks}),
            "clips": len({mark.clip for mark in scores.marks if mark.value is not None}),
            "cells": {metric: vars(cell) for metric, cell in cells(scores).items()},
            "without_mark": why_unmarked(scores),
            "rows_without_mark": rows_unmarked(scores),
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
    told = {
        "kind": judge.kind,
        "name": judge.name,
        "version": judge.version,
        "asked": judge.settings,
        "prompt": judge.prompt,
        "dates": dates,
    }
    return {"judge": told, "title": replace(judge, dates=dates).title, "rows": rows, "differences": differences}


def table_json(found: Sequence[Scores], asked: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that the pages show of one benchmark, for programs. asked: titles of models that were named together, and are
    told apart in any case. ValueError without scores."""
    if not found:
        raise ValueError("no scores")
    tables = [{**judged(group, pairs_of(group, asked)), "first_only": len(group) > PAIRED} for group in blocks(found)]
    rows = [
        {"model": row.model, "values": dict(row.values), "judge": row.judge, "read_off": row.read_off}
        for row in published(found[0].benchmark, found[0].kind)
    ]
    head = {"benchmark": found[0].benchmark, "kind": found[0].kind, "sha256": found[0].sha256}
    return {**head, "tables": tables, "published": rows}


def pairs_of(group: Sequence[Scores], asked: Sequence[str]) -> list[tuple[Scores, Scores]]:
    """Which models a table tells apart: ten models would make 45 pairs, which nobody reads. asked: see `table_json`."""
    pairs = list(itertools.combinations(group, 2))
    if len(group) <= PAIRED:
        return pairs
    together = asked if len(asked) <= PAIRED else ()
    return [(a, b) for a, b in pairs if a is group[0] or (a.title in together and b.title in together)]


def examples(scores: Scores, count: int) -> tuple[list[str], list[str]]:
    """Ids of the worst and of the best items by their mean mark (as shares of the best one), `count` of each, none in both: the
    best possible one is never among the worst, nor the worst possible one among the best."""
    values: dict[str, list[float]] = {}
    for mark in scores.marks:
        if mark.value is not None:
            values.setdefault(mark.id, []).append(mark.value / (1 if mark.metric in SHARES else HIGHEST))
    means = {id_: sum(some) / len(some) for id_, some in values.items()}
    order = sorted(means, key=lambda id_: (means[id_], id_))
    count = min(count, len(order) // 2)
    return [i for i in order[:count] if means[i] < 1], [i for i in order[len(order) - count :][::-1] if means[i] > 0]


def _cell(scores: Scores, metric: str) -> Cell:
    marks = [mark for mark in scores.marks if mark.metric == metric]
    by_clip = _by_clip(scores, metric)
    known = [value for values in by_clip.values() for value in values]
    if not known:
        return Cell(len(marks), 0, None, None, None, None, None, 0)
    mean, low, high = paired_bootstrap(by_clip, RESAMPLES, SEED)
    missing, top = len(marks) - len(known), 1.0 if metric in SHARES else float(HIGHEST)
    worst, best = sum(known) / len(marks), (sum(known) + missing * top) / len(marks)
    return Cell(len(marks), len(known), mean, low, high, worst, best, len(by_clip))


def _mean_cell(scores: Scores, five: Sequence[Cell]) -> Cell:
    """The mean of the five means, as the paper's authors average, not of all marks: generic_qa has four times as many rows."""
    rows, marked = sum(cell.rows for cell in five), sum(cell.marked for cell in five)
    if not all(cell.marked for cell in five):
        return Cell(rows, marked, None, None, None, None, None, 0)
    mean, low, high = mean_of_means([_by_clip(scores, metric) for metric in FIVE], RESAMPLES, SEED)
    worst, best = (sum(values) / 5 for values in zip(*((cell.worst or 0.0, cell.best or 0.0) for cell in five), strict=True))
    return Cell(rows, marked, mean, low, high, worst, best, min(cell.clips for cell in five))


def _by_clip(scores: Scores, metric: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for mark in scores.marks:
        if mark.metric == metric and mark.value is not None:
            found.setdefault(mark.clip, []).append(mark.value)
    return found


def _paired(first: Scores, second: Scores, metric: str) -> tuple[dict[str, list[float]], int]:
    """Differences by clip, and how many rows have none."""
    sides = [{mark.id: mark for mark in scores.marks if mark.metric == metric} for scores in (first, second)]
    found: dict[str, list[float]] = {}
    for id_ in sides[0].keys() & sides[1].keys():
        a, b = sides[0][id_], sides[1][id_]
        if a.value is not None and b.value is not None:
            found.setdefault(a.clip, []).append(b.value - a.value)
    return found, len(sides[0].keys() | sides[1].keys()) - sum(map(len, found.values()))


def _change(parts: Sequence[Mapping[str, Sequence[float]]], left_out: int) -> Change:
    rows = sum(len(values) for part in parts for values in part.values())
    if not all(part for part in parts):
        return Change(rows, left_out, None, None, None, None, 0)
    mean, low, high = paired_bootstrap(parts[0], RESAMPLES, SEED) if len(parts) == 1 else mean_of_means(parts, RESAMPLES, SEED)
    return Change(rows, left_out, mean, low, high, sign_flip(parts, RESAMPLES, SEED), min(map(len, parts)))


def _short(why: str) -> str:
    """Reasons without what differs from row to row."""
    return why.split(":")[0] if why.startswith(("unreadable:", "refused:")) else why
