"""A clip that is replaced after a stage has read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from minirlaif.errors import UserError
from minirlaif.runs import clips, hash_cache, io
from minirlaif.runs.run import Run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(b"first content")
    return tmp_path / "a.mp4"


@pytest.fixture
def run(runs_dir: Path, clip: Path) -> Run:
    """A run whose stage `feedback` has read the clip, and one of its own world."""
    run = Run(runs_dir / "r")
    read(run, "feedback", clip)
    return run


def read(run: Run, stage: str, clip: Path, inputs: tuple[str, ...] = (), commit: bool = False) -> None:
    """Make a stage that reads the clip, or leave it with a state."""
    with run.stage(stage, {}, inputs) as out:
        if out is None:
            return
        ids = {str(path): io.sha256(clip)[:16] for path in (clip, run.dir("world") / "clips" / "0.mp4")}
        clips.record(run.root, out.path, ids)
        out.commit_state(1, lambda folder: None)
        if commit:
            raise InterruptedError


def test_clips_of_the_world_are_vouched_for_by_its_manifest(run: Run, clip: Path) -> None:
    rows = [json.loads(line) for line in (run.dir("feedback") / "clips.jsonl").read_text().splitlines()]
    assert rows == [{"video": str(clip), "id": "2cd4837c7726f700"}]  # sha256sum | cut -c-16


@pytest.mark.parametrize("stage", ["feedback", "ppo"])
def test_the_stage_itself_and_those_made_from_it_notice(stage: str, run: Run, clip: Path) -> None:
    times = os.stat(clip)
    clip.write_bytes(b"other content")
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long and as old
    with pytest.raises(UserError, match=rf"^{clip}: replaced since `feedback` read it; .*: `python .* feedback .* --redo`$"):
        read(run, stage, clip, ("feedback",) if stage == "ppo" else ())


def test_a_begun_stage_notices(run: Run, clip: Path) -> None:
    with pytest.raises(InterruptedError):
        read(run, "ppo", clip, commit=True)
    clip.write_bytes(b"other content")
    with pytest.raises(UserError, match="a.mp4: replaced since `ppo` read it"):
        read(run, "ppo", clip)


@pytest.mark.parametrize("change", [os.remove, lambda clip: os.utime(clip, (1, 1)), lambda clip: None])
def test_a_clip_that_is_gone_or_merely_younger_is_none_that_was_replaced(change: Any, run: Run, clip: Path) -> None:
    change(clip)
    assert clips.replaced(run.root, run.dir("feedback")) == ""


def test_contents_are_hashed_again_only_where_a_file_changed(run: Run, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(hash_cache, "sha256", lambda path: hashed.append(path) or io.sha256(path))
    for times in ((1, 1), (1, 1), (2, 2)):
        if os.stat(clip).st_mtime != times[1]:
            os.utime(clip, times)
        assert clips.replaced(run.root, run.dir("feedback")) == ""
    assert hashed == [clip, clip]


@pytest.mark.parametrize("text", ["{", '["a.mp4"]', "{}"])
def test_a_damaged_list_is_one_line_with_the_command(text: str, run: Run) -> None:
    (run.dir("feedback") / "clips.jsonl").write_text(text + "\n")
    with pytest.raises(UserError, match=r"^.*feedback/clips.jsonl.*make the stage again: `python .* --redo`$"):
        read(run, "feedback", Path())


@pytest.mark.parametrize("name", ["a\0b.mp4", "\ud800.mp4", "x" * 5000])
def test_a_name_that_no_file_can_have_is_a_clip_that_is_gone(name: str, tmp_path: Path) -> None:
    (tmp_path / clips.NAME).write_text(json.dumps({"video": name, "id": "0"}) + "\n")
    assert clips.replaced(tmp_path, tmp_path) == ""
