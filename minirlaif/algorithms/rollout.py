"""Collecting rollouts for PPO: sampled answers with log-probabilities, scores, values, shaped rewards and advantages.

Letters: B rollouts, R answer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlaif import distributed
from minirlaif.algorithms.advantages import (
    explained_variance,
    gae,
    kl_per_token,
    masked_mean,
    penalized_scores,
    shaped_rewards,
    whiten,
)
from minirlaif.models.generation import Completion, sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.logprobs import EncodedPair, micro_batches, reward_scores, token_logprobs, token_values
from minirlaif.session import ModelSession
from minirlaif.training.optim import generator
from minirlaif.types import Sample

SCORE_LIMIT = 3.0  # normalised scores are clipped here


@dataclass(frozen=True)
class Rollout:
    """A batch of answers with everything the update needs. rows and critic_rows: one per answer; tensors are [B, R]."""

    rows: list[EncodedPair]
    critic_rows: list[EncodedPair]  # the prompt as reward and value model see it
    logprobs_BR: Tensor
    values_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor
    mask_BR: Tensor


def collect(
    session: ModelSession,
    prompts: Sequence[Sample],
    contexts: Mapping[str, str],
    memory: dict[str, Any],
    bias: float,
    step: int,
) -> tuple[Rollout, dict[str, float]]:
    """1. sample 2. log-probabilities of policy and reference 3. scores and values 4. shaped rewards, advantages.

    Each phase brings the roles that it needs to the device; the others rest.

    memory: "score_mean" and "score_deviation", None until the first batch sets them (rollout.normalize_score).
    """
    cfg, roles, backbone, reference, critic = session.cfg, session.adapters, session.backbone, session.reference, session.critic
    r, size = cfg.rollout, cfg.rollout.batch_size
    # 1. sample
    session.encode_shared(p.video for p in prompts)
    views = [session.video_input(p.video) for p in prompts]
    asked = [
        EncodedPrompt(session.prompt(view, p.turns[0].question), view.features) for view, p in zip(views, prompts, strict=True)
    ]
    drawn = _sampled(session, asked, step)
    rows = [EncodedPair(a.ids, c.ids, a.features) for a, c in zip(asked, drawn, strict=True)]
    critic_rows = rows
    if cfg.reward.context or critic is not session:
        critic.encode_shared(p.video for p in prompts)
        critic_rows = [
            critic.encode_pair(
                critic.video_input(p.video), p.turns[0].question, c.ids, contexts[p.video] if cfg.reward.context else ""
            )
            for p, c in zip(prompts, drawn, strict=True)
        ]
    # 2. log-probabilities
    with roles.on_device("policy"), roles.inference_as("policy"):
        logprobs_BR, mask_BR, spread = map_micro_batches(
            rows, size, lambda part: token_logprobs(backbone, part, r.temperature, True)
        )
    with reference.adapters.on_device("reference"), reference.adapters.inference_as("reference"):
        ref_BR, _, _ = map_micro_batches(rows, size, lambda part: token_logprobs(reference.backbone, part, r.temperature))
    # 3. scores and values
    with critic.adapters.on_device("reward", "value"):
        scores_B, values_BR = score_and_value(critic, critic_rows, size)
    # 4. shaped rewards, advantages
    raw_B = scores_B - bias
    shown_B = _normalised(raw_B, memory) if r.normalize_score else raw_B
    stopped_B = torch.tensor([c.stopped for c in drawn])
    lengths_B = mask_BR.sum(1)
    final_B = penalized_scores(shown_B, stopped_B, lengths_B, r.max_new_tokens, r.missing_eos_penalty, r.length_coef)
    kl_BR = kl_per_token(logprobs_BR, ref_BR, r.kl_estimator)
    rewards_BR = shaped_rewards(final_B, kl_BR, mask_BR, r.kl_coef, r.reward_scale)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, r.gamma, r.lam)
    own = [sum(c.logprobs) - float(logprobs_BR[i].sum()) for i, c in enumerate(drawn)]
    stats = {
        "score": float(raw_B.mean()),
        "reward": float(rewards_BR.sum(1).mean()),
        "kl": float(kl_BR.sum(1).mean()),
        "entropy": float(masked_mean(spread, mask_BR)) if spread is not None else 0.0,
        "length": float(lengths_B.float().mean()),
        "stopped": float(stopped_B.float().mean()),
        "sampler_gap": max(abs(gap) for gap in own),
        "explained_variance": explained_variance(values_BR, returns_BR, mask_BR),
    }
    return Rollout(rows, critic_rows, logprobs_BR, values_BR, whiten(advantages_BR, mask_BR), returns_BR, mask_BR), stats


def score_and_value(critic: ModelSession, rows: Sequence[EncodedPair], size: int) -> tuple[Tensor, Tensor]:
    """Scores_B of the reward model and values_BR of the value model."""
    backbone, heads = critic.backbone, critic.adapters.heads
    groups = list(micro_batches([len(row) for row in rows], size))
    scores_B = torch.zeros(len(rows))
    with critic.adapters.inference_as("reward"):
        found = distributed.mapped(lambda g: reward_scores(backbone, heads["reward"], [rows[i] for i in g]).cpu(), groups)
    for index, scores in zip(groups, found, strict=True):
        scores_B[index] = scores
    with critic.adapters.inference_as("value"):
        values_BR, _, _ = map_micro_batches(rows, size, lambda part: (*token_values(backbone, heads["value"], part), None))
    return scores_B, values_BR


def _sampled(session: ModelSession, asked: Sequence[EncodedPrompt], step: int) -> list[Completion]:
    """One answer per prompt; rows of like length together, each group with a generator of its own."""
    r = session.cfg.rollout

    def draw(group: tuple[int, list[int]]) -> list[Completion]:
        number, index = group
        source = generator(session.cfg.seed, "ppo", step, number)
        session.counters["prefilled_tokens"] += sum(len(asked[i].ids) for i in index)
        some = sample(session.backbone, [asked[i] for i in index], 1, r.temperature, 1.0, r.max_new_tokens, source)
        return [completion for (completion,) in some]

    groups = list(enumerate(micro_batches([len(a.ids) for a in asked], r.batch_size)))
    with session.adapters.on_device("policy"), session.adapters.inference_as("policy"):
        found = distributed.mapped(draw, groups)
    drawn = {
        i: completion for (_, index), some in zip(groups, found, strict=True) for i, completion in zip(index, some, strict=True)
    }
    return [drawn[i] for i in range(len(asked))]


def _normalised(raw_B: Tensor, memory: dict[str, Any]) -> Tensor:
    """Scores by the first batch's mean and deviation, clipped."""
    if memory["score_mean"] is None:
        memory |= {"score_mean": float(raw_B.mean()), "score_deviation": float(raw_B.std()) + 1e-6}
    return ((raw_B - memory["score_mean"]) / memory["score_deviation"]).clamp(-SCORE_LIMIT, SCORE_LIMIT)


def map_micro_batches(rows: Sequence[EncodedPair], size: int, score: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a scoring function over all rows in micro-batches and put the results side by side, on the CPU."""

    def scored(index: list[int]) -> list[Tensor | None]:
        return [None if part is None else part.cpu() for part in score([rows[i] for i in index])]

    groups = list(micro_batches([len(row) for row in rows], size))
    width = max(len(row.answer) for row in rows)
    result, extra = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    found = distributed.mapped(scored, groups)
    for index, parts in zip(groups, found, strict=True):
        for whole, part in zip((result, mask, extra), parts, strict=True):
            if part is not None:
                whole[index, : part.shape[1]] = part.to(whole.dtype)
    return result, mask, extra if found[0][2] is not None else None
