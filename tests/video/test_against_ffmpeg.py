"""The reader against ffmpeg, frame by frame: clips of many kinds, and damaged ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minirlaif.video import av_packets, decode_worker
from minirlaif.video.containers import Unreadable
from minirlaif.video.frame_sampling import FramePlan, uniform_plan
from minirlaif.video.preparation import SPREAD
from minirlaif.video.reader import ClipReader, UnreadableClip
from tests.fixtures import encoded_clips as clips

FRAMES = 16
LEVELS = 8.0  # of 255 by which a frame may differ on average
SAMPLE = (
    "h264_g12_b2.mp4 h264_g50_b2.mov h264_one_b2.mkv h264_g12_b2.avi h264_g12_b0.flv h264_g12_b2.ts h264_g50_b2.mts"
    " hevc_g12_open-gop=1.ts hevc_g12_open-gop=1.mkv vp9_g12.webm av1.mp4 mpeg2_g12_b2.mpg mpeg2_g1_b0.mpg mpeg1_g12_b2.mpg"
    " mpeg2_g12_b2.vob xvid_g12_b2.avi mpeg4_g12_b2.avi wmv2_g12.wmv picture.gif rate30000_1001.ts rot90.mp4 aspect16_11.mp4"
    " refresh.mp4 rate1000.avi open_groups.mkv cut.mp4 uneven.mkv"
).split()
FAR_SAMPLE = (
    "open_groups.mp4 h264_g50_b2.ts hevc_g12_open-gop=1.mkv mpeg1_g12_b2.avi xvid_g12_b2.avi mpeg2_g12_b2.mpg mpeg2_g12_b2.vob"
).split()
FAR_FRAMES, FAR_SIZE = 400, (80, 64)
LARGE = "h264_g50_b2.mp4 h264_g50_b2.ts open_groups.mp4 open_groups.mkv hevc_g50_open-gop=1.mkv hevc_g50_open-gop=1.ts".split()
LARGE_FRAMES = 280
SURE = 0.85  # of a frame's duration: near its end the next one counts already (clocks.SLACK)
MUTATED = ("h264_g12_b2.mp4", "h264_g50_b2.mkv", "h264_g12_b2.ts", "hevc_g12_open-gop=0.mp4", "mpeg2_g12_b2.mpg")
MUTATED += ("mpeg4_g12_b0.avi", "vp9_g12.webm", "wmv2_g12.wmv", "mjpeg.avi", "h264_g12_b0.flv")
MUTATIONS = 1000
RECIPES = {recipe.name: recipe for recipe in clips.recipes()}


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    with ClipReader(60) as reader:
        yield reader


def faults(path: Path, reader: ClipReader) -> list[str]:
    """What differs between the reader's frames of a clip and ffmpeg's at the same times."""
    times, expected = clips.shown(path)
    info = reader.info(path)
    plan = uniform_plan(info.seconds, FRAMES)
    (actual,) = reader.frames(path, [plan])
    return unlike(path, times, expected, plan, actual)


def unlike(path: Path, times: list[float], expected: np.ndarray, plan: FramePlan, actual: Sequence[np.ndarray]) -> list[str]:
    """Frames of a plan that are not those that ffmpeg shows."""
    problems = []
    for when, frame in zip(plan.times, actual, strict=True):
        row, number = clips.on_screen(times, when), clips.number_of(frame)
        if row >= len(expected):
            problems.append(f"{path.name}: at {when:.3f} frame {number}, where ffmpeg shows none")
        elif (gap := difference(frame, expected[row])) > LEVELS or number != clips.number_of(expected[row]):
            problems.append(f"{path.name}: at {when:.3f} frame {number}, not {clips.number_of(expected[row])}, off by {gap:.1f}")
    return problems


def far_faults(path: Path, reader: ClipReader, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What differs at one to three times far from each other and from the start, and what is reported of a sound clip.

    A clip of H.264 or HEVC is read twice, the second time as if it were large: frames that none of these refers to are skipped.
    """
    times, expected = clips.shown(path)
    allowed = set[str]()
    if times != sorted(times):  # ffmpeg puts several small frames into a packet of a program stream, with the time of one
        times = [number * (times[-1] - times[0]) / (len(times) - 1) for number in range(len(times))]
        allowed = {SPREAD}
    dice = random.Random(path.name)
    rows = sorted(dice.sample(range(len(times) // 5, len(times) - 1), dice.randint(1, 3)))
    plan = FramePlan(tuple(times[row] + dice.uniform(0, SURE) * (times[row + 1] - times[row]) for row in rows))
    (actual,) = reader.frames(path, [plan])
    problems = unlike(path, times, expected, plan, actual)
    problems += [f"{path.name}: {text}" for text in allowed ^ set(reader.repaired.get(str(path), ()))]
    if RECIPES[path.name].codec in ("libx264", "libx265"):
        monkeypatch.setattr(av_packets, "WHOLE_PIXELS", 0)
        request = {"verb": "frames", "path": str(path), "plans": [plan.times], "size": None, "reader": "av", "max_damaged": 0.05}
        header, frames = decode_worker.answer(request)
        problems += [f"skipping, {text}" for text in unlike(path, times, expected, plan, frames[header["places"][0]])]
        problems += [f"skipping, {path.name}: {text}" for text in header["repaired"]]
    return problems


def encoded_far(path: Path) -> Path:
    return clips.encode(path, replace(RECIPES[path.name], frames=FAR_FRAMES, size=FAR_SIZE))


def difference(frame: np.ndarray, expected: np.ndarray) -> float:
    """Mean difference of two pictures, the second one in the shape of the first (square samples)."""
    if frame.shape != expected.shape:
        expected = np.asarray(Image.fromarray(expected).resize(frame.shape[1::-1], Image.Resampling.BICUBIC))
    return float(np.abs(frame.astype(int) - expected).mean())


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_kinds_shows_the_frames_of_ffmpeg(name: str, tmp_path: Path, reader: ClipReader):
    path = clips.encode(tmp_path / name, RECIPES[name])
    assert faults(path, reader) == []
    assert reader.repaired.get(str(path)) is None  # a sound clip


@pytest.mark.learning
def test_all_kinds_show_the_frames_of_ffmpeg(tmp_path: Path, reader: ClipReader):
    """None is silently wrong, and at most 5 % are refused."""
    assert len(RECIPES) >= 200
    wrong, refused = [], []
    for name, recipe in RECIPES.items():
        try:
            wrong += faults(clips.encode(tmp_path / name, recipe), reader)
        except UnreadableClip as error:
            refused.append(str(error))
    print(f"{len(RECIPES)} clips, {len(refused)} refused")
    assert not wrong and len(refused) <= 0.05 * len(RECIPES), (wrong, refused)


@pytest.mark.parametrize("name", FAR_SAMPLE)
def test_a_sample_of_kinds_far_from_the_start(name: str, tmp_path: Path, reader: ClipReader, monkeypatch: pytest.MonkeyPatch):
    assert far_faults(encoded_far(tmp_path / name), reader, monkeypatch) == []


@pytest.mark.learning
def test_all_kinds_far_from_the_start(tmp_path: Path, reader: ClipReader, monkeypatch: pytest.MonkeyPatch):
    """The reader seeks and skips: no frame is wrong, no sound clip is reported, and at most 5 % are refused."""
    wrong, refused = [], []
    for name in RECIPES:
        path = encoded_far(tmp_path / name)
        try:
            wrong += far_faults(path, reader, monkeypatch)
        except (UnreadableClip, Unreadable) as error:
            refused.append(f"{name}: {error}")
        path.unlink()
    print(f"{len(RECIPES)} clips of {FAR_FRAMES} frames, {len(refused)} refused", *wrong, sep="\n")
    assert not wrong and len(refused) <= 0.05 * len(RECIPES), (wrong, refused)


@pytest.mark.learning
@pytest.mark.parametrize("name", LARGE)
def test_large_clips_far_from_the_start(name: str, tmp_path: Path, reader: ClipReader):
    """Decoded by several threads, and frames that no other refers to are skipped. Frame n of these is on screen from n/25 s."""
    recipe = RECIPES[name]
    scaled = (*recipe.args, "-vf", "scale=1280:720:flags=neighbor")
    path = clips.encode(tmp_path / name, replace(recipe, args=scaled, frames=LARGE_FRAMES, size=(160, 90)))
    assert LARGE_FRAMES * 1280 * 720 > av_packets.WHOLE_PIXELS
    dice = random.Random(name)
    rows = sorted(dice.sample(range(60, LARGE_FRAMES), 4))
    for asked in (rows, rows[-1:]):
        (frames,) = reader.frames(path, [FramePlan(tuple((row + 0.4) / 25 for row in asked))])
        assert [clips.number_of(frame) for frame in frames] == asked
    assert reader.repaired.get(str(path)) is None


def mutated(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """Bytes flipped, cut off or out, or a piece of another file put in. The first 64 bytes stay: the file is still a clip."""
    changed = bytearray(data)
    kind = dice.choice(("flip", "flip", "cut", "splice"))
    if kind == "flip":
        for _ in range(dice.choice((1, 2, 5, 20))):
            changed[dice.randrange(64, len(changed))] ^= 1 << dice.randrange(8)
    elif kind == "cut" and dice.random() < 0.5:
        del changed[dice.randrange(len(changed) // 2, len(changed)) :]
    else:
        start, length = dice.randrange(64, len(changed)), dice.choice((10, 200, 2000))
        piece = other[start : start + length] if kind == "splice" else b""
        changed[start : start + length] = piece
    return bytes(changed)


@pytest.mark.learning
@pytest.mark.parametrize("seed", [12, 15])
def test_damaged_clips_are_right_reported_or_refused(tmp_path: Path, seed: int):
    """No hang, no crash, most are used, and no frame that is far from ffmpeg's goes without a report."""
    dice, counts, silent = random.Random(seed), Counter[str](), []
    sources = [clips.encode(tmp_path / name, RECIPES[name]) for name in MUTATED]
    with ClipReader(20) as reader:
        for number in range(MUTATIONS):
            source = sources[number % len(sources)]
            path = tmp_path / f"{number}{source.suffix}"
            path.write_bytes(mutated(source.read_bytes(), sources[(number + 1) % len(sources)].read_bytes(), dice))
            try:
                wrong = faults(path, reader)
            except UnreadableClip as error:
                lost = "no answer within" in str(error) or "crashed" in str(error)
                counts["lost" if lost else "refused"] += 1
                path.unlink()
                continue
            reported = str(path) in reader.repaired
            counts["reported" if reported else "silent" if wrong else "right"] += 1
            silent += [] if reported else wrong[:1]
            if reported or not wrong:
                path.unlink()
    print(dict(counts))
    assert not silent and not counts["lost"], (silent, counts)
    assert counts["right"] + counts["reported"] >= 0.6 * MUTATIONS, counts
