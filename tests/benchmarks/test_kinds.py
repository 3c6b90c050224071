"""Benchmarks whose scores have rules of their own: rows as their authors publish them, scores computed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks.dataset import Benchmark, read_benchmark
from minirlaif.benchmarks.generate import _ranked
from minirlaif.benchmarks.kinds.base import Answer
from minirlaif.benchmarks.kinds.grounding import replied_span
from minirlaif.benchmarks.predictions import read_predictions
from minirlaif.benchmarks.tables import Scores, cells, cells_by_part, grade_answers, judged
from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import GradeRequest, GradeResult, Grading, JudgeName
from minirlaif.judges.rubric import Unreadable, parse_option
from tests.fixtures import fixed_reply
from tests.fixtures.benchmark_files import put


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> Benchmark:
    return read_benchmark(str(path), "")


def values(benchmark: Benchmark, answers: Mapping[str, Answer]) -> tuple[dict[str, dict[str, float | None]], Scores]:
    """Every item's value by id and metric; and all of them as scores."""
    scores = grade_answers(benchmark, {"run": "a", "title": "m"}, answers, benchmark.kind.grader(False, ""))
    by_id: dict[str, dict[str, float | None]] = {}
    for grade in scores.grades:
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
        ("video_info.meta.jsonl", [{"key": "x", "type": "tv", "video_info": {}, "qa": [{"uid": 1, "question": "?"}]}], "LVBench"),
        (
            "count.json",
            {"0": {"question": "?", "options": ["2", "1"], "answer": 1, "key": "0209-03", "demonstration_type": "human"}},
            "TOMATO",
        ),
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
    """A model whose likelihood of each text is set by the test."""

    batch_size = 1

    def __init__(self, by_text: Mapping[str, float]) -> None:
        self.by_text = by_text

    def likelihoods(self, candidates: Sequence[tuple[str, str, str]]) -> list[float]:
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
    lines(vitatecs.parent / "data_opt" / "Sequence.jsonl", [])
    lines(vitatecs.parent / "data_opt" / "Type.jsonl", [])
    root = read(vitatecs.parent)  # as it is cloned: an older version beside it
    assert (len(root.items), root.unread) == (4, ("data_opt/Sequence.jsonl", "data_opt/Type.jsonl"))
    put(vitatecs.parent / "old" / "data" / "Type.json", [])
    put(vitatecs.parent / "old" / "data" / "Sequence.json", [])
    with pytest.raises(UserError, match="cannot tell which of its files is the benchmark"):
        read(vitatecs.parent)
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


CHARADES = """3MSZA 24.3 30.4##person turn a light on.
3MSZA 0.0 10.0##a person opens the door.
XZ0K9 5.0 15.0##person eats a sandwich.
XZ0K9 2.0 4.0##person sits down.
"""


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    (tmp_path / "sta" / "charades_sta_train.txt").parent.mkdir()
    (tmp_path / "sta" / "charades_sta_train.txt").write_text("AO8RW 0.0 6.9##a person is putting a book on a shelf.\n")
    (tmp_path / "sta" / "charades_sta_test.txt").write_text(CHARADES)
    return tmp_path / "sta"


def test_charades_sta_is_graded_by_the_overlap_of_spans(charades: Path):
    benchmark = read(charades)
    assert (benchmark.kind.name, benchmark.files, len(benchmark.items)) == ("grounding", ("charades_sta_test.txt",), 4)
    item = benchmark.items[0]
    assert (item.name, item.answer, item.has_span) == ("3MSZA", "24.3 - 30.4", False)  # the whole clip is shown
    (prompt,) = benchmark.kind.prompts(item)
    assert prompt.startswith("person turn a light on.\nWhen in the video does this happen?")
    replies = ["24.3 - 30.4 seconds", "From 2.5s to 12.5s.", "The event starts at 0:08 and ends at 0:18.", "At the beginning."]
    answers = {each.id: Answer((reply,)) for each, reply in zip(benchmark.items, replies, strict=True)}
    by_id, scores = values(benchmark, answers)
    # 6.1 of 6.1 s; 2.5 to 10 of 0 to 12.5: 7.5 of 12.5 = 0.6; 8 to 15 of 5 to 18: 7 of 13 = 0.538...; no span: 0
    overlaps = [1.0, 0.6, 7 / 13, 0.0]
    assert [each["miou"] for each in by_id.values()] == pytest.approx(overlaps)
    hits = {name: [each[name] for each in by_id.values()] for name in ("iou3", "iou5", "iou7")}
    assert hits == {"iou3": [1, 1, 1, 0], "iou5": [1, 1, 1, 0], "iou7": [1, 0, 0, 0]}
    means = {name: cell.mean for name, cell in cells(scores).items()}
    assert means == pytest.approx({"iou3": 0.75, "iou5": 0.75, "iou7": 0.25, "miou": (1 + 0.6 + 7 / 13) / 4})
    assert judged([scores], [])["rows"][0]["without_mark"] == {"names no span": 4}
    assert read(charades / "charades_sta_train.txt").items[0].answer == "0 - 6.9"


@pytest.mark.parametrize(
    ("reply", "span"),
    [
        ("3.5 - 8.0", (3.5, 8.0)),
        ("between 3 and 8 seconds", (3.0, 8.0)),
        ("1:02 – 1:10.5", (62.0, 70.5)),
        ("00:01:02 to 00:01:10", (62.0, 70.0)),
        ("start time: 3.5, end time: 8", (3.5, 8.0)),
        ("8.0 - 3.5", (3.5, 8.0)),  # as others read it
        ("2 people, from 3 to 8", (3.0, 8.0)),
        ("at 3 seconds", None),
        ("never", None),
    ],
)
def test_spans_in_replies(reply: str, span: tuple[float, float] | None):
    assert replied_span(reply) == span


def test_other_layouts_of_sentences_and_times(tmp_path: Path):
    captions = {
        "v_bXd": {"duration": 82.7, "timestamps": [[0.8, 19.9], [17.4, 60.8]], "sentences": ["A woman sits. ", "She cuts."]}
    }
    benchmark = read(put(tmp_path / "val_1.json", captions))
    assert [(i.name, i.questions, i.answer) for i in benchmark.items] == [
        ("v_bXd", ("A woman sits.",), "0.8 - 19.9"),
        ("v_bXd", ("She cuts.",), "17.4 - 60.8"),
    ]
    (item,) = read(put(tmp_path / "sta.json", [{"video": "x.mp4", "caption": "a dog runs", "timestamp": [1.5, 4]}])).items
    assert (item.part, item.answer, item.start, item.end) == ("grounding", "1.5 - 4", 0.0, None)
    (tmp_path / "bad.txt").write_text("3MSZA 24.3##no end\nXZ0K9 9.0 5.0##turned round\n")
    with pytest.raises(
        UserError,
        match=r"2 bad rows, the first is row 1: needs `clip start end##sentence`;\n.*row 2: .*the part ends at 5 s",
    ):
        read(tmp_path / "bad.txt")
    for times, words in (([1], "`timestamp` must be a start and an end"), ([4, 1], "the part ends at 1 s and starts at 4 s")):
        with pytest.raises(UserError, match=words):
            read(put(tmp_path / "bad.json", [{"video": "x.mp4", "caption": "a dog runs", "timestamp": times}]))


def tempcompass(folder: Path) -> Path:
    """questions/ as the authors publish it, two clips, two dimensions; captions have four requests for each."""
    choice = {
        "1034": {
            "action": [
                {"question": "What is the man doing?\nA. dunking\nB. dribbling\nC. passing", "answer": "A. dunking"},
                {"question": "Which activity?\nA. passing\nB. dribbling\nC. dunking", "answer": "C. dunking"},
            ],
            "direction": [{"question": "Where to?\nA. towards the camera\nB. to the right", "answer": "B. to the right"}],
        },
        "1034_reverse": {"direction": [{"question": "Where to?\nA. to the left\nB. to the right", "answer": "A. to the left"}]},
    }
    yes_no = {
        "1034": {
            "action": [
                {"question": "Is the man dunking?", "answer": "yes"},
                {"question": "Is the man passing the ball?", "answer": "no"},
            ],
            "direction": [{"question": "Does he move to the right?", "answer": "yes"}],
        }
    }
    pair = "Which caption matches the video better?\nCaption A: A man dunks.\nCaption B: A man passes the ball."
    other = "Which description is a more suitable match for the video?\nOption 1: He goes left.\nOption 2: He goes right."
    matching = {
        "1034": {
            "action": [{"question": pair, "answer": "Caption A: A man dunks."}] * 3,
            "direction": [{"question": other, "answer": "Option 2: He goes right."}] * 2,
        }
    }
    request = "Please identify the information ... caption.\nInformation A: {'subject': 'man'}\nGenerated Caption:"
    captions = {
        clip: {
            dim: [{"question": f"{n}. {request}", "answer": rows[0]["answer"]} for n in range(4)] for dim, rows in by_dim.items()
        }
        for clip, by_dim in choice.items()
    }
    for name, value in (("multi-choice", choice), ("yes_no", yes_no), ("caption_matching", matching), ("captioning", captions)):
        put(folder / f"{name}.json", value)
    return folder


def test_tempcompass_rows_with_a_capital_answer(tmp_path: Path):
    rows = [{"video_id": "1", "dim": "action", "question": "Does he run?", "answer": "Yes"}]
    (item,) = read(put(tmp_path / "hub.json", rows)).items
    assert (item.row["task"], item.answer) == ("yes_no", "yes")


def test_tempcompass_by_the_rules_of_its_authors(tmp_path: Path):
    benchmark = read(tempcompass(tmp_path / "questions"))
    assert benchmark.kind.name == "tempcompass" and benchmark.unread == ("captioning.json",)
    assert benchmark.files == ("caption_matching.json", "multi-choice.json", "yes_no.json")
    prompts = {task: prompt for item in benchmark.items for task, prompt in [(item.row["task"], benchmark.kind.prompts(item)[0])]}
    assert prompts["multi_choice"] == "Where to?\nA. to the left\nB. to the right\nPlease directly give the best option:"
    assert prompts["yes_no"] == "Does he move to the right?\nPlease answer yes or no:"
    assert prompts["caption_matching"].endswith("Option 2: He goes right.\nPlease directly give the best option:")
    replies = {
        ("action", "multi_choice"): ["A</s>", "B) dribbling"],  # right, wrong
        ("direction", "multi_choice"): ["B. to the right", "The answer is A"],  # right; begins with no letter
        ("action", "yes_no"): ["Yes, he is.", "nothing is passed"],  # right; right, as it begins with no
        ("direction", "yes_no"): ["He does"],  # neither
        ("action", "caption_matching"): ["Caption A", "A man passes the ball.", "A) A man dunks."],  # right, wrong, right
        ("direction", "caption_matching"): ["2.", "Option 2: He goes right"],  # right; lacks the full stop
    }
    left = {key: iter(each) for key, each in replies.items()}
    answers = {i.id: Answer((next(left[i.part, i.row["task"]]),)) for i in benchmark.items}
    _, scores = values(benchmark, answers)
    means = {name: cell.mean for name, cell in cells(scores).items()}
    assert means == pytest.approx({"multi_choice": 2 / 4, "yes_no": 2 / 3, "caption_matching": 3 / 5})
    parts = {part: {name: cell["mean"] for name, cell in each.items()} for part, each in cells_by_part(scores).items()}
    assert parts == {
        "action": {"multi_choice": 1 / 2, "yes_no": 1.0, "caption_matching": pytest.approx(2 / 3)},
        "direction": {"multi_choice": 1 / 2, "yes_no": 0.0, "caption_matching": 1 / 2},
    }
    assert judged([scores], [])["rows"][0]["without_mark"] == {"names no option": 3}
    assert benchmark.name == re.sub(r"\W+", "-", tmp_path.name.lower()).strip("-")  # of a folder `questions` its own
    one = read(tmp_path / "questions" / "yes_no.json")
    predicted = {"1034": {"action": [{"question": "Is the man dunking?", "answer": "yes", "prediction": "Yes."}]}}
    assert read_predictions(put(tmp_path / "p" / "yes_no.json", predicted), one) == {"action:1": ("Yes.",)}  # the authors' form
    assert (one.name, one.kind.name, len(one.items)) == ("yes_no", "tempcompass", 3)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"dim": "colour", "question": "Is it red?", "answer": "yes"}, "`dim` 'colour' is none of action, attribute_change"),
        ({"dim": "action", "question": "Is it red?", "answer": "maybe"}, "`answer` 'maybe' is neither yes nor no, nor an option"),
        ({"dim": "action", "question": "Which?\nA. x\nB. y", "answer": "C. z"}, "`answer` 'C. z' is neither yes nor no"),
        (
            {"dim": "action", "question": "Do it.\nGenerated Caption:", "answer": "A. x"},
            "questions of multi-choice.json",
        ),
    ],
)
def test_bad_rows_of_tempcompass(row: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(UserError, match=words):
        read(put(tmp_path / "b.json", [{"video_id": "x", **row}]))


class Chooser:
    """A judge that reads which option a caption names, and keeps what it was asked."""

    kind, name, signature = "hf", "chooser", {}

    def __init__(self) -> None:
        self.requests: list[GradeRequest] = []

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        assert metrics == {"captioning"}
        self.requests = list(requests)
        results = []
        for each in requests:
            try:
                results.append(GradeResult(parse_option(each.answers[0], each.questions[0], each.reference)))
            except Unreadable as problem:
                results.append(GradeResult(None, str(problem)))
        return Grading(JudgeName("hf", "chooser", "1", ""), results)

    def compare(self, pairs: Any) -> Any:
        raise AssertionError("a benchmark grades, it does not compare")

    def close(self) -> None:
        pass


def test_tempcompass_captions_are_graded_by_the_option_that_a_judge_takes_from_them(tmp_path: Path):
    benchmark = read(tempcompass(tmp_path / "questions") / "captioning.json")
    assert (benchmark.kind.name, benchmark.files) == ("tempcompass_captions", ("captioning.json", "multi-choice.json"))
    assert benchmark.kind.prompts(benchmark.items[0])[0].endswith("Generated Caption:")
    # What a judge says after reading each caption; of a clip and dimension the first question of multi-choice.json is asked.
    verdicts = {
        ("1034", "action"): ["A", "A. dunking", "B", "none"],  # 2 of 4
        ("1034", "direction"): ["B", "b.", "A or B", "None of the choices are correct"],  # 2 of 3, one not readable
        ("1034_reverse", "direction"): ["A", "B", "to the left", "C"],  # 2 of 3
    }
    left = {key: iter(each) for key, each in verdicts.items()}
    judge = Chooser()
    answers = {i.id: Answer((next(left[i.name, i.part]),)) for i in benchmark.items}
    scores = grade_answers(benchmark, {"run": "a", "title": "m"}, answers, judge)
    assert judge.requests[0].questions == ("What is the man doing?\nA. dunking\nB. dribbling\nC. passing",)
    assert judge.requests[0].reference == "A. dunking"
    means = {part: each["captioning"] for part, each in cells_by_part(scores).items()}
    assert means["action"] == {"rows": 4, "marked": 4, "mean": 0.5}
    assert means["direction"] == {"rows": 8, "marked": 6, "mean": pytest.approx(4 / 6)}
    assert [grade.why for grade in scores.grades if grade.value is None] == [
        "no option of the question: 'A or B'",
        "no option of the question: 'C'",
    ]
    (tmp_path / "questions" / "multi-choice.json").unlink()
    with pytest.raises(UserError, match="12 bad rows.*a judge grades captions by the questions of multi-choice.json"):
        read(tmp_path / "questions" / "captioning.json")


def test_captions_through_the_command_and_a_judge_that_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The judge replies B to everything: right of the clip that goes to the right alone."""
    source = tempcompass(tmp_path / "questions") / "captioning.json"
    captions = [{**item.row, "pred": "He goes."} for item in read(source).items]
    put(tmp_path / "captions.json", captions)
    words = ["evaluate", "--run", "a", "--runs-dir", str(tmp_path / "runs"), "--benchmark", str(source)]
    words += ["--predictions", str(tmp_path / "captions.json"), "--model", "other"]
    assert main.main(words) == 2
    assert "--judge normalised: a model answers questions from the captions of captioning: hf:FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    judge = f"hf:{fixed_reply.write_folder(tmp_path / 'parrot', '(B) is right')}"
    assert main.main([*words, "--judge", judge, "--judge-set", "device=cpu"]) == 0
    row = json.loads((tmp_path / "runs/a/benchmarks/captioning/table.json").read_text())["tables"][0]["rows"][0]
    assert (row["cells"]["captioning"]["marked"], row["cells"]["captioning"]["mean"]) == (12, pytest.approx(4 / 12))
    assert {part: cells["captioning"]["mean"] for part, cells in row["parts"].items()} == {"action": 0.0, "direction": 0.5}
