"""Zero-shot question answering: a judge says yes or no (accuracy) and gives a score from 0 to 5."""

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds import base
from minirlaif.benchmarks.kinds.base import ACCURACY, Answer, BenchmarkKind, Grade, Item, Metric
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
        question, answer = base.question_cell(row, "question"), base.text_cell(row, "answer")
        columns = {"id": row.get(base.first_column(row, base.ID_COLUMNS), ""), "video_name": clip}
        columns |= {"question": question, "answer": answer, "Q": question, "A": answer}
        return Item("", "qa", clip, "", (question,), answer, row=columns, own=base.own_id(row))

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        result = results.get("qa", GradeResult(None, answer.why))
        accuracy, score = (None, None) if result.value is None else (float(bool(result.value.yes)), float(result.value.score))
        right = Grade(item.id, item.name, "accuracy", accuracy, result.why, result.reply)
        return [right, Grade(item.id, item.name, "score", score, result.why)]
