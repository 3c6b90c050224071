"""TempCompass: multiple choice, yes or no and caption matching by the rules of its authors, captions by a judge that chooses."""

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import (
    Answer,
    BenchmarkKind,
    Grade,
    Item,
    Metric,
    own_id,
    question_cell,
    text_cell,
    text_hash,
)
from minirlaif.data.formats import BadRow
from minirlaif.feedback.text_judge import GradeResult, JudgeName

DIMENSIONS = ("action", "attribute_change", "direction", "order", "speed")
FILES = ("caption_matching", "multi-choice", "yes_no")  # of the tasks that rules grade
# What the authors' scripts add to a question.
BEST, YES_NO = "\nPlease directly give the best option:", "\nPlease answer yes or no:"
REQUESTS = {"multi_choice": BEST, "yes_no": YES_NO, "caption_matching": BEST}
CAPTION = "Generated Caption:"  # the end of a question of captioning.json


class TempCompass(BenchmarkKind):
    """`video_id`, `dim`, `question`, `answer`: multi-choice.json, yes_no.json and caption_matching.json, which have them by clip
    and dimension, or the hub's rows. Dimensions are parts, tasks are metrics.

    Source: eval_multi-choice.py, eval_yes_no.py and eval_caption_matching.py with --disable_llm; a reply that the rules cannot
    read is wrong, and says so."""

    name = "tempcompass"
    columns = "video_id, dim, question, answer"
    metrics = tuple(
        Metric(name, label, is_share=True)
        for name, label in (("multi_choice", "Multi-choice"), ("yes_no", "Yes/no"), ("caption_matching", "Caption matching"))
    )
    has_breakdown = True
    revision = "1"

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        return {"dim", "question", "answer"} <= row.keys()

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        question, answer = question_cell(row, "question"), text_cell(row, "answer")
        if question.endswith(CAPTION):
            raise BadRow("a judge grades captions by the questions of multi-choice.json, which does not lie beside this file")
        answer = answer.lower() if answer.lower() in ("yes", "no") else answer
        row = {**row, "task": _task(question, answer)}
        return Item("", dimension(row), clip, "", (question,), answer, row=row, own=own_id(row))

    def prompts(self, item: Item) -> list[str]:
        """The question, and the form of the answer."""
        return [question + REQUESTS[item.row["task"]] for question in item.questions]

    def grader(self, ranked: bool, ask: str) -> JudgeName:
        return JudgeName("rules", "TempCompass rules", "1", text_hash(BEST + YES_NO))

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        """1 or 0 under the metric of the item's task."""
        task = item.row["task"]
        if answer.why:
            return [Grade(item.id, item.name, task, None, answer.why)]
        reply = answer.texts[0].replace("</s>", "").strip()
        chosen = {"multi_choice": _letter, "yes_no": _yes_no, "caption_matching": _caption}[task](reply, item.questions[0])
        if not chosen:
            return [Grade(item.id, item.name, task, 0.0, "names no option")]
        truth = item.answer[0] if task == "multi_choice" else item.answer
        return [Grade(item.id, item.name, task, float(chosen == truth))]


class TempCompassCaptions(BenchmarkKind):
    """captioning.json with multi-choice.json beside it, or the hub's rows with `mc_question` and `mc_answer`: a judge answers the
    first multiple-choice question of the clip and dimension by the caption alone.

    Source: eval_captioning.py."""

    name = "tempcompass_captions"
    columns = "video_id, dim, question, mc_question, mc_answer"
    metrics = (Metric("captioning", "Captioning", is_share=True),)
    rubrics = dict.fromkeys(DIMENSIONS, ("captioning",))
    has_breakdown = True
    revision = "1"

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        return {"dim", "question", "mc_question", "mc_answer"} <= row.keys()

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        question, answer = question_cell(row, "question"), text_cell(row, "mc_answer")
        text_cell(row, "mc_question")
        return Item("", dimension(row), clip, "", (question,), answer, row=row, own=own_id(row))

    def judged(self, item: Item) -> tuple[tuple[str, ...], str]:
        """The multiple-choice question and its answer."""
        return (str(item.row["mc_question"]),), item.answer

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        """Whether the judge chose the right option."""
        result = results.get("captioning", GradeResult(None, answer.why))
        value = None if result.value is None else float(bool(result.value.yes))
        return [Grade(item.id, item.name, "captioning", value, result.why, result.reply)]


def dimension(row: Mapping[str, Any]) -> str:
    """The row's dimension. BadRow for one that TempCompass does not have."""
    name = text_cell(row, "dim")
    if name not in DIMENSIONS:
        raise BadRow(f"`dim` {name[:40]!r} is none of {', '.join(DIMENSIONS)}")
    return name


def _task(question: str, answer: str) -> str:
    """Which task a question belongs to, by its form. BadRow when its answer is not one that it offers."""
    options = question.split("\n")[1:]
    if answer in ("yes", "no") and not options:
        return "yes_no"
    if answer not in options:
        raise BadRow(f"`answer` {answer[:40]!r} is neither yes nor no, nor an option on a line of the question")
    return "multi_choice" if answer[:1] in "ABCD" and answer[1:2] == "." else "caption_matching"


def _letter(reply: str, question: str) -> str:
    """A reply of a letter alone, or of one with a full stop or a bracket behind it."""
    return reply[0] if reply[:1] in tuple("ABCD") and reply[1:2] in ("", ".", ")") else ""


def _yes_no(reply: str, question: str) -> str:
    """The beginning of a reply."""
    return next((word for word in ("yes", "no") if reply.lower().startswith(word)), "")


def _caption(reply: str, question: str) -> str:
    """The option that a reply is: all of it, its sentence (maybe behind a bracket), its name such as Caption A, or A alone."""
    for option in question.split("\n")[1:]:
        name, _, sentence = option.partition(": ")
        names = (name, name.split()[-1])
        if reply == option or sentence in (reply, reply.partition(") ")[2]) or reply in names or reply.replace(".", "") in names:
            return option
    return ""
