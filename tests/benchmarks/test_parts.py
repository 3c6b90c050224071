"""Benchmarks of many tasks, and rows about a part of their clip: what is read, which frames are shown, hand-computed scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks import models
from minirlaif.benchmarks.dataset import Benchmark, read_benchmark
from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.inference.engine import LoadedClip, SamplingParams
from tests.fixtures import clips
from tests.fixtures.benchmark_files import put

ROW = {"question": "What happened?", "candidates": ["a cup", "a door"], "answer": "a cup"}
# As the authors publish them: times in two of the tasks, and one name for clips of two sources.
MVBENCH = {
    "action_sequence": [
        {"video": "ZS9XR.mp4", **ROW, "question_id": "Interaction_T1_13", "start": 0.0, "end": 1.0},
        {"video": "ZS9XR.mp4", **ROW, "question_id": "Interaction_T1_14", "start": 1.0, "end": 1.9},
        {"video": "7H7PN.mp4", **ROW, "question_id": "Interaction_T1_15", "start": 0.5, "end": 1.5},
    ],
    "action_localization": [
        {"video": "K6OB1.mp4", **ROW, "start": 0, "end": 1.5, "accurate_start": 0.2, "accurate_end": 0.4, "fps": 30.0}
    ],
    "moving_count": [{"video": "video_10009.mp4", **ROW}],
    "state_change": [{"video": "video_10009.mp4", **ROW, "answer": "a door"}],
}
CLIPS = {
    "star/Charades_v1_480": ("ZS9XR", "7H7PN"),
    "sta/sta_video": ("K6OB1",),
    "clevrer/video_validation": ("video_10009",),
    "perception/videos": ("video_10009",),
}


@pytest.fixture
def mvbench(tmp_path: Path) -> Path:
    """MVBench/json and MVBench/video; clips of two seconds."""
    for name, rows in MVBENCH.items():
        put(tmp_path / "MVBench" / "json" / f"{name}.json", rows)
    for folder, names in CLIPS.items():
        (tmp_path / "MVBench" / "video" / folder).mkdir(parents=True)
        for name in names:
            clips.write_clip(tmp_path / "MVBench" / "video" / folder / f"{name}.mp4", [n / 8 for n in range(16)])
    return tmp_path / "MVBench"


def read(folder: Path) -> Benchmark:
    return read_benchmark(str(folder), str(folder / "video"))


def test_a_folder_of_tasks_is_one_benchmark_with_a_part_for_each(mvbench: Path):
    put(mvbench / "json" / "dataset_infos.json", [])
    benchmark = read(mvbench)
    assert (benchmark.name, benchmark.kind.name, benchmark.missing) == ("mvbench", "choice", [])
    assert benchmark.files == tuple(f"json/{name}.json" for name in sorted(MVBENCH))
    assert benchmark.unread == ("json/dataset_infos.json",)
    items = {item.id: item for item in benchmark.items}
    assert list(items) == [
        "action_localization:1",
        "action_sequence:Interaction_T1_13",
        "action_sequence:Interaction_T1_14",
        "action_sequence:Interaction_T1_15",
        "moving_count:1",
        "state_change:1",
    ]
    spans = {id_: (item.start, item.end) for id_, item in items.items()}
    assert spans["action_localization:1"] == (0.0, 1.5)
    assert spans["action_sequence:Interaction_T1_14"] == (1.0, 1.9)
    assert spans["moving_count:1"] == (0.0, None)
    found = {id_: Path(item.video).parent.name for id_, item in items.items()}
    assert (found["moving_count:1"], found["state_change:1"]) == ("video_validation", "videos")  # not the other task's
    (mvbench / "video" / "perception" / "videos" / "video_10009.mp4").unlink()
    assert [item.id for item in read(mvbench).items if not item.video] == ["state_change:1"]
    one = read_benchmark(str(mvbench / "json" / "action_sequence.json"), "")
    assert (one.name, [item.part for item in one.items]) == ("action_sequence", ["choice"] * 3)


class Engine:
    """Names the first option of a part that begins at 0, the second of any other, and counts what it loads."""

    models, title, frames, sampling = ("best",), "engine.gguf", 4, SamplingParams()

    def __init__(self) -> None:
        self.loaded: list[tuple[str, float, float | None]] = []
        self.counters: dict[str, int] = {}

    def load_clip(self, video: str, frames: int = 0, start: float = 0.0, end: float | None = None) -> LoadedClip:
        self.loaded.append((Path(video).stem, start, end))
        return LoadedClip(video, 1.0, (0.5,), None, 1.0, video, start, end)  # type: ignore[arg-type]

    def stream(self, clip: LoadedClip, turns: Any, question: str, sampling: SamplingParams, model: str = "") -> Iterator[str]:
        yield "B" if clip.start else "A"

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(models, "_gguf_engine", lambda spec: engine)
    return engine


def words(folder: Path, *more: str) -> list[str]:
    (folder / "model.gguf").write_bytes(b"GGUF")
    where = ["--run", "a", "--runs-dir", str(folder / "runs"), "--videos", str(folder / "video")]
    return ["evaluate", *where, "--benchmark", str(folder), "--model", str(folder / "model.gguf"), *more]


def table_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "a" / "benchmarks" / name / "table.json").read_text())["tables"][0]["rows"][0]


def test_scores_of_each_task_and_the_parts_that_a_model_is_shown(mvbench: Path, engine: Engine, capsys):
    assert main.main(words(mvbench)) == 0
    assert "parts end after" not in capsys.readouterr().out
    assert engine.loaded == [
        ("7H7PN", 0.5, 1.5),
        ("K6OB1", 0.0, 1.5),
        ("ZS9XR", 0.0, 1.0),
        ("ZS9XR", 1.0, 1.9),
        ("video_10009", 0.0, None),
        ("video_10009", 0.0, None),
    ]
    row = table_of(mvbench, "mvbench")
    # A is right: of T1_13, but B is said of the parts from 1.0 and 0.5; of K6OB1; of moving_count; of state_change it is B
    assert row["cells"]["accuracy"]["mean"] == pytest.approx((1 + 1 + 1) / 6)
    means = {part: cells["accuracy"]["mean"] for part, cells in row["parts"].items()}
    assert means == {
        "action_localization": 1.0,
        "action_sequence": pytest.approx(1 / 3),
        "moving_count": 1.0,
        "state_change": 0.0,
    }
    text = (mvbench / "runs" / "a" / "benchmarks" / "mvbench" / "table.md").read_text()
    assert "| Part | a model.gguf | Rows |" in text and "| action_sequence | 33.3 | 3 |" in text
    assert "action_sequence" in (mvbench / "runs" / "a" / "benchmarks" / "mvbench" / "table.html").read_text()
    written = json.loads((mvbench / "runs/a/benchmarks/mvbench/model.gguf/action_sequence.json").read_text())
    assert [each["pred"] for each in written] == ["A", "B", "B"]


def test_parts_that_a_clip_does_not_have(mvbench: Path, engine: Engine, capsys):
    rows = [*MVBENCH["action_sequence"], {"video": "7H7PN.mp4", **ROW, "start": 30.1, "end": 38.6}]
    put(mvbench / "json" / "action_sequence.json", [{**row, "end": 3.0} if row["start"] == 1.0 else row for row in rows])
    assert main.main(words(mvbench)) == 2
    error = capsys.readouterr().err
    assert "1 of 7 rows are about a part after their clip's end (7H7PN.mp4 from 30.1 s, it has 2 s): are these clips cut" in error
    assert main.main(words(mvbench, "--set", "video.max_unreadable=0.15")) == 0
    assert "1 of 5 parts end after their clip does, and are cut there" in capsys.readouterr().out
    row = table_of(mvbench, "mvbench")
    assert (row["cells"]["accuracy"]["rows"], row["cells"]["accuracy"]["marked"]) == (7, 6)
    assert row["without_mark"] == {"the part is after the clip's end": 1}


def test_two_clips_of_one_name_in_a_task_are_not_chosen_from(mvbench: Path):
    clips.write_clip(mvbench / "video" / "star" / "ZS9XR.mp4")
    with pytest.raises(UserError, match=r"clip ZS9XR.mp4 of action_sequence is there more than once \(star/"):
        read(mvbench)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"start": 2.0, "end": 1.0}, "`start` 2.0 and `end` 1.0 are no part of a clip"),
        ({"start": -1.0, "end": 1.0}, "`start` -1.0 and `end` 1.0 are no part"),
        ({"start": "soon", "end": 1.0}, "`start` 'soon' is no number of seconds"),
        ({"start": True}, "`start` 'True' is no number"),
        ({"start": 0, "video_start": 1}, "has `start` and `video_start`: which part"),
        ({"start_time": "00:01"}, "`start_time` changes what a row is about, and choice does not read it"),
        ({"timestamp": [1, 2]}, "`timestamp` changes what"),
        ({"time": 3}, "`time` changes what"),
        ({"duration": [0, 3]}, "`duration` changes what"),
        ({"subtitles": "hello"}, "`subtitles` changes what"),
        ({"counterfactual": "a dog"}, "`counterfactual` changes what"),
        ({"system": "Be brief."}, "`system` changes what"),
    ],
)
def test_columns_that_change_what_a_row_is_about(more: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(UserError, match=words) as error:
        read_benchmark(str(put(tmp_path / "b.json", [{"video": "x", **ROW, **more}])), "")
    assert str(error.value).startswith(f"{tmp_path / 'b.json'}, row 1: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "more",
    [{"start": None, "end": ""}, {"duration": "short"}, {"duration": 12.5}, {"subtitles": []}, {"fps": 3.0, "video_length": 9}],
)
def test_columns_that_change_nothing(more: dict[str, Any], tmp_path: Path):
    (item,) = read_benchmark(str(put(tmp_path / "b.json", [{"video": "x", **ROW, **more}])), "").items
    assert (item.start, item.end, item.has_span) == (0.0, None, False)


def test_a_part_of_a_clip_is_not_a_candidate_of_retrieval(tmp_path: Path):
    row = {"video": "x.mp4", "captions": ["a dog runs"], "start": 1.0, "end": 2.0}
    with pytest.raises(UserError, match="`start` changes what a row is about, and retrieval does not read it"):
        read_benchmark(str(put(tmp_path / "b.json", [row])), "")


def test_every_kind_that_asks_reads_times(tmp_path: Path):
    row = {"video": "x.mp4", "question": "what?", "answer": "a dog", "video_start": "1.5", "video_end": ""}
    (item,) = read_benchmark(str(put(tmp_path / "b.json", [row])), "").items
    assert (item.part, item.start, item.end) == ("qa", 1.5, None)
