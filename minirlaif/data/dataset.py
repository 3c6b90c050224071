"""Loads samples and preferences: rows of any known format (formats.py) from json, jsonl, parquet, a folder of clips, or the hub.

Everything is checked before training: a file's problems are collected and raised together, each with its row. Rows count from 1;
in jsonl and questions.txt the row is the line. Clips are only located (tables.py); video/reader.py opens them.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from minirlaif.data.cells import CLIP_SUFFIXES, BadRow
from minirlaif.data.formats import UNDECIDED, parse_preference, parse_sample
from minirlaif.data.left_out import LeftOut, RowRules
from minirlaif.data.tables import (
    ClipFolder,
    MissingClip,
    clip_files,
    hub_rows,
    json_rows,
    json_value,
    parquet_rows,
    raise_all,
    text_lines,
)
from minirlaif.errors import UserError, counted
from minirlaif.runs.io import sha256
from minirlaif.types import Preference, Sample

_DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
_QUESTION_FILES = ("questions.txt", "questions.json", "questions.jsonl")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?")

_Record = TypeVar("_Record", Sample, Preference)


@dataclass(frozen=True)
class _Table:
    name: str  # as shown in messages
    clips: Path | None  # folder that clip names start from
    rows: Sequence[tuple[int, Any]]  # row number and decoded row, or the BadRow that came instead


def load_samples(source: str, videos: str = "", need_answers: bool = True, rules: RowRules | None = None) -> list[Sample]:
    """Conversations about clips.

    Args:
        source: a json, jsonl or parquet file; a folder of clips with questions.txt (every question is asked of every clip),
            questions.json ({clip: [questions]}) or questions.jsonl (rows);
            or a hub data set `owner/name[/config][@revision][:split]`, asked for only where no such file or folder exists.
        videos: folder that relative clip names start from; empty: the data file's own folder.
        need_answers: True for training: every question needs an answer and a row is one sample. False for prompts: one sample per
            question, asked without the turns before it; answers stay in the turns where the file has them (truth for `evaluate`).
        rules: columns to pass over, and what may be left out; None: nothing but repetitions of a row.

    Returns:
        samples in file order. Ids are stable: the row's own id where no other row has it, otherwise a hash of clip and text
        (and `#2`, `#3` … for the later questions of a conversation when need_answers is False).

    Raises:
        UserError: all problems of the file; the first line alone says which file and row, what is wrong and what to do.
    """
    rules = rules or RowRules()
    parse = partial(parse_sample, need_answers=need_answers, ignore=rules.ignore)
    samples = _load(_table(source, videos), parse, rules)
    if need_answers:
        return samples
    return [
        replace(sample, id=sample.id + (f"#{number}" if number > 1 else ""), turns=(turn,))
        for sample in samples
        for number, turn in enumerate(sample.turns, 1)
    ]


def load_preferences(source: str, videos: str = "", rules: RowRules | None = None) -> list[Preference]:
    """Pairs with a winner; arguments, ids and errors as for `load_samples`, one question per row; other votes are left out."""
    table = _table(source, videos)
    rows = [row for row in table.rows if not (isinstance(row[1], dict) and row[1].get("preference") in UNDECIDED)]
    if len(rows) < len(table.rows):
        count = len(table.rows) - len(rows)
        _print_once(f"{source}: left out {counted(count, 'vote')} without a winner (tie, both bad)")
    rules = rules or RowRules()
    return _load(replace(table, rows=rows), partial(parse_preference, ignore=rules.ignore), rules)


def fingerprint(source: str, videos: str = "") -> str:
    """sha256 of a data file; for a folder, of its questions and its clips' names; "" for a hub name or a missing file."""
    path = Path(os.path.expanduser(source))
    if not path.is_dir():
        return sha256(path) if path.is_file() else ""
    questions = [sha256(file) for file in question_files(path)]
    names = [str(clip) for clip in clip_files(Path(os.path.expanduser(videos or source)))]
    return hashlib.sha256(json.dumps([questions, names]).encode()).hexdigest()


@cache
def _print_once(text: str) -> None:
    """Print a line about a file, once in a process: the same file is read for the checks and for the stage."""
    print(text, flush=True)


def _texts(record: Sample | Preference) -> list[str]:
    if isinstance(record, Preference):
        return [record.question, record.chosen, record.rejected, record.context]
    return [text for turn in record.turns for text in (turn.question, turn.answer or "")]


def _masks_and_margin(record: Sample | Preference) -> list[Any]:
    """What tells two rows of one text apart; empty for usual rows, whose ids stay what they were."""
    if isinstance(record, Preference):
        return [record.margin] if record.margin else []
    learned = [turn.learn for turn in record.turns]
    return [] if all(learned) else learned


def _load(table: _Table, parse: Callable[[Any], _Record], rules: RowRules) -> list[_Record]:
    """Parse all rows, find their clips, give them ids, drop repetitions; raise every problem at once where there are more than
    the rules allow."""
    find = ClipFolder(table.clips).find
    problems: list[tuple[int, str]] = []
    missing: list[tuple[int, str, str]] = []  # row, path where its clip should be, reason
    rows: list[tuple[int, _Record, str]] = []  # row, record as parsed, path of the clip
    for number, row in table.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            parsed: _Record = parse(row)
            rows.append((number, parsed, find(parsed.video)))
        except MissingClip as problem:
            missing.append((number, problem.path, str(problem)))
        except BadRow as problem:
            problems.append((number, str(problem)))
    _check_shares(table, problems, missing, {path for _, _, path in rows}, rules)
    own = Counter(parsed.id for _, parsed, _ in rows)
    seen: dict[str, int] = {}
    records: list[_Record] = []
    for number, parsed, path in rows:
        content = json.dumps([parsed.video, *_texts(parsed), *_masks_and_margin(parsed)]).encode()
        id_ = parsed.id if parsed.id and own[parsed.id] == 1 else hashlib.sha256(content).hexdigest()[:16]
        if seen.setdefault(id_, number) != number:
            rules.left_out.append(LeftOut("duplicate", table.name, number, f"repeats row {seen[id_]} (same clip and text)"))
            continue
        records.append(replace(parsed, id=id_, video=path, where=f"{table.name}:{number}"))
    if not records:
        raise UserError(f"{table.name}: holds no rows")
    if count := sum("system" in record.tags for record in records):
        _print_once(f"{table.name}: the system turns of {counted(count, 'row')} are kept as tags; the model is not shown them")
    return records


def _check_shares(
    table: _Table,
    problems: Sequence[tuple[int, str]],
    missing: Sequence[tuple[int, str, str]],
    readable: set[str],
    rules: RowRules,
) -> None:
    """Note what is left out. UserError about all of it where there are more bad rows, or more missing clips, than are allowed."""
    total = len(table.rows)
    lost = len({path for _, path, _ in missing})
    share = min(lost / (lost + len(readable)), len(missing) / total) if missing else 0.0
    too_bad, too_few = len(problems) > rules.max_bad * total, share > rules.max_missing
    if too_bad or too_few:
        allowed = ""
        if rules.max_bad or rules.max_missing:
            bad, away = counted(len(problems), "bad row"), counted(lost, "missing clip")
            limits = f"data.max_bad_rows={rules.max_bad:g} and video.max_unreadable={rules.max_missing:g}"
            allowed = f" ({bad} and {away} of {counted(total, 'row')} are more than {limits} allow)"
        raise_all(table.name + allowed, [*problems, *((number, reason) for number, _, reason in missing)])
    rules.left_out += [LeftOut("bad row", table.name, number, reason) for number, reason in problems]
    rules.left_out += [LeftOut("clip", table.name, number, reason) for number, _, reason in missing]


def _table(source: str, videos: str) -> _Table:
    """The rows of a source, by what it is: file, folder or hub name."""
    path = Path(os.path.expanduser(source))
    clips = Path(os.path.expanduser(videos)) if videos else None
    if clips is not None and not clips.is_dir():
        raise UserError(f"{videos}: no such folder of clips (data.videos)")
    if path.is_dir():
        return _folder_table(path, clips or path)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in _DATA_SUFFIXES:
            raise UserError(f"{source}: only {', '.join(_DATA_SUFFIXES)} files and folders of clips with questions are read")
        rows = list(parquet_rows(source)) if suffix == ".parquet" else json_rows(source)
        return _Table(source, clips or path.parent, rows)
    if not (match := _HUB.fullmatch(source)) or suffix in (*_DATA_SUFFIXES, ".txt", ".csv"):
        raise UserError(f"{source}: no such file or folder (sources are named in the data section of the config)")
    return _Table(source, clips, list(hub_rows(source, match.groupdict())))


def question_files(folder: Path) -> list[Path]:
    """The files of questions in a folder of clips."""
    return [folder / name for name in _QUESTION_FILES if (folder / name).is_file()]


def _folder_table(folder: Path, clips: Path) -> _Table:
    """A folder of clips with one file of questions."""
    files = question_files(folder)
    if len(files) != 1:
        what = "no file of questions" if not files else f"{files[0].name} and {files[1].name}"
        raise UserError(f"{folder}: {what} in the folder; it needs one of {', '.join(_QUESTION_FILES)} beside the clips")
    name = str(files[0])
    value = list(text_lines(name)) if files[0].suffix == ".txt" else json_value(name)
    if isinstance(value, list) and value and all(isinstance(item, str) for _, item in value):
        names = [str(path.relative_to(clips)) for path in clip_files(clips)]
        if not names:
            raise UserError(f"{clips}: no clips in the folder ({', '.join(CLIP_SUFFIXES[:6])} …)")
        value = [(number, {"video": clip, "question": text}) for clip in names for number, text in value]
    elif isinstance(value, dict):
        value = [(number, row) for number, (clip, texts) in enumerate(value.items(), 1) for row in _question_rows(clip, texts)]
    return _Table(name, clips, value)


def _question_rows(clip: str, questions: Any) -> list[Any]:
    """Rows of one entry of {clip: [questions]}; a question is a text or {"question", "answer"}."""
    questions = questions if isinstance(questions, list) else [questions]
    if not questions:
        return [BadRow(f"{clip} has no questions")]
    if not all(isinstance(question, (str, dict)) for question in questions):
        return [BadRow(f"{clip} must have a list of questions (texts)")]
    rows = [question if isinstance(question, dict) else {"question": question} for question in questions]
    if other := next((row["video"] for row in rows if row.get("video", clip) != clip), ""):
        return [BadRow(f"a question of {clip} names another clip, {other}: take it out")]
    return [{**row, "video": clip} for row in rows]
