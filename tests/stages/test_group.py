"""Stages `rloo`, `grpo`, `dr_grpo`: which rewards are compared, that no value model is there, equal groups, where they start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minirlaif.algorithms import rollout as rollouts
from minirlaif.algorithms.group import METHODS
from minirlaif.algorithms.rollout import Rollout, RolloutCollector
from minirlaif.config import Config
from minirlaif.errors import StageStopped, UserError
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.runs.run import Run
from minirlaif.stages import ppo, registry
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.types import Sample, Turn
from tests.fixtures import tiny

CLIP = "/clips/0"
QUESTIONS = ("what happens first?", "how many things happen?")
PROMPTS = [Sample(f"q{n}", CLIP, (Turn(question),)) for n, question in enumerate(QUESTIONS)]
SCORING = "rollout.missing_eos_penalty=0 rollout.length_coef=0 rollout.reward_scale=2 rollout.kl_coef=0.5"
UPDATES = (
    "rollout.rollouts=8 rollout.samples_per_prompt=4 rollout.max_new_tokens=3 group.iterations=3 group.minibatch_size=8"
    " group.learning_rate=0.01 group.warmup_steps=0 group.schedule=constant"
)


def settings(*more: str) -> Config:
    return tiny.settings(*SCORING.split(), *UPDATES.split(), *more)


def session_of(cfg: Config) -> tiny.TinySession:
    base = tiny.backbone()
    return tiny.TinySession(base, {CLIP: tiny.view(base, 2, 0)}, cfg)


def scored(monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    """From now on the reward model gives an answer's ids this score."""
    monkeypatch.setattr(rollouts, "reward_scores", lambda _b, _h, rows: torch.tensor([float(score(row.answer)) for row in rows]))


def opened(name: str, folder: Path, *more: str) -> tuple[tiny.TinySession, Any, RolloutCollector]:
    """A stage's learner and collector; the policy has moved away from its reference."""
    cfg = settings(*more)
    session = session_of(cfg)
    models = tiny.models_of(session)
    learner = ppo.build_group(models, cfg.group, Start(0, folder), name, cfg.rollout)
    with session.adapters.on_device("policy"):
        tiny.stir(session.adapters, "policy", 3)
    collector = RolloutCollector(models, cfg.rollout, 0, None, 0.0, learner.progress, name, METHODS[name])
    return session, learner, collector


@pytest.mark.parametrize("name", METHODS)
def test_the_advantages_of_a_batch_by_hand(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rewards are twice the score; rloo takes off the KL (twice 0.5 times the log-ratio) as well. Then each prompt by itself."""
    scored(monkeypatch, lambda answer: answer[0] % 7)
    session, _, collector = opened(name, tmp_path, "rollout.kl_estimator=k3")  # which is ppo's
    rollout, stats = collector.collect(PROMPTS, 0)
    assert rollout.values_BR is None and rollout.returns_BR is None and rollout.prompt_index_B.tolist() == [0] * 4 + [1] * 4
    assert len({row.prompt for row in rollout.rows[:4]}) == len({row.prompt for row in rollout.rows[4:]}) == 1
    assert rollout.rows[0].prompt != rollout.rows[4].prompt and len({row.answer for row in rollout.rows}) > 4
    with session.adapters.on_device("reference"), session.adapters.inference_as("reference"):
        reference = [float(token_logprobs(session.backbone, [row])[0].sum()) for row in rollout.rows]
    ratios = [float(rollout.logprobs_BR[i].sum()) - reference[i] for i in range(8)]
    assert stats["kl"] == pytest.approx(sum(ratios) / 8, abs=1e-4) and max(map(abs, ratios)) > 0.1
    for prompt in (0, 1):
        part = range(4 * prompt, 4 * prompt + 4)
        taken_off = 0.5 if name == "rloo" else 0.0
        rewards = [2 * (rollout.rows[i].answer[0] % 7 - taken_off * ratios[i]) for i in part]
        mean = sum(rewards) / 4
        deviation = (sum((r - mean) ** 2 for r in rewards) / 3) ** 0.5
        expected = {
            "rloo": [r - (4 * mean - r) / 3 for r in rewards],
            "grpo": [(r - mean) / (deviation + 1e-4) for r in rewards],
            "dr_grpo": [r - mean for r in rewards],
        }[name]
        assert rollout.advantages_BR[list(part), 0].tolist() == pytest.approx(expected, abs=1e-3)
    assert bool((rollout.advantages_BR == 0).logical_or(rollout.mask_BR).all())
    assert torch.allclose(
        rollout.advantages_BR[:, :1].expand_as(rollout.mask_BR)[rollout.mask_BR], rollout.advantages_BR[rollout.mask_BR]
    )


@pytest.mark.parametrize("name", METHODS)
def test_what_is_rewarded_becomes_likelier_and_with_the_sign_flipped_less_likely(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Answers with an even first token pay. The same answers in both cases, since nothing has changed before the first step."""
    changes, answers = [], []
    for sign in (1, -1):
        scored(monkeypatch, lambda answer, sign=sign: sign * (answer[0] % 2 == 0))
        session, learner, collector = opened(
            name, tmp_path, "rollout.kl_coef=0", "rollout.rollouts=32", "group.minibatch_size=32"
        )
        rollout, _ = collector.collect([*PROMPTS, *PROMPTS, *PROMPTS, *PROMPTS], 0)
        answers.append([row.answer for row in rollout.rows])

        def sums(session: tiny.TinySession = session, rows: list[EncodedPair] = rollout.rows) -> torch.Tensor:
            with session.adapters.on_device("policy"), session.adapters.inference_as("policy"):
                return torch.cat([token_logprobs(session.backbone, [row])[0].sum(1) for row in rows])

        before = sums()
        ppo.step(learner, rollout, 0)
        pays = torch.tensor([row.answer[0] % 2 == 0 for row in rollout.rows])
        change = sums() - before
        changes.append(float(change[pays].mean() - change[~pays].mean()))
    assert answers[0] == answers[1] and changes[0] > 0.05 and changes[1] < -0.05


@pytest.mark.parametrize("name", METHODS)
def test_equal_rewards_give_no_gradient_and_are_counted(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scored(monkeypatch, lambda answer: 1.0)
    session, learner, collector = opened(name, tmp_path, "rollout.kl_coef=0")
    rollout, stats = collector.collect(PROMPTS, 0)
    assert stats["equal_groups"] == 1.0 and not rollout.advantages_BR.any()
    assert (learner.progress.groups, learner.progress.equal_groups) == (2, 2)
    assert ppo.step(learner, rollout, 0)["policy_grad_norm"] == 0.0


def test_an_answer_that_was_drawn_twice_has_one_reward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its second score is off by rounding, as in another batch. Divided by the deviation that would be an advantage of 1."""
    count = iter(range(1000))
    monkeypatch.setattr(rollouts, "reward_scores", lambda _b, _h, rows: torch.tensor([1.0 + 1e-6 * next(count) for _ in rows]))
    session, _, collector = opened("grpo", tmp_path)
    tiny.biased(session.backbone, {session.backbone.renderer.end_id: 50.0}, flat=True)  # every answer is its end
    rollout, stats = collector.collect(PROMPTS, 0)
    assert {row.answer for row in rollout.rows} == {(session.backbone.renderer.end_id,)}
    assert stats["equal_groups"] == 1.0 and not rollout.advantages_BR.any()


def before(root: Path) -> Run:
    """A run without SFT whose stages up to `reward` are finished."""
    run = Run(root)
    run.stages = registry.pipeline(("grpo",), sft=False)
    described = [{"video": CLIP, "context": "0s: it falls.\n"}]
    tiny.finished(run, "feedback", lambda path: tiny.write_lines(path / "contexts.jsonl", described))
    metrics = {"accuracy": 0.8, "held_out_pairs": 10, "bias": 0.0}
    tiny.finished(run, "reward", lambda path: tiny.save_adapter(path / "adapter", 2, head=True), **metrics)
    return run


def ran(monkeypatch: pytest.MonkeyPatch, root: Path, *more: str, name: str = "grpo") -> tuple[Run, tiny.TinySession]:
    cfg = settings("sft.enabled=false", f"optimize.methods=[{name}]", *more)
    session = session_of(cfg)
    tiny.use_session(monkeypatch, ppo, session, prompts=PROMPTS)
    run = before(root)
    ppo.run(cfg, run, name=name)
    return run, session


def test_most_groups_equal_are_one_line_with_the_settings_to_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored(monkeypatch, lambda answer: 1.0)
    run, _ = ran(monkeypatch, tmp_path / "equal")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "same reward" in line]
    assert line.startswith("grpo: for 6 of 6 prompts") and "raise rollout.temperature or rollout.samples_per_prompt" in line
    assert (run.manifest("grpo") or {})["metrics"]["equal_groups"] == 1.0
    scored(monkeypatch, sum)
    run, _ = ran(monkeypatch, tmp_path / "differ")
    assert "same reward" not in capsys.readouterr().out and (run.manifest("grpo") or {})["metrics"]["equal_groups"] < 0.5


def test_there_is_no_value_model_and_only_the_policy_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, session = ran(monkeypatch, tmp_path / "run")
    assert set(session.adapters.heads) == {"reward"} and not session.adapters.named("value")
    with session.adapters.on_device("policy", "reference"):
        assert any(bool(w.any()) for name, w in session.adapters.named("policy").items() if "lora_B" in name)
        assert not any(bool(w.any()) for name, w in session.adapters.named("reference").items() if "lora_B" in name)  # the base


def test_counts_and_bytes_survive_a_kill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killed in the third iteration; the state is of the second."""
    real, files, shares = ppo.step, [], []
    for name in ("straight", "killed"):
        cfg = settings("sft.enabled=false", "optimize.methods=[grpo]", "group.save_every=1")
        scored(monkeypatch, lambda answer: answer[0] % 3 == 0)  # often equal
        run, numbers = before(tmp_path / name), []

        def dies(learner: Any, batch: Rollout, number: int, numbers: list[int] = numbers, name: str = name) -> Any:
            numbers.append(number)
            if name == "killed" and len(numbers) == 3:
                raise KeyboardInterrupt
            return real(learner, batch, number)

        monkeypatch.setattr(ppo, "step", dies)
        tiny.use_session(monkeypatch, ppo, session_of(cfg), prompts=PROMPTS)
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                ppo.run(cfg, run, name="grpo")
            tiny.use_session(monkeypatch, ppo, session_of(cfg), prompts=PROMPTS)
        ppo.run(cfg, run, name="grpo")
        assert numbers == ([0, 1, 2] if name == "straight" else [0, 1, 2, 2])
        files.append((run.dir("grpo") / "adapter" / "adapter_model.safetensors").read_bytes())
        shares.append((run.manifest("grpo") or {})["metrics"]["equal_groups"])
    assert files[0] == files[1] and 0 < shares[0] == shares[1] < 1


def test_a_poor_reward_model_is_refused_under_the_name_of_the_stage(tmp_path: Path) -> None:
    run = before(tmp_path / "run")
    cfg = settings("sft.enabled=false", "optimize.methods=[grpo]", "reward.min_accuracy=0.9")
    with pytest.raises(UserError, match=r"^grpo: the reward model's accuracy on held-out pairs is 0.80, below"):
        ppo.run(cfg, run, name="grpo")


def test_what_to_lower_when_a_gradient_is_not_finite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scored(monkeypatch, lambda answer: float("nan"))
    with pytest.raises(StageStopped, match=r"grpo: policy .* is nan at step 1; .*lower group.learning_rate"):
        ran(monkeypatch, tmp_path / "run")


def test_it_stops_over_max_kl_of_its_own_section(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored(monkeypatch, lambda answer: answer[0] % 7)
    run, _ = ran(monkeypatch, tmp_path / "run", "group.max_kl=0.000001", "group.learning_rate=0.05")
    assert len(tiny.read_lines(run.dir("grpo") / "metrics.jsonl")) == 2 and "over group.max_kl" in capsys.readouterr().out
    assert (run.manifest("grpo") or {})["metrics"]["chosen_iteration"] == 2  # without dev prompts the last one that was made


def test_several_answers_to_a_prompt_with_a_value_model() -> None:
    """PPO takes rollout.samples_per_prompt, too: so many times fewer prompts, each prefilled once."""
    cfg = settings()
    session = session_of(cfg)
    for role in ("policy", "reference", "reward", "value"):
        session.adapters.add(role, 0)
    for role in ("reward", "value"):
        session.adapters.add_head(role, 0, start=0.1)
    collector = replace(tiny.collector(tiny.models_of(session)), progress=MethodProgress())
    rollout, stats = collector.collect(PROMPTS, 0)
    assert len(rollout.rows) == 8 and rollout.prompt_index_B.tolist() == [0] * 4 + [1] * 4
    assert "equal_groups" not in stats and rollout.values_BR is not None and collector.progress.groups == 0
    prompts = {row.prompt for row in rollout.rows}
    assert session.counters["prefilled_tokens"] == sum(map(len, prompts)) and len(prompts) == 2


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_entropy_bonus_raises_the_entropy_and_with_the_sign_flipped_lowers_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Equal rewards, no KL: the bonus alone moves the policy. One step on the same answers."""
    scored(monkeypatch, lambda answer: 1.0)
    changes = []
    for coef in (1.0, -1.0, 0.0):
        more = ("rollout.kl_coef=0", "ppo.learning_rate=0.01", "ppo.warmup_steps=0", "ppo.epochs=1", "ppo.minibatch_size=8")
        cfg = settings(*more, "rollout.samples_per_prompt=4")
        session = session_of(cfg)
        models = tiny.models_of(session)
        if name == "ppo":
            section = replace(cfg.ppo, entropy_coef=coef, vf_coef=0.0)
            learner: Any = ppo.build(models, section, Start(0, tmp_path))
        else:
            learner = ppo.build_group(models, replace(cfg.group, entropy_coef=coef), Start(0, tmp_path), name, cfg.rollout)
        rollout, _ = RolloutCollector(models, cfg.rollout, 0, None, 0.0, learner.progress, name, METHODS.get(name)).collect(
            PROMPTS, 0
        )
        rollout = replace(rollout, advantages_BR=torch.zeros_like(rollout.advantages_BR))

        def mean_entropy(session: tiny.TinySession = session, rows: list[EncodedPair] = rollout.rows) -> float:
            with session.adapters.on_device("policy"), session.adapters.inference_as("policy"):
                _, mask_BR, entropy_BR = token_logprobs(session.backbone, rows, 1.0, True)
            assert entropy_BR is not None
            return float(entropy_BR[mask_BR].mean())

        before = mean_entropy()
        ppo.step(learner, rollout, 0)
        changes.append(mean_entropy() - before)
    assert changes[0] > 0.001 and changes[1] < -0.001 and abs(changes[2]) < 1e-6


def test_scores_are_normalised_within_each_value_of_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: of kind a the first scores are 1 and 3 (mean 2, deviation sqrt 2), of kind b the single score 10, which then has
    the deviation of the whole batch. A later batch keeps these."""
    cfg = settings("rollout.normalize_score=true", "rollout.normalize_by=type")
    collector = RolloutCollector(tiny.models_of(session_of(cfg)), cfg.rollout, 0, None, 0.0, MethodProgress())
    first = collector._normalized(torch.tensor([1.0, 3.0, 10.0]), ["a", "a", "b"])
    root = 2**0.5
    assert first.tolist() == pytest.approx([-1 / root, 1 / root, 0.0], abs=1e-4)
    whole = torch.tensor([1.0, 3.0, 10.0]).std().item()
    later = collector._normalized(torch.tensor([2.0 + root, 10.0 + whole, 10.0]), ["a", "b", "c"])
    assert later.tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-4)
    assert set(collector.progress.scores_by) == {"a", "b", "c"}


def test_scores_that_do_not_differ_at_first_are_not_blown_up_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 0/1 reward that all answers of the first batch get, or all of one kind: the deviation of the batch, or 1."""
    for by, kinds, deviation in (("type", ["a", "a", "b", "b"], 0.5), ("", [""] * 4, 1.0)):
        cfg = settings("rollout.normalize_score=true", *([f"rollout.normalize_by={by}"] if by else []))
        collector = RolloutCollector(tiny.models_of(session_of(cfg)), cfg.rollout, 0, None, 0.0, MethodProgress())
        collector._normalized(torch.tensor([1.0, 1.0, 0.0, 1.0] if by else [1.0] * 4), kinds)
        later = collector._normalized(torch.tensor([1.001, 1.0, 0.0, 1.0]), kinds)
        assert float(later[0]) == pytest.approx(0.001 / deviation, rel=0.01)
    assert collector.progress.score_deviation == 1.0


def test_a_column_that_no_prompt_has_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rollout.normalize_by is kind, a column that no prompt has: they have no"):
        ran(monkeypatch, tmp_path / "run", "rollout.normalize_score=true", "rollout.normalize_by=kind")
