"""Options of a multiple-choice question: in a list, in a column each or on lines of the question; and which one is right."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.benchmarks.kinds.base import first_column, option_letter, question_cell
from minirlaif.data.cells import kind
from minirlaif.data.formats import BadRow

OPTION_COLUMNS = ("options", "candidates", "choices", "option")
# First names of options that have a column each. Those that count from 1 are not read: a number as the answer could mean two.
OPTION_SERIES = (
    ("a0", "a1"),
    ("option 0", "option 1"),
    ("option_0", "option_1"),
    ("option0", "option1"),
    ("A", "B"),
    ("option_a", "option_b"),
    ("choice_a", "choice_b"),
    ("option_A", "option_B"),
    ("optionA", "optionB"),
)
MOST_OPTIONS = 10  # that have a column each
TEXTS = ("choice", "text", "option")  # of an option that is an object: STAR's
TRUTHS = ("answer", "correct_choice", "correct_answer", "right_answer", "answer_id", "truth")
LABEL = re.compile(r"^\(?([A-Z])[.):]\s*")


def has_options(row: Mapping[str, Any]) -> bool:
    """Whether a row has options to choose from."""
    columns = first_column(row, OPTION_COLUMNS) or any(set(names) <= row.keys() for names in OPTION_SERIES)
    return bool(columns or _lines(row))


def question_and_options(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The question, and its options without their labels. BadRow when there are less than two."""
    question, values = question_cell(row, "question"), _values(row)
    if values is None and (lines := _lines(row)):
        question, values = "\n".join(question.split("\n")[: -len(lines)]).strip(), lines
    texts = [_text(value) for value in values or ()]
    labels = [LABEL.match(text) for text in texts]
    if texts and all(label and label[1] == option_letter(i) for i, label in enumerate(labels)):
        texts = [LABEL.sub("", text) for text in texts]
    if len(texts) < 2 or not all(texts):
        raise BadRow("needs two options or more, none of them empty")
    return question, tuple(texts)


def right_place(row: Mapping[str, Any], options: Sequence[str]) -> int:
    """Which option is the right one: its text, its letter or its number from 0."""
    column = first_column(row, TRUTHS)
    if not column:
        raise BadRow(f"no `answer` column (it has {', '.join(row)})")
    value = row[column][0] if isinstance(row[column], list) and len(row[column]) == 1 else row[column]
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    text = str(value).strip()
    is_numbered = "a0" in row or "option 0" in row
    if is_numbered and not isinstance(value, int) and text.isdecimal() and text in options and options.index(text) != int(text):
        raise BadRow(f"`{column}` {text} may be the number of an option or the option {text}: write the number without quotes")
    is_number = isinstance(value, int) or (is_numbered and text.isdecimal())  # NExT-GQA has texts
    if not is_number and LABEL.sub("", text) in options:
        return options.index(LABEL.sub("", text))
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text)
    place = int(text) if text.isdecimal() else ord(letter[1].upper()) - ord("A") if letter else -1
    if not 0 <= place < len(options):
        raise BadRow(f"`{column}` {text[:40]!r} is none of the {len(options)} options, no letter of one and no number from 0")
    return place


def _values(row: Mapping[str, Any]) -> Any:
    """Options of a list or of columns, None without either."""
    column = first_column(row, OPTION_COLUMNS)
    if not column:
        first = next((names[0] for names in OPTION_SERIES if set(names) <= row.keys()), "")
        columns = [f"{first[:-1]}{chr(ord(first[-1]) + i)}" for i in range(MOST_OPTIONS)] if first else []
        present = [column in row for column in columns]
        if sum(present) and not all(present[: sum(present)]):
            raise BadRow(f"`{columns[present.index(False)]}` is missing between the options")
        return [row[column] for column in columns if column in row] or None
    values = row[column]
    if isinstance(values, str):  # a cell of a csv file
        try:
            values = json.loads(values)
        except ValueError:
            raise BadRow(f"`{column}` must be a list of texts") from None
    if isinstance(values, Mapping):
        keys = [str(key).strip("() ").upper() for key in values]
        if keys not in ([option_letter(i) for i in range(len(keys))], *([str(i + n) for i in range(len(keys))] for n in (0, 1))):
            raise BadRow(f"`{column}` must have its options in order, A, B … or 0, 1 …; this has {', '.join(keys[:6])}")
        return list(values.values())
    if not isinstance(values, list):
        raise BadRow(f"`{column}` must be a list of texts")
    return values


def _text(value: Any) -> str:
    """An option as text. BadRow for an object without one."""
    if isinstance(value, Mapping):
        column = first_column(value, TEXTS)
        if not column:
            raise BadRow(f"an option must be text, this is an object with {', '.join(map(str, value))}")
        value = value[column]
    if not isinstance(value, str | int | float):
        raise BadRow(f"an option must be text, this is {kind(value)}")
    return str(value).strip()


def _lines(row: Mapping[str, Any]) -> list[str]:
    """The last lines of a question where they are options (A, B …) and the answer is one of them or its letter: LVBench's."""
    lines = str(row.get("question", "")).strip().split("\n")
    labels = [LABEL.match(line.strip()) for line in lines]
    first = next((place for place, label in enumerate(labels) if label and label[1] == "A"), len(lines))
    letters = [label[1] if label else "" for label in labels[first:]]
    if first == 0 or len(letters) < 2 or letters != [option_letter(i) for i in range(len(letters))]:
        return []
    answer, options = str(row.get("answer", "")).strip(), [line.strip() for line in lines[first:]]
    letter = re.fullmatch(r"\(?([A-Z])\)?[.:]?", answer)
    return options if answer in options or (letter and letter[1] in letters) else []
