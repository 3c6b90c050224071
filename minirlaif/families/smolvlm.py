"""SmolVLM and SmolVLM2: frames resized to one square tile each, a fixed number of tokens per frame.

Letters: B batch, T tokens, F frames, K tokens per frame, D width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minirlaif.chat import Layout, Renderer
from minirlaif.records import UserError

MODEL_TYPES = ("smolvlm",)
LAYOUT_FILE = "chat_layout.json"  # beside a model whose layout is not the family's own


class SmolVLM:
    """A loaded SmolVLM with its tokenizer: renders, encodes frames, and runs the language model from features."""

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        config = model.config
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.text_model = model.model.text_model
        self.vision_model, self.connector = model.model.vision_model, model.model.connector
        self.frame_size: int = config.vision_config.image_size
        grid = self.frame_size // config.vision_config.patch_size
        self.tokens_per_frame = (grid // config.scale_factor) ** 2
        self.width: int = config.text_config.hidden_size
        self.vocabulary: int = config.text_config.vocab_size
        self.renderer = Renderer(tokenizer, layout, self.tokens_per_frame)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.renderer.end_id)
        special = set(tokenizer.all_special_ids) | {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i < self.vocabulary
        }
        banned = torch.zeros(self.vocabulary, dtype=torch.bool)
        banned[sorted(special - {self.renderer.end_id})] = True
        banned[len(tokenizer) :] = True  # rows of a padded embedding that stand for no token
        self.banned_V = banned

    @property
    def device(self) -> torch.device:
        """Where the language model lives."""
        return self.text_model.embed_tokens.weight.device

    @torch.no_grad()
    def encode_frames(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """Frames to the vectors that stand for them in the prompt.

        Args:
            pixels_FHW3: uint8 RGB, already resized to `frame_size` squares.

        Returns:
            features_FKD on the vision tower's device.
        """
        return self.project(torch.from_numpy(pixels_FHW3).to(self.vision_device))

    @property
    def vision_device(self) -> torch.device:
        """Where the vision tower lives; it may differ from the language model's place."""
        return self.vision_model.embeddings.patch_embedding.weight.device

    def project(self, pixels_FHW3: torch.Tensor) -> torch.Tensor:
        """The differentiable part of `encode_frames`: uint8 frames to features_FKD."""
        weight = self.vision_model.embeddings.patch_embedding.weight
        pixels = pixels_FHW3.permute(0, 3, 1, 2).to(weight.dtype) / 127.5 - 1.0  # mean and deviation 0.5, as published
        side = self.frame_size // self.model.config.vision_config.patch_size
        seen = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        hidden = self.vision_model(pixel_values=pixels, patch_attention_mask=seen).last_hidden_state
        return self.connector(hidden)

    def embed(self, ids_BT: torch.Tensor, features: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Token embeddings with the image placeholders replaced.

        Args:
            ids_BT: token ids.
            features: per row the features_FKD of its frames, or None for a row without video.

        Returns:
            embeds_BTD.

        Raises:
            ValueError: a row has another number of placeholders than feature vectors.
        """
        embeds = self.text_model.embed_tokens(ids_BT)
        slots_BT = ids_BT == self.renderer.image_id
        vectors = [f.reshape(-1, self.width) for f in features if f is not None]
        wanted = [0 if f is None else f.shape[0] * f.shape[1] for f in features]
        if slots_BT.sum(1).tolist() != wanted:
            raise ValueError(f"image placeholders {slots_BT.sum(1).tolist()} do not match feature vectors {wanted}")
        if not vectors:
            return embeds
        flat = torch.cat(vectors).to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(slots_BT[..., None].expand_as(embeds), flat)

    def hidden(
        self,
        embeds_BTD: torch.Tensor,
        mask: torch.Tensor | None,
        positions_BT: torch.Tensor | None = None,
        cache: Any = None,
    ) -> torch.Tensor:
        """Last hidden states_BTD of the language model. mask: [B, T] (or [B, 1, T, T] booleans), True = attend."""
        out = self.text_model(
            inputs_embeds=embeds_BTD,
            attention_mask=mask,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits of hidden states, any leading shape."""
        return self.model.lm_head(hidden)


def load(folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> SmolVLM:
    """Open a folder or hub id. `quantization` is a transformers quantisation config or None."""
    from transformers import AutoTokenizer, SmolVLMForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    model = SmolVLMForConditionalGeneration.from_pretrained(
        folder,
        revision=revision,
        dtype=dtype,
        quantization_config=quantization,
        device_map={"": device} if quantization is not None or device.type != "cpu" else None,
        attn_implementation="sdpa",
        use_safetensors=True,
    )
    for module in model.modules():
        # bitsandbytes on a CPU with bf16 instructions repacks 4-bit weights at the first look, and packed weights have no
        # backward pass: gradients through the base would silently be missing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a plain assignment is a type error on a module
    return SmolVLM(model, tokenizer, _layout(Path(folder) / LAYOUT_FILE), folder)


def _layout(path: Path) -> Layout:
    if not path.is_file():
        return Layout()
    try:
        return Layout(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a chat layout ({error}); delete it to use the family's own") from None
