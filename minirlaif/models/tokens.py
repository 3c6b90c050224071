"""Token rows: stacking them with padding, cutting them at their end, reading log-probabilities out of logits.

The shift by one between logits and targets is not made here: logits_BTV[:, t] must be the prediction of targets_BT[:, t].
All functions treat positions on their own, so a caller may go through T in chunks and put the results side by side.

Letters: B batch · T tokens · R response tokens · V vocabulary. Masks: True means "this position counts".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def pad_stack(rows: Sequence[Tensor], pad: float, side: str) -> tuple[Tensor, Tensor]:
    """One-dimensional tensors as one [B, T] tensor (T the longest) and the mask [B, T] of what came from the rows.

    side: where the padding goes, "left" or "right". The rows' dtype is kept; `pad` may be an id, a number or a bool.
    """
    if side not in ("left", "right"):
        raise ValueError(f"unknown side {side!r}: left or right")
    if not rows:
        raise ValueError("pad_stack: no rows")
    if any(row.ndim != 1 or row.dtype != rows[0].dtype for row in rows):
        raise ValueError("pad_stack: rows must be one-dimensional and of one dtype")
    width = max(len(row) for row in rows)
    ids_BT = rows[0].new_full((len(rows), width), pad)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.bool, device=ids_BT.device)
    for b, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids_BT[b, place] = row
        mask_BT[b, place] = True
    return ids_BT, mask_BT


def cut_at_stop(tokens_BR: Tensor, stop_ids: Collection[int], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Generated rows up to their first stop token: new tokens [B, R], mask [B, R], stopped [B] (bool).

    The stop token itself counts (the policy chose it, and the score sits on it); what follows becomes pad_id. A row
    without one counts in full and has not stopped.
    """
    stops = torch.tensor(sorted(stop_ids), dtype=tokens_BR.dtype, device=tokens_BR.device)
    is_stop_BR = torch.isin(tokens_BR, stops)
    stops_before_BR = is_stop_BR.long().cumsum(dim=1) - is_stop_BR.long()
    mask_BR = stops_before_BR == 0
    return torch.where(mask_BR, tokens_BR, pad_id), mask_BR, is_stop_BR.any(dim=1)


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

    A banned target has -inf. Targets on padding must still be valid ids; mask the result.
    """
    if logits_BTV.shape[:-1] != targets_BT.shape:
        raise ValueError(f"shapes differ: logits {tuple(logits_BTV.shape)} and targets {tuple(targets_BT.shape)}")
    logprobs_BTV = log_distribution(logits_BTV, disallowed_V, temperature)
    return logprobs_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)


def entropy(logits_BTV: Tensor, disallowed_V: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Entropy of the next-token distribution at each position in nats, [B, T]. A metric: it carries no gradient."""
    # entr(0) is 0, where p * log p would be 0 * -inf = NaN for a banned token.
    probabilities_BTV = log_distribution(logits_BTV.detach(), disallowed_V, temperature).exp()
    terms_BTV: Tensor = torch.special.entr(probabilities_BTV)
    return terms_BTV.sum(dim=-1)
