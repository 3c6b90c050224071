"""The KV cache of prompts: a prompt is prefilled once for all its answers, and of a later prompt only what follows the shared
prefix is prefilled.

Letters: B prompts, T tokens, N rows, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from minirlaif.models.language_model import EncodedPrompt, LanguageModel
from minirlaif.models.tokens import pad_stack


@dataclass(frozen=True)
class Prefill:
    """State of N rows after their prompts: the KV cache, the last hidden states, the mask, and the position of the next token
    ([N, 1], or [3, N, 1]: after a prompt, every axis counts on from its highest number)."""

    cache: Any
    state_ND: Tensor
    mask_NT: Tensor
    position: Tensor

    def expand_for_answers(self, times: int) -> Prefill:
        """Every row `times` times in a row, so that several answers share one prefill. The cache is modified in place."""
        if times == 1:
            return self
        self.cache.batch_repeat_interleave(times)
        return Prefill(
            self.cache,
            self.state_ND.repeat_interleave(times, 0),
            self.mask_NT.repeat_interleave(times, 0),
            self.position.repeat_interleave(times, -2),
        )


def prefill(model: LanguageModel, prompts: Sequence[EncodedPrompt], cache: Any = None, known: int = 0) -> Prefill:
    """Read prompts into a KV cache. cache: one that holds their first `known` tokens (frames among them); None: a new one."""
    cache = model.new_cache() if cache is None else cache
    ids_BT, mask_BT = pad_stack([torch.tensor(p.ids) for p in prompts], model.pad_id, "left")
    ids_BT, mask_BT = ids_BT.to(model.device), mask_BT.to(model.device)
    features = [p.features for p in prompts]
    positions = model.positions(ids_BT, mask_BT, features)
    embedded = model.embed(ids_BT[:, known:], [None] * len(prompts) if known else features)
    state_BD = model.hidden(embedded, mask_BT, positions[..., known:], cache)[:, -1]
    return Prefill(cache, state_BD, mask_BT, positions[..., -1:] + 1)


class PrefixCache:
    """The KV cache of one adapter's last prompt about one clip, and of its answer. The next prompt reuses the part it shares.

    The adapter that is active must be the same every time, and the frames those of the first prompt.
    read: prompt tokens that were read; reused: prompt tokens that were in the cache already.
    """

    def __init__(self) -> None:
        self.read = self.reused = 0
        self._ids: tuple[int, ...] = ()  # what the cache holds
        self._cache: Any = None

    def prefill(self, model: LanguageModel, prompt: EncodedPrompt) -> Prefill:
        """As the function `prefill`, without the tokens that the cache holds. Call `keep` after sampling, or `drop` when it
        failed."""
        cache, known = self._resume(model, prompt)
        self.reused += known
        self.read += len(prompt.ids) - known
        try:
            return prefill(model, [prompt], cache, known)
        except Exception:
            self.drop()
            raise

    def keep(self, cache: Any, ids: Sequence[int]) -> None:
        """Note which tokens a cache from `prefill` holds now: the first of `ids`, a prompt with its answer."""
        if cache is self._cache:
            self._ids = tuple(ids[: cache.get_seq_length()])

    def drop(self) -> None:
        """Forget the cache: after an error some layers may have read more than others."""
        self._cache = None

    def _resume(self, model: LanguageModel, prompt: EncodedPrompt) -> tuple[Any, int]:
        """A cache that holds the start of the prompt, and how many of its tokens: past the frames, or none."""
        placeholders = [place for place, token in enumerate(prompt.ids) if token == model.image_id]
        frames = placeholders[-1] + 1 if placeholders else 0
        if self._cache is None or self._ids[:frames] != prompt.ids[:frames]:
            self._cache, self._ids = model.new_cache(), ()
        if self._cache.is_croppable:
            same = (a == b for a, b in zip(self._ids, prompt.ids[:-1], strict=False))  # one token must be left to read
            known = sum(takewhile(bool, same))
            self._cache.crop(known - len(self._ids))
            return self._cache, known
        # States of linear attention cannot go back to where the prompts part, so what follows the frames is read by a copy.
        if frames and not self._ids:
            prefill(model, [EncodedPrompt(prompt.ids[:frames], prompt.features)], self._cache)
            self._ids = prompt.ids[:frames]
        return copy.deepcopy(self._cache), len(self._ids)
