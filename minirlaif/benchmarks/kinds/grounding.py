"""Temporal grounding: when in the clip a sentence holds, by the overlap of the span that a reply names with the true one."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from minirlaif.benchmarks.kinds.base import (
    CLIP_COLUMNS,
    Answer,
    BenchmarkKind,
    Grade,
    Item,
    Metric,
    first_column,
    own_id,
    text_cell,
    text_hash,
)
from minirlaif.benchmarks.kinds.columns import span_of
from minirlaif.data.formats import BadRow
from minirlaif.feedback.text_judge import GradeResult, JudgeName

Span = tuple[float, float]  # start and end in seconds

SENTENCES = ("sentence", "caption", "query")
THRESHOLDS = {"iou3": 0.3, "iou5": 0.5, "iou7": 0.7}
REQUEST = "When in the video does this happen? Reply with its start and its end in seconds alone, in the form: start - end"
_TIME = r"\d+(?::\d\d){1,2}(?:\.\d+)?|\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_TIME})\s*(?:s|sec|seconds?)?\s*(?:-|–|—|to|and|until)\s*({_TIME})")


class Grounding(BenchmarkKind):
    """A clip, a sentence and its `start` and `end`, or `timestamp` with both: Charades-STA's lines `clip start end##sentence`,
    ActivityNet Captions. The model is shown the whole clip."""

    name = "grounding"
    columns = "video, sentence, start, end"
    metrics = (
        *(Metric(name, f"R@1 IoU {least}", is_share=True) for name, least in THRESHOLDS.items()),
        Metric("miou", "Mean IoU", is_share=True),
    )
    uses = ("start", "end", "timestamp")
    has_spans = False
    revision = "1"

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        has_times = {"start", "end"} <= row.keys() or "timestamp" in row
        return has_times and "question" not in row and all(first_column(row, names) for names in (CLIP_COLUMNS, SENTENCES))

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        sentence = " ".join(text_cell(row, first_column(row, SENTENCES)).split())
        start, end = true_span(row)
        columns = {**row, "question": sentence}
        return Item("", self.name, clip, "", (sentence,), f"{start:g} - {end:g}", row=columns, own=own_id(row))

    def prompts(self, item: Item) -> list[str]:
        """The sentence, and what to reply."""
        return [f"{sentence}\n{REQUEST}" for sentence in item.questions]

    def grader(self, ranked: bool, ask: str) -> JudgeName:
        return JudgeName("span", "span of the reply", "1", text_hash(REQUEST))

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        """The overlap, and whether it reaches each threshold. A reply that names no span overlaps nowhere, and says so."""
        if answer.why:
            return [Grade(item.id, item.name, metric.name, None, answer.why) for metric in self.metrics]
        span = replied_span(answer.texts[0])
        overlap = overlap_of(span, true_span(item.row)) if span else 0.0
        values = {**{name: float(overlap >= least) for name, least in THRESHOLDS.items()}, "miou": overlap}
        return [Grade(item.id, item.name, name, value, "" if span else "names no span") for name, value in values.items()]


def true_span(row: Mapping[str, Any]) -> Span:
    """The span of a row, from `timestamp` or from `start` and `end`. BadRow for one that cannot be."""
    times = row.get("timestamp")
    if times is None:
        start, last = span_of(row)
    else:
        with suppress(ValueError, TypeError):
            times = json.loads(times)  # a cell of a csv file
        if not isinstance(times, list) or len(times) != 2:
            raise BadRow("`timestamp` must be a start and an end in seconds")
        start, last = span_of(dict(zip(("start", "end"), times, strict=True)))
    if last is None:
        raise BadRow("needs the end of its span")
    return start, last


def replied_span(reply: str) -> Span | None:
    """The first range in a reply, such as 3.5 - 8.0, 3.5s to 8s or 00:03 to 00:08; else its first two times, in order; None where
    it has less."""
    match = _RANGE.search(reply)
    times = [match[1], match[2]] if match else re.findall(_TIME, reply)[:2]
    if len(times) < 2:
        return None
    start, end = sorted(sum(float(part) * 60**place for place, part in enumerate(reversed(each.split(":")))) for each in times)
    return start, end


def overlap_of(first: Span, second: Span) -> float:
    """Intersection over union of two spans, 0 to 1."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    union = max(first[1], second[1]) - min(first[0], second[0])
    return max(0.0, shared) / union if union > 0 else 0.0
