"""How many clips of a test an earlier stage has read: counted by content, and unknown rather than guessed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minirlaif import config
from minirlaif.runs.run import Run
from minirlaif.session import settings_of
from minirlaif.stages.evaluate import seen_before
from minirlaif.types import Sample
from minirlaif.video.reader import UnreadableClip

PARTS = {"sft": "sft", "feedback": "prompts", "reward": "preferences"}


def session() -> Any:
    """Content ids of clips, without decoding; a file that holds "bad" cannot be read."""

    def info(video: str) -> Any:
        content = Path(video).read_bytes()
        if content == b"bad":
            raise UnreadableClip(video, "bad")
        return SimpleNamespace(id=hashlib.sha256(content).hexdigest())

    return SimpleNamespace(feature_cache=SimpleNamespace(info=info))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose three stages have read one clip each, with dev rows about the clip of prompts."""
    for name in (*PARTS.values(), "new", "bad"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    for name in PARTS.values():
        row = {"video": f"{name}.mp4", "question": "what?", "answer": "this."}
        row |= {"chosen": "a.", "rejected": "b."} if name == "preferences" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps([row, {**row, "video": "bad.mp4"}]))
    cfg = config.load(None, [f"data.{name}=[{tmp_path / name}.json]" for name in PARTS.values()])
    run = Run(tmp_path / "run")
    for stage, part in PARTS.items():
        with run.stage(stage, settings_of(cfg.seed, cfg.data, [part, "dev"], model=cfg.model)):
            pass
    return run


def asked(folder: Path, *names: str) -> list[Sample]:
    return [Sample(f"{name}{number}", str(folder / f"{name}.mp4"), ()) for number in range(2) for name in names]


def test_clips_are_counted_by_content(run: Run, tmp_path: Path) -> None:
    assert seen_before(session(), run, asked(tmp_path, "new")) == 0
    for name in PARTS.values():
        assert seen_before(session(), run, asked(tmp_path, "new", name)) == 1, name
    (tmp_path / "copy.mp4").write_bytes(b"sft")
    assert seen_before(session(), run, asked(tmp_path, "copy", "sft", "new")) == 2


def test_another_part_of_the_same_file_was_read_too(run: Run, tmp_path: Path) -> None:
    tests = [Sample("a", f"{tmp_path}/sft.mp4#t=1,2", ()), Sample("b", f"{tmp_path}/new.mp4#t=1,2", ())]
    assert seen_before(session(), run, tests) == 1


@pytest.mark.parametrize("name", ["sft.json", "prompts.json", "preferences.json", "sft.mp4"])
def test_what_is_gone_or_changed_is_not_guessed(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).rename(tmp_path / "elsewhere")
    assert seen_before(session(), run, asked(tmp_path, "new")) is None
    if name.endswith(".json"):
        (tmp_path / name).write_text((tmp_path / "elsewhere").read_text() + " ")
        assert seen_before(session(), run, asked(tmp_path, "new")) is None
