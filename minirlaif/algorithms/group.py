"""Methods without a value model: how the rewards of the answers to one prompt become advantages, and these a loss.

Letters: B answers · R answer tokens. Masks: True means "this position counts".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minirlaif.algorithms.advantages import counted, group_centred, group_relative, kl_per_token, leave_one_out
from minirlaif.algorithms.losses import ppo_policy_loss


@dataclass(frozen=True)
class GroupMethod:
    """What sets a method apart.

    advantages: from shaped rewards [B, R], mask and prompt of each answer; tokens: how the terms of an answer's tokens are put
    together, as their sum, their mean, or their sum over the limit of tokens; kl_in_loss: the KL is a term of the loss (k3), else
    it is taken off the reward (k1). What gradient each of them gives: `kl_per_token`.
    """

    advantages: Callable[[Tensor, Tensor, Tensor], Tensor]
    tokens: Literal["sum", "mean", "limit"]
    kl_in_loss: bool


METHODS = {
    # Shao et al. 2024, eq. 3
    "grpo": GroupMethod(group_relative, "mean", kl_in_loss=True),
    # Liu et al. 2025: GRPO without the deviation, which weighs easy and hard prompts more, and without the answer's own length,
    # which lets long wrong answers off lightly
    "dr_grpo": GroupMethod(group_centred, "limit", kl_in_loss=True),
    # Ahmadian et al. 2024. With one step on a batch every ratio is 1, and the clipped objective has the gradient of the paper's,
    # which has no ratio.
    "rloo": GroupMethod(leave_one_out, "sum", kl_in_loss=False),
}


def token_weights(method: GroupMethod, mask_BR: Tensor, limit: int) -> Tensor:
    """What each answer's token terms are multiplied with before they are summed [B]. limit: most tokens of an answer."""
    lengths_B = mask_BR.sum(1).float()
    if method.tokens == "mean":
        return 1 / lengths_B.clamp(min=1)  # a row that counts nothing has no terms
    return torch.full_like(lengths_B, 1 / limit if method.tokens == "limit" else 1.0)


def group_policy_loss(
    method: GroupMethod,
    new_BR: Tensor,
    old_BR: Tensor,
    ref_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float,
    kl_coef: float,
    limit: int,
    answers: float,
    tokens: float,
) -> tuple[Tensor, dict[str, float]]:
    """Mean over answers of their token terms, put together as the method says: a scalar, and its statistics.

    A term is the clipped objective of `ppo_policy_loss` and, where the KL is part of the loss, kl_coef x its k3 estimate against
    the reference. new_BR carries the gradient, the others are constants; answers and tokens: counted over the whole minibatch.
    Statistics: those of `ppo_policy_loss`, and kl_loss, the KL term before its coefficient.
    """
    weights_B1 = token_weights(method, mask_BR, limit).unsqueeze(1)
    # The clipped objective grows in proportion to the advantage, so a weight of the term is a weight of the advantage.
    loss, stats = ppo_policy_loss(new_BR, old_BR, advantages_BR * weights_B1, mask_BR, clip, answers, tokens)
    if not method.kl_in_loss:
        return loss, stats
    # Masked before exp, as the ratio.
    kl_BR = kl_per_token(counted(new_BR, mask_BR), counted(ref_BR.detach(), mask_BR), "k3")
    kl_loss = (counted(kl_BR, mask_BR) * weights_B1).sum() / answers
    return loss + kl_coef * kl_loss, stats | {"kl_loss": kl_loss.item()}
