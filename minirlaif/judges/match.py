"""Marks without a model: an answer that matches the reference gets the best mark, any other the worst."""

from __future__ import annotations

from collections.abc import Sequence

from minirlaif.judges.base import JudgeName
from minirlaif.judges.rubric import HIGHEST, Grade, plain_answer
from minirlaif.stats import exact_match

NAMES = {  # kind -> its name in tables, and the version of its rule
    "exact": JudgeName("exact", "exact match", "1", ""),
    "normalised": JudgeName("normalised", "normalised match", "1", ""),
}


def match_grade(kind: str, answer: str, preds: Sequence[str]) -> Grade:
    """kind exact: equal up to case, spaces and one final full stop; normalised: also up to punctuation, articles and small
    numbers. Of two predictions (consistency) both must match."""
    if kind == "exact":
        right = all(exact_match(pred, answer) for pred in preds)
    else:
        right = all(plain_answer(pred) == plain_answer(answer) for pred in preds)
    return Grade(HIGHEST if right else 0, right)
