"""SmolVLM2 as published against transformers' own processor (golden files) and model, on a tiny random base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import open_backbone
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.models.renderer import FrameLayout
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import FrameSize
from minirlaif.video.pixels import resized
from tests.fixtures.bases_smolvlm import TILE, clip, smolvlm

GOLDEN = Path(__file__).parents[2] / "golden"
CLIPS = {"wide": (3, 54, 100), "high": (2, 45, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smolvlm(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def base(folder: Path) -> SmolVLM:
    opened = open_backbone(ModelSection(base=str(folder), device="cpu", dtype="float32"))
    assert isinstance(opened, SmolVLM)
    return opened


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "smolvlm.json").read_text())
    return content


def pixels_of(base: SmolVLM, which: str) -> np.ndarray:
    frames = clip(*CLIPS[which])
    return np.stack([resized(frame, base.frame_size(frames.shape[2], frames.shape[1], 0)) for frame in frames])


@pytest.mark.parametrize("which", CLIPS)
def test_ids_are_those_of_the_published_processor(base: SmolVLM, golden: dict[str, Any], which: str) -> None:
    layout = FrameLayout(tuple(golden[f"{which} times"]), golden[f"{which} seconds"], 16)
    turns = [Turn(question, answer) for question, answer in golden["turns"]]
    assert list(base.renderer.prompt(layout, turns[0].question)) == golden[f"{which} prompt"]
    assert list(base.renderer.conversation(layout, turns).ids) == golden[f"{which} conversation"]


@pytest.mark.parametrize("which", CLIPS)
def test_pixels_are_those_of_the_published_processor(base: SmolVLM, which: str) -> None:
    """Theirs are torchvision's, ours PIL's: one Lanczos filter in whole numbers, of which 1 to 2 values in 100 round
    to the neighbouring level of 255. Stretching at once, stopping at the tile, or a bicubic filter are 8 levels off and more."""
    theirs = np.load(GOLDEN / "smolvlm.npz")[which]
    ours = pixels_of(base, which)
    off = np.abs(ours.astype(int) - theirs.astype(int))
    assert ours.shape == theirs.shape == (CLIPS[which][0], TILE, TILE, 3)
    assert off.max() <= 1 and (off > 0).mean() < 0.03


def test_the_way_to_the_tile_is_part_of_the_cache_key(base: SmolVLM) -> None:
    size = base.frame_size(100, 54, 0)
    assert (size.longest, size.filter) == (128, "lanczos")
    keys = {other.key for other in (size, FrameSize(32, 32), FrameSize(32, 32, longest=128), FrameSize(32, 32, filter="lanczos"))}
    assert len(keys) == 4 and FrameSize(32, 32).key == "32x32"


@pytest.mark.parametrize("which", CLIPS)
def test_logits_from_features_are_those_from_pixels(base: SmolVLM, golden: dict[str, Any], which: str) -> None:
    pixels = pixels_of(base, which)
    ids = torch.tensor([golden[f"{which} conversation"]])
    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2)[None] / 255 - 0.5) / 0.5
    mask = torch.ones_like(ids)
    with torch.no_grad():
        theirs = base.model(input_ids=ids, pixel_values=scaled, attention_mask=mask).logits
        ours = base.logits(base.hidden(base.embed(ids, [base.encode_frames(pixels)]), mask))
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def rows(base: SmolVLM) -> list[EncodedPair]:
    made = []
    for question, answer, which in (
        ("what happens?", "a red circle moves.", "wide"),
        ("how many?", "two", ""),
        ("and?", "no", "high"),
    ):
        features = base.encode_frames(pixels_of(base, which)) if which else None
        layout = None if features is None else FrameLayout(tuple(map(float, range(len(features)))), 9.0, 16)
        made.append(EncodedPair(base.renderer.prompt(layout, question), base.renderer.answer(answer), features))
    return made


def test_batched_and_padded_equals_single(base: SmolVLM) -> None:
    many = rows(base)
    with torch.no_grad():
        together, mask, _ = token_logprobs(base, many)
        for row, logprobs, counts in zip(many, together, mask, strict=True):
            torch.testing.assert_close(logprobs[counts], token_logprobs(base, [row])[0][0], atol=1e-4, rtol=0)


def test_greedy_answers_are_those_of_generate(base: SmolVLM) -> None:
    prompts = [EncodedPrompt(row.prompt, row.features) for row in rows(base)]
    for which, one, (answer,) in zip(
        ("wide", "", "high"), prompts, sample(base, prompts, temperature=0, max_new_tokens=12), strict=True
    ):
        seen = {}
        if which:
            seen["pixel_values"] = (torch.from_numpy(pixels_of(base, which)).permute(0, 3, 1, 2)[None] / 255 - 0.5) / 0.5
        ids = torch.tensor([one.ids])
        theirs = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **seen,
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=base.disallowed_V.nonzero()[:, 0].tolist(),
        )
        assert list(answer.ids) == theirs[0, len(one.ids) :].tolist()


def test_a_clip_of_another_number_of_vectors_than_places_is_refused(base: SmolVLM, golden: dict[str, Any]) -> None:
    """Vectors that are too many would be cut off without a word."""
    ids, features = torch.tensor([golden["wide prompt"]]), base.encode_frames(pixels_of(base, "wide"))
    for wrong in (torch.cat([features, features]), features[:2], None):
        with pytest.raises(ValueError, match=r"image placeholders \[48\] do not match"):
            base.embed(ids, [wrong])


def test_four_bits_are_in_the_language_model_alone(folder: Path) -> None:
    small = open_backbone(ModelSection(base=str(folder), device="cpu", quantization="nf4", dtype="float32"))
    low = {name for name, module in small.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(low) == 2 * 7 and all(name.startswith("model.text_model.layers.") for name in low)


@pytest.mark.parametrize(("text", "longest"), [(None, 128), ('{"size": {"longest_edge": 64}}', 64), ("{}", 128)])
def test_the_first_scaling_is_the_checkpoints_own(folder: Path, tmp_path: Path, text: str | None, longest: int) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "preprocessor_config.json").unlink()
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    opened = open_backbone(ModelSection(base=str(tmp_path), device="cpu"))
    assert opened.frame_size(100, 54, 0).longest == longest
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(UserError, match="preprocessor_config.json: no size"):
        open_backbone(ModelSection(base=str(tmp_path), device="cpu"))
