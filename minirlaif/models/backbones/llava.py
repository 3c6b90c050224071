"""LLaVA-1.5 with the paper's video tokens: a clip becomes one vector per frame and one per patch.

Published in two layouts: transformers' own, which is opened here, and the old one of LLaVA's repository, in which VLM-RLAIF's
checkpoints are; `convert` turns that into this one.

Letters: F frames, P patches of a frame, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from minirlaif.errors import UserError
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.pretrained import load_config, load_tokenizer
from minirlaif.models.renderer import Layout
from minirlaif.video.frame_sampling import Sizing

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as a share of full brightness; red, green, blue
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PAD = (122, 116, 104)  # MEAN in levels, cut to whole numbers as in the published code
CHUNK = 8  # frames in the tower at once; 50 of 336 x 336 pixels would take gigabytes of attention

# Vicuna v1's conversation. The spaces before the first word, before " \n" and before " USER" are the ones that Llama's old
# tokenizer put at the start of every piece of text between special tokens; see `load_tokenizer`.
LAYOUT = Layout(
    start="<s> A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    user=" USER: ",
    question_end=" ",
    assistant="ASSISTANT:",
    answer=" ",
    end="</s>",
    after_end="",
    intro="",
    frame="{image}",
    outro=" \n",
    image="<image>",
    group=0,
)


class Llava(VisionLanguageModel):
    """A loaded LLaVA-1.5 with its tokenizer. Features of a clip are [1, F + P, 1, D]: all frames share the placeholders."""

    title = "LLaVA-1.5, VLM-RLAIF"
    text_prefix = "model.language_model"
    vision_prefixes = ("model.vision_tower", "model.multi_modal_projector")
    layout = LAYOUT
    convertible_types = ("llava_llama",)
    gguf = None  # llama.cpp encodes one picture at a time; here video tokens are pooled over frames
    frames_at_once = CHUNK
    pools_frames = True

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        super().__init__(model, tokenizer, layout, name)
        # A square that holds the whole frame, its borders in CLIP's mean colour.
        self.sizing = Sizing(model.config.vision_config.patch_size, model.config.vision_config.image_size, PAD)

    @classmethod
    def load(cls, folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> VisionLanguageModel:
        """Open a folder or hub id. UserError for a model of this type that is not built as LLaVA-1.5 is."""
        config = load_config(folder, revision)
        parts = (config.vision_config.model_type, config.text_config.model_type, config.vision_feature_select_strategy)
        if parts != ("clip_vision_model", "llama", "default") or not isinstance(config.vision_feature_layer, int):
            raise UserError(
                f"model.base {folder}: not built as LLaVA-1.5 is (CLIP's patches into Llama) but as {parts}; choose another"
            )
        if load_tokenizer(folder, revision).convert_tokens_to_ids(LAYOUT.image) != config.image_token_index:
            raise UserError(
                f"model.base {folder}: its tokenizer's {LAYOUT.image} is not config.json's image_token_index; save it again"
            )
        return super().load(folder, revision, dtype, quantization, device)

    @classmethod
    def load_tokenizer(cls, folder: str, revision: str) -> Any:
        """The tokenizer without spaces of its own. Llama's tokenizers differ in whether a text gets a space in front: at its
        start, after every special token, or twice where there is one. Here none is added, and LAYOUT writes those that the
        published models were trained with."""
        from tokenizers import pre_tokenizers

        tokenizer = load_tokenizer(folder, revision)
        engine = tokenizer.backend_tokenizer
        engine.normalizer = None
        engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
        return tokenizer

    @classmethod
    def check_config(cls, config: Mapping[str, Any], place: str) -> None:
        """UserError for LLaVA's old layout, for which transformers would fill in sizes of its own."""
        if "mm_vision_tower" in config:
            command = f"python -m minirlaif convert --from {place.split(' ', 1)[1]} --to NEW"
            raise UserError(f"{place}: is in LLaVA's old layout; run `{command}` and name NEW instead")

    @classmethod
    def feature_grid(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """The paper's tokens: one per frame and one per patch."""
        side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
        return 1, frames + side * side, 1

    @torch.no_grad()
    def encode_frames(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 frames -> features [1, F + P, 1, D]: the mean over the patches of each frame, in the frames' order, then the mean
        over the frames of each patch, row by row. Means are taken after the projector, as in the paper's code."""
        frames, patches_PD = [], torch.zeros(())
        for start in range(0, len(pixels_FHW3), CHUNK):
            chunk = torch.from_numpy(pixels_FHW3[start : start + CHUNK]).to(self.vision_device)
            vectors_FPD = self._project(chunk).float()
            frames.append(vectors_FPD.mean(1))
            patches_PD = patches_PD.to(vectors_FPD.device) + vectors_FPD.sum(0)
        tokens = torch.cat([*frames, patches_PD / len(pixels_FHW3)])
        return tokens[None, :, None].to(next(self.vision_modules[1].parameters()).dtype)

    def _project(self, pixels_FHW3: torch.Tensor) -> torch.Tensor:
        """Vectors_FPD of every patch in the language model's width."""
        tower, projector = self.vision_modules
        mean, deviation = (torch.tensor(numbers, device=pixels_FHW3.device) for numbers in (MEAN, DEVIATION))
        pixels = ((pixels_FHW3 / 255 - mean) / deviation).permute(0, 3, 1, 2).to(next(tower.parameters()).dtype)
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[self.model.config.vision_feature_layer]
        vectors: torch.Tensor = projector(states[:, 1:])  # without the class token
        return vectors

    def reordered(self, features_GHWE: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
        """The vectors of the frames in another order; those of the patches have no order."""
        patches = range(len(order), features_GHWE.shape[1])
        return features_GHWE[:, [*order, *patches]]


FAMILY = Llava
