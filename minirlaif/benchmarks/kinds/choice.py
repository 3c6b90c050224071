"""Multiple choice: accuracy of the option that a reply names, or of the likeliest option."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.benchmarks.kinds import base
from minirlaif.benchmarks.kinds.base import ACCURACY, Answer, BenchmarkKind, Grade, Item
from minirlaif.data.formats import BadRow
from minirlaif.feedback.text_judge import GradeResult, JudgeName
from minirlaif.judges.rubric import CHOOSE, choice_question, chosen_option

MOST_OPTIONS = 10  # that have a column each
_TRUTHS = ("answer", "correct_choice", "correct_answer", "truth")
_LABEL = re.compile(r"^\(?([A-Z])[.):]\s*")


class MultipleChoice(BenchmarkKind):
    """`question`, `options` (also `candidates`, `choices`, a0 …, A …) and `answer` (letter, number or text); EgoSchema."""

    name = "choice"
    columns = "question, options, answer, video"
    metrics = (ACCURACY,)
    depths = {"accuracy": 1}
    has_readouts = True

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        return base.has_options(row)

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        question, options = base.question_cell(row, "question"), _options(row)
        return Item("", "choice", clip, "", (question,), options[_right_place(row, options)], options, row, base.own_id(row))

    def prompts(self, item: Item) -> list[str]:
        return [choice_question(question, item.options) for question in item.questions]

    def grader(self, ranked: bool, ask: str) -> JudgeName:
        """Likelihoods are of the options' texts alone; letters depend on how they are asked for."""
        if ranked:
            return JudgeName("likelihood", "likeliest candidate per token", "1", "")
        return JudgeName("letter", "letter of the reply", "3", base.text_hash(ask or CHOOSE))

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        """A reply that names no option is a wrong answer, and says so."""
        if answer.why or answer.rank is not None:
            return super().grade(item, answer, results)
        chosen = chosen_option(answer.texts[0], item.options)
        is_right = chosen is not None and item.options[chosen] == item.answer
        return [Grade(item.id, item.name, "accuracy", float(is_right), "" if chosen is not None else "names no option")]

    def question_text(self, item: Item) -> str:
        options = [f"{base.option_letter(place)}. {option}" for place, option in enumerate(item.options)]
        return "\n".join([*item.questions, *options])

    def truth_text(self, item: Item) -> str:
        return f"{base.option_letter(item.options.index(item.answer))}. {item.answer}"

    def answer_text(self, item: Item, answer: Answer) -> str:
        """A letter with its option."""
        text = super().answer_text(item, answer)
        chosen = chosen_option(text, item.options) if answer.rank is None else None
        return text if chosen is None or item.options[chosen] in text else f"{text} ({item.options[chosen]})"


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options without their labels."""
    column = base.first_column(row, base.OPTION_COLUMNS)
    values: Any = row[column] if column else None
    if isinstance(values, str):  # a cell of a csv file
        try:
            values = json.loads(values)
        except ValueError:
            raise BadRow(f"`{column}` must be a list of texts") from None
    if isinstance(values, Mapping):
        values = list(values.values())
    if values is None:
        first = next((names[0] for names in base.OPTION_SERIES if names[0] in row), "")
        columns = [f"{first[:-1]}{chr(ord(first[-1]) + i)}" for i in range(MOST_OPTIONS)] if first else []
        values = [row[column] for column in columns if column in row]
    texts = [str(text).strip() for text in values or ()]
    labels = [_LABEL.match(text) for text in texts]
    if texts and all(label and label[1] == base.option_letter(i) for i, label in enumerate(labels)):
        texts = [_LABEL.sub("", text) for text in texts]
    if len(texts) < 2 or not all(texts):
        raise BadRow("needs two options or more, none of them empty")
    return tuple(texts)


def _right_place(row: Mapping[str, Any], options: Sequence[str]) -> int:
    """Which option is the right one: its text, its letter or its number from 0."""
    column = base.first_column(row, _TRUTHS)
    if not column:
        raise BadRow(f"no `answer` column (it has {', '.join(row)})")
    value = row[column]
    text = str(value).strip()
    is_number = isinstance(value, int) or "a0" in row or "option 0" in row
    if not is_number and _LABEL.sub("", text) in options:
        return options.index(_LABEL.sub("", text))
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text)
    place = int(text) if text.isdigit() else ord(letter[1].upper()) - ord("A") if letter else -1
    if not 0 <= place < len(options):
        raise BadRow(f"`{column}` {text[:40]!r} is none of the {len(options)} options, no letter of one and no number from 0")
    return place
