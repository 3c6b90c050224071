"""Marks of one model's answers by one judge: a value per row and metric, or the reason why there is none, and whose they are.

A file per model and judge: runs/NAME/benchmarks/B/scores/MODEL.JUDGE.json. Rows without a mark stay in it, so that no mean can
leave them out without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.dataset import Benchmark, Item
from minirlaif.benchmarks.generate import Answer
from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import GradeRequest, GradeResult, Grading, JudgeName, TextJudge
from minirlaif.judges.rubric import CHOOSE, PARTS, chosen_option
from minirlaif.runs.io import plain, read_json, write_atomic
from minirlaif.runs.run import Run

SCHEMA = 1
ORDER = {"base": 0, "sft": 1, "rlaif": 2}  # of rows in a table, so that differences read as gains
RANKED = {"action": {"top1": 1, "top5": 5}, "retrieval": {"r1": 1, "r5": 5, "r10": 10}, "choice": {"accuracy": 1}}


@dataclass(frozen=True)
class Grade:
    """One row under one metric. value: 0 to 5, or 0 or 1 for shares; None for the reason in `why`. reply: what the judge said."""

    id: str
    clip: str
    metric: str
    value: float | None
    why: str = ""
    reply: str = ""


@dataclass(frozen=True)
class Scores:
    """All marks of one model by one judge. model: its run, title and the identity of its answers; counts: asked, kept, …"""

    benchmark: str
    kind: str
    sha256: str
    model: Mapping[str, Any]
    judge: JudgeName
    marks: tuple[Grade, ...]
    counts: Mapping[str, int]

    @property
    def title(self) -> str:
        """The model's name in a table."""
        return f"{self.model['run']} {self.model['title']}".strip()


def rank_grades(
    benchmark: Benchmark, answers: Mapping[str, Answer], without: Mapping[str, str], ask: str = "", ranked: bool = False
) -> tuple[JudgeName, list[Grade], Mapping[str, int]]:
    """Grades of a benchmark with candidates, which need no judge: ranks, and letters of replies.

    without: items that have no answer, with the reason; ask: the question where candidates were ranked; ranked: they were, also
    when not one of them could be.
    """
    prompt = hashlib.sha256((ask or CHOOSE).encode()).hexdigest()[:12]
    name = ("likelihood", "likeliest candidate per token", "1") if ranked else ("letter", "letter of the reply", "3")
    grades = [mark for item in benchmark.items for mark in _ranked(item, answers.get(item.id), without.get(item.id, ""))]
    judge = JudgeName(*name, "" if ranked and benchmark.kind == "choice" else prompt)
    return judge, grades, Grading(judge, []).counts


def judge_grades(
    benchmark: Benchmark, answers: Mapping[str, Answer], without: Mapping[str, str], judge: TextJudge
) -> tuple[JudgeName, list[Grade], Mapping[str, int]]:
    """Grades by a judge. UserError when it cannot be asked, or is not one version."""
    places = [(item, metric) for item in benchmark.items for metric in PARTS[item.part]]
    answered = [(item, metric) for item, metric in places if item.id in answers]
    requests = [GradeRequest(metric, item.questions, item.answer, answers[item.id].said) for item, metric in answered]
    grading = judge.grade(requests, {metric for _, metric in places})
    results = {(item.id, metric): each for (item, metric), each in zip(answered, grading.results, strict=True)}
    grades: list[Grade] = []
    for item, metric in places:
        grades += _grades(item, metric, results.get((item.id, metric)) or GradeResult(None, without.get(item.id, "")))
    return grading.judge, grades, grading.counts


def _grades(item: Item, metric: str, result: GradeResult) -> list[Grade]:
    """One grade, or accuracy and score for zero-shot QA."""
    grade, why = result.grade, result.why or ("" if result.grade else "no prediction")
    if metric == "qa":
        yes = None if grade is None else float(bool(grade.yes))
        accuracy = Grade(item.id, item.name, "accuracy", yes, why, result.reply)
        return [accuracy, replace(accuracy, metric="score", value=None if grade is None else float(grade.score), reply="")]
    return [Grade(item.id, item.name, metric, None if grade is None else float(grade.score), why, result.reply)]


def _ranked(item: Item, answer: Answer | None, why: str) -> list[Grade]:
    """Hits of one item. A reply that names no option is a wrong answer, and says so."""
    marks = []
    for metric, depth in RANKED[item.part].items():
        if answer is None:
            marks.append(Grade(item.id, item.name, metric, None, why or "no prediction"))
        elif answer.rank is not None:
            marks.append(Grade(item.id, item.name, metric, float(answer.rank <= depth)))
        else:
            chosen = chosen_option(answer.said[0], item.options)
            right = chosen is not None and item.options[chosen] == item.answer
            marks.append(Grade(item.id, item.name, metric, float(right), "" if chosen is not None else "names no option"))
    return marks


def save(folder: Path, scores: Scores) -> Path:
    """Write one file of marks; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(scores.judge.key).encode()).hexdigest()[:8]
    judge = re.sub(r"[^\w.-]+", "-", scores.judge.name).strip("-").lower()
    path = folder / f"{scores.model['title']}.{judge}.{digest}.json"
    write_atomic(path, json.dumps(plain({"schema": SCHEMA, **asdict(scores)}), ensure_ascii=False, indent=1))
    return path


def load(path: Path) -> Scores:
    """Read a file that `save` wrote. UserError when it is none."""
    value = read_json(path)
    try:
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}")
        judge = JudgeName(**{**value["judge"], "dates": tuple(value["judge"]["dates"])})
        marks = tuple(Grade(**mark) for mark in value["marks"])
        return Scores(value["benchmark"], value["kind"], value["sha256"], value["model"], judge, marks, value["counts"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of marks of this version ({error}); delete it and evaluate again") from None


def load_all(run: Run, benchmark: str) -> list[Scores]:
    """Every file of marks of one benchmark in one run: base, SFT, aligned model, then others by name; marks of answers that were
    made again since are left out."""
    found = [load(path) for path in sorted((run.root / "benchmarks" / benchmark / "scores").glob("*.json"))]
    manifests = {scores.model["title"]: run.manifest(f"benchmarks/{benchmark}/{scores.model['title']}") for scores in found}
    found.sort(key=lambda s: (ORDER.get(s.model["title"], len(ORDER)), s.model["title"]))
    return [s for s in found if (manifests[s.model["title"]] or {}).get("identity") == s.model["answers"]]
