"""PPO learns for the right reason: a bandit in which half of all words pay, driven through the stage's own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minirlaif.algorithms import rollout as rollouts
from minirlaif.models.logprobs import EncodedPair
from minirlaif.types import Sample, Turn
from tests.fixtures import tiny

ITERATIONS = 10


def bandit(folder: Path, sign: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Train for some iterations. Gives the share of paying tokens per iteration and what changed."""
    base = tiny.backbone(seed=6, layers=1)
    side = torch.randn(base.width, generator=torch.Generator().manual_seed(0))
    pays = (base.model.lm_head.weight @ side > 0).tolist()  # half of all words, on one side of a plane
    rules = (
        "rollout.rollouts=96 rollout.batch_size=96 rollout.max_new_tokens=1 rollout.missing_eos_penalty=0 rollout.length_coef=0"
        " rollout.reward_scale=1 rollout.kl_coef=0.01 ppo.epochs=2 ppo.minibatch_size=96 ppo.micro_batch_size=96 ppo.clip=0.5"
        f" ppo.learning_rate=0.01 ppo.warmup_steps=0 ppo.schedule=constant ppo.iterations={ITERATIONS}"
    )
    cfg = tiny.settings(*rules.split())
    session = tiny.TinySession(base, {f"clip{i}": tiny.view(base, 1 + i, i) for i in range(3)}, cfg)
    roles = session.adapters
    roles.add("policy", 0)
    tiny.stir(roles, "policy", 0, 0.02)
    roles.add("reference", 0, "policy")
    roles.add("reward", 1)
    roles.add_head("reward", 1, start=0.1)
    roles.add("value", 0, "reward")
    roles.add_head("value", 0)
    roles.enable_offload("reference")

    def scores(_: object, head: object, rows: list[EncodedPair]) -> torch.Tensor:
        assert head is roles.heads["reward"]
        return torch.tensor([sign * sum(pays[t] for t in row.answer) / len(row.answer) for row in rows])

    monkeypatch.setattr(rollouts, "reward_scores", scores)
    models = tiny.models_of(session)
    learner, collector = tiny.learner(models, folder), tiny.collector(models)

    def weights() -> dict[str, str]:
        with roles.on_device("reference"):
            found = {role: tiny.digest(roles.parameters(role)) for role in ("policy", "reference", "reward", "value")}
        return found | {"base": tiny.digest(tiny.base_weights(base))}

    questions = ("what happens first?", "how many things happen?", "describe the video.")
    prompts = [Sample(str(i), f"clip{i % 3}", (Turn(questions[i % 3]),)) for i in range(96)]
    before, shares, stats = weights(), [], []
    for step in range(ITERATIONS):
        rollout, found = collector.collect(prompts, step)
        tokens = [t for row in rollout.rows for t in row.answer]
        shares.append(sum(pays[t] for t in tokens) / len(tokens))
        stats.append(found | learner.update(rollout, step))
    after = weights()
    return {"shares": shares, "stats": stats, "changed": {name for name in before if before[name] != after[name]}}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_rewarded_becomes_frequent_and_with_the_sign_flipped_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: float
) -> None:
    found = bandit(tmp_path, sign, monkeypatch)
    first, last = found["shares"][0], sum(found["shares"][-3:]) / 3
    assert 0.25 < first < 0.75, found["shares"]
    assert sign * (last - first) > 0.12, found["shares"]
    assert found["changed"] == {"policy", "value"}  # not the reward model, not the reference, not one bit of the base
    stats = found["stats"]
    assert stats[0]["kl"] == pytest.approx(0.0, abs=1e-4)  # it starts as the reference
    assert stats[-1]["kl"] > 0.1
    assert all(s["sampler_gap"] < 1e-3 and s["first_ratio_gap"] < 1e-3 for s in stats)
    assert stats[-1]["score"] - stats[0]["score"] == pytest.approx(sign * (found["shares"][-1] - first), abs=0.05)
