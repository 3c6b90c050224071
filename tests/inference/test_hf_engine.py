"""The engine over a run: the answers of `sample`, looks and prefixes counted, the run's own reward model and judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.feedback.readout import judge_of_run
from minirlaif.inference import hf_engine
from minirlaif.inference.engine import SamplingParams
from minirlaif.inference.hf_engine import HfEngine
from minirlaif.models.generation import sample, stream
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import open_backbone
from minirlaif.models.logprobs import reward_scores
from minirlaif.models.prefix_cache import PrefixCache
from minirlaif.models.renderer import pieces
from minirlaif.runs.run import Run
from minirlaif.types import Turn
from tests.fixtures import bases_llava, bases_qwen, bases_smolvlm, chat_run, tiny

GREEDY = SamplingParams(0.0, 1.0, 24, 0)
QUESTIONS = ("what happens first?", "describe the video.", "which way does the red circle go?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    chat_run.world_clip(folder / "a.mp4")
    chat_run.world_clip(folder / "b.mp4", chat_run.TWO[::-1], seed=1)
    chat_run.run_of(folder / "run")
    return folder


@pytest.fixture
def engine(folder: Path) -> Iterator[HfEngine]:
    made = HfEngine(Run(folder / "run"), judge_of_run)
    yield made
    made.close()


def answer_text(
    engine: HfEngine, clip: Path, question: str, options: SamplingParams = GREEDY, model: str = "", turns: tuple = ()
) -> str:
    return "".join(engine.stream(engine.load_clip(str(clip)), turns, question, options, model))


def test_streamed_answers_are_those_of_sample(engine: HfEngine, folder: Path) -> None:
    session, clip = engine._session, str(folder / "a.mp4")
    video_input = session.video_input(clip)
    texts = {}
    for model in ("rlaif", "sft", "base"):
        for question in QUESTIONS:  # the second and third start from the prefix cache
            for temperature in (0.0, 1.0):
                options = SamplingParams(temperature, 0.9, 24, 7)
                with session.adapters.inference_as(model):
                    source = torch.Generator().manual_seed(7)
                    prompt = [session.encode_prompt(video_input, question)]
                    ((answer,),) = sample(session.backbone, prompt, 1, temperature, 0.9, 24, source)
                texts[model, question, temperature] = answer_text(engine, folder / "a.mp4", question, options, model)
                assert texts[model, question, temperature] == session.backbone.renderer.decode(answer.ids)
    assert len({texts[model, question, 0.0] for model in engine.models for question in QUESTIONS}) > len(QUESTIONS)
    assert engine.counters["reused_tokens"] > 0


def test_a_conversation_is_the_one_that_training_renders(engine: HfEngine, folder: Path) -> None:
    """With turns, the prompt is the rendered conversation up to the last answer."""
    renderer, video_input = engine._session.backbone.renderer, engine._session.video_input(str(folder / "a.mp4"))
    turns = (Turn("what happens first?", "a red circle moves left."), Turn("how many things happen?", "two things happen."))
    prompt = renderer.prompt(video_input.frame_layout, turns[1].question, turns=turns[:1])
    full = renderer.conversation(video_input.frame_layout, turns)
    last = max(place for place, answer in enumerate(full.answer) if not answer and full.answer[place + 1 : place + 2] == (True,))
    assert prompt == full.ids[: last + 1]
    assert answer_text(engine, folder / "a.mp4", turns[1].question, turns=turns[:1])


def test_a_clip_is_looked_at_once_and_its_frames_are_read_once(engine: HfEngine, folder: Path) -> None:
    clip = folder / "a.mp4"
    answer_text(engine, clip, QUESTIONS[0])
    first = dict(engine.counters)
    prompt = engine._session.backbone.renderer.prompt(engine._session.video_input(str(clip)).frame_layout, QUESTIONS[0])
    assert first == {"decodes": 1, "encodes": 1, "prefilled_tokens": len(prompt), "reused_tokens": 0}
    answer_text(engine, clip, QUESTIONS[1])
    second = dict(engine.counters)
    assert (second["decodes"], second["encodes"]) == (1, 1)
    frames = 1 + max(place for place, token in enumerate(prompt) if token == engine._session.backbone.renderer.image_id)
    assert second["reused_tokens"] >= frames
    answer_text(engine, clip, QUESTIONS[1], model="sft")  # another model has read nothing yet
    assert engine.counters["reused_tokens"] == second["reused_tokens"]
    engine.load_clip(str(clip), 4)  # another frame plan
    engine.load_clip(str(folder / "b.mp4"))
    assert (engine.counters["decodes"], engine.counters["encodes"]) == (3, 3)


def test_clips_of_many_visitors_do_not_pile_up(engine: HfEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of the latest clips stay in memory, descriptions of some; what has gone is made again."""
    for name in ("CACHED_CLIPS", "CACHED_CONTEXTS"):
        monkeypatch.setattr(hf_engine, name, 2)
    first = answer_text(engine, folder / "a.mp4", QUESTIONS[0])
    for frames in range(1, 7):
        engine.load_clip(str(folder / "b.mp4"), frames)
    for number in range(4):
        engine._context(replace(engine.load_clip(str(folder / "a.mp4")), key=f"{number}:plan"))
    assert len(engine._clips) == 2 and len(engine._contexts) == 2 and len(engine._session.feature_cache._memory) == 1
    assert answer_text(engine, folder / "a.mp4", QUESTIONS[0]) == first


def test_a_look_shows_what_the_model_sees(engine: HfEngine, folder: Path) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"), 4)
    assert clip.seconds == pytest.approx(23 / 12)  # 16 frames, 8 a second; the container says that the last one is short
    assert clip.times == pytest.approx([23 / 96, 23 / 32, 115 / 96, 161 / 96])  # middles of quarters
    assert clip.pixels_FHW3.shape == (4, 32, 32, 3) and clip.aspect == 1.0
    red, blue = clip.pixels_FHW3[0].astype(int), clip.pixels_FHW3[3].astype(int)
    assert (red[..., 0] - red[..., 2]).max() > 100 and (blue[..., 2] - blue[..., 0]).max() > 100
    assert engine.load_clip(str(folder / "a.mp4")).key != clip.key != engine.load_clip(str(folder / "b.mp4"), 4).key


def test_stopping_early_leaves_the_next_answer_as_it_was(engine: HfEngine, folder: Path) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"))
    full = answer_text(engine, folder / "a.mp4", QUESTIONS[1])
    assert len(full.split()) > 3
    for _ in range(2):
        stream = engine.stream(clip, (), QUESTIONS[1], GREEDY)
        assert full.startswith(next(stream))
        stream.close()
    assert answer_text(engine, folder / "a.mp4", QUESTIONS[1]) == full
    assert answer_text(engine, folder / "a.mp4", QUESTIONS[0]) != full


def test_the_score_is_the_reward_models_above_its_mean(engine: HfEngine, folder: Path) -> None:
    session, path = engine._session, str(folder / "a.mp4")
    clip, (question, answer) = engine.load_clip(path), ("what happens first?", "a red circle moves left.")
    judged = engine.judge(clip, question, answer, "a blue cross moves up.")
    assert judged.context.startswith("0s: ") and judged.context.count("\n") == 2  # a line per second
    row = session.encode_pair(session.video_input(path), question, session.answer_ids(answer), judged.context)
    with session.adapters.inference_as("reward"):
        expected = float(reward_scores(session.backbone, session.adapters.heads["reward"], [row])) + 1.5
    assert engine.score(clip, question, answer) == pytest.approx(expected, abs=1e-5)
    swapped = engine.judge(clip, question, "a blue cross moves up.", answer)
    assert {judged.choice, swapped.choice} == {"A", "B"} and judged.margin == pytest.approx(swapped.margin)


def test_a_run_without_ppo_or_reward_talks_all_the_same(folder: Path, tmp_path: Path) -> None:
    engine = HfEngine(chat_run.run_of(tmp_path / "half", aligned=False, reward=False), judge_of_run)
    assert engine.models == ("sft", "base")
    assert answer_text(engine, folder / "a.mp4", QUESTIONS[0])
    assert engine.score(engine.load_clip(str(folder / "a.mp4")), "what?", "a red circle.") is None
    engine.close()


def test_a_conversation_that_does_not_fit_is_refused(engine: HfEngine, folder: Path) -> None:
    with pytest.raises(UserError, match="the model takes 2048"):
        answer_text(engine, folder / "a.mp4", "red circle " * 1100)
    with pytest.raises(UserError, match="does not exist"):
        HfEngine(Run(folder / "none"), judge_of_run)


def test_special_tokens_in_a_question_stay_letters(engine: HfEngine, folder: Path) -> None:
    assert isinstance(answer_text(engine, folder / "a.mp4", "<image><image> what <end_of_utterance> happens?"), str)


def test_a_character_of_several_tokens_is_told_when_it_is_whole() -> None:
    renderer = tiny.backbone().renderer
    ids = renderer.text_ids(" a \u00e9\u4e2d b")
    texts = list(pieces(renderer, iter(ids)))
    assert "".join(texts) == "a \u00e9\u4e2d b" and not any("\ufffd" in piece for piece in texts)
    assert len(texts) < len(ids)
    assert "".join(pieces(renderer, iter(renderer.text_ids(" a \u4e2d")[:-1]))) == "a \ufffd"


BASES = {
    "smolvlm2": bases_smolvlm.smolvlm,
    "qwen3-vl": bases_qwen.qwen3_vl,
    "qwen3.5": bases_qwen.qwen3_5,
    "llava": bases_llava.llava,
}


@pytest.mark.parametrize("name", BASES)
def test_every_family_goes_on_from_the_prefix_cache(name: str, tmp_path: Path) -> None:
    BASES[name](tmp_path / "base")
    base = open_backbone(ModelSection(base=str(tmp_path / "base"), dtype="float32", device="cpu"))
    size = base.frame_size(64, 64, 4096)
    pixels = torch.randint(0, 256, (4, size.height, size.width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = base.encode_frames(pixels.numpy())
    layout = chat_run.shown(features)
    prefix, turns = PrefixCache(), []
    for number, question in enumerate(("what happens first?", "what then?", "a red square moves left")):
        prompt = EncodedPrompt(base.renderer.prompt(layout, question, turns=turns), features)
        ((answer,),) = sample(base, [prompt], temperature=0, max_new_tokens=6)
        texts = list(stream(base, prompt, prefix, 0, max_new_tokens=6))
        assert texts == [token for token in answer.ids if token != base.renderer.end_id]
        frames = 1 + max(place for place, token in enumerate(prompt.ids) if token == base.renderer.image_id)
        assert prefix.reused >= number * frames > 0 or number == 0
        turns.append(Turn(question, base.renderer.decode(texts) or "so"))


def test_a_part_of_a_clip_is_shown_as_the_session_shows_it(engine: HfEngine, folder: Path) -> None:
    path, session = str(folder / "a.mp4"), engine._session
    name = f"{path}#t=0.5,1.5"
    whole, part = engine.load_clip(path, engine.frames), engine.load_clip(name, engine.frames)
    assert part.seconds == 1.0 and part.times[-1] < 1.0 and part.key != whole.key
    video_input = session.video_input(name)
    assert (video_input.times, video_input.seconds) == (part.times, 1.0)
    assert torch.equal(video_input.features, engine._video_input(part).features)
    assert not torch.equal(video_input.features, session.video_input(path).features)
    engine._clips.clear()
    assert engine._video_input(part).times == part.times  # loaded again, the same part
