"""Options of a multiple-choice question: read as those of data rows are, or from lines of the question; and the right one."""

import re
from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import option_letter, question_cell
from minirlaif.data.cells import holds
from minirlaif.data.columns import ONE_OPTION, PLACES
from minirlaif.data.formats import BadRow
from minirlaif.data.options import COLUMNS, AnswerOptions, take_options

TRUTHS = ("answer", "correct_choice", "correct_answer", "right_answer", "answer_key", "truth", "ground_truth", *PLACES)
LABEL = re.compile(r"^\(?([A-Z])[.):]\s*")


def has_options(row: Mapping[str, Any]) -> bool:
    """Whether a row has options to choose from."""
    row = {name: value for name, value in row.items() if value is not None}
    first = [
        name for name in row if re.fullmatch(r"a[01]|A|.+[ _]?[01aA]", name) and ONE_OPTION.fullmatch(f"{name[:-1]}{_next(name)}")
    ]
    in_columns = any(f"{name[:-1]}{_next(name)}" in row for name in first)
    return any(holds(row.get(name)) for name in COLUMNS) or in_columns or bool(_lines(row))


def _next(name: str) -> str:
    return chr(ord(name[-1]) + 1)


def question_and_options(row: Mapping[str, Any]) -> tuple[str, AnswerOptions]:
    """The question, and its options without their labels. BadRow when there are less than two."""
    question, columns = question_cell(row, "question"), dict(row)
    if options := take_options(columns):
        options.question(question)  # which complains where it lists other options
    elif lines := _lines(row):
        question = "\n".join(question.split("\n")[: -len(lines)]).strip()
        options = take_options({"options": lines})
    if options is None:
        raise BadRow("needs two options or more, none of them empty")
    return question, options


def right_place(row: Mapping[str, Any], options: AnswerOptions) -> int:
    """Which option is the right one: its text, its letter or its number. BadRow where two columns name different ones."""
    places = {name: options.place(row[name], name) for name in TRUTHS if holds(row.get(name))}
    if not places:
        raise BadRow(f"no `answer` column (it has {', '.join(row)})")
    if len(set(places.values())) > 1:
        first, *others = places
        other = next(name for name in others if places[name] != places[first])
        raise BadRow(f"two columns may be the answer, `{first}` and `{other}`: remove one of them")
    return next(iter(places.values()))


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
