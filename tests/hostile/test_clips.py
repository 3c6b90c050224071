"""A thousand mutated clips through the checks before training and the real reader: each is read, or refused in one line."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from minirlaif.data import preflight
from minirlaif.data.dataset import load_samples
from minirlaif.errors import UserError
from minirlaif.runs.clips import located
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipInfo, ClipReader, UnreadableClip
from tests.fixtures import encoded_clips
from tests.fixtures.mutations import mutated

pytestmark = pytest.mark.hostile
GROUPS, CLIPS = 20, 50  # files of rows, and clips that each of them names
LIMIT = 10.0  # seconds of the decoder for one call
SLACK = 5.0  # to end it and start another one
SOURCES = (
    "h264_g12_b2.mp4 h264_g50_b0.mkv h264_g12_b0.ts h264_one_b2.mov h264_g50_b2.avi h264_g12_b2.flv hevc_g12_open-gop=1.mp4"
    " hevc_g50_open-gop=0.mkv vp9_g12.webm vp8_g12.mkv av1.mp4 mpeg2_g12_b2.mpg mpeg2_g1_b0.vob mpeg1_g12_b0.avi"
    " mpeg4_g12_b2.avi xvid_g12_b0.mkv wmv2_g12.wmv msmpeg4_g12.asf flv1.flv picture.gif mjpeg.avi prores.mov ffv1.mkv theora.ogv"
    " rot90.mp4 fragments.mp4 ten_bits.mkv interlaced.ts"
).split()


class TimedReader(ClipReader):
    """seconds: what each call of `info` took."""

    def __init__(self) -> None:
        super().__init__(LIMIT)
        self.seconds: list[float] = []

    def info(self, path: str | Path) -> ClipInfo:
        began = time.monotonic()
        try:
            return super().info(path)
        finally:
            self.seconds.append(time.monotonic() - began)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, recipes = tmp_path_factory.mktemp("sources"), {recipe.name: recipe for recipe in encoded_clips.recipes()}
    return [encoded_clips.encode(folder / name, recipes[name]) for name in SOURCES]


def write_group(folder: Path, number: int, sources: list[Path]) -> tuple[Path, list[str]]:
    """A file of rows about mutated clips, and the kinds of the mutations."""
    dice, rows, kinds = random.Random(f"clips {number}"), [], []
    for place in range(CLIPS):
        source, other = dice.sample(sources, 2)
        kind, data = mutated(source.read_bytes(), dice, other.read_bytes())
        clip = folder / f"{place:03}{source.suffix}"
        clip.write_bytes(data)
        kinds.append(kind)
        rows.append({"video": clip.name, "question": "what happens?", "answer": "a red circle."})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, kinds


def one_line(text: str) -> bool:
    return 0 < len(text) < 2000 and "\n" not in text and "Traceback" not in text


def test_mutated_clips_are_read_or_refused_in_one_line(sources: list[Path], tmp_path: Path) -> None:
    counts, problems, slowest = Counter[str](), [], 0.0
    with TimedReader() as reader:
        for number in range(GROUPS):
            folder = tmp_path / str(number)
            folder.mkdir()
            path, kinds = write_group(folder, number, sources)
            samples = load_samples(str(path))
            good = preflight.readable(samples, reader, 1.0, folder)
            left_out = {
                located(folder / "stage", row["file"]): row["reason"]
                for row in map(json.loads, lines_of(folder / "left_out.jsonl"))
            }
            clips = dict(zip((sample.video for sample in samples), kinds, strict=True))
            if {sample.video for sample in good} | set(left_out) != set(clips) or len(good) + len(left_out) != CLIPS:
                problems.append(f"group {number}: a clip is neither read nor listed")
            problems += [f"{clip} ({clips[clip]}): {reason}" for clip, reason in left_out.items() if not one_line(reason)]
            for reason in left_out.values():
                counts["crashed" if "crashed" in reason else "timed out" if "no answer within" in reason else "refused"] += 1
            if left_out:
                with pytest.raises(UserError, match=r"clips? cannot be read"):
                    preflight.readable(samples, reader, 0.0, folder)
            for sample in good:
                began = time.monotonic()
                try:
                    (frames,) = reader.frames(sample.video, [uniform_plan(reader.info(sample.video).seconds, 4)])
                    counts["read"] += 1
                    if len(frames) != 4:
                        problems.append(f"{sample.video} ({clips[sample.video]}): {len(frames)} frames")
                except UnreadableClip as error:
                    counts["refused later"] += 1
                    if not one_line(error.reason):
                        problems.append(f"{sample.video} ({clips[sample.video]}): {error.reason}")
                reader.seconds.append(time.monotonic() - began)
    slowest = max(reader.seconds)
    print(f"{GROUPS * CLIPS} clips: {dict(counts)}; the slowest call took {slowest:.1f} s")
    assert not problems, "\n".join(problems)
    assert slowest < 2 * LIMIT + SLACK  # `info` and `frames` of one clip
    assert sum(counts.values()) == GROUPS * CLIPS
    assert counts["read"] >= 0.2 * GROUPS * CLIPS and counts["refused"] >= 0.2 * GROUPS * CLIPS, counts


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
