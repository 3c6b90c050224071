"""Rows of a run's data, and what is checked of them before anything trains."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from minirlaif import distributed
from minirlaif.config import DataSection, RewardSection, SftSection
from minirlaif.data import left_out
from minirlaif.data.columns import MEANING
from minirlaif.data.dataset import load_preferences, load_samples
from minirlaif.data.left_out import LeftOut, RowRules
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from minirlaif.stages.registry import STAGES
from minirlaif.types import Preference, Sample
from minirlaif.video.reader import KnowsClips, UnreadableClip, check_clips, too_many

Row = TypeVar("Row", Sample, Preference)
T = TypeVar("T")


@dataclass(frozen=True)
class Preflight:
    """The settings that the checks before training read. normalize_by: of `rollout`, where no stage before looked at it."""

    data: DataSection
    sft: SftSection
    reward: RewardSection
    normalize_by: str = ""


def read_samples(data: DataSection, run: Run, part: str, need_answers: bool, max_missing: float = 0.0) -> list[Sample]:
    """The rows of a part of the data: "sft", "prompts", "dev" or "test"; from the tiny world where the config asks for it.

    max_missing: see RowRules (video.max_unreadable). What is left out is listed in the run's left_out.jsonl.
    """
    if data.world:
        made = str(run.require("world") / f"{part}.jsonl")
        with _made_by(run, "world"):
            return _absolute(load_samples(made, need_answers=need_answers))
    sources = {"sft": data.sft, "prompts": data.prompts, "dev": data.dev, "test": data.test}[part]
    if not sources and data.writes_questions and data.has(part):
        made = str(run.require("questions") / f"{part}.jsonl")
        with _made_by(run, "questions"):
            return _absolute(load_samples(made, need_answers=need_answers))
    if not sources:
        raise UserError(f"data.{part}: names no file; set it to the files to read (or data.world to tiny)")
    taken: set[str] = set()
    rows: list[Sample] = []
    for number, source in enumerate(sources, start=1):  # two files may both count their rows from 1
        rules = RowRules(data.ignore_columns, data.max_bad_rows, max_missing)
        file = load_samples(source, data.videos, need_answers, rules)
        _list_rows(run, source, rules)
        rows += [replace(sample, id=f"{sample.id}@{number}") if sample.id in taken else sample for sample in file]
        taken |= {sample.id for sample in rows}
    return _absolute(spread(rows, data.max_rows))


def spread(rows: Sequence[T], most: int) -> list[T]:
    """So many of the rows, evenly spaced; 0: all."""
    count = min(most, len(rows)) if most else len(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


def read_dev(data: DataSection, run: Run, max_missing: float = 0.0) -> list[Sample]:
    """The prompts on which the judge picks a checkpoint; none where the config names none."""
    if not data.dev and data.writes_questions and not (run.require("questions") / "dev.jsonl").is_file():
        return []  # too few clips to keep one back
    return read_samples(data, run, "dev", need_answers=False, max_missing=max_missing) if data.has("dev") else []


def read_preferences(data: DataSection, run: Run, max_missing: float = 0.0) -> list[Preference]:
    """Rows of the preference files of the data, with absolute clip paths; otherwise as `read_samples`."""
    rows = []
    for source in data.preferences:
        rules = RowRules(data.ignore_columns, data.max_bad_rows, max_missing)
        rows += _absolute(load_preferences(source, data.videos, rules))
        _list_rows(run, source, rules)
    return spread(rows, data.max_rows)


def read_judged(run: Run) -> list[Preference]:
    """The preferences that the run's own stage `feedback` wrote, with the token ids of their answers as they were sampled. What
    they carry along, such as system turns, was checked."""
    rules = RowRules(ignore=sorted(MEANING - {"context", "chosen", "rejected"}))
    file = str(run.require("feedback") / "preferences.jsonl")
    with _made_by(run, "feedback"):
        rows = _absolute(load_preferences(file, rules=rules))
    ids: dict[tuple[str, str], tuple[int, ...]] = {}
    for record in run.rows("feedback", "answers.jsonl", "id", "answers"):
        ended = record.get("stopped") or [True] * len(record["answers"])
        for text, each, stopped in zip(record["answers"], record.get("ids") or (), ended, strict=False):
            if stopped:  # one that was cut may have the same text
                ids.setdefault((record["id"], text), tuple(each))
    prompts = [row.id.rpartition("#")[0] for row in rows]
    return [
        replace(row, chosen_ids=ids.get((prompt, row.chosen), ()), rejected_ids=ids.get((prompt, row.rejected), ()))
        for prompt, row in zip(prompts, rows, strict=True)
    ]


@contextmanager
def _made_by(run: Run, stage: str) -> Iterator[None]:
    """Rows that a stage of the run wrote: a UserError about them gets the command that makes it again."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; make the stage again: `{run.remake(stage)}`") from None


def _list_rows(run: Run, source: str, rules: RowRules) -> None:
    """List what was left out of a source: of a file, or of the file of questions in a folder."""
    left_out.write(run.root, rules.left_out, lambda entry: source in (entry.file, os.path.dirname(entry.file)))


def _absolute(rows: Sequence[Row]) -> list[Row]:
    """A clip has one name everywhere in the process, whatever folder the command was started in."""
    return [replace(row, video=os.path.abspath(row.video)) for row in rows]


def readable(rows: Sequence[Row], clips: KnowsClips, max_unreadable: float, root: Path | None = None) -> list[Row]:
    """Rows whose clips can be read. clips: gives a clip's ClipInfo, and remembers it for the other processes; root: of the run,
    whose left_out.jsonl lists the others.

    Raises:
        UserError: more clips than the share `max_unreadable` cannot be read, and more rows than that share are about them.
    """
    paths = sorted({row.video for row in rows})
    if distributed.count() > 1:  # each process reads a share first; the cache then has all of it for everyone
        check_clips(distributed.share(paths), clips, 1.0)
        distributed.wait()
    infos, bad = check_clips(paths, clips, 1.0)
    places = {row.video: row.where for row in reversed(rows)}
    bad = [UnreadableClip(c.path, f"{c.reason} ({places[c.path]})" if places[c.path] else c.reason) for c in bad]
    names = {clip.path for clip in bad}
    if len(bad) > max_unreadable * len(paths) and sum(row.video in names for row in rows) > max_unreadable * len(rows):
        raise too_many(bad, len(paths))
    for clip in bad:
        print(f"left out: {clip}", flush=True)
    if (repaired := sum(bool(info.repaired) for info in infos)) and distributed.leads():
        print(f"{repaired} of {len(infos)} clips were repaired while they were read (see `repaired:` above, or the verb frames)")
    if root is not None:
        left_out.write(root, [LeftOut("clip", clip.path, 0, clip.reason) for clip in bad], lambda entry: entry.file in paths)
    good = {info.path for info in infos}
    return [row for row in rows if row.video in good]


def check_column(column: str, prompts: Sequence[Sample]) -> None:
    """UserError: no prompt has the column that rollout.normalize_by names."""
    known = sorted({name for row in prompts for name in row.tags})
    if column and column not in known:
        there = f"they have {', '.join(known)}" if known else "they have no further columns"
        raise UserError(f"rollout.normalize_by is {column}, a column that no prompt has: {there}; name one of them, or none")


def _written(data: DataSection, run: Run, part: str) -> bool:
    """Whether the run has written questions of this part."""
    return data.writes_questions and run.manifest("questions") is not None and (run.dir("questions") / f"{part}.jsonl").is_file()


def rows_ahead(data: DataSection, run: Run, max_missing: float = 0.0) -> dict[str, list[Any]]:
    """The rows that the first unfinished stage of the run and all later ones read, by part of the data; of the tiny world only
    those with a limit. A part that names no source is left out: whether a stage can do without it is the stage's to say."""
    stages = [STAGES[name] for name in run.stages if STAGES[name].reads]
    first = next((i for i, stage in enumerate(stages) if run.manifest(stage.name) is None), len(stages))
    rows: dict[str, list[Any]] = {}
    for part in dict.fromkeys(part for stage in stages[first:] for part in stage.reads):
        if part == "preferences":
            rows[part] = read_preferences(data, run, max_missing)
        elif getattr(data, part) or (data.world and part == "sft") or _written(data, run, part):
            rows[part] = read_samples(data, run, part, need_answers=part == "sft", max_missing=max_missing)
    return rows
