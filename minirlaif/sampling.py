"""The one place that samples: prompts in, answers out. A prompt is prefilled once, however many answers it gets.

Letters: B prompts, N = B x answers per prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minirlaif.tokens import log_distribution, pad_stack

if TYPE_CHECKING:
    from minirlaif.families.common import Backbone


@dataclass(frozen=True)
class Asked:
    """A prompt ready for the model: token ids and the vectors of its frames (None without video)."""

    ids: tuple[int, ...]
    features: Tensor | None = None


@dataclass(frozen=True)
class Completion:
    """A sampled answer. ids include the end token when `stopped`; logprobs are the sampler's own, one per id."""

    ids: tuple[int, ...]
    stopped: bool
    logprobs: tuple[float, ...]


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Sequence[Asked],
    answers: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    generator: torch.Generator | None = None,
) -> list[list[Completion]]:
    """Sample `answers` answers per prompt as the role that is active now.

    Args:
        temperature: 0 takes the most likely token every time.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
        generator: CPU generator; the draws depend on it and on the order of the prompts, on nothing else.

    Returns:
        for each prompt, its answers. Image and chat tokens are never chosen.
    """
    device, banned_V = backbone.device, backbone.banned_V.to(backbone.device)
    ids_BT, mask_BT = pad_stack([torch.tensor(p.ids) for p in prompts], backbone.pad_id, "left")
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    cache, features = backbone.new_cache(), [p.features for p in prompts]
    positions = backbone.positions(ids_BT, mask_BT, features)
    state_BD = backbone.hidden(backbone.embed(ids_BT, features), mask_BT, positions, cache)[:, -1]
    if answers > 1:
        cache.batch_repeat_interleave(answers)
        state_BD, mask_BT = state_BD.repeat_interleave(answers, 0), mask_BT.repeat_interleave(answers, 0)
        positions = positions.repeat_interleave(answers, -2)
    position = positions[..., -1:] + 1  # [N, 1], or [3, N, 1]: after a prompt, every axis counts on from its highest number
    rows = len(state_BD)
    running = torch.ones(rows, dtype=torch.bool, device=device)
    tokens, chances, alive = [], [], []
    for step in range(max_new_tokens):
        logprobs_NV = log_distribution(backbone.logits(state_BD), banned_V, temperature or 1.0)
        choice_N = _choose(logprobs_NV, temperature, top_p, generator)
        tokens.append(choice_N)
        chances.append(logprobs_NV.gather(1, choice_N[:, None])[:, 0])
        alive.append(running)
        running = running & (choice_N != backbone.renderer.end_id)
        if step + 1 == max_new_tokens or not bool(running.any()):
            break
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], 1)
        state_BD = backbone.hidden(backbone.embed(choice_N[:, None], [None] * rows), mask_BT, position, cache)[:, -1]
        position = position + 1
    tokens_NR, chances_NR, alive_NR = (torch.stack(x, 1).tolist() for x in (tokens, chances, alive))
    completions = [
        Completion(
            tuple(t for t, on in zip(ids, mask, strict=True) if on),
            not still,
            tuple(c for c, on in zip(logprobs, mask, strict=True) if on),
        )
        for ids, logprobs, mask, still in zip(tokens_NR, chances_NR, alive_NR, running.tolist(), strict=True)
    ]
    return [completions[i : i + answers] for i in range(0, rows, answers)]


def _choose(logprobs_NV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logprobs_NV.argmax(-1)
    chances_NV = logprobs_NV.exp()
    if top_p < 1:
        ordered_NV, index_NV = chances_NV.sort(-1, descending=True)
        before_NV = ordered_NV.cumsum(-1) - ordered_NV
        kept_NV = torch.where(before_NV < top_p, ordered_NV, 0.0)
        chances_NV = torch.zeros_like(chances_NV).scatter(-1, index_NV, kept_NV)
    # Inverse of the cumulative distribution, with the draws made on the CPU: the same on every device.
    ladder_NV = chances_NV.double().cumsum(-1)
    draw_N1 = torch.rand(len(chances_NV), 1, generator=generator, dtype=torch.float64).to(ladder_NV.device)
    choice_N = torch.searchsorted(ladder_NV, draw_N1 * ladder_NV[:, -1:], right=True)[:, 0]
    return choice_N.clamp(max=chances_NV.shape[-1] - 1)
