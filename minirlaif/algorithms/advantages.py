"""From scores to advantages: KL per token, shaped rewards, generalised advantage estimation, whitening.

Departures from the paper's released code, whose means count padding: every reduction is masked, the score
sits on the last counted token (there: on the last position of the array), and the KL is signed (there: clamped at 0).
Nothing here carries gradients on to its result but `masked_mean`, `whiten` and `kl_per_token`.

Letters: B batch · R response tokens. Masks: True means "this position counts".
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over counted positions, a scalar. Any shape. ValueError if nothing counts: neither 0 nor NaN is a mean."""
    check_mask(mask, x)
    count = mask.sum()
    if count == 0:
        raise ValueError("masked_mean: nothing counts in this mask")
    return counted(x, mask).sum() / count


def whiten(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """x_BR with mean 0 and (population) variance 1 over counted positions, 0 elsewhere. Equal values become 0."""
    mean = masked_mean(x_BR, mask_BR)
    centred_BR = counted(x_BR - mean, mask_BR)
    variance = masked_mean(centred_BR.square(), mask_BR)
    return centred_BR * torch.rsqrt(variance + 1e-8)


def kl_per_token(logprobs_BR: Tensor, ref_BR: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate of KL(policy || reference) in nats at each sampled token; padding is not masked here.
    "k1": log-ratio, unbiased, may be negative. "k3": exp(-k1) - 1 + k1, never negative, less noise (Schulman 2020).

    Both estimate the same value, but a policy gradient does not follow the value. k1 taken off the reward gives the gradient of
    KL(policy || reference). k3 taken off the reward does not: it gives that of KL(policy || reference) - KL(reference || policy),
    which is next to nothing while the two are close. k3 as a term of the loss gives, on the policy's own samples, the gradient
    of KL(reference || policy).
    """
    if logprobs_BR.shape != ref_BR.shape:
        raise ValueError(f"shapes differ: {tuple(logprobs_BR.shape)} and {tuple(ref_BR.shape)}")
    log_ratio_BR = logprobs_BR - ref_BR
    if estimator == "k1":
        return log_ratio_BR
    if estimator == "k3":
        return torch.expm1(-log_ratio_BR) + log_ratio_BR
    raise ValueError(f"unknown KL estimator {estimator!r}: k1 or k3")


def penalized_scores(
    scores_B: Tensor, stopped_B: Tensor, lengths_B: Tensor, max_tokens: int, missing_eos_penalty: float, length_coef: float
) -> Tensor:
    """Scores less the penalty for answers that did not end and less length_coef x tokens / max_tokens.
    Both terms come from the paper's released code (8 and 10 there). stopped_B is bool, lengths_B counts answer tokens."""
    check_mask(stopped_B, scores_B, lengths_B)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    unended_B = (~stopped_B).to(scores_B.dtype)
    return scores_B.detach() - missing_eos_penalty * unended_B - length_coef * lengths_B.to(scores_B.dtype) / max_tokens


def shaped_rewards(scores_B: Tensor, kl_BR: Tensor, mask_BR: Tensor, kl_coef: float, scale: float = 1.0) -> Tensor:
    """scale x (score on the last counted token of each row - kl_coef x KL on every counted token); 0 on padding.
    ValueError if a row counts no token: its score would vanish."""
    check_mask(mask_BR, kl_BR)
    if scores_B.shape != mask_BR.shape[:1]:
        raise ValueError(f"shapes differ: {tuple(scores_B.shape)} scores and mask {tuple(mask_BR.shape)}")
    if not bool(mask_BR.any(dim=1).all()):
        raise ValueError("shaped_rewards: a row counts no token")
    positions_R = torch.arange(mask_BR.shape[1], device=mask_BR.device)
    last_B = torch.where(mask_BR, positions_R, -1).amax(dim=1)
    at_last_BR = positions_R == last_B.unsqueeze(1)
    kl_BR = counted(kl_BR.detach(), mask_BR)
    score_BR = counted(scores_B.detach().to(kl_BR.dtype).unsqueeze(1).expand_as(kl_BR), at_last_BR)
    return scale * (score_BR - kl_coef * kl_BR)


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, R] (Schulman et al. 2016, eq. 16), both without gradient and 0 on padding.

    The recursion runs over counted positions only and steps over the others, so padding on either side, or a hole,
    changes nothing. After the last counted position the value is 0: an answer has an end.
    """
    check_mask(mask_BR, rewards_BR, values_BR)
    rewards_BR, values_BR = rewards_BR.detach(), values_BR.detach()
    next_value_B = values_BR.new_zeros(len(values_BR))
    carried_B = torch.zeros_like(next_value_B)
    columns = []
    for r in range(mask_BR.shape[1] - 1, -1, -1):
        counts_B = mask_BR[:, r]
        error_B = rewards_BR[:, r] + gamma * next_value_B - values_BR[:, r]
        carried_B = torch.where(counts_B, error_B + gamma * lam * carried_B, carried_B)
        next_value_B = torch.where(counts_B, values_BR[:, r], next_value_B)
        columns.append(carried_B)
    advantages_BR = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(values_BR)
    return counted(advantages_BR, mask_BR), counted(advantages_BR + values_BR, mask_BR)


def leave_one_out(rewards_BR: Tensor, mask_BR: Tensor, prompt_index_B: Tensor) -> Tensor:
    """Advantages [B, R] without a value model: each answer's whole reward less the mean of the other answers to its prompt
    (RLOO, Ahmadian et al. 2024), the same on each counted token and 0 on padding; exactly 0 where all rewards of a prompt are
    equal.

    prompt_index_B: which prompt an answer belongs to. ValueError if a prompt has a single answer.
    """
    rewards_B, same_BB = _by_prompt(rewards_BR, mask_BR, prompt_index_B)
    others_B = same_BB.sum(1) - 1
    baseline_B = (same_BB @ rewards_B - rewards_B) / others_B
    return _spread(rewards_B - baseline_B, mask_BR, _equal(rewards_B, same_BB))


def group_centred(rewards_BR: Tensor, mask_BR: Tensor, prompt_index_B: Tensor) -> Tensor:
    """As `leave_one_out`, but each answer's reward less the mean of all answers to its prompt, its own among them (Dr. GRPO, Liu
    et al. 2025): those of `leave_one_out` times (n - 1) / n."""
    rewards_B, same_BB = _by_prompt(rewards_BR, mask_BR, prompt_index_B)
    return _spread(_centred(rewards_B, same_BB), mask_BR, _equal(rewards_B, same_BB))


def group_relative(rewards_BR: Tensor, mask_BR: Tensor, prompt_index_B: Tensor, epsilon: float = 1e-4) -> Tensor:
    """As `group_centred`, over the standard deviation of the prompt's rewards plus epsilon (GRPO, Shao et al. 2024; with n - 1 as
    TRL has it)."""
    rewards_B, same_BB = _by_prompt(rewards_BR, mask_BR, prompt_index_B)
    centred_B = _centred(rewards_B, same_BB)
    deviation_B = (same_BB @ centred_B.square() / (same_BB.sum(1) - 1)).sqrt()
    return _spread(centred_B / (deviation_B + epsilon), mask_BR, _equal(rewards_B, same_BB))


def equal_rewards(rewards_BR: Tensor, mask_BR: Tensor, prompt_index_B: Tensor) -> Tensor:
    """True for each answer [B] whose whole reward equals those of all other answers to its prompt: there is nothing to learn."""
    return _equal(*_by_prompt(rewards_BR, mask_BR, prompt_index_B))


def _by_prompt(rewards_BR: Tensor, mask_BR: Tensor, prompt_index_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each answer's whole reward, and 1 where two answers belong to one prompt [B, B]."""
    check_mask(mask_BR, rewards_BR)
    if prompt_index_B.shape != mask_BR.shape[:1]:
        raise ValueError(f"shapes differ: {tuple(prompt_index_B.shape)} prompts and mask {tuple(mask_BR.shape)}")
    rewards_B = counted(rewards_BR.detach(), mask_BR).sum(1)
    same_BB = (prompt_index_B.unsqueeze(1) == prompt_index_B).to(rewards_B.dtype)
    if bool((same_BB.sum(1) < 2).any()):
        raise ValueError("a prompt has a single answer: there is nothing to compare it with")
    return rewards_B, same_BB


def _centred(rewards_B: Tensor, same_BB: Tensor) -> Tensor:
    return rewards_B - same_BB @ rewards_B / same_BB.sum(1)


def _equal(rewards_B: Tensor, same_BB: Tensor) -> Tensor:
    return ((rewards_B.unsqueeze(1) == rewards_B) | (same_BB == 0)).all(1)


def _spread(advantages_B: Tensor, mask_BR: Tensor, equal_B: Tensor) -> Tensor:
    """An answer's advantage on each of its counted tokens; 0 where rewards are equal, whatever rounding has left of them."""
    advantages_B = torch.where(equal_B, torch.zeros_like(advantages_B), advantages_B)
    return counted(advantages_B.unsqueeze(1).expand(mask_BR.shape), mask_BR)


def explained_variance(values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor) -> float:
    """1 - var(returns - values) / var(returns) over counted positions; 1 is perfect, 0 no better than a constant.
    0.0 where the returns do not vary: there is nothing to explain, and NaN would spoil a metrics file."""
    check_mask(mask_BR, values_BR, returns_BR)
    returns_BR, values_BR = returns_BR.detach(), values_BR.detach()
    spread = _variance(returns_BR, mask_BR)
    if spread == 0:
        return 0.0
    return 1.0 - _variance(returns_BR - values_BR, mask_BR) / spread


def _variance(x: Tensor, mask: Tensor) -> float:
    return masked_mean((x - masked_mean(x, mask)).square(), mask).item()


def counted(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask counts, else 0; any shape."""
    # where, not a product: NaN or infinity in the padding times zero is NaN.
    return torch.where(mask, x, torch.zeros_like(x))


def check_mask(mask: Tensor, *others: Tensor) -> None:
    """ValueError for a mask that is not bool, or has another shape than one of the others."""
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool (True counts), not {mask.dtype}")
    for other in others:
        # Without this, a [B, 1] would broadcast silently.
        if other.shape != mask.shape:
            raise ValueError(f"shapes differ: {tuple(other.shape)} and mask {tuple(mask.shape)}")
