"""The tiny world: facts, pixels and sentences agree, and the stage writes them in the formats that users bring."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from minirlaif import config
from minirlaif.data.dataset import load_samples
from minirlaif.runs.run import Run
from minirlaif.stages.tiny import world
from minirlaif.tiny_world import clips as tinyworld
from minirlaif.tiny_world.clips import MOTIONS, QUESTION_TYPES, SHAPES, Event
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader
from tests.fixtures.small_config import files, lines, manifest, results

THREE = (Event("red", "circle", "moves left"), Event("blue", "square", "stays still"), Event("white", "cross", "moves up"))


def test_questions_and_answers_by_hand():
    answers = {(q.type, q.text): q.answer for q in tinyworld.all_questions(THREE)}
    assert answers == {
        ("count", "how many things happen?"): "three things happen.",
        ("describe", "describe the video."): (
            "first a red circle moves left. second a blue square stays still. third a white cross moves up."
        ),
        ("ordinal", "what happens first?"): "a red circle moves left.",
        ("ordinal", "what happens second?"): "a blue square stays still.",
        ("ordinal", "what happens third?"): "a white cross moves up.",
        ("direction", "which way does the red circle go?"): "the red circle moves left.",
        ("direction", "which way does the blue square go?"): "the blue square stays still.",
        ("direction", "which way does the white cross go?"): "the white cross moves up.",
        ("after", "what happens after the red circle?"): "a blue square stays still.",
        ("after", "what happens after the blue square?"): "a white cross moves up.",
        ("before", "what happens before the blue square?"): "a red circle moves left.",
        ("before", "what happens before the white cross?"): "a blue square stays still.",
    }


def test_the_key_of_a_question_leaves_out_what_the_question_says():
    keys = {q.text: q.key for q in tinyworld.all_questions(THREE)}
    assert keys["which way does the red circle go?"] == "moves left" and keys["how many things happen?"] == "3"


def test_drawn_clips_have_two_to_four_events_of_distinct_colours():
    rng = np.random.default_rng(0)
    drawn = [tinyworld.draw_events(rng) for _ in range(200)]
    assert {len(events) for events in drawn} == {2, 3, 4}
    assert all(len({event.colour for event in events}) == len(events) for events in drawn)
    assert {event.motion for events in drawn for event in events} == set(MOTIONS)
    assert len(tinyworld.draw_events(rng, 1)) == 1


def test_drawn_questions_are_of_different_types():
    rng = np.random.default_rng(0)
    kinds = [[q.type for q in tinyworld.draw_questions(rng, THREE, 3)] for _ in range(100)]
    assert all(len(set(drawn)) == 3 for drawn in kinds)
    assert {kind for drawn in kinds for kind in drawn} == set(QUESTION_TYPES)
    assert len(tinyworld.draw_questions(rng, THREE[:2], 6)) == 6


def centre(frame: np.ndarray, colour: str) -> np.ndarray:
    """Where the paint is: mean place (x, y) in sides of the pixels near a colour."""
    distance = np.abs(frame.astype(int) - tinyworld.COLOURS[colour]).sum(-1)
    ys, xs = np.nonzero(distance < 150)
    assert len(xs) > 20, f"no {colour} to be seen"
    return np.array([xs.mean(), ys.mean()]) / frame.shape[0]


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_do_what_the_words_say(motion: str, shape: str):
    rng = np.random.default_rng(1)
    event = Event("yellow", shape, motion)
    (frames,) = tinyworld.render(rng, [[event]], 64)
    assert frames.shape == (8, 64, 64, 3) and frames.dtype == np.uint8
    way = centre(frames[-1], "yellow") - centre(frames[0], "yellow")
    assert np.allclose(way / 0.45, MOTIONS[motion], atol=0.15)
    assert np.array(MOTIONS["moves up"]).tolist() == [0, -1], "rows of a picture count downwards"


def test_events_come_one_after_the_other():
    (frames,) = tinyworld.render(np.random.default_rng(2), [THREE], 64)
    assert len(frames) == 24
    for number, event in enumerate(THREE):
        centre(frames[8 * number + 4], event.colour)
        for other in THREE:
            if other != event:
                with pytest.raises(AssertionError, match="to be seen"):
                    centre(frames[8 * number + 4], other.colour)


def made(folder: Path, *settings: str) -> Path:
    sizes = ["world.sft_clips=40", "world.sft_short_clips=4", "world.prompt_clips=6", "world.dev_clips=3", "world.test_clips=5"]
    world.run(config.load(None, ["data.world=tiny", *sizes, *settings]), Run(folder))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("world") / "a")


def test_the_same_seed_makes_the_same_bytes(tiny: Path, tmp_path: Path):
    assert results(made(tmp_path / "b"), ["world"]) == results(tiny, ["world"])
    assert manifest(tiny, "world")["identity"] == manifest(tmp_path / "b", "world")["identity"]


def test_another_seed_makes_other_clips_but_the_same_test(tiny: Path, tmp_path: Path):
    other, same = results(made(tmp_path / "b", "seed=1", "world.sft_clips=41"), ["world"]), results(tiny, ["world"])
    for part, kept in (("test", True), ("dev", True), ("sft", False), ("prompts", False)):
        assert (other[f"world/{part}.jsonl"] == same[f"world/{part}.jsonl"]) is kept, part
        assert (other[f"world/clips/{part}0000.mp4"] == same[f"world/clips/{part}0000.mp4"]) is kept, part


@pytest.mark.parametrize("seed", [2024, 2025])
def test_no_seed_draws_the_clips_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int):
    """2024 and 2025 are the numbers that test and dev are drawn from."""
    drawn: list[tuple[tuple[Event, ...], bytes]] = []
    real = tinyworld.render

    def render(rng, clips, *rest):  # type: ignore[no-untyped-def]
        videos = real(rng, clips, *rest)
        drawn.extend((tuple(clip), video.tobytes()) for clip, video in zip(clips, videos, strict=True))
        return videos

    monkeypatch.setattr(tinyworld, "render", render)
    monkeypatch.setattr(world, "_write_clip", lambda path, frames: path.touch())
    sizes = ["world.sft_short_clips=0", *(f"world.{part}_clips=20" for part in ("sft", "prompt", "dev", "test"))]
    made(tmp_path / "a", f"seed={seed}", *sizes)
    parts = [drawn[start : start + 20] for start in range(0, 80, 20)]
    assert len(drawn) == 80 == len({clip for part in parts for clip in part})
    starts = {tuple(events for events, _ in part[:5]) for part in parts}
    assert len(starts) == 4, "two parts come from one stream"


def test_the_files_read_as_users_files_do(tiny: Path):
    folder = tiny / "world"
    for part, answers in (("sft", True), ("prompts", False), ("dev", False), ("test", True)):
        samples = load_samples(str(folder / f"{part}.jsonl"), need_answers=answers)
        assert all((turn.answer is not None) is answers for sample in samples for turn in sample.turns), part
        used = {Path(sample.video).name for sample in samples}
        parts = {"sft": ("sft", "short")}.get(part, (part,))
        assert used == {Path(name).name for name in files(folder) if Path(name).name.startswith(parts) and ".mp4" in name}
    prompts = lines(folder / "prompts.jsonl")
    assert len(prompts) == 18 and all(row.keys() == {"id", "video", "question", "type"} for row in prompts)
    assert "answer" not in (folder / "dev.jsonl").read_text()


def test_parts_share_no_clip(tiny: Path):
    owners = collections.defaultdict(set)
    for name in files(tiny / "world"):
        if name.endswith(".mp4"):
            owners[(tiny / "world" / name).read_bytes()].add(name)
    assert all(len(names) == 1 for names in owners.values()) and len(owners) == 58


def test_truth_is_true_of_the_files(tiny: Path):
    """What truth.jsonl says of a clip is what its decoded frames show."""
    segments_of = {row["video"]: row["segments"] for row in lines(tiny / "world" / "truth.jsonl")}
    assert len(segments_of) == 9
    with ClipReader(60) as reader:
        for video, segments in segments_of.items():
            path = str(tiny / "world" / video)
            assert reader.info(path).seconds == pytest.approx(len(segments))
            plans = [uniform_plan(len(segments), 8, number, number + 1) for number in range(len(segments))]
            for sentence, frames in zip(segments, reader.frames(path, plans), strict=True):
                _, colour, _, motion = sentence.rstrip(".").split(" ", 3)
                way = centre(frames[-1], colour) - centre(frames[0], colour)
                assert np.allclose(way / 0.45, MOTIONS[motion], atol=0.2), (video, sentence)


def test_annotators_faults_are_as_many_as_the_card_says(tmp_path: Path):
    def stated(*settings: str) -> list[str]:
        run = made(tmp_path / str(len(list(tmp_path.iterdir()))), *settings)
        rows = lines(run / "world" / "sft.jsonl")
        return [row["conversations"][1]["value"] for row in rows if row["id"].endswith("long") or row["id"].startswith("short")]

    sound = stated("world.still_share=0", "world.shuffled_share=0")
    still = stated("world.still_share=1", "world.shuffled_share=0")
    assert sum("moves" in text for text in sound[4:]) > 20
    assert not any("moves" in text for text in still[4:]) and any("moves" in text for text in still[:4]), "short clips are sound"
    card = next(tmp_path.glob("1/world/card.md")).read_text()
    assert "100% of the long clips were annotated from single still pictures" in card and "- 0% of the long clips" in card


def test_shuffled_order_is_never_the_true_one():
    section, rng = config.WorldSection(still_share=0.0, shuffled_share=1.0), np.random.default_rng(3)
    for _ in range(50):
        annotated = world._as_annotated(THREE, section, rng)
        assert annotated != THREE and sorted(map(str, annotated)) == sorted(map(str, THREE))


def test_without_a_world_nothing_is_made(tmp_path: Path, capsys):
    world.run(config.load(None, []), Run(tmp_path / "a"))
    assert not (tmp_path / "a" / "world").exists() and "data.world is empty" in capsys.readouterr().out
