"""Records that several modules share: rows of data, pairs of answers, verdicts, preferences. No disk.

Letters used in shape suffixes all over the package:
B batch · P prompt tokens · R response tokens · T = P + R · V vocabulary · F frames · K feature vectors per frame · D width
One mask rule: True means "this position counts".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Turn:
    """One question with its answer; the answer is None where there is none (prompts for feedback).

    learn: whether supervised fine-tuning learns the answer; otherwise it is only read.
    """

    question: str
    answer: str | None = None
    learn: bool = True


@dataclass(frozen=True)
class Sample:
    """One row of a data file: a clip and the conversation about it."""

    id: str  # stable: content of the row, or the row's own id
    video: str  # path of the clip, or of a part of it (video/spans.py)
    turns: tuple[Turn, ...]
    where: str = ""  # "file:row", for error messages
    tags: Mapping[str, str] = field(default_factory=dict)  # further columns that are passed on, such as "type"


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question, not yet judged. ids_a, ids_b: of their tokens as they were sampled; empty: encode the text."""

    id: str
    video: str
    question: str
    answer_a: str
    answer_b: str
    context: str = ""  # joined segment descriptions
    tags: Mapping[str, str] = field(default_factory=dict)
    ids_a: tuple[int, ...] = ()
    ids_b: tuple[int, ...] = ()

    def swap(self) -> Comparison:
        """The same pair with the answers in the other order."""
        return replace(self, answer_a=self.answer_b, answer_b=self.answer_a, ids_a=self.ids_b, ids_b=self.ids_a)


Choice = Literal["A", "B", "tie", "invalid"]  # in one order of the answers


@dataclass(frozen=True)
class Verdict:
    """The judge's verdict on one pair. choice: "A", "B", "tie", "invalid" or "disagree" (the two orders differ)."""

    pair: str  # id of the pair
    choice: Choice | Literal["disagree"]
    margin: (
        float  # distance of the choice from a tie, in the unit of the read-out (nats per token, or log-odds of the letters); >= 0
    )
    orders: tuple[Choice, Choice]  # the choice in the order A-B and in the order B-A, both in names of the first order


@dataclass(frozen=True)
class Preference:
    """A pair with its better answer: a row for the reward model. chosen_ids, rejected_ids: of their tokens as they were sampled;
    empty: encode the text."""

    id: str
    video: str
    question: str
    chosen: str
    rejected: str
    context: str = ""
    margin: float = 0.0
    where: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    chosen_ids: tuple[int, ...] = ()
    rejected_ids: tuple[int, ...] = ()
