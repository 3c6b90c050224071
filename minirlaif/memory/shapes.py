"""What a model's config.json alone says about its size: weights by part, adapters, vision tokens, KV cache. No weights are read.

The transformers class is built on the meta device, where tensors have shapes and no memory, and its parameters are counted.

Letters: G groups of frames, H x W vectors per group, E numbers per vector, D width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.memory.formulas import Delta, Numbers
from minirlaif.models.adapters import target_pattern
from minirlaif.models.loading import FAMILIES, base_folder, family_of

KNOWN_FILE = Path(__file__).parent / "known_configs.json"  # config.json of standard backbones, with their sources
CLIP = (16, 9)  # sides of a clip whose size is not known
TEXT_PER_GROUP = {
    "smolvlm": 12,
    "qwen3_vl": 10,
    "qwen3_5": 10,
    "llava": 0,
}  # text tokens that a layout writes per group of frames


@dataclass(frozen=True)
class Shape:
    """A model's numbers and its way of seeing."""

    kind: str  # model_type
    numbers: Numbers
    vision: Mapping[str, Any]  # config.json's vision_config
    scale: int  # SmolVLM: patches per side that become one vector
    feature_width: int  # E

    @property
    def _side(self) -> int:
        """Patches per side of a frame, for families with frames of one size."""
        return int(self.vision.get("image_size", 0)) // int(self.vision["patch_size"])

    def grid(self, frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """G, H and W of the features of so many frames; frame_pixels counts for families that take frames of any size."""
        side = self._side
        if self.kind == "smolvlm":
            return frames, side // self.scale, side // self.scale
        if self.kind == "llava":  # the paper's tokens: one per frame and one per patch, whatever the number of frames
            return 1, frames + side * side, 1
        cell = int(self.vision["patch_size"]) * int(self.vision["spatial_merge_size"])
        height, width = _fitted(frame_pixels, cell)
        return -(-frames // int(self.vision["temporal_patch_size"])), height // cell, width // cell

    def patches(self, frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """Patches that the vision tower sees at once, its width and feed-forward width. LLaVA's frames go in eights."""
        groups, height, width = self.grid(frames, frame_pixels)
        if "spatial_merge_size" in self.vision:
            count = groups * height * width * int(self.vision["spatial_merge_size"]) ** 2
        else:
            count = (min(frames, 8) if self.kind == "llava" else frames) * self._side**2
        return count, int(self.vision["hidden_size"]), int(self.vision["intermediate_size"])

    def prompt_tokens(self, frames: int, frame_pixels: int, text: int) -> int:
        """Tokens of a prompt: visual ones, the layout's own between the frames, and `text` tokens of question and context."""
        groups, height, width = self.grid(frames, frame_pixels)
        return groups * (height * width + TEXT_PER_GROUP[self.kind]) + text


def _fitted(pixels: int, cell: int) -> tuple[int, int]:
    """Height and width of a 16:9 frame of at most `pixels`, both multiples of the cell, as Qwen's processors round them."""
    scale = (pixels / (CLIP[0] * CLIP[1])) ** 0.5
    sides = [max(cell, int(side * scale) // cell * cell) for side in (CLIP[1], CLIP[0])]
    return sides[0], sides[1]


def read_config(section: ModelSection, folder: str = "") -> dict[str, Any]:
    """config.json of `model.base`, or of `folder` where one is given: from a folder, the table of standard backbones or the hub.

    Raises:
        UserError: none of them has it, its model_type belongs to no family, or it is in LLaVA's old layout.
    """
    name = folder or base_folder(section)
    found: dict[str, Any]
    if folder and not Path(folder).is_dir():
        raise UserError(f"--model-config {folder}: no such folder; name one that holds config.json")
    if Path(name).is_dir():
        try:
            found = dict(json.loads((Path(name) / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{name}: no config.json that can be read; name a folder saved by save_pretrained") from None
    elif (known := known_config(name)) is not None:
        return known
    else:
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(name, revision=section.revision).to_dict()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.base {name}: no such folder, and the hub gave no config ({reason}); name a folder that holds its"
                f" config.json with --model-config, or one of {', '.join(known_names())}"
            ) from None
    if found.get("model_type") not in FAMILIES:
        known_kinds = ", ".join(sorted(FAMILIES))
        raise UserError(f"{name}: model type {found.get('model_type')!r} is not supported; known are {known_kinds}")
    if "mm_vision_tower" in found:  # transformers would fill in its own sizes
        raise UserError(
            f"{name}: is in LLaVA's old layout; run `python -m minirlaif convert --from {name} --to NEW` and name NEW"
        )
    return found


def known_names() -> list[str]:
    """Short names of the standard backbones, such as smolvlm2-500m."""
    return sorted(_known())


def known_config(name: str) -> dict[str, Any] | None:
    """config.json of a standard backbone by short name or hub id; None for another model."""
    for short, entry in _known().items():
        if name in (short, entry["hub"]):
            return dict(entry["config"])
    return None


@lru_cache(maxsize=1)
def _known() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return content


def empty_model(config: Mapping[str, Any], dtype: Any = None) -> Any:
    """The transformers model of a config.json with parameters that have shapes and no memory; its buffers are real.

    Raises:
        UserError: transformers refuses the config.
    """
    import torch
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = {name: value for name, value in config.items() if name not in ("model_type", "transformers_version")}
    try:
        built = AutoConfig.for_model(config["model_type"], **values)
        built._attn_implementation = "sdpa"
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(built, dtype=dtype or torch.float32)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.json of a {config['model_type']} model: transformers refuses it ({reason})") from None
    model.tie_weights()
    return model


def shape_of(config: Mapping[str, Any], targets: Sequence[str]) -> Shape:
    """Counts and rules of a config.json.

    Args:
        targets: names of the layers that get adapters (`model.lora_targets`).
    """
    from torch import nn

    kind = str(config["model_type"])
    family = family_of(kind)[1]
    prefix = family.text_prefix
    model = empty_model(config)
    text, vision = model.config.get_text_config(), model.config.vision_config
    wanted = re.compile(target_pattern(prefix, family.adapted(targets)))
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    parts = {"linear": 0, "plain": 0, "vision": 0}
    lora = biggest = modules = 0
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter is head and not tied:
                continue
            seen = "plain" if name.startswith(prefix) or parameter is head else "vision"
            linear = seen == "plain" and type(module) is nn.Linear and parameter is module.weight and parameter is not head
            if tied and parameter is head and not name.startswith(prefix):
                continue  # counted with the embeddings
            parts["linear" if linear else seen] += parameter.numel()
            biggest = max(biggest, parameter.numel() if linear else 0)
        if wanted.fullmatch(name):
            lora += sum(module.weight.shape)
            modules += 1
    layers = list(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers)
    hybrid = "linear_attention" in layers
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    deep = len(vision.deepstack_visual_indexes) if kind == "qwen3_vl" else 0
    numbers = Numbers(
        width=text.hidden_size,
        full_layers=layers.count("full_attention"),
        delta_layers=layers.count("linear_attention"),
        query=text.num_attention_heads * head_dim,
        keys=text.num_key_value_heads * head_dim,
        heads=text.num_attention_heads,
        ffn=text.intermediate_size,
        vocabulary=text.vocab_size,
        linear_weights=parts["linear"],
        plain_weights=parts["plain"],
        head_weights=0 if tied else head.numel(),
        vision_weights=parts["vision"],
        lora_units=lora,
        lora_modules=modules / len(layers),
        biggest=biggest,
        head_norms=kind in ("qwen3_vl", "qwen3_5"),
        gated=kind == "qwen3_5",
        deep=deep,
        delta=Delta(
            text.linear_num_key_heads,
            text.linear_num_value_heads,
            text.linear_key_head_dim,
            text.linear_value_head_dim,
            text.linear_conv_kernel_dim,
        )
        if hybrid
        else None,
    )
    seen_by = vision.to_dict()
    scale = int(config.get("scale_factor", 1)) if kind == "smolvlm" else 1
    return Shape(kind, numbers, seen_by, scale, text.hidden_size * (1 + deep))
