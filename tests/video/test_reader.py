"""Clips of every awkward kind: the right frame, upright, in the right colours, from either decoder; bad clips are named."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minirlaif.errors import UserError
from minirlaif.video import av_decoder, decode_worker, pixels, timestamps
from minirlaif.video.containers import Unreadable
from minirlaif.video.frame_sampling import FramePlan, FrameSize, uniform_plan
from minirlaif.video.reader import ClipReader, UnreadableClip, check_clips
from tests.fixtures import clips

GROUPS = {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
LONG = [number / 24 for number in range(96)]
UNEVEN = [0.0, 0.1, 0.15, 0.5, 0.55, 1.2, 1.3, 2.0]
PQ = {"color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1}
BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    with ClipReader(timeout_seconds=60) as reader:
        yield reader


@pytest.fixture(scope="module")
def by_decord() -> Iterator[ClipReader]:
    with ClipReader(timeout_seconds=60, decoder="decord") as reader:
        yield reader


def hidden_start(path: Path) -> Path:
    source = clips.write_clip(path.with_name("source.mp4"), times=LONG, options={"g": "12", "bf": "0"})
    return clips.write_hidden_start(path, source, key=0.5, start=0.75)


KINDS: dict[str, tuple[str, Callable[[Path], Path], str]] = {  # name -> file, how it is made, who reads it
    "plain": ("a.mp4", clips.write_clip, "decord"),
    "late start": ("a.mp4", lambda p: clips.write_clip(p, times=[3 + n / 24 for n in range(24)]), "decord"),
    "late start mkv": ("a.mkv", lambda p: clips.write_clip(p, times=[3 + n / 24 for n in range(24)]), "decord"),
    "no index": ("a.ts", lambda p: clips.write_clip(p, times=[3 + n / 24 for n in range(24)]), "av"),
    "odd": ("a.mkv", lambda p: clips.write_clip(p, width=97, height=75, codec="libvpx-vp9"), "decord"),
    "uneven": ("a.mp4", lambda p: clips.write_clip(p, times=UNEVEN), "decord"),
    "rotated 90": ("a.mp4", lambda p: clips.write_clip(p, width=96, rotation=90), "decord"),
    "rotated 180": ("a.mp4", lambda p: clips.write_clip(p, width=96, rotation=180), "decord"),
    "rotated 270": ("a.mp4", lambda p: clips.write_clip(p, width=96, rotation=270), "decord"),
    "10 bits": ("a.mp4", lambda p: clips.write_clip(p, pix_fmt="yuv420p10le"), "decord"),
    "BT.709": ("a.mp4", lambda p: clips.write_clip(p, colours=BT709), "decord"),
    "AV1": ("a.mp4", lambda p: clips.write_clip(p, codec="libsvtav1"), "av"),
    "open groups": ("a.mkv", lambda p: clips.write_clip(p, times=LONG, options=GROUPS), "av"),
    "groups": ("a.mp4", lambda p: clips.write_clip(p, times=LONG, options={"g": "12", "bf": "2"}), "decord"),
    "hidden start": ("a.mp4", hidden_start, "av"),
    "one frame": ("a.mp4", lambda p: clips.write_clip(p, times=[0.0]), "decord"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of good clip, made once."""
    made = {}
    for name, (file, write, _) in KINDS.items():
        made[name] = write(tmp_path_factory.mktemp("clip") / file)
    return made


def av_frames(line: timestamps.Timeline, rows: list[int]) -> list[Any]:
    return list(av_decoder.av_frames(line, rows, av_decoder.Damage(0.05)))


def numbers(frames: Any) -> list[int]:
    return [clips.number_of(frame) for frame in frames]


@pytest.mark.parametrize("name", KINDS)
def test_both_decoders_agree(name: str, made: dict[str, Path], reader: ClipReader, by_decord: ClipReader):
    path = str(made[name])
    assert reader.info(path).reader == "av" and by_decord.info(path).reader == KINDS[name][2]
    assert reader.info(path).repaired == ()
    line = timestamps.inspect(path)
    assert line.decord == (KINDS[name][2] == "decord")
    rows = sorted({0, *range(1, len(line.ticks), 5), len(line.ticks) - 1})  # with gaps, so that decoders seek
    by_av = av_frames(line, rows)
    first = 18 if name == "hidden start" else 0
    turns = {"rotated 90": 1, "rotated 180": 2, "rotated 270": 3}.get(name, 0)
    assert numbers(np.rot90(frame, -turns) for frame in by_av) == [row + first for row in rows]
    assert clips.corners_of(by_av[0]) == [(corner + turns) % 4 for corner in range(4)]
    if KINDS[name][2] == "decord":
        others = list(decode_worker.decord_frames(line, rows))
        assert [frame.shape for frame in by_av] == [frame.shape for frame in others]
        gaps = np.abs(np.stack(by_av).astype(int) - np.stack(others))
        # Whole 8-bit pictures are the same to the bit. Else swscale's versions filter chroma at the (hard) edges differently.
        assert gaps.max() == 0 or (name in ("odd", "10 bits") and gaps.mean() < 1.5)
        assert gaps[:, 4:8, 4:8].max() <= 1  # inside a flat corner


def test_decord_is_wrong_about_open_groups_and_hidden_starts(made: dict[str, Path]):
    """Why those go to PyAV. If this fails, decord has been mended and the detour can go."""
    import decord

    assert clips.number_of(decord.VideoReader(str(made["open groups"])).get_batch([1, 11]).asnumpy()[-1]) != 11
    assert len(decord.VideoReader(str(made["hidden start"]))) != 78


def test_info_says_what_is_there(made: dict[str, Path], reader: ClipReader):
    info = reader.info(made["rotated 90"])
    assert (info.width, info.height) == (64, 96)  # upright
    assert (info.seconds, info.fps) == (1.0, 24.0)
    assert info.id == hashlib.sha256(made["rotated 90"].read_bytes()).hexdigest()[:16]
    assert info.path == str(made["rotated 90"])
    assert reader.info(made["late start"]).seconds == 1.0
    assert reader.info(made["late start mkv"]).seconds == pytest.approx(1.0, abs=0.002)
    assert reader.info(made["hidden start"]).seconds == pytest.approx(3.25)
    assert reader.info(made["one frame"]).seconds == pytest.approx(1 / 24)
    assert 2.0 < reader.info(made["uneven"]).seconds < 2.8


def test_the_frame_on_screen_at_a_time(made: dict[str, Path], reader: ClipReader):
    def shown(name: str, *times: float) -> list[int]:
        return numbers(reader.frames(made[name], [FramePlan(times)])[0])

    assert shown("uneven", 0.0, 0.09, 0.1, 0.49, 0.5, 1.1, 1.25, 1.9, 99.0) == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert shown("plain", 1 / 24, 1 / 24 - 0.002, 0.99, 0.5) == [1, 0, 23, 12]  # in the plan's order
    assert shown("late start", 0.0, 0.5) == [0, 12]  # seconds from the clip's start, not the file's clock
    assert shown("no index", 0.0, 0.5) == [0, 12]
    assert shown("hidden start", 0.0, 0.5, 3.2) == [18, 30, 94]
    assert shown("open groups", 11.5 / 24, 90.5 / 24) == [11, 90]


def test_all_plans_in_one_pass(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: ClipReader):
    before = reader.decodes
    whole, part = reader.frames(made["plain"], [uniform_plan(1.0, 4), uniform_plan(1.0, 3, 0.5, 0.75)])
    assert (numbers(whole), numbers(part)) == ([3, 9, 15, 21], [13, 15, 17])
    assert whole.dtype == np.uint8 and whole.shape == (4, 64, 64, 3)
    assert reader.decodes == before + 2
    calls: list[list[int]] = []
    real = decode_worker.decord_frames

    def counted(line: timestamps.Timeline, rows: list[int]) -> Iterator[Any]:
        calls.append(rows)
        return real(line, rows)

    monkeypatch.setattr(decode_worker, "decord_frames", counted)
    request = {"verb": "frames", "path": str(made["plain"]), "plans": [[0.1, 0.5], [0.5, 0.1]], "size": None}
    request |= {"reader": "decord", "max_damaged": 0.05}
    header, frames = decode_worker.answer(request)
    assert calls == [[2, 12]] and header["places"] == [[0, 1], [1, 0]] and len(frames) == 2


def test_more_frames_than_fit_the_memory_are_refused_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are decoded; scaled to what a model takes, they fit."""
    path = clips.write_clip(tmp_path / "a.mp4", [0.0, 1.0, 2.0], 96, 64, last_seconds=1.0)
    monkeypatch.setattr(decode_worker, "MOST_SHOWN", 2 * 96 * 64)
    request = {"verb": "frames", "path": str(path), "plans": [[0.0, 1.0, 2.0]], "reader": "av", "max_damaged": 0.05, "size": None}
    with pytest.raises(Unreadable, match="3 frames of 96x64 do not fit the decoder's memory: ask for 2 at once"):
        decode_worker.answer(request)
    scaled = {"size": {"width": 8, "height": 8}}
    assert decode_worker.answer(request | scaled)[1].shape == (3, 8, 8, 3)
    assert decode_worker.answer(request | {"plans": [[0.0, 1.0]]})[1].shape == (2, 64, 96, 3)


def test_frames_are_scaled_in_order_while_few_wait() -> None:
    """The thread that scales is as slow as its frames; the decoder is at most so many ahead."""
    decoded, scaled, ahead = [0], [0], []
    size = FrameSize(8, 8)

    def frames() -> Iterator[Any]:
        for number in range(9):
            decoded[0] += 1
            ahead.append(decoded[0] - scaled[0])
            yield np.full((500, 500, 3), number, np.uint8)

    def slow(frame: Any, given: FrameSize | None) -> Any:
        time.sleep(0.01)
        scaled[0] += 1
        return pixels.resized(frame, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_worker, "resized", slow)
        done = decode_worker._all_resized(frames(), size)
    assert [int(frame[0, 0, 0]) for frame in done] == list(range(9)) and {frame.shape for frame in done} == {(8, 8, 3)}
    assert 2 < max(ahead) <= decode_worker.AHEAD + 2


def test_no_plan_is_a_mistake(made: dict[str, Path], reader: ClipReader):
    with pytest.raises(ValueError, match="no frame plan"):
        reader.frames(made["plain"], [])


def test_resizing_is_bicubic_with_antialiasing(made: dict[str, Path], reader: ClipReader):
    from PIL import Image

    plan = [FramePlan((0.0,))]
    full = reader.frames(made["rotated 90"], plan)[0][0]
    small = reader.frames(made["rotated 90"], plan, FrameSize(24, 24))[0][0]
    assert small.shape == (24, 24, 3)
    assert (small == np.asarray(Image.fromarray(full).resize((24, 24), Image.Resampling.BICUBIC))).all()


def test_hdr_becomes_standard_range(tmp_path: Path, reader: ClipReader):
    """Grey of 0.2 x 203 nits has PQ code 0.4207 (ST 2084) and sRGB code 124; white of 203 nits is bent to 0.679, code 214."""
    for code, expected in ((0.42067, 124), (0.58069, 214), (0.0, 0)):
        images = [np.full((64, 64, 3), round(code * 65535), np.uint16) for _ in range(3)]
        for image in images:
            image[:8, :8] = 20000  # not blank
        path = clips.write_clip(
            tmp_path / "pq.mp4", times=[0, 0.04, 0.08], codec="libx265", pix_fmt="yuv420p10le", colours=PQ, images=images,
            options={"x265-params": "log-level=none:pools=1"},
        )  # fmt: skip
        assert reader.info(path).reader == "av"
        pixel = reader.frames(path, [FramePlan((0.04,))])[0][0, 40, 40]
        assert np.abs(pixel.astype(int) - expected).max() <= 2


def test_tone_mapping_by_hand():
    def mapped(curve: str, *codes: float) -> list[int]:
        return pixels.tone_map(np.array([[[round(c * 65535) for c in codes]]], np.uint16), curve)[0, 0].tolist()

    assert mapped("pq", 0.42067, 0.42067, 0.42067) == [124, 124, 124]
    assert mapped("pq", 1.0, 1.0, 1.0) == [255, 255, 255]
    # HLG 0.5 is scene light 1/12; shown: (1/12)^1.2 x 1000 / 203 = 0.2497 of white, under the knee; sRGB code 137.
    assert mapped("hlg", 0.5, 0.5, 0.5) == [137, 137, 137]
    # BT.2020 red is outside BT.709: green and blue are cut off at 0.
    red = mapped("pq", 0.42067, 0.0, 0.0)
    assert red[0] > 124 and red[1:] == [0, 0]


def bad(name: str, folder: Path) -> Path:
    path = folder / "bad.mp4"
    good = clips.write_clip(folder / "good.mp4", times=LONG, options={"g": "12"})
    early = clips.write_clip(
        folder / "early.mp4", times=LONG, options={"g": "12", "crf": "5"}, container_options={"movflags": "faststart"}
    )
    if name == "folder":
        path.mkdir()
    elif name == "empty":
        path.touch()
    elif name == "text":
        path.write_text("This is not a clip.\n" * 50)
    elif name == "sound":
        clips.write_sound(path)
    elif name == "no frames":
        clips.write_no_frames(path)
    elif name == "no moov":
        path.write_bytes(good.read_bytes()[:-800])
    elif name == "cut":
        path.write_bytes(early.read_bytes()[:4000])
    elif name == "damaged":
        data = bytearray(early.read_bytes())
        data[3500:-500] = bytes(len(data) - 4000)
        path.write_bytes(data)
    elif name == "black":
        clips.write_clip(path, images=[np.zeros((64, 64, 3), np.uint8)] * 24)
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("empty", r"empty \(0 bytes\)"),
        ("text", "not a video file"),
        ("sound", "no video stream, only sound"),
        ("no frames", "a video stream but no frames"),
        ("no moov", "cut short or broken"),
        ("cut", "cut short: its index points past its end"),
        ("damaged", "damaged or cut short: nothing can be decoded at"),
        ("black", "blank"),
    ],
)
def test_bad_clips_are_named_with_their_reason(name: str, reason: str, tmp_path: Path, reader: ClipReader):
    path = bad(name, tmp_path)
    for ask in (lambda: reader.info(path), lambda: reader.frames(path, [uniform_plan(4.0, 16)], FrameSize(8, 8))):
        with pytest.raises(UnreadableClip, match=reason) as caught:
            ask()
        assert caught.value.path == str(path) and "\n" not in str(caught.value)
        assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_a_black_stretch_is_not_a_blank_clip(tmp_path: Path, reader: ClipReader):
    black = np.zeros((64, 64, 3), np.uint8)
    path = clips.write_clip(
        tmp_path / "fade.mp4", images=[clips.picture(0) if 6 < number < 12 else black for number in range(24)]
    )
    assert reader.info(path).width == 64  # first, middle and last frame are black
    assert reader.frames(path, [FramePlan((0.9, 0.95))])[0].max() <= 2


@pytest.mark.parametrize(
    ("lost", "times", "shown"),
    [
        (slice(-8, None), (3.6, 3.9), [86, 87]),
        (slice(5, 7), (0.2, 8 / 24, 11 / 24, 0.5), [4, 4, 4, 12]),  # frames 7 to 11 build on lost ones: guesswork
        (slice(36, 37), (0.0, 40 / 24, 2.0), [0, 35, 48]),  # a lost key frame cannot be jumped to
    ],
)
def test_a_little_damage_is_bridged(lost: slice, times: tuple[float, ...], shown: list[int], tmp_path: Path):
    """Less than half a second cannot be decoded: the last good frame stays on screen."""
    import av

    path = clips.write_clip(tmp_path / "lost.mp4", times=LONG, options={"g": "12", "bf": "0", "x264-params": "scenecut=0"})
    with av.open(str(path)) as container:
        entries = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries]
    data = bytearray(path.read_bytes())
    for place, size in entries[lost]:
        data[place + 6 : place + size] = bytes(size - 6)  # its header still says whether it is a key frame
    path.write_bytes(data)
    line = timestamps.inspect(str(path))
    assert numbers(av_frames(line, line.rows_at(list(times)))) == shown


STUBBORN = """
import ctypes
from minirlaif.video import decode_worker
real_decord, real_prepared = decode_worker.decord_frames, decode_worker.prepared

def decord_frames(timeline, rows):
    if "decord hangs" in timeline.path:
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter lock, as decord does
    if "decord crashes" in timeline.path:
        ctypes.string_at(0)
    return real_decord(timeline, rows)

def prepared(path, share):
    if "all hang" in path:
        ctypes.PyDLL(None).sleep(600)
    return real_prepared(path, share)

decode_worker.decord_frames, decode_worker.prepared = decord_frames, prepared
decode_worker.main()
"""


def test_a_child_that_talks_nonsense_is_ended():
    class Babbling(ClipReader):
        command = (sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(30)")

    began = time.monotonic()
    with Babbling(5) as reader, pytest.raises(UserError, match="does not start"):
        reader.info("any.mp4")
    assert time.monotonic() - began < 10


class StubbornReader(ClipReader):
    command = (sys.executable, "-P", "-c", STUBBORN)


@pytest.fixture(scope="module")
def stubborn() -> Iterator[ClipReader]:
    with StubbornReader(timeout_seconds=1.0, decoder="decord") as reader:
        yield reader


@pytest.mark.parametrize(("fault", "how"), [("hangs", "no answer within 1 seconds"), ("crashes", "the decoder crashed")])
def test_a_clip_on_which_a_decoder_hangs_or_dies_is_refused_for_good(fault: str, how: str, tmp_path: Path, stubborn: ClipReader):
    path = clips.write_clip(tmp_path / f"decord {fault}.mp4")
    with pytest.raises(UnreadableClip, match=f"decord {fault}.mp4: {how}"):
        stubborn.frames(path, [uniform_plan(1.0, 4)])
    assert stubborn.info(clips.write_clip(tmp_path / "good.mp4")).reader == "decord"
    child = stubborn._child
    with pytest.raises(UnreadableClip, match=how):
        stubborn.info(path)
    assert stubborn._child is child and child is not None and child.alive()  # it was not asked about the clip again
    path.write_bytes((tmp_path / "good.mp4").read_bytes() + b"\0")
    with pytest.raises(UnreadableClip, match=how):  # another file of this name is tried
        stubborn.info(path)
    assert stubborn._child is not child


def test_a_clip_that_hangs_everything_is_killed_and_named(tmp_path: Path, stubborn: ClipReader):
    path = clips.write_clip(tmp_path / "all hang.mp4")
    good = clips.write_clip(tmp_path / "good.mp4")
    stubborn.info(good)
    first = stubborn._child
    assert first is not None
    began = time.monotonic()
    with pytest.raises(UnreadableClip, match="all hang.mp4: no answer within 1 seconds"):
        stubborn.info(path)
    assert time.monotonic() - began < 10
    assert not first.alive()  # not left behind
    assert stubborn.info(good).width == 64


def test_a_reader_that_does_not_start_says_why():
    class Broken(ClipReader):
        command = (sys.executable, "-c", "raise ImportError('No module named av')")

    with Broken(5) as reader, pytest.raises(UserError, match="No module named av.*doctor"):
        reader.info("any.mp4")


def test_an_interrupted_answer_is_not_taken_for_the_next(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        """A pipe whose reader is interrupted between the header of a reply and its frames."""

        def __init__(self, pipe: Any) -> None:
            self.readline = pipe.readline

        def readinto(self, buffer: Any) -> int:
            raise KeyboardInterrupt

    with ClipReader(60) as reader:
        reader.info(made["plain"])
        assert reader._child is not None
        monkeypatch.setattr(reader._child, "stdout", Interrupted(reader._child.stdout))
        with pytest.raises(KeyboardInterrupt):
            reader.frames(made["plain"], [FramePlan((0.0,))])
        assert numbers(reader.frames(made["plain"], [FramePlan((0.5,))])[0]) == [12]


def test_the_child_ends_with_its_reader(made: dict[str, Path]):
    with ClipReader(60) as reader:
        reader.info(made["plain"])
        child = reader._child
    assert child is not None and not child.alive()


def test_the_reader_process_never_loads_torch(python: Callable[..., subprocess.CompletedProcess[str]]):
    code = "import sys; from minirlaif.video import decode_worker; decode_worker._has_decord(); print('torch' in sys.modules)"
    loaded = python("-c", code)
    assert loaded.stdout.strip() == "False", loaded.stderr


def test_clips_are_checked_before_anything_trains(tmp_path: Path, made: dict[str, Path], reader: ClipReader):
    text, gone, good = bad("text", tmp_path), tmp_path / "gone.mp4", made["plain"]
    infos, unreadable = check_clips([good, good, made["AV1"]], reader, 0.0)
    assert [info.path for info in infos] == [str(good), str(made["AV1"])] and not unreadable  # each once
    with pytest.raises(
        UserError, match=r"2 of 3 clips cannot be read: .*bad.mp4: not a video.*gone.mp4: the file does not"
    ) as caught:
        check_clips([good, text, gone], reader, 0.5)
    assert "--set video.max_unreadable=0.67" in str(caught.value)
    assert len(check_clips([good, text], reader, 0.5)[1]) == 1  # up to the limit
    infos, unreadable = check_clips([good, text, gone], reader, 0.67)
    assert len(infos) == 1 and [clip.path for clip in unreadable] == [str(text), str(gone)]
    with pytest.raises(UserError, match=r"30 of 30 .*and 10 more"):
        check_clips([tmp_path / f"gone{number}.mp4" for number in range(30)], reader, 0.0)
