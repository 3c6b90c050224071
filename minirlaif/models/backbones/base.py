"""What every backbone family shares: tokens and features in, hidden states and logits out. A family adds how it sees.

A family module has a subclass of `Backbone` and `load`. The subclass says which pixels a clip's frames become (`sizing`),
turns them into cacheable features (`encode_frames`), and, where it differs, where tokens stand (`positions`).

Letters: B rows, T tokens, F frames, G groups of frames that share placeholders (one frame each, pairs, or all), H x W vectors
per group, E numbers per vector (D, or more where deeper layers get features of their own), D width, V vocabulary, N placeholders.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.renderer import Layout, Renderer
from minirlaif.video.frame_sampling import FrameSize, Sizing


@dataclass(frozen=True)
class Embedded:
    """Rows ready for the language model: vectors_BTD, slots_BT (True at image placeholders), and for DeepStack families what
    each of the first L layers adds at the placeholders, deep_LND."""

    vectors_BTD: Tensor
    slots_BT: Tensor
    deep_LND: Tensor | None = None


class Backbone:
    """A loaded model with its tokenizer. A subclass sets `text_model`, `lm_head`, `eyes` and `sizing` before calling __init__,
    and says of its class where in the model the language model is (`text_prefix`) and what stays unquantised
    (`skip_quantization`).

    Attributes:
        renderer: makes prompts; width: D; vocabulary: V; pad_id; disallowed_V: tokens that answers may not contain.
        eyes: the vision tower and what lies between it and the language model; sizing: which pixels it sees.
        more_lora_targets: linear layers that this family adds to the default `model.lora_targets`.
    """

    text_prefix: str  # dotted name of the language model: only there are adapters
    skip_quantization: tuple[str, ...]  # starts of the names of what is never quantised: what sees, and the output head
    text_model: Any
    lm_head: Any
    eyes: Sequence[nn.Module]
    sizing: Sizing
    own_layout = Layout()  # how the family writes conversations, unless a folder says otherwise
    more_lora_targets: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        text = model.config.get_text_config()
        self.width: int = text.hidden_size
        self.vocabulary: int = text.vocab_size
        self.renderer = Renderer(tokenizer, layout)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.renderer.end_id)
        special = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        banned = torch.zeros(self.vocabulary, dtype=torch.bool)
        banned[sorted(i for i in special - {self.renderer.end_id} if i < self.vocabulary)] = True
        banned[len(tokenizer) :] = True  # rows of a padded embedding that stand for no token
        self.disallowed_V = banned

    @classmethod
    def adapted(cls, targets: Sequence[str]) -> tuple[str, ...]:
        """Names of the layers that get adapters: `model.lora_targets`, and the family's own where nobody chose them."""
        return (*targets, *cls.more_lora_targets) if tuple(targets) == ModelSection.lora_targets else tuple(targets)

    @property
    def device(self) -> torch.device:
        """Where the language model lives."""
        found: torch.device = self.text_model.embed_tokens.weight.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Number format of embeddings, and therefore of stored features."""
        found: torch.dtype = self.text_model.embed_tokens.weight.dtype
        return found

    @property
    def vision_device(self) -> torch.device:
        """Where the vision tower lives; it may differ from the language model's place."""
        return next(self.eyes[0].parameters()).device

    def frame_size(self, width: int, height: int, frame_pixels: int) -> FrameSize:
        """Pixels that each frame of a width x height clip becomes; frame_pixels: the most, where the family lets one choose."""
        return self.sizing.size(width, height, frame_pixels)

    def encode_frames(self, pixels_FHW3: np.ndarray) -> Tensor:
        """Frames of one frame plan (uint8 RGB of `frame_size`) -> features_GHWE on the vision tower's device.

        Every family has its own. TypeError for a text model, which has no eyes (a judge may be one).
        """
        raise TypeError(f"{self.name} is a text model, it sees no frames")

    def reordered(self, features_GHWE: Tensor, order: Sequence[int]) -> Tensor:
        """Features of the same frames in another order, a permutation of 0 to F - 1, for the control. Groups stay together:
        they go in the order in which their first frames come."""
        if self.renderer.layout.group > 1:
            order = [i // self.renderer.layout.group for i in order if i % self.renderer.layout.group == 0]
        return features_GHWE[list(order)]

    def embed(self, ids_BT: Tensor, features: Sequence[Tensor | None]) -> Embedded:
        """Token embeddings with the image placeholders replaced.

        Args:
            ids_BT: token ids.
            features: per row the features_GHWE of its frames, or None for a row without video.

        Raises:
            ValueError: a row has another number of placeholders than feature vectors.
        """
        embeds = self.text_model.embed_tokens(ids_BT)
        slots_BT = ids_BT == self.renderer.image_id
        vectors = [f.reshape(-1, f.shape[-1]) for f in features if f is not None]
        wanted = [0 if f is None else f.shape[:-1].numel() for f in features]
        if slots_BT.sum(1).tolist() != wanted:
            raise ValueError(f"image placeholders {slots_BT.sum(1).tolist()} do not match feature vectors {wanted}")
        if not vectors:
            return Embedded(embeds, slots_BT)
        flat_NE = torch.cat(vectors).to(embeds.device, embeds.dtype)
        first_ND, deep = flat_NE[:, : self.width], flat_NE[:, self.width :]
        filled = embeds.masked_scatter(slots_BT[..., None].expand_as(embeds), first_ND)
        deep_LND = deep.reshape(len(flat_NE), -1, self.width).transpose(0, 1) if deep.shape[1] else None
        return Embedded(filled, slots_BT, deep_LND)

    def positions(self, ids_BT: Tensor, mask_BT: Tensor, features: Sequence[Tensor | None]) -> Tensor:
        """Where each token stands: [B, T], or [3, B, T] for families that count time, height and width. The last token of a
        left-padded prompt has the highest number of its row on every axis. Padding holds anything."""
        return (mask_BT.long().cumsum(1) - 1).clamp(min=0)

    def new_cache(self) -> Any:
        """An empty KV cache for `hidden`."""
        from transformers import DynamicCache

        return DynamicCache(config=self.text_model.config)

    def hidden(self, embedded: Embedded, mask: Tensor | None, positions: Tensor | None = None, cache: Any = None) -> Tensor:
        """Last hidden states_BTD of the language model.

        mask: [B, T] (with a cache: of all tokens so far), or [B, 1, T, T] booleans; True = attend. positions: as `positions`.
        """
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


def load_weights(kind: Any, folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> Any:
    """A model of transformers class `kind` from a folder or hub id: safetensors only, no remote code.

    quantization: a transformers quantisation config or None. UserError when the files cannot be read.
    """
    # On a CPU with bf16 instructions bitsandbytes asks for a package that nothing here uses, in words that read like a failure.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        with no_bars() if Path(folder).is_dir() else nullcontext():  # a download keeps its bars
            model = kind.from_pretrained(
                folder,
                revision=revision,
                dtype=dtype,
                quantization_config=quantization,
                device_map={"": device} if quantization is not None or device.type != "cpu" else None,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model.base {folder}: its weights cannot be loaded ({_reason(error)}); get the model again") from None
    for module in model.modules():
        # bitsandbytes on a CPU with bf16 instructions repacks 4-bit weights at the first look, and packed weights have no
        # backward pass: gradients through the base would silently be missing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' progress bars, which every stage would show anew."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def load_tokenizer(folder: str, revision: str) -> Any:
    """The fast tokenizer of a folder or hub id. UserError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except Exception as error:  # whatever stands in the file: ValueError, KeyError, and a bare Exception from the Rust side
        raise UserError(
            f"model.base {folder}: no tokenizer.json that can be read ({_reason(error)}); save the tokenizer beside the model"
        ) from None


def _reason(error: BaseException) -> str:
    """The first line of an error, without what stands before a list."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(": ")
