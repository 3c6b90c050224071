"""The verb `frames`: what it prints and writes of good and bad clips, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minirlaif.cli.main import main
from tests.fixtures import clips

KEYS = ["path", "reader", "seconds", "width", "height", "times", "repaired"]


def test_json_one_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = clips.write_clip(tmp_path / "a.mp4", width=96), tmp_path / "b.mp4"
    bad.write_text("no clip")
    assert main(["frames", str(good), str(bad), "--count", "4", "--json"]) == 2
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(first) == KEYS and list(second) == ["path", "refused"]
    assert first == {
        "path": str(good), "reader": "av", "seconds": 1.0, "width": 96, "height": 64, "times": [0.125, 0.375, 0.625, 0.875],
        "repaired": [],
    }  # fmt: skip
    assert second["path"] == str(bad) and second["refused"].startswith("not a video file")


def test_pictures_of_a_span(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = clips.write_clip(tmp_path / "a.mp4", width=96, rotation=90)
    words = ["--count", "2", "--start", "0.5", "--end", "0.75", "--out", str(tmp_path / "out")]
    assert main(["frames", str(clip), *words]) == 0
    text = capsys.readouterr().out
    assert "1.000 seconds, 64x96, turned by 90 degrees" in text and "read by av" in text
    assert "stream 0: video h264 96x64 (this one is read)" in text and "frames at 0.562, 0.688 seconds" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000_0.562.png", "001_0.688.png", "strip.png"]
    frame = np.asarray(Image.open(tmp_path / "out" / "001_0.688.png"))
    assert frame.shape == (96, 64, 3) and clips.number_of(np.rot90(frame, -1)) == 16  # floor(0.6875 x 24)
    assert Image.open(tmp_path / "out" / "strip.png").size == (128, 96)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "argument --count: 0: must be above 0"),
        (["--start", "2", "--end", "1"], "--start 2 --end 1: the end must lie after the start"),
        (["--start", "7"], "--start 7 lies behind its end at 1.00 seconds"),
        (["--end", "1:00"], "--end 60 lies behind its end at 1.00 seconds"),
        (["--start=-1"], "argument --start: -1: a time in seconds from 0, such as 2.5 or 1:30"),
        (["--end", "nan"], "argument --end: nan: a time in seconds from 0"),
    ],
)
def test_spans_that_make_no_sense(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = clips.write_clip(tmp_path / "a.mp4")
    assert main(["frames", str(clip), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_keeps_the_pictures_of_the_last_call_alone(tmp_path: Path):
    clip, out = clips.write_clip(tmp_path / "a.mp4"), tmp_path / "out"
    for count in ("3", "1"):
        assert main(["frames", str(clip), "--count", count, "--out", str(out)]) == 0
        (out / "my_000_0.1.png").touch()
    assert sorted(path.name for path in out.iterdir()) == ["000_0.500.png", "my_000_0.1.png", "strip.png"]


def test_the_flag_of_this_verb_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = clips.write_clip(
        tmp_path / "a.mp4", [number / 24 for number in range(200)], container_options={"movflags": "faststart"}
    )
    clip.write_bytes(clip.read_bytes()[:-500])
    assert main(["frames", str(clip), "--max-damaged", "0"]) == 2
    refused = capsys.readouterr().err
    share = refused.rpartition("--max-damaged ")[2].strip()
    assert "video.max_damaged" not in refused and main(["frames", str(clip), "--max-damaged", share]) == 0


def test_torch_is_not_loaded(tmp_path: Path, python):
    clip = clips.write_clip(tmp_path / "a.mp4")
    code = "import sys; from minirlaif.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = python("-c", code, "frames", str(clip), "--out", str(tmp_path / "out"))
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_a_part_of_a_clip_and_a_span_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = clips.write_clip(tmp_path / "clip.mp4", [number / 8 for number in range(32)], width=96)
    part, out = f"{clip}#t=1,2", tmp_path / "out"
    assert main(["frames", part, f"{part}.5", f"{clip}#t=9", "--count", "2", "--out", str(out), "--json"]) == 2
    first, _, refused = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["path"], first["seconds"], first["times"]) == (part, 1.0, [0.25, 0.75])
    assert refused["refused"] == "the part from 9 s lies behind the end of the clip at 4 s; name times within it"
    assert sorted(path.name for path in out.iterdir()) == ["001_clip", "002_clip"]
    numbers = [clips.number_of(np.asarray(Image.open(path))) for path in sorted((out / "001_clip").glob("00*.png"))]
    assert numbers == [10, 14]  # (1 + 0.25) x 8, (1 + 0.75) x 8
    assert main(["frames", part, "--count", "1", "--start", "0.5", "--end", "1.5", "--out", str(tmp_path / "one")]) == 0
    text = capsys.readouterr().out
    assert f"{part}: 1.000 seconds" in text and "frames at 0.750 seconds" in text and "(this one is read)" in text
    assert clips.number_of(np.asarray(Image.open(tmp_path / "one" / "000_0.750.png"))) == 14
    assert main(["frames", part, "--start", "1.5"]) == 2
    assert "--start 1.5 lies behind its end at 1.00 seconds" in capsys.readouterr().err
