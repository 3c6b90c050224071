"""Stage `feedback` with a scripted sampler and a scripted judge: what the judge is shown, and what its verdicts become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.feedback import counts, readout
from minirlaif.feedback import label as labels
from minirlaif.models import generation
from minirlaif.models.generation import Completion
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.runs.run import Run
from minirlaif.session import VideoInput
from minirlaif.stages import feedback
from minirlaif.types import Comparison, Sample, Turn, Verdict
from tests.fixtures import tiny

TRUE, FALSE, DESCRIBED = "a red circle moves left.", "a blue cross stays still.", "a green square moves up."
CONTEXT = f"0s: {DESCRIBED}\n"
PROMPTS = [Sample(f"q{number:02d}", f"/clips/{number % 2}", (Turn("what happens first?"),)) for number in range(40)]


class Bench(tiny.TinySession):
    """Every clip is one segment."""

    def segment_inputs(self, video: str) -> list[tuple[tuple[float, float], VideoInput]]:
        return [((0.0, 2.0), self.views[video])]


def label(patch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Run the stage. With context the judge finds TRUE better, without it FALSE. Returns the stage's folder, and by read-out
    and context (or "") the pairs that were judged with what the judge saw of them; those of verdicts that stand on the scores of
    their answers as "scores with" and "scores without"."""
    base = tiny.backbone()
    cfg = tiny.settings("feedback.readout=likelihood", "feedback.batch_size=20", *overrides)
    session = Bench(base, {f"/clips/{number}": tiny.view(base, 2, number) for number in range(2)}, cfg)
    asked: dict[str, list[dict[str, Any]]] = {}

    def sample(_: Any, prompts: Sequence[EncodedPrompt], answers: int = 1, *rest: Any, **named: Any) -> list[list[Completion]]:
        texts = [DESCRIBED] if answers == 1 else [TRUE, FALSE]
        return [[Completion(base.renderer.answer(text), True, ()) for text in texts] for _ in prompts]

    def judge(_: Any, pairs: Sequence[Comparison], views: Any, readout: str, *rest: Any) -> list[Verdict]:
        verdicts = []
        for pair in pairs:
            better = TRUE if pair.context else FALSE
            choice = "A" if pair.answer_a == better else "B"
            verdicts.append(Verdict(pair.id, choice, 0.5, (choice, choice)))
            seen = {"id": pair.id, "context": pair.context, "frames": views[pair.video] is not None, "a": pair.answer_a}
            asked.setdefault(f"{readout} {'with' if pair.context else 'without'}", []).append(seen)
        return verdicts

    def scores(_: Any, section: Any, rows: Sequence[Sample], drawn: Any, contexts: Any) -> list[dict[str, float]]:
        better, name = (TRUE, "with") if section.context else (FALSE, "without")
        asked.setdefault(f"scores {name}", []).extend({"id": row.id, "context": contexts[row.video]} for row in rows)
        return [{text: 0.5 * (text == better) for text in (TRUE, FALSE)} for _ in rows]

    tiny.use_session(patch, feedback, session, prompts=PROMPTS)
    patch.setattr(labels, "candidate_scores", scores)
    patch.setattr(labels, "sample", sample)
    patch.setattr(generation, "sample", sample)  # the descriptions
    patch.setattr(labels, "judge", judge)
    run = Run(folder / "run")
    tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
    feedback.run(cfg, run)
    return run.dir("feedback"), asked


def test_the_judge_reads_the_context_and_its_choice_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, asked = label(monkeypatch, tmp_path)
    assert {name: len(seen) for name, seen in asked.items()} == {
        "scores with": 40,
        "likelihood without": 40,  # measured only
        "letter with": 4,  # pairs 0 and 16 of each chunk of 20
    }
    assert all(seen["context"] == CONTEXT for name in ("scores with", "letter with") for seen in asked[name])
    assert all(seen["frames"] for name in ("likelihood without", "letter with") for seen in asked[name])
    rows = tiny.read_lines(folder / "preferences.jsonl")
    assert sorted(row["id"] for row in rows) == [f"q{number:02d}#0" for number in range(40)]
    for row in rows:
        assert (row["chosen"], row["rejected"], row["context"]) == (TRUE, FALSE, CONTEXT)
        assert (row["prompt"], row["margin"]) == ("what happens first?", 0.5)
    # Which answer stands first is drawn: of 40 fair draws, fewer than 10 of a kind come up in 1 of 1000 seeds.
    verdicts = tiny.read_lines(folder / "verdicts.jsonl")
    first = sum(row["answer_a"] == TRUE for row in verdicts)
    assert 10 <= first <= 30
    assert {row["choice"] for row in verdicts} == {"A", "B"}
    assert all(row["choice"] != row["without_context"]["choice"] for row in verdicts)
    assert sum("letter" in row for row in verdicts) == 4


def test_context_and_frames_can_be_kept_from_the_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, asked = label(monkeypatch, tmp_path, "feedback.context=false", "feedback.judge_frames=false")
    assert set(asked) == {"scores without", "likelihood without", "letter without"}
    assert all(seen["frames"] for seen in asked["likelihood without"])  # the control
    assert all(row["chosen"] == FALSE for row in tiny.read_lines(folder / "preferences.jsonl"))


def test_a_limit_labels_the_first_prompts_as_they_were_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Chunks are of 20 prompts, sorted by clip: the odd prompts come last, so the limit has to count in the order of the file."""
    folder, _ = label(monkeypatch, tmp_path, "feedback.limit=11")
    assert {row["id"] for row in tiny.read_lines(folder / "answers.jsonl")} == {f"q{number:02d}" for number in range(11)}
    assert len(tiny.read_lines(folder / "preferences.jsonl")) == 11


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [("A", "one", "two"), ("B", "two", "one")])
def test_a_verdict_becomes_a_preference(choice: str, chosen: str, rejected: str) -> None:
    pair = Comparison("p#0", "clip", "what?", "one", "two", "0s: x\n", {"type": "count"})
    assert labels.preference(pair, Verdict("p#0", choice, 0.123456, (choice, choice))) == {
        "id": "p#0",
        "videos": ["clip"],
        "prompt": "what?",
        "chosen": chosen,
        "rejected": rejected,
        "context": "0s: x\n",
        "margin": 0.12346,
        "type": "count",
    }


def candidates(*texts: str) -> list[labels.Candidate]:
    return [labels.Candidate(text, (1,), stopped=True) for text in texts]


def test_pairs_are_of_different_answers_and_their_order_is_drawn_for_each() -> None:
    row = Sample("q", "clip", (Turn("what?"),), tags={"type": "count"})
    pairs = labels.make_pairs(row, candidates("x", "y", "x", " ", "z"), "0s: x", 3, seed=0, scores={})
    assert [pair.id for pair in pairs] == ["q#0", "q#1", "q#2"]
    assert [{pair.answer_a, pair.answer_b} for pair in pairs] == [{"x", "y"}, {"x", "z"}, {"y", "z"}]
    assert {(p.video, p.question, p.context, p.tags["type"]) for p in pairs} == {("clip", "what?", "0s: x", "count")}
    orders = []
    for seed in range(40):
        made = labels.make_pairs(row, candidates("x", "y", "z"), "", 3, seed, {})
        assert made == labels.make_pairs(row, candidates("x", "y", "z"), "", 3, seed, {})
        orders.append("".join(p.answer_a for p in made))
    assert len(set(orders)) == 8  # each pair of a prompt is drawn for itself


def test_equal_answers_are_kept_as_one_pair_of_equals() -> None:
    row = Sample("q", "clip", (Turn("what?"),))
    (pair,) = labels.make_pairs(row, candidates("x", "x"), "", 1, seed=0, scores={})
    assert (pair.answer_a, pair.answer_b) == ("x", "x")


def test_ranked_answers_are_paired_from_both_ends() -> None:
    """Scores by hand: gaps y-z 5, y-x 4, w-z 3, w-x 2, y-w 2, x-z 1."""
    row, scores = Sample("q", "clip", (Turn("what?"),)), {"x": 2.0, "y": 6.0, "z": 1.0, "w": 4.0}
    pairs = labels.make_pairs(row, candidates("x", "z", "y", "w"), "", 3, 0, scores)
    assert [{pair.answer_a, pair.answer_b} for pair in pairs] == [{"y", "z"}, {"y", "x"}, {"w", "z"}]


def test_an_answer_cut_at_the_limit_is_in_no_pair() -> None:
    row, cut = Sample("q", "clip", (Turn("what?"),)), labels.Candidate("cut off in the", (1, 2, 3), stopped=False)
    (pair,) = labels.make_pairs(row, [cut, *candidates("x", "y")], "", 3, seed=0, scores={})
    assert {pair.answer_a, pair.answer_b} == {"x", "y"}
    (alone,) = labels.make_pairs(row, [cut, *candidates("x")], "", 3, seed=0, scores={})
    assert alone.answer_a == alone.answer_b == "x" and labels.make_pairs(row, [cut, cut], "", 3, seed=0, scores={}) == []


NONE = {"disagree": 0, "tie": 0, "invalid": 0, "same_answers": 0, "sampled_answers": 8, "cut_answers": 0}


@pytest.mark.parametrize(
    ("became", "settings", "message", "remedy"),
    [
        (
            {"disagree": 9, "tie": 3, "same_answers": 2},
            [],
            "disagree 9, tie 1, invalid 0, alike 2",
            "feedback.readout=likelihood",
        ),
        ({"invalid": 4}, [], "invalid 4", "feedback.readout=likelihood"),
        ({"disagree": 4}, ["feedback.readout=likelihood"], "disagree 4", "feedback.disagreement=average"),
        ({"tie": 7, "same_answers": 3}, ["feedback.margin=0.2"], "tie 4", "feedback.margin=0.02"),
        ({"tie": 7, "same_answers": 4}, ["feedback.margin=0.2", "feedback.answers=3"], "tie 3", "feedback.answers=6"),
        ({"tie": 7}, [], "tie 7", "feedback.answers=4"),
        (
            {"tie": 7, "cut_answers": 7},
            ["feedback.max_new_tokens=6"],
            "7 of 8 answers were cut at the limit of tokens",
            "feedback.max_new_tokens=24",
        ),
    ],
)
def test_no_decided_pair_names_counts_and_the_remedy(became, settings, message: str, remedy: str):
    error = counts.undecided(NONE | became, config.load(None, settings).feedback)
    assert message in str(error) and error.again == (remedy,)


@pytest.mark.parametrize(
    ("decided", "line"), [(0, ""), (4, "decided 4 of 10 pairs (disagree 3, tie 0, invalid 0, alike 3)"), (5, "")]
)
def test_a_judge_that_decides_few_pairs_is_said_with_the_setting_that_helps(decided: int, line: str, capsys) -> None:
    known = NONE | {"decided": decided, "pairs": 7, "same_answers": 3, "tie": 3, "disagree": 7 - decided}
    counts.warn_of_undecided(known, config.FeedbackSection())
    output = capsys.readouterr().out
    assert line in output and bool(output) == bool(line)
    assert output.endswith("score each answer by itself: feedback.readout=likelihood\n") or not line


def test_undecided_pairs_are_said_only_where_a_stage_learns_from_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    known = NONE | {"decided": 1, "pairs": 9, "disagree": 8, "one_segment_clips": 0, "described_clips": 3}
    known |= {"descriptions": 9, "cut_descriptions": 0}
    counts.warn(known, config.FeedbackSection(), text_judge=False, paired=False)
    assert capsys.readouterr().out == ""
    counts.warn(known, config.FeedbackSection(), text_judge=False, paired=True)
    assert "feedback: the judge decided 1 of 9 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("better", [TRUE, FALSE])
def test_a_read_out_that_is_not_named_is_tried_first(better: str, monkeypatch, tmp_path: Path, capsys) -> None:
    """Letters that prefer the answer about the clip are used; letters that prefer the other one are not."""

    def probed(session: Any, section: Any, rows: Any, contexts: Any, answerer: str, judge_role: str) -> readout.ReadoutProbe:
        assert contexts == {"/clips/0": CONTEXT, "/clips/1": CONTEXT} and (answerer, judge_role) == ("sft", "sft")
        assert len(rows) == readout.PROBE_PAIRS and all(row.video != other for row, other in rows)
        return readout.ReadoutProbe(20, float(better == TRUE), 1.0, 20)

    monkeypatch.setattr(feedback, "probe", probed)
    folder, asked = label(monkeypatch, tmp_path, "feedback.readout=auto")
    letters = better == TRUE
    assert ("letter with" in asked and len(asked["letter with"]) == 40) if letters else len(asked["scores with"]) == 40
    run = Run(tmp_path / "run")
    metrics = run.metrics("feedback")
    assert next(iter(metrics)) == "decided"  # what `status` shows
    assert metrics["readout"] == ("letter" if letters else "likelihood") and metrics["readout_probe"]["pairs"] == 20
    assert "feedback: read-out tried on 20 pairs of an answer about the clip and one about another: " in capsys.readouterr().out
    section = config.load(None, ["feedback.readout=auto"]).feedback
    assert readout.known_readout(section, run).readout == metrics["readout"]
    assert len(tiny.read_lines(folder / "contexts.jsonl")) == 2  # those that were described for it are not described again


def test_clips_with_one_segment_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"segments": ["a"], "cut": 0}, {"segments": ["a", "b"], "cut": 1}, {"segments": ["c"], "cut": 0}]
    tiny.write_lines(tmp_path / "contexts.jsonl", rows)
    known = counts.count_cut(tmp_path)
    assert (known["described_clips"], known["one_segment_clips"], known["descriptions"]) == (3, 2, 4)
    counts.warn_of_cut(known, config.FeedbackSection())
    assert "feedback: 2 of 3 clips have one segment" in capsys.readouterr().out
    counts.warn_of_cut(known, config.FeedbackSection(context=False))  # nobody reads the descriptions
    counts.warn_of_cut(known | {"one_segment_clips": 0}, config.FeedbackSection())
    assert "one segment" not in capsys.readouterr().out


def test_some_pairs_of_many_are_judged_without_context_spread_over_all_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """40 prompts in chunks of four; for a sample of 13 pairs every third chunk is judged without context, the first, fourth, …"""
    monkeypatch.setattr(feedback, "CONTROL_PAIRS", 13)
    folder, asked = label(monkeypatch, tmp_path, "feedback.batch_size=4")
    verdicts = tiny.read_lines(folder / "verdicts.jsonl")
    control = [number // 4 for number, row in enumerate(verdicts) if "without_context" in row]
    assert control == [chunk for chunk in (0, 3, 6, 9) for _ in range(4)] and len(asked["likelihood without"]) == 16
    assert len(verdicts) == 40


def test_a_paid_judge_is_asked_without_context_about_some_pairs_only() -> None:
    """3,000 prompts in chunks of 16, two pairs each, in both orders: every sixth of 188 chunks once more, 32 chunks."""
    section = config.FeedbackSection(pairs_per_prompt=2, batch_size=16)
    assert feedback._comparisons(section, 3000, 8)[0] == 2 * 2 * 3000 + 2 * 2 * 32 * 16
    assert feedback._comparisons(section, 10, 8)[0] == 4 * 2 * 10
