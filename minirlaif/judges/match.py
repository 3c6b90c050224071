"""Grades without a model: an answer that matches the reference gets the best grade, any other the worst."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import Grade, GradeRequest, GradeResult, Grading, JudgeName
from minirlaif.judges.config import JudgeSettings
from minirlaif.judges.rubric import HIGHEST, plain_answer
from minirlaif.stats import exact_match
from minirlaif.types import Choice, Comparison

NAMES = {  # kind -> its name in tables, and the version of its rule
    "exact": JudgeName("exact", "exact match", "1", ""),
    "normalised": JudgeName("normalised", "normalised match", "1", ""),
}


class MatchJudge:
    """kind exact: equal up to case, spaces and one final full stop; normalised: also up to punctuation, articles and small
    numbers. Of two answers (consistency) both must match."""

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        self.kind, self.name = settings.kind, NAMES[settings.kind].name
        self.signature: dict[str, Any] = {"kind": self.kind}

    def matches(self, answer: str, reference: str) -> bool:
        """Whether an answer counts as the reference."""
        return exact_match(answer, reference) if self.kind == "exact" else plain_answer(answer) == plain_answer(reference)

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        """The best or the worst grade."""
        right = [all(self.matches(answer, request.reference) for answer in request.answers) for request in requests]
        return Grading(NAMES[self.kind], [GradeResult(Grade(HIGHEST if each else 0, each)) for each in right])

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        """Not possible: feedback has no reference answers."""
        raise UserError(f"judge {self.kind}: compares with a reference answer, and feedback has none; use hf, gguf or openai")

    def close(self) -> None:
        """Nothing is open."""
