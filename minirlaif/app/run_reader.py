"""What the app reads of runs: which exist, the files of their stages (also while they run), frames of their clips. No torch."""

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.reports.run_results import kind, start_answer
from minirlaif.runs.database import read_only
from minirlaif.runs.gains import split_name
from minirlaif.runs.io import real_path, sha256
from minirlaif.runs.records import SEAL, read_rows
from minirlaif.runs.run import Run
from minirlaif.stages.registry import ADAPTERS, producers
from minirlaif.stats import exact_match
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipInfo, UnreadableClip, part_info
from minirlaif.video.spans import file_of

RUNNING_SECONDS = 180.0  # a stage that wrote nothing for longer counts as stopped: state is saved every two minutes
PLACES = ("*/*.json*", "round-*/*/*.json*")  # files of stages, and of those of further rounds
Row = dict[str, Any]

VERDICT_FILTERS = {
    "all": lambda row: True,
    "the two orders disagree": lambda row: len(set(row["orders"])) > 1,
    "letter readout: the two orders disagree": lambda row: len(set((row.get("letter") or {}).get("orders", ()))) > 1,
    "context changed the verdict": lambda row: row["choice"] != (row.get("without_context") or row)["choice"],
    "the reward model disagrees": lambda row: row.get("reward_says") == "other",
    "tie": lambda row: row["choice"] == "tie" and row["answer_a"] != row["answer_b"],
    "identical answers": lambda row: row["choice"] == "tie" and row["answer_a"] == row["answer_b"],
    "invalid": lambda row: row["choice"] == "invalid",
    "decided": lambda row: row["choice"] in ("A", "B"),
}


class PublicRun(Run):
    """A run as visitors see it: clips that its files name outside its folder are not there."""

    def located(self, name: str) -> str:
        """The absolute path of a clip, also behind links, or "" for one outside the run."""
        path = super().located(name)
        return path if real_path(file_of(path)).is_relative_to(real_path(self.root)) else ""


def check_links(run: Run) -> None:
    """UserError for a link in a run that leads out of it, in whatever folder: its target was never meant to be shown.
    Stages that another run made lie behind links (`Run.take_over`), which visitors do not see either."""
    folders = [(run.root, real_path(run.root))]
    for folder, inside in folders:
        for entry in os.scandir(folder) if folder.is_dir() else ():
            path, target = Path(entry.path), real_path(entry.path) if entry.is_symlink() else None
            if target is None or target.is_relative_to(inside):
                inner = inside
            elif folder == run.root and _is_taken_over(target, entry.name) and not isinstance(run, PublicRun):
                inner = target
            else:
                raise UserError(f"{path.relative_to(run.root)}: a link out of the run is not followed; put a copy in its place")
            if path.is_dir() and (folder == run.root or target is None):
                folders.append((path, inner))


def without_links(run: Run | None) -> Run | None:
    """The run, or None for one that `check_links` refuses."""
    try:
        if run is not None:
            check_links(run)
    except UserError:
        return None
    return run


def _is_taken_over(target: Path, name: str) -> bool:
    return target.is_dir() and target.name == name and (target.parent / "config.yaml").is_file()


def runs(folder: Path) -> list[Run]:
    """Folders with a config.yaml, the last modified first."""
    folders = [path.parent for path in folder.glob("*/config.yaml")] if folder.is_dir() else []
    modified = {
        path: max((file.lstat().st_mtime for place in PLACES for file in path.glob(place)), default=0.0) for path in folders
    }
    return [Run(path) for path in sorted(folders, key=lambda path: modified[path], reverse=True)]


def newest_run(folder: Path) -> Run | None:
    """The run whose aligned model finished last; without any, whose SFT model did; None where no run has a model."""
    for model in ADAPTERS:
        manifests = [(run, run.dir(stage.name) / "manifest.json") for run in runs(folder) for stage in producers(model)]
        finished = {run: path.stat().st_mtime for run, path in manifests if path.is_file()}
        if finished:
            return max(finished, key=lambda run: finished[run])
    return None


def running_stage(run: Run) -> str:
    """The stage that is running, or ""."""
    for stage in run.order():
        written = [path.lstat().st_mtime for path in run.partial(stage).glob("*.json*")]
        if written and time.time() - max(written) < RUNNING_SECONDS:
            return stage
    return ""


def rows(run: Run, stage: str, name: str) -> Sequence[Row]:
    """Rows of a stage's file, finished or running, that are such rows; empty without a file."""
    for folder in (run.partial(stage), run.dir(stage)):
        path = folder / name
        if path.is_file():
            status = path.stat()
            return _rows(folder, stage, name, status.st_mtime_ns, status.st_size)
    return ()


@lru_cache(maxsize=32)
def _rows(folder: Path, stage: str, name: str, changed: int, size: int) -> tuple[Row, ...]:
    return tuple(read_rows(folder, split_name(stage)[1], name))


def picture(run: Run, name: str) -> bytes:
    """A picture of the evaluation by the name in an answer's row; empty when there is none, or not in the stage's folder."""
    folder = real_path(run.dir("evaluate"))
    path = real_path(folder / name)
    return path.read_bytes() if name and path.is_relative_to(folder) and path.is_file() else b""


def verdicts(run: Run, group: str) -> list[Row]:
    """The judge's verdicts that match a filter (a key of VERDICT_FILTERS); held-out ones with the scores of the reward model."""
    scored = {row["id"]: (row["score_chosen"], row["score_rejected"]) for row in rows(run, "reward", "held_out.jsonl")}
    verdicts = []
    for row in rows(run, "feedback", "verdicts.jsonl"):
        if scores := scored.get(row["id"]):
            row = {**row, "reward_says": "same" if scores[0] > scores[1] else "other", "scores": scores}
        if VERDICT_FILTERS[group](row):
            verdicts.append(row)
    return verdicts


def answers(run: Run, group: str) -> list[Row]:
    """Test answers of one group (a kind of `run_results.kind`, or "all"), those with frames first."""
    all_rows = rows(run, "evaluate", "answers.jsonl")
    strips = {row["video"]: row["strip"] for row in all_rows if row.get("strip")}
    chosen = [{**row, "strip": strips.get(row["video"], "")} for row in all_rows if group in ("all", kind(row))]
    return sorted(chosen, key=lambda row: not row["strip"])


def strip(run: Run, name: str, frames: int) -> bytes:
    """A JPEG of a clip's frames side by side, from the run's feature cache; empty if it is not cached. The clip is found by its
    content hash, because the run folder may have been moved."""
    video = run.located(name)
    clip, cache = Path(file_of(video)), run.root / "cache" / "features.sqlite"
    if not clip.is_file() or not cache.is_file():
        return b""
    try:
        with read_only(cache) as db:
            status = clip.stat()
            content = _content(clip, status.st_mtime_ns, status.st_size)
            infos = db.execute("SELECT info FROM clips WHERE path LIKE ? AND info LIKE ?", (f"%{clip.name}", f"%{content}%"))
            row = infos.fetchone()
            if row is None:
                return b""
            values = {name: value for name, value in json.loads(row[0]).items() if name != SEAL}
            info = part_info(ClipInfo(**values), video)
            plan = uniform_plan(info.seconds, frames)
            strips = db.execute("SELECT strip FROM vectors WHERE key LIKE ?", (f"{info.id}:{plan.key}:%",)).fetchone()
    except (sqlite3.Error, OSError, TypeError, ValueError, AttributeError, UnreadableClip):
        return b""
    return bytes(strips[0]) if strips else b""


@lru_cache(maxsize=1024)
def _content(clip: Path, changed: int, size: int) -> str:
    return sha256(clip)[:16]


def example_clips(run: Run | None) -> list[Path]:
    """Example clips: test clips of the run, those with different SFT and aligned answers first; without any, clips of Gradio."""
    if run is not None:
        all_rows = rows(run, "evaluate", "answers.jsonl")
        different = [row for row in all_rows if row.get("truth") and not exact_match(start_answer(row), row["rlaif"])]
        names = dict.fromkeys(row["video"] for row in [*different, *all_rows])
        # Parts of clips are left out: the page plays and reads files.
        clips = [clip for clip in (Path(run.located(name)) for name in names) if clip.is_file()]
        if clips:
            return clips[:12]
    import gradio

    return sorted((Path(gradio.__file__).parent / "media_assets" / "videos").glob("*.mp4"))


def example_questions(run: Run | None, count: int = 3) -> list[str]:
    """Example questions: one of each type in the run's test set; without any, general ones."""
    by_kind: dict[str, str] = {}
    if run is not None:
        for row in rows(run, "evaluate", "answers.jsonl"):
            by_kind.setdefault(row.get("type") or row["question"], row["question"])
    short = [question for question in by_kind.values() if len(question) <= 60]
    short.sort(key=lambda question: ("the video" not in question, any(word in question for word in ("after", "before"))))
    return (short or ["What happens in this video?", "What happens first?", "Describe the video in detail."])[:count]


def config_of(run: Run) -> Any:
    """The settings of a run, or None if they cannot be read."""
    from minirlaif import config

    try:
        return config.load(run.root / "config.yaml")
    except UserError:
        return None
