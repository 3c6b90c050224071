"""Qwen3-VL: frames go in pairs, each pair after its time in text; positions count time, height and width (M-RoPE).

Features of a pair carry, after the D numbers that become embeddings, D more for each of the first L layers (DeepStack).
Letters: B rows, T tokens, F frames, G pairs, H x W vectors per pair, N patches, P numbers per patch, E = D x (1 + L).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minirlaif.models.backbones.base import PROCESSOR, GGUFFacts, VisionLanguageModel
from minirlaif.models.pretrained import load_tokenizer
from minirlaif.models.renderer import Layout
from minirlaif.video.frame_sampling import Sizing

# As the models were trained: the pairs stand in the user turn without a further pair of vision marks around all of them.
LAYOUT = Layout(
    start="",
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    answer="",
    end="<|im_end|>",
    intro="",
    frame="<{at:.1f} seconds><|vision_start|>{image}<|vision_end|>",
    outro="",
    image="<|video_pad|>",
    group=2,
)


def _processor(sizing: Sizing) -> dict[str, Any]:
    sizes = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen3VLProcessor"}
    return PROCESSOR | names | {"patch_size": sizing.unit // 2, "merge_size": 2, "temporal_patch_size": 2} | sizes


GGUF = GGUFFacts(("qwen2", "gpt-2", "smollm", "llama-bpe", "default"), _processor)


class Qwen3VL(VisionLanguageModel):
    title = "Qwen3-VL"
    text_prefix = "model.language_model"
    vision_prefixes = ("model.visual",)
    layout = LAYOUT
    gguf = GGUF
    text_per_group = 10
    any_frame_size = True
    head_norms = True

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        super().__init__(model, tokenizer, layout, name)
        vision = model.config.vision_config
        self.patch: int = vision.patch_size
        self.merge: int = vision.spatial_merge_size  # merge x merge patches become one vector
        self.sizing = Sizing(unit=self.patch * self.merge)

    @classmethod
    def load_tokenizer(cls, folder: str, revision: str) -> Any:
        """The tokenizer with all its added tokens marked as special. Qwen marks only some of them: without this, <think> or
        <tool_call> written by a user would become a control token, and answers could hold one."""
        from tokenizers import AddedToken

        tokenizer = load_tokenizer(folder, revision)
        names = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
        return tokenizer

    @classmethod
    def feature_grid(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """Groups of frames, each a 16:9 frame of at most `frame_pixels` in whole cells, as Qwen's processors round it."""
        vision = config["vision_config"]
        cell = vision["patch_size"] * vision["spatial_merge_size"]
        scale = (frame_pixels / (16 * 9)) ** 0.5
        height, width = (max(cell, int(side * scale) // cell * cell) for side in (9, 16))
        return -(-frames // vision["temporal_patch_size"]), height // cell, width // cell

    @classmethod
    def tower_patches(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> int:
        """Patches of all groups: a clip is encoded at once."""
        groups, height, width = cls.feature_grid(config, frames, frame_pixels)
        return groups * height * width * int(config["vision_config"]["spatial_merge_size"]) ** 2

    @classmethod
    def deep_levels(cls, config: Mapping[str, Any]) -> int:
        return len(config["vision_config"].get("deepstack_visual_indexes", ()))

    @torch.no_grad()
    def encode_frames(self, pixels_FHW3: np.ndarray) -> Tensor:
        tower = self.vision_modules[0]
        patches_GHWP = self.patches(torch.from_numpy(pixels_FHW3).to(self.vision_device))
        seen = tower(
            patches_GHWP.flatten(0, 2).to(next(tower.parameters()).dtype),
            grid_thw=torch.tensor([patches_GHWP.shape[:3]], device=self.vision_device),
        )
        levels = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
        pairs, high, wide = patches_GHWP.shape[:3]
        return torch.cat(levels, -1).view(pairs, high // self.merge, wide // self.merge, -1)

    def patches(self, pixels_FHW3: Tensor) -> Tensor:
        """What the tower reads, -1 to 1, as [G, rows of patches, columns of patches, P]. The patches of one vector lie side by
        side in memory, so only the flattened order is meant; P is colour, frame of the pair, y, x."""
        group, merge, side = self.renderer.layout.group, self.merge, self.patch
        pixels_FHW3 = torch.cat([pixels_FHW3, pixels_FHW3[-1:].repeat(-len(pixels_FHW3) % group, 1, 1, 1)])
        frames, height, width = pixels_FHW3.shape[:3]
        pairs, high, wide = frames // group, height // side, width // side
        cut = pixels_FHW3.reshape(pairs, group, high // merge, merge, side, wide // merge, merge, side, 3)
        ordered = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(pairs, high, wide, -1)
        return (ordered.float() - 127.5) / 127.5  # as published: mean and deviation 0.5; this form rounds as theirs does

    def positions(self, ids_BT: Tensor, mask_BT: Tensor, features: Sequence[Tensor | None]) -> Tensor:
        """positions_3BT: text counts on by one on all axes; the vectors of a pair share one time and count rows and columns from
        there; what follows a pair is max(H, W) further on. Padding holds anything.

        Source: `get_rope_index` of transformers, where each pair is a video of its own.
        """
        grids = [(1, 1) if f is None else (f.shape[1], f.shape[2]) for f in features]
        high_B1, wide_B1 = torch.tensor(grids, device=ids_BT.device).t()[:, :, None]
        slots_BT = ids_BT == self.renderer.image_id
        place_BT = (slots_BT.long().cumsum(1) - 1) % (high_B1 * wide_B1)  # of a vector in its pair
        last_BT = place_BT == high_B1 * wide_B1 - 1
        step_BT = torch.where(slots_BT, last_BT * torch.maximum(high_B1, wide_B1), mask_BT.long())
        inside_3BT = torch.stack([torch.zeros_like(place_BT), place_BT // wide_B1, place_BT % wide_B1]) * slots_BT
        positions_3BT: Tensor = step_BT.cumsum(1) - step_BT + inside_3BT
        return positions_3BT


FAMILY = Qwen3VL
