"""The objectives of all stages, as functions of log-probabilities, scores and values.

Every sum is divided by a denominator that the caller counts over the whole minibatch, never over the micro-batch in
memory. So the losses of micro-batches add up, and gradient accumulation does not change the objective.

Letters: B batch (rows; pairs in the reward losses) · R response tokens. Masks: True means "this position counts".
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from minirlaif.algorithms.advantages import check_mask, counted

MAXIMA = ("ratio_max", "ratio_gap")  # statistics that combine by maximum; all others are shares, which add up


def sft_loss(logprobs_BR: Tensor, mask_BR: Tensor, denominator: float) -> Tensor:
    """Negative log-likelihood in nats per counted token, a scalar (paper section 3.1).
    denominator: counted tokens of the whole minibatch. ValueError on shapes that differ or a denominator <= 0."""
    _check(mask_BR, denominator, logprobs_BR)
    return -_share(logprobs_BR, mask_BR, denominator)


def bradley_terry_loss(chosen_B: Tensor, rejected_B: Tensor, denominator: float | None = None) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected), a scalar in nats (paper section 3.3).
    denominator: pairs of the whole minibatch when these are only some of them; None: the mean over the pairs given."""
    pairs = _pairs(chosen_B, rejected_B, denominator)
    # softplus(-x) is -log sigmoid(x) without overflow at either end.
    return functional.softplus(rejected_B - chosen_B).sum() / pairs


def centering_penalty(
    chosen_B: Tensor, rejected_B: Tensor, batch_sum: Tensor | float | None = None, denominator: float | None = None
) -> Tensor:
    """The paper's centring term |mean(chosen + rejected)|, a scalar, before its weight of 0.001.

    An absolute mean does not split over micro-batches: parts of opposite sign cancel in it. Its slope, though, is
    sign(sum) / pairs everywhere, so one number about the whole batch is enough: pass `batch_sum`, the sum of
    chosen + rejected over all pairs of the minibatch (detached, from a pass without gradients), and `denominator`, their
    number. The parts then add up to the paper's value and gradient exactly. Without both, the pairs given are the batch.
    """
    if (batch_sum is None) != (denominator is None):
        raise ValueError("batch_sum and denominator belong together: give both or neither")
    pairs = _pairs(chosen_B, rejected_B, denominator)
    part = (chosen_B + rejected_B).sum()
    total = part if batch_sum is None else torch.as_tensor(batch_sum, dtype=part.dtype, device=part.device)
    return total.detach().sign() * part / pairs


def dpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float, denominator: float
) -> tuple[Tensor, dict[str, float]]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7): mean of -log sigmoid(beta x margin), a scalar in nats.

    Each argument is the summed log-probability of whole answers, of the policy (with gradient) and of the reference; the margin
    is (chosen - ref_chosen) - (rejected - ref_rejected). denominator: pairs of the whole minibatch. Statistics, shares of it:
    accuracy (margins above 0), margin, chosen_reward and rejected_reward (beta x log-ratio).
    """
    pairs = _pairs(chosen_B, rejected_B, denominator)
    _pairs(ref_chosen_B, ref_rejected_B, denominator)
    better_B, worse_B = chosen_B - ref_chosen_B.detach(), rejected_B - ref_rejected_B.detach()
    margin_B = better_B - worse_B
    with torch.no_grad():
        shares = {"accuracy": (margin_B > 0).to(margin_B.dtype), "margin": margin_B}
        shares |= {"chosen_reward": beta * better_B, "rejected_reward": beta * worse_B}
        stats = {name: (values_B.sum() / pairs).item() for name, values_B in shares.items()}
    return functional.softplus(-beta * margin_B).sum() / pairs, stats


def ppo_policy_loss(
    new_BR: Tensor,
    old_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    clip: float,
    denominator: float,
    tokens: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped policy objective (paper section 3.3; Schulman et al. 2017, eq. 7): a scalar loss and its statistics.

    new_BR carries the gradient; old_BR and advantages_BR are constants. Statistics, combined with `total_stats`:
    ratio_mean · clip_fraction (tokens whose gradient the clip cut off) · approx_kl (nats per token, KL(old || new), the
    k3 form) are shares of `tokens`, the counted tokens of the whole minibatch (None: `denominator` is that); ratio_max and
    ratio_gap (largest |ratio - 1|) are maxima.
    """
    _check(mask_BR, denominator, new_BR, old_BR, advantages_BR)
    tokens = denominator if tokens is None else tokens
    # Masked before exp: garbage in the padding would overflow, and infinity times a zero gradient is NaN.
    log_ratio_BR = counted(new_BR - old_BR.detach(), mask_BR)
    advantages_BR = counted(advantages_BR.detach(), mask_BR)
    ratio_BR = log_ratio_BR.exp()
    free_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * ratio_BR.clamp(1 - clip, 1 + clip)
    loss = _share(torch.maximum(free_BR, clipped_BR), mask_BR, denominator)
    with torch.no_grad():
        ratios = ratio_BR[mask_BR]
        stats = {
            "ratio_mean": _share(ratio_BR, mask_BR, tokens).item(),
            "ratio_max": ratios.max().item() if len(ratios) else 0.0,
            "ratio_gap": (ratios - 1).abs().max().item() if len(ratios) else 0.0,
            "clip_fraction": _share((clipped_BR > free_BR).to(ratio_BR.dtype), mask_BR, tokens).item(),
            "approx_kl": _share(torch.expm1(log_ratio_BR) - log_ratio_BR, mask_BR, tokens).item(),
        }
    return loss, stats


def entropy_bonus(entropy_BR: Tensor, mask_BR: Tensor, denominator: float) -> Tensor:
    """Mean entropy per counted token in nats, a scalar with gradient. Times a coefficient it is taken off a loss, so that the
    policy keeps sampling different answers (Mnih et al. 2016). denominator: counted tokens of the whole minibatch."""
    _check(mask_BR, denominator, entropy_BR)
    return _share(entropy_BR, mask_BR, denominator)


def value_loss(
    new_BR: Tensor, old_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, clip: float, denominator: float
) -> tuple[Tensor, dict[str, float]]:
    """Half the squared error of the values, the worse of free and clipped to old +- clip (paper section 3.3).

    A scalar, before its weight vf_coef. Statistics, shares of `denominator`: value_clip_fraction · value_error (mean
    squared error without the clip).
    """
    _check(mask_BR, denominator, new_BR, old_BR, returns_BR)
    new_BR = counted(new_BR, mask_BR)
    old_BR = counted(old_BR.detach(), mask_BR)
    returns_BR = counted(returns_BR.detach(), mask_BR)
    free_BR = (new_BR - returns_BR).square()
    clipped_BR = (torch.clamp(new_BR, old_BR - clip, old_BR + clip) - returns_BR).square()
    loss = 0.5 * _share(torch.maximum(free_BR, clipped_BR), mask_BR, denominator)
    with torch.no_grad():
        stats = {
            "value_clip_fraction": _share((clipped_BR > free_BR).to(new_BR.dtype), mask_BR, denominator).item(),
            "value_error": _share(free_BR, mask_BR, denominator).item(),
        }
    return loss, stats


def total_stats(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Statistics of a minibatch from those of its micro-batches: maxima for the names in MAXIMA, sums for the rest."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = max(total.get(name, value), value) if name in MAXIMA else total.get(name, 0.0) + value
    return total


def _share(x_BR: Tensor, mask_BR: Tensor, denominator: float) -> Tensor:
    return counted(x_BR, mask_BR).sum() / denominator


def _check(mask_BR: Tensor, denominator: float, *others: Tensor) -> None:
    check_mask(mask_BR, *others)
    if not denominator > 0:
        raise ValueError(f"the denominator must be the counted tokens of the whole minibatch, not {denominator}")


def _pairs(chosen_B: Tensor, rejected_B: Tensor, denominator: float | None) -> float:
    if chosen_B.ndim != 1 or chosen_B.shape != rejected_B.shape:
        raise ValueError(f"scores must be two vectors of one length: {tuple(chosen_B.shape)}, {tuple(rejected_B.shape)}")
    pairs = chosen_B.shape[0] if denominator is None else denominator
    if not pairs > 0:
        raise ValueError("no pairs")
    return pairs
