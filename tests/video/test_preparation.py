"""Clips whose packets do not say when or what is shown: the decoder's frames are timed as ffmpeg times them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from minirlaif.video.frame_sampling import FramePlan
from minirlaif.video.reader import ClipReader, UnreadableClip
from tests.fixtures import encoded_clips as clips
from tests.fixtures import field_clip
from tests.fixtures.encoded_clips import Recipe, ffmpeg

GAP = ("-vf", "setpts='(N+gte(N,30)*25)/25/TB'", "-fps_mode", "vfr", "-preset", "veryfast", "-g", "10")
SLOWS = ("-vf", "setpts='(N+gte(N,30)*(N-30)*2)/25/TB'", "-fps_mode", "vfr", "-preset", "veryfast")
STILL = ("-vf", "setpts='(N+gte(N,20)*500)/25/TB'", "-fps_mode", "vfr", "-preset", "veryfast", "-g", "50")
OPEN = ("-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0", "-preset", "veryfast")


DROPS = ("-vf", "select='not(between(mod(n\\,10)\\,3\\,6))'", "-fps_mode", "vfr", "-preset", "veryfast", "-pix_fmt", "yuv420p")


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    with ClipReader(60) as reader:
        yield reader


def encoded(path: Path, *args: str, codec: str = "libx264", frames: int = 60) -> Path:
    return clips.encode(path, Recipe(path.name, codec, args, frames=frames))


def without_times(path: Path, keep: int) -> Path:
    """A transport stream in which one packetised frame of `keep` says when it is shown, as the format allows."""
    data, place, number = bytearray(path.read_bytes()), 0, 0
    while (place := data.find(b"\0\0\1\xe0", place)) >= 0:
        flags = data[place + 7]
        if data[place + 6] & 0xC0 == 0x80 and flags & 0x80:
            if number % keep:
                size = 10 if flags & 0x40 else 5
                data[place + 7] = flags & 0x3F
                data[place + 9 : place + 9 + size] = b"\xff" * size
            number += 1
        place += 4
    assert number > 10
    path.write_bytes(data)
    return path


def compare(path: Path, reader: ClipReader) -> tuple[str, ...]:
    """What was repaired; every frame at and between the times of ffmpeg's frames is ffmpeg's."""
    times, pictures = clips.shown(path)
    wanted = [clips.number_of(image) for image in pictures]
    asked = tuple(sorted({time for start in times for time in (start, start + 0.013)}))
    (frames,) = reader.frames(path, [FramePlan(asked)])
    found = [clips.number_of(frame) for frame in frames]
    assert found == [wanted[clips.on_screen(times, time)] for time in asked]
    assert abs(reader.info(path).seconds - times[-1]) < 0.2
    return reader.repaired.get(str(path), ())


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_times_on_some_packets_alone(codec: str, b_frames: str, tmp_path: Path, reader: ClipReader) -> None:
    more = ("-x265-params", f"bframes={b_frames}:log-level=none") if codec == "libx265" else ("-bf", b_frames)
    path = without_times(encoded(tmp_path / "gap.ts", *GAP, *more, codec=codec), 3)
    assert not compare(path, reader)


@pytest.mark.parametrize("args", [("-bf", "0"), ("-bf", "2"), ("-bf", "3", "-g", "20")])
def test_avi_whose_recorder_dropped_frames(args: tuple[str, ...], tmp_path: Path, reader: ClipReader) -> None:
    """A packet's place is all that AVI stores; FFmpeg 8 gives H.264 other times of display."""
    path = encoded(tmp_path / "drops.avi", *DROPS, *args, frames=80)
    assert not compare(path, reader)


@pytest.mark.parametrize(
    ("size", "params"),
    [
        ((160, 120), "bframes=3:keyint=60"),
        ((704, 400), "bframes=7:keyint=90:b-adapt=0:ref=4"),
    ],  # decoded by threads: the seek fails
)
def test_seeks_among_open_groups_report_no_damage(size: tuple[int, int], params: str, tmp_path: Path, reader: ClipReader) -> None:
    options = ("-preset", "veryfast", "-x264-params", f"{params}:open-gop=1:scenecut=0")
    path = clips.encode(tmp_path / "a.mkv", Recipe("a.mkv", "libx264", options, frames=320, size=size))
    (frames,) = reader.frames(path, [FramePlan((8.02, 12.78))])
    assert [clips.number_of(frame) for frame in frames] == [200, 319]
    assert reader.info(path).repaired == () and str(path) not in reader.repaired


def test_a_cut_among_frames_that_lead_a_key_frame(tmp_path: Path, reader: ClipReader) -> None:
    whole = encoded(tmp_path / "whole.mkv", *SLOWS, *OPEN, frames=100)
    for suffix in ("mp4", "ts"):
        ffmpeg("-ss", "1.3", "-i", str(whole), "-c", "copy", str(tmp_path / f"cut.{suffix}"))
    times, pictures = clips.shown(tmp_path / "cut.mp4")
    asked = tuple(times[len(times) // 4 :])
    (frames,) = reader.frames(tmp_path / "cut.mp4", [FramePlan(asked)])
    wanted = [clips.number_of(image) for image in pictures[len(times) // 4 :]]
    assert [clips.number_of(frame) for frame in frames] == wanted
    assert not any("last sound frame" in text for text in reader.repaired.get(str(tmp_path / "cut.mp4"), ()))


@pytest.mark.parametrize("kind", [None, 0, 1], ids=["unmarked", "progressive", "interlaced"])
@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4", "avi"])
def test_fields_in_packets_of_their_own(suffix: str, kind: int | None, tmp_path: Path, reader: ClipReader) -> None:
    """Also of camcorders that mark both fields of a progressive picture as such."""
    source, stream, path = (tmp_path / f"{name}" for name in ("fields.h264", "source.ts", f"fields.{suffix}"))
    retime = "setts=pts=N*1800:dts=N*1800:time_base=1/90000"
    ffmpeg("-r", "50", "-i", str(field_clip.write(source, 30, kind)), "-c", "copy", "-bsf:v", retime, str(stream))
    ffmpeg("-i", str(stream), "-c", "copy", str(path))
    assert not compare(path, reader)


def test_reordered_frames_in_mxf_are_refused_with_a_command_that_mends_it(tmp_path: Path, reader: ClipReader) -> None:
    """Their packets are numbered as they are decoded, and no frame would be at its time."""
    path = encoded(tmp_path / "a.mxf", "-bf", "2", "-pix_fmt", "yuv420p")
    with pytest.raises(UnreadableClip, match="an MXF file that does not say when its frames are shown; .* `ffmpeg -i"):
        reader.info(path)
    assert not compare(encoded(tmp_path / "b.mxf", "-bf", "0", "-pix_fmt", "yuv420p"), reader)
    assert not compare(encoded(tmp_path / "c.mxf", "-bf", "2", codec="mpeg2video"), reader)


def test_a_program_stream_without_times_is_reported(tmp_path: Path, reader: ClipReader) -> None:
    plain = encoded(tmp_path / "plain.m2v", "-bf", "0", codec="mpeg2video", frames=40)
    ffmpeg("-i", str(plain), "-c", "copy", str(tmp_path / "untimed.mpg"))
    encoded(tmp_path / "timed.mpg", "-bf", "0", codec="mpeg2video", frames=40)
    reader.frames(tmp_path / "untimed.mpg", [FramePlan((0.5,))])
    reported = reader.repaired[str(tmp_path / "untimed.mpg")]
    assert reported == ("it carries no times: its frames are spread evenly, 25.000 a second",)
    reader.frames(tmp_path / "timed.mpg", [FramePlan((0.5,))])
    assert str(tmp_path / "timed.mpg") not in reader.repaired


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_a_picture_is_refused_with_a_command_that_makes_a_clip(suffix: str, tmp_path: Path, reader: ClipReader) -> None:
    Image.fromarray(clips.picture(5, 160, 120)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(UnreadableClip, match="it is a picture; `ffmpeg ") as caught:
        reader.info(tmp_path / f"a.{suffix}")
    words = shlex.split(caught.value.reason.split("`")[1])
    ffmpeg(*words[1:])
    (frames,) = reader.frames(words[-1], [FramePlan((0.0, 1.9))])
    assert [clips.number_of(frame) for frame in frames] == [5, 5] and reader.info(words[-1]).seconds == pytest.approx(2)


def test_an_animated_webp_is_not_called_a_picture(tmp_path: Path, reader: ClipReader) -> None:
    pictures = [Image.fromarray(clips.picture(number, 160, 120)) for number in range(20)]
    pictures[0].save(tmp_path / "it's.webp", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    with pytest.raises(
        UnreadableClip, match="it is an animated WebP, which no installed decoder reads; convert it with"
    ) as caught:
        reader.info(tmp_path / "it's.webp")
    words = shlex.split(caught.value.reason.split("`")[1])
    subprocess.run([sys.executable, *words[1:]], check=True)
    (frames,) = reader.frames(tmp_path / "it's_mended.apng", [FramePlan((0.05, 1.25, 1.95))])
    assert [clips.number_of(frame) for frame in frames] == [0, 12, 19]


@pytest.mark.parametrize(
    ("name", "codec", "called"), [("a.mov", "vc2", "dirac"), ("a.avi", "asv1", "asv1"), ("b.avi", "jpegls", "jpegls")]
)
def test_a_codec_that_is_not_read_is_named_with_a_command(
    name: str, codec: str, called: str, tmp_path: Path, reader: ClipReader
) -> None:
    path = encoded(tmp_path / name, codec=codec, frames=10)
    with pytest.raises(UnreadableClip, match=f"its video codec {called} is not among those that are read; convert it") as caught:
        reader.info(path)
    words = shlex.split(caught.value.reason.split("`")[1])
    ffmpeg(*words[1:])
    (frames,) = reader.frames(words[-1], [FramePlan((0.01, 0.21))])
    assert [clips.number_of(frame) for frame in frames] == [0, 5]


def test_a_still_of_more_than_ten_seconds_in_a_transport_stream(tmp_path: Path, reader: ClipReader) -> None:
    path = encoded(tmp_path / "still.ts", *STILL, frames=60)
    times, pictures = clips.shown(path)
    asked = (0.0, 0.3, 0.6)
    (frames,) = reader.frames(path, [FramePlan(asked)])
    assert [clips.number_of(frame) for frame in frames] == [
        clips.number_of(pictures[clips.on_screen(times, time)]) for time in asked
    ]
    assert any("its clock jumps" in text for text in reader.repaired[str(path)])


@pytest.mark.parametrize("matrix", [8, 10, 11, 14])
def test_matrices_that_the_scaler_does_not_know(matrix: int, tmp_path: Path, reader: ClipReader) -> None:
    plain, tagged = encoded(tmp_path / "plain.mp4", "-preset", "veryfast", frames=12), tmp_path / "tagged.mp4"
    change = f"h264_metadata=matrix_coefficients={matrix}:colour_primaries=1:transfer_characteristics=1"
    ffmpeg("-i", str(plain), "-c", "copy", "-bsf:v", change, str(tagged))
    assert not compare(tagged, reader)


def test_what_is_no_file_is_named(tmp_path: Path, reader: ClipReader) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "a.mp4").write_bytes(b"x")
    for path, reason in (
        (str(tmp_path / "pipe.mp4"), "no regular file but a device or pipe"),
        ("/dev/zero", "no regular file but a device or pipe"),
        ("file:///x%00y.mp4", "cannot be the name of a file"),
        (str(tmp_path / "a.mp4#t=1e3"), "its part must be written #t=START,END in seconds"),
        ("https://example.org/a.mp4", "an address is not read: download the clip"),
        (str(tmp_path), "it is a folder, not a file: name a clip in it"),
    ):
        with pytest.raises(UnreadableClip, match=reason):
            reader.info(path)
