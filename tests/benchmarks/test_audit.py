"""The judge audit: figures by hand, the sample, and labels that survive."""

from __future__ import annotations

from pathlib import Path

import pytest

from minirlaif.benchmarks.audit import Audit, Vote, audit_figures, draw_pairs
from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from minirlaif.stats import kappa
from tests.fixtures import audit_run, tiny

RESAMPLES = 500


def vote(
    judge: str, person: str, clip: str = "c", orders: str = "AA", first: str = "A", lengths: tuple[int, int] = (5, 9)
) -> Vote:
    return Vote(clip, judge, (orders[0], orders[1]), person, first, lengths)


def test_kappa_by_hand():
    """Cohen's own arithmetic: 20 and 15 of 50 pairs alike, habits 25/25 and 30/20: (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    pairs = [("A", "A")] * 20 + [("A", "B")] * 5 + [("B", "A")] * 10 + [("B", "B")] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    assert kappa([("A", "A"), ("B", "B")]) == 1.0
    assert kappa([("A", "B"), ("B", "A")]) == -1.0
    assert kappa([("A", "A"), ("A", "A")]) is None and kappa([]) is None
    assert kappa([("A", "A"), ("A", "none"), ("none", "A"), ("none", "none")]) == 0.0


def test_the_interval_of_kappa_by_hand():
    """Two clips, one all alike and one all unlike, each with as many A as B: a draw of the one alone gives 1, of the other
    alone -1, each one time in four."""
    alike = [vote("A", "A", "good"), vote("B", "B", "good")]
    unlike = [vote("A", "B", "bad"), vote("B", "A", "bad")]
    figure = audit_figures([*alike, *unlike], RESAMPLES, 0)["kappa"]
    assert (figure.value, figure.low, figure.high, figure.n) == (0.0, -1.0, 1.0, 4)


def test_agreement_counts_what_both_decided():
    figures = audit_figures([vote("A", "A"), vote("A", "B"), vote("A", "none"), vote("none", "B"), vote("B", "")], RESAMPLES, 0)
    assert (figures["agreement"].value, figures["agreement"].n) == (0.5, 2)
    assert figures["kappa"].n == 4  # all that the person labelled, undecided ones too


def test_position_bias_by_hand():
    """Orders are in names of the first one: A then B is the answer shown first, both times."""
    always_first = [vote("none", "", f"d{n}", orders="AB") for n in range(6)]
    always_second = [vote("none", "", f"c{n}", orders="BA") for n in range(6)]
    steady = [vote("A", "", f"c{n}", orders="AA") for n in range(6)]
    values = [audit_figures(votes, RESAMPLES, 0)["judge_first"] for votes in (always_first, always_second, steady)]
    assert [(figure.value, figure.n) for figure in values] == [(1.0, 12), (0.0, 12), (0.5, 12)]
    mixed = audit_figures([*always_first, *steady], RESAMPLES, 0)["judge_first"]
    assert mixed.value == 0.75 and mixed.low is not None and mixed.low < 0.75
    assert (
        audit_figures([vote("A", "", orders="A-")], RESAMPLES, 0)["judge_first"].n == 1
    )  # a tie in one order counts for nothing


def test_length_bias_by_hand():
    """B is longer. The judge takes it in three of four pairs, the person in one of the same four."""
    votes = [vote("B", "A", "a"), vote("B", "A", "b"), vote("B", "B", "c"), vote("A", "A", "d")]
    same = [vote("B", "A", "e", lengths=(7, 7))]  # no longer one
    figures = audit_figures([*votes, *same], RESAMPLES, 0)
    assert (figures["judge_longer"].value, figures["person_longer"].value) == (0.75, 0.25)
    gap = figures["longer_gap"]
    assert (gap.value, gap.n) == (0.5, 4) and gap.low is not None and gap.low >= 0.0


def test_the_persons_own_position_bias():
    figures = audit_figures([vote("A", "A", first="A"), vote("A", "B", first="A"), vote("A", "B", first="B")], RESAMPLES, 0)
    assert (figures["person_first"].value, figures["person_first"].n) == (pytest.approx(2 / 3), 3)


def test_nothing_labelled_yet():
    figures = audit_figures([vote("A", "")], RESAMPLES, 0)
    assert figures["agreement"].value is None and figures["kappa"].value is None and figures["judge_longer"].value == 0.0


def test_a_sample_is_of_as_many_clips_as_possible():
    rows = {f"p{n}": {"video": f"c{n // 4}"} for n in range(20)}  # five clips
    five = draw_pairs(rows, 5, seed=3)
    assert len({rows[id_]["video"] for id_ in five}) == 5
    assert five == draw_pairs(dict(reversed(rows.items())), 5, seed=3) != draw_pairs(rows, 5, seed=4)
    assert sorted(draw_pairs(rows, 99, 0)) == sorted(rows)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return audit_run.make(tmp_path)


def test_labels_are_kept_and_their_order_is_undone(run: Run):
    first = Audit(run, 6, 0)
    assert len(first.items) == 6 and {item.flipped for item in first.items} == {True, False} and first.next_place() == 0
    for item in first.items:  # the person always likes A, wherever it stands
        first.label(item, "second" if item.flipped else "first")
    again = Audit(run, 99, 5)  # an old sample stays what it was, and says so
    assert again.note == "6 pairs drawn before (seed 0) are used; --redo draws anew and sets labels aside"
    assert first.note == Audit(run, 6, 0).note == "" and Audit(run, 6, 1).note and Audit(run, 5, 0).note
    assert [item.id for item in again.items] == [item.id for item in first.items] and again.next_place() is None
    figures = again.figures()
    assert (figures["agreement"].value, figures["agreement"].n) == (1.0, 6)
    assert figures["person_longer"].value == 0.0
    again.label(again.items[1], "tie")  # undecided: no agreement, but a label
    figures = Audit(run, 6, 0).figures()
    assert (figures["agreement"].n, figures["kappa"].n) == (5, 6)
    again.label(again.items[1], "skip")  # whoever cannot tell has said nothing
    figures = Audit(run, 6, 0).figures()
    assert (figures["agreement"].n, figures["kappa"].n) == (5, 5)
    again.label(again.items[1], "second" if again.items[1].flipped else "first")
    again.label(again.items[0], "skip")  # a label can be taken back
    assert Audit(run, 6, 0).figures()["agreement"].n == 5


def test_a_line_that_was_cut_is_passed_over(run: Run):
    audit = Audit(run, 4, 0)
    audit.label(audit.items[0], "tie")
    path = run.root / "audit" / "labels.jsonl"
    path.write_text(path.read_text() + '{"id": "p')
    audit.label(audit.items[1], "first")
    assert Audit(run, 4, 0).labels == {audit.items[0].id: "tie", audit.items[1].id: "first"}


def test_other_verdicts_need_another_sample(run: Run):
    audit = Audit(run, 4, 0)
    audit.label(audit.items[0], "tie")
    run.set_aside("feedback")
    tiny.finished(run, "feedback", lambda path: (path / "verdicts.jsonl").write_bytes(
        (run.root / "feedback.old" / "verdicts.jsonl").read_bytes().replace(b"answer A", b"Answer A")))  # fmt: skip
    with pytest.raises(UserError, match="drawn from other verdicts; draw again with --redo"):
        Audit(run, 4, 0)
    assert Audit(run, 4, 0, redo=True).labels == {}
    assert (run.root / "audit" / "labels.old.jsonl").is_file()


def test_all_pairs_there_are_is_what_was_asked_for(run: Run):
    assert len(Audit(run, 50, 0).items) == 8 and Audit(run, 50, 0).note == "" == Audit(run, 8, 0).note


@pytest.mark.parametrize("text", ["{}", "[]", '{"feedback": 1}', '{"feedback": "IDENTITY", "seed": 0, "ids": ["p99"]}'])
def test_a_sample_that_is_none_is_one_line(run: Run, text: str, capsys: pytest.CaptureFixture[str]):
    Audit(run, 4, 0)
    identity = (run.manifest("feedback") or {})["identity"]
    (run.root / "audit" / "sample.json").write_text(text.replace("IDENTITY", identity))
    words = ["audit", "--run", "a", "--runs-dir", str(run.root.parent), "--report"]
    assert main.main(words) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("sample.json: not a sample of these verdicts; draw again with --redo")
    )
    assert main.main([*words, "--redo"]) == 0


def test_a_kept_sample_is_told_by_the_command(run: Run, capsys: pytest.CaptureFixture[str]):
    words = ["audit", "--run", "a", "--runs-dir", str(run.root.parent), "--report"]
    assert main.main([*words, "--count", "2"]) == 0 and "drawn before" not in capsys.readouterr().out
    assert main.main([*words, "--count", "4", "--seed", "5"]) == 0
    assert "2 pairs drawn before (seed 0) are used; --redo draws anew" in capsys.readouterr().out
    assert main.main([*words, "--count", "4", "--seed", "5", "--redo"]) == 0
    assert "4 pairs drawn, 0 labelled" in (output := capsys.readouterr().out) and "before" not in output


def test_the_command(run: Run, capsys: pytest.CaptureFixture[str]):
    words = ["audit", "--run", "a", "--runs-dir", str(run.root.parent)]
    assert main.main([*words, "--report", "--count", "2"]) == 0
    assert "2 pairs drawn, 0 labelled" in capsys.readouterr().out
    assert main.main([*words, "--count", "0"]) == 2
    assert main.main(["audit", "--run", "b", "--runs-dir", str(run.root.parent)]) == 2
    assert "does not exist yet" in capsys.readouterr().err
