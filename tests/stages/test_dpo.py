"""Stage `dpo`: which pairs, whose token ids, the reference's log-probabilities once, the loss, a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from minirlaif.algorithms import dpo as algorithm
from minirlaif.config import Config
from minirlaif.data.preflight import read_judged
from minirlaif.errors import UserError
from minirlaif.models.logprobs import token_logprobs
from minirlaif.runs.run import Run
from minirlaif.stages import dpo, registry
from minirlaif.training.checkpoint import Start
from minirlaif.types import Preference
from tests.fixtures import tiny

CLIP, QUESTION = str(Path(__file__).resolve()), "what happens first?"  # a file that exists; nothing decodes it


def session_of(cfg: Config | None = None) -> tiny.TinySession:
    base = tiny.backbone()
    return tiny.TinySession(base, {CLIP: tiny.view(base, 2, 0)}, cfg)


def pairs(*answers: tuple[str, str]) -> list[dpo.JudgedPair]:
    rows = [Preference("the same id", CLIP, QUESTION, chosen, rejected) for chosen, rejected in answers]
    return [dpo.JudgedPair(f"judged-{place}", row) for place, row in enumerate(rows)]


PAIRS = pairs(("it falls down.", "it moves"), ("yes", "it falls"), ("it moves to the left", "no"))


def after_feedback(root: Path, answers: list[dict[str, Any]], preferences: list[dict[str, Any]]) -> Run:
    run = Run(root)
    run.stages = registry.pipeline(("dpo",), sft=False)

    def fill(path: Path) -> None:
        tiny.write_lines(path / "answers.jsonl", answers)
        tiny.write_lines(path / "preferences.jsonl", preferences)
        tiny.write_lines(path / "contexts.jsonl", [{"video": CLIP, "context": "0s: it falls.\n"}])

    tiny.finished(run, "feedback", fill)
    return run


def preference(name: str, chosen: str, rejected: str) -> dict[str, Any]:
    row = {"id": name, "videos": [CLIP], "prompt": QUESTION, "chosen": chosen, "rejected": rejected}
    return row | {"context": "0s: it falls.\n", "margin": 1.0}


def test_answers_have_the_ids_that_were_sampled(tmp_path: Path):
    """Of two answers with one text, the one that was not cut: the judge read its ids."""
    ids, stopped = [[6, 7, 9], [5, 2], [6, 7, 2]], [False, True, True]
    answers = [
        {"id": "a#b", "video": CLIP, "question": QUESTION, "answers": ["two", "one", "two"], "ids": ids, "stopped": stopped}
    ]
    run = after_feedback(tmp_path / "run", answers, [preference("a#b#0", "two", "one"), preference("a#b#1", "three", "one")])
    first, second = read_judged(run)
    assert (first.chosen_ids, first.rejected_ids) == ((6, 7, 2), (5, 2))
    assert (second.chosen_ids, second.rejected_ids) == ((), (5, 2))  # a text that was not sampled is encoded


def learner_of(session: tiny.TinySession, cfg: Config, folder: Path) -> algorithm.DPOLearner:
    learner = dpo.build(session, cfg.dpo, Start(0, folder, "none"))
    tiny.stir(session.adapters, "policy", 3)
    return learner


def sums(session: tiny.TinySession, role: str, text: str) -> float:
    row = session.encode_pair(session.video_input(CLIP), QUESTION, session.answer_ids(text))
    with session.adapters.on_device(role), session.adapters.inference_as(role):
        return float(token_logprobs(session.backbone, [row])[0].sum())


def test_the_first_loss_by_hand(tmp_path: Path):
    """-log sigmoid of beta times the difference of the log-ratios, each answer scored alone."""
    cfg = tiny.settings("dpo.beta=0.5", "dpo.micro_batch_size=2")
    session = session_of(cfg)
    learner = learner_of(session, cfg, tmp_path)
    expected, right = 0.0, 0
    for pair in PAIRS:
        ratios = [sums(session, "policy", t) - sums(session, "reference", t) for t in (pair.row.chosen, pair.row.rejected)]
        expected += math.log1p(math.exp(-0.5 * (ratios[0] - ratios[1]))) / len(PAIRS)
        right += ratios[0] > ratios[1]
    stats = dpo.step(learner, PAIRS, 0.0)
    assert stats["loss"] == pytest.approx(expected, rel=1e-4) and stats["accuracy"] == pytest.approx(right / len(PAIRS))


def test_a_policy_that_is_its_reference_has_the_loss_of_a_coin(tmp_path: Path):
    cfg = tiny.settings()
    session = session_of(cfg)
    learner = dpo.build(session, cfg.dpo, Start(0, tmp_path, "none"))
    stats = dpo.step(learner, PAIRS, 0.0)
    assert stats["loss"] == pytest.approx(math.log(2), abs=1e-5) and stats["margin"] == pytest.approx(0.0, abs=1e-5)


def test_the_ids_that_were_sampled_are_scored_and_not_the_text(tmp_path: Path):
    session = session_of()
    sampled, other = session.answer_ids("it moves to the left"), session.answer_ids("yes")
    row = Preference("id", CLIP, QUESTION, "a text", "another text", chosen_ids=sampled, rejected_ids=other)
    chosen, rejected = dpo._encoded(session, dpo.JudgedPair("judged-0", row))
    assert (chosen.answer, rejected.answer) == (sampled, other)


def test_steps_raise_the_chosen_answer_above_the_rejected_one(tmp_path: Path):
    """The sign; and micro-batches change nothing."""
    margins = []
    for size in (1, 3):
        cfg = tiny.settings(f"dpo.micro_batch_size={size}")
        session = session_of(cfg)
        learner = learner_of(session, cfg, tmp_path)
        margins.append([dpo.step(learner, PAIRS, 0.01)["margin"] for _ in range(4)])
    assert margins[0][-1] > margins[0][0] + 1 and margins[0] == pytest.approx(margins[1], rel=1e-3, abs=1e-3)


def test_the_reference_scores_each_pair_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg, scored = tiny.settings(), []
    session = session_of(cfg)
    learner = learner_of(session, cfg, tmp_path)
    real = algorithm.answer_logprobs

    def counted(backbone: Any, rows: Any) -> Any:
        scored.append((session.adapters._active(), len(rows)))
        return real(backbone, rows)

    monkeypatch.setattr(algorithm, "answer_logprobs", counted)
    for batch in (PAIRS[:2], PAIRS, PAIRS):
        dpo.step(learner, batch, 0.01)
    assert sum(count for role, count in scored if role == "reference") == 6  # two answers of each of three pairs
    assert sum(count for role, count in scored if role == "policy") == 16


def texts(count: int) -> list[dict[str, Any]]:
    return [preference(f"q{n}#0", *(("it falls", "it moves") if n % 2 else ("yes", "no"))) for n in range(count)]


def learning(*more: str) -> Config:
    words = "sft.enabled=false optimize.methods=[dpo] dpo.epochs=2 dpo.batch_size=3 dpo.save_every=1 dpo.learning_rate=0.01"
    return tiny.settings(*words.split(), *more)


def test_a_killed_stage_goes_on_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Killed in the second epoch: the reference's log-probabilities of the first come from the state."""
    files, real = [], dpo.step
    for name in ("straight", "killed"):
        cfg, numbers = learning(), []
        run = after_feedback(tmp_path / name, [], texts(6))
        tiny.use_session(monkeypatch, dpo, session_of(cfg))

        def dies(learner: Any, batch: Any, rate: float, numbers: list[int] = numbers, name: str = name) -> Any:
            numbers.append(len(learner.reference))
            if name == "killed" and len(numbers) == 4:
                raise KeyboardInterrupt
            return real(learner, batch, rate)

        monkeypatch.setattr(dpo, "step", dies)
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                dpo.run(cfg, run)
            tiny.use_session(monkeypatch, dpo, session_of(cfg))
            assert len(json.loads((run.partial("dpo") / "state" / "reference.json").read_text())) == 6
        dpo.run(cfg, run)
        assert numbers == ([0, 3, 6, 6] if name == "straight" else [0, 3, 6, 6, 6])
        files.append((run.dir("dpo") / "adapter" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_too_few_pairs_are_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cfg = learning()
    run = after_feedback(tmp_path / "run", [], texts(1))
    tiny.use_session(monkeypatch, dpo, session_of(cfg))
    with pytest.raises(UserError, match=r"dpo: 1 pair is too few .*`python -m minirlaif .*feedback.*--redo`") as caught:
        dpo.run(cfg, run)
    assert "\n" not in str(caught.value)


def test_token_ids_of_another_base_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cfg = learning()
    session = session_of(cfg)
    answers = [{"id": "q0", "video": CLIP, "question": QUESTION, "answers": ["yes"], "ids": [[session.backbone.vocabulary]]}]
    run = after_feedback(tmp_path / "run", answers, texts(3))
    tiny.use_session(monkeypatch, dpo, session)
    with pytest.raises(
        UserError, match=r"answers.jsonl: has token ids that this base does not know; .*`python -m minirlaif .*--redo`"
    ):
        dpo.run(cfg, run)


@pytest.mark.parametrize("changed", [{"ids": 3}, {"ids": [["a"]]}, {"answers": None}, {"id": 1}])
def test_rows_that_are_no_answers_are_one_line(changed: dict[str, Any], tmp_path: Path):
    row = {"id": "q0", "video": CLIP, "question": QUESTION, "answers": ["yes"], "ids": [[1]]}
    run = after_feedback(tmp_path / "run", [row, {**row, **changed}], texts(3))
    with pytest.raises(UserError, match=r"answers.jsonl: row 2, .*make the stage again: `python -m minirlaif .*--redo`"):
        read_judged(run)
