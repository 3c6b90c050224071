"""Files as cameras, recorders and editors leave them: each kind right, or refused by name with a command that mends it."""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from minirlaif.data.dataset import load_samples
from minirlaif.data.tables import ClipFolder
from minirlaif.video import preparation, timestamps
from minirlaif.video.frame_sampling import FramePlan
from minirlaif.video.reader import ClipReader, UnreadableClip
from minirlaif.video.spans import local_path
from tests.fixtures import clips as tiny_clips
from tests.fixtures import encoded_clips as clips
from tests.fixtures.encoded_clips import FAST, Recipe

GROUPS = (*FAST, "-g", "25", "-bf", "0")


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    with ClipReader(60) as reader:
        yield reader


def encoded(path: Path, *args: str, codec: str = "libx264", first: int = 0, **more: object) -> Path:
    return clips.encode(path, Recipe(path.name, codec, args or GROUPS, **more), first)  # type: ignore[arg-type]


def numbers(reader: ClipReader, path: Path | str, *times: float) -> list[int]:
    return [clips.number_of(frame) for frame in reader.frames(path, [FramePlan(times)])[0]]


def patched(path: Path, box: bytes, offset: int, data: bytes) -> Path:
    """An mp4 with some bytes changed, counted from the type of its first box of a kind."""
    content = bytearray(path.read_bytes())
    place = content.index(box) + offset
    content[place : place + len(data)] = data
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((-1, 0, 0, 1), [1, 0, 3, 2]),  # left and right swapped
        ((1, 0, 0, -1), [3, 2, 1, 0]),  # top and bottom swapped
        ((0, 1, 1, 0), [0, 3, 2, 1]),  # rows and columns swapped
    ],
)
def test_mirrored_clips_are_shown_mirrored(matrix: tuple[int, ...], corners: list[int], tmp_path: Path, reader: ClipReader):
    path = encoded(tmp_path / "a.mp4", size=(160, 160))
    a, b, c, d = (value * 65536 for value in matrix)
    patched(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frame = reader.frames(path, [FramePlan((0.0,))])[0][0]
    assert tiny_clips.corners_of(frame) == corners


def test_a_matrix_of_zeros_turns_nothing_and_other_angles_are_refused(tmp_path: Path, reader: ClipReader):
    path = patched(encoded(tmp_path / "a.mp4"), b"tkhd", 4 + 4 + 20 + 16, bytes(36))
    assert reader.frames(path, [FramePlan((0.2,))])[0].shape == (1, 120, 160, 3) and numbers(reader, path, 0.21) == [5]
    cosine, sine = (round(value * 65536) for value in (0.866, 0.5))
    turned = patched(encoded(tmp_path / "b.mp4"), b"tkhd", 4 + 4 + 20 + 16, struct.pack(">5i", cosine, sine, 0, -sine, cosine))
    with pytest.raises(UnreadableClip, match="its display matrix turns it by .* degrees, which is no quarter turn"):
        reader.info(turned)


def test_a_file_that_calls_every_frame_a_key_frame(tmp_path: Path, reader: ClipReader):
    path = patched(encoded(tmp_path / "a.mp4", *FAST, "-g", "1000", frames=100), b"stss", 0, b"free")
    assert numbers(reader, path, 0.0, 2.02, 3.98) == [0, 50, 99]


def test_square_samples(tmp_path: Path, reader: ClipReader):
    path = encoded(tmp_path / "a.mp4", *GROUPS, "-vf", "setsar=16/11", size=(320, 240), frames=5)
    info = reader.info(path)
    assert (info.width, info.height) == (465, 240)  # 320 x 16 / 11
    assert reader.frames(path, [FramePlan((0.0,))])[0].shape == (1, 240, 465, 3)


def test_the_video_among_several_streams(tmp_path: Path, reader: ClipReader):
    small, large = encoded(tmp_path / "small.mp4", first=600), encoded(tmp_path / "large.mp4", size=(320, 240))
    picture = encoded(tmp_path / "p.avi", "-q:v", "3", codec="mjpeg", size=(640, 480), frames=1, first=900)

    def joined(name: str, *words: str) -> Path:
        clips.ffmpeg(*words, str(tmp_path / name))
        return tmp_path / name

    both = ["-i", str(small), "-i", str(large), "-map", "0", "-map", "1", "-c", "copy"]
    second = joined("second.mp4", *both, "-disposition:v:0", "0", "-disposition:v:1", "default")
    assert numbers(reader, second, 0.5) == [12]
    first = joined("first.mp4", *both, "-disposition:v:0", "default", "-disposition:v:1", "0")
    assert numbers(reader, first, 0.5) == [612]
    for suffix in ("mp4", "mkv"):
        cover = ["-i", str(picture), "-i", str(large), "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "default"]
        path = joined(f"cover.{suffix}", *cover)
        assert numbers(reader, path, 0.5) == [12] and reader.info(path).seconds == pytest.approx(2.4, abs=0.05)


def test_joined_transport_streams_and_recordings_that_begin_late(tmp_path: Path, reader: ClipReader):
    parts = [encoded(tmp_path / f"{first}.ts", frames=75, first=first) for first in (0, 500)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers(reader, joined, 0.02, 2.98, 3.02, 5.98) == [0, 74, 500, 574]
    assert reader.info(joined).repaired == ("its clock jumps 1 times: the gaps are closed",)
    late = tmp_path / "late.ts"
    data = parts[0].read_bytes()
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    late.write_bytes(b"".join(packets[:3] + packets[len(packets) // 4 :]))  # the tables, then from within a group
    shown = clips.number_of(clips.shown(late)[1][0])
    assert 0 < shown and numbers(reader, late, 0.0) == [shown]
    assert re.search(
        r"begins inside a group of pictures: the first \d\.\d\d seconds are left out", str(reader.info(late).repaired)
    )


def test_a_size_that_changes_is_scaled_to_the_first(tmp_path: Path, reader: ClipReader):
    parts = [encoded(tmp_path / "a.ts", size=(320, 240)), encoded(tmp_path / "b.ts", size=(160, 120), first=100)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers(reader, path, 0.02, 4.0) == [0, 140]
    assert "its size changes to 160x120: scaled to the first one" in reader.repaired[str(path)]


def test_a_clock_that_is_set_is_refused_with_a_command_that_mends_it(tmp_path: Path, reader: ClipReader):
    late = "setpts='if(eq(N,0),0,PTS+90000/TB)'"
    path = encoded(tmp_path / "a: 50%.mkv", *GROUPS, "-vf", late, "-fps_mode", "passthrough")
    with pytest.raises(UnreadableClip, match=r"clock jumps by 90,000 seconds at 0\.00 seconds; .*`ffmpeg .*`") as caught:
        reader.info(path)
    command = shlex.split(re.search(r"`(.*)`", caught.value.reason)[1])  # type: ignore[index]
    subprocess.run([command[0], "-nostdin", "-loglevel", "error", *command[1:]], check=True, capture_output=True)
    assert numbers(reader, tmp_path / "a: 50%_mended.mp4", 0.02, 1.02) == [0, 25]


def test_equal_times_are_refused():
    with pytest.raises(timestamps.Unreadable, match="all 3 frames carry the same time; .*setpts=N/30/TB -r 30.*a_mended.mp4"):
        timestamps._refuse_odd_clocks("a.mkv", (5, 5, 5), 0.001, 30.0)


def without_packets(path: Path, lost: slice) -> Path:
    """An mp4 some of whose packets are all zeros."""
    import av

    with av.open(str(path)) as container:
        entries = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries]
    data = bytearray(path.read_bytes())
    for place, size in entries[lost]:
        data[place : place + size] = bytes(size)
    path.write_bytes(data)
    return path


def test_damage_is_used_up_to_a_share_and_reported(tmp_path: Path, reader: ClipReader):
    path = without_packets(encoded(tmp_path / "a.mp4", frames=200), slice(45, 50))  # 0.2 of 8 seconds
    assert numbers(reader, path, 1.0, 1.9, 4.02) == [25, 44, 100]
    assert reader.repaired[str(path)] == (
        "damaged at 1.90 seconds: the last sound frame before is shown".replace("1.90", "1.88"),
    )
    with ClipReader(60, max_damaged=0.0) as strict, pytest.raises(UnreadableClip, match="nothing can be decoded at 1.88 seconds"):
        strict.frames(path, [FramePlan((1.9,))])
    worse = without_packets(encoded(tmp_path / "b.mp4", frames=200), slice(27, 50))
    with ClipReader(60, max_damaged=0.2) as lenient:
        assert lenient.frames(worse, [FramePlan((1.5,))])[0].shape == (1, 120, 160, 3) and str(worse) in lenient.repaired
    with pytest.raises(UnreadableClip, match=r"damaged.* seconds; .*`ffmpeg -i .*`, or .* --set video.max_damaged="):
        reader.frames(worse, [FramePlan((1.9,))])


def test_the_share_that_a_refusal_names_is_enough_and_less_is_not(tmp_path: Path, reader: ClipReader):
    """Shares are of the clip as it was recorded: what is lost at its start and its end counts together."""
    holes = without_packets(encoded(tmp_path / "holes.mp4", frames=200), slice(27, 50))
    end = encoded(tmp_path / "end.mp4", *GROUPS, "-movflags", "faststart", frames=200)
    end.write_bytes(end.read_bytes()[: -len(end.read_bytes()) // 3])
    for path in (holes, end):
        with pytest.raises(UnreadableClip) as caught:
            reader.frames(path, [FramePlan((0.1, 1.9))])
        share = float(caught.value.reason.partition("--set video.max_damaged=")[2])
        with ClipReader(60, max_damaged=share) as lenient:
            lenient.frames(path, [FramePlan((0.1, 1.9))])
        with ClipReader(60, max_damaged=share - 0.02) as strict, pytest.raises(UnreadableClip, match=f"={share:.2f}$"):
            strict.frames(path, [FramePlan((0.1, 1.9))])


def test_a_guess_of_the_decoder_is_reported(tmp_path: Path, reader: ClipReader):
    path = encoded(tmp_path / "a.mp4", *FAST, "-g", "1000", "-bf", "0", frames=100)  # each frame refers to the one before
    import av

    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[30]
        middle = entry.pos + entry.size // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 0x5A  # a tolerant decoder fills the blocks behind it without an error
    path.write_bytes(data)
    assert numbers(reader, path, 1.0) == [25] and str(path) not in reader.repaired  # before it
    reader.frames(path, [FramePlan((3.5,))])
    assert reader.repaired[str(path)] == ("damaged at 3.48 seconds: what is shown there is the decoder's guess, often unusable",)


def test_damage_between_the_frames_shown_is_reported(tmp_path: Path, reader: ClipReader):
    path = without_packets(encoded(tmp_path / "a.mp4", *FAST, "-g", "12", "-bf", "0"), slice(30, 33))
    assert numbers(reader, path, 1.01, 1.61) == [25, 40]
    assert reader.repaired[str(path)] == ("damaged at 1.20, 1.24, 1.28 seconds: no frame shown is known to be faulty",)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx")])
def test_files_that_were_joined_with_their_headers(suffix: str, codec: str, tmp_path: Path, reader: ClipReader):
    """Each begins at 0: in the order of their times their frames would alternate."""
    one, two = (encoded(tmp_path / f"{number}.{suffix}", codec=codec) for number in (1, 2))
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(
        UnreadableClip, match="its clock goes back from 2.3[26] to 0.0[04] seconds, as where files were joined; give"
    ):
        reader.info(joined)


def test_frames_that_a_file_announces_and_lacks_are_reported(tmp_path: Path, reader: ClipReader):
    path = patched(encoded(tmp_path / "a.mp4"), b"stsz", 4 + 12 + 4 * 10, b"\xab")  # the size of frame 10
    assert numbers(reader, path, 0.2) == [5]
    counted, reported = reader.repaired[str(path)]
    assert counted == "its index counts 50 frames that cannot be read" and reported.startswith("FFmpeg reports: Sample size ")
    whole, cut = encoded(tmp_path / "b.mp4", *FAST, "-g", "12"), tmp_path / "cut.mp4"
    clips.ffmpeg("-i", str(whole), "-c", "copy", "-output_ts_offset", "-1", "-avoid_negative_ts", "disabled", str(cut))
    assert numbers(reader, cut, 0.0) == [25] and str(cut) not in reader.repaired  # an edit list leaves out the first second
    paused = encoded(tmp_path / "a.flv", *GROUPS, "-vf", "select='not(between(n,10,29))'", "-fps_mode", "vfr", codec="libx264")
    assert numbers(reader, paused, 0.3, 0.9, 1.3) == [7, 9, 32]
    assert reader.repaired[str(paused)] == ("frames are missing after 0.36 seconds",)


def test_a_frame_that_the_decoder_never_filled_is_reported(tmp_path: Path, reader: ClipReader):
    """A JPEG without the start of its scan: FFmpeg hands out zeros, which are green, or an earlier frame, and no error."""
    path = encoded(tmp_path / "a.avi", "-q:v", "3", "-pix_fmt", "yuvj420p", codec="mjpeg")
    content = path.read_bytes()
    scans = [match.start() for match in re.finditer(b"\xff\xda", content)]
    assert len(scans) == 60
    path.write_bytes(content[: scans[30]] + b"\xff\xfe" + content[scans[30] + 2 :])  # a comment
    assert numbers(reader, path, 0.8, 1.21, 1.25) == [20, 29, 31]
    assert reader.repaired[str(path)] == ("damaged at 1.20 seconds: the last sound frame before is shown",)


def test_times_of_display_that_go_backwards_are_reported():
    times = [(10, 10), (20, 20), (40, 30), (30, None)]
    assert preparation._display_times(times, False, True) == ([10, 20, 30, 40], (preparation.DISORDER,))
    assert preparation._display_times(times, False, False) == ([10, 20, 30, 40], ())  # AVI, where such times are usual


def test_a_file_cut_at_its_end(tmp_path: Path, reader: ClipReader):
    path = encoded(tmp_path / "a.mp4", *GROUPS, "-movflags", "faststart", frames=200)
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 50])
    assert "it is cut short" in str(reader.info(path).repaired) and 7.5 < reader.info(path).seconds < 8
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableClip, match=r"cut short: .* of 8\.00 seconds are missing"):
        reader.info(path)


@pytest.mark.parametrize("name", ["a:b.mp4", "50%d.mp4", "http:x.mp4", "ü #1.mp4"])
def test_names_that_look_like_something_else(name: str, tmp_path: Path, reader: ClipReader, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    encoded(tmp_path / "plain.mp4", frames=5).rename(tmp_path / name)
    with ClipReader(60) as here:  # its process starts in this folder
        assert here.info(name).width == 160
    assert reader.info(f"file://{quote(str(tmp_path / name))}").width == 160


@pytest.mark.parametrize("part", ["", "#t=1,2"])
def test_rows_and_the_reader_know_clips_by_url_and_with_backslashes(part: str, tmp_path: Path):
    (tmp_path / "day 1").mkdir()
    clip = tmp_path / "day 1" / "b:50%20 c.mp4"
    clip.write_bytes(b"clip")  # never opened here
    names = [f"file://{quote(str(clip))}", f"file://localhost{quote(str(clip))}", f"file://{clip}"]
    if os.sep == "/":
        names += [str(clip).replace("/", "\\"), f"FILE://{quote(str(clip)).replace('/', '%5C')}"]
    for name in names:
        assert local_path(name + part) == f"{clip}{part}"
        assert ClipFolder(tmp_path).find(name + part) == f"{clip}{part}"
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"video": name + part, "question": "q", "answer": "a"}))
        assert [row.video for row in load_samples(str(rows))] == [f"{clip}{part}"]
    assert local_path(f"file://{tmp_path}/no%20clip.mp4{part}") == f"{tmp_path}/no clip.mp4{part}"
    assert local_path("file://localhost/a.mp4") == "/a.mp4"


def test_several_plans_of_a_damaged_clip_are_reported_once(tmp_path: Path, reader: ClipReader):
    path = without_packets(encoded(tmp_path / "a.mp4", frames=200), slice(45, 50))
    frames = reader.frames(path, [FramePlan((1.9,)), FramePlan((1.9,))])
    assert np.array_equal(*frames) and len(reader.repaired[str(path)]) == 1
