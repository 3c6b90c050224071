"""Options to choose from: taken out of a row's columns, written behind a question, and found again from an answer.

A question gets one line for each option behind its letter ("A. cat"), and the answer is the letter with the option ("B. dog"), as
LLaVA-Video-178K writes both: a model learns the letter that benchmarks ask for and what it stands for.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.data.cells import BadRow, holds, kind, only, plain_text

COLUMNS = ("options", "candidates", "choices", "option", "answer_choices")
MOST = 26
# The first of options that have a column each: NExT-QA's a0, EgoSchema's "option 0", MedMCQA's opa, and tables with letters.
_FIRST = re.compile(r"a[01]|A|(?:option|choice|candidate|opt|op|ans)[ _]?[01aA]")
# What an option may begin with: A. A) (A) [A] A: "A - " "Option A: ", or a number in place of the letter.
_LABEL = re.compile(r"^(?:[Oo]ption )?[(\[]?(?:([A-Za-z])|(\d{1,2}))(?:[)\]:]+|\.(?!\d)|(?= - ))(?: -)?\s*(?=\S)")
_LISTED = re.compile(r"^\s*[(\[]?(?:[A-Z]|\d{1,2})[.):\]]\s*\S", re.MULTILINE)  # a line of a question that is an option
_LETTER = re.compile(r"(?:(?:[Oo]ption|[Aa]nswer|[Cc]hoice):? )?\(?([A-Za-z])\)?[.:]?")
_TEXT_KEYS = ("text", "option", "content", "value", "choice")  # of an option that is an object
_ID_KEYS = ("label", "id", "option_id", "choice_id", "key", "letter", "index")


class AnswerOptions:
    """The options of one question, without their labels. keys: names that the row gives them, such as `a0` or `option_1`, by
    which an answer may name one too; the numbers in them are those of the options, which otherwise count from 0."""

    def __init__(self, texts: Sequence[str], keys: Sequence[str] = ()) -> None:
        self.texts = tuple(texts)
        self._keys = {key.strip("() ").lower(): place for place, key in enumerate(keys)}
        number = re.search(r"\d+$", keys[0]) if keys else None
        self._first = int(number[0]) if number else None
        # TGIF-QA has its options in a1 to a5 and counts answers from 0.
        self._unclear = bool(keys) and keys[0] == "a1"

    def lines(self) -> list[str]:
        """Each option behind its letter."""
        return [f"{letter(place)}. {text}" for place, text in enumerate(self.texts)]

    def question(self, text: str) -> str:
        """A question with its options; as it is where it has them already. BadRow where it lists other ones."""
        spelled = [re.compile(rf"(?<!\w)\(?{letter(i)}[.):]\s*{re.escape(option)}(?!\w)") for i, option in enumerate(self.texts)]
        if all(each.search(text) for each in spelled):
            return text
        if len(_LISTED.findall(text)) > 1:
            raise BadRow("the question lists options behind letters or numbers, and the row has other ones: take one of them out")
        return "\n".join([text.rstrip(), *self.lines()])

    def answer(self, value: Any, column: str) -> str:
        """The option that an answer means, behind its letter. BadRow when it means none, or might mean two."""
        return self.lines()[self.place(value, column)]

    def place(self, value: Any, column: str) -> int:
        """The option that an answer means, by its text, key, letter or number, counted from 0. BadRow as `answer`."""
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        text = plain_text(value)
        if text is None:
            raise BadRow(f"`{column}` must name one option, this is {kind(value)}")
        text = unicodedata.normalize("NFKC", text).strip()
        exact = self.texts.index(text) if text in self.texts else None
        if exact is not None and self._first is not None and isinstance(value, int) and not isinstance(value, bool):
            exact = None  # numbered options: a number that is no text counts them
        for names, other in self._names(text, column, exact is None):
            if exact is not None and names == "number" and isinstance(value, str) and self._first is None:
                continue  # MVBench's counts: text answers are options, not places
            if exact is not None and other != exact:
                raise BadRow(
                    f"`{column}` {text[:40]!r} may be an option or the {names} of one: write both, as in `A. {text[:40]}`"
                )
            if exact is None:
                return other
        return self._by_text(text, column) if exact is None else exact

    def _names(self, text: str, column: str, needed: bool) -> list[tuple[str, int]]:
        """The option that a text names by key, letter or number, with what it is; empty for another text. needed: BadRow for a
        number or letter of none."""
        key = self._keys.get(text.lower())
        if key is not None and not (self._unclear and text.isdecimal()):
            return [("name", key)]
        if text.isdecimal():
            if self._unclear and needed:
                raise BadRow(f"`{column}` {text} may count the columns of options from 0 or from 1: write the letter")
            what, place = "number", int(text) - (self._first or 0)
        elif match := _LETTER.fullmatch(text):
            what, place = "letter", ord(match[1].upper()) - ord("A")
        else:
            return []
        if 0 <= place < len(self.texts):
            return [(what, place)]
        if needed and not any(self._same(option, text) for option in self.texts):
            raise self._none(text, column)
        return []

    def _by_text(self, text: str, column: str) -> int:
        label = _LABEL.match(text)
        rest = text[label.end() :] if label and label[1] else ""
        if label and any(self._same(option, rest) for option in self.texts):
            place = ord(label[1].upper()) - ord("A")
            if place < len(self.texts) and self._same(self.texts[place], rest):
                return place
            raise BadRow(f"`{column}` {text[:40]!r} has the letter of one option and the text of another: write one of them")
        alike = [place for place, option in enumerate(self.texts) if self._same(option, text)]
        if len(alike) != 1:
            raise self._none(text, column)
        return alike[0]

    @staticmethod
    def _same(option: str, text: str) -> bool:
        return option.strip(" .").lower() == text.strip(" .").lower()

    def _none(self, text: str, column: str) -> BadRow:
        known = f"is none of the {len(self.texts)} options, no letter of one and no number from {self._first or 0}"
        return BadRow(f"`{column}` {text[:40]!r} {known}: write one of them")


def letter(place: int) -> str:
    """The letter of an option."""
    return chr(ord("A") + place)


def take_options(row: dict[str, Any]) -> AnswerOptions | None:
    """The options of a row, whose columns are taken out; None where it has none."""
    series = _series(row)
    column = only(row, (*COLUMNS, *series[:1]), "options")
    if not column:
        for name in series:
            row.pop(name)
        return None
    keys: Sequence[str] = ()
    if column in COLUMNS:
        value = row.pop(column)
        if not holds(value):  # free-form questions of Video-R1 and MMVU
            return None
        texts, keys = _texts(value, column)
    else:
        keys = series
        texts = [_text(row.pop(name), name) for name in series]
        while texts and not texts[-1]:  # a question with fewer options than the table has columns
            texts, keys = texts[:-1], keys[:-1]
        if len(series[0]) == 1 and (rest := next((name for name in row if re.fullmatch("[A-H]", name)), "")):
            raise BadRow(f"`{rest}` stands behind a gap in the options")
    texts, labels = _unlabelled(texts, column)
    if not 2 <= len(texts) <= MOST or not all(texts):
        raise BadRow(f"`{column}` must hold 2 to {MOST} options, none of them empty")
    if len(set(texts)) < len(texts):
        raise BadRow(f"`{column}` holds one option twice: take one out")
    return AnswerOptions(texts, labels or keys)


def _series(row: Mapping[str, Any]) -> list[str]:
    """The columns of options that have a column each: two or more, in order."""
    for name in filter(_FIRST.fullmatch, row):
        head, last = name[:-1], name[-1]
        if last == "1" and f"{head}0" in row:
            continue
        ends = (str(int(last) + i) if last.isdecimal() else chr(ord(last) + i) for i in range(MOST))
        columns = [f"{head}{end}" for end in ends]
        present = columns[: next((i for i, column in enumerate(columns) if column not in row), len(columns))]
        if len(present) > 1:
            return present
    return []


def _texts(value: Any, column: str) -> tuple[list[str], Sequence[str]]:
    """Options and their keys: a list, an object by letter or number, ARC's {"text", "label"}, or text of one of these."""
    if isinstance(value, str):
        value = _parsed(value.strip(), column)
    if isinstance(value, list) and all(isinstance(item, Mapping) and len(item) == 1 for item in value):
        pairs = [pair for item in value for pair in item.items()]
        if all(re.fullmatch(r"[A-Za-z]|\d", str(key)) for key, _ in pairs):  # [{"A": "cat"}, {"B": "dog"}]
            value = dict(pairs)
    if isinstance(value, list):
        items = [_object(item, column) if isinstance(item, Mapping) else (item, "") for item in value]
        keys = [key for _, key in items]
        if any(keys):
            _check_order(keys, column)
        return [_text(text, column) for text, _ in items], keys if any(keys) else ()
    if not isinstance(value, Mapping):
        raise BadRow(f"`{column}` must be a list of texts, this is {kind(value)}")
    if set(value) == {"text", "label"} and isinstance(value["text"], list) and isinstance(value["label"], list):
        if len(value["text"]) != len(value["label"]):
            raise BadRow(f"`{column}` has {len(value['text'])} texts and {len(value['label'])} labels")
        value = dict(zip(map(str, value["label"]), value["text"], strict=True))
    value = {str(key).strip("() "): text for key, text in value.items() if holds(text)}  # tables fill up with null
    _check_order([*value], column)
    return [_text(item, column) for item in value.values()], [*value]


def _check_order(keys: Sequence[str], column: str) -> None:
    start = keys[0] if keys and keys[0] in ("A", "a", "0", "1") else ""
    wanted = [str(int(start) + i) if start.isdecimal() else chr(ord(start) + i) for i in range(len(keys))] if start else []
    if not start or list(keys) != wanted:
        raise BadRow(f"`{column}` must have its options in order, A, B … or 0, 1 …; this has {', '.join(keys[:6])}")


def _object(item: Mapping[str, Any], column: str) -> tuple[Any, str]:
    """Text and key of an option that is an object. BadRow for what else it holds, such as whether it is right."""
    text = next((name for name in _TEXT_KEYS if name in item), "")
    key = next((name for name in _ID_KEYS if holds(item.get(name))), "")
    if rest := next((name for name, value in item.items() if name not in (text, key) and holds(value)), ""):
        raise BadRow(f"`{column}` holds options with `{rest}`, which is not used: write them as texts")
    return item.get(text), str(item[key]).strip("() ") if key else ""


def _parsed(text: str, column: str) -> Any:
    """Options in one cell: JSON, a Python list, or a line each behind a letter."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    lines = text.splitlines()
    if len(lines) < 2 or not all(_LABEL.match(line) for line in lines):
        raise BadRow(f"`{column}` must be a list of texts, this is text")
    return lines


def _text(value: Any, column: str) -> str:
    text = plain_text(value)
    if text is None:
        raise BadRow(f"`{column}` must hold options as text, this is {kind(value)}")
    return text.strip()


def _unlabelled(texts: list[str], column: str) -> tuple[list[str], list[str]]:
    """Options without "A. ", "B. " … or "1. ", "2. " … where all of them have it, and the numbers as keys. BadRow where letters
    or numbers are in another order: an answer may go by them or by the options' places."""
    labels = [_LABEL.match(text) for text in texts]
    letters = [label[1].upper() for label in labels if label and label[1]]
    numbers = [label[2] for label in labels if label and label[2]]
    if not texts or len(texts) not in (len(letters), len(numbers)):
        return texts, []
    _check_order(letters or numbers, column)
    return [text[label.end() :].strip() for text, label in zip(texts, labels, strict=True) if label], numbers
