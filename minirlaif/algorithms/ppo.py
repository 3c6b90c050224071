"""Proximal policy optimisation: the update of policy and value adapter over a rollout (paper section 3.3).

Left out against the paper's code, on purpose: its clamp of negative KL terms, its unmasked means, its rule on question marks.

Letters: B rollouts, R answer tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from minirlaif import distributed
from minirlaif.algorithms.losses import ppo_policy_loss, total_stats, value_loss
from minirlaif.algorithms.rollout import Rollout
from minirlaif.config import PpoSection
from minirlaif.errors import StageStopped
from minirlaif.models.logprobs import micro_batches, token_logprobs, token_values
from minirlaif.models.seeds import shuffled
from minirlaif.session import PPOModels
from minirlaif.training.checkpoint import MethodProgress
from minirlaif.training.optim import AdapterTrainer, check_finite
from minirlaif.training.schedules import learning_rate

RATIO_TOLERANCE = 0.02  # of the first ratio from 1; low precision and other batch shapes move it a little


@dataclass(frozen=True)
class Learner:
    """What an update changes. trainers: of the roles "policy" and "value"; seed: of the run."""

    models: PPOModels
    section: PpoSection
    seed: int
    accelerator: Any
    trainers: Mapping[str, AdapterTrainer[PpoSection]]
    progress: MethodProgress

    def update(self, rollout: Rollout, step: int) -> dict[str, float]:
        """Epochs of clipped policy and value steps over one batch of rollouts; returns the mean statistics of the steps.
        StageStopped: the first ratio is not 1, so rollout and update disagree, or a gradient is not finite."""
        p, policy, critic = self.section, self.models.policy, self.models.critic
        lengths = [len(row) for row in rollout.rows]
        rate = learning_rate(step, p.iterations, p.learning_rate, p.warmup_steps, p.schedule)
        all_stats: list[dict[str, float]] = []
        with policy.adapters.on_device("policy"), critic.adapters.on_device("value"):
            for epoch in range(p.epochs):
                order = shuffled(len(lengths), self.seed, "ppo-order", step, epoch)
                for start in range(0, len(lengths), p.minibatch_size):
                    chosen = order[start : start + p.minibatch_size]
                    counted = int(rollout.mask_BR[chosen].sum())  # the denominator of every micro-batch
                    groups = micro_batches([lengths[i] for i in chosen], p.micro_batch_size)
                    indices = [[chosen[i] for i in group] for group in groups]
                    stats = total_stats(distributed.mapped(partial(self._micro_batch, rollout, counted), indices))
                    if not all_stats and stats["ratio_gap"] > RATIO_TOLERANCE and policy.backbone.device.type == "cpu":
                        gap = f"{stats['ratio_gap']:.3g}: rollout and update disagree"
                        raise StageStopped(f"ppo: the first probability ratio differs from 1 by {gap}")
                    for role, trainer in self.trainers.items():
                        distributed.sum_gradients(trainer.parameters)
                        norm = stats[f"{role}_grad_norm"] = trainer.step(rate)
                        check_finite("ppo", step + 1, {f"{role} gradient norm": norm})
                    self.progress.updates += 1
                    all_stats.append(stats)
        mean = {name: sum(s[name] for s in all_stats) / len(all_stats) for name in all_stats[0]}
        return mean | {"first_ratio_gap": all_stats[0]["ratio_gap"], "learning_rate": rate}

    def _micro_batch(self, rollout: Rollout, counted: int, index: list[int]) -> dict[str, float]:
        """Gradients of policy and value for rows of a rollout; returns the statistics of both losses."""
        p, policy, critic = self.section, self.models.policy, self.models.critic
        if rollout.values_BR is None or rollout.returns_BR is None:
            raise ValueError("PPO needs a rollout with values and returns")
        width = int(rollout.mask_BR[index].sum(1).max())

        def part(x_BR: Tensor) -> Tensor:
            return x_BR[index, :width].to(policy.backbone.device)

        mask_BR = part(rollout.mask_BR)
        with policy.adapters.training_as("policy"), self.accelerator.autocast():
            new_BR, _, _ = token_logprobs(policy.backbone, [rollout.rows[i] for i in index], rollout.temperature)
            loss, stats = ppo_policy_loss(
                new_BR, part(rollout.logprobs_BR), part(rollout.advantages_BR), mask_BR, p.clip, counted
            )
            self.accelerator.backward(loss)
        with critic.adapters.training_as("value"), self.accelerator.autocast():
            rows = [rollout.critic_rows[i] for i in index]
            values_BR, _ = token_values(critic.backbone, critic.adapters.heads["value"], rows)
            old_BR, returns_BR = part(rollout.values_BR), part(rollout.returns_BR)
            v_loss, v_stats = value_loss(values_BR, old_BR, returns_BR, mask_BR, p.value_clip, counted)
            self.accelerator.backward(p.vf_coef * v_loss)
        value_stats = {f"value_{name.removeprefix('value_')}": value for name, value in v_stats.items()}
        return stats | value_stats | {"policy_loss": float(loss.detach()), "value_loss": float(v_loss.detach())}
