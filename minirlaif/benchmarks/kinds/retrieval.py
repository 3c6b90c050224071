"""Retrieval: recall at 1, 5 and 10 of a caption's clip among all clips, ranked by the caption's likelihood."""

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import CLIP_COLUMNS, BenchmarkKind, Candidates, Item, Metric, first_column
from minirlaif.data.cells import plain_text
from minirlaif.data.formats import BadRow

CAPTION_COLUMNS = ("caption", "sentence", "captions")


class Retrieval(BenchmarkKind):
    """`video` and `caption` (or `sentence`): every clip of the file is a candidate for every caption."""

    name = "retrieval"
    columns = "video, caption"
    metrics = tuple(Metric(f"r{depth}", f"R@{depth}", is_share=True) for depth in (1, 5, 10))
    depths = {"r1": 1, "r5": 5, "r10": 10}
    ask = "Describe the video."
    example_question = "Which clip?"
    needs_every_clip = True
    has_spans = False

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        """A clip and a caption without a question."""
        return all(first_column(row, names) for names in (CLIP_COLUMNS, CAPTION_COLUMNS)) and "question" not in row

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        """Several captions of one row are one text."""
        value = row[first_column(row, CAPTION_COLUMNS)]
        texts = [plain_text(each) for each in (value if isinstance(value, list) else [value])]
        if not all(texts):
            raise BadRow("the caption is empty, or holds more than text")
        caption = " ".join(str(text) for text in texts)
        if not caption.strip():
            raise BadRow("the caption is empty, or holds more than text")
        return Item("", "retrieval", clip, "", (), " ".join(caption.split()), row=row)

    def candidates(self, item: Item, ask: str, clips: Mapping[str, str]) -> Candidates:
        """Every clip, by how likely the caption is about it."""
        scored = [(video, ask, item.answer) for video in clips]
        return scored, list(clips.values()), list(clips).index(item.video)
