"""SmolVLM and SmolVLM2: frames stretched to one square tile each, a fixed number of tokens per frame.

Letters: F frames, H x W vectors per frame, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minirlaif.errors import UserError
from minirlaif.models.backbones.base import PROCESSOR, GGUFFacts, VisionLanguageModel
from minirlaif.models.pretrained import load_weights
from minirlaif.models.renderer import Layout
from minirlaif.video.frame_sampling import Sizing

LAYOUT_FILE = "chat_layout.json"  # beside a model whose layout is not the family's own


def _processor(sizing: Sizing) -> dict[str, Any]:
    edge = {"longest_edge": sizing.tile}
    names = {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"}
    return PROCESSOR | names | {"do_image_splitting": False, "do_pad": True, "size": edge, "max_image_size": edge}


class SmolVLM(VisionLanguageModel):
    title = "SmolVLM and SmolVLM2"
    text_prefix = "model.text_model"
    vision_prefixes = ("model.vision_model", "model.connector")
    gguf = GGUFFacts(("gpt-2", "smollm", "qwen2", "llama-bpe", "default"), _processor, text_architecture="VLlama3ForCausalLM")
    text_per_group = 12

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str, longest: int = 0) -> None:
        super().__init__(model, tokenizer, layout, name)
        vision = model.config.vision_config
        self.grid: int = vision.image_size // vision.patch_size
        self.side: int = self.grid // model.config.scale_factor  # a frame becomes side x side vectors
        # One square tile, whatever the clip; published models were trained on tiles cut from a larger frame of the clip's shape.
        resampling = "lanczos" if longest else "bicubic"
        unit = vision.patch_size * model.config.scale_factor
        self.sizing = Sizing(unit, vision.image_size, longest=longest, filter=resampling)

    @classmethod
    def load(cls, folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> SmolVLM:
        from transformers import SmolVLMForConditionalGeneration

        model = load_weights(SmolVLMForConditionalGeneration, folder, revision, dtype, quantization, device)
        own = Path(folder) / LAYOUT_FILE  # a model trained here: frames go straight to the tile
        longest = 0 if own.is_file() else _longest(folder, revision, model.config.vision_config.image_size)
        return cls(model, cls.load_tokenizer(folder, revision), _layout(own), folder, longest)

    @classmethod
    def feature_grid(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> tuple[int, int, int]:
        side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"] // config.get("scale_factor", 1)
        return frames, side, side

    @torch.no_grad()
    def encode_frames(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 frames of one tile each -> features_FHWD."""
        return self.project(torch.from_numpy(pixels_FHW3).to(self.vision_device))

    def project(self, pixels_FHW3: torch.Tensor) -> torch.Tensor:
        """The differentiable part of `encode_frames`."""
        tower, connector = self.vision_modules
        pixels = pixels_FHW3.permute(0, 3, 1, 2).to(next(tower.parameters()).dtype) / 127.5 - 1.0  # as published: mean 0.5
        mask = torch.ones(len(pixels), self.grid, self.grid, dtype=torch.bool, device=pixels.device)
        hidden = tower(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
        vectors: torch.Tensor = connector(hidden)
        return vectors.view(len(vectors), self.side, self.side, -1)


def _longest(folder: str, revision: str, tile: int) -> int:
    """Longer side in pixels that frames are first scaled to. transformers' video processor takes it from `size` of the image
    processor's settings, whatever their `video_sampling` says, and 4 tiles where there is none."""
    from transformers.utils import cached_file

    path = cached_file(folder, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        size = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8")).get("size", {})
        return min(int(size.get("longest_edge", 4 * tile)), 4096)  # as high as their processor goes
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path}: no size of frames can be read from it; save the processor again") from None


def _layout(path: Path) -> Layout:
    if not path.is_file():
        return Layout()
    try:
        return Layout.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a chat layout ({error}); delete it to use the family's own") from None


FAMILY = SmolVLM
