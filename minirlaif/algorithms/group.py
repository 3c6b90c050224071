"""Methods without a value model: how the rewards of the answers to one prompt become advantages, and these a loss.

Letters: B answers · R answer tokens. Masks: True means "this position counts".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minirlaif.algorithms.advantages import leave_one_out
from minirlaif.algorithms.losses import ppo_policy_loss


@dataclass(frozen=True)
class GroupMethod:
    """What sets a method apart. advantages: from shaped rewards [B, R], mask and prompt of each answer; tokens: how the terms of
    an answer's tokens are put together, see `token_weights`."""

    advantages: Callable[[Tensor, Tensor, Tensor], Tensor]
    tokens: Literal["sum"]


# RLOO (Ahmadian et al. 2024): the log-probability of a whole answer times its advantage, mean over answers; the KL (k1) is taken
# off the reward. With one step on a batch every ratio is 1, and the clipped objective has the gradient of the paper's.
METHODS = {"rloo": GroupMethod(leave_one_out, "sum")}


def token_weights(method: GroupMethod, mask_BR: Tensor) -> Tensor:
    """What each answer's token terms are multiplied with before they are summed [B]."""
    return torch.ones(len(mask_BR), device=mask_BR.device)


def group_policy_loss(
    method: GroupMethod,
    new_BR: Tensor,
    old_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    clip: float,
    answers: float,
    tokens: float,
) -> tuple[Tensor, dict[str, float]]:
    """Mean over answers of their weighted token terms, each the clipped objective of `ppo_policy_loss`, whose statistics it has:
    a scalar. new_BR carries the gradient. answers and tokens: counted over the whole minibatch."""
    # The clipped objective grows in proportion to the advantage, so a weight of the term is a weight of the advantage.
    weighted_BR = advantages_BR * token_weights(method, mask_BR).unsqueeze(1)
    return ppo_policy_loss(new_BR, old_BR, weighted_BR, mask_BR, clip, answers, tokens)
