"""Stage `reward`: what is kept back, what the model reads, and the figures of its examination worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minirlaif.errors import UserError
from minirlaif.models.logprobs import reward_scores
from minirlaif.runs.run import Run
from minirlaif.stages import reward
from minirlaif.types import Preference
from tests.fixtures import tiny

CONTEXT = "0s: a green square moves up.\n"
COLOURS = ("red", "green", "blue", "yellow")


def preference(name: str, video: str, chosen: str, rejected: str, **tags: str) -> Preference:
    return Preference(name, video, "what happens first?", chosen, rejected, CONTEXT, tags=tags)


def test_held_out_pairs_are_whole_clips_that_training_never_sees() -> None:
    rows = [preference(f"{clip}-{number}", f"/clips/{clip}", "x", "y") for clip in range(10) for number in range(2)]
    train, kept = reward._split(rows, 0.3)
    assert sorted(p.id for p in [*train, *kept]) == sorted(p.id for p in rows)
    assert len(kept) == 6 and len({p.video for p in kept}) == 3
    assert not {p.video for p in kept} & {p.video for p in train}
    assert reward._split(rows[::-1], 0.3)[1] == [p for p in rows[::-1] if p in kept]  # the clips decide, not the order
    with pytest.raises(UserError, match="held_out"):
        reward._split(rows, 1.0)


def test_parts_of_one_file_stand_on_one_side() -> None:
    rows = [preference(f"p{n}", f"/clips/{n // 3}.mp4#t={n % 3},{n % 3 + 1}", "a", "b") for n in range(12)]
    train, kept = reward._split(rows, 0.5)
    files = [{row.video.split("#")[0] for row in side} for side in (train, kept)]
    assert (len(train), len(kept)) == (6, 6) and not files[0] & files[1]


@pytest.mark.parametrize("context", [True, False])
def test_what_training_and_examination_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, context: bool) -> None:
    base = tiny.backbone()
    settings = ("reward.held_out=0.5", "reward.epochs=2", "reward.batch_size=2", "reward.micro_batch_size=2")
    cfg = tiny.settings(*settings, f"reward.context={context}".lower())
    rows = [preference(f"p{n}", f"/clips/{n}", f"a {colour} circle.", f"a {colour} cross.") for n, colour in enumerate(COLOURS)]
    session = tiny.TinySession(base, {p.video: tiny.view(base, 2, n) for n, p in enumerate(rows)}, cfg)
    tiny.use_session(monkeypatch, reward, session)
    monkeypatch.setattr(reward, "read_judged", lambda *_: list(rows))
    read: dict[bool, list[str]] = {True: [], False: []}  # with gradients: training; without: examination
    embed = base.embed

    def watched(ids_BT: Tensor, features: Any) -> Any:
        read[torch.is_grad_enabled()] += [base.renderer.decode(ids) for ids in ids_BT.tolist()]
        return embed(ids_BT, features)

    monkeypatch.setattr(base, "embed", watched)
    run = Run(tmp_path / "run")
    tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
    tiny.finished(run, "feedback")
    reward.run(cfg, run)

    def colours(texts: list[str]) -> list[str]:
        return [next(c for c in COLOURS if f"a {c} c" in text) for text in texts]

    kept = [COLOURS[int(row["id"][1])] for row in tiny.read_lines(run.dir("reward") / "held_out.jsonl")]
    trained = [c for c in COLOURS if c not in kept]
    assert len(kept) == 2
    assert sorted(colours(read[True])) == sorted(4 * trained)  # two epochs, chosen and rejected
    assert set(colours(read[False])) == set(kept)
    assert all((CONTEXT in text) == context for texts in read.values() for text in texts)


def test_a_limit_on_pairs_draws_from_those_for_training_and_keeps_the_held_out_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [preference(f"p{n}", f"/clips/{n}", "a red circle.", "a red cross.") for n in range(20)]
    trained: list[str] = []

    def backward(trainer: Any, batch: list[Preference]) -> dict[str, float]:
        trained.extend(p.id for p in batch)
        return {"loss": 1.0}

    monkeypatch.setattr(reward, "backward", backward)
    monkeypatch.setattr(reward, "read_judged", lambda *_: list(rows))
    found: dict[int, set[str]] = {}
    kept: dict[int, list[str]] = {}
    for pairs in (0, 2, 3, 6):
        cfg = tiny.settings("reward.held_out=0.4", "reward.epochs=1", "reward.batch_size=3", f"data.preference_limit={pairs}")
        session = tiny.TinySession(base := tiny.backbone(), {p.video: tiny.view(base, 1, 0) for p in rows}, cfg)
        tiny.use_session(monkeypatch, reward, session)
        run = Run(tmp_path / str(pairs))
        tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
        tiny.finished(run, "feedback")
        trained.clear()
        reward.run(cfg, run)
        found[pairs] = set(trained)
        assert len(trained) == len(found[pairs]), "a batch of more pairs than there are would hold one twice"
        kept[pairs] = [row["id"] for row in tiny.read_lines(run.dir("reward") / "held_out.jsonl")]
    assert (len(found[3]), len(found[6]), len(found[0])) == (3, 6, 12)
    assert capsys.readouterr().out.count("reward.batch_size: 3 is more than the 2 pairs there are; batches have 2\n") == 1
    assert found[3] < found[6] < found[0]  # the smaller draw lies in the larger one
    assert kept[0] == kept[3] == kept[6] and len(kept[0]) == 8 and not found[0] & set(kept[0])
    first = {p.id for p in rows if p.id not in kept[0]} - {p.id for p in rows[-4:]}
    assert found[6] != set(sorted(first, key=lambda name: int(name[1:]))[:6])  # drawn, not the first clips


def examined(folder: Path, session: tiny.TinySession, kept: list[Preference]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run = Run(folder / "run")
    with run.stage("reward", {}) as out:
        assert out is not None
        reward._evaluate(session, session.cfg.reward, run, out, kept)
    return out.summary, tiny.read_lines(run.dir("reward") / "held_out.jsonl")


def test_the_figures_of_the_examination(tmp_path: Path) -> None:
    """Every word is as likely as any other but " red", so that a score (the mean log-likelihood) is known without a model."""
    base = tiny.backbone()
    (red,) = base.renderer.text_ids(" red")
    tiny.biased(base, {red: 3.0}, flat=True)
    session = tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)})
    session.adapters.add("reward", 0)
    session.adapters.add_head("reward", 0, start=0.0, beta=1.0)
    said = {True: "a red circle.", False: "a blue circle."}  # five tokens each: a, colour, circle, full stop, end
    kinds = [(True, "first"), (True, "first"), (False, "count"), (True, "count")]
    kept = [preference(f"p{n}", "/clip", said[right], said[not right], type=kind) for n, (right, kind) in enumerate(kinds)]
    summary, rows = examined(tmp_path, session, kept)
    assert summary["accuracy"] == 0.75 and summary["held_out_pairs"] == 4
    assert summary["accuracy_by_type"] == {"count": 0.5, "first": 1.0}
    assert summary["beta"] == 1.0 and summary["padding_gap"] < 1e-4
    length = len(session.answer_ids(said[True]))
    ahead = 3.0 / length  # of a mean over the answer's tokens
    assert length == len(session.answer_ids(said[False])) == 5
    for row, (right, _) in zip(rows, kinds, strict=True):
        assert row["score_chosen"] - row["score_rejected"] == pytest.approx(ahead if right else -ahead, abs=1e-5)
    low = min(rows[0]["score_chosen"], rows[0]["score_rejected"])
    assert summary["bias"] == pytest.approx(low + ahead / 2, abs=1e-5)  # as many answers with the word as without it
    assert summary["deviation"] == pytest.approx(ahead / 2, abs=1e-5)


@pytest.mark.parametrize("context", [True, False])
def test_scores_are_those_of_rows_with_or_without_context(tmp_path: Path, context: bool) -> None:
    base = tiny.backbone()
    session = tiny.TinySession(base, {"/clip": tiny.view(base, 2, 0)}, tiny.settings(f"reward.context={context}".lower()))
    session.adapters.add("reward", 0)
    tiny.stir(session.adapters, "reward", 1)
    session.adapters.add_head("reward", 0, start=0.3)
    p = preference("p", "/clip", "a red circle.", "a blue cross.")
    _, ((row),) = examined(tmp_path, session, [p])
    with session.adapters.inference_as("reward"):
        expected = {}
        for told in (CONTEXT, ""):
            asked = [
                session.encode_pair(session.video_input("/clip"), p.question, session.answer_ids(text), told)
                for text in (p.chosen, p.rejected)
            ]
            expected[told] = reward_scores(base, session.adapters.heads["reward"], asked).tolist()
    assert expected[CONTEXT] != pytest.approx(expected[""], abs=1e-3)
    assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(expected[CONTEXT if context else ""], abs=1e-5)


def test_sampled_answers_are_scored_by_their_ids_and_written_ones_by_their_text() -> None:
    session = tiny.TinySession(base := tiny.backbone(), {"/clips/0": tiny.view(base, 2, 0)})
    row = Preference("a#0", "/clips/0", "what happens first?", "one", "two", chosen_ids=(5, 5, 2))
    chosen, rejected = reward._rows(session, [row], with_context=False)
    assert chosen.answer == (5, 5, 2) and rejected.answer == session.answer_ids("two")
