"""A model's sizes from its config.json alone: weights by part, adapters, vision tokens. No weights are read.

The transformers class is built on the meta device, where tensors have shapes and no memory, and its parameters are counted.

Letters: G groups of frames, H x W vectors per group, E numbers per vector.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from minirlaif.memory.formulas import Delta, Numbers
from minirlaif.models.adapters import target_pattern
from minirlaif.models.backbones import family_of
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.loading import empty_model


@dataclass(frozen=True)
class Shape:
    """A model's numbers and its family's rules for visual tokens."""

    family: type[VisionLanguageModel]
    numbers: Numbers
    config: Mapping[str, Any]  # config.json, with `vision_config` in full
    feature_width: int  # E

    def grid(self, frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """G, H and W of the features of so many frames; frame_pixels counts for families that take frames of any size."""
        return self.family.feature_grid(self.config, frames, frame_pixels)

    def patches(self, frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """Patches that the vision tower encodes at once, its width and feed-forward width."""
        vision = self.config["vision_config"]
        count = self.family.tower_patches(self.config, frames, frame_pixels)
        return count, int(vision["hidden_size"]), int(vision["intermediate_size"])

    def prompt_tokens(self, frames: int, frame_pixels: int, text: int) -> int:
        """Tokens of a prompt: visual ones, the layout's own between the frames, and `text` tokens of question and context."""
        groups, height, width = self.grid(frames, frame_pixels)
        return groups * (height * width + self.family.text_per_group) + text


def shape_of(config: Mapping[str, Any], targets: Sequence[str]) -> Shape:
    """Counts and rules of a config.json. targets: names of the layers that get adapters (`model.lora_targets`).
    UserError: transformers refuses the config."""
    family = family_of(str(config["model_type"]))
    model = empty_model(config)
    text, vision = model.config.get_text_config(), model.config.vision_config
    config = {**config, "vision_config": vision.to_dict()}
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    layers = list(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    deep = family.deep_levels(config)
    pattern = re.compile(target_pattern(family.text_prefix, family.lora_targets(targets)))
    adapted = [module for name, module in model.named_modules() if pattern.fullmatch(name)]
    counts = {"linear_weights": 0, "plain_weights": 0, "vision_weights": 0, "biggest": 0}
    for name, module in model.named_modules():
        in_text = name.startswith(family.text_prefix)
        for parameter in module.parameters(recurse=False):
            if parameter is head and not (tied and in_text):  # counted apart; where it is the embeddings, it counts as them
                continue
            linear = in_text and type(module) is nn.Linear and parameter is module.weight and parameter is not head
            counts["linear_weights" if linear else "plain_weights" if in_text else "vision_weights"] += parameter.numel()
            counts["biggest"] = max(counts["biggest"], parameter.numel() if linear else 0)
    delta = None
    if "linear_attention" in layers:
        heads = (text.linear_num_key_heads, text.linear_num_value_heads)
        delta = Delta(*heads, text.linear_key_head_dim, text.linear_value_head_dim, text.linear_conv_kernel_dim)
    numbers = Numbers(
        width=text.hidden_size,
        full_layers=layers.count("full_attention"),
        delta_layers=layers.count("linear_attention"),
        query=text.num_attention_heads * head_dim,
        keys=text.num_key_value_heads * head_dim,
        heads=text.num_attention_heads,
        ffn=text.intermediate_size,
        vocabulary=text.vocab_size,
        **counts,
        head_weights=0 if tied else head.numel(),
        lora_units=sum(sum(module.weight.shape) for module in adapted),
        lora_modules=len(adapted) / len(layers),
        head_norms=family.head_norms,
        gated=family.output_gate,
        deep=deep,
        delta=delta,
    )
    return Shape(family, numbers, config, text.hidden_size * (1 + deep))
