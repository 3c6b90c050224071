"""llama.cpp against transformers, on the shipped tiny base: the same ids, the same logits, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from minirlaif.errors import UserError
from minirlaif.gguf.runtime.bindings import EncodedFrames
from minirlaif.gguf.runtime.llama import LlamaSession, length
from minirlaif.models.backbones import smolvlm
from minirlaif.models.loading import TINY
from minirlaif.models.renderer import FrameLayout, Renderer
from tests.fixtures import gguf_files, tiny

TEXT_GATE, FRAMES_GATE = 1e-4, 5e-3  # float32: another order of additions; llama.cpp's GELU is a table
QUESTIONS = ("what happens first?", "how many things happen in this video?")
LAYOUT = FrameLayout((0.5, 1.5, 2.5, 3.5), 4.0, 1)
TEXTS = (
    "What happens first?",
    "two  spaces\n\nand\r\nbreaks\n",
    "12345 6.7 don't we'll I'm",
    "éàü ß 日本語 😀 \u200b",
    "<image> <|im_start|>User: x<end_of_utterance>",
    " lead, \t tab, trail ",
    "nul\x00nul",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.tiny(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def base() -> smolvlm.SmolVLM:
    opened = smolvlm.SmolVLM.load(str(TINY), "main", torch.float32, None, torch.device("cpu"))
    opened.model.requires_grad_(False)
    return opened


@pytest.fixture
def session(folder: Path) -> Iterator[LlamaSession]:
    with closing(LlamaSession(folder / "text.gguf", folder / "mmproj.gguf", 512, kv="f32")) as opened:
        yield opened


def frames(seed: int, count: int = 4) -> np.ndarray:
    return tiny.pixels(count, seed)


def theirs(base: smolvlm.SmolVLM, ids: Sequence[int], pixels: np.ndarray | None = None) -> np.ndarray:
    """transformers' logits of what follows."""
    features = [None if pixels is None else base.encode_frames(pixels)]
    ids_BT = torch.tensor([list(ids)])
    mask_BT = torch.ones_like(ids_BT)
    hidden = base.hidden(base.embed(ids_BT, features), mask_BT, base.positions(ids_BT, mask_BT, features))
    return base.logits(hidden[0, -1]).numpy()


def items(session: LlamaSession, ids: Sequence[int], image: int, frames: Sequence[EncodedFrames]) -> list[int | EncodedFrames]:
    """Ids with one group of frames for each placeholder: the tiny base makes one vector of a frame."""
    groups = iter(frames)
    return [next(groups) if token == image else token for token in ids]


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def test_ids_are_those_of_transformers(session: LlamaSession, base: smolvlm.SmolVLM) -> None:
    ours = Renderer(session.vocabulary, base.renderer.layout)
    for text in TEXTS:
        assert ours.text_ids(text) == base.renderer.text_ids(text), text
        assert ours.prompt(LAYOUT, text) == base.renderer.prompt(LAYOUT, text)
        assert ours.decode(ours.text_ids(text)) == text.strip()
    assert (ours.image_id, ours.end_id) == (base.renderer.image_id, base.renderer.end_id)
    special = set(session.vocabulary.added_tokens_decoder)
    assert special - {ours.end_id} == set(torch.nonzero(base.disallowed_V).flatten().tolist())
    assert not special & set(ours.text_ids(TEXTS[4]))


def test_logits_are_those_of_transformers(session: LlamaSession, base: smolvlm.SmolVLM) -> None:
    render = base.renderer
    for question in QUESTIONS:
        ids = render.prompt(None, question)
        assert gap(session.prefill(ids), theirs(base, ids)) < TEXT_GATE
        layout = render.prompt(LAYOUT, question)
        actual = {}
        for seed in (1, 2):
            encoded = [session.encode(frame[None]) for frame in frames(seed)]
            actual[seed] = session.prefill(items(session, layout, render.image_id, encoded))
            assert gap(actual[seed], theirs(base, layout, frames(seed))) < FRAMES_GATE
        assert gap(actual[1], actual[2]) > 10 * FRAMES_GATE  # it looks


def test_a_second_question_computes_only_what_is_new(session: LlamaSession, base: smolvlm.SmolVLM) -> None:
    render = base.renderer
    encoded = [session.encode(frame[None]) for frame in frames(1)]
    one, two = (items(session, render.prompt(LAYOUT, question), render.image_id, encoded) for question in QUESTIONS)
    alike = next(number for number, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert alike > 6  # <|im_start|>, "User", ":", four frames
    first = session.prefill(one)
    assert session.counters == {"encodes": 4, "prefilled_tokens": len(one), "reused_tokens": 0, "decoded_tokens": 0}
    second = session.prefill(two)
    assert session.counters["prefilled_tokens"] == len(one) + len(two) - alike
    assert session.counters["reused_tokens"] == alike
    assert gap(second, theirs(base, render.prompt(LAYOUT, QUESTIONS[1]), frames(1))) < FRAMES_GATE
    again = session.prefill(one)  # the same prompt once more, to its last token
    assert gap(again, first) < 1e-5
    assert gap(session.prefill(one), first) < 1e-5 and session.counters["reused_tokens"] == 2 * alike + len(one) - 1


def test_tokens_one_by_one_are_tokens_at_once(session: LlamaSession, base: smolvlm.SmolVLM) -> None:
    ids = base.renderer.prompt(None, QUESTIONS[0])
    answer = base.renderer.text_ids(" a red circle moves left.")
    session.prefill(ids)
    for number, token in enumerate(answer, start=1):
        assert gap(session.step(token), theirs(base, [*ids, *answer[:number]])) < TEXT_GATE
    assert session.counters["decoded_tokens"] == len(answer)
    longer = [*ids, *answer, *base.renderer.text_ids(" second")]
    session.prefill(longer)  # what was sampled is in the memory
    assert session.counters["reused_tokens"] == len(ids) + len(answer)


def test_a_long_prompt_is_read_in_parts(folder: Path, base: smolvlm.SmolVLM) -> None:
    ids = base.renderer.prompt(None, "red circle moves left " * 300)
    assert len(ids) > 1024
    with closing(LlamaSession(folder / "text.gguf", folder / "mmproj.gguf", len(ids), kv="f32")) as session:
        assert gap(session.prefill(ids), theirs(base, ids)) < TEXT_GATE
        with pytest.raises(UserError, match="filled its context"):
            session.step(ids[0])
        with pytest.raises(UserError, match="do not fit a context"):
            session.prefill([*ids, ids[0]])
        with pytest.raises(UserError, match="the model takes 2048"):
            session.resize(2049)
        session.resize(len(ids) + 1)
        assert gap(session.prefill([*ids, ids[-1]]), theirs(base, [*ids, ids[-1]])) < TEXT_GATE


def test_adapters_add_their_share(session: LlamaSession, base: smolvlm.SmolVLM, tmp_path: Path) -> None:
    """W + alpha / r * scale * B A, by hand in transformers."""
    random = np.random.default_rng(0)
    a, b = (0.2 * random.standard_normal(shape).astype(np.float32) for shape in ((2, 128), (128, 2)))
    path = gguf_files.adapter(tmp_path / "a.gguf", {"blk.1.attn_v": (a, b)}, alpha=4)
    ids = base.renderer.prompt(None, QUESTIONS[0])
    plain = session.prefill(ids)
    weight = base.text_model.layers[1].self_attn.v_proj.weight
    for scale in (1.0, 0.5):
        share = torch.from_numpy(4 / 2 * scale * b @ a)
        weight.data += share
        expected = theirs(base, ids)
        weight.data -= share
        session.adapt({path: scale})
        assert gap(session.prefill(ids), expected) < TEXT_GATE < gap(expected, plain)
    session.resize(100)  # a new memory keeps the adapter
    assert gap(session.prefill(ids), expected) < TEXT_GATE
    session.adapt({path: 0.0})
    assert gap(session.prefill(ids), plain) < 1e-6
    with pytest.raises(UserError, match="no such file"):
        session.adapt({tmp_path / "none.gguf": 1.0})
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    with pytest.raises(UserError, match="bad.gguf: not an adapter of this model"):
        session.adapt({tmp_path / "bad.gguf": 1.0})


def test_frames_that_are_dropped_leave_the_memory(session: LlamaSession, base: smolvlm.SmolVLM) -> None:
    render = base.renderer
    encoded = [session.encode(frame[None]) for frame in frames(1)]
    prompt = items(session, render.prompt(LAYOUT, QUESTIONS[0]), render.image_id, encoded)
    assert length(prompt) == len(prompt)
    first = session.prefill(prompt)
    session.drop(encoded[-1])
    prompt[prompt.index(encoded[-1])] = session.encode(frames(1)[-1:])
    assert gap(session.prefill(prompt), first) < 1e-5
    assert session.counters["reused_tokens"] == 0
