"""Grades of a model's answers by a judge, and tables of them: means with intervals, differences of two models, ungraded rows.

A file per model and judge, runs/NAME/benchmarks/B/scores/MODEL.JUDGE.json, has a value per row and metric, or the reason why
there is none, so that no mean can leave rows out silently. Grades of one judge make one table; another judge, or another version
or prompt of it, makes another. Means are over graded rows; beside them stands how many have no grade, and where the mean would
lie if all of those were worst or best.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from minirlaif.benchmarks import kinds
from minirlaif.benchmarks.dataset import Benchmark
from minirlaif.benchmarks.kinds.base import Answer, Grade
from minirlaif.benchmarks.kinds.videoinstruct import FIVE
from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import GradeRequest, GradeResult, Grading, JudgeName, TextJudge
from minirlaif.runs.io import plain, read_json, write_atomic
from minirlaif.runs.run import Run
from minirlaif.stages.registry import MODELS
from minirlaif.stats import FEW, grouped, mean_of_means, sign_flip

SCHEMA = 1  # of a file of grades
ORDER = {model: place for place, model in enumerate(MODELS)}  # of rows in a table, so that differences read as gains
NO_PREDICTION = Answer((), why="no prediction")
RESAMPLES = 2000
SEED = 0
PAIRED = 4  # up to so many models in a table all pairs are compared; above it each with the first one
NO_PROTOCOL = "protocol not named"  # judge of published figures whose paper does not say how they were graded


@dataclass(frozen=True)
class Scores:
    """All grades of one model by one judge ("marks" in the file). model: its run, title and the identity of its answers; counts:
    asked, kept, …"""

    benchmark: str
    kind: str
    sha256: str
    model: Mapping[str, Any]
    judge: JudgeName
    grades: tuple[Grade, ...]
    counts: Mapping[str, int]

    @property
    def title(self) -> str:
        """The model's name in a table."""
        return f"{self.model['run']} {self.model['title']}".strip()

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for grades that may stand in one table."""
        return self.benchmark, self.sha256, self.judge.key


def grade_answers(
    benchmark: Benchmark, model: Mapping[str, Any], answers: Mapping[str, Answer], judge: TextJudge | JudgeName
) -> Scores:
    """Grades by a judge, or by the benchmark's kind itself. model: as in `Scores`; answers: by item id; judge: its name alone
    where the kind grades. UserError when the judge cannot be asked, or is not one version."""
    kind = benchmark.kind
    results: dict[str, dict[str, GradeResult]] = {}
    if isinstance(judge, JudgeName):
        grading = Grading(judge, [])
    else:
        items = [item for item in benchmark.items if item.id in answers and not answers[item.id].why]
        pairs = [(item, metric) for item in items for metric in kind.rubrics[item.part]]
        requests = [GradeRequest(metric, *kind.judged(item), answers[item.id].texts) for item, metric in pairs]
        grading = judge.grade(requests, {metric for item in benchmark.items for metric in kind.rubrics[item.part]})
        for (item, metric), result in zip(pairs, grading.results, strict=True):
            results.setdefault(item.id, {})[metric] = result
    grades: list[Grade] = []
    for item in benchmark.items:
        grades += kind.grade(item, answers.get(item.id, NO_PREDICTION), results.get(item.id, {}))
    return Scores(benchmark.name, kind.name, benchmark.sha256, model, grading.judge, tuple(grades), grading.counts)


def save(folder: Path, scores: Scores) -> Path:
    """Write one file of grades; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(scores.judge.key).encode()).hexdigest()[:8]
    judge = re.sub(r"[^\w.-]+", "-", scores.judge.name).strip("-").lower()
    path = folder / f"{scores.model['title']}.{judge}.{digest}.json"
    fields = {"marks" if name == "grades" else name: value for name, value in asdict(scores).items()}
    write_atomic(path, json.dumps(plain({"schema": SCHEMA, **fields}), ensure_ascii=False, indent=1))
    return path


def load(path: Path) -> Scores:
    """Read a file that `save` wrote. UserError when it is none."""
    value = read_json(path)
    try:
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}")
        judge = JudgeName(**{**value["judge"], "dates": tuple(value["judge"]["dates"])})
        grades = tuple(Grade(**grade) for grade in value["marks"])
        return Scores(value["benchmark"], value["kind"], value["sha256"], value["model"], judge, grades, value["counts"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of grades of this version ({error}); delete it and evaluate again") from None


def load_all(run: Run, benchmark: str) -> list[Scores]:
    """Every file of grades of one benchmark in one run: base, SFT, aligned model, then others by name; without those of answers
    that were generated again since."""
    scores = [load(path) for path in sorted((run.root / "benchmarks" / benchmark / "scores").glob("*.json"))]
    manifests = {each.model["title"]: run.manifest(f"benchmarks/{benchmark}/{each.model['title']}") for each in scores}
    scores.sort(key=lambda s: (ORDER.get(s.model["title"], len(ORDER)), s.model["title"]))
    return [s for s in scores if (manifests[s.model["title"]] or {}).get("identity") == s.model["answers"]]


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


def published(name: str, kind: str) -> list[dict[str, Any]]:
    """Figures that others have published for a benchmark of this name and kind, none for one that the VLM-RLAIF paper and its
    project page do not know. Keys of a row: model; values by metric, scores 0 to 5, shares 0 to 1; judge; read_off, measured from
    the pixels of a figure (about 0.1 of a score or half a point off).

    The judge was an unversioned name of a paid service: with its version alone, accuracies of one model moved by ten points, so
    these rows stand in tables of their own. Names are matched as whole words, with "qa" behind them or not: "planet_qa" is not
    ActivityNet's "anet_qa".
    """
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    for table in json.loads(files(__package__).joinpath("published.json").read_text("utf-8")):
        if table["kind"] == kind and re.search(table["name"], words):
            order = {"model": "", "values": {}, "judge": table["judge"], "read_off": False}
            return [{**order, **row} for row in table["rows"]]
    return []


def uncertain(figure: Mapping[str, Any]) -> bool:
    """Whether a cell or a change has too few clips for its interval and p to be reliable: a bootstrap of a few clips is too
    narrow, and cannot leave the values that they happen to have."""
    return figure["mean"] is not None and int(figure["clips"]) < FEW


def judge_head(judge: Mapping[str, Any]) -> str:
    """The judge's short name: "tiny (hf)". Version, prompt and dates are shown elsewhere."""
    name, kind = str(judge["name"]), str(judge["kind"])
    return name if kind in name or kind == "likelihood" else f"{name} ({kind})"


def cells(scores: Scores) -> dict[str, Cell]:
    """A cell per metric, in order, with the mean of five where all five are there."""
    return {name: _cell(scores, names) for name, names in _columns(scores)}


def cells_by_part(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, rows and rows with a grade by part and metric, of kinds whose parts are compared; empty where there is one part."""
    if not any(kind.name == scores.kind and kind.has_breakdown for kind in kinds.KINDS):
        return {}
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for part, of_part in sorted(grouped((grade.id.split(":")[0], grade) for grade in scores.grades).items()):
        for metric, grades in grouped((grade.metric, grade) for grade in of_part).items():
            values = [grade.value for grade in grades if grade.value is not None]
            cell = {"rows": len(grades), "marked": len(values), "mean": sum(values) / len(values) if values else None}
            result.setdefault(part, {})[metric] = cell
    return result if len(result) > 1 else {}


def changes(first: Scores, second: Scores) -> dict[str, Change]:
    """Second minus first per metric. ValueError for grades of different judges or benchmarks: they are not comparable."""
    if first.key != second.key:
        raise ValueError("grades of different judges or benchmarks have no difference")
    return {name: _change(first, second, names) for name, names in _columns(first)}


def judged(group: Sequence[Scores], pairs: Sequence[tuple[Scores, Scores]]) -> dict[str, Any]:
    """One judge's table: a row per model, and the differences of the pairs (second minus first). Keys of a row: without_mark:
    reasons, and how many grades (rows under a metric) are missing for each, where a reply that names no option has the worst
    grade; rows_without_mark: how many rows lack at least one grade for each reason; parts: see `cells_by_part`."""
    rows = []
    for scores in group:
        reasons = [(_short(grade.why), grade.id) for grade in scores.grades if grade.why]
        rows.append(
            {
                "model": scores.title,
                "rows": len({grade.id for grade in scores.grades}),
                "clips": len({grade.clip for grade in scores.grades if grade.value is not None}),
                "cells": {metric: vars(cell) for metric, cell in cells(scores).items()},
                **({"parts": parts} if (parts := cells_by_part(scores)) else {}),
                "without_mark": dict(Counter(why for why, _ in reasons).most_common()),
                "rows_without_mark": dict(Counter(why for why, _ in dict.fromkeys(reasons))),
                "counts": dict(scores.counts),
            }
        )
    differences = [
        {"first": a.title, "second": b.title, "changes": {m: vars(c) for m, c in changes(a, b).items()}} for a, b in pairs
    ]
    judge = group[0].judge
    dates = tuple(sorted({date for scores in group for date in scores.judge.dates}))
    dates = (dates[0], dates[-1]) if dates else ()
    name = {"kind": judge.kind, "name": judge.name, "version": judge.version, "asked": judge.settings, "prompt": judge.prompt}
    title = replace(judge, dates=dates).title
    return {"judge": name | {"dates": dates}, "title": title, "rows": rows, "differences": differences}


def table_json(all_scores: Sequence[Scores], together: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that the pages show of one benchmark, for programs. together: titles of models that were named together, and are
    compared in any case. ValueError without scores."""
    if not all_scores:
        raise ValueError("no scores")
    tables = []
    titles = together if len(together) <= PAIRED else ()
    for group in grouped((scores.key, scores) for scores in all_scores).values():
        pairs, first_only = list(itertools.combinations(group, 2)), len(group) > PAIRED
        if first_only:  # ten models would make 45 pairs, which nobody reads
            pairs = [(a, b) for a, b in pairs if a is group[0] or (a.title in titles and b.title in titles)]
        tables.append({**judged(group, pairs), "first_only": first_only})
    first = all_scores[0]
    head = {"benchmark": first.benchmark, "kind": first.kind, "sha256": first.sha256}
    return {**head, "tables": tables, "published": published(first.benchmark, first.kind)}


def examples(scores: Scores, count: int) -> tuple[list[str], list[str]]:
    """Ids of the worst and of the best items by their mean grade (as shares of the best one), `count` of each, none in both: the
    best possible one is never among the worst, nor the worst possible one among the best."""
    shares = [(g.id, g.value / kinds.metrics()[g.metric].best) for g in scores.grades if g.value is not None]
    means = {id_: sum(each) / len(each) for id_, each in grouped(shares).items()}
    order = sorted(means, key=lambda id_: (means[id_], id_))
    count = min(count, len(order) // 2)
    return [i for i in order[:count] if means[i] < 1], [i for i in order[len(order) - count :][::-1] if means[i] > 0]


def _columns(scores: Scores) -> list[tuple[str, Sequence[str]]]:
    """Each column with the metrics whose mean it shows."""
    used = {grade.metric for grade in scores.grades}
    columns = {**{name: (name,) for name in used}, **({"mean": FIVE} if set(FIVE) <= used else {})}
    return [(name, columns[name]) for name in kinds.metrics() if name in columns]


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
    ends = [(sum(each) / n, (sum(each) + (n - len(each)) * kinds.metrics()[name].best) / n) for name, each, n in sides]
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
    """A reason without what differs from row to row."""
    why = "the clip does not have the part" if re.match("the part (from|ends) ", why) else why
    return why.partition(":")[0] if why.startswith(("unreadable:", "refused:")) else why
