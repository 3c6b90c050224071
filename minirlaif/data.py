"""Data files in: rows of any known format (formats.py) from json, jsonl, parquet, a folder of clips, or the hub.

Everything is checked before training: a file's problems are collected and raised together, each with its row. Rows count from 1;
in jsonl and questions.txt the row is the line. Clips are only looked for here, video.py opens them.

json and jsonl are read by the standard library: `datasets` infers one type per column, which turns ids that look like dates into
dates and ids of two types into another, fills ragged rows with empty columns, and does not say which line is broken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from minirlaif.disk import sha256
from minirlaif.formats import CLIP_SUFFIXES, UNDECIDED, BadRow, parse_preference, parse_sample
from minirlaif.records import Preference, Sample, UserError

_SHOWN = 20  # problems of a file that are listed
_DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
_QUESTION_FILES = ("questions.txt", "questions.json", "questions.jsonl")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?")

_Record = TypeVar("_Record", Sample, Preference)


@dataclass(frozen=True)
class _Table:
    name: str  # as shown in messages
    clips: Path | None  # folder that clip names start from
    rows: Sequence[tuple[int, Any]]  # row number and decoded row, or the BadRow that came instead


def load_samples(source: str, videos: str = "", need_answers: bool = True) -> list[Sample]:
    """Conversations about clips.

    Args:
        source: a json, jsonl or parquet file; a folder of clips with questions.txt (every question is asked of every clip),
            questions.json ({clip: [questions]}) or questions.jsonl (rows);
            or a hub data set `owner/name[/config][@revision][:split]`, asked for only where no such file or folder exists.
        videos: folder that relative clip names start from; empty: the data file's own folder.
        need_answers: True for training: every question needs an answer and a row is one sample. False for prompts: one sample per
            question, asked without the turns before it; answers stay in the turns where the file has them (truth for `evaluate`).

    Returns:
        samples in file order. Ids are stable: the row's own id where no other row has it, otherwise a hash of clip and text
        (and `#2`, `#3` … for the later questions of a conversation when need_answers is False).

    Raises:
        UserError: all problems of the file; the first line alone says which file and row, what is wrong and what to do.
    """
    samples = _load(_table(source, videos), lambda row: parse_sample(row, need_answers), _sample_text)
    if need_answers:
        return samples
    return [
        replace(sample, id=sample.id + (f"#{number}" if number > 1 else ""), turns=(turn,))
        for sample in samples
        for number, turn in enumerate(sample.turns, 1)
    ]


def load_preferences(source: str, videos: str = "") -> list[Preference]:
    """Pairs with a winner; arguments, ids and errors as for `load_samples`, one question per row; other votes are left out."""
    table = _table(source, videos)
    rows = [row for row in table.rows if not (isinstance(row[1], dict) and row[1].get("preference") in UNDECIDED)]
    if len(rows) < len(table.rows):
        print(f"{source}: {len(table.rows) - len(rows)} votes without a winner (tie, both bad) are left out", flush=True)
    return _load(replace(table, rows=rows), parse_preference, _preference_text)


def fingerprint(source: str, videos: str = "") -> str:
    """sha256 of a data file; for a folder, of its questions and its clips' names; "" for a hub name, or where nothing lies."""
    path = Path(os.path.expanduser(source))
    if not path.is_dir():
        return sha256(path) if path.is_file() else ""
    asked = [sha256(path / name) for name in _QUESTION_FILES if (path / name).is_file()]
    names = [str(clip) for clip in _clip_files(Path(os.path.expanduser(videos or source)))]
    return hashlib.sha256(json.dumps([asked, names]).encode()).hexdigest()


def _sample_text(sample: Sample) -> list[str]:
    return [text for turn in sample.turns for text in (turn.question, turn.answer or "")]


def _preference_text(pair: Preference) -> list[str]:
    return [pair.question, pair.chosen, pair.rejected, pair.context]


def _load(table: _Table, parse: Callable[[Any], _Record], text: Callable[[_Record], list[str]]) -> list[_Record]:
    """Parse all rows, find their clips, give them ids; raise every problem at once."""
    find = _Clips(table.clips).find
    problems: list[tuple[int, str]] = []
    found: list[tuple[int, _Record, str]] = []  # row, record as parsed, path of the clip
    for number, row in table.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            parsed: _Record = parse(row)
            found.append((number, parsed, find(parsed.video)))
        except BadRow as problem:
            problems.append((number, str(problem)))
    own = Counter(item[1].id for item in found)
    seen: dict[str, int] = {}
    records: list[_Record] = []
    for number, parsed, path in found:
        content = json.dumps([parsed.video, *text(parsed)]).encode()
        id_ = parsed.id if parsed.id and own[parsed.id] == 1 else hashlib.sha256(content).hexdigest()[:16]
        if seen.setdefault(id_, number) != number:
            problems.append((number, f"repeats row {seen[id_]} (same clip and text): remove one of them"))
        records.append(replace(parsed, id=id_, video=path, where=f"{table.name}:{number}"))
    if problems:
        _raise_all(table.name, problems)
    if not records:
        raise UserError(f"{table.name}: holds no rows")
    return records


def _raise_all(name: str, problems: list[tuple[int, str]]) -> None:
    lines = [f"row {number}: {' '.join(message.splitlines())[:400]}" for number, message in sorted(problems)]
    if len(lines) == 1:
        raise UserError(f"{name}, {lines[0]}")
    rest = [f"  {line}" for line in lines[1:_SHOWN]] + ([f"  … and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
    raise UserError("\n".join([f"{name}: {len(lines)} bad rows, the first is {lines[0]}", *rest]))


class _Clips:
    """Finds clips by path, or by name without suffix in a folder that is listed once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}
        self._stems: dict[str, list[str]] | None = None

    def find(self, name: str) -> str:
        """Path of the clip; BadRow if there is none or more than one."""
        path = self._known[name] = self._known.get(name) or self._find(name)
        if not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path):  # bytes that are no text
            raise BadRow(f"the name of clip {path!a} is not UTF-8: rename the file")
        return path

    def _find(self, name: str) -> str:
        if "\0" in name:
            raise BadRow(f"{name[:60]!r} cannot be a file name")
        path = Path(name)
        if self._folder is None and not path.is_absolute():
            raise BadRow(f"{name} is a relative path: set data.videos to the folder of the clips")
        path = (self._folder or Path()) / path
        try:
            if path.is_file():
                return str(path)
            if path.is_dir():
                raise BadRow(f"{path} is a folder; frame folders are not read, name a clip file")
        except OSError:  # too long for the file system
            raise BadRow(f"{name[:60]!r} cannot be a file name") from None
        if path.suffix.lower() not in CLIP_SUFFIXES and self._folder is not None:
            if self._stems is None:
                self._stems = _stems(self._folder)
            hits = self._stems.get(name) or self._stems.get(f"v_{name}") or []  # ActivityNet lists leave the v_ out
            if len(hits) == 1:
                return hits[0]
            if hits:
                raise BadRow(f"clip {name} is there more than once ({hits[0]}, {hits[1]}): name the file with its suffix")
        raise BadRow(f"clip {path} does not exist (relative names start from data.videos, or from the data file's folder)")


def _stems(folder: Path) -> dict[str, list[str]]:
    """Clips below a folder by name without suffix."""
    stems: dict[str, list[str]] = {}
    for path in _clip_files(folder):
        stems.setdefault(path.stem, []).append(str(path))
    return stems


def _clip_files(folder: Path) -> list[Path]:
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.suffix.lower() in CLIP_SUFFIXES)


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
        rows = list(_parquet_rows(source)) if suffix == ".parquet" else _json_rows(source)
        return _Table(source, clips or path.parent, rows)
    if not (match := _HUB.fullmatch(source)) or suffix in (*_DATA_SUFFIXES, ".txt", ".csv"):
        raise UserError(f"{source}: no such file or folder (sources are named in the data section of the config)")
    return _Table(source, clips, list(_hub_rows(source, match.groupdict())))


def _folder_table(folder: Path, clips: Path) -> _Table:
    """A folder of clips with one file of questions."""
    files = [folder / name for name in _QUESTION_FILES if (folder / name).is_file()]
    if len(files) != 1:
        what = "no file of questions" if not files else f"{files[0].name} and {files[1].name}"
        raise UserError(f"{folder}: {what} in the folder; it needs one of {', '.join(_QUESTION_FILES)} beside the clips")
    name = str(files[0])
    value = list(_lines(name)) if files[0].suffix == ".txt" else _json_value(name)
    if isinstance(value, list) and value and all(isinstance(item, str) for _, item in value):
        names = [str(path.relative_to(clips)) for path in _clip_files(clips)]
        if not names:
            raise UserError(f"{clips}: no clips in the folder ({', '.join(CLIP_SUFFIXES[:6])} …)")
        value = [(number, {"video": clip, "question": text}) for clip in names for number, text in value]
    elif isinstance(value, dict):
        value = [(number, row) for number, (clip, asked) in enumerate(value.items(), 1) for row in _asked(clip, asked)]
    return _Table(name, clips, value)


def _asked(clip: str, questions: Any) -> list[Any]:
    """Rows of one entry of {clip: [questions]}; a question is a text or {"question", "answer"}."""
    questions = questions if isinstance(questions, list) else [questions]
    if not questions:
        return [BadRow(f"{clip} has no questions")]
    if not all(isinstance(asked, (str, dict)) for asked in questions):
        return [BadRow(f"{clip} must have a list of questions (texts)")]
    return [{"question": asked, "video": clip} if isinstance(asked, str) else {**asked, "video": clip} for asked in questions]


def _lines(name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that hold something."""
    yield from ((number, line.strip()) for number, line in enumerate(_text(name).split("\n"), 1) if line.strip())


def _text(name: str) -> str:
    try:
        text = Path(os.path.expanduser(name)).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise UserError(f"{name}: the file is empty")
    return text


def _json_value(name: str) -> list[tuple[int, Any]] | dict[str, Any]:
    """Rows of a json or jsonl file, told apart by content since both suffixes are used for both; a json object as it is."""
    text = _text(name)
    if text.lstrip().startswith("[") or name.endswith(".json"):
        try:
            value = json.loads(text)
            return value if isinstance(value, dict) else list(enumerate(value if isinstance(value, list) else [value], 1))
        except json.JSONDecodeError as error:
            if error.msg != "Extra data" or text.lstrip().startswith("["):
                raise UserError(f"{name}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}: not valid JSON ({str(error)[:80]})") from None
    return [(number, _json_line(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON ({str(error)[:80]})")


def _json_rows(name: str) -> list[tuple[int, Any]]:
    value = _json_value(name)
    if isinstance(value, list):
        return value
    if any(isinstance(cell, list) and cell and isinstance(cell[0], dict) for cell in value.values()) and len(value) < 4:
        raise UserError(f"{name}: one object instead of a list of rows; keep only the list")
    return [(1, value)]  # a file of one jsonl line


def _parquet_rows(name: str) -> Iterator[tuple[int, Any]]:
    import datasets
    import pyarrow.parquet

    try:  # read beside the library's own cache, which would keep a second copy of the file
        with open(os.path.expanduser(name), "rb") as file:
            table = datasets.Dataset(pyarrow.parquet.read_table(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as parquet ({_one_line(error)})") from None
    yield from _dataset_rows(table)


def _hub_rows(source: str, parts: Mapping[str, str | None]) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(parts["name"], parts["config"], revision=parts["revision"], split=parts["split"])
    except Exception as error:  # the library and its client raise a dozen unrelated classes
        raise UserError(f"{source}: no such file or folder here, and the hub says: {_one_line(error)}") from None
    if isinstance(loaded, Mapping):
        split = "train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else ""
        if not split:
            raise UserError(f"{source}: has the splits {', '.join(loaded)}; name one, such as {source}:{next(iter(loaded))}")
        loaded = loaded[split]
    yield from _dataset_rows(loaded)


def _dataset_rows(table: Any) -> Iterator[tuple[int, Any]]:
    """Rows of a data set, in batches (ten times faster than one by one) and with media left undecoded."""
    number = 0
    for batch in table.to_iterable_dataset().decode(False).iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, cells, strict=True))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
