"""VideoInstruct: three parts, five metrics from 0 to 5 by a judge, and their mean."""

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import Answer, BenchmarkKind, Grade, Item, Metric, question_cell, text_cell
from minirlaif.benchmarks.kinds.options import has_options
from minirlaif.feedback.text_judge import GradeResult

FIVE = ("correctness", "detail", "context", "temporal", "consistency")
PAIRS = (("Q1", "Q2"), ("question_1", "question_2"))


class VideoInstruct(BenchmarkKind):
    """`Q`, `A`, `video_name`; `Q1` and `Q2` for consistency, which asks the same in two ways. Also the hub repack's columns."""

    name = "videoinstruct"
    columns = "Q, A, video_name"
    metrics = (*(Metric(name, name.capitalize()) for name in FIVE), Metric("mean", "Mean of five"))
    rubrics = {"generic_qa": FIVE[:3], "temporal_qa": FIVE[3:4], "consistency_qa": FIVE[4:]}

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        """By its columns, or by the name of its file where question and answer are called so."""
        if "Q" in row or any(set(pair) <= row.keys() for pair in PAIRS):
            return True
        return part.endswith("_qa") and {"question", "answer"} <= row.keys() and not has_options(row)

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        """A row of one question in a file of no part counts as generic."""
        answer = text_cell(row, "A" if "A" in row else "answer")
        others = {k: v for k, v in row.items() if k not in ("question", "question_1", "question_2", "answer")}
        pair = next((names for names in PAIRS if names[0] in row or names[1] in row), None)
        if pair:
            first, second = (question_cell(row, name) for name in pair)
            columns = {**others, "video_name": clip, "Q1": first, "Q2": second, "A": answer}
            return Item("", "consistency_qa", clip, "", (first, second), answer, row=columns)
        question = question_cell(row, "Q" if "Q" in row else "question")
        own_part = part if part in ("generic_qa", "temporal_qa") else "generic_qa"
        columns = {**others, "video_name": clip, "Q": question, "A": answer}
        return Item("", own_part, clip, "", (question,), answer, row=columns)

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        grades = []
        for metric in self.rubrics[item.part]:
            result = results.get(metric, GradeResult(None, answer.why))
            value = None if result.value is None else float(result.value.score)
            grades.append(Grade(item.id, item.name, metric, value, result.why, result.reply))
        return grades

    def question_text(self, item: Item) -> str:
        if len(item.questions) == 1:
            return item.questions[0]
        return f"First question: {item.questions[0]}\nSecond question: {item.questions[1]}"

    def answer_text(self, item: Item, answer: Answer) -> str:
        if len(item.questions) == 1:
            return super().answer_text(item, answer)
        return f"First answer: {answer.texts[0]}\nSecond answer: {answer.texts[1]}"
