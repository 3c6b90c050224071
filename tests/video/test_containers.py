"""What headers of H.264 say about fields, by streams that ffmpeg and x264 wrote."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from minirlaif.video.containers import has_frames_only
from tests.fixtures import encoded_clips as clips
from tests.fixtures import field_clip
from tests.fixtures.encoded_clips import Recipe, ffmpeg


def encoded(path: Path, *options: str, frames: int) -> Path:
    return clips.encode(path, Recipe(path.name, "libx264", options, frames=frames))


def extradata(path: Path) -> bytes:
    with av.open(str(path)) as container:
        return bytes(container.streams.video[0].codec_context.extradata or b"")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv", "avi", "h264"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-profile:v", "baseline", "-pix_fmt", "yuv420p"),
        ("-profile:v", "high444", "-pix_fmt", "yuv444p"),
        ("-profile:v", "high10", "-pix_fmt", "yuv420p10le"),
        ("-x264opts", "cqm=jvt"),
        ("-x264opts", "nal-hrd=cbr:vbv-maxrate=500:vbv-bufsize=500", "-b:v", "500k"),
    ],
)
def test_progressive_streams_have_frames_only(suffix: str, options: tuple[str, ...], tmp_path: Path) -> None:
    assert has_frames_only(extradata(encoded(tmp_path / f"a.{suffix}", *options, frames=12)))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_interlaced_streams_may_have_fields(suffix: str, tmp_path: Path) -> None:
    """x264 writes both fields in one picture, the other stream has each apart."""
    assert not has_frames_only(extradata(encoded(tmp_path / f"a.{suffix}", "-x264opts", "interlaced=1:cqm=jvt", frames=12)))
    ffmpeg("-r", "50", "-i", str(field_clip.write(tmp_path / "f.h264", 30)), "-c", "copy", str(tmp_path / "f.ts"))
    assert not has_frames_only(extradata(tmp_path / "f.ts"))


def test_headers_that_cannot_be_read_promise_nothing(tmp_path: Path) -> None:
    for data in (b"", b"\1", b"\0\0\1\x67", b"\0\0\1\x67" + bytes(400), b"\1" + b"\xff" * 40):
        assert not has_frames_only(data)
    whole = extradata(encoded(tmp_path / "a.mp4", frames=12))
    assert has_frames_only(whole) and not has_frames_only(whole[:12])


@pytest.mark.parametrize("frames_only", [True, False])
@pytest.mark.parametrize(("chroma", "lists"), [(1, 8), (3, 12)])
def test_scaling_lists_are_passed_over(chroma: int, lists: int, frames_only: bool) -> None:
    """By hand: the first list has all its values, second and last stop at once (8 - 8 = 0: the default), others are left out."""
    bits = field_clip.Bits().fixed(8, 100).fixed(8, 0).fixed(8, 30).golomb(0, chroma).fixed(chroma == 3, 0).golomb(0, 0)
    bits.fixed(1, 0).fixed(1, 1)  # no bypass; lists follow
    bits.fixed(1, 1).golomb(*[1, 2] * 8).fixed(1, 1).golomb(16).fixed(lists - 3, 0).fixed(1, 1).golomb(16)
    bits.golomb(0, 0, 2, 1).fixed(1, 0).golomb(9, 7).fixed(1, frames_only).fixed(7, 0b1111111)
    header = field_clip.unit(0x67, bits.align())
    assert has_frames_only(header) is frames_only
