"""What every backbone family shares: prompts, image features in place of placeholders, and the facts that other parts ask for.

A family module subclasses `VisionLanguageModel`: it sets the class attributes, says which pixels a clip's frames become
(`sizing`), turns them into cacheable features (`encode_frames`), and, where it differs, gives tokens their positions.

Letters: B rows, T tokens, F frames, G groups of frames that share placeholders (one frame each, pairs, or all), H x W vectors
per group, E numbers per vector (D, or more where deeper layers get features of their own), D width, V vocabulary, N placeholders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minirlaif.config import ModelSection
from minirlaif.models.language_model import Embedded, LanguageModel
from minirlaif.models.pretrained import load_tokenizer, load_weights
from minirlaif.models.renderer import Layout, Renderer
from minirlaif.video.frame_sampling import FrameSize, Sizing

PROCESSOR: dict[str, Any] = {  # what preprocessor_config.json of all families has in common
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}


@dataclass(frozen=True)
class GGUFFacts:
    """What the export as GGUF has to know of a family.

    pre_tokenizers: names in llama.cpp that its tokenizers may have, the likeliest first. llama.cpp knows published tokenizers by
        a hash; for others the first name that gives the right ids is taken, as few words may not tell two apart.
    processor: preprocessor_config.json for a base that has none, from the family's sizing.
    text_architecture: the name that llama.cpp's converter looks up for the language model; empty: the one in config.json.
    converter_flags: further words for the converter.
    """

    pre_tokenizers: tuple[str, ...]
    processor: Callable[[Sizing], dict[str, Any]]
    text_architecture: str = ""
    converter_flags: tuple[str, ...] = ()


class VisionLanguageModel(LanguageModel, ABC):
    """A loaded model with its tokenizer. A subclass sets the attributes of the class, and `sizing` in its __init__.
    vision_modules: the vision tower and what lies between it and the language model; sizing: which pixels the tower gets."""

    title: str  # for people
    text_prefix: str  # dotted name of the language model: only there are adapters
    vision_prefixes: tuple[str, ...]  # dotted names of the vision modules
    layout = Layout()  # how the family writes conversations, unless a folder says otherwise
    extra_lora_targets: tuple[str, ...] = ()  # linear layers that are added to the default `model.lora_targets`
    convertible_types: tuple[str, ...] = ()  # model types of old checkpoints that `convert` makes into this family
    gguf: GGUFFacts | None = None  # None: cannot be exported
    # For the memory planner, beside what config.json says:
    text_per_group = 0  # text tokens that the layout writes per group of frames
    frames_at_once = 0  # frames in the vision tower at once; 0: all of a clip
    pools_frames = False  # a frame more costs next to nothing
    any_frame_size = False  # `video.frame_pixels` decides about the size of frames
    head_norms = False  # norms of queries and keys
    output_gate = False  # attention with an output gate
    sizing: Sizing

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        self.renderer = Renderer(tokenizer, layout)
        text_model = model.get_submodule(self.text_prefix)
        super().__init__(model, tokenizer, name, text_model, model.lm_head, self.renderer.end_id)
        self.image_id = self.renderer.image_id
        self.vision_modules: tuple[nn.Module, ...] = tuple(map(model.get_submodule, self.vision_prefixes))
        special = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.disallowed_V[sorted(i for i in special - {self.end_id} if i < self.vocabulary)] = True

    @property
    def example_prompt(self) -> str:
        """A question without frames as the model reads it, special tokens written out."""
        ids = self.renderer.prompt(None, "What can happen in a video?")
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    @classmethod
    def load(cls, folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> VisionLanguageModel:
        """Open a folder or hub id. `quantization` is a transformers quantisation config or None."""
        from transformers import AutoModelForImageTextToText

        model = load_weights(AutoModelForImageTextToText, folder, revision, dtype, quantization, device)
        return cls(model, cls.load_tokenizer(folder, revision), cls.layout, folder)

    @classmethod
    def load_tokenizer(cls, folder: str, revision: str) -> Any:
        """The tokenizer as this family needs it."""
        return load_tokenizer(folder, revision)

    @classmethod
    def check_config(cls, config: Mapping[str, Any], place: str) -> None:
        """UserError for a config.json of the family's model type that cannot be opened. place: what the message names."""

    @classmethod
    def skip_quantization(cls) -> tuple[str, ...]:
        """Starts of the names of what is never quantised: the vision modules and the output head."""
        return (*cls.vision_prefixes, "lm_head")

    @classmethod
    def lora_targets(cls, targets: Sequence[str]) -> tuple[str, ...]:
        """Names of the layers that get adapters: `model.lora_targets`, and the family's own where nobody chose them."""
        return (*targets, *cls.extra_lora_targets) if tuple(targets) == ModelSection.lora_targets else tuple(targets)

    @classmethod
    @abstractmethod
    def feature_grid(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> tuple[int, int, int]:
        """G, H and W of the features of so many frames, from config.json (`vision_config` in full). Frames of any size are
        taken as 16:9 of at most `frame_pixels`."""

    @classmethod
    def tower_patches(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> int:
        """Patches that the vision tower encodes at once, from config.json; here for frames of one square size."""
        vision = config["vision_config"]
        side = int(vision["image_size"]) // int(vision["patch_size"])
        return min(frames, cls.frames_at_once or frames) * side * side

    @classmethod
    def deep_levels(cls, config: Mapping[str, Any]) -> int:
        """Deeper layers of the language model that get image features of their own."""
        return 0

    @property
    def vision_device(self) -> torch.device:
        """Of the vision tower; it may differ from the language model's."""
        return next(self.vision_modules[0].parameters()).device

    def frame_size(self, width: int, height: int, frame_pixels: int) -> FrameSize:
        """Pixels that each frame of a width x height clip becomes; frame_pixels: the most, where the family lets one choose."""
        return self.sizing.size(width, height, frame_pixels)

    @abstractmethod
    def encode_frames(self, pixels_FHW3: np.ndarray) -> Tensor:
        """Frames of one frame plan (uint8 RGB of `frame_size`) -> features_GHWE on the vision tower's device."""

    def reordered(self, features_GHWE: Tensor, order: Sequence[int]) -> Tensor:
        """Features of the same frames in another order, a permutation of 0 to F - 1, for the control. Groups stay together:
        they go in the order in which their first frames come."""
        if self.renderer.layout.group > 1:
            order = [i // self.renderer.layout.group for i in order if i % self.renderer.layout.group == 0]
        return features_GHWE[list(order)]

    def embed(self, ids_BT: Tensor, features: Sequence[Tensor | None]) -> Embedded:
        """Token embeddings with the image placeholders replaced. features: per row the features_GHWE of its frames, or None."""
        embeds = self.text_model.embed_tokens(ids_BT)
        slots_BT = ids_BT == self.image_id
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
