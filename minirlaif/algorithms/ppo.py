"""Proximal policy optimisation: the update of the policy, with the value adapter or without one, over a rollout (paper section
3.3).

Left out against the paper's code, on purpose: its clamp of negative KL terms, its unmasked means, its rule on question marks.

Letters: B rollouts, R answer tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from minirlaif import distributed
from minirlaif.algorithms.group import GroupMethod, group_policy_loss
from minirlaif.algorithms.losses import entropy_bonus, ppo_policy_loss, total_stats, value_loss
from minirlaif.algorithms.rollout import Rollout
from minirlaif.config import GroupSection, PpoSection, RolloutSection
from minirlaif.errors import StageStopped
from minirlaif.models.logprobs import micro_batches, token_logprobs, token_values
from minirlaif.models.seeds import shuffled
from minirlaif.session import PPOModels
from minirlaif.training.checkpoint import MethodProgress
from minirlaif.training.optim import AdapterTrainer, check_finite
from minirlaif.training.schedules import learning_rate

Section = TypeVar("Section", PpoSection, GroupSection)
RATIO_TOLERANCE = 0.02  # of the first ratio from 1; low precision and other batch shapes move it a little


@dataclass(frozen=True)
class PolicyLearner(ABC, Generic[Section]):
    """What an update changes. trainers: of the role "policy", and of others that learn from the same rollouts; seed: of the run;
    name: of the method."""

    models: PPOModels
    section: Section
    seed: int
    accelerator: Any
    trainers: Mapping[str, AdapterTrainer[Section]]
    progress: MethodProgress
    name: str = "ppo"

    def update(self, rollout: Rollout, step: int) -> dict[str, float]:
        """Epochs of clipped steps over one batch of rollouts; returns the mean statistics of the steps.
        StageStopped: the first ratio is not 1, so rollout and update disagree, or a gradient is not finite."""
        p, policy = self.section, self.models.policy
        lengths = [len(row) for row in rollout.rows]
        rate = learning_rate(step, p.iterations, p.learning_rate, p.warmup_steps, p.schedule)
        all_stats: list[dict[str, float]] = []
        with ExitStack() as stack:
            for role, trainer in self.trainers.items():
                stack.enter_context(trainer.session.adapters.on_device(role))
            for epoch in range(p.epochs):
                order = shuffled(len(lengths), self.seed, f"{self.name}-order", step, epoch)
                for start in range(0, len(lengths), p.minibatch_size):
                    chosen = order[start : start + p.minibatch_size]
                    groups = micro_batches([lengths[i] for i in chosen], p.micro_batch_size)
                    indices = [[chosen[i] for i in group] for group in groups]
                    part = partial(self._micro_batch, rollout, len(chosen), int(rollout.mask_BR[chosen].sum()))
                    stats = total_stats(distributed.mapped(part, indices))
                    if not all_stats and stats["ratio_gap"] > RATIO_TOLERANCE and policy.backbone.device.type == "cpu":
                        gap = f"{stats['ratio_gap']:.3g}: rollout and update disagree"
                        raise StageStopped(f"{self.name}: the first probability ratio differs from 1 by {gap}")
                    for role, trainer in self.trainers.items():
                        distributed.sum_gradients(trainer.parameters)
                        norm = stats[f"{role}_grad_norm"] = trainer.step(rate)
                        check_finite(self.name, step + 1, {f"{role} gradient norm": norm}, self.settings_name)
                    self.progress.updates += 1
                    all_stats.append(stats)
        mean = {name: sum(s[name] for s in all_stats) / len(all_stats) for name in all_stats[0]}
        return mean | {"first_ratio_gap": all_stats[0]["ratio_gap"], "learning_rate": rate}

    @property
    def settings_name(self) -> str:
        """The config's section with the learning rate."""
        return self.name

    @abstractmethod
    def _micro_batch(self, rollout: Rollout, answers: int, tokens: int, index: list[int]) -> dict[str, float]:
        """Gradients for rows of a rollout; returns statistics. answers and tokens: of the whole minibatch, the denominators of
        every micro-batch."""

    def _part(self, rollout: Rollout, index: list[int], x_BR: Tensor) -> Tensor:
        """Rows of a rollout's tensor on the device, as wide as the longest of them."""
        return x_BR[index, : int(rollout.mask_BR[index].sum(1).max())].to(self.models.policy.backbone.device)

    def _logprobs(self, rollout: Rollout, index: list[int], tokens: int) -> tuple[Tensor, Tensor | float]:
        """Log-probabilities of rows of a rollout by the policy as it is now, with gradients, and the term of the loss for its
        entropy, 0 without a coefficient."""
        coef = self.section.entropy_coef
        rows = [rollout.rows[i] for i in index]
        logprobs_BR, mask_BR, entropy_BR = token_logprobs(self.models.policy.backbone, rows, rollout.temperature, bool(coef))
        return logprobs_BR, -coef * entropy_bonus(entropy_BR, mask_BR, tokens) if entropy_BR is not None else 0.0


@dataclass(frozen=True)
class Learner(PolicyLearner[PpoSection]):
    """Policy and value adapter."""

    def _micro_batch(self, rollout: Rollout, answers: int, tokens: int, index: list[int]) -> dict[str, float]:
        p, policy, critic = self.section, self.models.policy, self.models.critic
        if rollout.values_BR is None or rollout.returns_BR is None:
            raise ValueError("PPO needs a rollout with values and returns")
        part = partial(self._part, rollout, index)
        mask_BR = part(rollout.mask_BR)
        with policy.adapters.training_as("policy"), self.accelerator.autocast():
            old_BR, advantages_BR = part(rollout.logprobs_BR), part(rollout.advantages_BR)
            new_BR, entropy_term = self._logprobs(rollout, index, tokens)
            loss, stats = ppo_policy_loss(new_BR, old_BR, advantages_BR, mask_BR, p.clip, tokens)
            loss = loss + entropy_term
            self.accelerator.backward(loss)
        with critic.adapters.training_as("value"), self.accelerator.autocast():
            rows = [rollout.critic_rows[i] for i in index]
            values_BR, _ = token_values(critic.backbone, critic.adapters.heads["value"], rows)
            old_BR, returns_BR = part(rollout.values_BR), part(rollout.returns_BR)
            v_loss, v_stats = value_loss(values_BR, old_BR, returns_BR, mask_BR, p.value_clip, tokens)
            self.accelerator.backward(p.vf_coef * v_loss)
        value_stats = {f"value_{name.removeprefix('value_')}": value for name, value in v_stats.items()}
        return stats | value_stats | {"policy_loss": float(loss.detach()), "value_loss": float(v_loss.detach())}


@dataclass(frozen=True, kw_only=True)
class GroupLearner(PolicyLearner[GroupSection]):
    """The policy alone: its advantages come from the answers to one prompt."""

    method: GroupMethod
    rollout: RolloutSection

    @property
    def settings_name(self) -> str:
        """One section for all methods of this kind."""
        return "group"

    def _micro_batch(self, rollout: Rollout, answers: int, tokens: int, index: list[int]) -> dict[str, float]:
        policy, r = self.models.policy, self.rollout
        part = partial(self._part, rollout, index)
        with policy.adapters.training_as("policy"), self.accelerator.autocast():
            new_BR, entropy_term = self._logprobs(rollout, index, tokens)
            loss, stats = group_policy_loss(
                self.method,
                new_BR,
                part(rollout.logprobs_BR),
                part(rollout.reference_BR),
                part(rollout.advantages_BR),
                part(rollout.mask_BR),
                clip=self.section.clip,
                kl_coef=r.kl_coef,
                limit=r.max_new_tokens,
                answers=answers,
                tokens=tokens,
            )
            loss = loss + entropy_term
            self.accelerator.backward(loss)
        return stats | {"policy_loss": float(loss.detach())}
