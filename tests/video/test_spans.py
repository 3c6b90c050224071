"""Parts of clips: named, measured, and read as if they had been cut into files of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from minirlaif.video.frame_sampling import FramePlan, FrameSize, uniform_plan
from minirlaif.video.reader import ClipReader, UnreadableClip, check_clips
from minirlaif.video.spans import Span, clock_seconds, file_of, length_of, name_of, span_of
from tests.fixtures import clips
from tests.video.test_faulty_files import encoded, without_packets

TIMES = [number / 8 for number in range(32)]  # 4 seconds


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    with ClipReader(timeout_seconds=60) as reader:
        yield reader


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(clips.write_clip(tmp_path_factory.mktemp("spans") / "a.mp4", times=TIMES))


@pytest.mark.parametrize(
    ("name", "span"),
    [
        ("a.mp4", Span("a.mp4", 0.0, None)),
        ("a.mp4#t=1,2.5", Span("a.mp4", 1.0, 2.5)),
        ("a.mp4#t=1", Span("a.mp4", 1.0, None)),
        ("a.mp4#t=,2", Span("a.mp4", 0.0, 2.0)),
        ("take#t=x.mp4", Span("take#t=x.mp4", 0.0, None)),
        ("a#t=1.mp4#t=0.125,2", Span("a#t=1.mp4", 0.125, 2.0)),
    ],
)
def test_a_name_and_its_span(name: str, span: Span) -> None:
    assert span_of(name) == span
    assert name_of(*span) == name
    assert span.is_part == (name != span.file) and file_of(name) == span.file


def test_clocks() -> None:
    assert span_of("a.mp4#t=0:01,1:02:03.5") == Span("a.mp4", 1.0, 3723.5) and span_of("a.mp4#t=npt:5") == Span(
        "a.mp4", 5.0, None
    )
    assert [clock_seconds(text) for text in ("1:30", "0:00:01.5", "2", "1:", "-1", "1e3", "1:2:3:4")] == [90, 1.5, 2] + [None] * 4


def test_names_are_equal_to_a_millisecond() -> None:
    assert name_of("a.mp4", 0.1 + 0.2, 1.0) == name_of("a.mp4", 0.3, 1) == "a.mp4#t=0.3,1"


def test_a_file_of_that_name_is_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "a.mp4#t=1,2"
    odd.write_bytes(b"clip")
    assert span_of(str(odd)) == Span(str(odd), 0.0, None)


def test_lengths() -> None:
    assert length_of(Span("a", 1.0, 2.5), 4.0) == 1.5
    assert length_of(Span("a", 1.0, None), 4.0) == 3.0
    assert length_of(Span("a", 3.0, 4.9), 4.0) == 1.0  # published ends are often rounded up
    for span, words in ((Span("a", 4.0, 5.0), "lies behind the end of the clip at 4 s"), (Span("a", 1.0, 6.0), "ends at 6 s")):
        with pytest.raises(ValueError, match=words):
            length_of(span, 4.0)


def test_a_part_shows_what_a_file_cut_there_would(reader: ClipReader, clip: str, tmp_path: Path) -> None:
    part = reader.info(f"{clip}#t=1,3")
    whole = reader.info(clip)
    assert (part.path, part.seconds, part.width, part.fps) == (f"{clip}#t=1,3", 2.0, whole.width, whole.fps)
    assert part.id != whole.id and part.id.startswith(whole.id)
    (frames,) = reader.frames(part.path, [uniform_plan(part.seconds, 8)])
    # Bins of a quarter of a second from second 1 on: frames 9, 11, 13 ... of 8 a second.
    assert [clips.number_of(frame) for frame in frames] == [9, 11, 13, 15, 17, 19, 21, 23]
    cut = str(clips.write_clip(tmp_path / "cut.mp4", times=TIMES[:16], images=[clips.picture(n) for n in range(8, 24)]))
    (wanted,) = reader.frames(cut, [uniform_plan(reader.info(cut).seconds, 8)])
    assert [clips.number_of(frame) for frame in wanted] == [clips.number_of(frame) for frame in frames]


def test_two_plans_and_a_size(reader: ClipReader, clip: str) -> None:
    first, second = reader.frames(f"{clip}#t=2", [FramePlan((0.0, 1.0)), FramePlan((0.5,))], FrameSize(32, 32))
    assert first.shape == (2, 32, 32, 3) and second.shape == (1, 32, 32, 3)
    (whole,) = reader.frames(clip, [FramePlan((2.0, 3.0, 2.5))], FrameSize(32, 32))
    assert np.array_equal(np.concatenate([first, second]), whole)


def test_a_part_that_the_clip_does_not_have_is_named(reader: ClipReader, clip: str) -> None:
    with pytest.raises(UnreadableClip, match=r"a.mp4#t=9,10: the part from 9 s lies behind the end of the clip at 4 s"):
        reader.info(f"{clip}#t=9,10")
    infos, bad = check_clips([clip, f"{clip}#t=1,2", f"{clip}#t=9,10", f"{clip}x#t=1,2"], reader, 1.0)
    assert [info.path for info in infos] == [clip, f"{clip}#t=1,2"]
    assert [error.path for error in bad] == [f"{clip}#t=9,10", f"{clip}x#t=1,2"]


@pytest.mark.parametrize("decoder", ["av", "decord"])
def test_no_frame_of_what_follows_a_part(decoder: str, clip: str) -> None:
    with ClipReader(timeout_seconds=60, decoder=decoder) as reader:
        (frames,) = reader.frames(f"{clip}#t=1,2", [FramePlan((0.0, 0.99, 1.0, 1.5, 60.0))])
    assert [clips.number_of(frame) for frame in frames] == [8, 15, 15, 15, 15]  # 16 begins at second 2


def test_parts_of_files_named_by_url_and_with_backslashes(reader: ClipReader, clip: str, tmp_path: Path) -> None:
    info = reader.info(f"file://{clip}#t=1,3")
    assert (info.path, info.seconds) == (f"{clip}#t=1,3", 2.0)
    if os.sep == "/":
        odd = Path(clip).rename(Path(clip).with_name("a\\b.mp4"))
        assert reader.info(f"{odd}#t=1,3").path == f"{odd}#t=1,3"
        odd.rename(clip)


def test_repairs_of_a_part_are_those_of_its_file(tmp_path: Path, reader: ClipReader) -> None:
    path = without_packets(encoded(tmp_path / "damaged.mp4", frames=200), slice(45, 50))
    assert reader.info(f"{path}#t=1,3").repaired == reader.info(path).repaired
    reader.frames(f"{path}#t=1,3", [FramePlan((0.9,))])
    assert len(reader.repaired[str(path)]) == 1 and f"{path}#t=1,3" not in reader.repaired
