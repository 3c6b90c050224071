"""The laptop run made so small that all its stages take seconds. Commands go through the real command line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minirlaif.cli import main

TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"
STAGES = ("world", "sft", "feedback", "reward", "ppo", "evaluate")
SETTINGS = (
    "video.frames=12 video.segment_frames=6 video.segment_seconds=1.0"
    " world.sft_clips=6 world.sft_short_clips=6 world.prompt_clips=8 world.dev_clips=3 world.test_clips=4"
    " world.questions_per_clip=3"
    " sft.epochs=1 sft.batch_size=4 sft.save_steps=2"
    " feedback.answers=4 feedback.pairs_per_prompt=2 feedback.batch_size=6 feedback.margin=0 feedback.readout=likelihood"
    " reward.epochs=1 reward.batch_size=4 reward.save_steps=1 reward.min_accuracy=0 reward.held_out=0.3"
    " rollout.rollouts=8 ppo.iterations=3 ppo.minibatch_size=4 ppo.dev_every=2 ppo.save_every=1"
    " evaluate.bootstrap=50 export.enabled=false"
).split()


def words(runs_dir: Path, stages: Iterable[str], *settings: str) -> list[str]:
    """The command line that makes stages of run `a`."""
    flags = ["--config", str(TINY), "--run", "a", "--runs-dir", str(runs_dir)]
    return ["run", *stages, *flags, "--set", *SETTINGS, *settings]


def make(runs_dir: Path, stages: Iterable[str], *settings: str) -> Path:
    """Make stages of run `a` in this process; returns its folder."""
    assert main.main(words(runs_dir, stages, *settings)) == 0
    return runs_dir / "a"


def begin(finished: Path, runs_dir: Path, stages: Iterable[str]) -> Path:
    """A run `a` that has the given stages of a finished run, and nothing else: no feature cache."""
    for stage in stages:
        shutil.copytree(finished / stage, runs_dir / "a" / stage)
    return runs_dir / "a"


def files(folder: Path) -> set[str]:
    """Files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def results(run: Path, stages: Iterable[str]) -> dict[str, str]:
    """Hashes of everything that must not depend on when and where a run was made: all but timings."""
    return {
        f"{stage}/{name}": hashlib.sha256((run / stage / name).read_bytes()).hexdigest()
        for stage in stages
        for name in files(run / stage) - {"manifest.json"}
    }


def manifest(run: Path, stage: str) -> dict[str, Any]:
    """The manifest of a finished stage."""
    content: dict[str, Any] = json.loads((run / stage / "manifest.json").read_text())
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
