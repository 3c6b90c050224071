"""Rows and metrics that later stages read: such rows, or one line with file, row, field and command, whatever hashes say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minirlaif.data import preflight
from minirlaif.errors import UserError
from minirlaif.runs import records
from minirlaif.runs.run import Run
from minirlaif.stages import evaluate
from tests.fixtures import tiny
from tests.stages import test_report as report_run

VERDICT = {
    "id": "p0#0",
    "video": "a.mp4",
    "question": "q?",
    "answer_a": "a",
    "answer_b": "b",
    "context": "",
    "choice": "A",
    "margin": 0.5,
    "orders": ["A", "A"],
    "without_context": {"choice": "A", "margin": 0.5, "orders": ["A", "A"]},
}
TRUTH = {"id": "p0", "video": "a.mp4", "type": "what", "key": "a", "answer": "a", "segments": ["a"]}
SCORED = {"id": "p0#0", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 1.0}
CONTEXT = {"video": "a.mp4", "context": "", "segments": ["a"]}
COUNTED = dict.fromkeys(evaluate.COUNTS, 0.5)
TRAINED = {"accuracy": 0.5, "accuracy_by_type": {}, "bias": 0.0}


def made(root: Path, counted: Any = None, trained: Any = None, **rows: Any) -> Run:
    """A run with these rows by file behind a sound first one; its manifests vouch for them."""
    run = Run(root / "a")
    good = {"verdicts": VERDICT, "contexts": CONTEXT, "held_out": SCORED, "truth": TRUTH}

    def fill(*names: str) -> Any:
        return lambda path: [tiny.write_lines(path / f"{n}.jsonl", [good[n], *([rows[n]] if n in rows else [])]) for n in names]

    tiny.finished(run, "world", fill("truth"))
    tiny.finished(run, "feedback", fill("verdicts", "contexts"), **COUNTED | (counted or {}))
    tiny.finished(run, "reward", fill("held_out"), **TRAINED | (trained or {}))
    return run


def test_sound_rows_are_read(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert evaluate._against_truth(run, evaluate._truth(run))["judge"]["with_context"] == 1.0


@pytest.mark.parametrize(
    ("file", "row", "words"),
    [
        ("verdicts", [], "row 2, which is a list, not an object"),
        ("verdicts", {}, "row 2, id: missing"),
        ("verdicts", {**VERDICT, "choice": 3}, "row 2, choice: 3, not a text"),
        ("verdicts", {**VERDICT, "margin": float("nan")}, "row 2, margin: nan, not a finite number"),
        ("verdicts", {**VERDICT, "margin": True}, "row 2, margin: True, not a finite number"),
        ("verdicts", {**VERDICT, "orders": "AA"}, "row 2, orders: 'AA', not a list of texts"),
        ("verdicts", {**VERDICT, "without_context": []}, "row 2, without_context: a list, not an object"),
        ("verdicts", {**VERDICT, "letter": {"orders": []}}, "row 2, letter, choice: missing"),
        ("verdicts", {**VERDICT, "answer_a": "\ud800"}, r"row 2, answer_a: '\ud800', not a text"),
        ("verdicts", {**VERDICT, "id": "p9#0"}, "row 2, id: no question of the world"),
        ("contexts", {**CONTEXT, "segments": None}, "row 2, segments: missing"),
        ("held_out", {**SCORED, "score_chosen": "2"}, "row 2, score_chosen: '2', not a finite number"),
        ("truth", {**TRUTH, "answer": 10**400}, "row 2, answer: 1000"),
    ],
)
def test_a_forged_row_is_named_with_its_field_and_command(file: str, row: Any, words: str, tmp_path: Path) -> None:
    run = made(tmp_path, **{file: row})
    with pytest.raises(UserError) as caught:
        evaluate._against_truth(run, evaluate._truth(run))
    stage = {"held_out": "reward", "truth": "world"}.get(file, "feedback")
    text = str(caught.value)
    assert text.startswith(str(run.dir(stage) / f"{file}.jsonl")) and words in text and "\n" not in text
    assert f"make the stage again: `python -m minirlaif run {stage} " in text or f"`python -m minirlaif {stage} " in text


@pytest.mark.parametrize(
    ("changed", "stage", "words"),
    [
        ({"counted": {"pairs": "many"}}, "feedback", "metrics, pairs: 'many', not a finite number"),
        ({"counted": {"tie": None}}, "feedback", "metrics, tie: missing"),
        ({"trained": {"accuracy_by_type": []}}, "reward", "metrics, accuracy_by_type: a list, not an object"),
    ],
)
def test_a_forged_metric_is_named_with_its_command(changed: dict[str, Any], stage: str, words: str, tmp_path: Path) -> None:
    run = made(tmp_path, **changed)
    with pytest.raises(UserError) as caught:
        evaluate._against_truth(run, evaluate._truth(run))
    assert words in str(caught.value) and f"{stage}/manifest.json: " in str(caught.value) and "--redo`" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"), [("[]", "a list, not an object"), ('{"step": 1, "kl": "x"}', "kl: 'x', not a finite")]
)
def test_the_report_names_a_line_of_metrics(line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(report_run.FILL, "ppo", lambda out: (out.path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n'))
    rows = [report_run.row(1, "worse")]
    cfg, run = report_run.make(tmp_path / "a", rows, report_run.result(rows))
    with pytest.raises(UserError) as caught:
        report_run.report.run(cfg, run)
    assert f"metrics.jsonl: row 2, {words}" in str(caught.value).replace("which is ", "") and "minirlaif run ppo " in str(
        caught.value
    )
    assert not json.dumps(str(caught.value)).count("\\n")


@pytest.mark.parametrize(("stage", "name"), [("feedback", "preferences.jsonl"), ("world", "test.jsonl")])
def test_rows_of_an_earlier_stage_that_are_none_are_refused_with_its_command(stage: str, name: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    tiny.finished(run, stage, lambda path: tiny.write_lines(path / name, [{"id": "x"}]))
    with pytest.raises(UserError) as caught:
        if stage == "feedback":
            preflight.read_judged(run)
        else:
            preflight.read_samples(tiny.settings("data.world=tiny").data, run, "test", need_answers=False)
    assert f"{name}, row 1: " in str(caught.value) and f"make the stage again: `{run.remake(stage)}`" in str(caught.value)


@pytest.mark.parametrize("known", [3, {}, {"bytes": "a", "sha256": ""}, {"bytes": -1, "sha256": ""}])
@pytest.mark.parametrize("name", ["metrics.jsonl", "../../precious", "\u00e9" * 255])
def test_files_of_a_forged_position_are_refused(name: str, known: Any, tmp_path: Path) -> None:
    position = {"step": 1, "seconds": 1.0, "summary": {}, "counters": {}, "files": {name: known}, "state": {}}
    records.write_sealed(tmp_path / "position.json", position)
    with pytest.raises(UserError, match="not such a record; start the stage again"):
        records.read_record(tmp_path / "position.json", records.POSITION)
    position["files"] = {"metrics.jsonl": {"bytes": 1, "sha256": "x"}}
    records.write_sealed(tmp_path / "position.json", position)
    assert records.read_record(tmp_path / "position.json", records.POSITION)["files"] == position["files"]
