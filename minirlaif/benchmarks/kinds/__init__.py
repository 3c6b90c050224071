"""Benchmark kinds: one module each, listed once. Another kind is another module and one more entry of KINDS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.action import ActionRecognition
from minirlaif.benchmarks.kinds.base import BenchmarkKind, Metric
from minirlaif.benchmarks.kinds.choice import MultipleChoice
from minirlaif.benchmarks.kinds.qa import QuestionAnswering
from minirlaif.benchmarks.kinds.retrieval import Retrieval
from minirlaif.benchmarks.kinds.videoinstruct import VideoInstruct

KINDS: list[BenchmarkKind] = [VideoInstruct(), QuestionAnswering(), MultipleChoice(), ActionRecognition(), Retrieval()]


def recognise(row: Mapping[str, Any], part: str) -> BenchmarkKind | None:
    """The kind that a row belongs to: the first one that matches. part: what the file's name says, "" for nothing."""
    return next((kind for kind in KINDS if kind.matches(row, part)), None)


def metrics() -> dict[str, Metric]:
    """Metrics of all kinds by name, in the order of a table's columns."""
    return {metric.name: metric for kind in KINDS for metric in kind.metrics}
