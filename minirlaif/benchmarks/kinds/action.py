"""Action recognition: top-1 and top-5 of the classes, ranked by likelihood."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.kinds.base import CLIP_COLUMNS, BenchmarkKind, Item, Metric, first_column, text_cell
from minirlaif.benchmarks.kinds.retrieval import CAPTION_COLUMNS
from minirlaif.data.tables import text_lines

_LABELS = ("label", "class", "action")


class ActionRecognition(BenchmarkKind):
    """`video` and `label`; UCF101's testlist01.txt with classInd.txt; HMDB51's *_test_split1.txt."""

    name = "action"
    columns = "video, label"
    metrics = (Metric("top1", "Top-1", is_share=True), Metric("top5", "Top-5", is_share=True))
    depths = {"top1": 1, "top5": 5}
    ask = "What is the person in the video doing?"
    example_question = "Which action?"

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        """A clip and a label, and nothing that another kind would ask."""
        columns = (CLIP_COLUMNS, _LABELS)
        others = ("question", *CAPTION_COLUMNS)
        return part == "action" or (all(first_column(row, names) for names in columns) and not first_column(row, others))

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        label = text_cell(row, first_column(row, _LABELS))
        return Item("", "action", clip, "", (), class_words(label), row=row)

    def complete(self, items: Sequence[Item], path: Path) -> list[Item]:
        """The candidates: every class of the published list where it has all that occur, otherwise those that occur."""
        folder = path if path.is_dir() else path.parent
        lines = [line for file in folder.rglob("classInd.txt") for _, line in text_lines(str(file))]
        classes = {class_words(line.split()[-1]) for line in lines}
        used = {item.answer for item in items}
        options = tuple(sorted(classes if used <= classes else used))
        return [replace(item, options=options) for item in items]


def class_words(label: str) -> str:
    """A class name as words: ApplyEyeMakeup and brush_hair become "apply eye makeup" and "brush hair"."""
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label).replace("_", " ").lower().split())
