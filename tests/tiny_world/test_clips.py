from __future__ import annotations

import numpy as np
import pytest

from minirlaif.tiny_world.clips import (
    COLOURS,
    FPS,
    MOTIONS,
    QUESTION_TYPES,
    SHAPES,
    Event,
    all_questions,
    describe,
    draw_events,
    draw_questions,
    render,
)

THREE = (Event("red", "circle", "moves left"), Event("blue", "square", "stays still"), Event("green", "cross", "moves up"))


def world(seed: int) -> tuple[list[object], bytes]:
    rng = np.random.default_rng(seed)
    events = [draw_events(rng) for _ in range(5)]
    questions = [draw_questions(rng, e, 3) for e in events]
    return [events, questions], b"".join(clip.tobytes() for clip in render(rng, events, 16))


def test_the_same_seed_makes_the_same_world_and_another_seed_another() -> None:
    assert world(1) == world(1)
    assert world(1)[0] != world(2)[0] and world(1)[1] != world(2)[1]


def test_questions_and_answers_of_a_clip_written_out_by_hand() -> None:
    questions = {(q.type, q.text): (q.answer, q.key) for q in all_questions(THREE)}
    red, blue, green = "a red circle moves left.", "a blue square stays still.", "a green cross moves up."
    description = f"first {red} second {blue} third {green}"
    assert describe(THREE) == description
    assert questions == {
        ("count", "how many things happen?"): ("three things happen.", "3"),
        ("describe", "describe the video."): (description, description),
        ("ordinal", "what happens first?"): (red, red),
        ("ordinal", "what happens second?"): (blue, blue),
        ("ordinal", "what happens third?"): (green, green),
        ("direction", "which way does the red circle go?"): ("the red circle moves left.", "moves left"),
        ("direction", "which way does the blue square go?"): ("the blue square stays still.", "stays still"),
        ("direction", "which way does the green cross go?"): ("the green cross moves up.", "moves up"),
        ("after", "what happens after the red circle?"): (blue, blue),
        ("after", "what happens after the blue square?"): (green, green),
        ("before", "what happens before the blue square?"): (red, red),
        ("before", "what happens before the green cross?"): (blue, blue),
    }


def test_a_guess_key_holds_nothing_that_the_question_gives_away() -> None:
    """Direction names its object, so only the motion has to be guessed: the best guess is right for 1 in 5, not 1 in 120."""
    keys = {q.key for e in (THREE, THREE[::-1]) for q in all_questions(e) if q.type == "direction"}
    assert keys <= set(MOTIONS)
    for question in all_questions(THREE):
        if question.type in ("direction", "count"):
            assert question.key not in question.text


def test_drawn_clips_have_two_to_four_events_of_distinct_colours_and_use_everything() -> None:
    rng = np.random.default_rng(0)
    clips = [draw_events(rng) for _ in range(300)]
    assert {len(clip) for clip in clips} == {2, 3, 4}
    assert all(len({e.colour for e in clip}) == len(clip) for clip in clips)
    for field, values in (("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS)):
        assert {getattr(e, field) for clip in clips for e in clip} == set(values)
    assert len(draw_events(rng, 1)) == 1


def test_drawn_questions_are_of_different_types_and_all_types_come_up() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_questions(rng, THREE, 3) for _ in range(100)]
    assert all(len({q.type for q in questions}) == 3 for questions in drawn)
    assert {q.type for questions in drawn for q in questions} == set(QUESTION_TYPES)
    assert all(q in all_questions(THREE) for questions in drawn for q in questions)
    assert len({q.text for questions in drawn for q in questions if q.type == "ordinal"}) == 3  # not always the first


# Columns and rows; rows count downwards.
WAYS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1), "stays still": (0, 0)}


def coloured(frame: np.ndarray, colour: str) -> np.ndarray:
    """Pixels nearer to a colour's direction than to grey, as [S, S] booleans."""
    pixels = frame.astype(float) - frame.astype(float).mean(-1, keepdims=True)
    paint = np.array(COLOURS[colour], float)
    paint -= paint.mean()
    return np.asarray((pixels @ paint) / (paint @ paint) > 0.5)


@pytest.mark.parametrize("motion", list(MOTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_show_the_motion_and_only_in_its_own_second(shape: str, motion: str) -> None:
    events = (Event("red", shape, motion), Event("green", shape, "stays still"))
    (clip,) = render(np.random.default_rng(3), [events], 32)
    assert clip.shape == (2 * FPS, 32, 32, 3) and clip.dtype == np.uint8
    centres = []
    for number, frame in enumerate(clip):
        red, green = coloured(frame, "red"), coloured(frame, "green")
        here, gone = (red, green) if number < FPS else (green, red)
        assert here.sum() > 10 and gone.sum() == 0, number
        if number < FPS:
            rows, columns = red.nonzero()
            centres.append((columns.mean(), rows.mean()))
    way = np.sign(np.round((np.array(centres[-1]) - centres[0]) / 8))
    assert tuple(way) == WAYS[motion]  # at least a quarter of the side, in that direction and no other


def test_shapes_differ_in_their_pixels() -> None:
    areas = {}
    for shape in SHAPES:
        (clip,) = render(np.random.default_rng(3), [(Event("red", shape, "stays still"),)], 48)
        areas[shape] = coloured(clip[0], "red")
    for one in SHAPES:
        for other in SHAPES:
            if one != other:
                assert (areas[one] ^ areas[other]).sum() > 10, (one, other)
