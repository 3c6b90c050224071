"""The interface of a benchmark kind: recognise and parse rows, prompt a model, grade its answers, write them as predictions.

Kinds work on records and texts; only `complete` may read a file.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from minirlaif.data.cells import kind, plain_text
from minirlaif.data.columns import clip_names
from minirlaif.data.formats import BadRow, half_letters
from minirlaif.feedback.text_judge import GradeResult, JudgeName
from minirlaif.judges.rubric import HIGHEST

CLIP_COLUMNS = (
    "video",
    "video_name",
    "gif_name",
    "videoID",
    "video_id",
    "video_path",
    "video_idx",
    "q_uid",
)  # the first one counts
ID_COLUMNS = ("question_id", "qid", "id", "key", "q_uid", "index")
# VLM-RLAIF's own files keep the clip's place in questions.
_TAG = re.compile(r"^\s*<(?:image|video)>\s*|\s*<(?:image|video)>\s*$")
SHOWN_CANDIDATES = 3  # of a ranking, in an example

# What is ranked for one item: (clip, question, text) of each candidate, their names in predictions, the place of the right one.
Candidates = tuple[Sequence[tuple[str, str, str]], Sequence[str], int]


@dataclass(frozen=True)
class Metric:
    """A column of a table. name: its key in files; label: in its head; is_share: from 0 to 1 and shown in percent, otherwise a
    score from 0 to 5."""

    name: str
    label: str
    is_share: bool = False

    @property
    def best(self) -> float:
        """The best possible value; the worst is 0."""
        return 1.0 if self.is_share else float(HIGHEST)


ACCURACY = Metric("accuracy", "Accuracy", is_share=True)


@dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    id: unique in the benchmark; part: the part it belongs to, which names its file of predictions; name: its clip as the file
    names it; video: the path of that clip, or of the part that the row is about (video/spans.py), "" when it is not there;
    questions: two for consistency, none for action and retrieval; answer: the reference, the right option, the label or the
    caption; row: the row under the keys that other people's scripts read; own: the row's own id, which others may have too, ""
    for none; start, end: of the part of the clip, in seconds, None: its end. A kind's `parse` leaves id, video and times empty.
    """

    id: str
    part: str
    name: str
    video: str
    questions: tuple[str, ...]
    answer: str
    options: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    own: str = ""
    start: float = 0.0
    end: float | None = None

    @property
    def has_span(self) -> bool:
        """Whether it is about a part of its clip alone."""
        return self.start > 0 or self.end is not None


@dataclass(frozen=True)
class Answer:
    """A model's answer to one item. texts: one, two for consistency, or the likeliest candidates in order; rank: place of the
    right candidate from 1, candidates that are as likely counted before it, None where nothing was ranked; why: the reason where
    there is no answer, "" otherwise."""

    texts: tuple[str, ...]
    rank: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Grade:
    """One row under one metric. value: 0 to 5, or 0 or 1 for shares; None for the reason in `why`. reply: the judge's."""

    id: str
    clip: str
    metric: str
    value: float | None
    why: str = ""
    reply: str = ""


class BenchmarkKind(ABC):
    """One kind of benchmark. Subclasses set the attributes and implement `matches`, `parse` and, without depths, `grade`
    and, without rubrics too, `grader`. TypeError when one is created that lacks something of these.

    name: as in table.json; columns: what its rows must have, for messages; metrics: in the order of a table's columns; rubrics:
    part -> the metrics that a judge is asked for, empty where answers are graded without a judge; depths: where candidates are
    ranked, metric -> the last rank that is a hit; ask: the question where rows have none, for kinds whose candidates are always
    ranked by likelihood; example_question: its short form; has_readouts: --readout chooses between a reply and likelihoods;
    needs_every_clip: a missing clip would make it easier; uses: columns of `columns.MEANINGFUL` that it reads; has_spans: start
    and end of a row restrict its clip; has_breakdown: its metrics are also shown by part; revision: another one when rows are
    read in another way, so that older answers are not reused.
    """

    name: str
    columns: str
    metrics: tuple[Metric, ...]
    rubrics: Mapping[str, tuple[str, ...]] = {}
    depths: Mapping[str, int] = {}
    ask = ""
    example_question = ""
    has_readouts = False
    needs_every_clip = False
    uses: tuple[str, ...] = ()
    has_spans = True
    has_breakdown = False
    revision = ""

    def __new__(cls) -> Self:
        """As an abstract class: what is inherited counts hits at the depths of a ranking, so nothing without depths."""
        missing = [] if cls.depths or cls.grade is not BenchmarkKind.grade else ["grade"]
        missing += [] if cls.depths or cls.rubrics or cls.grader is not BenchmarkKind.grader else ["grader"]
        if missing:
            raise TypeError(f"{cls.__name__} has no depths, so it must implement {' and '.join(missing)}")
        return super().__new__(cls)

    @abstractmethod
    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        """Whether a row is of this kind. part: what the file's name says, "" for nothing."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        """The item of a row that `checked_row` has passed. clip: its clip's name. BadRow: what is wrong, in one line."""

    def complete(self, items: Sequence[Item], path: Path) -> list[Item]:
        """Items with what only the whole benchmark says. path: its file or folder."""
        return list(items)

    def ranks(self, readout: str) -> bool:
        """Whether candidates are ranked by likelihood instead of a reply being generated."""
        return bool(self.ask) or (self.has_readouts and readout == "likelihood")

    def prompts(self, item: Item) -> list[str]:
        """What a model is asked; one text of its answer belongs to each."""
        return list(item.questions)

    def candidates(self, item: Item, ask: str, clips: Mapping[str, str]) -> Candidates:
        """What is ranked: the item's options about its own clip. ask: the question where the item has none; clips: name of each
        clip by path."""
        question = [*item.questions, ask][0]
        scored = [(item.video, question, option) for option in item.options]
        return scored, item.options, item.options.index(item.answer)

    def grader(self, ranked: bool, ask: str) -> JudgeName:
        """The column of grades that need no judge. Likelihoods depend on the question, so its hash stands in the name."""
        return JudgeName("likelihood", "likeliest candidate per token", "1", text_hash(ask or self.ask))

    def judged(self, item: Item) -> tuple[tuple[str, ...], str]:
        """The questions and the reference answer that a judge sees."""
        return item.questions, item.answer

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        """A grade per metric of the item, here a hit or none at each depth. results: a judge's by metric, empty without one."""
        if answer.rank is None:
            return [Grade(item.id, item.name, metric, None, answer.why) for metric in self.depths]
        return [Grade(item.id, item.name, metric, float(answer.rank <= depth)) for metric, depth in self.depths.items()]

    def write_predictions(self, item: Item, texts: Sequence[str]) -> dict[str, Any]:
        """The row of a file of predictions; of a ranking the likeliest candidate, and all that are kept in their order."""
        ranked = {"ranked": list(texts)} if self.ask else {}
        return {**item.row, **dict(zip(prediction_columns(item), texts, strict=False)), **ranked}

    def question_text(self, item: Item) -> str:
        """The question for an example, on lines."""
        return " ".join(item.questions) or self.example_question

    def truth_text(self, item: Item) -> str:
        """The right answer for an example."""
        return item.answer

    def answer_text(self, item: Item, answer: Answer) -> str:
        """An answer for an example, on lines; candidates in their order."""
        if answer.rank is None:
            return answer.texts[0]
        first = [f"{place}. {text}" for place, text in enumerate(answer.texts[:SHOWN_CANDIDATES], 1)]
        beyond = [f"(the right one is number {answer.rank})"] if answer.rank > SHOWN_CANDIDATES else []
        return "\n".join(["Likeliest candidates in order:", *first, *beyond])


def object_row(row: Any) -> Mapping[str, Any]:
    """A row as it was read, if it is an object. BadRow otherwise."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("a row must be an object with named columns")
    return row


def checked_row(row: Any) -> tuple[dict[str, Any], str]:
    """A row's columns that hold something, and its clip's name. BadRow for what no kind could parse."""
    columns = {str(name): value for name, value in object_row(row).items() if value is not None}
    if half_letters(json.dumps(columns, ensure_ascii=False, default=str)):
        raise BadRow("contains an unpaired surrogate (broken emoji): remove it, or save the file as UTF-8")
    column = first_column(columns, CLIP_COLUMNS)
    if not column:
        raise BadRow(f"no clip: needs a `video_name`, `video` or `video_id` column (it has {', '.join(columns)})")
    names = clip_names(columns[column], column) if isinstance(columns[column], list | dict) else [text_cell(columns, column)]
    if len(names) != 1:
        raise BadRow(f"`{column}` must name one clip, this names {len(names)}")
    return columns, names[0]


def prediction_columns(item: Item) -> tuple[str, ...]:
    """`pred`, or `pred1` and `pred2` for an item of two questions."""
    return ("pred",) if len(item.questions) < 2 else tuple(f"pred{n}" for n, _ in enumerate(item.questions, 1))


def first_column(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these columns that a row has, "" for none."""
    return next((name for name in names if name in row), "")


def own_id(row: Mapping[str, Any]) -> str:
    """The row's own id, "" for none."""
    return str(row.get(first_column(row, ID_COLUMNS), ""))


def text_cell(row: Mapping[str, Any], column: str) -> str:
    """A cell that must hold something; numbers are written out. BadRow otherwise."""
    value = row.get(column)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = plain_text(value)
    if text is None:
        raise BadRow(f"`{column}` is {'missing' if value is None or value != value else f'{kind(value)}, and must be text'}")
    text = text.strip()
    if not text:
        raise BadRow(f"`{column}` is empty")
    return text


def question_cell(row: Mapping[str, Any], column: str) -> str:
    """A question without the tag that stands for the clip. BadRow when there is none."""
    return _TAG.sub("", text_cell(row, column)).strip()


def text_hash(text: str) -> str:
    """12 hex digits of a prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def option_letter(place: int) -> str:
    """A for 0, B for 1 and so on."""
    return chr(ord("A") + place)
