"""Benchmark files in: the layouts in which they are published, turned into items that every model is asked alike.

A benchmark is one file, or the folder that its authors publish; what it is shows in its columns and file names:
  videoinstruct   generic_qa, temporal_qa and consistency_qa (`Q`, `A`, `video_name`; `Q1`, `Q2`), or the hub repack's columns
  qa              one list of question and answer, or test_q and test_a matched by `question_id`; json, csv or tsv (TGIF)
  choice          `question`, `options` (also `candidates`, `choices`, a0 …, A …) and `answer` (letter, number or text)
  action          `video` and `label`; UCF101's testlist01.txt with classInd.txt; HMDB51's *_test_split1.txt
  retrieval       `video` and `caption` (or `sentence`): every clip of the file is a candidate for every caption
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minirlaif.benchrows import KINDS, Row, kind_of, parse_row, words_of
from minirlaif.disk import sha256
from minirlaif.formats import CLIP_SUFFIXES, BadRow
from minirlaif.records import UserError
from minirlaif.rowfiles import TABLES, ClipFolder, raise_all, table_rows, text_lines

WELL_KNOWN = Path("benchmarks")  # where `--benchmark NAME` is looked for when NAME is no path


@dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    id: unique in the benchmark; part: the file it belongs to, a key of `rubric.PARTS`, or choice, action or retrieval;
    name: its clip as the file names it; video: that clip's path, "" when it is not there; questions: what is asked (two for
    consistency, none for action and retrieval); answer: the reference, the right option, the label or the caption;
    row: the row under the keys that other people's scripts read.
    """

    id: str
    part: str
    name: str
    video: str
    questions: tuple[str, ...]
    answer: str
    options: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's items. name: for folders and titles; kind: one of KINDS; sha256: of the files it was read from."""

    name: str
    kind: str
    items: tuple[Item, ...]
    sha256: str

    @property
    def missing(self) -> list[str]:
        """Names of clips that are not there."""
        return list(dict.fromkeys(item.name for item in self.items if not item.video))


def read_benchmark(source: str, videos: str) -> Benchmark:
    """Read a benchmark and find its clips.

    Args:
        source: a file, a folder, or the name of one in benchmarks/.
        videos: the folder of its clips; they may lie in folders below it, and names without suffix are found.

    Raises:
        UserError: no such benchmark, a layout that is none of the known ones, or every bad row of a file.
    """
    path = _found(source)
    if not Path(videos).is_dir():
        raise UserError(f"--videos {videos}: no such folder; name the folder of the benchmark's clips")
    files = _files(path)
    clips = _Clips(Path(videos), path)
    items: list[Item] = []
    kinds: set[str] = set()
    for part, file, rows in _tables(path, files):
        kind, found = _items(part, file, rows, clips)
        kinds.add(kind)
        items += found
    if len(kinds) != 1:
        raise UserError(f"{path}: holds benchmarks of several kinds ({', '.join(sorted(kinds))}); name one of its files")
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()
    kind = kinds.pop()
    return Benchmark(_slug(path), kind, tuple(_with_options(kind, items, path)), digest)


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


def _found(source: str) -> Path:
    for path in (Path(source).expanduser(), WELL_KNOWN / source):
        if path.exists():
            return path
    near = [*WELL_KNOWN.glob(f"{source}.*"), *WELL_KNOWN.glob(f"{source}_qa.*")] if Path(source).name == source else []
    if len(near) == 1:
        return near[0]
    raise UserError(f"--benchmark {source}: no such file or folder (and none of that name in {WELL_KNOWN}/)")


def _slug(path: Path) -> str:
    """A name that can be a folder: the file's without its suffix, the folder's own."""
    path = path.resolve()
    return re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.name).strip("-.").lower() or "benchmark"


def _files(path: Path) -> list[Path]:
    """The files of a folder that make up its benchmark, in order; a file is its own."""
    if path.is_file():
        pair = _answers_beside(path)
        return [path, pair] if pair else [path]
    tables = sorted(file for file in path.rglob("*") if file.suffix.lower() in TABLES and not file.name.startswith("."))
    texts = sorted(file for file in path.rglob("*.txt"))
    for split in ("test", "val", "train", ""):
        questions = [file for file in tables if file.stem.lower() in (f"{split}_q", f"{split}_question", f"{split}_questions")]
        if len(questions) == 1 and (answers := _answers_beside(questions[0])):
            return [questions[0], answers]
    named = [file for file in tables if _videoinstruct_part(file, path)]
    if named:
        return named
    splits = [file for file in texts if file.name.endswith("_test_split1.txt")]
    lists = [file for file in texts if file.name == "testlist01.txt"]
    if splits or lists:
        return splits or [*lists[:1], *(file for file in texts if file.name == "classInd.txt")][:2]
    if len(tables) == 1:
        return tables
    shown = ", ".join(file.name for file in tables[:6]) or "none"
    raise UserError(f"{path}: cannot tell which of its files is the benchmark ({shown}); name the file")


def _answers_beside(path: Path) -> Path | None:
    """The file of answers that belongs to a file of questions: test_a.json to test_q.json."""
    match = re.fullmatch(r"(.*_)(q|question|questions)", path.stem, re.IGNORECASE)
    names = {"q": "a", "question": "answer", "questions": "answers"}
    other = path.with_name(match[1] + names[match[2].lower()] + path.suffix) if match else path
    return other if match and other.is_file() else None


def _videoinstruct_part(file: Path, root: Path) -> str:
    """generic_qa, temporal_qa or consistency_qa by the name of the file or of a folder above it; "" for others."""
    folders = file.relative_to(root).parts[:-1] if root in file.parents else ()
    for name in (file.stem.lower(), *(folder.lower() for folder in folders)):
        if name.removesuffix("_qa") in ("generic", "temporal", "consistency"):
            return name.removesuffix("_qa") + "_qa"
    return ""


def _tables(path: Path, files: Sequence[Path]) -> Iterator[tuple[str, Path, list[tuple[int, Any]]]]:
    """(part, file, rows) of each file that has rows of its own."""
    if files[0].suffix == ".txt":
        yield "action", files[0], _action_lists(files)
    elif len(files) == 2 and files[1] == _answers_beside(files[0]):
        yield "qa", files[0], _joined(files[0], files[1])
    else:
        for file in files:
            yield _videoinstruct_part(file, path), file, table_rows(file)


def _joined(questions: Path, answers: Path) -> list[tuple[int, Any]]:
    """Rows of test_q with the answers of test_a, by question_id: never by place, which the two files need not share."""
    known = {str(row.get("question_id")): row for _, row in table_rows(answers) if isinstance(row, dict)}
    rows: list[tuple[int, Any]] = []
    for number, row in table_rows(questions):
        found = known.get(str(row.get("question_id"))) if isinstance(row, dict) else None
        if isinstance(row, dict) and found is None:
            rows.append((number, BadRow(f"question_id {row.get('question_id')} has no answer in {answers.name}")))
        else:
            rows.append((number, {**found, **row} if isinstance(row, dict) and found else row))
    return rows


def _action_lists(files: Sequence[Path]) -> list[tuple[int, Any]]:
    """Rows of UCF101's list (class/clip.avi on a line) or of HMDB51's files (clip.avi and 2 where it is a test clip)."""
    rows: list[dict[str, str]] = []
    for file in files:
        for _, line in text_lines(str(file)):
            name = line.split()[0]
            if file.name == "testlist01.txt":
                rows.append({"video": name, "label": name.split("/")[0]})
            elif file.name.endswith("_test_split1.txt") and line.split()[-1] == "2":
                rows.append({"video": name, "label": file.name.removesuffix("_test_split1.txt")})
    return list(enumerate(rows, 1))


def _items(part: str, file: Path, rows: Sequence[tuple[int, Any]], clips: _Clips) -> tuple[str, list[Item]]:
    """The items of one file, and the kind of benchmark that they are."""
    rows = _merged(rows)
    first = next((row for _, row in rows if isinstance(row, dict)), None)
    if first is None:
        raise_all(str(file), [(number, str(row)) for number, row in rows if isinstance(row, BadRow)])
        raise UserError(f"{file}: holds no rows that are objects with named columns")
    kind = "action" if part == "action" else kind_of(first, part)
    if not kind:
        raise UserError(
            f"{file}: columns {', '.join(map(str, first))[:120]} are those of no known benchmark; known: {KINDS_TOLD}"
        )
    problems: list[tuple[int, str]] = []
    parsed: list[tuple[int, Row]] = []
    for number, row in rows:
        try:
            parsed.append((number, parse_row(row, kind, part)))
        except BadRow as problem:
            problems.append((number, str(problem)))
    raise_all(str(file), problems)
    own = Counter(row.id for _, row in parsed)
    return kind, [
        Item(
            f"{row.part}:{row.id if row.id and own[row.id] == 1 else number}",
            row.part,
            row.name,
            clips.find(row.name),
            row.questions,
            row.answer,
            row.options,
            row.row,
        )
        for number, row in parsed
    ]


def _merged(rows: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The hub repack has consistency's two questions in two rows, with the text "None" in place of the other one."""
    waiting: dict[tuple[str, str], dict[str, Any]] = {}
    merged: list[tuple[int, Any]] = []
    for number, row in rows:
        empty = [k for k in ("question_1", "question_2") if isinstance(row, dict) and row.get(k) in ("None", None) and k in row]
        if len(empty) != 1:
            merged.append((number, row))
            continue
        key = (str(row.get("video_name")), str(row.get("answer")))
        half = waiting.pop(key, None)
        if half is None:
            waiting[key] = row
        else:
            given = {k: v for side in (half, row) for k, v in side.items() if v not in ("None", None)}
            merged.append((number, {**row, **given}))
    alone = [(0, BadRow(f"clip {name}: its other question is missing")) for name, _ in waiting]
    return merged + alone


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
