"""Stage `ppo` on a small untrained model: where roles start, when it stops, what it keeps; rollouts by hand; the dev judge."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minirlaif.algorithms.rollout import RolloutCollector
from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.feedback import win_rate
from minirlaif.feedback.win_rate import WinRateEvaluator
from minirlaif.models.generation import Completion, sample
from minirlaif.models.logprobs import EncodedPair, reward_scores, token_logprobs, token_values
from minirlaif.runs.run import Run
from minirlaif.stages import method_loop, ppo
from minirlaif.types import Comparison, Sample, Turn, Verdict
from tests.fixtures import tiny

CLIPS = ("/clips/0", "/clips/1")
CONTEXTS = {"/clips/0": "0s: a red circle moves left.\n", "/clips/1": "0s: a blue cross stays still.\n"}
QUESTIONS = ("what happens first?", "what happens second?", "describe the video.", "how many things happen?")
SFT, REWARD = 1, 2  # seeds of the adapters


def prompts(count: int) -> list[Sample]:
    return [Sample(f"q{n}", CLIPS[n % 2], (Turn(QUESTIONS[n % 4]),)) for n in range(count)]


def session_of(cfg: Config | None = None) -> tiny.TinySession:
    base = tiny.backbone()
    return tiny.TinySession(base, {clip: tiny.view(base, 2, n) for n, clip in enumerate(CLIPS)}, cfg)


def before_ppo(root: Path, **reward: Any) -> Run:
    """A run whose stages up to `reward` are finished."""
    run = Run(root)
    tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", SFT))
    described = [{"video": video, "context": context} for video, context in CONTEXTS.items()]
    tiny.finished(run, "feedback", lambda path: tiny.write_lines(path / "contexts.jsonl", described))
    metrics = {"accuracy": 0.8, "held_out_pairs": 10, "bias": 0.0} | reward
    tiny.finished(run, "reward", lambda path: tiny.save_adapter(path / "adapter", REWARD, head=True), **metrics)
    return run


def learning(*overrides: str) -> Config:
    """Three iterations that move the policy far."""
    steps = "ppo.iterations=3 ppo.epochs=1 ppo.learning_rate=0.01 ppo.warmup_steps=0 ppo.schedule=constant ppo.dev_every=1"
    drawn = "rollout.rollouts=4 rollout.max_new_tokens=3 rollout.kl_estimator=k3"  # k3 is never negative
    return tiny.settings(*steps.split(), *drawn.split(), *overrides)


class Reached(Exception):
    """The stage got past what was to stop it."""


@pytest.mark.parametrize(
    ("metrics", "stopped"),
    [
        ({"accuracy": 0.5}, "held-out pairs is 0.50, below reward.min_accuracy"),
        ({"accuracy": 0.54}, "min_accuracy"),
        ({"accuracy": 0.55}, ""),
        ({"accuracy": 0.9, "held_out_pairs": 0}, "no pair was held out"),
    ],
)
def test_a_poor_reward_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metrics: dict[str, Any], stopped: str
) -> None:
    def reached(*_: Any, **named: Any) -> Any:
        raise Reached

    monkeypatch.setattr(ppo, "read_samples", reached)
    run = before_ppo(tmp_path / "run", **metrics)
    with pytest.raises(UserError if stopped else Reached, match=stopped or None):
        ppo.run(tiny.settings("reward.min_accuracy=0.55"), run)


@pytest.mark.parametrize(
    ("shares", "words", "cures"),
    [
        ([0.9] * 5 + [0.02] * 5, (), "--set rollout.normalize_score=true rollout.reward_scale=1 ppo.vf_coef=0.5"),
        ([0.9] * 5 + [0.02] * 5, ("rollout.normalize_score=true", "rollout.reward_scale=1"), "--set ppo.vf_coef=0.5"),
        ([0.0] * 5 + [0.06] * 5, (), ""),  # the first half does not count
        ([0.02] * 9, (), ""),  # too few to say
    ],
)
def test_a_value_model_that_explains_nothing_is_reported(
    shares: list[float], words: tuple[str, ...], cures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny.settings("ppo.vf_coef=0.1", "rollout.reward_scale=10", "rollout.normalize_score=false", *words)
    rows = [json.dumps({"step": step, "explained_variance": share}) for step, share in enumerate(shares)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    out: Any = SimpleNamespace(path=tmp_path, summary={})
    ppo._note_critic(out, cfg.rollout, cfg.ppo.vf_coef)
    assert out.summary["explained_variance"] == pytest.approx(shares[-1])
    printed = capsys.readouterr().out
    assert (f"explains 2.0% of the returns' variance, so advantages are noisy; try {cures}, or" in printed) is bool(cures)
    assert cures or not printed


@pytest.mark.parametrize(("max_kl", "steps"), [("0", 3), ("1000", 3), ("0.000001", 2)])
def test_it_stops_over_max_kl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_kl: str, steps: int) -> None:
    """The first answers come from the SFT model itself, at a KL of 0; those after the first update do not."""
    session = session_of(learning(f"ppo.max_kl={max_kl}"))
    tiny.use_session(monkeypatch, ppo, session, prompts=prompts(4))
    run = before_ppo(tmp_path / "run")
    ppo.run(session.cfg, run)
    lines = tiny.read_lines(run.dir("ppo") / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert abs(lines[0]["kl"]) < 1e-6 and 1e-3 < lines[1]["kl"] < 1000


def plain(session: tiny.TinySession, role: str) -> dict[str, torch.Tensor]:
    """A role's adapter under the names that a file of it has."""
    with session.adapters.on_device(role):
        return {name.replace(f".{role}.", "."): weight.detach().clone() for name, weight in session.adapters.named(role).items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_where_roles_start_and_which_policy_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = session_of(learning("data.dev=[dev]"))
    tiny.use_session(monkeypatch, ppo, session, prompts=prompts(4), dev=prompts(2))
    starts: list[dict[str, dict[str, torch.Tensor]]] = []
    heads: list[float] = []
    judged: list[dict[str, torch.Tensor]] = []
    real = RolloutCollector.collect

    def collected(*arguments: Any) -> Any:
        with session.adapters.on_device("policy", "reference", "reward", "value"):
            starts.append({role: plain(session, role) for role in ("policy", "reference", "reward", "value")})
            heads.append(float(session.adapters.heads["value"].linear.weight.abs().max()))
        return real(*arguments)

    class Judge:
        rates = [0.5, 0.9, 0.4, 0.6]  # before the first iteration and after each of three

        questions = prompts(2)

        def __init__(self, *_: Any) -> None:
            pass

        def win_rate(self) -> win_rate.WinRate:
            with session.adapters.on_device("policy"):
                judged.append(plain(session, "policy"))
            return win_rate.WinRate(self.rates[len(judged) - 1], 0.0)

    monkeypatch.setattr(RolloutCollector, "collect", collected)
    monkeypatch.setattr(method_loop, "WinRateEvaluator", Judge)
    run = before_ppo(tmp_path / "run")
    ppo.run(session.cfg, run)

    files = {name: load_file(run.dir(name) / "adapter" / "adapter_model.safetensors") for name in ("sft", "reward", "ppo")}
    for role, name in (("policy", "sft"), ("reference", "sft"), ("reward", "reward"), ("value", "reward")):
        assert same(starts[0][role], files[name]), role
    assert heads[0] == 0.0 < heads[-1]
    for role, learns in (("policy", True), ("value", True), ("reference", False), ("reward", False)):
        assert same(starts[0][role], starts[-1][role]) != learns, role

    assert len(judged) == 4 and same(judged[1], files["ppo"])
    assert not any(same(judged[1], judged[other]) for other in (0, 2, 3))
    metrics = (run.manifest("ppo") or {})["metrics"]
    assert (metrics["chosen_iteration"], metrics["dev_win_rate"]) == (1, 0.9)


def test_the_end_of_a_score_by_hand() -> None:
    """Policy and reference are one model and values are 0, so that the return of an answer's first token is its whole reward."""
    limit, scale = 4, 2.0
    cfg = tiny.settings(f"rollout.max_new_tokens={limit}", f"rollout.reward_scale={scale}", "rollout.missing_eos_penalty=8",
                        "rollout.length_coef=10", "rollout.gamma=1", "rollout.lam=1")  # fmt: skip
    session = session_of(cfg)
    end = session.backbone.renderer.end_id
    tiny.biased(session.backbone, {end: 5.0}, flat=True)  # ends about one time in four: e^5 = 148 against some 430 others
    for role in ("policy", "reference", "reward", "value"):
        session.adapters.add(role, 0)
    for role in ("reward", "value"):
        session.adapters.add_head(role, 0, start=0.0)
    session.adapters.heads["reward"].linear.bias.data.fill_(2.0)
    rollout, stats = tiny.collector(tiny.models_of(session), CONTEXTS, bias=0.5).collect(prompts(12), 0)
    assert rollout.returns_BR is not None and rollout.prompt_index_B.tolist() == list(range(12))
    answers = [row.answer for row in rollout.rows]
    ended = [answer[-1] == end for answer in answers]
    assert {len(answer) for answer, stop in zip(answers, ended, strict=True) if stop} > {1} and not all(ended)
    by_hand = [
        scale * (2.0 - 0.5 - (0 if stop else 8) - 10 * len(answer) / limit) for answer, stop in zip(answers, ended, strict=True)
    ]
    assert rollout.returns_BR[:, 0].tolist() == pytest.approx(by_hand, abs=1e-4)
    assert stats["reward"] == pytest.approx(sum(by_hand) / 12, abs=1e-4)
    assert stats["score"] == pytest.approx(1.5) and stats["kl"] == pytest.approx(0, abs=1e-6)
    assert stats["stopped"] == pytest.approx(sum(ended) / 12)


@pytest.mark.parametrize("context", [True, False])
def test_reward_and_value_read_the_context_and_the_policy_never_does(context: bool) -> None:
    cfg = tiny.settings("rollout.max_new_tokens=4", f"reward.context={context}".lower())
    session = session_of(cfg)
    for seed, role in enumerate(("policy", "reference", "reward", "value")):
        session.adapters.add(role, seed)
        tiny.stir(session.adapters, role, seed)
    for role in ("reward", "value"):
        session.adapters.add_head(role, 1, start=0.3)
    asked = prompts(4)
    rollout, stats = tiny.collector(tiny.models_of(session), CONTEXTS).collect(asked, 0)
    assert rollout.values_BR is not None
    answers = [row.answer for row in rollout.rows]

    def rows(told: bool) -> list[EncodedPair]:
        return [
            session.encode_pair(session.video_input(p.video), p.turns[0].question, answer, CONTEXTS[p.video] if told else "")
            for p, answer in zip(asked, answers, strict=True)
        ]

    found: dict[bool, tuple[torch.Tensor, float]] = {}
    for told in (True, False):
        with session.adapters.inference_as("value"):
            values_BR, _ = token_values(session.backbone, session.adapters.heads["value"], rows(told))
        with session.adapters.inference_as("reward"):
            found[told] = values_BR, float(reward_scores(session.backbone, session.adapters.heads["reward"], rows(told)).mean())
    assert float((found[True][0] - found[False][0]).abs().max()) > 1e-3 and abs(found[True][1] - found[False][1]) > 1e-3
    assert torch.allclose(rollout.values_BR, found[context][0], atol=1e-5)
    assert stats["score"] == pytest.approx(found[context][1], abs=1e-5)
    with session.adapters.inference_as("policy"):
        logprobs_BR, _, _ = token_logprobs(session.backbone, rows(False))
    assert torch.allclose(rollout.logprobs_BR, logprobs_BR, atol=1e-4)


def test_the_dev_judge_counts_what_the_policy_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts won, one lost, one tied: 2.5 of 4. The judge is the SFT model and reads the context."""
    session = session_of(tiny.settings("rollout.max_new_tokens=5", "feedback.batch_size=3"))
    for role, seed in (("policy", 4), ("reference", SFT)):
        session.adapters.add(role, seed)
        tiny.stir(session.adapters, role, seed)
    dev, texts = prompts(4), {}
    some = tiny.rows(session.backbone)[:2]
    seen = {}
    for role in ("policy", "reference"):
        with session.adapters.inference_as(role):
            asked = [session.encode_prompt(session.video_input(p.video), p.turns[0].question) for p in dev]
            drawn = sample(session.backbone, asked, temperature=0, max_new_tokens=5)
            texts[role] = [session.backbone.renderer.decode(answer.ids) for (answer,) in drawn]
            seen[role] = token_logprobs(session.backbone, some)[0]
    assert all(one != other for one, other in zip(texts["policy"], texts["reference"], strict=True))
    assert not torch.allclose(seen["policy"], seen["reference"], atol=1e-3)
    winners = dict(zip([p.id for p in dev], ["policy", "reference", "tie", "policy"], strict=True))
    rounds: list[list[str]] = []

    def judge(at: Any, pairs: Sequence[Comparison], views: Any, *rest: Any) -> list[Verdict]:
        rounds.append([pair.id for pair in pairs])
        assert torch.allclose(token_logprobs(at.backbone, some)[0], seen["reference"], atol=1e-5)
        verdicts = []
        for number, pair in enumerate(pairs):
            answers = {role: said[number] for role, said in texts.items()}
            assert {pair.answer_a, pair.answer_b} == set(answers.values())
            assert pair.context == CONTEXTS[pair.video] and views[pair.video] is not None
            winner = winners[pair.id]
            choice = "tie" if winner == "tie" else "A" if pair.answer_a == answers[winner] else "B"
            verdicts.append(Verdict(pair.id, choice, 1.0, (choice, choice)))
        return verdicts

    monkeypatch.setattr(win_rate, "judge", judge)
    real = session.greedy_completions

    def whole(*words: Any) -> list[Completion]:
        return [replace(completion, stopped=True) for completion in real(*words)]

    monkeypatch.setattr(session, "greedy_completions", whole)
    assert WinRateEvaluator(tiny.models_of(session), dev, CONTEXTS, session.cfg.feedback, 5).win_rate().rate == 2.5 / 4
    assert rounds == [["q0", "q1", "q2", "q3"]]


def test_a_dev_answer_that_was_cut_loses_against_one_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge, which prefers the policy, reads only the pair of two whole answers, by the ids that were sampled."""
    session = tiny.TinySession(base := tiny.backbone(), {f"/clips/{n}": tiny.view(base, 2, n) for n in range(5)})
    for role in ("policy", "reference"):
        session.adapters.add(role, 0)
    dev = [Sample(f"q{n}", f"/clips/{n}", (Turn("what?"),)) for n in range(5)]
    ended = {"policy": (True, True, True, False, False), "reference": (True, False, False, True, False)}
    given = iter(
        [Completion((10 * place + n, 2), stopped, ()) for n, stopped in enumerate(each)]
        for place, each in enumerate((ended["policy"], ended["reference"]), start=1)
    )
    monkeypatch.setattr(session, "greedy_completions", lambda *words: next(given))
    read: list[Comparison] = []

    def judge(at: Any, pairs: Sequence[Comparison], *rest: Any) -> list[Verdict]:
        read.extend(pairs)
        return [Verdict(pair.id, "A", 1.0, ("A", "A")) for pair in pairs]

    monkeypatch.setattr(win_rate, "judge", judge)
    contexts = {f"/clips/{n}": "" for n in range(5)}
    rate = WinRateEvaluator(tiny.models_of(session), dev, contexts, session.cfg.feedback, 5).win_rate()
    assert rate.rate == (1 + 1 + 1 + 0 + 0.5) / 5
    # Five clips with one question each. Deviations from 0.7: three of 0.3, one of 0.7, one of 0.2; their squares sum to 0.8.
    assert rate.error == pytest.approx(math.sqrt(0.8 * 5 / 4) / 5)
    assert [(pair.id, pair.ids_a, pair.ids_b) for pair in read] == [("q0", (10, 2), (20, 2))]


def test_questions_about_one_clip_count_together() -> None:
    """Two clips: sums of deviations from 0.5 are 1 and -1, so the error is sqrt(2 * 2 / 1) / 6; as independent questions it would
    be sqrt(6 * 0.25 * 6 / 5) / 6. About one clip alone they count as such, and one question says nothing."""
    assert win_rate.rate_of({"a": [1.0, 1.0, 0.0, 1.0], "b": [0.0, 0.0]}) == pytest.approx((0.5, 2 / 6))
    assert win_rate.rate_of({"a": [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]}) == pytest.approx((0.5, math.sqrt(1.5 * 6 / 5) / 6))
    assert win_rate.rate_of({"a": [1.0]}) == (1.0, 0.5) and not win_rate.rate_of({"a": [1.0]}).beyond_error
    assert win_rate.rate_of({"a": [1.0], "b": [1.0], "c": [0.5]}).beyond_error  # 0.833, error 0.167
