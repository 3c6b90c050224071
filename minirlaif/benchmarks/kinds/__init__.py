"""Benchmark kinds: one module each, listed once. Another kind is another module and one more entry of KINDS."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.kinds.action import ActionRecognition
from minirlaif.benchmarks.kinds.base import BenchmarkKind, Metric
from minirlaif.benchmarks.kinds.choice import MultipleChoice
from minirlaif.benchmarks.kinds.counterfactual import Counterfactual
from minirlaif.benchmarks.kinds.grounding import Grounding
from minirlaif.benchmarks.kinds.qa import QuestionAnswering
from minirlaif.benchmarks.kinds.retrieval import Retrieval
from minirlaif.benchmarks.kinds.tempcompass import TempCompass, TempCompassCaptions
from minirlaif.benchmarks.kinds.videoinstruct import VideoInstruct
from minirlaif.errors import UserError

# Benchmarks that would be read as another one. name, groups of columns that only it has, why.
NOT_SUPPORTED = (
    (
        "VDC",
        (("qa_list",), ("short_caption", "detailed_caption"), ("main_object_caption", "background_caption")),
        "its score needs a language model that answers questions from the caption before another grades them",
    ),
    ("TemporalBench", (("idx", "question", "GT", "dataset"),), "its accuracy counts groups of rows about one clip"),
    (
        "Vinoground",
        (("pos_cap", "neg_cap"), ("pos_vid", "neg_vid"), ("idx", "question", "GT")),
        "its text, video and group scores count pairs of rows, and half of them show two clips side by side",
    ),
    (
        "LongVideoBench",
        (("subtitle_path", "question"), ("starting_timestamp_for_subtitles",)),
        "its questions need subtitles",
    ),
    (
        "QVHighlights",
        (("relevant_windows",), ("saliency_scores",)),
        "its moments are several spans, and scores of pieces",
    ),
    ("LVBench", (("key", "qa", "video_info"),), "its file holds lists of questions by clip; use the hub's rows, one a question"),
    ("TOMATO", (("demonstration_type", "key"),), "its clips of several kinds have the same names"),
    ("NExT-GQA", (("location", "fps"), ("location", "duration")), "its answers count only with their spans in the clip"),
    (
        "Perception Test",
        (("mc_question", "metadata"), ("object_tracking", "metadata")),
        "its file holds several tasks; make a list of its questions",
    ),
)
KINDS: list[BenchmarkKind] = [
    VideoInstruct(),
    TempCompassCaptions(),
    TempCompass(),
    QuestionAnswering(),
    MultipleChoice(),
    ActionRecognition(),
    Counterfactual(),
    Grounding(),
    Retrieval(),
]


def check_supported(row: Mapping[str, Any], file: Path) -> None:
    """UserError for a row of a benchmark that is known by its own name and cannot be evaluated here."""
    for name, groups, reason in NOT_SUPPORTED:
        if any(set(group) <= row.keys() for group in groups):
            columns = ", ".join(next(group for group in groups if set(group) <= row.keys()))
            raise UserError(f"{file}: {name} (columns {columns}) is not supported: {reason}")


def metrics() -> dict[str, Metric]:
    """Metrics of all kinds by name, in the order of a table's columns."""
    return {metric.name: metric for kind in KINDS for metric in kind.metrics}
