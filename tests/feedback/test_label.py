"""Labelling of pairs: which one is shown as a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from minirlaif import config
from minirlaif.feedback import label as labels
from minirlaif.runs.run import Run
from minirlaif.types import Sample, Turn, Verdict


def test_the_sample_is_a_decided_pair(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Where the chunk has one; else its first."""
    rows = [Sample(f"r{number}", f"{number}.mp4", (Turn(f"q{number}"),)) for number in range(2)]
    backbone = SimpleNamespace(renderer=SimpleNamespace(decode=str))
    section = config.FeedbackSection(readout="likelihood")
    session: Any = SimpleNamespace(backbone=backbone, video_input=lambda video: None, encode_prompt=lambda *words: None)
    monkeypatch.setattr(
        labels, "sample", lambda *words: [[SimpleNamespace(ids=(n,), stopped=True) for n in (1, 2)] for _ in rows]
    )
    monkeypatch.setattr(labels, "candidate_scores", lambda *words: [{} for _ in rows])

    def shown(*choices: str) -> dict:
        verdicts = [Verdict(f"r{number}#0", choice, 1.0, (choice, choice)) for number, choice in enumerate(choices)]
        monkeypatch.setattr(labels, "judge", lambda session, pairs, *words: verdicts[: len(pairs)])
        contexts = {"0.mp4": "", "1.mp4": ""}
        drawn = labels.draw_candidates(session, section, rows, contexts, 0, 0)
        lines = labels.label(session, section, Run(tmp_path), rows, drawn, contexts, 0, 0)
        return next(record for name, record in lines if name == "samples.jsonl")

    assert shown("tie", "B")["question"] == "q1" and shown("tie", "B")["choice"] == "B"
    assert shown("A", "B")["question"] == shown("tie", "tie")["question"] == "q0"
