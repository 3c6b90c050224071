"""Qwen3-VL and Qwen3.5 against transformers: its processor (golden files), its forward pass, its `generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.qwen3_vl import Qwen3VL
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import model_type, open_backbone
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.models.renderer import FrameLayout
from minirlaif.models.tokens import pad_stack
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import FrameSize
from minirlaif.video.pixels import resized
from tests.fixtures import bases_qwen, tiny

GOLDEN = Path(__file__).parents[2] / "golden"
sys.path.insert(0, str(GOLDEN))
import make_qwen  # noqa: E402

KINDS = ("qwen3_vl", "qwen3_5")
PIXELS = np.load(GOLDEN / "qwen.npz")
IDS = json.loads((GOLDEN / "qwen.json").read_text())["ids"]
UNRESIZED = ("whole_wide", "whole_high")  # clips whose frames need no resizing: two pairs of 1 x 2, and of 2 x 1 vectors


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = getattr(bases_qwen, request.param)(tmp_path_factory.mktemp("base") / request.param)
    return made


def opened(folder: Path, **more: Any) -> Qwen3VL:
    return open_backbone(ModelSection(base=str(folder), device="cpu", lora_r=4, lora_alpha=8, **more))  # type: ignore[return-value]


@pytest.fixture
def base(folder: Path) -> Qwen3VL:
    return opened(folder)


def seen(base: Qwen3VL, name: str) -> Tensor:
    """Features of a golden clip, resized as the reader does."""
    frames = make_qwen.frames(name)
    size = base.frame_size(frames.shape[2], frames.shape[1], make_qwen.PIXELS)
    return base.encode_frames(np.stack([resized(frame, size) for frame in frames]))


def prompt(base: Qwen3VL, name: str, question: str = "what happens then?") -> tuple[int, ...]:
    features = seen(base, name)
    return base.renderer.prompt(FrameLayout(make_qwen.times(name), 10.0, features.shape[1] * features.shape[2]), question)


def encoded(base: Qwen3VL) -> list[EncodedPrompt]:
    """Prompts of different lengths: pairs of two shapes, and one without video."""
    with_video = [
        EncodedPrompt(prompt(base, name, text), seen(base, name))
        for name, text in zip(UNRESIZED, ("what then?", " left"), strict=True)
    ]
    return [*with_video, EncodedPrompt(base.renderer.prompt(None, "what moves?"))]


def rows(base: Qwen3VL) -> list[EncodedPair]:
    answers = (" the red square moves left", " circle", " then left")
    return [EncodedPair(a.ids, base.renderer.answer(text), a.features) for a, text in zip(encoded(base), answers, strict=True)]


def theirs(base: Qwen3VL, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """What transformers' model gets for the prompts of `encoded`, with pixels from the golden file."""
    return {
        "input_ids": ids_BT,
        "attention_mask": mask_BT.long(),
        "mm_token_type_ids": 2 * (ids_BT == base.model.config.video_token_id).int(),
        "pixel_values_videos": torch.cat([torch.tensor(PIXELS[name]) for name in UNRESIZED]),
        "video_grid_thw": torch.cat([torch.tensor(PIXELS[f"{name}/grid"]) for name in UNRESIZED]),
    }


def logits(base: Qwen3VL, ids_BT: Tensor, mask_BT: Tensor, features: list[Tensor | None]) -> Tensor:
    positions = base.positions(ids_BT, mask_BT, features)
    with torch.no_grad():
        return base.logits(base.hidden(base.embed(ids_BT, features), mask_BT, positions))


def batch(base: Qwen3VL, side: str) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    ids_BT, mask_BT = pad_stack([torch.tensor(row.prompt + row.answer) for row in rows(base)], base.pad_id, side)
    return ids_BT, mask_BT, [row.features for row in rows(base)]


@pytest.mark.parametrize("name", make_qwen.CLIPS)
def test_prompts_are_those_of_the_published_processor(base: Qwen3VL, folder: Path, name: str) -> None:
    assert list(prompt(base, name)) == IDS[f"{folder.name}/{name}"]


@pytest.mark.parametrize("name", make_qwen.CLIPS)
def test_pixels_are_those_of_the_published_processor(base: Qwen3VL, name: str) -> None:
    """Patches are exact. Theirs are resized by torchvision and ours by PIL; both filter alike (bicubic, antialiased) and round
    to whole levels, now and then the other way: one level of 255 is 2/255 after scaling to -1..1."""
    frames = make_qwen.frames(name)
    size = base.frame_size(frames.shape[2], frames.shape[1], make_qwen.PIXELS)
    ours = base.patches(torch.from_numpy(np.stack([resized(frame, size) for frame in frames])))
    assert [list(ours.shape[:3])] == PIXELS[f"{name}/grid"].tolist()
    gap = (ours.flatten(0, 2) - torch.tensor(PIXELS[name])).abs()
    if name in UNRESIZED:
        assert float(gap.max()) == 0.0
    else:
        assert float(gap.max()) < 2.01 / 255
        assert float((gap > 0).float().mean()) < 0.05


def test_frame_sizes(base: Qwen3VL) -> None:
    """By hand, for vectors of 32 x 32 pixels."""
    assert base.frame_size(256, 256, 65536) == FrameSize(256, 256)
    assert base.frame_size(1920, 1080, 65536) == FrameSize(192, 320)  # shrunk 5.625 times: 341 x 192
    assert base.frame_size(100, 70, 65536) == FrameSize(64, 96)  # nothing to shrink
    assert base.frame_size(20, 10, 65536) == FrameSize(32, 64)  # grown until the short side is one vector
    assert base.frame_size(640, 480, 1) == FrameSize(32, 32)


def test_frame_sizes_are_those_of_transformers(base: Qwen3VL) -> None:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    draw = np.random.default_rng(0)
    for width, height in draw.integers(8, 2000, (300, 2)).tolist():
        if max(width, height) < 200 * min(width, height):
            for limit in (4096, 65536, 768 * 1024):
                expected = smart_resize(16, height, width, 2, 32, 1, 16 * limit)
                assert base.frame_size(width, height, limit) == FrameSize(*expected)


def test_the_base_is_small_and_has_layers_without_deepstack(base: Qwen3VL, folder: Path) -> None:
    assert sum(p.numel() for p in base.model.parameters()) < 1_000_000
    levels = seen(base, "wide").shape[-1] // base.width - 1
    assert levels == {"qwen3_vl": 2, "qwen3_5": 0}[folder.name]
    assert len(base.text_model.layers) > levels


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_from_features_are_those_of_the_plain_forward_from_pixels(base: Qwen3VL, side: str) -> None:
    ids_BT, mask_BT, features = batch(base, side)
    with torch.no_grad():
        expected = base.model(**theirs(base, ids_BT, mask_BT)).logits
    ours = logits(base, ids_BT, mask_BT, features)
    torch.testing.assert_close(ours[mask_BT], expected[mask_BT], atol=1e-4, rtol=0)
    assert float(expected[mask_BT].std()) > 0.3  # the comparison means something
    other = logits(base, ids_BT, mask_BT, [None if f is None else f.roll(1, 0) for f in features])
    assert float((other - ours)[0].abs().max()) > 0.01  # and the frames are looked at


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_those_of_transformers(base: Qwen3VL, side: str) -> None:
    ids_BT, mask_BT, features = batch(base, side)
    named = theirs(base, ids_BT, mask_BT)
    del named["pixel_values_videos"]
    expected, _ = base.model.model.get_rope_index(**named)
    ours = base.positions(ids_BT, mask_BT, features)
    assert torch.equal(ours[:, mask_BT], expected[:, mask_BT])
    assert not torch.equal(ours[1], ours[2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_says_what_single_rows_say(base: Qwen3VL, side: str) -> None:
    ids_BT, mask_BT, features = batch(base, side)
    together = logits(base, ids_BT, mask_BT, features)
    for b, row in enumerate(rows(base)):
        ids_T = torch.tensor([row.prompt + row.answer])
        alone = logits(base, ids_T, torch.ones_like(ids_T).bool(), [row.features])
        torch.testing.assert_close(together[b, mask_BT[b]], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("push", [0.0, 1.1])
def test_greedy_is_what_transformers_generates(base: Qwen3VL, push: float) -> None:
    """With a push the end token comes up at different steps, so that rows of one batch stop apart."""
    end, prompts = base.renderer.end_id, encoded(base)
    ids_BT, mask_BT = pad_stack([torch.tensor(p.ids) for p in prompts], base.pad_id, "left")
    with torch.no_grad():
        expected = base.model.generate(
            **theirs(base, ids_BT, mask_BT), max_new_tokens=10, do_sample=False,
            suppress_tokens=base.disallowed_V.nonzero()[:, 0].tolist(),
            sequence_bias=[[[end], push]] if push else None,
        )[:, ids_BT.shape[1] :].tolist()  # fmt: skip
    if push:
        tiny.biased(base, {end: push})  # type: ignore[arg-type]
    ours = sample(base, prompts, temperature=0, max_new_tokens=10)
    for (answer,), tokens in zip(ours, expected, strict=True):
        assert list(answer.ids) == (tokens[: tokens.index(end) + 1] if end in tokens else tokens)
    kinds = {answer.ids for (answer,) in ours} if push == 0 else {len(answer.ids) for (answer,) in ours}
    assert len(kinds) > 1 + (push == 0)  # three prompts, three answers; with a push not all of one length


def test_several_answers_are_those_of_prompts_of_their_own(base: Qwen3VL) -> None:
    prompts = encoded(base)

    def drawn(chosen: list[EncodedPrompt], answers: int) -> list[Any]:
        groups = sample(base, chosen, answers, 1.0, 1.0, 8, torch.Generator().manual_seed(3))
        return [answer for group in groups for answer in group]

    shared, alone = drawn(prompts, 3), drawn([p for p in prompts for _ in range(3)], 1)
    assert [a.ids for a in shared] == [a.ids for a in alone]
    assert len({a.ids for a in shared}) == 9
    again, mask, _ = token_logprobs(
        base, [EncodedPair(prompts[n // 3].ids, a.ids, prompts[n // 3].features) for n, a in enumerate(shared)]
    )
    sampled = torch.tensor([chance for a in shared for chance in a.logprobs])
    torch.testing.assert_close(again[mask], sampled, atol=1e-4, rtol=0)  # step by step as all at once


@pytest.mark.parametrize("bits", ["none", "nf4"])
def test_adapters_learn_in_full_precision_and_in_four_bits(folder: Path, bits: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        base = opened(folder, quantization=bits, gradient_checkpointing=checkpointing)
        low = [name for name, module in base.model.named_modules() if type(module).__name__ == "Linear4bit"]
        roles = AdapterSet(base, ModelSection(lora_r=4, lora_alpha=8, gradient_checkpointing=checkpointing))
        roles.add("policy", seed=1)
        tiny.stir(roles, "policy", seed=2)
        with roles.training_as("policy"):
            assert base.text_model.training == checkpointing
            token_logprobs(base, rows(base))[0].sum().backward()
        gradients.append([p.grad for p in roles.parameters("policy")])
        assert all(".language_model.layers." in name for name in [*low, *roles.named("policy")])
        linear = {"qwen3_vl": 4 * 7, "qwen3_5": 3 * 5 + 4 + 4 * 3}[folder.name]
        assert (len(low), len(gradients[-1])) == (linear if bits == "nf4" else 0, 2 * linear)
        assert all(p.grad is None for name, p in base.model.named_parameters() if "lora_" not in name)
    for plain, saved in zip(*gradients, strict=True):
        assert plain is not None and float(plain.abs().max()) > 0
        torch.testing.assert_close(plain, saved)


def test_chosen_targets_are_taken_as_they_are(base: Qwen3VL) -> None:
    roles = AdapterSet(base, ModelSection(lora_targets=("up_proj",)))
    roles.add("policy", seed=1)
    assert len(roles.named("policy")) == 4 * 2


def test_four_bits_say_nearly_the_same_and_see_the_same(base: Qwen3VL, folder: Path) -> None:
    small = opened(folder, quantization="nf4")
    torch.testing.assert_close(seen(small, "wide"), seen(base, "wide"), atol=1e-4, rtol=0)
    with torch.no_grad():
        exact, mask, _ = token_logprobs(base, rows(base))
        near, _, _ = token_logprobs(small, rows(base))
    assert 0 < float((exact - near)[mask].abs().mean()) < 0.3
    assert float(torch.corrcoef(torch.stack([exact[mask], near[mask]]))[0, 1]) > 0.9


def test_pairs_change_places_as_a_whole(base: Qwen3VL) -> None:
    frames = make_qwen.frames("whole_wide")
    features = base.encode_frames(frames)
    swapped = base.encode_frames(frames[[2, 3, 0, 1]])
    assert not torch.equal(swapped, features)
    torch.testing.assert_close(base.reordered(features, [3, 1, 2, 0]), swapped, atol=1e-5, rtol=0)
    odd = base.encode_frames(make_qwen.frames("whole_high"))
    torch.testing.assert_close(base.reordered(odd, [2, 0, 1]), odd[[1, 0]], atol=0, rtol=0)


def test_blank_frames_take_the_place_of_a_clip(base: Qwen3VL) -> None:
    features = seen(base, "whole_high")
    grey = np.full((3, 64, 32, 3), 30, np.uint8)
    blank = base.encode_frames(grey)
    assert blank.shape == features.shape == (2, 2, 1, features.shape[-1])
    torch.testing.assert_close(blank[0], blank[1], atol=1e-5, rtol=0)
    row = rows(base)[1]
    with torch.no_grad():
        real, unseen = (token_logprobs(base, [EncodedPair(row.prompt, row.answer, f)])[0] for f in (features, blank))
    assert float((real - unseen).abs().max()) > 1e-3


def test_a_conversation_is_written_as_the_chat_template_does(base: Qwen3VL, folder: Path) -> None:
    turns = [Turn("what happens?", " the circle"), Turn("then?", "left")]
    rendered = base.renderer.conversation(None, turns)
    thought = "<think>\n\n</think>\n\n" if folder.name == "qwen3_5" else ""
    start, end = f"<|im_end|>\n<|im_start|>assistant\n{thought}", "<|im_end|>\n"
    expected = f"<|im_start|>user\nwhat happens?{start} the circle{end}<|im_start|>user\nthen?{start}left{end}"
    assert base.tokenizer.decode(list(rendered.ids), skip_special_tokens=False) == expected
    learned = [i for i, on in zip(rendered.ids, rendered.answer, strict=True) if on]
    assert base.tokenizer.decode(learned, skip_special_tokens=False) == " the circle<|im_end|>left<|im_end|>"


def test_marks_written_by_people_stay_letters_and_answers_hold_none(base: Qwen3VL) -> None:
    control = set(base.tokenizer.added_tokens_decoder)
    text = "".join(base.tokenizer.added_tokens_decoder[i].content for i in sorted(control))
    assert "<think>" in text and "<|video_pad|>" in text and "</tool_call>" in text
    assert not control & set(base.renderer.text_ids(text))
    assert {i for i in control if not base.disallowed_V[i]} == {base.renderer.end_id}
    assert bool(base.disallowed_V[len(base.tokenizer) :].all()) and base.vocabulary > len(base.tokenizer)
    with torch.no_grad():
        logprobs, mask, _ = token_logprobs(
            base, [EncodedPair(base.renderer.prompt(None, text), base.renderer.answer("<think>left</think>"))]
        )
    assert bool(logprobs[mask].isfinite().all())


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_5_moe", "qwen3_vl_moe", "qwen2_5_vl"])
def test_relatives_are_refused_with_the_known_families(tmp_path: Path, kind: str) -> None:
    """A text-only Qwen3.5 cannot see; the others are wired differently."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=f"'{kind}' is not supported.*Qwen3.5.*Qwen3-VL") as error:
        model_type(ModelSection(base=str(tmp_path)))
    assert "\n" not in str(error.value)
