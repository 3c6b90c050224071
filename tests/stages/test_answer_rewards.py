"""`optimize.reward`: sampled answers scored by the judge, by their rank among a prompt's answers, or by a user's file."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minirlaif import config
from minirlaif.algorithms import rewards
from minirlaif.algorithms.reward_file import RewardFile
from minirlaif.algorithms.rewards import FileReward, JudgeReward, ranks
from minirlaif.cli import main
from minirlaif.errors import StageStopped, UserError
from minirlaif.feedback.text_judge import GradeRequest, Grading
from minirlaif.models.generation import Completion
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.runs.run import Run
from minirlaif.stages import ppo, registry
from minirlaif.types import Choice, Comparison
from tests.fixtures import endpoints, tiny
from tests.stages.test_group import CLIP, PROMPTS, opened, session_of, settings

ANSWERS = ("a red circle moves left.", "a blue cross stays still.", "a green square moves up.")
LONGER = "lambda prompt, answer, tags: len(answer)"


def drawn(session: tiny.TinySession, *groups: Sequence[str]) -> list[list[Completion]]:
    return [[Completion(session.backbone.renderer.answer(text), True, ()) for text in group] for group in groups]


class Prefers:
    """A judge that reads text and prefers the answer that comes first in `order`; others are equal to it."""

    kind, name = "fake", "fake"

    def __init__(self, *order: str) -> None:
        self.order, self.read = order, list[Comparison]()
        self.signature = {"kind": self.kind}

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        raise AssertionError("a reward compares answers, it grades none")

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        self.read += pairs
        place = {text: number for number, text in enumerate(self.order)}
        values = [tuple(place.get(text, 99) for text in (pair.answer_a, pair.answer_b)) for pair in pairs]
        return ["tie" if a == b else "A" if a < b else "B" for a, b in values]

    def close(self) -> None:
        pass


# Scores.


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([3.0, 1.0], [1.0, -1.0]), ([5.0, 7.0, 6.0], [-1.0, 1.0, 0.0]), ([2.0, 2.0, 1.0], [0.5, 0.5, -1.0]), ([4.0] * 4, [0.0] * 4)],
)
def test_ranks_by_hand(scores: list[float], expected: list[float]) -> None:
    assert ranks(scores) == expected


def test_a_single_answer_has_no_rank() -> None:
    with pytest.raises(ValueError, match="a single answer"):
        ranks([1.0])


@pytest.mark.parametrize("ranked", [False, True])
def test_a_judge_that_compares_gives_the_share_of_the_other_answers_that_an_answer_is_preferred_to(ranked: bool) -> None:
    """Of three answers the first beats both others, which tie: 1, 1/4, 1/4. An answer drawn twice ties with itself."""
    session = session_of(settings())
    judge = Prefers(ANSWERS[0])
    reward = JudgeReward(session, "base", session.cfg.feedback, {CLIP: "0s: it falls.\n"}, judge, ranked)
    scores = reward.scores(PROMPTS, drawn(session, ANSWERS, (ANSWERS[1], ANSWERS[1], ANSWERS[0])))
    shares = [1.0, 0.25, 0.25, 0.25, 0.25, 1.0]
    places = [1.0, -0.5, -0.5, -0.5, -0.5, 1.0]
    assert scores == pytest.approx(places if ranked else shares)
    assert len(judge.read) == 2 * (3 + 2)  # both orders; of equal answers none
    assert {(pair.question, pair.context) for pair in judge.read} == {
        (row.turns[0].question, "0s: it falls.\n") for row in PROMPTS
    }


def test_by_likelihood_a_score_is_the_mean_log_probability_of_the_sampled_ids() -> None:
    """Against the logits of transformers' own forward pass, with an answer whose ids are not those of its text."""
    session = session_of(settings("feedback.readout=likelihood", "feedback.judge_frames=false"))
    session.adapters.add("reference", 0)
    tiny.stir(session.adapters, "reference", 5)
    ids = session.backbone.renderer.answer(ANSWERS[0])
    odd = (*ids[:2], ids[0], *ids[2:])
    context = "0s: it falls.\n"
    reward = JudgeReward(session, "reference", session.cfg.feedback, {CLIP: context})
    scores = reward.scores(PROMPTS[:1], [[Completion(ids, True, ()), Completion(odd, False, ())]])
    for answer, score in zip((ids, odd), scores, strict=True):
        prompt = session.prompt(None, PROMPTS[0].turns[0].question, context)
        with session.adapters.inference_as("reference"):
            raw = session.backbone.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float()
        logits = raw.masked_fill(session.backbone.disallowed_V, -float("inf")).log_softmax(-1)  # answers cannot contain these
        each = [float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(answer)]
        assert score == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert scores[0] != scores[1]


# The file.


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_the_function_gets_prompt_answer_and_tags(tmp_path: Path) -> None:
    session = session_of(settings())
    path = written(
        tmp_path,
        "def reward(prompt, answer, tags):\n    assert set(tags) == {'id', 'video', 'colour'}, tags\n"
        "    return (tags['colour'] in answer) + 10 * (prompt == 'what happens first?') + 100 * (tags['id'] == 'q1')\n",
    )
    rows = [replace(row, tags={"colour": "red"}) for row in PROMPTS]
    scores = FileReward(RewardFile(str(path)), session).scores(rows, drawn(session, ANSWERS[:2], ANSWERS[:2]))
    assert scores == [11.0, 10.0, 101.0, 100.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return float('nan')", "gave nan; return a finite number"),
        ("return float('-inf')", "gave -inf; return a finite number"),
        ("return [1.0, 2.0]", "gave 2 values; return one number"),
        ("return []", "gave 0 values; return one number"),
        ("return None", "gave None; return one number"),
        ("return 'good'", "gave 'good'; return a finite number"),
        ("return 10**400", "return one number"),
        ("return 1e300", "gave 1e+300; return a finite number"),
    ],
)
def test_a_value_that_is_no_reward_is_one_line(tmp_path: Path, body: str, message: str) -> None:
    path = written(tmp_path, f"def reward(prompt, answer, tags):\n    {body}\n")
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        RewardFile(str(path)).score("what?", "a red circle", {})
    assert str(raised.value).startswith(f"{path}: reward for the answer 'a red circle' to 'what?'")
    assert "\n" not in str(raised.value) and raised.value.again == ()  # the run adds the command


@pytest.mark.parametrize("value", ["True", "1", "0.5", "__import__('numpy').float32(1)", "__import__('torch').tensor(1.0)"])
def test_numbers_of_any_kind_are_rewards(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, f"reward = lambda prompt, answer, tags: {value}")
    assert RewardFile(str(path)).score("", "", {}) in (1.0, 0.5)


def test_a_file_is_run_as_python_runs_it(tmp_path: Path) -> None:
    """With dataclasses, and with what lies beside it; one that ends the program while it scores is one line."""
    (tmp_path / "my_colours_of_the_test.py").write_text("COLOURS = ('red',)\n")
    path = written(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom my_colours_of_the_test import COLOURS\n"
        "@dataclass\nclass Weight:\n    value: float = 2.0\n"
        "def reward(prompt, answer, tags):\n    if not answer:\n        raise SystemExit('no key set')\n"
        "    return Weight().value * any(colour in answer for colour in COLOURS)\n",
    )
    file = RewardFile(str(path))
    assert file.score("", "a red circle", {}) == 2.0
    with pytest.raises(StageStopped, match="raised SystemExit: no key set"):
        file.score("", "", {})


def test_an_answer_that_was_drawn_twice_has_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its likelihood differs by rounding from micro-batch to micro-batch."""
    session = session_of(settings("feedback.readout=likelihood", "feedback.judge_frames=false"))
    session.adapters.add("reference", 0)
    numbers = iter([1.0, 2.0, 1.0000001, 0.5])
    monkeypatch.setattr(rewards, "mean_logprobs", lambda *words: list(numbers))
    reward = JudgeReward(session, "reference", session.cfg.feedback, {CLIP: ""}, ranked=True)
    scores = reward.scores(PROMPTS[:1], drawn(session, (ANSWERS[0], ANSWERS[1], ANSWERS[0], ANSWERS[2])))
    assert scores == pytest.approx([0.0, 1.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; write one with a function such as `def reward"),
        ("def reward(prompt:", "cannot be run, SyntaxError"),
        ("import no_such_module", "cannot be run, ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "cannot be run, SystemExit: 3"),
        ("score = 3", "has no function `reward`"),
        ("reward = 3", "has no function `reward`"),
    ],
)
def test_a_file_that_cannot_score_is_refused_before_the_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    path = tmp_path / "mine.py" if text is None else written(tmp_path, text)
    file = Path(__file__).parents[2] / "configs" / "tiny-ppo.yaml"
    words = ["run", "--config", str(file), "--run", "a", "--runs-dir", str(tmp_path), "--set", f"optimize.reward={path}"]
    assert main.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"optimize.reward {path}: {message}" in line and not (tmp_path / "a" / "world").exists()


# Settings.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimize.reward=jugde",), "it must be model, judge, rank or FILE.py (did you mean judge?)"),
        (
            ("optimize.reward=judge", "optimize.methods=[dpo]"),
            "no method of optimize.methods samples answers; those that do",
        ),
        (("optimize.reward=rank",), "answers to one prompt are compared, set rollout.samples_per_prompt to 2 or more"),
        (("optimize.reward=judge", "feedback.readout=letter"), "answers to one prompt are compared"),
        (
            ("optimize.reward=judge", "feedback.readout=likelihood", "feedback.judge=gguf:x.gguf"),
            "answers to one prompt are compared",
        ),
        (("optimize.reward=judge", "reward.base=x", "feedback.readout=likelihood"), "leave reward.base empty"),
    ],
)
def test_settings_that_cannot_go_together(words: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config.load(None, list(words))


def test_a_file_beside_the_config_is_located_and_there_is_no_reward_stage(tmp_path: Path) -> None:
    path = written(tmp_path, f"reward = {LONGER}")
    (tmp_path / "mine.yaml").write_text("optimize: {reward: mine.py}\n")
    cfg = config.load(tmp_path / "mine.yaml")
    assert cfg.optimize.reward == str(path) and "reward" not in config.stages_of(cfg)
    assert "reward" in config.stages_of(config.load(None))


# The stages.


def ran(patch: pytest.MonkeyPatch, root: Path, name: str, scored_by: str, *more: str) -> tuple[Run, tiny.TinySession]:
    """A run of one method, without SFT and without a reward model."""
    words = ("feedback.readout=likelihood", "feedback.judge_frames=false", "sft.enabled=false", *more)
    few = ("ppo.iterations=3", "ppo.minibatch_size=8", "ppo.learning_rate=0.01")
    cfg = settings(f"optimize.methods=[{name}]", f"optimize.reward={scored_by}", *few, *words)
    session = session_of(cfg)
    tiny.use_session(patch, ppo, session, prompts=PROMPTS)
    run = Run(root)
    run.stages = registry.pipeline((name,), sft=False, reward=False)
    described = [{"video": CLIP, "context": "0s: it falls.\n"}]
    if run.manifest("feedback") is None:
        tiny.finished(run, "feedback", lambda path: tiny.write_lines(path / "contexts.jsonl", described))
    ppo.run(cfg, run, name=name)
    return run, session


@pytest.mark.parametrize("name", ["ppo", "grpo"])
@pytest.mark.parametrize("scored_by", ["judge", "rank", "file"])
def test_a_method_learns_without_a_reward_model(
    name: str, scored_by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = str(written(tmp_path, f"reward = {LONGER}")) if scored_by == "file" else scored_by
    run, session = ran(monkeypatch, tmp_path / "run", name, where)
    assert set(session.adapters.heads) == ({"value"} if name == "ppo" else set()) and not session.adapters.named("reward")
    with session.adapters.on_device("policy"):
        assert any(bool(w.any()) for part, w in session.adapters.named("policy").items() if "lora_B" in part)
    made = run.manifest(name)
    assert made is not None and list(made["inputs"]) == ["feedback"]
    recorded = made["config"]["scored_by"]
    assert re.fullmatch("[0-9a-f]{64}", recorded) if scored_by == "file" else recorded == scored_by
    assert str(tmp_path) not in str(made["config"])


def test_what_a_file_rewards_becomes_likelier_and_with_the_sign_flipped_less_likely(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One step on the same 32 answers: those of an odd number of letters pay, or cost."""
    changes = []
    for sign in ("", "-"):
        path = tmp_path / f"mine{sign}.py"
        path.write_text(f"def reward(prompt, answer, tags):\n    return {sign}(len(answer) % 2)\n")
        more = ("rollout.kl_coef=0", "rollout.rollouts=32", "group.minibatch_size=32")
        session, learner, collector = opened("grpo", tmp_path, *more)
        collector = replace(collector, reward=FileReward(RewardFile(str(path)), session))
        rollout, _ = collector.collect([*PROMPTS, *PROMPTS, *PROMPTS, *PROMPTS], 0)

        def sums(session: tiny.TinySession = session, rows: list[EncodedPair] = rollout.rows) -> torch.Tensor:
            with session.adapters.on_device("policy"), session.adapters.inference_as("policy"):
                return torch.cat([token_logprobs(session.backbone, [row])[0].sum(1) for row in rows])

        before = sums()
        ppo.step(learner, rollout, 0)
        pays = torch.tensor([len(session.backbone.renderer.decode(row.answer)) % 2 == 1 for row in rollout.rows])
        change = sums() - before
        changes.append(float(change[pays].mean() - change[~pays].mean()))
    assert changes[0] > 0.05 and changes[1] < -0.05


def test_a_function_that_fails_late_loses_no_iteration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It raises in the second iteration while a file lies beside it; without that file the stage resumes to the same bytes."""
    blocked = tmp_path / "blocked"
    text = (
        "import os\ncalls = []\ndef reward(prompt, answer, tags):\n    calls.append(1)\n"
        f"    if len(calls) > 8 and os.path.exists({str(blocked)!r}):\n        raise OSError('no route')\n"
        "    return len(answer)\n"
    )
    path = written(tmp_path, text)
    whole, _ = ran(monkeypatch, tmp_path / "whole", "grpo", str(path), "group.save_every=1")
    blocked.write_text("")
    with pytest.raises(StageStopped, match=r"raised OSError: no route; correct what it needs and run the command again"):
        ran(monkeypatch, tmp_path / "run", "grpo", str(path), "group.save_every=1")
    assert (tmp_path / "run" / "grpo.partial" / "state" / "position.json").is_file()
    blocked.unlink()
    run, _ = ran(monkeypatch, tmp_path / "run", "grpo", str(path), "group.save_every=1")
    mine, theirs = ((each.dir("grpo") / "adapter" / "adapter_model.safetensors").read_bytes() for each in (run, whole))
    assert mine == theirs


def test_another_function_in_the_file_is_another_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path, f"reward = {LONGER}")
    ran(monkeypatch, tmp_path / "run", "grpo", str(path))
    written(tmp_path, f"reward = {LONGER} + 1")
    with pytest.raises(UserError, match="made with other settings or inputs .*scored_by"):
        ran(monkeypatch, tmp_path / "run", "grpo", str(path))


def test_an_endpoint_scores_each_pair_of_a_prompts_answers_in_both_orders_and_says_first_how_often(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def act(handler: Any, body: dict[str, Any]) -> None:
        asked.append(body["messages"][-1]["content"])
        endpoints.answer(handler, "A")

    with ExitStack() as stack:
        server = endpoints.Server(act)
        stack.callback(server.close)
        path = tmp_path / "judge.yaml"
        path.write_text(f"kind: openai\nname: judge-1\nurl: {server.url}\n")
        run, _ = ran(monkeypatch, tmp_path / "run", "grpo", "rank", f"feedback.judge={path}")
    # 3 iterations of 2 prompts with 4 answers each, of which 6 pairs can be made; no dev prompts
    assert "judge judge-1: up to 72 comparisons of up to " in capsys.readouterr().out
    assert 0 < len(asked) <= 72 and len(asked) % 2 == 0
    (scores,) = {row["score"] for row in tiny.read_lines(run.dir("grpo") / "metrics.jsonl")}
    assert scores == 0.0  # it always names the first answer, so every pair ties


def test_an_endpoint_that_dies_while_a_method_learns_is_one_line_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def act(handler: Any, body: dict[str, Any]) -> None:
        if broken and len(asked) >= 30:
            endpoints.send(handler, b"{}", 503)
            return
        asked.append(body["messages"][-1]["content"])
        endpoints.answer(handler, "B" if len(asked[-1]) % 3 else "A")

    server = endpoints.Server(act)
    judge = tmp_path / "judge.yaml"
    judge.write_text(f"kind: openai\nname: judge-1\nurl: {server.url}\nretries: 1\nbackoff_seconds: 0.01\nparallel: 1\n")
    words = ("grpo", "judge", f"feedback.judge={judge}", "group.save_every=1")
    broken = True
    with pytest.raises(UserError, match=r"judge judge-1: no reply from .* replies so far\s+are kept"):
        ran(monkeypatch, tmp_path / "one" / "run", *words)
    assert not (tmp_path / "one" / "run" / "grpo").exists()
    broken = False
    run, _ = ran(monkeypatch, tmp_path / "one" / "run", *words)
    whole, _ = ran(monkeypatch, tmp_path / "two" / "run", *words)
    server.close()
    mine, theirs = ((each.dir("grpo") / "adapter" / "adapter_model.safetensors").read_bytes() for each in (run, whole))
    assert mine == theirs


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import numpy\n    return numpy.array('yes')", "an object of type ndarray"),
        ("return type('Odd', (), {'__len__': lambda self: 1 / 0})()", "an object of type Odd"),
        ("return type('Odd', (), {'__repr__': lambda self: 1 / 0})()", "an object of type Odd"),
        ("return b'1.5'", "gave b'1.5'; return a finite number"),
    ],
)
def test_an_object_of_any_kind_is_refused_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "score.py"
    path.write_text(f"def reward(prompt, answer, tags):\n    {body}\n")
    with pytest.raises(UserError, match=re.escape(message)):
        RewardFile(str(path)).score("p", "a", {})


def test_a_cancelled_task_is_one_that_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "score.py"
    path.write_text("import asyncio\ndef reward(prompt, answer, tags):\n    raise asyncio.CancelledError('gone')\n")
    with pytest.raises(StageStopped, match="raised CancelledError: gone"):
        RewardFile(str(path)).score("p", "a", {})
