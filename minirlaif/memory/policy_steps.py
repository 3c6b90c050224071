"""What a probe of a method that samples is made of: roles with optimisers that have their moments, and rollouts of full length.

Letters: B answers, R answer tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from minirlaif.algorithms.group import METHODS
from minirlaif.algorithms.ppo import PolicyLearner
from minirlaif.algorithms.rewards import AnswerReward, JudgeReward
from minirlaif.algorithms.rollout import Rollout, score_rows
from minirlaif.config import FeedbackSection, GroupSection, PpoSection, RolloutSection
from minirlaif.judges.config import OF_THE_RUN
from minirlaif.models.generation import Completion
from minirlaif.models.logprobs import token_logprobs, token_values
from minirlaif.session import PPOModels
from minirlaif.stages import ppo
from minirlaif.training.checkpoint import Start
from minirlaif.types import Sample


def open_learner(
    models: PPOModels,
    method: str,
    ppo_section: PpoSection,
    group: GroupSection,
    rollout: RolloutSection,
    start: Start,
    reward: bool = True,
) -> PolicyLearner[Any]:
    """The roles of a method on fresh adapters; the optimisers have their moments, as in a run from its first step on. reward:
    whether there is a reward model."""
    learner: PolicyLearner[Any] = (
        ppo.build_group(models, group, start, method, rollout, reward)
        if method in METHODS
        else ppo.build(models, ppo_section, start, reward)
    )
    for role, trainer in learner.trainers.items():
        with trainer.session.adapters.on_device(role):
            for weight in trainer.parameters:
                weight.grad = torch.zeros_like(weight)
            trainer.step(0.0)
    return learner


class _Zeros:
    """Scores that cost nothing."""

    def scores(self, prompts: Sequence[Sample], drawn: Sequence[Sequence[Completion]]) -> list[float]:
        """See `AnswerReward`."""
        return [0.0 for group in drawn for _ in group]


def answer_reward(
    scored_by: str, section: FeedbackSection, models: PPOModels, contexts: Mapping[str, str]
) -> AnswerReward | None:
    """What scores in place of the reward model, by optimize.reward (scored_by). A judge that reads text, and a file, take no
    memory of the device: zeros stand for their scores."""
    if scored_by == "model":
        return None
    if scored_by in ppo.JUDGED and section.judge in OF_THE_RUN:
        return JudgeReward(models.reference, "reference", section, contexts, ranked=scored_by == "rank")
    return _Zeros()


def full_rollouts(
    models: PPOModels, section: RolloutSection, prompts: Sequence[Sample], context: str, values: bool
) -> Callable[[], Rollout]:
    """Makes rollouts with answers of full length, whose old log-probabilities and values come from the scorer. context: what the
    value model reads beside the frames; values: whether there is one."""
    policy, critic = models.policy, models.critic
    answer = policy.backbone.renderer.text_ids("a") * section.max_new_tokens
    rows = [policy.encode_pair(policy.video_input(row.video), row.turns[0].question, answer) for row in prompts]
    critic_rows = rows
    if values and (context or critic is not policy):
        critic_rows = [
            critic.encode_pair(critic.video_input(row.video), row.turns[0].question, answer, context) for row in prompts
        ]

    def make() -> Rollout:
        with policy.adapters.on_device("policy"), policy.adapters.inference_as("policy"):
            logprobs_BR, mask_BR = score_rows(
                rows, 1, lambda part: token_logprobs(policy.backbone, part, section.temperature)[:2]
            )
        ones_BR, index_B = torch.ones_like(logprobs_BR), torch.arange(len(rows))
        values_BR = None
        if values:
            with critic.adapters.on_device("value"), critic.adapters.inference_as("value"):
                head = critic.adapters.heads["value"]
                scored_BR, _ = score_rows(critic_rows, 1, lambda part: token_values(critic.backbone, head, part))
            values_BR = scored_BR.float()
        returns_BR = ones_BR if values else None
        return Rollout(
            rows, critic_rows, index_B, logprobs_BR, logprobs_BR, ones_BR, mask_BR, values_BR, returns_BR, section.temperature
        )

    return make
