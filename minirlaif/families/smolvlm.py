"""SmolVLM and SmolVLM2: frames resized to one square tile each, a fixed number of tokens per frame.

Letters: F frames, H x W vectors per frame, D width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minirlaif.chat import Layout
from minirlaif.families.common import Backbone, load_tokenizer, load_weights
from minirlaif.frames import FrameSize
from minirlaif.records import UserError

WHOLE = ("model.vision_model", "model.connector", "lm_head")
LAYOUT_FILE = "chat_layout.json"  # beside a model whose layout is not the family's own


class SmolVLM(Backbone):
    """A loaded SmolVLM with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        vision = model.config.vision_config
        self.text_model, self.lm_head = model.model.text_model, model.lm_head
        self.eyes = (model.model.vision_model, model.model.connector)
        self.tile: int = vision.image_size
        self.grid: int = vision.image_size // vision.patch_size
        self.side: int = self.grid // model.config.scale_factor  # a frame becomes side x side vectors
        super().__init__(model, tokenizer, layout, name)

    def frame_size(self, width: int, height: int, frame_pixels: int) -> FrameSize:
        """One square tile, whatever the clip."""
        return FrameSize(self.tile, self.tile)

    @torch.no_grad()
    def encode_frames(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 frames of one tile each -> features_FHWD."""
        return self.project(torch.from_numpy(pixels_FHW3).to(self.vision_device))

    def project(self, pixels_FHW3: torch.Tensor) -> torch.Tensor:
        """The differentiable part of `encode_frames`."""
        tower, connector = self.eyes
        pixels = pixels_FHW3.permute(0, 3, 1, 2).to(next(tower.parameters()).dtype) / 127.5 - 1.0  # as published: mean 0.5
        seen = torch.ones(len(pixels), self.grid, self.grid, dtype=torch.bool, device=pixels.device)
        hidden = tower(pixel_values=pixels, patch_attention_mask=seen).last_hidden_state
        vectors: torch.Tensor = connector(hidden)
        return vectors.unflatten(1, (self.side, self.side))


def load(folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> SmolVLM:
    """Open a folder or hub id. `quantization` is a transformers quantisation config or None."""
    from transformers import SmolVLMForConditionalGeneration

    model = load_weights(SmolVLMForConditionalGeneration, folder, revision, dtype, quantization, device)
    tokenizer = load_tokenizer(folder, revision)
    return SmolVLM(model, tokenizer, _layout(Path(folder) / LAYOUT_FILE), folder)


def _layout(path: Path) -> Layout:
    if not path.is_file():
        return Layout()
    try:
        return Layout(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a chat layout ({error}); delete it to use the family's own") from None
