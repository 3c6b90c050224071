"""Labelling of pairs: which one is shown as a sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minirlaif import config
from minirlaif.feedback import label as labels
from minirlaif.feedback.judge import answer_margins
from minirlaif.runs.run import Run
from minirlaif.types import Sample, Turn, Verdict
from tests.fixtures import tiny


def test_the_sample_is_a_decided_pair(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Where the chunk has one; else its first."""
    rows = [Sample(f"r{number}", f"{number}.mp4", (Turn(f"q{number}"),)) for number in range(2)]
    backbone = SimpleNamespace(renderer=SimpleNamespace(decode=str))
    section = config.FeedbackSection(readout="likelihood")
    session: Any = SimpleNamespace(backbone=backbone, video_input=lambda video: None, encode_prompt=lambda *words: None)
    monkeypatch.setattr(
        labels, "sample", lambda *words: [[SimpleNamespace(ids=(n,), stopped=True) for n in (1, 2)] for _ in rows]
    )
    monkeypatch.setattr(labels, "candidate_scores", lambda *words: [{"1": 0.0, "2": 0.0, "(1,)": 0.0, "(2,)": 0.0} for _ in rows])

    def shown(*choices: str) -> dict:
        judged = [Verdict(f"r{number}#0", choice, 1.0, (choice, choice)) for number, choice in enumerate(choices)]
        monkeypatch.setattr(labels, "judge", lambda session, pairs, *words: judged[: len(pairs)])
        monkeypatch.setattr(labels, "verdicts", lambda pairs, *words: judged[: len(pairs)])
        contexts = {"0.mp4": "", "1.mp4": ""}
        drawn = labels.draw_candidates(session, section, rows, contexts, 0, 0)
        lines = labels.label(session, section, Run(tmp_path), rows, drawn, contexts, 0, 0)
        return next(record for name, record in lines if name == "samples.jsonl")

    assert shown("tie", "B")["question"] == "q1" and shown("tie", "B")["choice"] == "B"
    assert shown("A", "B")["question"] == shown("tie", "tie")["question"] == "q0"


def test_answers_are_scored_and_paired_by_the_ids_that_were_sampled() -> None:
    """An answer whose ids are not those of its text: the score is that of the ids, against transformers' own forward pass."""
    session = tiny.TinySession(tiny.backbone(), {})
    render = session.backbone.renderer
    whole = render.answer("a red circle moves left.")
    other = render.answer("a blue cross stays still.")
    odd = (whole[0], *whole)  # no text has these
    section = config.FeedbackSection(readout="likelihood", judge_frames=False)
    rows = [Sample("r0", "0.mp4", (Turn("what happens first?"),))]
    candidates = [labels.Candidate("odd one", odd, True), labels.Candidate("other", other, True)]
    session.adapters.add("base-like", 0)
    with session.adapters.inference_as("base-like"):
        (scores,) = labels.candidate_scores(session, section, rows, [candidates], {"0.mp4": "0s: it falls.\n"})
        prompt = session.prompt(None, "what happens first?", "0s: it falls.\n")
        for text, ids in (("odd one", odd), ("other", other)):
            raw = session.backbone.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].float()
            logits = raw.masked_fill(session.backbone.disallowed_V, -float("inf")).log_softmax(-1)
            each = [float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(ids)]
            assert scores[text] == pytest.approx(sum(each) / len(each), abs=1e-4)
        (pair,) = labels.make_pairs(rows[0], candidates, "0s: it falls.\n", 1, 0, scores)
        assert {pair.answer_a: pair.ids_a, pair.answer_b: pair.ids_b} == {"odd one": odd, "other": other}
        swapped = pair.swap()
        assert (swapped.ids_a, swapped.ids_b) == (pair.ids_b, pair.ids_a)
        (margin,) = answer_margins(session, [pair], {"0.mp4": None}, 4)
    assert margin == pytest.approx(scores[pair.answer_a] - scores[pair.answer_b], abs=1e-4)


def test_verdicts_stand_on_the_scores_of_the_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Worked out by hand: scores -1.0, -1.5 and -1.1 make a pair of the first two, 0.5 apart; a difference of 0.1 is a tie at
    a margin of 0.2. The judge reads neither pair again."""
    backbone = SimpleNamespace(renderer=SimpleNamespace(decode=str))
    session: Any = SimpleNamespace(backbone=backbone, video_input=lambda video: None)
    section = config.FeedbackSection(readout="likelihood", margin=0.2, judge_frames=False)
    rows = [Sample(f"r{number}", "0.mp4", (Turn("q"),)) for number in range(2)]
    drawn = [
        [labels.Candidate(text, (n,), True) for n, text in enumerate(texts)]
        for texts in (("one", "two", "three"), ("one", "two"))
    ]
    monkeypatch.setattr(
        labels, "candidate_scores", lambda *words: [{"one": -1.0, "two": -1.5, "three": -1.1}, {"one": -1.0, "two": -1.1}]
    )
    asked = []
    monkeypatch.setattr(labels, "judge", lambda session, pairs, views, readout, *words: asked.append(readout) or [])
    lines = labels.label(session, section, Run(tmp_path), rows, drawn, {"0.mp4": ""}, 0, 0, None, False)
    clear, close = [record for name, record in lines if name == "verdicts.jsonl"]
    chosen = {"A": clear["answer_a"], "B": clear["answer_b"]}[clear["choice"]]
    assert (chosen, {clear["answer_a"], clear["answer_b"]}, clear["margin"]) == ("one", {"one", "two"}, 0.5)
    assert (close["choice"], close["margin"]) == ("tie", pytest.approx(0.1))
    assert asked == ["letter"] and "without_context" not in clear
