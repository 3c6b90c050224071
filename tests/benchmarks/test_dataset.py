"""Benchmark files in every published layout, and prediction files out and in. No model, no clip is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks import dataset
from minirlaif.benchmarks.dataset import Benchmark, first_items, read_benchmark
from minirlaif.benchmarks.predictions import prediction_files, read_predictions
from minirlaif.errors import UserError
from tests.fixtures import benchmark_files
from tests.fixtures.benchmark_files import ROWS, World, number_of, put, stem


@pytest.fixture
def world() -> World:
    """Thirty rows about ten clips."""
    return [
        {"video": f"clips/test{n // 3:04d}.mp4", "question": f"what happens {n}?", "answer": f"thing {n} moves."}
        for n in range(30)
    ]


@pytest.fixture
def videos(tmp_path: Path, world: World) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for row in world:
        (folder / f"{stem(row)}.mp4").touch()
    return folder


def read(path: Path, videos: Path) -> Benchmark:
    return read_benchmark(str(path), str(videos))


def test_videoinstruct(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.videoinstruct(tmp_path / "VideoInstruct", world), videos)
    assert (benchmark.name, benchmark.kind.name, len(benchmark.items), benchmark.missing) == (
        "videoinstruct",
        "videoinstruct",
        3 * ROWS,
        [],
    )
    parts = {
        part: [item for item in benchmark.items if item.part == part] for part in ("generic_qa", "temporal_qa", "consistency_qa")
    }
    assert [len(items) for items in parts.values()] == [ROWS] * 3
    first, pair = parts["generic_qa"][4], parts["consistency_qa"][4]
    assert (first.questions, first.answer, first.name) == (("what happens 4?",), "thing 4 moves.", "test0001")
    assert first.video == str(videos / "test0001.mp4")
    assert pair.questions == ("what happens 4?", "please tell me: what happens 4?")
    assert parts["temporal_qa"][0].questions == ("what happens 19?",)
    assert len({item.id for item in benchmark.items}) == 3 * ROWS


def test_rows_of_a_part_are_numbered_over_all_its_files(tmp_path: Path, world: World, videos: Path):
    """Their numbers begin anew in each file; one's answer would be taken for another's."""
    benchmark = read(benchmark_files.sharded(tmp_path / "b", world), videos)
    assert len({item.id for item in benchmark.items}) == len(benchmark.items) == ROWS
    predictions = {item.id: (f"about {item.questions[0]}",) for item in benchmark.items}
    rows = prediction_files(benchmark, predictions)["generic_qa.json"]
    assert [row["pred"] for row in rows] == [f"about {row['question']}" for row in world[:ROWS]]
    assert read_predictions(put(tmp_path / "p.json", rows[::-1]), benchmark) == predictions


def test_a_piece_of_a_cut_file_stands_for_all_of_it(tmp_path: Path, world: World, videos: Path):
    """Whichever is named, its folder says what it is: half a benchmark must not pass for the whole."""
    folder = benchmark_files.sharded(tmp_path / "b", world) / "Generic"
    for source in (folder / "test-00001-of-00002.json", folder):
        benchmark = read(source, videos)
        assert (benchmark.kind.name, benchmark.name, len(benchmark.items)) == ("videoinstruct", "generic", ROWS)
    plain = [{"id": n, "video_name": stem(row), "question": "who?", "answer": "x"} for n, row in enumerate(world[:4])]
    for number in range(2):
        put(tmp_path / "MSVD" / f"test-{number:05d}-of-00002.json", plain[2 * number : 2 * number + 2])
    assert (
        len(read(tmp_path / "MSVD", videos).items) == len(read(tmp_path / "MSVD" / "test-00000-of-00002.json", videos).items) == 4
    )


@pytest.mark.parametrize("ids", [["0", "1", "2", "0"], ["4", "3", "2", "2"], ["1", None, "3", "4"], ["", "1", "2", "3"]])
def test_ids_of_a_file_count_only_when_each_row_has_its_own(ids: list[Any], tmp_path: Path, world: World, videos: Path):
    rows = [
        {"video_name": stem(row), "question": row["question"], "answer": row["answer"], "question_id": id_}
        for id_, row in zip(ids, world, strict=False)
    ]
    benchmark = read(put(tmp_path / "b.json", rows), videos)
    assert [item.id for item in benchmark.items] == ["qa:1", "qa:2", "qa:3", "qa:4"]
    predicted = [{**row, "pred": f"to {row['question']}"} for row in rows]
    expected = {f"qa:{n}": (f"to {row['question']}",) for n, row in enumerate(rows, 1)}
    assert read_predictions(put(tmp_path / "p.json", predicted[::-1]), benchmark) == expected
    for row in predicted:
        del row["video_name"]
    assert read_predictions(put(tmp_path / "p.json", predicted), benchmark) == expected


def test_ids_that_begin_anew_with_every_clip(tmp_path: Path, world: World, videos: Path):
    """NExT-QA's qids, with the same question about every clip."""
    rows = [{**row, "question": "what happens?"} for row in world[:ROWS]]
    table = benchmark_files.choice_csv(tmp_path / "mc.csv", rows)
    text = table.read_text().splitlines()
    cells = [line.split(",") for line in text[1:]]
    path = tmp_path / "val.csv"
    path.write_text("\n".join([text[0], *(",".join([*c[:3], str(n % 3), *c[4:]]) for n, c in enumerate(cells))]) + "\n")
    benchmark = read(path, videos)
    assert len({item.id for item in benchmark.items}) == ROWS
    predictions = {item.id: (f"{n}",) for n, item in enumerate(benchmark.items)}
    predicted = prediction_files(benchmark, predictions)["choice.json"]
    assert read_predictions(put(tmp_path / "p.json", predicted[::-1]), benchmark) == predictions


def test_two_rows_of_one_id_are_refused(tmp_path: Path, world: World, videos: Path, monkeypatch):
    monkeypatch.setattr(dataset, "_ids", lambda rows: ["1"] * len(rows))  # a net below the rule above
    with pytest.raises(UserError, match="two rows would have one id"):
        read(benchmark_files.merged(tmp_path / "b.json", world), videos)


def test_one_of_its_files_alone(tmp_path: Path, world: World, videos: Path):
    folder = benchmark_files.videoinstruct(tmp_path / "b", world)
    assert {item.part for item in read(folder / "temporal_qa.json", videos).items} == {"temporal_qa"}
    (folder / "generic_qa_pred.json").write_text("[]")  # what another program left there is no part of the benchmark
    assert len(read(folder, videos).items) == 3 * ROWS


def test_the_hub_repack_is_the_same_benchmark(tmp_path: Path, world: World, videos: Path):
    one = read(benchmark_files.videoinstruct(tmp_path / "one", world), videos)
    two = read(benchmark_files.repack(tmp_path / "two", world), videos)
    contents = [sorted((i.part, i.questions, i.answer, i.video) for i in benchmark.items) for benchmark in (one, two)]
    assert contents[0] == contents[1]
    keys = {item.part: set(item.row) for item in two.items}
    assert keys["generic_qa"] == {"video_name", "Q", "A"} and keys["consistency_qa"] == {"video_name", "Q1", "Q2", "A"}


def test_half_a_pair_of_the_repack_is_reported(tmp_path: Path, videos: Path):
    row = {"video_name": "test0001", "question_1": "one?", "question_2": "None", "answer": "yes"}
    second = {**row, "video_name": "test0000", "question_2": "two?"}
    alone = {**row, "video_name": "test0002", "question_1": "None", "question_2": "three?"}
    complaint = "row 1: clip test0001: its other question is missing;\n  row 3: clip test0002: its other question is missing"
    with pytest.raises(UserError, match=complaint):
        read(put(tmp_path / "consistency.json", [row, second, alone]), videos)


def test_pairs_of_one_clip_and_answer_are_not_mixed_up(tmp_path: Path, videos: Path):
    """Both first questions come before the second ones."""
    sides = [("a?", "None"), ("b?", "None"), ("None", "a again?"), ("None", "b again?")]
    rows = [{"video_name": "test0001", "question_1": one, "question_2": two, "answer": "yes"} for one, two in sides]
    benchmark = read(put(tmp_path / "consistency.json", rows), videos)
    assert [item.questions for item in benchmark.items] == [("a?", "a again?"), ("b?", "b again?")]


def test_questions_and_answers_in_two_files_are_matched_by_id(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.two_files(tmp_path / "MSVD_Zero_Shot_QA", world), videos)
    assert (benchmark.kind.name, len(benchmark.items)) == ("qa", ROWS)
    assert [(i.questions[0], i.answer) for i in benchmark.items] == [(row["question"], row["answer"]) for row in world[:ROWS]]
    alone = read(tmp_path / "MSVD_Zero_Shot_QA" / "test_q.json", videos)
    assert alone.items == benchmark.items and alone.name == benchmark.name == "msvd_zero_shot_qa"


def test_each_side_of_two_files_keeps_what_is_its_own(tmp_path: Path, world: World, videos: Path):
    """The answers' file may repeat the question in other words, the questions' file may have a place for the answer."""
    benchmark = read(benchmark_files.original_two_files(tmp_path / "msvd", world), videos)
    assert [(i.questions[0], i.answer) for i in benchmark.items] == [(row["question"], row["answer"]) for row in world[:ROWS]]


@pytest.mark.parametrize(
    ("side", "change", "words"),
    [
        ("test_a.json", {"question_id": "test0000_0"}, "test_a.json, row 3: question_id test0000_0 is that of row 1 already"),
        ("test_q.json", {"question_id": "test0000_0"}, "test_q.json, row 3: question_id test0000_0 is that of row 1 already"),
        ("test_a.json", {"question_id": None}, "test_a.json, row 3: `question_id` is missing"),
        ("test_q.json", {"question_id": ""}, "test_q.json, row 3: `question_id` is missing"),
    ],
)
def test_a_question_id_that_is_missing_or_taken(
    side: str, change: dict[str, Any], words: str, tmp_path: Path, world: World, videos: Path
):
    folder = benchmark_files.two_files(tmp_path / "b", world)
    rows = json.loads((folder / side).read_text())[:: -1 if side == "test_a.json" else 1]
    rows[2] |= change
    put(folder / side, rows)
    with pytest.raises(UserError) as caught:
        read(folder, videos)
    assert words in str(caught.value)


@pytest.mark.parametrize("sides", [("test_q.json", "test_a.json"), ("test_q.json",), ("test_a.json",)])
def test_questions_and_answers_without_ids_are_not_matched_by_place(
    sides: tuple[str, ...], tmp_path: Path, world: World, videos: Path
):
    folder = benchmark_files.two_files(tmp_path / "b", world)
    for side in sides:
        rows = json.loads((folder / side).read_text())
        put(folder / side, [{k: v for k, v in row.items() if k != "question_id"} for row in rows])
    with pytest.raises(UserError, match="`question_id`"):
        read(folder, videos)
    if len(sides) == 2:
        with pytest.raises(UserError, match="not matched with answers by their place; give both files the column"):
            read(folder, videos)


def test_a_question_without_an_answer_is_reported(tmp_path: Path, world: World, videos: Path):
    folder = benchmark_files.two_files(tmp_path / "b", world)
    put(folder / "test_a.json", json.loads((folder / "test_a.json").read_text())[:-1])
    with pytest.raises(UserError, match="row 1: question_id test0000_0 has no answer in test_a.json"):
        read(folder, videos)


@pytest.mark.parametrize(
    ("make", "name"), [(benchmark_files.merged, "msvd_qa.json"), (benchmark_files.tgif, "Test_frameqa_question.csv")]
)
def test_one_list(make: Callable[[Path, World], Path], name: str, tmp_path: Path, world: World, videos: Path):
    benchmark = read(make(tmp_path / name, world), videos)
    assert (benchmark.kind.name, len(benchmark.items), benchmark.missing) == ("qa", ROWS, [])
    assert [(i.questions[0], i.answer, i.name) for i in benchmark.items] == [
        (r["question"], r["answer"], stem(r)) for r in world[:ROWS]
    ]


@pytest.mark.parametrize("called", ["vid{}.avi", "video{}.mp4", "youtube"])
def test_clips_that_are_numbers(called: str, tmp_path: Path, world: World):
    videos = tmp_path / "numbered"
    videos.mkdir()
    numbers = sorted({number_of(row) for row in world})
    for number in numbers:
        (videos / (f"-Abc_{number}_9.avi" if called == "youtube" else called.format(number))).touch()
    if called == "youtube":
        (videos / "youtube_mapping.txt").write_text("".join(f"-Abc_{number}_9 vid{number}\n" for number in numbers))
    benchmark = read(benchmark_files.original_msvd(tmp_path / "test_qa.json", world), videos)
    assert benchmark.kind.name == "qa" and benchmark.missing == [] and benchmark.items[5].id == "qa:105"
    assert Path(benchmark.items[19].video).stem in ("vid6", "video6", "-Abc_6_9")


@pytest.mark.parametrize("make", [benchmark_files.choice, benchmark_files.choice_csv])
def test_multiple_choice(make: Callable[[Path, World], Path], tmp_path: Path, world: World, videos: Path):
    suffix = "csv" if make is benchmark_files.choice_csv else "json"
    benchmark = read(make(tmp_path / f"mc.{suffix}", world), videos)
    assert (benchmark.kind.name, len(benchmark.items), benchmark.missing) == ("choice", ROWS, [])
    for item, row in zip(benchmark.items, world, strict=False):
        assert item.answer == row["answer"] and item.answer in item.options and len(item.options) in (4, 5)


@pytest.mark.parametrize(
    ("row", "options", "right"),
    [
        ({"options": ["a", "b"], "answer": "B"}, ("a", "b"), "b"),
        ({"candidates": ["a cat", "a dog"], "answer": "a dog"}, ("a cat", "a dog"), "a dog"),  # MVBench: the text itself
        ({"choices": ["a", "b", "c"], "answer": 2}, ("a", "b", "c"), "c"),
        ({"options": ["3", "2", "1"], "answer": "2"}, ("3", "2", "1"), "2"),  # a text before a number
        ({"options": {"A": "x", "B": "y"}, "answer": "(A)"}, ("x", "y"), "x"),
        ({"A": "x", "B": "y", "C": "z", "answer": "C"}, ("x", "y", "z"), "z"),
        ({"option 0": "x", "option 1": "y", "truth": 1}, ("x", "y"), "y"),  # EgoSchema
        ({"options": '["x", "y"]', "answer": "x"}, ("x", "y"), "x"),  # a cell of a csv file
        ({"options": ["(A) x", "(B) y"], "answer": "(B) y"}, ("x", "y"), "y"),
    ],
)
def test_forms_of_options(row: dict[str, Any], options: tuple[str, ...], right: str, tmp_path: Path, videos: Path):
    (item,) = read(put(tmp_path / "mc.json", [{"video": "test0001", "question": "which?", **row}]), videos).items
    assert (item.options, item.answer) == (options, right)


@pytest.mark.parametrize("named", ["", "questions.json"])
def test_egoschema(named: str, tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.egoschema(tmp_path / "EgoSchema", world) / named, videos)
    assert (benchmark.name, benchmark.kind.name, benchmark.missing, len(benchmark.items)) == ("egoschema", "choice", [], 5)
    numbers = range(3, 30, 6)
    assert [(i.answer, i.questions[0]) for i in benchmark.items] == [(world[n]["answer"], f"What of {n}?") for n in numbers]
    assert [i.id for i in benchmark.items] == [f"choice:{stem(world[n])}" for n in numbers]
    assert all(len(i.options) == 5 and i.options.index(i.answer) == n % 5 for i, n in zip(benchmark.items, numbers, strict=True))
    put(tmp_path / "EgoSchema" / "subset_answers.json", {"elsewhere": 0})
    with pytest.raises(UserError, match="1 answers have no question in questions.json, such as elsewhere"):
        read(tmp_path / "EgoSchema" / named, videos)


def test_what_was_read_and_what_was_not_is_told(tmp_path: Path, world: World, videos: Path):
    folder = benchmark_files.videoinstruct(tmp_path / "vi", world)
    assert read(folder, videos).summary() == (
        "benchmark vi: videoinstruct, 60 rows about 7 clips, from consistency_qa.json, generic_qa.json, temporal_qa.json"
    )
    put(folder / "deep" / "train_q.json", [])
    assert read(folder, videos).summary().endswith("temporal_qa.json; not read: deep/train_q.json")
    assert read(folder / "generic_qa.json", videos).summary().endswith(", from generic_qa.json")


@pytest.mark.parametrize(
    ("file", "name"),
    [("test_qa.json", "msvd-qa"), ("val.json", "msvd-qa"), ("test-00000-of-00001.json", "msvd-qa"), ("anet_qa.json", "anet_qa")],
)
def test_a_file_whose_name_says_nothing_is_called_as_its_folder(file: str, name: str, tmp_path: Path, world: World, videos: Path):
    (tmp_path / "MSVD-QA").mkdir()
    assert read(benchmark_files.merged(tmp_path / "MSVD-QA" / file, world), videos).name == name


def test_retrieval(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.retrieval(tmp_path / "MSRVTT_JSFUSION_test.csv", world), videos)
    assert (benchmark.kind.name, len(benchmark.items)) == ("retrieval", ROWS)
    assert (benchmark.items[7].answer, benchmark.items[7].name, benchmark.items[7].questions) == (
        "thing 7 moves.",
        "test0002",
        (),
    )


def test_ucf101(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.ucf101(tmp_path / "ucf101", world), videos)
    assert (benchmark.kind.name, len(benchmark.items), benchmark.missing) == ("action", ROWS, [])
    assert benchmark.items[4].answer == "baseball pitch"
    assert benchmark.items[4].options == ("apply eye makeup", "baseball pitch", "typing", "yo yo")


def test_hmdb51(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.hmdb51(tmp_path / "hmdb51", world), videos)
    assert (benchmark.kind.name, len(benchmark.items), benchmark.missing) == ("action", 20, [])
    assert {item.answer for item in benchmark.items} == {"brush hair", "cartwheel"} == set(benchmark.items[0].options)


def test_a_name_without_a_path_is_looked_for_in_benchmarks(tmp_path: Path, world: World, videos: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark_files.merged((tmp_path / "benchmarks").mkdir() or tmp_path / "benchmarks" / "anet_qa.json", world)
    assert read_benchmark("anet", str(videos)).name == "anet_qa"
    with pytest.raises(UserError, match="--benchmark msvd: no such file or folder"):
        read_benchmark("msvd", str(videos))


def test_missing_clips_are_named(tmp_path: Path, world: World, videos: Path):
    (videos / "test0003.mp4").unlink()
    benchmark = read(benchmark_files.merged(tmp_path / "q.json", world), videos)
    assert benchmark.missing == ["test0003"] and sum(not item.video for item in benchmark.items) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"video_name": "x", "question": "a?", "answer": ""}, "`answer` is empty"),
        ({"question": "a?", "answer": "b"}, "no clip: needs a `video_name`"),
        ({"video_name": "x", "Q": "a?"}, "`answer` is missing"),
        ({"video": "x", "question": "a?", "options": ["one"], "answer": "A"}, "must hold 2 to 26 options"),
        ({"video": "x", "question": "a?", "options": ["one", "two"], "answer": "C"}, "none of the 2 options"),
        ({"video": "x", "caption": " "}, "the caption is empty"),
        ({"video_name": "x", "question": "a\ud83d?", "answer": "b"}, "contains an unpaired surrogate"),
        ({"name": "x"}, "columns name are those of no known benchmark"),
    ],
)
def test_bad_rows(row: dict[str, Any], words: str, tmp_path: Path, videos: Path):
    with pytest.raises(UserError, match=words):
        read(put(tmp_path / "b.json", [row]), videos)


def test_a_folder_that_is_no_benchmark(tmp_path: Path, videos: Path):
    for name in ("one.json", "two.json"):
        put(tmp_path / "b" / name, [])
    with pytest.raises(UserError, match=r"cannot tell which of its files is the benchmark \(one.json, two.json\)"):
        read(tmp_path / "b", videos)


def test_a_subset_is_of_whole_clips_and_says_so(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.merged(tmp_path / "q.json", world), videos)
    subset = first_items(benchmark, 7, seed=0)
    assert len(subset.items) in (8, 9) and subset.name == f"q-{len(subset.items)}-of-20"
    assert subset == first_items(benchmark, 7, seed=0) != first_items(benchmark, 7, seed=1)
    names = {item.name for item in subset.items}
    assert [item for item in benchmark.items if item.name in names] == list(subset.items)
    assert first_items(benchmark, 0, 0) is benchmark is first_items(benchmark, 20, 0)


# --- predictions


def official_input(name: str, rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What Video-ChatGPT's judging scripts read of a file: clips that come again get a number, columns must be there."""
    counts: dict[str, int] = {}
    inputs = []
    for row in rows:
        counts[row["video_name"]] = counts.get(row["video_name"], -1) + 1
        key = f"{row['video_name']}_{counts[row['video_name']]}"
        columns = ("Q1", "A", "pred1", "pred2") if name.startswith("consistency") else ("Q", "A", "pred")
        inputs.append((key, *(row[column] for column in columns)))
    assert len({key for key, *_ in inputs}) == len(rows)
    return inputs


@pytest.mark.parametrize("make", [benchmark_files.videoinstruct, benchmark_files.repack, benchmark_files.two_files])
def test_predictions_are_what_other_scripts_read(make: Callable[[Path, World], Path], tmp_path: Path, world: World, videos: Path):
    benchmark = read(make(tmp_path / "b", world), videos)
    predictions = {item.id: tuple(f"{item.id} says {n}" for n, _ in enumerate(item.questions)) for item in benchmark.items}
    files = prediction_files(benchmark, predictions)
    for name, rows in files.items():
        assert len(official_input(name, rows)) == ROWS
    if benchmark.kind.name == "videoinstruct":
        assert set(files) == {"generic_qa.json", "temporal_qa.json", "consistency_qa.json"}
        fourth = [item for item in benchmark.items if item.part == "consistency_qa"][3]
        row = files["consistency_qa.json"][3]
        assert row["Q2"] == fourth.questions[1] and (row["pred1"], row["pred2"]) == predictions[fourth.id]
    else:  # VLM-RLAIF's own script has these four
        assert {"id", "question", "answer", "pred"} <= files["qa.json"][0].keys()
    folder = tmp_path / "predictions"
    for name, rows in files.items():
        put(folder / name, rows)
    assert read_predictions(folder, benchmark) == predictions


def test_other_peoples_predictions(tmp_path: Path, world: World, videos: Path):
    """Rows in another order, some missing, with what sloppy scripts leave in."""
    benchmark = read(benchmark_files.merged(tmp_path / "q.json", world), videos)
    lines = [
        {"id": "q3", "question": "<image>\nwhat happens 3?", "answer": "thing 3 moves.", "pred": " it moves </s>"},
        {"video_name": "test0000", "question": "what happens 1?", "answer": "x", "pred": "no id here"},
    ]
    path = tmp_path / "merge.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_predictions(path, benchmark) == {"qa:q3": ("it moves",), "qa:q1": ("no id here",)}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "q3", "question": "what happens 4?", "pred": "x"}, "has the id of another question"),
        ({"id": "zzz", "question": "who?", "pred": "x"}, "is no row of the benchmark: 'zzz'"),
        ({"id": "q3", "question": "what happens 3?"}, "needs text under pred"),
        ({"id": "q3", "question": "what happens 3?", "pred": 4}, "needs text under pred"),
        ({"id": "q3", "question": "what happens 3?", "pred": "a \ud83d"}, "row 1: `pred` contains an unpaired surrogate"),
    ],
)
def test_predictions_that_belong_elsewhere(row: dict[str, Any], words: str, tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.merged(tmp_path / "q.json", world), videos)
    with pytest.raises(UserError, match=words):
        read_predictions(put(tmp_path / "p.json", [row]), benchmark)


def about(clips: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with one question about each clip, counted from 0."""
    return [{"id": n, "video_name": clip, "question": "what is done?", "answer": f"act {n}"} for n, clip in enumerate(clips)]


def test_a_clip_that_is_named_counts_before_an_id(tmp_path: Path, videos: Path):
    """Another program may count from another number, and MSVD asks the same of a hundred clips."""
    clips = [f"test000{n}" for n in range(4)]
    benchmark = read(put(tmp_path / "q.json", about(clips)), videos)
    rows = [{**row, "id": row["id"] + 1, "video_name": f"some/folder/v_{row['video_name']}.mp4", "pred": row["video_name"]}
            for row in about(clips)]  # fmt: skip
    predictions = read_predictions(put(tmp_path / "p.json", rows), benchmark)
    assert predictions == {f"qa:{n}": (clip,) for n, clip in enumerate(clips)}
    other = {"id": 77, "video_name": "test0009", "question": "what is done?", "answer": "act 1", "pred": "x"}
    with pytest.raises(UserError, match="row 1: is no row of the benchmark"):
        read_predictions(put(tmp_path / "o.json", [other]), benchmark)


def test_an_item_answered_twice_is_refused(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.merged(tmp_path / "q.json", world), videos)
    row = {"id": "q3", "question": "what happens 3?", "pred": "x"}
    with pytest.raises(UserError, match="row 2: answers a question for the second time"):
        read_predictions(put(tmp_path / "p.json", [row, row]), benchmark)


def test_a_question_of_two_parts_is_answered_in_the_part_that_the_file_is_called_by(tmp_path: Path, world: World, videos: Path):
    benchmark = read(benchmark_files.videoinstruct(tmp_path / "b", world), videos)
    row = {"video_name": stem(world[4]), "Q": world[4]["question"], "A": world[4]["answer"], "pred": "x"}
    (id_,) = read_predictions(put(tmp_path / "temporal_qa.json", [row]), benchmark)
    assert id_.startswith("temporal_qa:")


def test_of_two_answers_to_one_question_the_same_reference_decides(tmp_path: Path, videos: Path):
    rows = [{"video_name": "test0001", "question": "who?", "answer": answer} for answer in ("a man", "a dog")]
    benchmark = read(put(tmp_path / "b.json", rows), videos)
    predicted = [{**rows[1], "pred": "dog"}, {**rows[0], "pred": "man"}]
    assert read_predictions(put(tmp_path / "p.json", predicted), benchmark) == {"qa:2": ("dog",), "qa:1": ("man",)}


def test_a_folder_of_ones_own_predictions(tmp_path: Path, world: World, videos: Path):
    """Only the files called like parts are read, if there are any."""
    benchmark = read(benchmark_files.merged(tmp_path / "q.json", world), videos)
    predictions = {item.id: ("x",) for item in benchmark.items}
    put(tmp_path / "p" / "qa.json", prediction_files(benchmark, predictions)["qa.json"])
    for name in ("answers.jsonl", "manifest.json", "samples.jsonl"):
        put(tmp_path / "p" / name, {"video": "no row"})
    assert read_predictions(tmp_path / "p", benchmark) == predictions


def test_clips_need_not_be_looked_for(tmp_path: Path, world: World):
    benchmark = read_benchmark(str(benchmark_files.merged(tmp_path / "q.json", world)), "")
    assert len(benchmark.items) == ROWS and {item.video for item in benchmark.items} == {""}
