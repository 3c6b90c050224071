"""Counterfactual captions: accuracy of the true caption being likelier than one that is false in a single aspect."""

import re
from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import ACCURACY, BenchmarkKind, Item, text_cell
from minirlaif.data.formats import BadRow

ASPECTS = ("Compositionality", "Direction", "Intensity", "Localization", "Sequence", "Type")  # of VITATECS, a file each


class Counterfactual(BenchmarkKind):
    """`caption` and `counterfactual`; VITATECS, whose aspects are a part each. Captions that are as likely count as wrong."""

    name = "counterfactual"
    columns = "video, caption, counterfactual"
    metrics = (ACCURACY,)
    depths = {"accuracy": 1}
    ask = "Describe the video."
    example_question = "Which caption is true?"
    uses = ("counterfactual",)
    has_breakdown = True
    revision = "1"

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        """By its two captions."""
        return {"caption", "counterfactual"} <= row.keys()

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        captions = tuple(" ".join(text_cell(row, column).split()) for column in ("caption", "counterfactual"))
        if captions[0] == captions[1]:
            raise BadRow("`caption` and `counterfactual` are the same")
        aspect = re.sub(r"[^\w-]+", "-", str(row.get("aspect") or "")).strip("-") or self.name
        return Item("", aspect, clip, "", (), captions[0], captions, row=row)
