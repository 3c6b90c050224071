"""The files of a benchmark, its name, and the rows of each of its parts before their columns are parsed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.kinds import tempcompass
from minirlaif.benchmarks.kinds.base import object_row
from minirlaif.benchmarks.kinds.choice import TASKS
from minirlaif.benchmarks.kinds.counterfactual import ASPECTS
from minirlaif.data.formats import BadRow
from minirlaif.data.tables import TABLES, json_value, table_rows, text_lines
from minirlaif.errors import UserError
from minirlaif.stats import grouped

WELL_KNOWN = Path("benchmarks")  # where `--benchmark NAME` is looked for when NAME is no path
EGOSCHEMA = ("questions.json", "subset_answers.json")
PLAIN = ("json", "data", "questions")  # folders of tasks that are called as any benchmark's could be
CAPTIONS = ("captioning.json", "multi-choice.json")  # of TempCompass
CHARADES = "charades_sta_test.txt"  # clip, start, end##sentence on a line
# Names that say which rows a file has, not which benchmark's; its folder does.
_SPLIT = r"(?:test|val|valid|validation|train)"
_NAMELESS = re.compile(rf"(?:{_SPLIT}(?:[_-]?(?:q|questions?|qa))?|questions?)(?:-\d+-of-\d+)?", re.IGNORECASE)

PlacedRow = tuple[Path, int, Any]  # file, number of the row in it, the row


@dataclass(frozen=True)
class Source:
    """A benchmark's files. path: what was named; name: for folders and titles; files: all that are read; unread: tables that lie
    in the same folder and are not."""

    path: Path
    name: str
    files: tuple[Path, ...]
    unread: tuple[Path, ...] = ()


def find_source(source: str) -> Source:
    """The files of a benchmark. UserError when there are none, or when a folder's files are those of no known benchmark."""
    path = next((path for path in (Path(source).expanduser(), WELL_KNOWN / source) if path.exists()), None)
    if path is None:
        near = [*WELL_KNOWN.glob(f"{source}.*"), *WELL_KNOWN.glob(f"{source}_qa.*")] if Path(source).name == source else []
        if len(near) != 1:
            raise UserError(f"--benchmark {source}: no such file or folder (and none of that name in {WELL_KNOWN}/)")
        path = near[0]
    if path.is_file():
        answers = _answers_beside(path)
        return Source(path, _slug(path), (path, answers) if answers else tuple(_shards(path)))
    tables = sorted(file for file in path.rglob("*") if file.suffix.lower() in TABLES and not file.name.startswith("."))
    files = _of_folder(path, tables)
    is_plain = path.resolve().name.lower() in PLAIN and any(file.stem in (*TASKS, *ASPECTS, *tempcompass.FILES) for file in files)
    name = _slug(path.resolve().parent if is_plain else path)
    return Source(path, name, tuple(files), tuple(file for file in tables if file not in files))


def source_rows(source: Source) -> Iterator[tuple[str, list[PlacedRow]]]:
    """(part, rows) for each part, over all of its files. part: "" where the names of the files say nothing."""
    files = source.files
    if files[0].suffix == ".txt":
        moments = _moments(files)
        yield ("", moments) if moments else ("action", _action_lists(files))
    elif len(files) == 2 and files[1] == _answers_beside(files[0]):
        join = {EGOSCHEMA[1]: _subset, CAPTIONS[1]: _captions}.get(files[1].name.lower(), _joined)
        yield "", join(files[0], files[1])
    else:
        parts = {file: _videoinstruct_part(file, source.path) for file in files}
        if len(files) > 1:
            parts |= {file: file.stem for file in files if file.stem in TASKS}
        for part, of_part in grouped((part, file) for file, part in parts.items()).items():
            yield part, _paired([(file, number, row) for file in of_part for number, row in file_rows(file)])


def _slug(path: Path) -> str:
    """A name that can be a folder: the file's without its suffix, the folder's own; that of the folder, too, of a file whose name
    every benchmark's could have, such as test_q.json."""
    path = path.resolve()
    name = path.stem if path.is_file() else path.name
    if path.is_file() and _NAMELESS.fullmatch(name):
        name = path.parent.name or name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.").lower() or "benchmark"


def _of_folder(path: Path, tables: Sequence[Path]) -> list[Path]:
    """The files of a folder that make up its benchmark, in order."""
    texts = sorted(file for file in path.rglob("*.txt"))
    for split in ("test", "val", "train", ""):
        questions = [file for file in tables if file.stem.lower() in (f"{split}_q", f"{split}_question", f"{split}_questions")]
        if len(questions) == 1 and (answers := _answers_beside(questions[0])):
            return [questions[0], answers]
    for file in tables:
        if file.name.lower() == EGOSCHEMA[0] and (answers := _answers_beside(file)):
            return [file, answers]
    named = [file for file in tables if _videoinstruct_part(file, path)]
    if named:
        return named
    for stems in (TASKS, ASPECTS, tempcompass.FILES):
        tasks = grouped((file.parent, file) for file in tables if file.stem in stems)
        folders = [folder for folder in tasks if folder.name in PLAIN] or [*tasks]  # beside predictions, or an older version
        if len(folders) == 1 and len(tasks[folders[0]]) > 1:
            return tasks[folders[0]]
    if moments := [file for file in texts if file.name == CHARADES]:
        return moments[:1]
    splits = [file for file in texts if file.name.endswith("_test_split1.txt")]
    lists = [file for file in texts if file.name == "testlist01.txt"]
    if splits or lists:
        return splits or [*lists[:1], *(file for file in texts if file.name == "classInd.txt")][:2]
    if tables and _shards(tables[0]) == [*tables]:
        return [*tables]
    names = ", ".join(file.name for file in tables[:6]) or "none"
    raise UserError(f"{path}: cannot tell which of its files is the benchmark ({names}); name the file")


def _shards(path: Path) -> list[Path]:
    """All pieces of a file that was cut into numbered ones (test-00000-of-00002), in order; any other file alone."""
    match = re.fullmatch(r"(.*)-\d+-of-(\d+)", path.stem)
    if not match:
        return [path]
    pattern = re.compile(rf"{re.escape(match[1])}-\d+-of-{match[2]}")
    pieces = sorted(each for each in path.parent.glob(f"*{path.suffix}") if pattern.fullmatch(each.stem))
    if len(pieces) != int(match[2]):
        raise UserError(f"{path}: one of {int(match[2])} pieces, and {len(pieces)} are there: get the others")
    return pieces


def _answers_beside(path: Path) -> Path | None:
    """The file of answers that belongs to a file of questions: test_a.json to test_q.json, EgoSchema's, and for TempCompass's
    captions the questions by which they are graded."""
    match = re.fullmatch(r"(.*_)(q|question|questions)", path.stem, re.IGNORECASE)
    names = {"q": "a", "question": "answer", "questions": "answers"}
    pairs = dict((EGOSCHEMA, CAPTIONS))
    if path.name.lower() in pairs:
        other = path.with_name(pairs[path.name.lower()])
    elif match:
        other = path.with_name(match[1] + names[match[2].lower()] + path.suffix)
    else:
        return None
    return other if other.is_file() else None


def _videoinstruct_part(file: Path, root: Path) -> str:
    """generic_qa, temporal_qa or consistency_qa by the name of the file or of a folder above it; "" for others."""
    folders = file.relative_to(root).parts[:-1] if root in file.parents else ()
    if _NAMELESS.fullmatch(file.stem):
        folders = (*folders, file.resolve().parent.name)
    for name in (file.stem.lower(), *(folder.lower() for folder in folders)):
        if name.removesuffix("_qa") in ("generic", "temporal", "consistency"):
            return name.removesuffix("_qa") + "_qa"
    return ""


def _joined(questions: Path, answers: Path) -> list[PlacedRow]:
    """Rows of test_q with the answers of test_a, by question_id: never by place, which the two files need not share. Bad rows of
    either file, such as those whose id is missing or taken: they would get the answer of another."""
    tables = {file: table_rows(file) for file in (answers, questions)}
    if not any(isinstance(row, dict) and "question_id" in row for rows in tables.values() for _, row in rows):
        raise UserError(
            f"{questions}: no row here or in {answers.name} has a `question_id`, and questions are not matched with answers by"
            " their place; give both files the column, or make one list of question and answer"
        )
    by_id: dict[Path, dict[str, tuple[int, Mapping[str, Any]]]] = {answers: {}, questions: {}}
    bad: list[PlacedRow] = []
    for file, number, raw in ((file, number, raw) for file, rows in tables.items() for number, raw in rows):
        try:
            row = object_row(raw)
            own = str(row["question_id"]) if row.get("question_id") is not None else ""
            id_ = own.strip()
            if not id_:
                raise BadRow("`question_id` is missing, by which questions and answers are matched")
            if id_ in by_id[file]:
                raise BadRow(f"question_id {id_} is that of row {by_id[file][id_][0]} already")
            if file == questions and own not in by_id[answers]:
                raise BadRow(f"question_id {own} has no answer in {answers.name}")
            by_id[file][id_] = (number, row)
        except BadRow as problem:
            bad.append((file, number, problem))
    known = {id_: row for id_, (_, row) in by_id[answers].items()}
    rows = [(n, {**known[id_], **row, "answer": known[id_].get("answer")}) for id_, (n, row) in by_id[questions].items()]
    return bad + [(questions, number, row) for number, row in rows]


def _subset(questions: Path, answers: Path) -> list[PlacedRow]:
    """EgoSchema's questions with the numbers of the right options, which are public for some of them: the others are left out."""
    right_options = json_value(str(answers))
    if not isinstance(right_options, dict):
        raise UserError(f"{answers}: must be one object with the number of the right option by q_uid")
    rows: list[PlacedRow] = []
    without = set(right_options)
    for number, row in table_rows(questions):
        id_ = str(row.get("q_uid")) if isinstance(row, dict) else ""
        if id_ in right_options:
            rows.append((questions, number, {**row, "answer": right_options[id_]}))
            without.discard(id_)
        elif not isinstance(row, dict):
            rows.append((questions, number, row))
    if without:
        raise UserError(f"{answers}: {len(without)} answers have no question in {questions.name}, such as {min(without)}")
    return rows


def file_rows(file: Path) -> list[tuple[int, Any]]:
    """Numbered rows of a table; of an object whose keys are clips, a row for each of them under `video_id`. TempCompass has
    questions by dimension there, ActivityNet Captions a list of times and one of sentences."""
    value = json_value(str(file)) if file.suffix.lower() in (".json", ".jsonl") else None
    if isinstance(value, list):
        return value
    if value is None or not value or not all(isinstance(each, dict) for each in value.values()):
        return table_rows(file)
    rows: list[Any] = []
    for clip, each in value.items():
        times, sentences = each.get("timestamps"), each.get("sentences")
        if all(isinstance(lists, list) for lists in each.values()) and not isinstance(times, list):
            pairs = [(dim, row) for dim, of_dim in each.items() for row in of_dim]
            rows += [{"video_id": clip, "dim": dim, **row} if isinstance(row, dict) else row for dim, row in pairs]
        elif isinstance(times, list) and isinstance(sentences, list) and len(times) == len(sentences):
            rows += [{"video_id": clip, "timestamp": time, "sentence": text} for time, text in zip(times, sentences, strict=True)]
        else:
            rows.append({"video_id": clip, **each})
    return [*enumerate(rows, 1)]


def _moments(files: Sequence[Path]) -> list[PlacedRow]:
    """Rows of Charades-STA: clip, start, end##sentence on a line. Empty for other lists."""
    lines = [(file, number, line) for file in files for number, line in text_lines(str(file))]
    if not lines or "##" not in lines[0][2]:
        return []
    rows: list[PlacedRow] = []
    for file, number, line in lines:
        place, _, sentence = line.partition("##")
        names = ("video", "start", "end")
        values = place.split()
        row = dict(zip(names, values, strict=True)) if len(values) == len(names) else None
        rows.append((file, number, {**row, "sentence": sentence} if row else BadRow("needs `clip start end##sentence`")))
    return rows


def _captions(captions: Path, questions: Path) -> list[PlacedRow]:
    """TempCompass's requests for captions, each with the first multiple-choice question of its clip and dimension."""
    first: dict[tuple[Any, Any], dict[str, Any]] = {}
    for _, row in file_rows(questions):
        if isinstance(row, dict):
            first.setdefault((row.get("video_id"), row.get("dim")), row)
    rows: list[PlacedRow] = []
    for number, row in file_rows(captions):
        question = first.get((row.get("video_id"), row.get("dim"))) if isinstance(row, dict) else None
        if question is None:
            bad = row if isinstance(row, BadRow) else BadRow(f"{questions.name} has no question for it")
            rows.append((captions, number, bad))
        else:
            rows.append((captions, number, {**row, "mc_question": question.get("question"), "mc_answer": question.get("answer")}))
    return rows


def _action_lists(files: Sequence[Path]) -> list[PlacedRow]:
    """Rows of UCF101's list (class/clip.avi on a line) or of HMDB51's files (clip.avi and 2 where it is a test clip)."""
    rows: list[PlacedRow] = []
    for file in files:
        for number, line in text_lines(str(file)):
            name = line.split()[0]
            if file.name == "testlist01.txt":
                rows.append((file, number, {"video": name, "label": name.split("/")[0]}))
            elif file.name.endswith("_test_split1.txt") and line.split()[-1] == "2":
                rows.append((file, number, {"video": name, "label": file.name.removesuffix("_test_split1.txt")}))
    return rows


def _paired(rows: Sequence[PlacedRow]) -> list[PlacedRow]:
    """The hub repack has consistency's two questions in two rows, with the text "None" in place of the other one."""
    waiting: dict[tuple[str, ...], list[PlacedRow]] = {}
    paired: list[PlacedRow] = []
    sides = ("question_1", "question_2")
    for file, number, row in rows:
        given = [k for k in sides if isinstance(row, dict) and k in row and row[k] not in ("None", None)]
        if len(given) != 1 or not set(sides) <= row.keys():
            paired.append((file, number, row))
            continue
        pair = (str(row.get("video_name")), str(row.get("answer")))
        (other,) = set(sides) - set(given)
        if halves := waiting.get((*pair, other)):
            half = halves.pop(0)[2]
            paired.append((file, number, {**row, other: half[other]}))
        else:
            waiting.setdefault((*pair, given[0]), []).append((file, number, row))
    for (clip, *_), halves in waiting.items():
        paired += [(file, number, BadRow(f"clip {clip}: its other question is missing")) for file, number, _ in halves]
    return paired
