"""Benchmark files in: the layouts in which they are published, turned into items that every model is asked alike.

A benchmark is one file, or the folder that its authors publish; what it is shows in its columns and file names:
  videoinstruct   generic_qa, temporal_qa and consistency_qa (`Q`, `A`, `video_name`; `Q1`, `Q2`), or the hub repack's columns
  qa              one list of question and answer, or test_q and test_a matched by `question_id`; json, csv or tsv (TGIF)
  choice          `question`, `options` (also `candidates`, `choices`, a0 …, A …) and `answer` (letter, number or text);
                  EgoSchema's questions.json with subset_answers.json
  action          `video` and `label`; UCF101's testlist01.txt with classInd.txt; HMDB51's *_test_split1.txt
  retrieval       `video` and `caption` (or `sentence`): every clip of the file is a candidate for every caption
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.layouts import PlacedRow, find_source, source_rows
from minirlaif.benchmarks.rows import KINDS, Row, kind_of, parse_row, words_of
from minirlaif.data.formats import CLIP_SUFFIXES, BadRow
from minirlaif.data.tables import ClipFolder, raise_all, text_lines
from minirlaif.errors import UserError
from minirlaif.runs.io import sha256

SHOWN = 6  # names of files and clips that are told


@dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    id: unique in the benchmark; part: the part it belongs to, a key of `rubric.PARTS`, or choice, action or retrieval;
    name: its clip as the file names it; video: that clip's path, "" when it is not there; questions: what is asked (two for
    consistency, none for action and retrieval); answer: the reference, the right option, the label or the caption;
    row: the row under the keys that other people's scripts read; own: the row's own id, which others may have too, "" for none.
    """

    id: str
    part: str
    name: str
    video: str
    questions: tuple[str, ...]
    answer: str
    options: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    own: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's items. name: for folders and titles; kind: one of KINDS; sha256: of the files it was read from; files: their
    names, unread: those of tables beside them that were not read."""

    name: str
    kind: str
    items: tuple[Item, ...]
    sha256: str
    files: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def clips(self) -> list[str]:
        """Names of its clips."""
        return list(dict.fromkeys(item.name for item in self.items))

    @property
    def missing(self) -> list[str]:
        """Names of clips that are not there."""
        return list(dict.fromkeys(item.name for item in self.items if not item.video))

    def told(self) -> str:
        """What was understood, in a line: a folder taken for something else is seen before anything is asked."""
        rows = f"{self.kind}, {len(self.items)} rows about {len(self.clips)} clips, from {listed(self.files)}"
        return f"benchmark {self.name}: {rows}" + (f"; not read: {listed(self.unread)}" if self.unread else "")


def listed(names: Sequence[str]) -> str:
    """The first few of some names, and how many others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def read_benchmark(source: str, videos: str) -> Benchmark:
    """Read a benchmark and find its clips.

    Args:
        source: a file, a folder, or the name of one in benchmarks/.
        videos: the folder of its clips; they may lie in folders below it, and names without suffix are found. "": clips are not
            looked for.

    Raises:
        UserError: no such benchmark, a layout that is none of the known ones, or every bad row of a file.
    """
    found = find_source(source)
    if videos and not Path(videos).is_dir():
        raise UserError(f"--videos {videos}: no such folder; name the folder of the benchmark's clips")
    clips = _Clips(Path(videos), found.path) if videos else None
    parts: dict[str, list[Row]] = {}
    kinds: set[str] = set()
    for part, rows in source_rows(found):
        kind, parsed = _parsed(part, rows, found.path)
        kinds.add(kind)
        for row in parsed:
            parts.setdefault(row.part, []).append(row)
    if len(kinds) != 1:
        raise UserError(f"{found.path}: holds benchmarks of several kinds ({', '.join(sorted(kinds))}); name one of its files")
    (kind,) = kinds
    items = _with_options(kind, [item for rows in parts.values() for item in _items(rows, clips)], found.path)
    if len({item.id for item in items}) < len(items):  # one's answer would be marked as another's
        raise UserError(f"{found.path}: two rows would have one id; give every row a `question_id` of its own")
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in found.files).encode()).hexdigest()
    root = found.path if found.path.is_dir() else found.path.parent
    names = [tuple(file.relative_to(root).as_posix() for file in files) for files in (found.files, found.unread)]
    return Benchmark(found.name, kind, tuple(items), digest, *names)


def first_items(benchmark: Benchmark, limit: int, seed: int) -> Benchmark:
    """The benchmark cut down to the rows of randomly drawn clips, at least `limit` rows (0: all), the same for the same seed. Its
    name says so."""
    if not limit or limit >= len(benchmark.items):
        return benchmark
    order = sorted({item.name for item in benchmark.items}, key=lambda n: hashlib.sha256(f"{seed} {n}".encode()).hexdigest())
    rows = Counter(item.name for item in benchmark.items)
    chosen: set[str] = set()
    for name in order:
        if sum(rows[each] for each in chosen) >= limit:
            break
        chosen.add(name)
    items = tuple(item for item in benchmark.items if item.name in chosen)
    return replace(benchmark, items=items, name=f"{benchmark.name}-{len(items)}-of-{len(benchmark.items)}")


def _parsed(part: str, rows: Sequence[PlacedRow], path: Path) -> tuple[str, list[Row]]:
    """The kind of benchmark that a part's rows are, and the rows. UserError for every bad row of the first file that has any."""
    first = next((row for _, _, row in rows if isinstance(row, dict)), None)
    problems: dict[Path, list[tuple[int, str]]] = {}
    if first is None:
        for file, number, row in rows:
            problems.setdefault(file, []).append((number, str(row) if isinstance(row, BadRow) else "not an object"))
        for file, found in problems.items():
            raise_all(str(file), found)
        raise UserError(f"{path}: holds no rows that are objects with named columns")
    file = next(file for file, _, row in rows if row is first)
    kind = "action" if part == "action" else kind_of(first, part)
    if not kind:
        raise UserError(
            f"{file}: columns {', '.join(map(str, first))[:120]} are those of no known benchmark; known: {KINDS_TOLD}"
        )
    parsed: list[Row] = []
    for file, number, row in rows:
        try:
            parsed.append(parse_row(row, kind, part))
        except BadRow as problem:
            problems.setdefault(file, []).append((number, str(problem)))
    for file, found in problems.items():
        raise_all(str(file), found)
    return kind, parsed


def _ids(rows: Sequence[Row]) -> list[str]:
    """Names of a part's rows: their own ids if every row has one that no other has, else their numbers over all files. Never some
    of each: the number of one row may be the id of another."""
    own = [row.id for row in rows]
    return own if all(own) and len(set(own)) == len(own) else [str(number) for number in range(1, len(rows) + 1)]


def _items(rows: Sequence[Row], clips: _Clips | None) -> list[Item]:
    """The items of one part."""
    return [
        Item(
            f"{row.part}:{id_}",
            row.part,
            row.name,
            clips.find(row.name) if clips else "",
            row.questions,
            row.answer,
            row.options,
            row.row,
            row.id,
        )
        for id_, row in zip(_ids(rows), rows, strict=True)
    ]


def _with_options(kind: str, items: Sequence[Item], path: Path) -> list[Item]:
    """The candidates of action recognition: every class of the published list, or else of the file."""
    if kind != "action":
        return list(items)
    classes = [words_of(line.split()[-1]) for file in (path if path.is_dir() else path.parent).rglob("classInd.txt")
               for _, line in text_lines(str(file))]  # fmt: skip
    known = {item.answer for item in items}
    options = tuple(sorted(known | set(classes) if known <= set(classes) else known))
    return [replace(item, options=options) for item in items]


class _Clips:
    """Where a benchmark's clips lie, by the names that its files give them."""

    def __init__(self, videos: Path, source: Path) -> None:
        self._folder = ClipFolder(videos)
        self._other: dict[str, str] = {}  # MSVD: vid1 -> the name on YouTube, which the clips may have kept
        for folder in (videos, source if source.is_dir() else source.parent):
            if (mapping := folder / "youtube_mapping.txt").is_file():
                self._other |= {line.split()[1]: line.split()[0] for _, line in text_lines(str(mapping)) if len(line.split()) > 1}

    def find(self, name: str) -> str:
        """The clip's path, "" when it is not there."""
        names = [name, Path(name).name]
        if Path(name).suffix.lower() in CLIP_SUFFIXES:  # the same clip may have been saved in another format
            names.append(Path(name).stem)
        names += [each.removeprefix("v_") for each in names if each.startswith("v_")]  # as ActivityNet calls its clips
        if name.isdigit():  # MSVD's and MSRVTT's files count their clips
            names += [f"vid{name}", f"video{name}"]
        names += [self._other[each] for each in names if each in self._other]
        for each in dict.fromkeys(names):
            try:
                return self._folder.find(each)
            except BadRow as problem:
                if "more than once" in str(problem):
                    raise UserError(str(problem)) from None
        return ""


KINDS_TOLD = "; ".join(f"{kind} ({columns})" for kind, columns in KINDS.items())
