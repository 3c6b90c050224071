"""Two runs side by side, marks that are read again, and which examples a page shows: over run folders written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minirlaif.benchmarks.compare import compared
from minirlaif.benchmarks.dataset import Benchmark
from minirlaif.benchmarks.kinds import KINDS
from minirlaif.benchmarks.kinds.base import Answer, Grade, Item
from minirlaif.benchmarks.run import write_tables
from minirlaif.benchmarks.tables import Scores, grade_answers, load_all, save
from minirlaif.cli import main
from minirlaif.feedback.text_judge import JudgeName
from minirlaif.runs.run import Run
from tests.fixtures import tiny

JUDGE = JudgeName("exact", "exact match", "1", "")
KIND = {kind.name: kind for kind in KINDS}


def marked(run: Run, title: str, values: Sequence[float], benchmark: str = "msvd", **changes: Any) -> Scores:
    """Marks of a model of the run, saved; its answers are made first where they are not there."""
    stage = f"benchmarks/{benchmark}/{title}"
    manifest = run.manifest(stage) or (tiny.finished(run, stage), run.manifest(stage))[1]
    grades = tuple(Grade(f"q{n}", f"clip{n}", "accuracy", value) for n, value in enumerate(values))
    model = {"run": run.root.name, "title": title, "answers": (manifest or {})["identity"]}
    scores = replace(Scores(benchmark, "qa", "f" * 64, model, JUDGE, grades, {}), **changes)
    save(run.root / "benchmarks" / benchmark / "scores", scores)
    return scores


def with_own_test(run: Run, *rows: tuple[str, str, str, str]) -> Run:
    """A finished stage `evaluate`: (question, truth, answer of sft, answer of rlaif) per row."""
    lines = [
        {"id": f"t{n}", "video": f"clip{n}.mp4", "question": q, "truth": truth, "base": "?", "sft": sft, "rlaif": rlaif}
        for n, (q, truth, sft, rlaif) in enumerate(rows)
    ]
    tiny.finished(run, "evaluate", lambda path: tiny.write_lines(path / "answers.jsonl", lines))
    return run


class Workspace:
    """Two empty runs, and `compare` between whatever is in them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.runs, self._capsys = folder / "runs", capsys
        self.a, self.b = Run(self.runs / "a"), Run(self.runs / "b")
        for run in (self.a, self.b):
            run.root.mkdir(parents=True)

    def compare(self, first: str, second: str, *more: str) -> tuple[int, str]:
        """Exit code, and what was printed or complained of."""
        code = main.main(["compare", first, second, "--runs-dir", str(self.runs), *more])
        printed = self._capsys.readouterr()
        return code, printed.out if code == 0 else printed.err

    def table(self, folder: str) -> dict[str, Any]:
        return json.loads((self.runs / folder / "compare.json").read_text())


@pytest.fixture
def workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workspace:
    return Workspace(tmp_path, capsys)


# --- the runs' own test questions


def test_own_test_questions_by_hand(workspace: Workspace, tmp_path: Path):
    """a: one of three right, b: two of three; a full stop and capitals are forgiven, nothing else is."""
    questions = [("colour?", "red"), ("shape?", "a square"), ("where?", "left")]
    with_own_test(workspace.a, *[(*row, "", answer) for row, answer in zip(questions, ("Red.", "square", "right"), strict=True)])
    with_own_test(workspace.b, *[(*row, "", answer) for row, answer in zip(questions, ("red", "a square", "up"), strict=True)])
    assert workspace.compare("a:rlaif", "b:rlaif", "--out", str(tmp_path / "runs" / "out"))[0] == 0
    (table,) = workspace.table("out")["tables"]
    (judge,) = table["tables"]
    assert [row["cells"]["accuracy"]["mean"] for row in judge["rows"]] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    change = judge["differences"][0]["changes"]["accuracy"]
    assert (change["rows"], change["mean"]) == (3, pytest.approx(1 / 3))


@pytest.mark.parametrize("other", [("hue?", "red"), ("colour?", "blue")])
def test_other_test_questions_are_not_compared(workspace: Workspace, other: tuple[str, str]):
    with_own_test(workspace.a, ("colour?", "red", "red", "red"))
    with_own_test(workspace.b, (*other, "red", "red"))
    code, output = workspace.compare("a", "b")
    assert code == 2 and "a and b: nothing to compare" in output and "the two files differ" in output


# --- what cannot be compared, in words


def test_other_judges_are_named_side_by_side(workspace: Workspace):
    first, second = (
        marked(workspace.a, "sft", [1, 0]),
        marked(workspace.b, "sft", [1, 1], judge=replace(JUDGE, name="other", version="7")),
    )
    tables, notes = compared([first], [second], ("a", "b"))
    names = "exact match (exact), version 1 on one side and by other (exact), version 7 on the other"
    assert tables == [] and notes == [f"msvd: graded by {names}"]


def test_other_files_of_a_benchmark_differ(workspace: Workspace):
    other = marked(workspace.b, "sft", [1], sha256="e" * 64)
    _, notes = compared([marked(workspace.a, "sft", [1])], [other], ("a", "b"))
    assert notes == ["msvd: the two files differ"]


def test_nothing_in_common_is_said_so(workspace: Workspace):
    code, output = workspace.compare("a", "b")
    assert code == 2 and "a and b: nothing to compare (they have no benchmark and no finished stage evaluate in common)" in output


def test_what_one_side_alone_has_is_told(workspace: Workspace):
    """A benchmark, a judge, a file and a model that the other side lacks, beside what both have."""
    other = replace(JUDGE, name="other", version="7")
    a = [marked(workspace.a, "sft", [1, 0]), marked(workspace.a, "rlaif", [1, 1]), marked(workspace.a, "sft", [1], "tgif")]
    a += [marked(workspace.a, "sft", [1], judge=other), marked(workspace.a, "sft", [1], sha256="e" * 64)]
    b = [marked(workspace.b, "sft", [1, 1]), marked(workspace.b, "sft", [0], "anet")]
    tables, notes = compared(a, b, ("a", "b"))
    assert [(t["benchmark"], len(t["tables"]), len(t["tables"][0]["differences"])) for t in tables] == [("msvd", 1, 1)]
    assert sorted(notes) == [
        "anet: evaluated only in b",
        "msvd, judge exact match (exact), version 1: rlaif only in a",
        "msvd: graded by other (exact), version 7 only in a",
        "msvd: grades of another file only in a",
        "tgif: evaluated only in a",
    ]
    tables, notes = compared(b, [b[0]], ("b", "b:sft"))
    assert notes == ["anet: evaluated only in b"] and len(tables) == 1
    assert compared([a[0]], [b[0]], ("a", "b"))[1] == []


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), ("a", "a:sft"), ("a:sft", "a"), ("a/", "a"), ("a/:sft", "a:sft"), ("b/../a", "a")]
)
def test_a_run_is_not_compared_with_itself(workspace: Workspace, first: str, second: str):
    marked(workspace.a, "sft", [1, 0])
    code, output = workspace.compare(first, second)
    assert code == 2 and f"{first} and {second}: " in output and "the same on both sides" in output


def test_the_files_lie_beside_the_runs(workspace: Workspace):
    marked(workspace.a, "sft", [1, 0])
    marked(workspace.a, "rlaif", [1, 1])
    code, output = workspace.compare("a/:sft", "a:rlaif")
    assert code == 0 and f"comparison: {workspace.runs / 'compare-a-sft-a-rlaif' / 'compare.html'}" in output
    assert (workspace.runs / "compare-a-sft-a-rlaif" / "compare.md").is_file()


# --- marks


def test_marks_of_answers_that_were_made_again_are_left_out(workspace: Workspace):
    marked(workspace.a, "sft", [1, 0])
    marked(workspace.a, "rlaif", [1, 1])
    assert [scores.model["title"] for scores in load_all(workspace.a, "msvd")] == ["sft", "rlaif"]
    workspace.a.set_aside("benchmarks/msvd/sft")
    assert [scores.model["title"] for scores in load_all(workspace.a, "msvd")] == ["rlaif"]
    with workspace.a.stage("benchmarks/msvd/sft", {"answered": "again"}) as out:
        assert out is not None
    assert [scores.model["title"] for scores in load_all(workspace.a, "msvd")] == ["rlaif"]


@pytest.mark.parametrize(
    ("kind", "rank", "hits"),
    [
        ("action", 1, {"top1": 1, "top5": 1}),
        ("action", 2, {"top1": 0, "top5": 1}),
        ("action", 5, {"top1": 0, "top5": 1}),
        ("action", 6, {"top1": 0, "top5": 0}),
        ("retrieval", 1, {"r1": 1, "r5": 1, "r10": 1}),
        ("retrieval", 2, {"r1": 0, "r5": 1, "r10": 1}),
        ("retrieval", 5, {"r1": 0, "r5": 1, "r10": 1}),
        ("retrieval", 6, {"r1": 0, "r5": 0, "r10": 1}),
        ("retrieval", 10, {"r1": 0, "r5": 0, "r10": 1}),
        ("retrieval", 11, {"r1": 0, "r5": 0, "r10": 0}),
        ("choice", 1, {"accuracy": 1}),
        ("choice", 2, {"accuracy": 0}),
    ],
)
def test_hits_by_rank(kind: str, rank: int, hits: dict[str, int]):
    item = Item("i", kind, "clip", "", (), "right", ("right", "wrong"))
    benchmark, answers = Benchmark("b", KIND[kind], (item,), "f"), {"i": Answer(("wrong",), rank)}
    scores = grade_answers(benchmark, {}, answers, benchmark.kind.grader(True, ""))
    assert {grade.metric: grade.value for grade in scores.grades} == hits


# --- examples of a page


def test_examples_are_those_of_the_last_model(workspace: Workspace):
    """The first model is wrong where the last is right: the worst and the best are the last one's."""
    items = tuple(Item(f"q{n}", "qa", f"clip{n}", "", (f"question {n}?",), f"truth {n}") for n in range(2))

    def write_answers(title: str) -> Any:
        lines = [{"id": item.id, "said": [f"{title} says {item.id}"]} for item in items]
        return lambda path: tiny.write_lines(path / "answers.jsonl", lines)

    for title in ("sft", "rlaif"):
        tiny.finished(workspace.a, f"benchmarks/msvd/{title}", write_answers(title))
    results = [marked(workspace.a, "sft", [0, 1]), marked(workspace.a, "rlaif", [1, 0])]
    write_tables(workspace.a, Benchmark("msvd", KIND["qa"], items, "f" * 64), results, 5.0)
    page = (workspace.a.root / "benchmarks" / "msvd" / "table.html").read_text()
    worst, best = page.index('id="worst"'), page.index('id="best"')
    assert worst < page.index("question 1?") < best < page.index("question 0?")
    assert "sft says q1" in page and "rlaif says q1" in page


def test_an_example_names_the_judge_where_there_are_several(workspace: Workspace):
    items = (Item("q0", "qa", "clip0", "", ("what?",), "x"), Item("q1", "qa", "clip1", "", ("who?",), "y"))
    lines = [{"id": item.id, "said": ["z"]} for item in items]
    tiny.finished(workspace.a, "benchmarks/msvd/sft", lambda path: tiny.write_lines(path / "answers.jsonl", lines))
    page = workspace.a.root / "benchmarks" / "msvd" / "table.html"
    one = marked(workspace.a, "sft", [0, 1])
    write_tables(workspace.a, Benchmark("msvd", KIND["qa"], items, "f" * 64), [one], 5.0)
    assert "accuracy 0</b>" in page.read_text()
    two = marked(workspace.a, "sft", [0, 1], judge=JudgeName("hf", "tiny", "v", "p"))
    write_tables(workspace.a, Benchmark("msvd", KIND["qa"], items, "f" * 64), [two], 5.0)
    assert "accuracy 0, by tiny (hf)</b>" in page.read_text()


def test_texts_of_an_example():
    pair, kind = Item("i", "consistency_qa", "c", "", ("one?", "other?"), "x"), KIND["videoinstruct"]
    assert kind.question_text(pair) == "First question: one?\nSecond question: other?"
    assert kind.answer_text(pair, Answer(("p", "q"))) == "First answer: p\nSecond answer: q"
    choice, kind = Item("i", "choice", "c", "", ("which?",), "dog", ("cat", "dog")), KIND["choice"]
    assert kind.question_text(choice) == "which?\nA. cat\nB. dog" and kind.truth_text(choice) == "B. dog"
    assert kind.answer_text(choice, Answer(("A",))) == "A (cat)"
    assert kind.answer_text(choice, Answer(("B. dog",))) == "B. dog"
    assert kind.answer_text(choice, Answer(("no idea",))) == "no idea"
    action, kind = Item("i", "action", "c", "", (), "run", ("run", "sit", "eat", "fly")), KIND["action"]
    ranked = "Likeliest candidates in order:\n1. sit\n2. eat\n3. fly"
    assert kind.answer_text(action, Answer(("sit", "eat", "fly", "run"), 4)) == f"{ranked}\n(the right one is number 4)"
    assert kind.answer_text(action, Answer(("sit", "eat", "fly", "run"), 3)) == ranked  # as likely as the third
