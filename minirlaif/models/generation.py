"""The one place that samples: prompts in, answers out. A prompt is prefilled once, however many answers it gets.

Letters: B prompts, N = B x answers per prompt, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minirlaif.models.tokens import log_distribution, pad_stack

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import Backbone


@dataclass(frozen=True)
class EncodedPrompt:
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
    prompts: Sequence[EncodedPrompt],
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
    cache = backbone.new_cache()
    read = _read(backbone, prompts, cache)
    if answers > 1:
        cache.batch_repeat_interleave(answers)
        read = _Prefill(
            read.state_BD.repeat_interleave(answers, 0),
            read.mask_BT.repeat_interleave(answers, 0),
            read.position.repeat_interleave(answers, -2),
        )
    steps = list(_decode_steps(backbone, read, cache, temperature, top_p, max_new_tokens, generator))
    tokens_NR, chances_NR, alive_NR = (torch.stack(x, 1).tolist() for x in zip(*steps, strict=True))
    completions = []
    for ids, logprobs, alive in zip(tokens_NR, chances_NR, alive_NR, strict=True):
        length = sum(alive)
        stopped = ids[length - 1] == backbone.renderer.end_id
        completions.append(Completion(tuple(ids[:length]), stopped, tuple(logprobs[:length])))
    return [completions[i : i + answers] for i in range(0, len(completions), answers)]


class PrefixCache:
    """The cache of what one role has read about one clip: the next prompt is read from where it differs.

    Attributes:
        read: prompt tokens that were read; reused: prompt tokens that were in the cache already.
    """

    def __init__(self) -> None:
        self.read = self.reused = 0
        self._ids: tuple[int, ...] = ()  # what the cache holds
        self._cache: Any = None

    @torch.no_grad()
    def stream(
        self,
        backbone: Backbone,
        prompt: EncodedPrompt,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        generator: torch.Generator | None = None,
    ) -> Generator[int]:
        """Token ids of one answer as they are sampled, its end token left out; arguments as for `sample`, and the same answer.

        The role that is active now must be the same every time, and the frames those of the first prompt. A consumer may stop
        early.
        """
        cache, known = self._resume(backbone, prompt)
        self.reused += known
        self.read += len(prompt.ids) - known
        told = list(prompt.ids)
        try:
            read = _read(backbone, [prompt], cache, known)
            for choice_N, _, _ in _decode_steps(backbone, read, cache, temperature, top_p, max_new_tokens, generator):
                told.append(int(choice_N))
                if told[-1] != backbone.renderer.end_id:
                    yield told[-1]
        except Exception:  # some layers may have read more than others
            self._cache = None
            raise
        finally:
            if cache is self._cache:
                self._ids = tuple(told[: cache.get_seq_length()])

    def _resume(self, backbone: Backbone, prompt: EncodedPrompt) -> tuple[Any, int]:
        """A cache that holds the start of the prompt, and how many of its tokens: past the frames, or none."""
        places = [place for place, token in enumerate(prompt.ids) if token == backbone.renderer.image_id]
        frames = places[-1] + 1 if places else 0
        if self._cache is None or self._ids[:frames] != prompt.ids[:frames]:
            self._cache, self._ids = backbone.new_cache(), ()
        if self._cache.is_croppable:
            alike = (a == b for a, b in zip(self._ids, prompt.ids[:-1], strict=False))  # one token must be left to read
            known = sum(takewhile(bool, alike))
            self._cache.crop(known - len(self._ids))
            return self._cache, known
        # States of linear attention cannot go back to where the prompts part, so what follows the frames is read by a copy.
        if frames and not self._ids:
            _read(backbone, [EncodedPrompt(prompt.ids[:frames], prompt.features)], self._cache)
            self._ids = prompt.ids[:frames]
        return copy.deepcopy(self._cache), len(self._ids)


@dataclass(frozen=True)
class _Prefill:
    """Where N rows stand after their prompts: the last hidden states, the mask, and the position of the next token ([N, 1], or
    [3, N, 1]: after a prompt, every axis counts on from its highest number)."""

    state_BD: Tensor
    mask_BT: Tensor
    position: Tensor


def _read(backbone: Backbone, prompts: Sequence[EncodedPrompt], cache: Any, known: int = 0) -> _Prefill:
    """Read prompts into a cache that holds their first `known` tokens (frames among them) already."""
    ids_BT, mask_BT = pad_stack([torch.tensor(p.ids) for p in prompts], backbone.pad_id, "left")
    ids_BT, mask_BT = ids_BT.to(backbone.device), mask_BT.to(backbone.device)
    features = [p.features for p in prompts]
    positions = backbone.positions(ids_BT, mask_BT, features)
    embedded = backbone.embed(ids_BT[:, known:], [None] * len(prompts) if known else features)
    state_BD = backbone.hidden(embedded, mask_BT, positions[..., known:], cache)[:, -1]
    return _Prefill(state_BD, mask_BT, positions[..., -1:] + 1)


def _decode_steps(
    backbone: Backbone,
    read: _Prefill,
    cache: Any,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One token per row and step, until every row has ended: (choice_N, its log-probability_N, running_N). A row that is not
    running had ended before this step."""
    disallowed_V = backbone.disallowed_V.to(backbone.device)
    state_BD, mask_BT, position = read.state_BD, read.mask_BT, read.position
    rows = len(state_BD)
    running = torch.ones(rows, dtype=torch.bool, device=backbone.device)
    for step in range(max_new_tokens):
        logprobs_NV = log_distribution(backbone.logits(state_BD), disallowed_V, temperature or 1.0)
        choice_N = _choose(logprobs_NV, temperature, top_p, generator)
        yield choice_N, logprobs_NV.gather(1, choice_N[:, None])[:, 0], running
        running = running & (choice_N != backbone.renderer.end_id)
        if step + 1 == max_new_tokens or not bool(running.any()):
            return
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], 1)
        state_BD = backbone.hidden(backbone.embed(choice_N[:, None], [None] * rows), mask_BT, position, cache)[:, -1]
        position = position + 1


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
