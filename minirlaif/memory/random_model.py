"""Stand-ins for measuring: a model of random weights, a tokenizer of letters and clips that were never decoded. Nothing is
downloaded and no file is read, yet every forward and backward pass is the one of a real run.

Letters: G groups of frames, H x W vectors per group, E numbers per vector.
"""

import re
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from minirlaif.config import ModelSection, ReferenceSection, RewardSection, VideoSection
from minirlaif.memory.shapes import shape_of
from minirlaif.models.backbones import family_of
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.feature_cache import offloaded_vision
from minirlaif.models.loading import critic_model, empty_model, pick_device, pick_dtype, quantization_config, read_config
from minirlaif.models.renderer import Layout
from minirlaif.session import ModelSession, PPOModels, VideoInput
from minirlaif.video.frame_sampling import FrameSize

SPREAD = 0.02  # deviation of random weights: small enough that nothing overflows


class RandomSession(ModelSession):
    """A session whose clips are all alike: random vectors in the number that the family gives a clip of the config's frames.
    model, video: the settings of the run that is measured; config: config.json of `model.base`."""

    def __init__(self, model: ModelSection, video: VideoSection, config: Mapping[str, Any]) -> None:
        nothing: Any = SimpleNamespace(counters={})
        super().__init__(model, video, random_backbone(model, config), nothing)
        self._shape = shape_of(config, model.lora_targets)
        self._random_input = cache(self._make_input)
        offloaded_vision(self.backbone)

    def video_input(self, video: str) -> VideoInput:
        """The same random features for every clip; on the CPU, as the feature cache gives them."""
        return self._random_input(self.video.frames)

    def segment_inputs(self, video: str) -> list[tuple[tuple[float, float], VideoInput]]:
        """As many segments as a clip may have."""
        return [((i + 0.0, i + 1.0), self._random_input(self.video.segment_frames)) for i in range(self.video.max_segments)]

    def _make_input(self, frames: int) -> VideoInput:
        groups, height, width = self._shape.grid(frames, self.video.frame_pixels)
        generator = torch.Generator().manual_seed(frames)
        vectors = torch.randn(groups, height, width, self._shape.feature_width, generator=generator)
        features, times = SPREAD * vectors.to(self.backbone.dtype), tuple(i + 0.5 for i in range(frames))
        return VideoInput(times, float(frames), FrameSize(32, 32), features)


def random_models(
    model: ModelSection, video: VideoSection, config: Mapping[str, Any], reference: ReferenceSection, reward: RewardSection
) -> PPOModels:
    """As `open_ppo_models`: a reference and a critic of their own where the settings say so."""

    def random_session(section: ModelSection, config: Mapping[str, Any], rest: str) -> RandomSession:
        session = RandomSession(section, video, config)
        if rest == "cpu":
            session.adapters.enable_offload("base")
        return session

    policy = RandomSession(model, video, config)
    frozen = random_session(model, config, reference.rest) if reference.kind == "model" else policy
    section = critic_model(model, reward)
    critic = random_session(section, read_config(section), reward.rest) if reward.base else policy
    return PPOModels(policy, frozen, critic, reference.rest == "cpu")


def random_backbone(section: ModelSection, config: Mapping[str, Any]) -> VisionLanguageModel:
    """A backbone of the family that `config` (a config.json) belongs to, frozen, with random weights."""
    family = family_of(str(config["model_type"]))
    device = pick_device(section.device)
    dtype = pick_dtype(section, device)
    model = random_model(config, dtype, quantization_config(section, dtype, family.skip_quantization()), device)
    return family(model, letters(family.layout), family.layout, "stand-in")


def random_model(config: Mapping[str, Any], dtype: torch.dtype, quantization: Any, device: torch.device) -> Any:
    """The model of a config.json with random weights, made weight by weight on the device: the model in full precision never
    exists, so that what fits quantised can be built quantised. quantization: a transformers quantisation config (NF4) or None."""
    model = empty_model(config, dtype)
    if quantization is not None:
        from transformers.integrations import replace_with_bnb_linear

        model = replace_with_bnb_linear(model, quantization.llm_int8_skip_modules, quantization)
        model.is_loaded_in_4bit = True  # PEFT asks for this
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, nn.Parameter] = {}  # tied weights are made once
    for module in list(model.modules()):
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # as `pretrained.load_weights`, for the same reason
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                values = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(0, SPREAD, generator=generator)
                made[id(parameter)] = _filled(parameter, values, device)
            setattr(module, name, made[id(parameter)])
    model.to(device)  # the buffers
    model.requires_grad_(False)
    return model.eval()


def _filled(parameter: nn.Parameter, values: torch.Tensor, device: torch.device) -> nn.Parameter:
    """A parameter of the same kind that holds values; a 4-bit one quantises them."""
    if type(parameter).__name__ != "Params4bit":
        return nn.Parameter(values, requires_grad=False)
    settings = {name: parameter.__dict__[name] for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")}
    made: Any = type(parameter)  # bitsandbytes' own class
    quantised: nn.Parameter = made(values, requires_grad=False, **settings, module=parameter.__dict__.get("module")).to(device)
    return quantised


def letters(layout: Layout) -> Any:
    """A tokenizer in which every letter is one token and every special token of the layout is known."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    special = re.findall(r"<[^<>]+>", " ".join(str(value) for value in layout.as_dict().values()))
    engine.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(special)])
    return PreTrainedTokenizerFast(tokenizer_object=engine, eos_token=layout.end, pad_token=layout.end)
