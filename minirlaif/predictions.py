"""Predictions in the benchmarks' own format, out and in: `pred` (or `pred1` and `pred2`) beside the row's own columns.

What is written here is read by other people's judging scripts, and their files are judged here. Rows are matched by id, or by
clip and question, never by place: a script that skips a clip shortens its file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirlaif.benchmarks import Benchmark, Item
from minirlaif.formats import BadRow
from minirlaif.records import UserError
from minirlaif.rowfiles import raise_all, table_rows

_END = re.compile(r"(?:\s*(?:</s>|<\|im_end\|>|<\|eot_id\|>|<end_of_utterance>))+\s*$")  # some scripts leave them in
_IDS = ("id", "question_id", "qid")


def prediction_files(benchmark: Benchmark, preds: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows, for each part of the benchmark. preds: by item id; an item without any is left out of the file."""
    files: dict[str, list[dict[str, Any]]] = {}
    for item in benchmark.items:
        rows = files.setdefault(f"{item.part}.json", [])
        said = preds.get(item.id)
        if said is None:
            continue
        if len(item.questions) == 2:
            rows.append({**item.row, "pred1": said[0], "pred2": said[1]})
        elif item.questions:
            rows.append({**item.row, "pred": said[0]})
        else:  # candidates, the likeliest first
            rows.append({**item.row, "pred": said[0], "ranked": list(said)})
    return files


def read_predictions(source: Path, benchmark: Benchmark) -> dict[str, tuple[str, ...]]:
    """Answers by item id from a file of predictions, or from a folder of such files (json, jsonl, csv).

    Raises:
        UserError: a row that belongs to no item of the benchmark, answers it twice, or has no `pred`; no row at all.
    """
    files = sorted(path for path in source.iterdir() if path.suffix in (".json", ".jsonl")) if source.is_dir() else [source]
    if not source.exists() or not files:
        raise UserError(f"--predictions {source}: no such file, and no folder of json files")
    keys: dict[tuple[str, ...], list[Item]] = {}
    for item in benchmark.items:
        for key in _keys_of(item):
            keys.setdefault(key, []).append(item)
    found: dict[str, tuple[str, ...]] = {}
    for file in files:
        problems: list[tuple[int, str]] = []
        for number, row in table_rows(file):
            try:
                item, said = _matched(row, keys, found)
                found[item.id] = said
            except BadRow as problem:
                problems.append((number, str(problem)))
        raise_all(str(file), problems)
    if not found:
        raise UserError(f"--predictions {source}: holds no row")
    return found


def _matched(row: Any, keys: Mapping[tuple[str, ...], Sequence[Item]], found: Mapping[str, Any]) -> tuple[Item, tuple[str, ...]]:
    """The item that a row of predictions belongs to, and what it says. BadRow when there is none."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("a row must be an object with named columns")
    questions = tuple(str(row[k]) for k in ("Q1", "Q2") if k in row) or (str(row.get("Q", row.get("question", ""))),)
    names = [str(row[k]) for k in ("video_name", "video", "video_id") if k in row]
    wanted: list[tuple[str, ...]] = [("id", str(row[k])) for k in _IDS if row.get(k) not in (None, "")]
    wanted += [(name, *map(_plain, questions)) for name in names]
    wanted.append(("", *map(_plain, questions), _plain(str(row.get("A", row.get("answer", ""))))))
    matches = next((keys[key] for key in wanted if key in keys), [])
    free = [item for item in matches if item.id not in found]
    if not free:
        raise BadRow(
            "answers a question for the second time" if matches else f"is no row of the benchmark: {wanted[0][-1]!r:.60}"
        )
    item = free[0]
    if questions[0] and tuple(map(_plain, questions)) != tuple(map(_plain, item.questions)):
        raise BadRow(f"has the id of another question of the benchmark: {item.questions[0]!r:.60}")
    columns = ("pred1", "pred2") if len(item.questions) == 2 else ("pred",)
    said = [row.get(column) for column in columns]
    if not all(isinstance(text, str) for text in said):
        raise BadRow(f"needs text under {' and '.join(columns)}")
    return item, tuple(_END.sub("", str(text)).strip() for text in said)


def _keys_of(item: Item) -> list[tuple[str, ...]]:
    """What a row of predictions may call the item by: its id, clip and question, question and answer."""
    own = item.row.get("id", item.row.get("question_id", ""))
    keys = [("id", str(own))] if own not in (None, "") else []
    asked = tuple(map(_plain, item.questions))
    return [*keys, (item.name, *asked), ("", *asked, _plain(item.answer))]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"<(?:image|video)>", " ", text).lower().split())
