"""A loaded causal language model: token ids in, hidden states and logits out. All that sampling and scoring text needs.

`backbones.base.VisionLanguageModel` adds frames. A text model, such as a judge, is a plain `LanguageModel`.

Letters: B rows, T tokens, D width, V vocabulary, N image placeholders, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embedded:
    """Rows ready for the language model: vectors_BTD, slots_BT (True at image placeholders), and for DeepStack families what
    each of the first L layers adds at the placeholders, deep_LND."""

    vectors_BTD: Tensor
    slots_BT: Tensor | None = None
    deep_LND: Tensor | None = None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt ready for the model: token ids and the features_GHWE of its frames (None without video)."""

    ids: tuple[int, ...]
    features: Tensor | None = None


class LanguageModel:
    """A loaded model with its tokenizer.

    model: of transformers; text_model, lm_head: its decoder and its output head; end_id: the token that ends an answer;
    width: D; vocabulary: V; disallowed_V: tokens that answers may not contain; image_id: the placeholder of image features, -1
    for a text model, which has none.
    """

    image_id = -1

    def __init__(self, model: Any, tokenizer: Any, name: str, text_model: Any, lm_head: Any, end_id: int) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.text_model, self.lm_head = text_model, lm_head
        text = model.config.get_text_config()
        self.width: int = text.hidden_size
        self.vocabulary: int = text.vocab_size
        self.end_id = end_id
        self.pad_id = int(end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.disallowed_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        self.disallowed_V[len(tokenizer) :] = True  # rows of a padded embedding that stand for no token

    @property
    def device(self) -> torch.device:
        """Of the language model."""
        return torch.device(self.text_model.embed_tokens.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of embeddings, and therefore of stored features."""
        dtype: torch.dtype = self.text_model.embed_tokens.weight.dtype
        return dtype

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer: special tokens dropped, outer spaces stripped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def embed(self, ids_BT: Tensor, features: Sequence[Tensor | None]) -> Embedded:
        """Token embeddings. features: per row what stands for its image placeholders; None for a row without video.
        ValueError: a row has another number of placeholders than feature vectors; any features with a text model."""
        if any(f is not None for f in features):
            raise ValueError(f"{self.name} is a text model, it takes no frames")
        return Embedded(self.text_model.embed_tokens(ids_BT))

    def positions(self, ids_BT: Tensor, mask_BT: Tensor, features: Sequence[Tensor | None]) -> Tensor:
        """Position of each token: [B, T], or [3, B, T] for families that count time, height and width. The last token of a
        left-padded prompt has the highest number of its row on every axis. Padding holds anything."""
        return (mask_BT.long().cumsum(1) - 1).clamp(min=0)

    def new_cache(self) -> Any:
        """An empty KV cache for `hidden`."""
        from transformers import DynamicCache

        return DynamicCache(config=self.text_model.config)

    def hidden(self, embedded: Embedded, mask: Tensor | None, positions: Tensor | None = None, cache: Any = None) -> Tensor:
        """Last hidden states_BTD of the language model.
        mask: [B, T] (with a cache: of all tokens so far), or [B, 1, T, T] booleans; True = attend. positions: as `positions`."""
        deep = embedded.deep_LND
        out = self.text_model(
            inputs_embeds=embedded.vectors_BTD,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **({} if deep is None else {"visual_pos_masks": embedded.slots_BT, "deepstack_visual_embeds": deep}),
        )
        states: Tensor = out.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits of hidden states, any leading shape."""
        result: Tensor = self.lm_head(hidden)
        return result
