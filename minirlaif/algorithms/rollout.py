"""Collecting rollouts: sampled answers with log-probabilities, scores, values, shaped rewards and advantages.

Letters: B answers, R answer tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from minirlaif import distributed
from minirlaif.algorithms.advantages import (
    equal_rewards,
    explained_variance,
    gae,
    kl_per_token,
    masked_mean,
    penalized_scores,
    shaped_rewards,
    whiten,
)
from minirlaif.algorithms.group import GroupMethod
from minirlaif.algorithms.rewards import AnswerReward
from minirlaif.config import RolloutSection
from minirlaif.models.generation import Completion, sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.logprobs import EncodedPair, map_micro_batches, reward_scores, token_logprobs, token_values
from minirlaif.models.seeds import generator
from minirlaif.models.tokens import pad_stack
from minirlaif.session import ModelSession, PPOModels
from minirlaif.training.checkpoint import MethodProgress
from minirlaif.types import Sample

SCORE_LIMIT = 3.0  # normalised scores are clipped here
SAME_SCORES = 1e-4  # a deviation below this is rounding: to divide by it would make rewards of it


@dataclass(frozen=True)
class Rollout:
    """A batch of answers with everything the update needs. rows and critic_rows: one per answer; tensors are [B] or [B, R].

    prompt_index_B: which prompt an answer belongs to; values_BR and returns_BR: None for a method without a value model;
    temperature: at which the answers were sampled and their log-probabilities are given.
    """

    rows: list[EncodedPair]
    critic_rows: list[EncodedPair]  # the prompt as reward and value model see it
    prompt_index_B: Tensor
    logprobs_BR: Tensor
    reference_BR: Tensor  # log-probabilities of the reference
    advantages_BR: Tensor
    mask_BR: Tensor
    values_BR: Tensor | None = None
    returns_BR: Tensor | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class RolloutCollector:
    """Makes the rollouts of an iteration. Each phase brings the adapters that it needs to the device.

    seed: of the run; contexts: by clip what reward and value model read beside the frames, None: nothing; bias: mean score on
    held-out answers, which is taken off; progress: holds the first batch's mean and deviation (rollout.normalize_score), and
    counts groups; name: of the method that learns; group: how it compares the answers to one prompt, None: it has a value model;
    reward: scores the answers in place of the reward model.
    """

    models: PPOModels
    section: RolloutSection
    seed: int
    contexts: Mapping[str, str] | None
    bias: float
    progress: MethodProgress
    name: str = "ppo"
    group: GroupMethod | None = None
    reward: AnswerReward | None = None

    def collect(self, prompts: Sequence[Sample], step: int) -> tuple[Rollout, dict[str, float]]:
        """1. sample 2. log-probabilities of policy and reference 3. scores and values 4. shaped rewards, advantages."""
        r, policy, reference, critic = self.section, self.models.policy, self.models.reference, self.models.critic
        # 1. sample
        rows, critic_rows, drawn = self._sample(prompts, step)
        completions = list(chain(*drawn))
        # 2. log-probabilities
        with policy.adapters.on_device("policy"), policy.adapters.inference_as("policy"):
            logprobs_BR, mask_BR, entropy_BR = score_rows(
                rows, r.batch_size, lambda part: token_logprobs(policy.backbone, part, r.temperature, True)
            )
        with reference.adapters.on_device("reference"), reference.adapters.inference_as("reference"):
            ref_BR, *_ = score_rows(rows, r.batch_size, lambda part: token_logprobs(reference.backbone, part, r.temperature)[:2])
        # 3. scores and values
        values_BR, reward = None, self.reward
        with critic.adapters.on_device(*(() if reward else ("reward",)), *(() if self.group else ("value",))):
            if reward:
                scores_B = torch.tensor(distributed.from_leader(lambda: reward.scores(prompts, drawn)))
            else:
                with critic.adapters.inference_as("reward"):
                    scores_B = torch.tensor(score_pairs(critic, critic_rows, r.batch_size))
            if not self.group:
                with critic.adapters.inference_as("value"):
                    head = critic.adapters.heads["value"]
                    values_BR, _ = score_rows(critic_rows, r.batch_size, lambda part: token_values(critic.backbone, head, part))
        # 4. shaped rewards, advantages
        raw_B = scores_B - self.bias
        stopped_B = torch.tensor([c.stopped for c in completions])
        lengths_B = mask_BR.sum(1)
        kinds = [prompt.tags.get(r.normalize_by, "") for prompt in prompts for _ in range(r.samples_per_prompt)]
        normalized_B = self._normalized(raw_B, kinds)
        final_B = penalized_scores(normalized_B, stopped_B, lengths_B, r.max_new_tokens, r.missing_eos_penalty, r.length_coef)
        kl_BR = kl_per_token(logprobs_BR, ref_BR, "k1" if self.group else r.kl_estimator)
        kl_coef = 0.0 if self.group and self.group.kl_in_loss else r.kl_coef
        rewards_BR = shaped_rewards(final_B, kl_BR, mask_BR, kl_coef, r.reward_scale)
        stats = {
            "score": float(raw_B.mean()),
            "reward": float(rewards_BR.sum(1).mean()),
            "kl": float(kl_BR.sum(1).mean()),
            "entropy": float(masked_mean(entropy_BR, mask_BR)),
            "length": float(lengths_B.float().mean()),
            "stopped": float(stopped_B.float().mean()),
            "sampler_gap": max(abs(sum(c.logprobs) - float(logprobs_BR[i].sum())) for i, c in enumerate(completions)),
        }
        index_B = torch.arange(len(rows)) // r.samples_per_prompt
        if values_BR is None:
            advantages_BR, returns_BR = self._compared(rows, rewards_BR, mask_BR, index_B, stats), None
        else:
            advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, r.gamma, r.lam)
            stats["explained_variance"] = explained_variance(values_BR, returns_BR, mask_BR)
            advantages_BR = whiten(advantages_BR, mask_BR)
        learned = Rollout(rows, critic_rows, index_B, logprobs_BR, ref_BR, advantages_BR, mask_BR, values_BR, returns_BR)
        return replace(learned, temperature=r.temperature), stats

    def _compared(
        self, rows: Sequence[EncodedPair], rewards_BR: Tensor, mask_BR: Tensor, index_B: Tensor, stats: dict[str, float]
    ) -> Tensor:
        """Advantages [B, R] of answers against the others to their prompt. Adds the share of prompts with equal rewards to
        `stats`, and to what is counted over the run."""
        if self.group is None:
            raise ValueError("a rollout without values needs a method that compares answers")
        places: dict[tuple[int, tuple[int, ...]], int] = {}
        # An answer that was drawn twice was scored twice, in other batches, with other rounding: a difference of 1e-6, divided
        # by a deviation of that size, would be learned from.
        first_B = [places.setdefault((int(index_B[i]), row.answer), i) for i, row in enumerate(rows)]
        rewards_BR = rewards_BR[first_B]
        equal_B, each = equal_rewards(rewards_BR, mask_BR, index_B), self.section.samples_per_prompt
        stats["equal_groups"] = float(equal_B.float().mean())
        self.progress.groups += len(rows) // each
        self.progress.equal_groups += int(equal_B.sum()) // each
        return self.group.advantages(rewards_BR, mask_BR, index_B)

    def _sample(
        self, prompts: Sequence[Sample], step: int
    ) -> tuple[list[EncodedPair], list[EncodedPair], list[list[Completion]]]:
        """Answers as rows for the policy, as rows for the critic, and as they were sampled, by prompt: prompts of like length
        together, each micro-batch with a generator of its own."""
        policy, critic, r = self.models.policy, self.models.critic, self.section
        policy.encode_shared(p.video for p in prompts)
        views = [policy.video_input(p.video) for p in prompts]
        encoded = [
            EncodedPrompt(policy.prompt(view, p.turns[0].question), view.features) for view, p in zip(views, prompts, strict=True)
        ]

        def draw(number: int, index: list[int]) -> list[list[Completion]]:
            source = generator(self.seed, self.name, step, number)
            policy.counters["prefilled_tokens"] += sum(len(encoded[i].ids) for i in index)
            batch = [encoded[i] for i in index]
            return sample(policy.backbone, batch, r.samples_per_prompt, r.temperature, 1.0, r.max_new_tokens, source)

        with policy.adapters.on_device("policy"), policy.adapters.inference_as("policy"):
            size = max(1, r.batch_size // r.samples_per_prompt)  # prompts
            answers = map_micro_batches(draw, [len(e.ids) for e in encoded], size, distributed.mapped)
        rows = [EncodedPair(e.ids, c.ids, e.features) for e, drawn in zip(encoded, answers, strict=True) for c in drawn]
        critic_rows = rows
        if self.contexts is not None or critic is not policy:
            critic.encode_shared(p.video for p in prompts)
            contexts = dict.fromkeys((p.video for p in prompts), "") if self.contexts is None else self.contexts
            critic_rows = [
                critic.encode_pair(critic.video_input(p.video), p.turns[0].question, c.ids, contexts[p.video])
                for p, drawn in zip(prompts, answers, strict=True)
                for c in drawn
            ]
        return rows, critic_rows, answers

    def _normalized(self, raw_B: Tensor, kinds: Sequence[str]) -> Tensor:
        """Where the settings say so, scores by the first batch's mean and deviation, clipped; with rollout.normalize_by by those
        of the first scores of the prompt's kind. A kind whose first scores do not differ has the deviation of all scores of that
        batch."""
        if not self.section.normalize_score:
            return raw_B
        p = self.progress
        if p.score_mean is None or p.score_deviation is None:
            p.score_mean, p.score_deviation = float(raw_B.mean()), _deviation(raw_B, 1.0)
        if not self.section.normalize_by:
            return ((raw_B - p.score_mean) / p.score_deviation).clamp(-SCORE_LIMIT, SCORE_LIMIT)
        for kind in sorted(set(kinds) - set(p.scores_by)):
            first = raw_B[[each == kind for each in kinds]]
            p.scores_by[kind] = [float(first.mean()), _deviation(first, _deviation(raw_B, 1.0))]
        mean_B, deviation_B = torch.tensor([p.scores_by[kind] for kind in kinds], dtype=raw_B.dtype).unbind(1)
        return ((raw_B - mean_B) / deviation_B).clamp(-SCORE_LIMIT, SCORE_LIMIT)


def _deviation(scores_B: Tensor, otherwise: float) -> float:
    """The standard deviation of scores; `otherwise` where there is only one, or they do not differ."""
    deviation = float(scores_B.std()) if len(scores_B) > 1 else 0.0
    return deviation if deviation >= SAME_SCORES else otherwise


def score_pairs(critic: ModelSession, rows: Sequence[EncodedPair], size: int) -> list[float]:
    """Scores of the reward model, whose adapter is active, in micro-batches of at most `size` rows."""

    def scores(_: int, index: list[int]) -> list[float]:
        return [float(s) for s in reward_scores(critic.backbone, critic.adapters.heads["reward"], [rows[i] for i in index])]

    return map_micro_batches(scores, [len(row) for row in rows], size, distributed.mapped)


def score_rows(
    rows: Sequence[EncodedPair], size: int, score: Callable[[list[EncodedPair]], Sequence[Tensor | None]]
) -> list[Tensor]:
    """What a scoring function gives for rows, each of its results [B, R] put together from micro-batches, on the CPU."""

    def scored(_: int, index: list[int]) -> list[list[Tensor]]:
        parts = [part.cpu() for part in score([rows[i] for i in index]) if part is not None]
        return [[part[b, : len(rows[i].answer)].clone() for part in parts] for b, i in enumerate(index)]

    results = map_micro_batches(scored, [len(row) for row in rows], size, distributed.mapped)
    return [pad_stack(column, 0, "right")[0] for column in zip(*results, strict=True)]
