"""Rows of random columns with random values: read, or refused in one line; never another error."""

from __future__ import annotations

import random
from typing import Any

import pytest

from minirlaif.data import columns, formats, options
from minirlaif.data.cells import BadRow

TEXTS = [
    "a.mp4", "<video>Why?", "Why?", "B", "A. x", "x", "", "  ", "file://a.mp4", "1", "1-2", "0:01", "a.mp4#t=1,2", "[1,2]",
    '["x", "y"]', "<answer>A</answer>", "\ud800", "C:\\x\\a.mp4", "<image>why?",
]  # fmt: skip
NUMBERS = [0, 1, 3, -1, 2.5, 3.0, float("nan"), float("inf"), True, False, 10**30]
COLUMNS = [
    *columns.QUESTIONS, *columns.ANSWERS, *columns.PLACES, *columns.VIDEOS, *sorted(columns.MEANING), *options.COLUMNS,
    *columns.PREFERRED, *"B C a0 a1 a2 margin context id label ts".split(), "option 0", "option 1",
]  # fmt: skip
KEYS = "from value role content type text label A B path url video bytes loss weight human assistant choice".split()


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(8)
    if kind < 3 or depth > 3:
        return draw.choice([*TEXTS, *NUMBERS, None])
    if kind == 3:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 4:
        return {draw.choice(KEYS): value(draw, depth + 1) for _ in range(draw.randrange(5))}
    if kind == 5:
        return [
            {"type": draw.choice(["video", "text", "video_url"]), draw.choice(["video", "text", "start"]): value(draw, depth + 1)}
        ]
    question = {"role": "user", "content": draw.choice(["<video>Why?", value(draw, depth + 1)])}
    answer = {"role": "assistant", "content": draw.choice(["So.", value(draw, depth + 1)])}
    return [question, answer | ({"loss": value(draw, depth + 1)} if draw.random() < 0.3 else {})][: draw.choice([1, 2])]


@pytest.mark.parametrize("seed", range(8))
def test_random_rows(seed: int) -> None:
    draw = random.Random(seed)
    read = 0
    for _ in range(1000):
        row = {name: value(draw) for name in draw.sample(COLUMNS, draw.randrange(1, 6))}
        row |= {"video": "a.mp4"} if draw.random() < 0.7 else {}
        row |= {"question": "Why?"} if draw.random() < 0.5 else {}
        for parse in (formats.parse_sample, lambda row: formats.parse_sample(row, need_answers=False), formats.parse_preference):
            before = repr(row)
            try:
                parse(row)
                read += 1
            except BadRow as problem:
                assert str(problem)
            assert repr(row) == before  # the reader's own copy is taken apart, not the caller's row
    assert read > 10
