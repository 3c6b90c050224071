"""Benchmarks whose scores have rules of their own: rows as their authors publish them, scores computed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks.dataset import Benchmark, read_benchmark
from minirlaif.benchmarks.generate import _ranked
from minirlaif.benchmarks.kinds.base import Answer, ClipPart
from minirlaif.benchmarks.scores import Scores, grade_answers
from minirlaif.benchmarks.tables import cells_by_part
from minirlaif.errors import UserError
from tests.fixtures.benchmark_files import put


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> Benchmark:
    return read_benchmark(str(path), "")


def values(benchmark: Benchmark, answers: Mapping[str, Answer]) -> tuple[dict[str, dict[str, float | None]], Scores]:
    """Every item's value by id and metric; and all of them as scores."""
    judge, grades, counts = grade_answers(benchmark, answers, {}, None, "", False)
    scores = Scores(benchmark.name, benchmark.kind.name, "", {"run": "a", "title": "m"}, judge, tuple(grades), counts)
    by_id: dict[str, dict[str, float | None]] = {}
    for grade in grades:
        by_id.setdefault(grade.id, {})[grade.metric] = grade.value
    return by_id, scores


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vdc.json", [{"video_name": "x", "caption": "a dog", "qa_list": [{"question": "?", "answer": "!"}]}], "VDC"),
        ("VDC_1k.jsonl", [{"video_id": "x", "short_caption": "a dog", "detailed_caption": "a dog that runs"}], "VDC"),
        ("vinoground.csv.json", [{"index": 0, "pos_cap": "a", "neg_cap": "b", "video": "x"}], "Vinoground"),
        ("text.json", [{"idx": "0_pos", "video_name": "x", "question": "Which? A. a B. b", "GT": "A"}], "Vinoground"),
        ("tb.json", [{"idx": 0, "video_name": "x", "question": "Which?", "GT": "A", "dataset": "ActivityNet"}], "TemporalBench"),
        (
            "lvb_val.json",
            [{"video_path": "x.mp4", "question": "?", "candidates": ["a", "b"], "correct_choice": 0, "subtitle_path": "x.json"}],
            "LongVideoBench",
        ),
        ("qvh.jsonl", [{"qid": 1, "query": "a dog", "vid": "x", "relevant_windows": [[0, 2]]}], "QVHighlights"),
        ("gsub_val.json", {"x": {"duration": 9.0, "fps": 30, "location": {"0": [[1.0, 2.0]]}}}, "NExT-GQA"),
        ("mc_question_valid.json", {"x": {"metadata": {}, "mc_question": []}}, "Perception Test"),
    ],
)
def test_benchmarks_that_are_refused_by_their_name(name: str, value: Any, words: str, tmp_path: Path):
    path = lines(tmp_path / name, value) if name.endswith("jsonl") else put(tmp_path / name, value)
    with pytest.raises(UserError, match=rf"{name}: {words} \(columns .*\) is not supported: it") as error:
        read(path)
    assert "\n" not in str(error.value)


VITATECS = {
    "Direction": [
        ("VATEX", "i0ccSYMl0vo_000027_000037.mp4", "A woman is placing a strip.", "A woman is removing a strip."),
        ("MSRVTT", "video9770.mp4", "a person is connecting something", "a person is disconnecting something"),
        ("MSRVTT", "video8317.mp4", "a man walks up the stairs", "a man walks down the stairs"),
    ],
    "Sequence": [("MSRVTT", "video9609.mp4", "two men eat and then sleep", "two men sleep and then eat")],
}


@pytest.fixture
def vitatecs(tmp_path: Path) -> Path:
    names = ("src_dataset", "video_name", "caption", "counterfactual")
    for aspect, rows in VITATECS.items():
        made = [{**dict(zip(names, row, strict=True)), "aspect": aspect} for row in rows]
        lines(tmp_path / "data" / f"{aspect}.jsonl", made)
    return tmp_path / "data"


class Likelihoods:
    """A model that finds a text as likely as it is told to."""

    batch_size = 1

    def __init__(self, by_text: Mapping[str, float]) -> None:
        self.by_text, self.clips = by_text, set[ClipPart]()

    def likelihoods(self, candidates: Sequence[tuple[ClipPart, str, str]]) -> list[float]:
        self.clips |= {clip for clip, _, _ in candidates}
        assert {question for _, question, _ in candidates} == {"Describe the video."}
        return [self.by_text[text] for _, _, text in candidates]


def test_vitatecs_counts_captions_that_are_likelier_than_their_counterfactual(vitatecs: Path):
    benchmark = read(vitatecs)
    assert (benchmark.kind.name, benchmark.files) == ("counterfactual", ("Direction.jsonl", "Sequence.jsonl"))
    assert [item.part for item in benchmark.items] == ["Direction", "Direction", "Direction", "Sequence"]
    likely = {caption: -1.0 for rows in VITATECS.values() for _, _, caption, _ in rows}
    likely |= {false: -2.0 for rows in VITATECS.values() for _, _, _, false in rows}
    likely["a person is disconnecting something"] = -0.5  # likelier than the truth
    likely["a man walks down the stairs"] = -1.0  # as likely: wrong
    model = Likelihoods(likely)
    kind = benchmark.kind
    answers = {i.id: _ranked(model, kind.candidates(i, kind.ask, {})) for i in benchmark.items}  # type: ignore[arg-type]
    by_id, scores = values(benchmark, answers)
    # Direction: 1 of 3; Sequence: 1 of 1
    assert [each["accuracy"] for each in by_id.values()] == [1.0, 0.0, 0.0, 1.0]
    means = {part: cells["accuracy"]["mean"] for part, cells in cells_by_part(scores).items()}
    assert means == {"Direction": pytest.approx(1 / 3), "Sequence": 1.0}
    one = read(vitatecs / "Sequence.jsonl")
    assert (one.name, one.kind.name, len(one.items)) == ("sequence", "counterfactual", 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"caption": "a dog", "counterfactual": "a dog"}, "`caption` and `counterfactual` are the same"),
        ({"caption": "a dog", "counterfactual": " "}, "`counterfactual` is empty"),
        ({"caption": "a dog", "counterfactual": "a cat", "negative": "a cow"}, "`negative` changes what a row is about"),
    ],
)
def test_captions_without_an_opposite(row: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(UserError, match=words):
        read(put(tmp_path / "b.json", [{"video_name": "x.mp4", **row}]))
