"""A new judge is one class and one row of `judges.config.JUDGES`; `evaluate --benchmark` and the stage `feedback` then use it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from minirlaif.cli import main
from minirlaif.feedback import label as labels
from minirlaif.feedback.text_judge import Grade, GradeRequest, GradeResult, Grading, JudgeName
from minirlaif.judges.config import JUDGES, JudgeKind, JudgeSettings, judge_settings, open_judge
from minirlaif.models import generation
from minirlaif.models.generation import Completion
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.runs.run import Run
from minirlaif.session import VideoInput
from minirlaif.stages import feedback
from minirlaif.types import Choice, Comparison, Sample, Turn
from tests.fixtures import tiny


class LengthJudge:
    """The toy: an answer is as good as it is long, at most 5 words."""

    def __init__(self, settings: JudgeSettings, replies: Path) -> None:
        self.kind = self.name = "length"
        self.signature = {"kind": "length"}

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        lengths = [min(5, *(len(answer.split()) for answer in (*request.answers, request.reference))) for request in requests]
        return Grading(JudgeName("length", "length", "1", ""), [GradeResult(Grade(length, length > 2)) for length in lengths])

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        choices: list[Choice] = []
        for pair in pairs:
            a, b = len(pair.answer_a), len(pair.answer_b)
            choices.append("tie" if a == b else "A" if a > b else "B")
        return choices

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JUDGES, "length", JudgeKind(f"{__name__}:LengthJudge", "length"))


def test_evaluate_grades_a_benchmark_with_it(tmp_path: Path) -> None:
    answers = ["a red ball rolls to the left", "a ball", "one two three four", "one two three"]
    rows = [{"video": f"{n}.mp4", "question": f"what happens in {n}?", "answer": "a red ball rolls away"} for n in range(4)]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    (tmp_path / "theirs.json").write_text(json.dumps([{**r, "pred": p} for r, p in zip(rows, answers, strict=True)]))
    words = ["--benchmark", str(tmp_path / "qa.json"), "--predictions", str(tmp_path / "theirs.json"), "--model", "theirs"]
    assert main.main(["evaluate", "--run", "r", "--runs-dir", str(tmp_path / "runs"), *words, "--judge", "length"]) == 0
    table = json.loads((tmp_path / "runs" / "r" / "benchmarks" / "qa" / "table.json").read_text())["tables"][0]
    cells = table["rows"][0]["cells"]
    assert (cells["accuracy"]["mean"], cells["score"]["mean"]) == (0.75, 3.5)  # 5, 2, 4 and 3 words; three of them over 2
    assert (table["judge"]["kind"], table["judge"]["version"]) == ("length", "1")


TEXTS = ["a red circle.", "a red circle moves left."]


class Session(tiny.TinySession):
    """Every clip is one segment."""

    def segment_inputs(self, video: str) -> list[tuple[tuple[float, float], VideoInput]]:
        return [((0.0, 2.0), self.views[video])]


def test_feedback_labels_pairs_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("feedback.batch_size=4", "feedback.judge_frames=false")
    prompts = [Sample(f"q{number}", "/clips/0", (Turn("what happens?"),)) for number in range(8)]

    def sample(_: Any, prompts: Sequence[EncodedPrompt], answers: int = 1, *rest: Any, **named: Any) -> list[list[Completion]]:
        return [[Completion(base.renderer.answer(text), True, ()) for text in TEXTS[:answers]] for _ in prompts]

    tiny.use_session(monkeypatch, feedback, Session(base, {"/clips/0": tiny.view(base, 2, 0)}, cfg), prompts=prompts)
    for module in (labels, generation):
        monkeypatch.setattr(module, "sample", sample)
    run = Run(tmp_path / "run")
    tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
    judge = open_judge(judge_settings("length"), tmp_path / "replies.sqlite")
    feedback.run(cfg, run, text_judge=judge)
    rows = tiny.read_lines(run.dir("feedback") / "preferences.jsonl")
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in rows] == [(TEXTS[1], TEXTS[0], 1.0)] * 8
    verdicts = tiny.read_lines(run.dir("feedback") / "verdicts.jsonl")
    assert {tuple(row["orders"]) for row in verdicts} == {("A", "A"), ("B", "B")} and "letter" not in verdicts[0]
    manifest = run.manifest("feedback")
    assert manifest is not None and manifest["config"]["judge"] == {"kind": "length"}
