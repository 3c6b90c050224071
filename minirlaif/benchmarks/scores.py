"""Grades of one model's answers by one judge: a value per row and metric, or the reason why there is none.

A file per model and judge: runs/NAME/benchmarks/B/scores/MODEL.JUDGE.json. Rows without a grade stay in it, so that no mean can
leave them out silently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.dataset import Benchmark
from minirlaif.benchmarks.kinds.base import Answer, Grade
from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import GradeRequest, GradeResult, Grading, JudgeName, TextJudge
from minirlaif.runs.io import plain, read_json, write_atomic
from minirlaif.runs.run import Run
from minirlaif.stages.registry import MODELS

SCHEMA = 1
ORDER = {model: place for place, model in enumerate(MODELS)}  # of rows in a table, so that differences read as gains
NO_PREDICTION = "no prediction"


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
    benchmark: Benchmark,
    answers: Mapping[str, Answer],
    unanswered: Mapping[str, str],
    judge: TextJudge | None,
    ask: str = "",
    ranked: bool = False,
) -> tuple[JudgeName, list[Grade], Mapping[str, int]]:
    """Grades by a judge, or by the benchmark's kind itself; the judge's name and counts.

    unanswered: items that have no answer, with the reason; judge: None for kinds that need none; ask: the question of kinds that
    rank; ranked: candidates were ranked by likelihood, also when not one of them could be. UserError when the judge cannot be
    asked, or is not one version.
    """
    kind = benchmark.kind
    results: dict[str, dict[str, GradeResult]] = {}
    if judge is None:
        grading = Grading(kind.grader(ranked, ask), [])
    else:
        pairs = [(item, metric) for item in benchmark.items if item.id in answers for metric in kind.rubrics[item.part]]
        requests = [GradeRequest(metric, *kind.judged(item), answers[item.id].texts) for item, metric in pairs]
        grading = judge.grade(requests, {metric for item in benchmark.items for metric in kind.rubrics[item.part]})
        for (item, metric), result in zip(pairs, grading.results, strict=True):
            results.setdefault(item.id, {})[metric] = result
    grades: list[Grade] = []
    for item in benchmark.items:
        reason = unanswered.get(item.id) or NO_PREDICTION
        grades += kind.grade(item, answers.get(item.id), reason, results.get(item.id, {}))
    return grading.judge, grades, grading.counts


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
