"""Runs as the app reads them: which there are, what their stages wrote so far, and pictures of their clips. No torch."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.io import read_jsonl, sha256
from minirlaif.runs.run import Run
from minirlaif.stages.registry import ADAPTERS, PIPELINE, producers
from minirlaif.stats import exact_match
from minirlaif.video.frame_sampling import uniform_plan

ALIVE = 180.0  # seconds after which a stage that wrote nothing counts as stopped: states are saved every two minutes
Row = dict[str, Any]

VERDICT_FILTERS = {
    "all": lambda row: True,
    "the two orders disagree": lambda row: len(set(row["orders"])) > 1,
    "letters disagree with themselves": lambda row: len(set((row.get("letter") or {}).get("orders", ()))) > 1,
    "context changed the verdict": lambda row: row["choice"] != (row.get("without_context") or row)["choice"],
    "the reward model disagrees": lambda row: row.get("reward_says") == "other",
    "tie": lambda row: row["choice"] == "tie" and row["answer_a"] != row["answer_b"],
    "the same answer twice": lambda row: row["choice"] == "tie" and row["answer_a"] == row["answer_b"],
    "invalid": lambda row: row["choice"] == "invalid",
    "decided": lambda row: row["choice"] in ("A", "B"),
}


def runs(folder: Path) -> list[Run]:
    """Run folders that hold settings, the one that was worked on last first."""
    found = [path.parent for path in folder.glob("*/config.yaml")] if folder.is_dir() else []
    return [Run(path) for path in sorted(found, key=_touched, reverse=True)]


def _touched(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.glob("*/*.json*")), default=0.0)


def newest(folder: Path) -> Run | None:
    """The run whose aligned model finished last; without any, whose SFT model did; None where no run has a model."""
    for model in ADAPTERS:
        manifests = [(run, run.dir(stage.name) / "manifest.json") for run in runs(folder) for stage in producers(model)]
        finished = {run: path.stat().st_mtime for run, path in manifests if path.is_file()}
        if finished:
            return max(finished, key=lambda run: finished[run])
    return None


def at_work(run: Run) -> str:
    """The stage that is being made right now, or ""."""
    for stage in PIPELINE:
        written = [path.stat().st_mtime for path in run.partial(stage).glob("*.json*")]
        if written and time.time() - max(written) < ALIVE:
            return stage
    return ""


def rows(run: Run, stage: str, name: str) -> Sequence[Row]:
    """Lines of a stage's file, also while it is made; none where there is none. A last line may be half written."""
    for folder in (run.partial(stage), run.dir(stage)):
        path = folder / name
        if path.is_file():
            status = path.stat()
            return _rows(str(path), status.st_mtime_ns, status.st_size)
    return ()


@lru_cache(maxsize=32)
def _rows(path: str, changed: int, size: int) -> tuple[Row, ...]:
    return tuple(read_jsonl(Path(path), skip_damaged=True))


def verdicts(run: Run, wanted: str) -> list[Row]:
    """The judge's verdicts that pass a filter (a key of VERDICT_FILTERS), with what the reward model says of held-out ones."""
    scored = {row["id"]: row for row in rows(run, "reward", "held_out.jsonl")}
    passes = VERDICT_FILTERS[wanted]
    return [
        row for row in (_scored(row, scored.get(row["id"])) for row in rows(run, "feedback", "verdicts.jsonl")) if passes(row)
    ]


def _scored(row: Row, scores: Mapping[str, Any] | None) -> Row:
    if scores is None:
        return row
    says = "same" if scores["score_chosen"] > scores["score_rejected"] else "other"
    return {**row, "reward_says": says, "scores": (scores["score_chosen"], scores["score_rejected"])}


def answers(run: Run, wanted: str, kind: Any) -> list[Row]:
    """Test answers of one kind ("all": of every), those with frames first; `kind` is story.kind."""
    found = rows(run, "evaluate", "answers.jsonl")
    strips = {row["video"]: row["strip"] for row in found if row.get("strip")}
    known = [{**row, "strip": strips.get(row["video"], "")} for row in found if wanted == "all" or kind(row) == wanted]
    return sorted(known, key=lambda row: not row["strip"])


def located(run: Run, name: str) -> Path:
    """A clip as a stage's files name it, see workbench.located (which needs torch)."""
    return Path(os.path.abspath(run.root / "stage" / name))


def strip(run: Run, name: str, frames: int) -> bytes:
    """A JPEG of a clip's frames side by side, from the run's cache; empty when it is not there. The clip is found by its
    content, because a run may have been moved."""
    clip, cache = located(run, name), run.root / "cache" / "features.sqlite"
    if not clip.is_file() or not cache.is_file():
        return b""
    try:
        with closing(sqlite3.connect(f"{cache.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as db:
            content = sha256(clip)[:16]
            known = db.execute("SELECT info FROM clips WHERE path LIKE ? AND info LIKE ?", (f"%{clip.name}", f"%{content}%"))
            row = known.fetchone()
            if row is None:
                return b""
            plan = uniform_plan(json.loads(row[0])["seconds"], frames)
            found = db.execute("SELECT strip FROM vectors WHERE key LIKE ?", (f"{content}:{plan.key}:%",)).fetchone()
    except (sqlite3.Error, OSError, ValueError):
        return b""
    return bytes(found[0]) if found else b""


def example_clips(run: Run | None) -> list[Path]:
    """Clips that a person may try: some of the run's test clips, whose answers differ where there are any; else gradio's own."""
    if run is not None:
        found = rows(run, "evaluate", "answers.jsonl")
        telling = [row for row in found if row.get("truth") and not exact_match(row["sft"], row["rlaif"])]
        names = dict.fromkeys(row["video"] for row in [*telling, *found])
        clips = [clip for clip in (located(run, name) for name in names) if clip.is_file()]
        if clips:
            return clips[:12]
    import gradio

    return sorted((Path(gradio.__file__).parent / "media_assets" / "videos").glob("*.mp4"))


def example_questions(run: Run | None, wanted: int = 3) -> list[str]:
    """Questions that suit the model: of different kinds as its test has them, else plain ones."""
    by_kind: dict[str, str] = {}
    if run is not None:
        for row in rows(run, "evaluate", "answers.jsonl"):
            by_kind.setdefault(row.get("type") or row["question"], row["question"])
    short = [question for question in by_kind.values() if len(question) <= 60]
    told = sorted(short, key=lambda question: ("the video" not in question, any(c in question for c in ("after", "before"))))
    return told[:wanted] or ["What happens in this video?", "What happens first?", "Describe the video in detail."][:wanted]


def config_of(run: Run) -> Any:
    """The settings of a run, or None where they cannot be read."""
    from minirlaif import config

    try:
        return config.load(run.root / "config.yaml")
    except UserError:
        return None
