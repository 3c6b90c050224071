"""Predictions in the benchmarks' own format, out and in: `pred` (or `pred1` and `pred2`) beside the row's own columns.

Other people's judging scripts read these files, and their files are graded here. Rows are matched by id, or by
clip and question, never by place: a script that skips a clip shortens its file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from minirlaif.benchmarks.dataset import Benchmark
from minirlaif.benchmarks.kinds.base import CLIP_COLUMNS, Item, object_row, prediction_columns
from minirlaif.benchmarks.kinds.columns import SPANS
from minirlaif.benchmarks.layouts import file_rows
from minirlaif.data.formats import CLIP_SUFFIXES, BadRow, half_letters
from minirlaif.data.tables import raise_all
from minirlaif.errors import UserError
from minirlaif.stats import grouped

_ID = "\0id"  # no clip is called so
_END = re.compile(r"(?:\s*(?:</s>|<\|im_end\|>|<\|eot_id\|>|<end_of_utterance>))+\s*$")  # some scripts leave them in
_IDS = ("id", "question_id", "qid", "q_uid")
Predictions = dict[str, tuple[str, ...]]  # texts by item id


def prediction_files(benchmark: Benchmark, predictions: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows, for each part of the benchmark. predictions: by item id; an item without any is left out of the file."""
    files: dict[str, list[dict[str, Any]]] = {}
    for item in benchmark.items:
        rows = files.setdefault(f"{item.part}.json", [])
        if item.id in predictions:
            rows.append(benchmark.kind.write_predictions(item, predictions[item.id]))
    return files


def read_predictions(source: Path, benchmark: Benchmark) -> Predictions:
    """Answers by item id from a file of predictions (json, jsonl, csv), or from a folder of such files. UserError: a row that
    belongs to no item of the benchmark, answers it twice, or has no `pred`; no row at all."""
    files = sorted(path for path in source.iterdir() if path.suffix in (".json", ".jsonl")) if source.is_dir() else [source]
    if not source.exists() or not files:
        raise UserError(f"--predictions {source}: no such file, and no folder of json files")
    # Of a folder the files that are called like the benchmark's parts: this program writes others beside them.
    files = [path for path in files if path.stem in {item.part for item in benchmark.items}] or files
    named: list[tuple[tuple[str, ...], Item]] = []  # by its id, its clip and question, its question and answer
    for item in benchmark.items:
        questions = _plain_questions(item)
        named += [((_ID, item.own), item)] if item.own else []
        named += [((_clip(item.name), *questions), item), (("", *questions, _plain(item.answer)), item)]
    keys = grouped(named)
    predictions: Predictions = {}
    for file in files:
        problems: list[tuple[int, str]] = []
        for number, row in file_rows(file):
            try:
                item, texts = _matched(row, keys, predictions, file.stem)
                predictions[item.id] = texts
            except BadRow as problem:
                problems.append((number, str(problem)))
        raise_all(str(file), problems)
    if not predictions:
        raise UserError(f"--predictions {source}: holds no row")
    return predictions


def _matched(
    row: Any, keys: Mapping[tuple[str, ...], Sequence[Item]], matched: Mapping[str, Any], part: str
) -> tuple[Item, tuple[str, ...]]:
    """The item that a row of predictions belongs to, and its texts. matched: ids of items that have a prediction; part: that the
    file's name says. BadRow when there is none."""
    row = object_row(row)
    raw_questions = tuple(str(row[k]) for k in ("Q1", "Q2") if k in row) or (str(row.get("Q", row.get("question", ""))),)
    questions = tuple(map(_plain, raw_questions))
    clips = {_clip(str(row[k])) for k in CLIP_COLUMNS if k in row}
    answer = _plain(str(row.get("A", row.get("answer", ""))))
    wanted: list[tuple[str, ...]] = [(_ID, str(row[k])) for k in _IDS if row.get(k) not in (None, "")]
    wanted += [(clip, *questions) for clip in sorted(clips)] or [("", *questions, answer)]
    matches: list[Item] = []
    for key in wanted:
        # A named clip or question decides before the id: another program may count from another number, and in some files ids
        # begin anew with every clip.
        of_clip = [item for item in keys.get(key, ()) if not clips or _clip(item.name) in clips]
        same = [item for item in of_clip if _plain_questions(item) == questions]
        matches = same or matches or of_clip
        if same:
            break
    free = [item for item in matches if item.id not in matched]
    if not free:
        unknown = f"is no row of the benchmark: {wanted[0][-1]!r:.60}"
        raise BadRow("answers a question for the second time" if matches else unknown)
    # Of several the one with the same question, in the part that the file is called by, with the same times and reference.
    item = min(
        free,
        key=lambda item: (
            _plain_questions(item) != questions,
            item.part not in (part, row.get("dim")),
            _times(item.row) != _times(row),
            _plain(item.answer) != answer,
        ),
    )
    if raw_questions[0] and questions != _plain_questions(item):
        raise BadRow(f"has the id of another question of the benchmark: {item.questions[0]!r:.60}")
    columns = prediction_columns(item)
    texts = [row.get(column, row.get("prediction") if column == "pred" else None) for column in columns]  # TempCompass's scripts
    if not all(isinstance(text, str) for text in texts):
        raise BadRow(f"needs text under {' and '.join(columns)}")
    if broken := next((column for column, text in zip(columns, texts, strict=True) if half_letters(str(text))), ""):
        raise BadRow(f"`{broken}` contains an unpaired surrogate (broken emoji): remove it, or save the file as UTF-8")
    return item, tuple(_END.sub("", str(text)).strip() for text in texts)


def _clip(name: str) -> str:
    """A clip's name without folder, suffix, and the v_ that ActivityNet's lists put before it."""
    path = PurePosixPath(name)
    return (path.stem if path.suffix.lower() in CLIP_SUFFIXES else path.name).removeprefix("v_")


def _plain_questions(item: Item) -> tuple[str, ...]:
    """Its questions as a row of predictions has them: with the options that stand in the benchmark's own."""
    own = item.row.get("question")
    return (_plain(own),) if isinstance(own, str) and len(item.questions) == 1 else tuple(map(_plain, item.questions))


def _times(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The part of the clip that a row is about, as its file has it."""
    return tuple(row.get(name) for pair in SPANS for name in pair)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"<(?:image|video)>", " ", text).lower().split())
