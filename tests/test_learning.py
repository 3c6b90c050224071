"""PPO learns for the right reason: a bandit in which half of all words pay, driven through the stage's own functions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from minirlaif.records import Sample, Turn
from minirlaif.scoring import Row
from minirlaif.stages import ppo
from minirlaif.training import make_accelerator, make_optimizer

ITERATIONS = 10


def pays(token: int) -> bool:
    return token % 2 == 0


def bandit(folder: Path, sign: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Train for some iterations. Gives the share of paying tokens per iteration and what changed."""
    base = tiny.backbone(seed=6)
    cfg = tiny.settings(
        "rollout.rollouts=48", "rollout.batch_size=48", "rollout.max_new_tokens=3", "rollout.missing_eos_penalty=0",
        "rollout.length_coef=0", "rollout.reward_scale=1", "rollout.kl_coef=0.01", "ppo.minibatch_size=24",
        "ppo.micro_batch_size=24", "ppo.learning_rate=0.01", "ppo.warmup_steps=0", "ppo.schedule=constant", f"ppo.iterations={ITERATIONS}",
    )  # fmt: skip
    bench = tiny.TinyBench(base, {f"clip{i}": tiny.view(base, 1 + i, i) for i in range(3)}, cfg)
    roles = bench.roles
    roles.add("policy", 0)
    tiny.stir(roles, "policy", 0, 0.02)
    roles.add("reference", 0, "policy")
    roles.add("reward", 1)
    roles.add_head("reward", 1, start=0.1)
    roles.add("value", 0, "reward")
    roles.add_head("value", 0)
    roles.park("reference")

    def scores(_: object, head: object, rows: list[Row]) -> torch.Tensor:
        assert head is roles.heads["reward"]
        return torch.tensor([sign * sum(pays(t) for t in row.answer) / len(row.answer) for row in rows])

    monkeypatch.setattr(ppo, "sequence_scores", scores)
    accelerator = make_accelerator(cfg, folder)
    parameters: dict[str, list[Any]] = {role: roles.parameters(role) for role in ("policy", "value")}
    optimizers = {role: make_optimizer(accelerator, p, 0.01, 0.0) for role, p in parameters.items()}
    extra: dict[str, Any] = {"updates": 0, "score_mean": None, "score_deviation": None, "best": {}}
    learner = ppo.Learner(accelerator, parameters, optimizers, extra)

    def weights() -> dict[str, str]:
        with roles.visiting("reference"):
            found = {role: tiny.digest(roles.parameters(role)) for role in ("policy", "reference", "reward", "value")}
        return found | {"base": tiny.digest(tiny.base_weights(base))}

    questions = ("what happens first?", "how many things happen?", "describe the video.")
    prompts = [Sample(str(i), f"clip{i % 3}", (Turn(questions[i % 3]),)) for i in range(48)]
    out: Any = SimpleNamespace(sample=lambda record: None)
    before, shares, stats = weights(), [], []
    for step in range(ITERATIONS):
        rollout, found = ppo.collect(bench, prompts, {}, learner, 0.0, step, out)
        tokens = [t for row in rollout.rows for t in row.answer]
        shares.append(sum(map(pays, tokens)) / len(tokens))
        stats.append(found | ppo.update(bench, rollout, learner, step))
    after = weights()
    return {"shares": shares, "stats": stats, "changed": {name for name in before if before[name] != after[name]}}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_rewarded_becomes_frequent_and_with_the_sign_flipped_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: float
) -> None:
    found = bandit(tmp_path, sign, monkeypatch)
    first, last = found["shares"][0], sum(found["shares"][-2:]) / 2
    assert 0.25 < first < 0.75, found["shares"]
    assert sign * (last - first) > 0.2, found["shares"]
    assert found["changed"] == {"policy", "value"}  # not the reward model, not the reference, not one bit of the base
    stats = found["stats"]
    assert stats[0]["kl"] == pytest.approx(0.0, abs=1e-4)  # it starts as the reference
    assert stats[-1]["kl"] > 0.1
    assert all(s["sampler_gap"] < 1e-3 and s["first_ratio_gap"] < 1e-3 for s in stats)
    assert stats[-1]["value_value_error" if "value_value_error" in stats[-1] else "value_error"] < stats[0]["value_error"] + 1
    assert [s["score"] for s in stats] != sorted([s["score"] for s in stats], reverse=True)
