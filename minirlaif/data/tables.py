"""Rows of data files and benchmark files (json, jsonl, csv, parquet, hub sets), and the clips that they name.

json and jsonl are read by the standard library: `datasets` infers one type per column, which turns ids that look like dates into
dates and ids of two types into another, fills ragged rows with empty columns, and does not say which line is broken.
A row that cannot be decoded is a BadRow in its place. Clips are only located here; video/reader.py opens them.
"""

import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from minirlaif.data.cells import CLIP_SUFFIXES, BadRow, half_letters
from minirlaif.errors import UserError
from minirlaif.runs.io import json_lines
from minirlaif.video.spans import Span, name_of, named_span, spellings

SHOWN = 20  # problems of a file that are listed
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def raise_all(name: str, problems: list[tuple[int, str]]) -> None:
    """Raise one UserError about all problems of a file, each given with its row; nothing without problems."""
    if not problems:
        return
    lines = [f"row {number}: {' '.join(message.splitlines())[:400]}" for number, message in sorted(problems)]
    if len(lines) == 1:
        raise UserError(f"{name}, {lines[0]}")
    rest = [f"  {line}" for line in lines[1:SHOWN]] + ([f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
    raise UserError(";\n".join([f"{name}: {len(lines)} bad rows, the first is {lines[0]}", *rest]))


class MissingClip(BadRow):
    """A clip that is not where a row says; path: where it was looked for."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


class AmbiguousClip(BadRow):
    """A name that may be two clips."""


class ClipFolder:
    """Finds clips by path, or by name without suffix in a folder that is listed once. A name may be a file:// address, have
    Windows' backslashes, and end with a part of the clip (`a.mp4#t=10,20`)."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        """The folder's clips by name without suffix."""
        stems: dict[str, list[str]] = defaultdict(list)
        for path in clip_files(self._folder or Path()):
            stems[path.stem].append(str(path))
        return stems

    def find(self, name: str) -> str:
        """Path of the clip, with its part; BadRow if there are several, MissingClip if there is none."""
        span = named_span(name)
        if span.is_part and self._is_file(name):
            if self._is_file(span.file):
                raise AmbiguousClip(f"{name} is a file, and also a part of {span.file}: rename the file")
            span = Span(name, 0.0, None)
        path = self._known[span.file] = self._known.get(span.file) or self._find(span.file)
        if half_letters(path):  # bytes that are no text
            raise BadRow(f"the name of clip {path!a} is not UTF-8: rename the file")
        return name_of(path, span.start, span.end)

    def _find(self, name: str) -> str:
        paths = spellings(name)
        if any("\0" in each for each in paths):
            raise BadRow(f"{name[:60]!r} cannot be a file name")
        there = [each for each in paths if self._is_file(each)]
        if len(there) > 1:
            raise AmbiguousClip(f"{name} may be {there[0]} or {there[1]}, and both are there: rename one of them")
        return self._located((there or paths)[0])

    def _is_file(self, name: str) -> bool:
        try:
            return ((self._folder or Path()) / name).is_file()
        except (OSError, ValueError):  # too long for the file system
            return False

    def _located(self, name: str) -> str:
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
            hits = self._stems.get(name) or self._stems.get(f"v_{name}") or []  # ActivityNet's lists leave out the v_
            if len(hits) == 1:
                return hits[0]
            if hits:
                raise AmbiguousClip(f"clip {name} is there more than once ({hits[0]}, {hits[1]}): name the file with its suffix")
        if _DRIVE.match(name):
            raise MissingClip(str(path), f"clip {name} is a Windows path with a drive: name it from data.videos on")
        raise MissingClip(
            str(path), f"clip {path} does not exist (relative names start from data.videos, or from the data file's folder)"
        )


def clip_files(folder: Path) -> list[Path]:
    """Every clip below a folder, in order of path."""
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.suffix.lower() in CLIP_SUFFIXES)


def table_rows(path: Path) -> list[tuple[int, Any]]:
    """Rows of a file by its suffix, one of TABLES; row numbers count from 1. UserError when the file as a whole is no table."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _csv_rows(str(path))
    return list(parquet_rows(str(path))) if suffix == ".parquet" else json_rows(str(path))


def _csv_rows(name: str) -> list[tuple[int, Any]]:
    """Rows under a header line. The delimiter is the one that the header has most of: TGIF-QA's .csv files have tabs."""
    text = _text(name)
    delimiter = max("\t,;", key=text.splitlines()[0].count)
    try:
        head, *rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    except csv.Error as error:
        raise UserError(f"{name}: not a table of text ({error})") from None
    if twice := next((column for column in head if column and head.count(column) > 1), ""):
        raise UserError(f"{name}: column `{twice}` stands twice in its first line: rename or remove one")
    return [
        (number, dict(zip(head, row, strict=True)) if len(row) == len(head) else BadRow(f"{len(row)} cells under {len(head)}"))
        for number, row in enumerate(rows, 1)
        if row
    ]


def text_lines(name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
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


def json_value(name: str) -> list[tuple[int, Any]] | dict[str, Any]:
    """Rows of a json or jsonl file, distinguished by content since both suffixes are used for both; a json object as it is."""
    text = _text(name)
    if text.lstrip().startswith("[") or name.endswith(".json"):
        try:
            value = _loads(text)
            return value if isinstance(value, dict) else list(enumerate(value if isinstance(value, list) else [value], 1))
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            if getattr(error, "msg", "") != "Extra data" or text.lstrip().startswith("["):
                raise UserError(f"{name}{line}: {_bad(error)}") from None
    return [(number, _bad(row) if isinstance(row, Exception) else row) for number, row in json_lines(text.split("\n"), _loads)]


def _loads(text: str) -> Any:
    """A JSON value. ValueError also where an object has a name twice: one of the two values would be dropped."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(name for name in names if names.count(name) > 1)}` stands twice in one object")
    return value


def _bad(error: Exception) -> BadRow:
    reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)[:80]
    return BadRow(f"not valid JSON ({reason}): correct it, or take it out")


def json_rows(name: str) -> list[tuple[int, Any]]:
    """Rows of a json or jsonl file. UserError for one object that holds lists."""
    value = json_value(name)
    if isinstance(value, list):
        return value
    lists = [name for name, cell in value.items() if isinstance(cell, list) and cell and isinstance(cell[0], dict)]
    if lists and len(value) < 4 and not {*lists} & {"messages", "conversations", "conversation", "QA"}:
        raise UserError(f"{name}: one object instead of a list of rows; keep only the list")
    return [(1, value)]  # a file of one jsonl line


def parquet_rows(name: str) -> Iterator[tuple[int, Any]]:
    """Rows of a parquet file, media undecoded."""
    import datasets
    import pyarrow.parquet

    try:  # read beside the library's own cache, which would keep a second copy of the file
        with open(os.path.expanduser(name), "rb") as file:
            table = datasets.Dataset(pyarrow.parquet.read_table(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as parquet ({_one_line(error)})") from None
    yield from _dataset_rows(table)


def hub_rows(source: str, parts: Mapping[str, str | None]) -> Iterator[tuple[int, Any]]:
    """Rows of a hub data set; parts: name, config, revision and split (None: its only split, or train)."""
    import datasets

    try:
        loaded = datasets.load_dataset(parts["name"], parts["config"], revision=parts["revision"], split=parts["split"])
    except Exception as error:  # the library and its client raise a dozen unrelated classes
        raise UserError(f"{source}: no such file or folder here, and the hub says: {_one_line(error)}") from None
    if isinstance(loaded, Mapping):
        split = "train" if "train" in loaded else next(iter(loaded))
        if split != "train" and len(loaded) > 1:
            raise UserError(f"{source}: has the splits {', '.join(loaded)}; name one, such as {source}:{next(iter(loaded))}")
        loaded = loaded[split]
    yield from _dataset_rows(loaded)


def _dataset_rows(table: Any) -> Iterator[tuple[int, Any]]:
    """Rows of a data set, in batches (ten times faster than one by one) and with media left undecoded."""
    number = 0
    if not len(table):
        return
    for batch in table.to_iterable_dataset().decode(False).iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, cells, strict=True))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
