"""Benchmark kinds: one module each, listed once. Another kind is another module and one more entry of KINDS."""

from minirlaif.benchmarks.kinds.action import ActionRecognition
from minirlaif.benchmarks.kinds.base import BenchmarkKind, Metric
from minirlaif.benchmarks.kinds.choice import MultipleChoice
from minirlaif.benchmarks.kinds.qa import QuestionAnswering
from minirlaif.benchmarks.kinds.retrieval import Retrieval
from minirlaif.benchmarks.kinds.videoinstruct import VideoInstruct

KINDS: list[BenchmarkKind] = [VideoInstruct(), QuestionAnswering(), MultipleChoice(), ActionRecognition(), Retrieval()]


def metrics() -> dict[str, Metric]:
    """Metrics of all kinds by name, in the order of a table's columns."""
    return {metric.name: metric for kind in KINDS for metric in kind.metrics}
