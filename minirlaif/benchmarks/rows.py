"""One row of a benchmark file, of whatever kind, turned into one shape. Pure functions on dicts, no disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.data.formats import BadRow, half_letters

KINDS = {
    "videoinstruct": "Q, A, video_name",
    "qa": "question, answer, video_name",
    "choice": "question, options, answer, video",
    "action": "video, label",
    "retrieval": "video, caption",
}
CLIPS = ("video", "video_name", "gif_name", "videoID", "video_id", "video_path", "q_uid")  # the first one counts
_OPTIONS = ("options", "candidates", "choices")
_CAPTIONS = ("caption", "sentence", "captions")
_LABELS = ("label", "class", "action")
_IDS = ("question_id", "qid", "id", "key", "q_uid", "index")
_TRUTHS = ("answer", "correct_choice", "correct_answer", "truth")
_TAG = re.compile(
    r"^\s*<(?:image|video)>\s*|\s*<(?:image|video)>\s*$"
)  # VLM-RLAIF's own files keep the clip's place in questions
_LABEL = re.compile(r"^\(?([A-Z])[.):]\s*")


@dataclass(frozen=True)
class Row:
    """A parsed row; fields as in `benchmarks.Item`. id: the row's own, "" without one."""

    id: str
    part: str
    name: str
    questions: tuple[str, ...]
    answer: str
    options: tuple[str, ...]
    row: Mapping[str, Any]


def kind_of(row: Mapping[str, Any], part: str) -> str:
    """What kind of benchmark a row belongs to, "" for none. part: what the file's name says, "" for nothing."""
    if "Q" in row or any(pair <= row.keys() for pair in ({"Q1", "Q2"}, {"question_1", "question_2"})):
        return "videoinstruct"
    pairs = ({"a0", "a1"}, {"option 0", "option 1"}, {"A", "B"})
    if _first(row, _OPTIONS) or any(pair <= row.keys() for pair in pairs):
        return "choice"
    if part.endswith("_qa") and {"question", "answer"} <= row.keys():
        return "videoinstruct"
    if "question" in row:
        return "qa" if "answer" in row else ""
    if _first(row, CLIPS):
        return "retrieval" if _first(row, _CAPTIONS) else "action" if _first(row, _LABELS) else ""
    return ""


def parse_row(row: Any, kind: str, part: str) -> Row:
    """A row of a known kind. BadRow: what is wrong, in one line."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("a row must be an object with named columns")
    row = {str(name): value for name, value in row.items() if value is not None}
    if half_letters(json.dumps(row, ensure_ascii=False, default=str)):
        raise BadRow("holds half a letter (a lone surrogate), which no file can hold: write the file as UTF-8")
    column = _first(row, CLIPS)
    if not column:
        raise BadRow(f"no clip: needs a `video_name`, `video` or `video_id` column (it has {', '.join(row)})")
    name = _text(row, column)
    id_ = str(row.get(_first(row, _IDS), ""))
    if kind == "videoinstruct":
        return _videoinstruct(row, part, name)
    if kind == "action":
        label = _text(row, _first(row, _LABELS))
        return Row("", "action", name, (), words_of(label), (), row)
    if kind == "retrieval":
        given = row[_first(row, _CAPTIONS)]
        caption = " ".join(map(str, given)) if isinstance(given, list) else str(given)
        if not caption.strip():
            raise BadRow("the caption is empty")
        return Row("", "retrieval", name, (), " ".join(caption.split()), (), row)
    question = _untagged(_text(row, "question"))
    if kind == "choice":
        options = _options(row)
        return Row(id_, "choice", name, (question,), options[_right(row, options)], options, row)
    answer = _text(row, "answer")
    # Both of Video-ChatGPT's scripts find the keys that they read.
    told = {"id": row.get(_first(row, _IDS), ""), "video_name": name, "question": question, "answer": answer}
    return Row(id_, "qa", name, (question,), answer, (), {**told, "Q": question, "A": answer})


def words_of(label: str) -> str:
    """A class name as words: ApplyEyeMakeup and brush_hair become "apply eye makeup" and "brush hair"."""
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label).replace("_", " ").lower().split())


def _videoinstruct(row: Mapping[str, Any], part: str, name: str) -> Row:
    answer = _text(row, "A" if "A" in row else "answer")
    rest = {k: v for k, v in row.items() if k not in ("question", "question_1", "question_2", "answer")}
    pair = next((keys for keys in (("Q1", "Q2"), ("question_1", "question_2")) if keys[0] in row or keys[1] in row), None)
    if pair:
        questions = tuple(_untagged(_text(row, key)) for key in pair)
        told = {**rest, "video_name": name, "Q1": questions[0], "Q2": questions[1], "A": answer}
        return Row("", "consistency_qa", name, questions, answer, (), told)
    question = _untagged(_text(row, "Q" if "Q" in row else "question"))
    where = part if part in ("generic_qa", "temporal_qa") else "generic_qa"
    return Row("", where, name, (question,), answer, (), {**rest, "video_name": name, "Q": question, "A": answer})


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options without their labels."""
    column = _first(row, _OPTIONS)
    given: Any = row[column] if column else None
    if isinstance(given, str):  # a cell of a csv file
        try:
            given = json.loads(given)
        except ValueError:
            raise BadRow(f"`{column}` must be a list of texts") from None
    if isinstance(given, Mapping):
        given = list(given.values())
    if given is None:
        for names in (["a0", "a1"], ["option 0", "option 1"], ["A", "B"]):
            if names[0] in row:
                stem, start = names[0][:-1], names[0][-1]
                keys = [f"{stem}{chr(ord(start) + i)}" for i in range(10)]
                given = [row[key] for key in keys if key in row]
                break
    texts = [str(text).strip() for text in given or ()]
    labels = [_LABEL.match(text) for text in texts]
    if texts and all(label and label[1] == chr(ord("A") + i) for i, label in enumerate(labels)):
        texts = [_LABEL.sub("", text) for text in texts]
    if len(texts) < 2 or not all(texts):
        raise BadRow("needs two options or more, none of them empty")
    return tuple(texts)


def _right(row: Mapping[str, Any], options: Sequence[str]) -> int:
    """Which option is the right one: its text, its letter or its number from 0."""
    column = _first(row, _TRUTHS)
    if not column:
        raise BadRow(f"no `answer` column (it has {', '.join(row)})")
    given = row[column]
    text = str(given).strip()
    numbered = isinstance(given, int) or "a0" in row or "option 0" in row
    if not numbered and _LABEL.sub("", text) in options:
        return options.index(_LABEL.sub("", text))
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text)
    place = int(text) if text.isdigit() else ord(letter[1].upper()) - ord("A") if letter else -1
    if not 0 <= place < len(options):
        raise BadRow(f"`{column}` {text[:40]!r} is none of the {len(options)} options, no letter of one and no number from 0")
    return place


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in row), "")


def _untagged(text: str) -> str:
    return _TAG.sub("", text).strip()


def _text(row: Mapping[str, Any], column: str) -> str:
    """A cell that must hold something; numbers are written out."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"`{column}` is missing" if value is None else f"`{column}` must be text")
    text = str(value).strip()
    if not text:
        raise BadRow(f"`{column}` is empty")
    return text
