"""Token rows: stacking them with padding, reading log-probabilities and entropies out of logits.

The shift by one between logits and targets is not made here: logits_BTV[:, t] must be the prediction of targets_BT[:, t].
All functions treat positions independently, so a caller may process T in chunks and concatenate the results.

Letters: B batch · T tokens · R response tokens · V vocabulary. Masks: True means "this position counts".
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pad_stack(rows: Sequence[Tensor], pad: float, side: str) -> tuple[Tensor, Tensor]:
    """One-dimensional tensors as one [B, T] tensor (T the longest) and the mask [B, T] of what came from the rows.
    side: where the padding goes, "left" or "right". The rows' dtype is kept; `pad` may be an id, a number or a bool."""
    if side not in ("left", "right"):
        raise ValueError(f"unknown side {side!r}: left or right")
    if not rows:
        raise ValueError("pad_stack: no rows")
    if any(row.ndim != 1 or row.dtype != rows[0].dtype for row in rows):
        raise ValueError("pad_stack: rows must be one-dimensional and of one dtype")
    filled = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    return pad_sequence(list(rows), True, pad, side), pad_sequence(filled, True, False, side)


def log_distribution(logits: Tensor, disallowed_V: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """log-softmax over the last axis in float32 (nats), whatever the dtype of the logits.

    disallowed_V: bool, True for tokens that may never be chosen. They get -inf before normalising, here and in sampling
    alike: otherwise the log-probabilities would belong to another distribution than the one sampled from.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    scaled = logits.float() / temperature
    if disallowed_V is not None:
        if disallowed_V.dtype != torch.bool or disallowed_V.shape != logits.shape[-1:]:
            raise ValueError(f"disallowed_V must be bool of shape {tuple(logits.shape[-1:])}, not {tuple(disallowed_V.shape)}")
        scaled = scaled.masked_fill(disallowed_V, float("-inf"))
    return torch.log_softmax(scaled, dim=-1)


def pick_logprobs(logits_BTV: Tensor, targets_BT: Tensor, disallowed_V: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Log-probability (nats, float32) of each target, [B, T]. Logits and targets are aligned already.
    A disallowed target has -inf. Targets on padding must still be valid ids; mask the result."""
    if logits_BTV.shape[:-1] != targets_BT.shape:
        raise ValueError(f"shapes differ: logits {tuple(logits_BTV.shape)} and targets {tuple(targets_BT.shape)}")
    logprobs_BTV = log_distribution(logits_BTV, disallowed_V, temperature)
    return logprobs_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)


def entropy(logits_BTV: Tensor, disallowed_V: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Entropy of the next-token distribution at each position in nats, [B, T]."""
    logprobs_BTV = log_distribution(logits_BTV, disallowed_V, temperature)
    if not logprobs_BTV.requires_grad:
        # entr(0) is 0, where p * log p would be 0 * -inf = NaN for a disallowed token.
        terms_BTV: Tensor = torch.special.entr(logprobs_BTV.exp())
        return terms_BTV.sum(dim=-1)
    # The gradient of entr at 0 is infinite, so a disallowed token's logarithm becomes 0 before the product.
    finite_BTV = logprobs_BTV if disallowed_V is None else logprobs_BTV.masked_fill(disallowed_V, 0.0)
    return -(logprobs_BTV.exp() * finite_BTV).sum(dim=-1)
