"""Read a benchmark: the file, or the folder that its authors publish, becomes items that every model is asked in the same way.

Its kind shows in its columns and file names; see the modules of `kinds`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from minirlaif.benchmarks import kinds
from minirlaif.benchmarks.kinds.base import BenchmarkKind, Item, checked_row
from minirlaif.benchmarks.kinds.choice import TASKS
from minirlaif.benchmarks.kinds.columns import check_columns, span_of
from minirlaif.benchmarks.layouts import PlacedRow, find_source, source_rows
from minirlaif.data.formats import CLIP_SUFFIXES, BadRow
from minirlaif.data.tables import AmbiguousClip, ClipFolder, clip_files, raise_all, text_lines
from minirlaif.errors import UserError
from minirlaif.runs.io import sha256
from minirlaif.stats import grouped
from minirlaif.video.spans import name_of, named_span

SHOWN = 6  # names of files and clips in a message


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's items. name: for folders and titles; sha256: of the files it was read from; files: their names, unread: those
    of tables beside them that were not read."""

    name: str
    kind: BenchmarkKind
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

    def summary(self) -> str:
        """Kind, rows, clips and files in one line, printed before any model runs, so that a wrong folder is noticed."""
        spans = sum(item.has_span for item in self.items)
        parts = f" ({spans} rows about a part of theirs)" if spans else ""
        rows = f"{self.kind.name}, {len(self.items)} rows about {len(self.clips)} clips{parts}, from {listed(self.files)}"
        return f"benchmark {self.name}: {rows}" + (f"; not read: {listed(self.unread)}" if self.unread else "")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many others there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def read_benchmark(source: str, videos: str) -> Benchmark:
    """Read a benchmark and find its clips. source: a file, a folder, or the name of one in benchmarks/; videos: the folder of its
    clips, which may lie in folders below it and be named without suffix; "": they are not looked for. UserError: no such
    benchmark, a layout that is none of the known ones, or every bad row of a file."""
    location = find_source(source)
    if videos and not Path(videos).is_dir():
        raise UserError(f"--videos {videos}: no such folder; name the folder of the benchmark's clips")
    clips = _Clips(Path(videos), location.path) if videos else None
    parsed = [_parsed(part, rows, location.path) for part, rows in source_rows(location)]
    kind = parsed[0][0]
    if len(names := {kind.name for kind, _ in parsed}) > 1:
        raise UserError(f"{location.path}: holds benchmarks of several kinds ({', '.join(sorted(names))}); name one of its files")
    items = [
        replace(item, id=f"{part}:{id_}", video=_part_of(clips.find(item.name, item.part), item) if clips else "")
        for part, of_part in grouped((item.part, item) for _, items in parsed for item in items).items()
        for id_, item in zip(_ids(of_part), of_part, strict=True)
    ]
    items = kind.complete(items, location.path)
    if len({item.id for item in items}) < len(items):  # one's answer would be graded as another's
        raise UserError(f"{location.path}: two rows would have one id; give every row a `question_id` of its own")
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in location.files).encode()).hexdigest()
    root = location.path if location.path.is_dir() else location.path.parent
    names_read = [tuple(file.relative_to(root).as_posix() for file in files) for files in (location.files, location.unread)]
    return Benchmark(location.name, kind, tuple(items), digest, *names_read)


def first_items(benchmark: Benchmark, limit: int, seed: int) -> Benchmark:
    """The benchmark cut down to the rows of randomly drawn clips, at least `limit` rows (0: all), the same for the same seed. Its
    name says so."""
    if not limit or limit >= len(benchmark.items):
        return benchmark
    rows = Counter(item.name for item in benchmark.items)
    order = sorted(rows, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    chosen: set[str] = set()
    while sum(rows[name] for name in chosen) < limit:
        chosen.add(order[len(chosen)])
    items = tuple(item for item in benchmark.items if item.name in chosen)
    return replace(benchmark, items=items, name=f"{benchmark.name}-{len(items)}-of-{len(benchmark.items)}")


def _parsed(part: str, rows: Sequence[PlacedRow], path: Path) -> tuple[BenchmarkKind, list[Item]]:
    """The kind of a part's rows, and its items without id and clip. UserError for every bad row of the first such file."""
    first = next(((file, row) for file, _, row in rows if isinstance(row, dict)), None)
    if first:
        kinds.check_supported({name: value for name, value in first[1].items() if value is not None}, first[0])
    kind = next((kind for kind in kinds.KINDS if kind.matches(first[1], part)), None) if first else None
    if first and not kind:
        known = "; ".join(f"{kind.name} ({kind.columns})" for kind in kinds.KINDS)
        names = ", ".join(map(str, first[1]))[:120]
        raise UserError(f"{first[0]}: columns {names} are those of no known benchmark; known: {known}")
    problems: list[tuple[Path, tuple[int, str]]] = []
    items: list[Item] = []
    for file, number, row in rows:
        try:
            columns, clip = checked_row(row)
            if kind:
                check_columns(columns, kind)
                start, end = span_of(columns) if kind.has_spans else (0.0, None)
                if (start or end is not None) and named_span(clip).is_part:
                    raise BadRow(f"the name {clip} and other columns both give a part of the clip: remove one of them")
                items.append(replace(kind.parse(columns, part, clip), start=start, end=end))
        except BadRow as problem:
            problems.append((file, (number, str(problem))))
    for file, faults in grouped(problems).items():
        raise_all(str(file), faults)
    if kind is None:
        raise UserError(f"{path}: holds no rows that are objects with named columns")
    return kind, items


def _part_of(path: str, item: Item) -> str:
    """The clip that an item is about: a file or a part of it, "" for none."""
    return name_of(path, item.start, item.end) if path else ""


def _ids(items: Sequence[Item]) -> list[str]:
    """Names of a part's items: their own ids if every item has one that no other has, else their numbers over all files. Never
    a mixture: the number of one row may be the id of another."""
    own = [item.own for item in items]
    return own if all(own) and len(set(own)) == len(own) else [str(number) for number in range(1, len(items) + 1)]


class _Clips:
    """Where a benchmark's clips lie, by the names that its files give them."""

    def __init__(self, videos: Path, source: Path) -> None:
        self._videos, self._folder = videos, ClipFolder(videos)
        self._other: dict[str, str] = {}  # MSVD: vid1 -> the name on YouTube, which the clips may have kept
        for folder in (videos, source if source.is_dir() else source.parent):
            if (mapping := folder / "youtube_mapping.txt").is_file():
                self._other |= {line.split()[1]: line.split()[0] for _, line in text_lines(str(mapping)) if len(line.split()) > 1}

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        """All clips, relative to their folder, by name without suffix."""
        return grouped((path.stem, path.relative_to(self._videos)) for path in clip_files(self._videos))

    def _find_of_task(self, name: str, task: str) -> str:
        """The clip of a task of MVBench or TVBench, "" when it is not there. Clips of several tasks have one name and lie in
        folders called by the task or its source: never one of another task's."""
        hits = self._by_stem.get(Path(name).stem, [])
        hits = [path for path in hits if path.name == Path(name).name] or hits
        own, known = {task, TASKS[task]}, {*TASKS, *TASKS.values()} - {""}
        matches = [path for path in hits if own & {*path.parts[:-1]}] or [path for path in hits if not known & {*path.parts[:-1]}]
        if len(matches) > 1:
            raise UserError(f"clip {name} of {task} is there more than once ({matches[0]}, {matches[1]}): keep one of them")
        return str(self._videos / matches[0]) if matches else ""

    def find(self, name: str, part: str) -> str:
        """The clip's path, "" when it is not there. part: that its item belongs to."""
        if part in TASKS:
            return self._find_of_task(name, part)
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
            except AmbiguousClip as problem:
                raise UserError(str(problem)) from None
            except BadRow:
                continue
        return ""
