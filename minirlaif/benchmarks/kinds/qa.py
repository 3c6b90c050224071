"""Zero-shot question answering: a judge says yes or no (accuracy) and gives a score from 0 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import (
    ACCURACY,
    ID_COLUMNS,
    Answer,
    BenchmarkKind,
    Grade,
    Item,
    Metric,
    first_column,
    own_id,
    question_cell,
    text_cell,
)
from minirlaif.benchmarks.kinds.options import has_options
from minirlaif.feedback.text_judge import GradeResult


class QuestionAnswering(BenchmarkKind):
    """One list of question and answer, or test_q and test_a matched by `question_id`; json, csv or tsv (TGIF)."""

    name = "qa"
    columns = "question, answer, video_name"
    metrics = (ACCURACY, Metric("score", "Score"))
    rubrics = {"qa": ("qa",)}

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        """Question and answer without options."""
        return {"question", "answer"} <= row.keys() and not has_options(row)

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        """Both of Video-ChatGPT's scripts find the keys that they read."""
        question, answer = question_cell(row, "question"), text_cell(row, "answer")
        columns = {"id": row.get(first_column(row, ID_COLUMNS), ""), "video_name": clip, "question": question, "answer": answer}
        columns |= {"Q": question, "A": answer}
        return Item("", "qa", clip, "", (question,), answer, row=columns, own=own_id(row))

    def grade(self, item: Item, answer: Answer | None, reason: str, results: Mapping[str, GradeResult]) -> list[Grade]:
        """The judge's yes or no, and its score."""
        result = results.get("qa", GradeResult(None, reason))
        accuracy, score = (None, None) if result.value is None else (float(bool(result.value.yes)), float(result.value.score))
        return [
            Grade(item.id, item.name, "accuracy", accuracy, result.why, result.reply),
            Grade(item.id, item.name, "score", score, result.why),
        ]
