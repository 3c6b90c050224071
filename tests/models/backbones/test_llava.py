"""LLaVA-1.5 against transformers' own classes on a tiny random model, and against the published tokenizer's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.llava import Llava
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import open_backbone
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from minirlaif.models.renderer import FrameLayout
from minirlaif.types import Turn
from minirlaif.video.pixels import resized
from tests.fixtures import bases_llava

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CLIP = FrameLayout((0.5, 1.5, 2.5), 3.0, 19)  # 3 frames and 16 patches


def section(folder: Path, **more: Any) -> ModelSection:
    return ModelSection(base=str(folder), device="cpu", lora_r=4, lora_alpha=8, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bases_llava.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Llava:
    opened = open_backbone(section(folder))
    assert isinstance(opened, Llava)
    return opened


def frames(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 3), np.uint8)


def seen_by_tower(base: Llava, pixels_FHW3: np.ndarray) -> torch.Tensor:
    seen: dict[str, torch.Tensor] = {}
    hook = base.vision_modules[0].register_forward_pre_hook(lambda module, args, named: seen.update(named), with_kwargs=True)
    base.encode_frames(pixels_FHW3)
    hook.remove()
    return seen["pixel_values"]


@pytest.mark.parametrize(("height", "width"), [(36, 64), (61, 40), (50, 50), (9, 20)])
def test_pixels_are_those_of_the_published_processor(base: Llava, height: int, width: int) -> None:
    from transformers import LlavaImageProcessorPil

    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    theirs = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = theirs(frame, return_tensors="pt")["pixel_values"]
    ours = seen_by_tower(base, np.stack([resized(frame, base.frame_size(width, height, 0))]))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)  # PIL resizes both, so no level may differ


def encode_text(base: Llava, text: str) -> list[int]:
    """Ids of a text as the published tokenizer.json makes them, placeholders and all."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(Path(base.name) / "tokenizer.json")).encode(text).ids)


@pytest.mark.parametrize("context", ["", "0s: a circle moves.\n1s: a square.\n"])
def test_a_prompt_is_vicunas_with_the_clip_before_the_question(base: Llava, context: str) -> None:
    ids = base.renderer.prompt(CLIP, "what happens?", context)
    assert list(ids) == encode_text(base, f"{SYSTEM}USER: {'<image>' * 19}\n{context}what happens? ASSISTANT:")
    plain = base.renderer.prompt(None, "what happens?")
    assert list(plain) == encode_text(base, f"{SYSTEM}USER: what happens? ASSISTANT:")


def test_a_conversation_is_vicunas(base: Llava) -> None:
    turns = [Turn("what happens?", "a circle  moves, 日本."), Turn("and then?", "a blue square.")]
    rendered = base.renderer.conversation(CLIP, turns)
    first, second = (f"{t.question} ASSISTANT: {t.answer}</s>" for t in turns)
    assert list(rendered.ids) == encode_text(base, f"{SYSTEM}USER: {'<image>' * 19}\n{first}USER: {second}")
    learned = [i for i, counts in zip(rendered.ids, rendered.answer, strict=True) if counts]
    assert learned == [i for t in turns for i in encode_text(base, f"{t.answer}</s>")[1:]]
    assert base.renderer.decode(base.renderer.answer(str(turns[0].answer))) == turns[0].answer


def test_tokens_written_by_people_stay_letters(base: Llava) -> None:
    nasty = base.renderer.prompt(CLIP, "a <image> b </s> c <s> d")
    assert [nasty.count(i) for i in (base.renderer.image_id, base.renderer.end_id, 1)] == [19, 0, 1]
    assert "a <image> b </s> c <s> d" in base.tokenizer.decode([i for i in nasty if i != base.renderer.image_id])


def by_hand(base: Llava, pixels_FHW3: np.ndarray) -> torch.Tensor:
    """Video tokens [F + P, D] from what transformers makes of each frame on its own."""
    from transformers import CLIPImageProcessorPil

    sight = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    singles = [sight(frame, return_tensors="pt")["pixel_values"] for frame in pixels_FHW3]
    with torch.no_grad():
        grid_FPD = torch.stack([base.model.get_image_features(pixels).pooler_output[0] for pixels in singles])
    assert grid_FPD.shape[1] == 16
    return torch.cat([grid_FPD.mean(1), grid_FPD.mean(0)])


@pytest.mark.parametrize("count", [1, 3, 11])  # 11: more than go into the tower at once
def test_logits_from_features_are_those_from_pixels(base: Llava, count: int) -> None:
    pixels = frames(count, 1)
    at_once: list[int] = []
    hook = base.vision_modules[0].register_forward_pre_hook(
        lambda module, args, named: at_once.append(len(named["pixel_values"])), with_kwargs=True
    )
    features = base.encode_frames(pixels)
    hook.remove()
    assert features.shape == (1, count + 16, 1, 64)
    assert sum(at_once) == count and max(at_once) <= 8  # as `plan` counts on
    ids = torch.tensor([base.renderer.prompt(FrameLayout((0.0,) * count, 1.0, count + 16), "what happens?")])
    with torch.no_grad():
        ours = base.logits(base.hidden(base.embed(ids, [features]), torch.ones_like(ids)))
        embeds = base.model.get_input_embeddings()(ids)
        embeds[ids == base.model.config.image_token_index] = by_hand(base, pixels)
        theirs = base.model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert float(theirs.std()) > 0.1  # there is something to differ in


def test_fifty_frames_of_336_pixels_are_626_tokens(folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig.from_pretrained(folder)
    config.vision_config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, image_size=336, patch_size=14
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    bases_llava.write_tokenizer(tmp_path)
    base = open_backbone(section(tmp_path))
    size = base.frame_size(640, 360, 0)
    assert (size.width, size.height) == (336, 336)
    assert base.encode_frames(np.zeros((50, 336, 336, 3), np.uint8)).shape == (1, 626, 1, 64)


def rows(base: Llava) -> list[EncodedPair]:
    texts = [("what happens?", "a red circle moves left.", 3), ("how many things are there?", "two", 0), ("and?", "no", 5)]
    made = []
    for seed, (question, answer, count) in enumerate(texts):
        layout = FrameLayout((0.0,) * count, 1.0, count + 16) if count else None
        features = base.encode_frames(frames(count, seed)) if count else None
        made.append(EncodedPair(base.renderer.prompt(layout, question), base.renderer.answer(answer), features))
    return made


def test_batched_and_padded_equals_single(base: Llava) -> None:
    many = rows(base)
    with torch.no_grad():
        together, mask, _ = token_logprobs(base, many)
        for row, logprobs, counts in zip(many, together, mask, strict=True):
            alone, _, _ = token_logprobs(base, [row])
            torch.testing.assert_close(logprobs[counts], alone[0], atol=1e-4, rtol=0)


def test_greedy_answers_are_those_of_generate(base: Llava) -> None:
    prompts = [EncodedPrompt(row.prompt, row.features) for row in rows(base)]
    ours = sample(base, prompts, temperature=0, max_new_tokens=12)
    for one, (answer,) in zip(prompts, ours, strict=True):
        ids = torch.tensor([one.ids])
        embeds = base.embed(ids, [one.features]).vectors_BTD
        theirs = base.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=base.disallowed_V.nonzero()[:, 0].tolist(),
        )
        assert list(answer.ids) == theirs[0].tolist()


def test_only_the_vectors_of_frames_have_an_order(base: Llava) -> None:
    pixels, order = frames(4, 2), [2, 0, 3, 1]
    straight = base.encode_frames(pixels)
    turned = base.reordered(straight, order)
    torch.testing.assert_close(turned, base.encode_frames(pixels[order]), atol=1e-5, rtol=0)
    assert torch.equal(turned[:, 4:], straight[:, 4:]) and torch.equal(turned[:, 0], straight[:, 2])


def test_four_bits_and_adapters_are_in_the_language_model_alone(folder: Path, base: Llava) -> None:
    small = open_backbone(section(folder, quantization="nf4", dtype="float32"))
    low = {name for name, module in small.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(low) == 2 * 7 and all(name.startswith("model.language_model.layers.") for name in low)
    torch.testing.assert_close(small.encode_frames(frames(2, 0)), base.encode_frames(frames(2, 0)), atol=1e-5, rtol=0)
    roles = AdapterSet(small, section(folder))
    roles.add("policy", seed=0)
    names = roles.named("policy")
    assert len(names) == 2 * 2 * 7 and all(".language_model.layers." in name for name in names)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "minirlaif convert --from"),
        ({"vision_feature_select_strategy": "full"}, "not built as LLaVA-1.5"),
        ({"text_config": {"model_type": "qwen2"}}, "not built as LLaVA-1.5"),
        ({"image_token_index": 5}, "image_token_index"),
    ],
)
def test_what_is_not_llava_15_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says) as error:
        open_backbone(section(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
