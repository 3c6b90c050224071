"""Adding a backbone family takes one file: this one adds InternVL, and everything that takes a family takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minirlaif import config
from minirlaif.cli.plan import plan_of
from minirlaif.config import ModelSection
from minirlaif.memory import planner
from minirlaif.memory.random_model import letters
from minirlaif.memory.shapes import shape_of
from minirlaif.models import backbones
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import open_backbone, read_config
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.models.renderer import FrameLayout, Layout
from minirlaif.session import VideoInput
from minirlaif.stages import sft
from minirlaif.training.checkpoint import Start
from minirlaif.types import Sample, Turn
from minirlaif.video.frame_sampling import FrameSize, Sizing
from tests.fixtures import tiny

# The family: all that a module in minirlaif/models/backbones/ would hold.


class InternVL(VisionLanguageModel):
    """A loaded InternVL; every frame is one square tile."""

    title = "InternVL"
    text_prefix = "model.language_model"
    vision_prefixes = ("model.vision_tower", "model.multi_modal_projector")
    layout = Layout(start="", user="<s>user\n", assistant="<s>assistant\n", answer="", end="</s>", intro="", image="<IMG>",
                    frame="Frame at {at:.1f}: <img>{image}</img>\n", outro="")  # fmt: skip
    text_per_group = 17

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, name: str) -> None:
        super().__init__(model, tokenizer, layout, name)
        vision = model.config.vision_config
        self.sizing = Sizing(round(vision.patch_size[0] / model.config.downsample_ratio), vision.image_size[0])

    @classmethod
    def feature_grid(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> tuple[int, int, int]:
        vision = config["vision_config"]
        side = round(vision["image_size"][0] // vision["patch_size"][0] * config["downsample_ratio"])
        return frames, side, side

    @classmethod
    def tower_patches(cls, config: Mapping[str, Any], frames: int, frame_pixels: int) -> int:
        return frames * (config["vision_config"]["image_size"][0] // config["vision_config"]["patch_size"][0]) ** 2

    @torch.no_grad()
    def encode_frames(self, pixels_FHW3: np.ndarray) -> Tensor:
        vectors = self.model.model.get_image_features(pixel_values=prepared(pixels_FHW3)).pooler_output
        return vectors.unflatten(1, (int(vectors.shape[1] ** 0.5), -1))


def prepared(pixels_FHW3: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels_FHW3).permute(0, 3, 1, 2) / 127.5 - 1


FAMILY = InternVL

# What the rest of the package makes of it.

SIZES = {
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": [28, 28],
        "patch_size": [7, 7], "initializer_range": 0.3,
    },
    "text_config": {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.2, "vocab_size": 320,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
QUESTION, ANSWER = "what moves?", "a red circle."
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
FRAMES = FrameLayout((0.5, 1.5), 2.0, 4)  # 28 / 7 = 4 patches a side, of which 2 x 2 become one vector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as save_pretrained writes it."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    path = tmp_path_factory.mktemp("internvl")
    tokenizer = letters(InternVL.layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image_id = tokenizer.convert_tokens_to_ids("<IMG>")
        InternVLForConditionalGeneration(InternVLConfig(**SIZES, image_token_id=image_id)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> VisionLanguageModel:
    monkeypatch.setitem(backbones.FAMILIES, "internvl", __name__)
    return open_backbone(ModelSection(base=str(folder), device="cpu"))


def whole_model(base: VisionLanguageModel, ids: tuple[int, ...]) -> Tensor:
    """logits_TV of transformers' own forward pass from pixels, with what may not be sampled at -inf."""
    with torch.no_grad():
        logits_TV = base.model(input_ids=torch.tensor([ids]), pixel_values=prepared(PIXELS)).logits[0]
    return logits_TV.masked_fill(base.disallowed_V, -torch.inf)


def test_it_opens_and_renders(base: VisionLanguageModel) -> None:
    assert type(base) is InternVL and not any(p.requires_grad for p in base.model.parameters())
    ids = base.renderer.prompt(FRAMES, QUESTION)
    image = "<img>" + "<IMG>" * 4 + "</img>"
    text = f"<s>user\nFrame at 0.5: {image}\nFrame at 1.5: {image}\n{QUESTION}</s>\n<s>assistant\n"
    assert base.tokenizer.decode(ids) == text
    assert base.frame_size(640, 360, 65536) == FrameSize(28, 28) and base.encode_frames(PIXELS).shape == (2, 2, 2, 32)


def test_it_samples_what_its_own_forward_pass_finds_likeliest(base: VisionLanguageModel) -> None:
    ids = prompt = base.renderer.prompt(FRAMES, QUESTION)
    for _ in range(6):
        ids += (int(whole_model(base, ids)[-1].argmax()),)
    ((answer,),) = sample(base, [EncodedPrompt(prompt, base.encode_frames(PIXELS))], temperature=0, max_new_tokens=6)
    assert answer.ids == ids[len(prompt) :][: len(answer.ids)] and len(answer.ids) > 1


def test_it_scores_as_its_own_forward_pass(base: VisionLanguageModel) -> None:
    prompt, answer = base.renderer.prompt(FRAMES, QUESTION), base.renderer.answer(ANSWER)
    logprobs_BR, _, _ = token_logprobs(base, [EncodedPair(prompt, answer, base.encode_frames(PIXELS))])
    theirs = whole_model(base, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(logprobs_BR[0], theirs[range(len(answer)), list(answer)], atol=1e-5, rtol=0)


def test_it_learns_in_the_sft_stage(base: VisionLanguageModel, tmp_path: Path) -> None:
    cfg = tiny.settings(f"model.base={base.name}", "sft.learning_rate=0.01")
    view = VideoInput(FRAMES.times, FRAMES.seconds, FrameSize(28, 28), base.encode_frames(PIXELS))
    session = tiny.TinySession(base, {"/clip": view}, cfg)  # type: ignore[arg-type]
    trainer = sft.build(session, cfg.sft, Start(0, tmp_path))
    rows = [Sample("1", "/clip", (Turn(QUESTION, ANSWER),))]
    prompt, answer = base.renderer.prompt(FRAMES, QUESTION), base.renderer.answer(ANSWER)
    expected = -whole_model(base, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), list(answer)].mean()
    before = sft.step(trainer, rows, 0.01)["loss"]
    assert before == pytest.approx(float(expected), abs=1e-5)  # a fresh adapter changes nothing
    assert sft.step(trainer, rows, 0.01)["loss"] < before


def test_it_is_planned(base: VisionLanguageModel) -> None:
    read = read_config(ModelSection(base=base.name))
    shape = shape_of(read, ModelSection.lora_targets)
    n = shape.numbers
    assert n.linear_weights + n.plain_weights + n.head_weights + n.vision_weights == base.model.num_parameters()
    assert n.lora_units == 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))  # q, o; k, v; gate, up, down; two layers
    assert shape.grid(2, 65536) == base.encode_frames(PIXELS).shape[:3] and shape.patches(2, 65536) == (2 * 16, 16, 24)
    text = len("<s>user\n") + len(QUESTION) + len("</s>\n<s>assistant\n") - 3 - 2 - 2  # special tokens are one token each
    assert shape.prompt_tokens(2, 65536, text) == len(base.renderer.prompt(FRAMES, QUESTION))
    stages = planner.estimate(plan_of(config.load(None, [f"model.base={base.name}"]), gpu=True))
    assert all(sum(lines.values()) > 0 for lines in stages.values())
