"""Stage `evaluate`: which model answers about which frames, and every figure worked out by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minirlaif import config
from minirlaif.models import generation
from minirlaif.models.generation import Completion
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.reports import against_truth
from minirlaif.runs.run import Run
from minirlaif.session import settings_of
from minirlaif.stages import evaluate
from minirlaif.types import Sample, Turn
from minirlaif.video.reader import UnreadableClip
from tests.fixtures import tiny

RIGHT, WRONG = "a red circle moves left.", "a blue cross stays still."
MODELS = {"base": "base", "sft": "sft", "rlaif": "ppo"}  # name in the report -> the stage that made it


def asked(name: str, video: str, truth: str | None = RIGHT, kind: str = "first", **tags: str) -> Sample:
    return Sample(name, video, (Turn("what happens first?", truth),), tags={"type": kind, **tags})


def fact(name: str, answer: str = RIGHT, **other: Any) -> dict[str, Any]:
    return {"id": name, "video": f"clips/{name}.mp4", "type": "first", "answer": answer, "key": answer, "segments": []} | other


class Watcher:
    """A sampler that says who is asked about what: the active model, told by its log-probabilities, and the kind of frames."""

    def __init__(self, session: tiny.TinySession, models: dict[str, Tensor], rows: Sequence[EncodedPair], grey: Tensor) -> None:
        self.session, self.models, self.rows, self.grey = session, models, rows, grey

    def __call__(self, backbone: Any, prompts: Sequence[EncodedPrompt], *rest: Any, **named: Any) -> list[list[Completion]]:
        now = token_logprobs(backbone, self.rows)[0]
        (model,) = [name for name, known in self.models.items() if torch.allclose(now, known, atol=1e-5)]
        renderer = backbone.renderer
        return [[Completion(renderer.answer(f"{model} {self.frames(prompt)}"), True, ())] for prompt in prompts]

    def frames(self, prompt: EncodedPrompt) -> str:
        assert prompt.features is not None
        if torch.equal(prompt.features, self.grey):
            return "grey"
        for video, view in self.session.views.items():
            if torch.equal(prompt.features, view.features):
                return f"true {video[-1]}"
            if all(any(torch.equal(one, other) for other in view.features) for one in prompt.features):
                return f"mixed {video[-1]}"
        return "unknown"


def test_each_model_answers_about_true_grey_and_mixed_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate, "seen_before", lambda *_: 0)
    base = tiny.backbone()
    cfg = tiny.settings("evaluate.gallery=0", "evaluate.batch_size=2", "evaluate.bootstrap=10", "data.world=tiny")
    session = tiny.TinySession(base, {f"/clips/{n}": tiny.view(base, 6, n) for n in range(3)}, cfg)
    some = tiny.rows(base)[:1]
    models = {"base": token_logprobs(base, some)[0].detach()}
    run = Run(tmp_path / "run")
    spare = tiny.backbone()
    other = tiny.TinySession(spare)
    for seed, name in enumerate(("sft", "ppo"), start=1):
        tiny.finished(run, name, lambda path, seed=seed: tiny.save_adapter(path / "adapter", seed))  # type: ignore[misc]
        other.adapters.add(name, 0, run.dir(name) / "adapter")
        with other.adapters.inference_as(name):
            models[name] = token_logprobs(spare, some)[0]
    counts = ("swap_consistency", "decided_share", "longer_wins", "pairs", "tie", "invalid", "disagree")
    judged = {"id": "p0#0", "answer_a": RIGHT, "answer_b": WRONG, "choice": "B", "without_context": {"choice": "A"}, "tags": {}}
    told = [{"video": "../world/clips/p0.mp4", "segments": [RIGHT, WRONG]}]

    def fed(path: Path) -> None:
        tiny.write_lines(path / "verdicts.jsonl", [judged])
        tiny.write_lines(path / "contexts.jsonl", told)

    scored = {"id": "p0#0", "chosen": WRONG, "rejected": RIGHT, "score_chosen": 1.0, "score_rejected": 2.0}
    truth = fact("p0", segments=[RIGHT, RIGHT])
    tiny.finished(run, "world", lambda path: tiny.write_lines(path / "truth.jsonl", [truth]))
    tiny.finished(run, "feedback", fed, **dict.fromkeys(counts, 0.25))
    tiny.finished(run, "reward", lambda path: tiny.write_lines(path / "held_out.jsonl", [scored]),
                  accuracy=0.75, accuracy_by_type={}, bias=0.5)  # fmt: skip
    grey = torch.zeros_like(session.views["/clips/0"].features)
    tests = [asked(f"t{n}", f"/clips/{n}", "sft true 1") for n in range(3)]
    tiny.use_session(monkeypatch, evaluate, session, test=tests)
    monkeypatch.setattr(generation, "sample", Watcher(session, models, some, grey))
    monkeypatch.setattr(evaluate, "blank_features", lambda source, count, size, cache: grey[:count])
    evaluate.run(cfg, run)

    rows = tiny.read_lines(run.dir("evaluate") / "answers.jsonl")
    assert [row["id"] for row in rows] == ["t0", "t1", "t2"]
    for number, row in enumerate(rows):
        for name, model in MODELS.items():
            assert row[name] == f"{model} true {number}"
            assert row[f"{name}_blind"] == f"{model} grey"
            assert row[f"{name}_shuffled"] == f"{model} mixed {number}"
    result = json.loads((run.dir("evaluate") / "result.json").read_text())
    assert result["accuracy"]["sft"] == pytest.approx(1 / 3) and result["accuracy"]["rlaif"] == 0  # only "sft true 1" is right
    assert result["judge"]["with_context"] == 0 and result["judge"]["without_context"] == 1
    assert result["judge"]["swap_consistency"] == 0.25
    assert result["reward_model"]["accuracy"] == 1 and result["reward_model"]["against_judge"] == 0.75
    assert result["context"] == {"segment_accuracy": 0.5, "segments": 2}


def test_accuracy_by_hand() -> None:
    """Two clips with ten questions each. On /a the aligned model is right and the SFT model wrong, on /b they are alike."""
    tests = [asked(f"{clip}{n}", f"/{clip}", kind="first" if n < 5 else "last") for clip in "ab" for n in range(10)]
    alike = [RIGHT] * 4 + [WRONG] * 6
    answers = {
        "sft": [WRONG] * 10 + alike,
        "rlaif": [RIGHT.upper()] * 10 + alike,
        "base": [RIGHT] * 20,
        "rlaif_blind": [WRONG] * 20,
    }
    facts = {"p0": fact("p0"), "p1": fact("p1", WRONG), "p2": fact("p2", WRONG)}  # guessing WRONG for "first"; "last" unknown
    found = evaluate._accuracy(tests, answers, facts, resamples=400, seed=0)
    # "first": nobody's truth is WRONG; "last" falls back on its own truths, all RIGHT: 10 of 20.
    assert found["accuracy"] == {"sft": 0.2, "rlaif": 0.7, "base": 1.0, "rlaif_blind": 0.0, "guess": 0.5}
    assert found["accuracy_by_type"] == {
        "first": {"sft": 0.4, "rlaif": 0.9, "base": 1.0, "rlaif_blind": 0.0, "n": 10},
        "last": {"sft": 0.0, "rlaif": 0.5, "base": 1.0, "rlaif_blind": 0.0, "n": 10},
    }
    # Two clips drawn from two with means 1 and 0: their mean is 0, 1/2 or 1, in one, two and one of four cases, so the middle
    # 95 % reach from 0 to 1. Twenty questions drawn one by one would stay within 0.25 and 0.75.
    assert found["accuracy_gain"] == {"mean": 0.5, "ci95_low": 0.0, "ci95_high": 1.0}
    # Over the base: 0 on /a, -0.6 on /b.
    assert found["gain_over_base"] == pytest.approx({"mean": -0.3, "ci95_low": -0.6, "ci95_high": 0.0})
    # Over itself on blank frames: 1 on /a, 0.4 on /b; the other models have no such answers.
    assert found["gain_over_blank"] == {"rlaif": pytest.approx({"mean": 0.7, "ci95_low": 0.4, "ci95_high": 1.0})}


def test_guessing_looks_at_keys() -> None:
    """Two answers with one key are one thing to guess."""
    told = [("the red circle moves left.", "left"), ("the blue cross moves left.", "left"), ("the red cross moves up.", "up")]
    tests = [asked(f"t{n}", f"/{n}", truth, key=key) for n, (truth, key) in enumerate(told)]
    answers = {name: [""] * 3 for name in MODELS}
    facts = {"p0": fact("p0", key="up"), "p1": fact("p1", key="left"), "p2": fact("p2", key="left")}
    assert evaluate._accuracy(tests, answers, facts, 10, 0)["accuracy"]["guess"] == pytest.approx(2 / 3)


def verdict(name: str, a: str, b: str, choice: str, without: str, letter: str = "", kind: str = "first") -> dict[str, Any]:
    row = {"id": f"{name}#0", "answer_a": a, "answer_b": b, "choice": choice, "tags": {"type": kind}}
    return row | {"without_context": {"choice": without}} | ({"letter": {"choice": letter}} if letter else {})


def test_the_judge_against_truth_by_hand() -> None:
    facts = {name: fact(name) for name in "pqrs"}
    rows = [
        verdict("p", RIGHT, WRONG, "A", "B", letter="A"),  # right with context, wrong without, right by letter
        verdict("q", WRONG, RIGHT, "B", "B"),  # right both times
        verdict("r", WRONG, RIGHT, "A", "tie", letter="disagree", kind="last"),  # wrong with; undecided without, and by letter
        verdict("s", RIGHT, WRONG, "A", "invalid", kind="last"),  # right; unreadable
        verdict("p", RIGHT, RIGHT, "B", "A"),  # both answers true: counts nowhere
        verdict("q", WRONG, "two", "B", "A"),  # none true: nor does this
        verdict("r", RIGHT, WRONG, "tie", "A", kind="last"),  # undecided; right without
    ]
    names = ("swap_consistency", "decided_share", "longer_wins", "pairs", "tie", "invalid", "disagree")
    counts = {name: number for number, name in enumerate(names)} | {"A": 99}
    found = against_truth.judge(rows, counts, facts)
    assert {name: found[name] for name in names} == {name: number for number, name in enumerate(names)}
    assert (found["with_context"], found["with_context_n"]) == (0.75, 4)
    assert (found["without_context"], found["without_context_n"]) == (pytest.approx(2 / 3), 3)
    assert (found["letter"], found["letter_n"]) == (1.0, 1)
    assert found["by_type"] == {"first": 1.0, "last": 0.5}
    # Wilson, 3 of 4 with z = 1.96: (0.75 + 0.4802 -+ 1.96 sqrt(0.046875 + 0.060025)) / 1.9604
    assert found["with_context_ci95"] == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_a_judge_without_a_usable_pair_has_no_figure() -> None:
    names = ("swap_consistency", "decided_share", "longer_wins", "pairs", "tie", "invalid", "disagree")
    found = against_truth.judge([verdict("p", RIGHT, WRONG, "tie", "tie")], dict.fromkeys(names, 0), {"p": fact("p")})
    assert found["with_context"] is None and found["with_context_n"] == 0 and found["with_context_ci95"] is None


def test_the_reward_model_against_truth_by_hand() -> None:
    def scored(name: str, chosen: str, rejected: str, ahead: float) -> dict[str, Any]:
        return {"id": f"{name}#0", "chosen": chosen, "rejected": rejected, "score_chosen": ahead, "score_rejected": 0.0}

    rows = [
        scored("p", RIGHT, WRONG, 1.0),  # scores the true answer higher
        scored("p", RIGHT, WRONG, -1.0),  # no
        scored("p", WRONG, RIGHT, -2.0),  # yes: the judge had chosen wrongly
        scored("p", WRONG, RIGHT, 2.0),  # no
        scored("p", RIGHT, WRONG, 3.0),  # yes
        scored("p", RIGHT, RIGHT, -1.0),  # both true, none true, truth unknown: not counted
        scored("p", WRONG, "two", -1.0),
        scored("elsewhere", RIGHT, WRONG, -1.0),
    ]
    metrics = {"accuracy": 0.875, "accuracy_by_type": {"first": 0.5}, "bias": 0.25, "beta": 2.0}
    assert against_truth.reward(rows, metrics, {"p": fact("p")}) == {
        "accuracy": 0.6,
        "n": 5,
        "against_judge": 0.875,
        "by_type": {"first": 0.5},
        "bias": 0.25,
        "beta": 2.0,
    }


def test_segments_by_hand() -> None:
    facts = {name: fact(name, video=f"clips/{name[0]}.mp4", segments=[RIGHT, WRONG]) for name in ("a-0", "a-1", "b-0", "c-0")}
    described = [{"video": "../world/clips/a.mp4", "segments": [RIGHT, RIGHT]}, {"video": "x/b.mp4", "segments": [RIGHT]}]
    # a: right, wrong, once although two questions ask about it; b: right and one missing; c was not described.
    assert against_truth.segments(described, facts) == {"segment_accuracy": 0.5, "segments": 4}


# How many clips of a test an earlier stage has read: counted by content, and unknown rather than guessed.
PARTS = {"sft": "sft", "feedback": "prompts", "reward": "preferences"}


def clip_ids() -> Any:
    """Content ids of clips, without decoding; a file that holds "bad" cannot be read."""

    def info(video: str) -> Any:
        content = Path(video).read_bytes()
        if content == b"bad":
            raise UnreadableClip(video, "bad")
        return SimpleNamespace(id=hashlib.sha256(content).hexdigest())

    return SimpleNamespace(feature_cache=SimpleNamespace(info=info))


@pytest.fixture
def trained(tmp_path: Path) -> Run:
    """A run whose three stages have read one clip each, with dev rows about the clip of prompts."""
    for name in (*PARTS.values(), "new", "bad"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    for name in PARTS.values():
        row = {"video": f"{name}.mp4", "question": "what?", "answer": "this."}
        row |= {"chosen": "a.", "rejected": "b."} if name == "preferences" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps([row, {**row, "video": "bad.mp4"}]))
    cfg = config.load(None, [f"data.{name}=[{tmp_path / name}.json]" for name in PARTS.values()])
    run = Run(tmp_path / "run")
    for stage, part in PARTS.items():
        with run.stage(stage, settings_of(cfg.seed, cfg.data, [part, "dev"], model=cfg.model)):
            pass
    return run


def rows_about(folder: Path, *names: str) -> list[Sample]:
    return [Sample(f"{name}{number}", str(folder / f"{name}.mp4"), ()) for number in range(2) for name in names]


def test_clips_are_counted_by_content(trained: Run, tmp_path: Path) -> None:
    assert evaluate.seen_before(clip_ids(), trained, rows_about(tmp_path, "new")) == 0
    for name in PARTS.values():
        assert evaluate.seen_before(clip_ids(), trained, rows_about(tmp_path, "new", name)) == 1, name
    (tmp_path / "copy.mp4").write_bytes(b"sft")
    assert evaluate.seen_before(clip_ids(), trained, rows_about(tmp_path, "copy", "sft", "new")) == 2


def test_another_part_of_the_same_file_was_read_too(trained: Run, tmp_path: Path) -> None:
    tests = [Sample("a", f"{tmp_path}/sft.mp4#t=1,2", ()), Sample("b", f"{tmp_path}/new.mp4#t=1,2", ())]
    assert evaluate.seen_before(clip_ids(), trained, tests) == 1


@pytest.mark.parametrize("name", ["sft.json", "prompts.json", "preferences.json", "sft.mp4"])
def test_what_is_gone_or_changed_is_not_guessed(trained: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).rename(tmp_path / "elsewhere")
    assert evaluate.seen_before(clip_ids(), trained, rows_about(tmp_path, "new")) is None
    if name.endswith(".json"):
        (tmp_path / name).write_text((tmp_path / "elsewhere").read_text() + " ")
        assert evaluate.seen_before(clip_ids(), trained, rows_about(tmp_path, "new")) is None
