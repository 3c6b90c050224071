"""Stage `sft`: which rows each of its two stages trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minirlaif.runs.run import Run
from minirlaif.stages import sft
from minirlaif.training.checkpoint import Start
from minirlaif.types import Sample, Turn
from tests.fixtures import tiny


def row(name: str, *answers: str) -> Sample:
    return Sample(name, "/clip", tuple(Turn("what happens?", answer) for answer in answers))


ROWS = [
    row("long1", "one two three four"),
    row("short1", "one two three"),
    row("long2", "one", "one two three four five"),  # the longest answer counts
    row("short2", "one", "two"),
    row("short3", "one"),
]


def test_short_rows_first_then_the_long_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("sft.short_words=3", "sft.epochs=2", "sft.batch_size=2", "sft.warmup_ratio=0", "sft.schedule=linear")
    session = tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)}, cfg)
    tiny.use_session(monkeypatch, sft, session, sft=ROWS)
    trained: list[str] = []

    def backward(trainer: Any, batch: Sequence[Sample]) -> float:
        trained.extend(sample.id for sample in batch)
        return 1.0

    monkeypatch.setattr(sft, "backward", backward)
    run = Run(tmp_path / "run")
    sft.run(cfg, run)
    # 3 short rows x 2 epochs in 3 steps, 2 long rows x 2 epochs in 2 steps; an epoch has each row once.
    assert [set(trained[place : place + 3]) for place in (0, 3)] == [{"short1", "short2", "short3"}] * 2
    assert [set(trained[place : place + 2]) for place in (6, 8)] == [{"long1", "long2"}] * 2 and len(trained) == 10
    logged = tiny.read_lines(run.dir("sft") / "metrics.jsonl")
    assert [line["stage"] for line in logged] == ["short"] * 3 + ["long"] * 2
    assert logged[3]["learning_rate"] == logged[0]["learning_rate"] == cfg.sft.learning_rate  # each stage starts anew
    assert (run.manifest("sft") or {})["metrics"] | {"short_rows": 3, "long_rows": 2} == (run.manifest("sft") or {})["metrics"]


def test_a_batch_has_at_most_as_many_rows_as_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("sft.short_words=3", "sft.epochs=2", "sft.batch_size=9")
    tiny.use_session(monkeypatch, sft, tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)}, cfg), sft=ROWS)
    sizes: list[int] = []
    monkeypatch.setattr(sft, "backward", lambda trainer, batch: sizes.append(len(batch)) or 1.0)
    sft.run(cfg, Run(tmp_path / "run"))
    assert sizes == [5, 5]  # 2 epochs of 3 short rows, then of 2 long ones
    assert capsys.readouterr().out.count("sft.batch_size: 9 is more than the 5 rows there are; batches have 5\n") == 1


def test_the_loss_is_that_of_the_learned_answers_alone(tmp_path: Path) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("sft.batch_size=1")
    session = tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)}, cfg)
    trainer = sft.build(session, cfg.sft, Start(0, tmp_path, "none"))
    turns = (Turn("what happens?", "it falls down."), Turn("and then?", "it moves."))

    def loss(*learned: bool) -> tuple[float, int]:
        """Nats per learned token, and how many those are."""
        chosen = tuple(replace(turn, learn=each) for turn, each in zip(turns, learned, strict=True))
        tokens = sum(len(base.renderer.answer(str(turn.answer))) for turn in chosen if turn.learn)
        return sft.backward(trainer, [Sample("a", "/clip", chosen)]), tokens

    (both, all_tokens), (first, few), (second, rest) = loss(True, True), loss(True, False), loss(False, True)
    assert all_tokens == few + rest and abs(first - second) > 1e-3
    assert both * all_tokens == pytest.approx(first * few + second * rest, rel=1e-5)


def test_an_answer_that_is_not_learned_does_not_make_a_row_long() -> None:
    masked = Sample("a", "/clip", (Turn("why?", "one two three four", learn=False), Turn("who?", "one")))
    assert sft.by_length([masked], 3) == {"short": [masked], "long": []}


def test_rows_without_short_answers_make_one_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("sft.short_words=0", "sft.batch_size=5")
    tiny.use_session(monkeypatch, sft, tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)}, cfg), sft=ROWS)
    trained: list[set[str]] = []
    monkeypatch.setattr(sft, "backward", lambda trainer, batch: trained.append({s.id for s in batch}) or 1.0)
    sft.run(cfg, Run(tmp_path / "run"))
    assert trained == [{sample.id for sample in ROWS}]


def test_without_the_curriculum_rows_of_all_lengths_are_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("sft.short_words=3", "sft.batch_size=5", "sft.epochs=2", "sft.curriculum=false")
    tiny.use_session(monkeypatch, sft, tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)}, cfg), sft=ROWS)
    trained: list[set[str]] = []
    monkeypatch.setattr(sft, "backward", lambda trainer, batch: trained.append({s.id for s in batch}) or 1.0)
    run = Run(tmp_path / "run")
    sft.run(cfg, run)
    assert trained == [{sample.id for sample in ROWS}] * 2  # one stage, two epochs of all five
    assert [line["stage"] for line in tiny.read_lines(run.dir("sft") / "metrics.jsonl")] == ["mixed"] * 2
