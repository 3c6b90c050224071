"""Another benchmark kind is one class and one entry of `kinds.KINDS`; the real command does the rest, up to the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks import kinds
from minirlaif.benchmarks.kinds.base import Answer, BenchmarkKind, Grade, Item, Metric, own_id, question_cell, text_cell
from minirlaif.cli import main
from minirlaif.feedback.text_judge import GradeResult, JudgeName
from minirlaif.inference.engine import LoadedClip, SamplingParams
from tests.fixtures import clips


class Counting(BenchmarkKind):
    """How many? Right within one; a reply without a number is wrong."""

    name, columns = "count", "video, question, count"
    metrics = (Metric("within_one", "Within one", is_share=True),)

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        return {"question", "count"} <= row.keys()

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        return Item("", "count", clip, "", (question_cell(row, "question"),), text_cell(row, "count"), row=row, own=own_id(row))

    def prompts(self, item: Item) -> list[str]:
        return [f"{item.questions[0]} Reply with a number."]

    def grader(self, ranked: bool, ask: str) -> JudgeName:
        return JudgeName("count", "number within one", "1", "")

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        if answer.why:
            return [Grade(item.id, item.name, "within_one", None, answer.why)]
        number = re.search(r"\d+", answer.texts[0])
        right = number is not None and abs(int(number[0]) - int(item.answer)) <= 1
        return [Grade(item.id, item.name, "within_one", float(right), "" if number else "holds no number")]


@pytest.mark.parametrize(
    ("attributes", "missing"),
    [
        ({}, "grade and grader"),
        ({"grade": Counting.grade}, "grader"),
        ({"grader": Counting.grader}, "grade"),
        ({"rubrics": {"count": ("within_one",)}}, "grade"),
        ({"grade": Counting.grade, "grader": Counting.grader}, ""),
        ({"grade": Counting.grade, "rubrics": {"count": ("within_one",)}}, ""),
        ({"depths": {"within_one": 1}}, ""),
    ],
)
def test_a_kind_that_cannot_grade_is_refused(attributes: dict[str, Any], missing: str):
    kind = type("Half", (BenchmarkKind,), {"matches": Counting.matches, "parse": Counting.parse, **attributes})
    if missing:
        with pytest.raises(TypeError, match=f"^Half has no depths, so it must implement {missing}$"):
            kind()
    else:
        assert isinstance(kind(), BenchmarkKind)


REPLIES = {"dogs": "3", "cats": "There are 4.", "cars": "9", "people": "many"}
ROWS = [
    {"video": f"clip{place // 2}", "question": f"How many {name}?", "count": 3, "question_id": name}
    for place, name in enumerate(REPLIES)
]


class Engine:
    """Replies by the question's last word; keeps the prompts."""

    models, title, frames, sampling = ("best",), "engine.gguf", 4, SamplingParams()

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.counters: dict[str, int] = {}

    def load_clip(self, video: str, frames: int = 0) -> LoadedClip:
        return LoadedClip(video, 1.0, (0.5,), None, 1.0, video)  # type: ignore[arg-type]

    def stream(self, clip: LoadedClip, turns: Any, question: str, sampling: SamplingParams, model: str = "") -> Iterator[str]:
        self.prompts.append(question)
        yield next(reply for name, reply in REPLIES.items() if name in question)

    def score(self, clip: LoadedClip, question: str, answer: str) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(kinds, "KINDS", [*kinds.KINDS, Counting()])
    monkeypatch.setattr("minirlaif.gguf.runtime.engine.GgufEngine", lambda *_, **__: engine)
    return engine


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command line, with the benchmark's file, its clips and a model file in place."""
    (tmp_path / "counts.json").write_text(json.dumps(ROWS))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for number in range(2):
        clips.write_clip(tmp_path / f"clip{number}.mp4")
    where = ["--run", "a", "--runs-dir", str(tmp_path / "runs"), "--videos", str(tmp_path)]
    return ["evaluate", *where, "--benchmark", str(tmp_path / "counts.json"), "--model", str(tmp_path / "model.gguf")]


def accuracy(folder: Path) -> tuple[Sequence[str], dict[str, Any]]:
    """Names of the last table's models, and the cell of the last one."""
    table = json.loads((folder / "table.json").read_text())["tables"][-1]
    return [row["model"] for row in table["rows"]], table["rows"][-1]["cells"]["within_one"]


def test_from_rows_to_a_table(engine: Engine, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(words) == 0
    assert "benchmark counts: count, 4 rows about 2 clips" in capsys.readouterr().out
    assert engine.prompts == [f"How many {name}? Reply with a number." for name in REPLIES]
    folder = tmp_path / "runs" / "a" / "benchmarks" / "counts"
    predictions = json.loads((folder / "model.gguf" / "count.json").read_text())
    assert predictions == [{**row, "pred": REPLIES[row["question_id"]]} for row in ROWS]
    names, cell = accuracy(folder)
    assert names == ["a model.gguf"] and (cell["rows"], cell["marked"], cell["mean"]) == (
        4,
        4,
        0.5,
    )  # 3 and 4 are within one of 3
    text = (folder / "table.md").read_text()
    assert "## Judge: number within one" in text and "| Model | Within one % |" in text and "| a model.gguf | 50.0 [" in text
    assert "grades missing or wrong by form: holds no number: 1 row." in text
    assert "How many people?" in (folder / "table.html").read_text()


def test_predictions_of_another_program(engine: Engine, words: list[str], tmp_path: Path):
    (tmp_path / "other.json").write_text(json.dumps([{"id": "cars", "question": "How many cars?", "pred": "2"}]))
    assert main.main([*words[:-1], "other", "--predictions", str(tmp_path / "other.json")]) == 0
    names, cell = accuracy(tmp_path / "runs" / "a" / "benchmarks" / "counts")
    assert names == ["a other"] and (cell["rows"], cell["marked"], cell["mean"]) == (4, 1, 1.0) and not engine.prompts


def test_without_its_entry_the_kind_is_unknown(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main.main(words) == 2
    assert "columns video, question, count, question_id are those of no known benchmark" in capsys.readouterr().err
