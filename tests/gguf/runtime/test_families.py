"""Qwen's families in llama.cpp: frames in pairs, positions on three axes, and states that cannot be rewound.

Their files come from llama.cpp's converter, which takes ten seconds for each, so this is part of the measured tier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from minirlaif.gguf.export.converter import Job, convert
from minirlaif.gguf.runtime.bindings import EncodedFrames, group_frames, insert_frames
from minirlaif.gguf.runtime.llama import LlamaSession, length
from minirlaif.models.backbones import family_of
from minirlaif.models.renderer import FrameLayout, Renderer
from tests.fixtures import bases_qwen

pytestmark = pytest.mark.learning

FRAMES_GATE = 5e-3  # float32, through the vision tower
MAKERS: dict[str, Any] = {"qwen3_vl": bases_qwen.qwen3_vl, "qwen3_5": bases_qwen.qwen3_5}
SIGHT = """{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "Qwen2VLImageProcessor",
"merge_size": 2, "patch_size": 16, "temporal_patch_size": 2, "size": {"shortest_edge": 1024, "longest_edge": 1048576}}"""
QUESTIONS = ("what happens then?", "the red square moves left, what happens with the circle?")


@dataclass(frozen=True)
class Comparison:
    """One model in both programs."""

    base: Any
    session: LlamaSession

    def theirs(self, ids: tuple[int, ...], pixels: np.ndarray | None = None) -> np.ndarray:
        features = [None if pixels is None else self.base.encode_frames(pixels)]
        ids_BT = torch.tensor([ids])
        mask_BT = torch.ones_like(ids_BT)
        positions = self.base.positions(ids_BT, mask_BT, features)
        return self.base.logits(self.base.hidden(self.base.embed(ids_BT, features), mask_BT, positions)[0, -1]).numpy()


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    family = family_of(request.param)
    assert family.gguf is not None
    folder = tmp_path_factory.mktemp(request.param)
    made = MAKERS[request.param](folder / "hf")
    base = family.load(str(made), "main", torch.float32, None, torch.device("cpu"))
    base.model.requires_grad_(False)
    (made / "preprocessor_config.json").write_text(SIGHT)
    script, text, projector = "convert_hf_to_gguf.py", folder / "text.gguf", folder / "mmproj.gguf"
    jobs = [
        Job(script, (str(made), "--outfile", str(text), "--outtype", "f32", *family.gguf.converter_flags)),
        Job(script, (str(made), "--outfile", str(projector), "--outtype", "f32", "--mmproj")),
    ]
    probes = [(question, base.renderer.text_ids(question)) for question in QUESTIONS]
    control = [token.content for token in base.tokenizer.added_tokens_decoder.values()]
    convert(family.gguf.pre_tokenizers, jobs, probes, control)
    with closing(LlamaSession(text, projector, 1024, kv="f32")) as session:
        yield Comparison(base, session)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def clip(seed: int, count: int, height: int, width: int) -> np.ndarray:
    squares = np.random.default_rng(seed).integers(0, 256, (count, height // 16, width // 16, 3), np.uint8)
    return np.kron(squares, np.ones((1, 16, 16, 1), np.uint8))


def test_added_tokens_never_come_from_text(pair: Comparison) -> None:
    ours = Renderer(pair.session.vocabulary, pair.base.renderer.layout)
    for text in ("<think>x</think>", "<|im_end|>\n<tool_call>", "1 two\n\n  three 3.5 \u00e9", *QUESTIONS):
        assert ours.text_ids(text) == pair.base.renderer.text_ids(text)
        assert not set(ours.text_ids(text)) & set(pair.session.vocabulary.added_tokens_decoder)
    banned = {*pair.session.vocabulary.added_tokens_decoder, *pair.session.vocabulary.unused} - {ours.end_id}
    assert banned == set(torch.nonzero(pair.base.disallowed_V).flatten().tolist())


@pytest.mark.parametrize(("count", "height", "width"), [(4, 96, 160), (5, 160, 96), (2, 32, 64)])
def test_a_clip_and_what_follows_it(pair: Comparison, count: int, height: int, width: int) -> None:
    """Frames in pairs, wide, high and small; an odd one is seen twice; then a second question, answered token by token, and the
    first one again."""
    render, session = pair.base.renderer, pair.session
    times = tuple(number + 0.5 for number in range(count))
    actual = {}
    for seed in (1, 2):
        pixels = clip(seed, count, height, width)
        frames = [session.encode(group) for group in group_frames(pixels, 2)]
        layout = FrameLayout(times, float(count), height * width // 1024)
        assert [group.vectors for group in frames] == [layout.vectors] * len(frames)
        prompts = [render.prompt(layout, question) for question in QUESTIONS]
        prefix = len(insert_frames(render.prefix(layout), render.image_id, frames))

        def ours(ids: tuple[int, ...], frames: list[EncodedFrames] = frames, prefix: int = prefix) -> np.ndarray:
            return session.prefill(insert_frames(ids, render.image_id, frames), prefix=prefix)

        session.prefill(prompts[0][:1])  # forget what another clip left behind
        before = dict(session.counters)
        actual[seed] = ours(prompts[0])
        assert gap(actual[seed], pair.theirs(prompts[0], pixels)) < FRAMES_GATE
        kept = dict(session.counters)
        assert kept["reused_tokens"] - before["reused_tokens"] <= 1
        assert gap(ours(prompts[1]), pair.theirs(prompts[1], pixels)) < FRAMES_GATE
        assert session.counters["reused_tokens"] - kept["reused_tokens"] >= length(
            insert_frames(render.prefix(layout), render.image_id, frames)
        )
        word = render.text_ids("red")[0]
        assert gap(session.step(word), pair.theirs((*prompts[1], word), pixels)) < FRAMES_GATE
        assert gap(ours(prompts[0]), actual[seed]) < 1e-4  # rewound
        for group in frames:
            session.drop(group)
    assert gap(actual[1], actual[2]) > 10 * FRAMES_GATE
