"""Options to choose from: taken out of a row's columns, written behind a question, and found again from an answer.

A question gets one line for each option behind its letter ("A. cat"), and the answer is the letter with the option ("B. dog"), as
LLaVA-Video-178K writes both: a model learns the letter that benchmarks ask for and what it stands for.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.data.cells import BadRow, kind, only, plain_text

COLUMNS = ("options", "candidates", "choices", "option", "answer_choices")
MOST = 26
# The first of options that have a column each: NExT-QA's a0, EgoSchema's "option 0", MedMCQA's opa, and tables with letters.
_FIRST = re.compile(r"a[01]|A|(?:option|choice|candidate|opt|op|ans)[ _]?[01aA]")
_LABEL = re.compile(r"^\(?([A-Za-z])[.):]\s*")
_NUMBER = re.compile(r"^\(?(\d{1,2})[.):]\s")
_LETTER = re.compile(r"(?:(?:[Oo]ption|[Aa]nswer|[Cc]hoice):? )?\(?([A-Za-z])\)?[.:]?")


class AnswerOptions:
    """The options of one question, without their labels. keys: names that the row gives them, such as `a0` or `option_1`, by
    which an answer may name one too; the numbers in them are those of the options, which otherwise count from 0."""

    def __init__(self, texts: Sequence[str], keys: Sequence[str] = ()) -> None:
        self.texts = tuple(texts)
        self._keys = {key.strip("() ").lower(): place for place, key in enumerate(keys)}
        self._first = int(keys[0][-1]) if keys and keys[0][-1:].isdecimal() else None

    def lines(self) -> list[str]:
        """Each option behind its letter."""
        return [f"{letter(place)}. {text}" for place, text in enumerate(self.texts)]

    def question(self, text: str) -> str:
        """A question with its options; as it is where it has them already."""
        spelled = [re.compile(rf"(?<!\w)\(?{letter(i)}[.):]\s*{re.escape(option)}") for i, option in enumerate(self.texts)]
        return text if all(each.search(text) for each in spelled) else "\n".join([text.rstrip(), *self.lines()])

    def answer(self, value: Any, column: str) -> str:
        """The option that an answer means, behind its letter. BadRow when it means none, or might mean two."""
        return self.lines()[self._place(value, column)]

    def _place(self, value: Any, column: str) -> int:
        text = plain_text(value)
        if text is None:
            raise BadRow(f"`{column}` must name one option, this is {kind(value)}")
        text = text.strip()
        if text.lower() in self._keys:
            place = self._keys[text.lower()]
            if text in self.texts and self.texts.index(text) != place:
                raise BadRow(f"`{column}` {text[:40]!r} may be an option or the name of one: write it with its letter")
            return place
        if text.isdecimal() and (numbers := self._own_numbers()):
            return self._checked(int(text) - numbers[0], text, column)
        if self._first is not None and text.isdecimal():
            return self._checked(int(text) - self._first, text, column)
        if text in self.texts:
            place = self.texts.index(text)
            number = int(text) if not isinstance(value, str) and text.isdecimal() else place
            if number != place and number < len(self.texts):
                raise BadRow(f"`{column}` {text} may be an option or the number of one: write the letter")
            if (match := _LETTER.fullmatch(text)) and place != ord(match[1].upper()) - ord("A") < len(self.texts):
                raise BadRow(f"`{column}` {text} may be an option or the letter of one: write both, as in `A. {text}`")
            return place
        if match := _LETTER.fullmatch(text):
            return self._checked(ord(match[1].upper()) - ord("A"), text, column)
        if text.isdecimal():
            return self._checked(int(text), text, column)
        if (match := _LABEL.match(text)) and text[match.end() :].strip(" .") in [each.strip(" .") for each in self.texts]:
            place = self._checked(ord(match[1].upper()) - ord("A"), text, column)
            if self.texts[place].strip(" .") == text[match.end() :].strip(" ."):
                return place
            raise BadRow(f"`{column}` {text[:40]!r} has the letter of one option and the text of another")
        alike = [place for place, option in enumerate(self.texts) if option.strip(" .").lower() == text.strip(" .").lower()]
        if len(alike) != 1:
            raise BadRow(
                f"`{column}` {text[:40]!r} is none of the {len(self.texts)} options, no letter of one and no number from 0"
            )
        return alike[0]

    def _own_numbers(self) -> list[int]:
        """The numbers that the options begin with, such as "1. cat", where they count up from 0 or 1."""
        matches = [_NUMBER.match(text) for text in self.texts]
        numbers = [int(match[1]) for match in matches if match]
        return (
            numbers if numbers and numbers[0] in (0, 1) and numbers == [*range(numbers[0], numbers[0] + len(self.texts))] else []
        )

    def _checked(self, place: int, text: str, column: str) -> int:
        if not 0 <= place < len(self.texts):
            raise BadRow(
                f"`{column}` {text[:40]!r} is none of the {len(self.texts)} options, no letter of one and no number from 0"
            )
        return place


def letter(place: int) -> str:
    """The letter of an option."""
    return chr(ord("A") + place)


def take_options(row: dict[str, Any]) -> AnswerOptions | None:
    """The options of a row, whose columns are taken out; None where it has none."""
    series = _series(row)
    column = only(row, (*COLUMNS, *series[:1]), "options")
    if not column:
        return None
    keys: Sequence[str] = ()
    if column in COLUMNS:
        value = row.pop(column)
        if value in ([], "", {}):  # free-form questions of Video-R1
            return None
        texts, keys = _texts(value, column)
    else:
        keys = series
        texts = [_text(row.pop(name), name) for name in series]
        if len(series[0]) == 1 and (rest := next((name for name in row if re.fullmatch("[A-H]", name)), "")):
            raise BadRow(f"`{rest}` stands behind a gap in the options")
    texts = _unlabelled(texts)
    if not 2 <= len(texts) <= MOST or not all(texts):
        raise BadRow(f"`{column}` must hold 2 to {MOST} options, none of them empty")
    if len(set(texts)) < len(texts):
        raise BadRow(f"`{column}` holds one option twice")
    return AnswerOptions(texts, keys)


def _series(row: Mapping[str, Any]) -> list[str]:
    """The columns of options that have a column each: two or more, in order."""
    for name in filter(_FIRST.fullmatch, row):
        if name.endswith("1") and f"{name[:-1]}0" in row:
            continue
        head, last = name[:-1], name[-1]
        columns = [f"{head}{chr(ord(last) + i)}" for i in range(10 if last.isdecimal() else MOST)]
        present = columns[: next((i for i, column in enumerate(columns) if column not in row), len(columns))]
        if len(present) > 1:
            return present
    return []


def _texts(value: Any, column: str) -> tuple[list[str], Sequence[str]]:
    """AnswerOptions and their keys: a list, an object by letter or number, ARC's {"text", "label"}, or text of one of these."""
    if isinstance(value, str):
        value = _parsed(value.strip(), column)
    keys: list[str] = []
    if isinstance(value, Mapping):
        if set(value) == {"text", "label"} and isinstance(value["text"], list) and isinstance(value["label"], list):
            value = dict(zip(map(str, value["label"]), value["text"], strict=False))
        keys = [str(key).strip("() ") for key in value]
        start = {"A": "A", "a": "a", "0": "0", "1": "1"}.get(keys[0]) if keys else None
        if start is None or keys != [chr(ord(start) + place) for place in range(len(keys))]:
            raise BadRow(f"`{column}` must have its options in order, A, B … or 0, 1 …; this has {', '.join(keys[:6])}")
        value = list(value.values())
    if not isinstance(value, list):
        raise BadRow(f"`{column}` must be a list of texts, this is {kind(value)}")
    return [_text(item, column) for item in value], keys


def _parsed(text: str, column: str) -> Any:
    """AnswerOptions in one cell: JSON, a Python list, or a line each behind a letter."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    lines = text.splitlines()
    if len(lines) < 2 or not all(_LABEL.match(line) for line in lines):
        raise BadRow(f"`{column}` must be a list of texts, this is text")
    return lines


def _text(value: Any, column: str) -> str:
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("text", "option", "content", "value", "choice") if key in value), value)
    text = plain_text(value)
    if text is None:
        raise BadRow(f"`{column}` must hold options as text, this is {kind(value)}")
    return text.strip()


def _unlabelled(texts: list[str]) -> list[str]:
    """AnswerOptions without "A. ", "B. " … where all of them have it."""
    labels = [_LABEL.match(text) for text in texts]
    if texts and all(label and label[1].upper() == letter(place) for place, label in enumerate(labels)):
        return [_LABEL.sub("", text).strip() for text in texts]
    return texts
