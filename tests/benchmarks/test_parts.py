"""Benchmarks of many tasks, and rows about a part of their clip: what is read, which frames are shown, hand-computed scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks import generate
from minirlaif.benchmarks.dataset import Benchmark, read_benchmark
from minirlaif.benchmarks.predictions import read_predictions
from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.inference.engine import LoadedClip, SamplingParams
from minirlaif.video.spans import span_of
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
    assert benchmark.summary().startswith(
        "benchmark mvbench: choice, 6 rows about 4 clips (4 rows about a part of theirs), from "
    )
    assert (read_benchmark(str(mvbench / "json"), "").name, len(read_benchmark(str(mvbench / "json"), "").items)) == (
        "mvbench",
        6,
    )
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


def test_tvbench_has_its_clips_by_task(tmp_path: Path):
    """Two tasks have a clip of one name, which is not the same clip."""
    for task in ("action_count", "object_count"):
        put(tmp_path / "TVBench" / "json" / f"{task}.json", [{"video": "video_8686.mp4", **ROW}])
        (tmp_path / "TVBench" / "video" / task).mkdir(parents=True)
        clips.write_clip(tmp_path / "TVBench" / "video" / task / "video_8686.mp4")
    items = read(tmp_path / "TVBench").items
    assert {item.part: Path(item.video).parent.name for item in items} == {
        "action_count": "action_count",
        "object_count": "object_count",
    }


def test_episodes_that_are_folders_of_frames_are_missing_and_named(mvbench: Path, engine: Engine, capsys):
    put(
        mvbench / "json" / "episodic_reasoning.json",
        [{"video": "castle_s01e02_seg02_clip_00", **ROW, "start": 1, "end": 2, "fps": 3}],
    )
    (mvbench / "video" / "tvqa" / "frames_fps3_hq" / "castle_s01e02_seg02_clip_00").mkdir(parents=True)
    assert main.main(words(mvbench)) == 2
    assert (
        "1 of 5 clips are not below --videos (castle_s01e02_seg02_clip_00; frame folders are not read)" in capsys.readouterr().err
    )


def test_answers_about_whole_clips_are_not_those_about_parts(mvbench: Path):
    """What an answer depends on: the same file was once read without its times."""
    assert generate._source(read(mvbench))["spans"] == 4
    whole = read_benchmark(str(mvbench / "json" / "moving_count.json"), "")
    assert generate._source(whole).keys() == {"name", "sha256", "items"}


class Engine:
    """Names the first option of a part that begins at 0, the second of any other, and counts what it loads."""

    models, title, frames, sampling = ("best",), "engine.gguf", 4, SamplingParams()

    def __init__(self) -> None:
        self.loaded: list[tuple[str, float, float | None]] = []
        self.counters: dict[str, int] = {}

    def load_clip(self, video: str, frames: int = 0) -> LoadedClip:
        span = span_of(video)
        self.loaded.append((Path(span.file).stem, span.start, span.end))
        return LoadedClip(video, 1.0, (0.5,), None, 1.0, video)  # type: ignore[arg-type]

    def stream(self, clip: LoadedClip, turns: Any, question: str, sampling: SamplingParams, model: str = "") -> Iterator[str]:
        yield "B" if span_of(clip.video).start else "A"

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr("minirlaif.gguf.runtime.engine.GgufEngine", lambda *_, **__: engine)
    return engine


def words(folder: Path, *more: str) -> list[str]:
    (folder / "model.gguf").write_bytes(b"GGUF")
    where = ["--run", "a", "--runs-dir", str(folder / "runs"), "--videos", str(folder / "video")]
    return ["evaluate", *where, "--benchmark", str(folder), "--model", str(folder / "model.gguf"), *more]


def table_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "a" / "benchmarks" / name / "table.json").read_text())["tables"][0]["rows"][0]


def test_scores_of_each_task_and_the_parts_that_a_model_is_shown(mvbench: Path, engine: Engine):
    assert main.main(words(mvbench)) == 0
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
    put(mvbench / "json" / "action_sequence.json", [{**row, "end": 2.9} if row["start"] == 1.0 else row for row in rows])
    assert main.main(words(mvbench)) == 2
    error = capsys.readouterr().err
    assert "1 of 7 clips cannot be read: " in error and "--set video.max_unreadable=0.15" in error
    assert "7H7PN.mp4#t=30.1,38.6: the part from 30.1 s lies behind the end of the clip at 2 s" in error
    assert main.main(words(mvbench, "--set", "video.max_unreadable=0.15")) == 0
    assert ("ZS9XR", 1.0, 2.9) in engine.loaded  # less than a second too long: rounded up
    row = table_of(mvbench, "mvbench")
    assert (row["cells"]["accuracy"]["rows"], row["cells"]["accuracy"]["marked"]) == (7, 6)
    assert row["without_mark"] == {"the clip does not have the part": 1}


def test_two_clips_of_one_name_in_a_task_are_not_chosen_from(mvbench: Path):
    clips.write_clip(mvbench / "video" / "star" / "ZS9XR.mp4")
    with pytest.raises(UserError, match=r"clip ZS9XR.mp4 of action_sequence is there more than once \(star/"):
        read(mvbench)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"start": 2.0, "end": 1.0}, "the part ends at 1 s and starts at 2 s"),
        ({"start": -1.0, "end": 1.0}, "`start` must be a time in seconds from 0, this is '-1.0'"),
        ({"start": "soon", "end": 1.0}, "`start` must be a time in seconds from 0, this is 'soon'"),
        ({"start": True}, "`start` must be a time in seconds from 0, this is 'True'"),
        ({"start": 0, "video_start": 1}, "has `video_start` and another part of the clip: which one"),
        ({"start_time": "00:01"}, "`start_time` changes what a row is about, and choice does not read it"),
        ({"timestamp": [1, 2]}, "`timestamp` changes what"),
        ({"time": 3}, "`time` changes what"),
        ({"duration": [0, 3]}, "`duration` changes what"),
        ({"start": 3, "duration": 2}, "`duration` changes what"),
        ({"start": 3, "end": 4, "bound": [3, 4]}, "`bound` must be true or false"),
        ({"time_start": 3}, "`time_start` changes what"),
        ({"video_start_sec": 3}, "`video_start_sec` changes what"),
        ({"startTime": 3}, "`startTime` changes what"),
        ({"clip_end": 3}, "`clip_end` changes what"),
        ({"video": "x.mp4#t=1,2", "start": 3}, "the name x.mp4#t=1,2 and other columns both give a part"),
        ({"videos": ["y.mp4"]}, "two columns may be the clip, `video` and `videos`"),
        ({"candidates": ["a cup", None]}, "`candidates` must hold options as text, this is null"),
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
    [
        {"start": None, "end": ""},
        {"start": 1, "end": 2, "bound": False},
        {"duration": "short"},
        {"duration": 12.5},
        {"subtitles": []},
        {"fps": 3.0, "video_length": 9},
        {"accurate_start": 1.0, "accurate_end": 2.0, "start time": 3, "end time": 4},  # MVBench, MSR-VTT
        {"video_path": "./videos/x.mp4"},
    ],
)
def test_columns_that_change_nothing(more: dict[str, Any], tmp_path: Path):
    (item,) = read_benchmark(str(put(tmp_path / "b.json", [{"video": "x", **ROW, **more}])), "").items
    assert (item.start, item.end, item.has_span) == (0.0, None, False)


def test_options_without_their_first_are_no_open_question(tmp_path: Path):
    row = {"video": "x", "question": "Which?", "a1": "x", "a2": "y", "answer": "x"}  # TGIF-QA
    (item,) = read_benchmark(str(put(tmp_path / "b.json", [row])), "").items
    assert (item.options, item.answer) == (("x", "y"), "x")
    with pytest.raises(UserError, match="`answer` 1 may count the columns of options from 0 or from 1: write the letter"):
        read_benchmark(str(put(tmp_path / "c.json", [{**row, "answer": 1}])), "")
    with pytest.raises(UserError, match="`a2` changes what a row is about, and qa does not read it"):
        read_benchmark(str(put(tmp_path / "d.json", [{**row, "a1": None}])), "")


def test_a_name_that_may_be_two_clips_is_not_a_missing_clip(tmp_path: Path):
    for name in ("x.mp4#t=1,2", "x.mp4"):
        (tmp_path / name).write_bytes(b"clip")
    with pytest.raises(UserError, match="x.mp4#t=1,2 is a file, and also a part of x.mp4"):
        read_benchmark(str(put(tmp_path / "b.json", [{**ROW, "video": "x.mp4#t=1,2"}])), str(tmp_path))


def test_a_part_of_a_clip_is_not_a_candidate_of_retrieval(tmp_path: Path):
    row = {"video": "x.mp4", "captions": ["a dog runs"], "start": 1.0, "end": 2.0}
    with pytest.raises(UserError, match="`start` changes what a row is about, and retrieval does not read it"):
        read_benchmark(str(put(tmp_path / "b.json", [row])), "")


def test_predictions_of_two_parts_of_one_clip(mvbench: Path, engine: Engine, tmp_path: Path):
    """One question about two parts: answers are matched by the parts' times, in any order."""
    rows = [{**row, "pred": pred} for row, pred in zip(MVBENCH["action_sequence"][:2], ("B", "A"), strict=True)]
    rows = [{name: value for name, value in row.items() if name != "question_id"} for row in rows]
    benchmark = read_benchmark(str(mvbench / "json" / "action_sequence.json"), "")
    texts = read_predictions(put(tmp_path / "other.json", rows[::-1]), benchmark)
    assert texts == {"choice:Interaction_T1_13": ("B",), "choice:Interaction_T1_14": ("A",)}


@pytest.mark.parametrize(
    ("row", "options", "right"),
    [
        # LVBench; STAR; Perception Test; SEED-Bench's columns
        (
            {"question": "What year?\n(A) 1636\n(B) 1366", "answer": "B", "time_reference": "00:15-00:19"},
            ("1636", "1366"),
            "1366",
        ),
        (
            {"question": "Which?", "choices": [{"choice_id": 0, "choice": "x"}, {"choice_id": 1, "choice": "y"}], "answer": "y"},
            ("x", "y"),
            "y",
        ),
        ({"question": "Which?", "options": ["x", "y", "z"], "answer_id": 2}, ("x", "y", "z"), "z"),
        ({"question": "Which?", "choice_a": "x", "choice_b": "y", "answer": "B"}, ("x", "y"), "y"),
        ({"question": "Which?", "a0": "x", "a1": "y", "answer": "y"}, ("x", "y"), "y"),  # NExT-GQA; NExT-QA has numbers
        ({"question": "Which?", "a0": "x", "a1": "y", "answer": "1"}, ("x", "y"), "y"),
        ({"question": "Which?", "option": ["A. x", "B. y"], "answer": "0"}, ("x", "y"), "x"),
        ({"question": "Which?", "options": ["x", "y"], "answer": 1.0}, ("x", "y"), "y"),
        ({"question": "Which?", "options": ["x", "y"], "answer": ["B"]}, ("x", "y"), "y"),
    ],
)
def test_options_wherever_they_stand(row: dict[str, Any], options: tuple[str, ...], right: str, tmp_path: Path):
    benchmark = read_benchmark(str(put(tmp_path / "b.json", [{"video": "x.mp4", **row}])), "")
    (item,) = benchmark.items
    assert (benchmark.kind.name, item.questions, item.options, item.answer) == (
        "choice",
        (row["question"].split("\n")[0],),
        options,
        right,
    )
    assert benchmark.kind.prompts(item)[0].count(options[0]) == 1
    predicted = put(tmp_path / "pred.json", [{**benchmark.kind.write_predictions(item, ["A"])}])
    assert read_predictions(predicted, benchmark) == {item.id: ("A",)}


def test_a_number_that_may_be_an_option_is_refused(tmp_path: Path):
    row = {"video": "x.mp4", "question": "How many?", "a0": "1", "a1": "0", "answer": "1"}
    with pytest.raises(UserError, match="`answer` '1' may be an option or the number of one"):
        read_benchmark(str(put(tmp_path / "b.json", [row])), "")


def test_a_question_with_lines_is_none_of_options(tmp_path: Path):
    row = {
        "video": "x.mp4",
        "question": "What do the signs say?\nA. is on the left.\nB. is on the right.",
        "answer": "stop and go",
    }
    assert read_benchmark(str(put(tmp_path / "b.json", [row])), "").kind.name == "qa"
    with pytest.raises(UserError, match="the question lists options behind letters or numbers, and the row has other ones"):
        read_benchmark(str(put(tmp_path / "c.json", [{**row, "option1": "stop", "option2": "go"}])), "")


def test_every_kind_that_asks_reads_times(tmp_path: Path):
    row = {"video": "x.mp4", "question": "what?", "answer": "a dog", "video_start": "1.5", "video_end": ""}
    (item,) = read_benchmark(str(put(tmp_path / "b.json", [row])), "").items
    assert (item.part, item.start, item.end) == ("qa", 1.5, None)
    row = {"video": "x.mp4", **ROW, "start": 1, "end": 2, "bound": True, "duration": 30.0}
    (item,) = read_benchmark(str(put(tmp_path / "c.json", [row])), "").items
    assert (item.part, item.start, item.end) == ("choice", 1.0, 2.0)


def test_grounding_and_tempcompass_through_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The engine replies `Yes, from 0:00 to 0:01.` to everything: overlaps 1/2 of 0 to 2, nothing of 1.5 to 2."""
    engine = Engine()
    monkeypatch.setattr(engine, "stream", lambda *words: iter(["Yes, from 0:00 ", "to 0:01."]))
    monkeypatch.setattr("minirlaif.gguf.runtime.engine.GgufEngine", lambda *_, **__: engine)
    (tmp_path / "video").mkdir()
    clips.write_clip(tmp_path / "video" / "3MSZA.mp4", [n / 8 for n in range(16)])
    (tmp_path / "charades_sta_test.txt").write_text("3MSZA 0.0 2.0##a person opens the door.\n3MSZA 1.5 2.0##a person sits.\n")
    put(tmp_path / "yes_no.json", {"3MSZA": {"order": [{"question": "Is it open?", "answer": "yes"}]}})
    for name in ("charades_sta_test.txt", "yes_no.json"):
        command = words(tmp_path)
        command[command.index("--benchmark") + 1] += f"/{name}"
        assert main.main(command) == 0
    means = {name: cell["mean"] for name, cell in table_of(tmp_path, "charades_sta_test")["cells"].items()}
    assert means == {"iou3": 0.5, "iou5": 0.5, "iou7": 0.0, "miou": 0.25}
    assert table_of(tmp_path, "yes_no")["cells"]["yes_no"]["mean"] == 1.0
    page = (tmp_path / "runs/a/benchmarks/charades_sta_test/table.md").read_text()
    assert "R@1 IoU 0.3 % | R@1 IoU 0.5 % | R@1 IoU 0.7 % | Mean IoU %" in page
