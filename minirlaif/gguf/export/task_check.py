"""Accuracy of exported files: the runtime answers the questions of `evaluate`. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minirlaif.inference.engine import ChatEngine, SamplingParams
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.run import Run
from minirlaif.stats import exact_match
from minirlaif.video.frame_sampling import BLANK

# Largest allowed difference of a type's accuracy to that of the model in transformers, as a share of the questions.
BOUNDS = {"f32": 0.005, "f16": 0.005, "bf16": 0.005, "q8_0": 0.01, "q6_k": 0.02, "q5_k_m": 0.03, "q4_k_m": 0.05}


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question of `evaluate`. truth: None where it is unknown; answer: the model's answer in transformers."""

    video: str
    question: str
    truth: str | None
    answer: str


@dataclass(frozen=True)
class Score:
    """Of one file: shares of correct answers (None without truth) and of answers equal to those of the model in transformers."""

    evaluated_questions: int
    accuracy: float | None
    agreement: float


def evaluated_questions(run: Run, most: int, model: str = "rlaif") -> list[AnsweredQuestion]:
    """The first `most` questions of a finished `evaluate`, with the answers of one of its models; none when it has not run."""
    path = run.dir("evaluate") / "answers.jsonl"
    if run.manifest("evaluate") is None:
        return []
    rows = read_jsonl(path)[:most]
    folder = os.path.abspath(path.parent)
    return [AnsweredQuestion(os.path.normpath(Path(folder, r["video"])), r["question"], r["truth"], r[model]) for r in rows]


def answers(engine: ChatEngine, rows: Sequence[AnsweredQuestion], max_new_tokens: int, blank: bool = False) -> Iterator[str]:
    """Greedy answers, one by one. blank: with dark grey frames instead."""
    options = SamplingParams(max_new_tokens=max_new_tokens)
    for row in rows:
        clip = engine.load_clip(row.video)
        if blank:
            clip = replace(clip, pixels_FHW3=np.full_like(clip.pixels_FHW3, BLANK), key=clip.key + ":blank")
        yield "".join(engine.stream(clip, (), row.question, options)).strip()


def score(rows: Sequence[AnsweredQuestion], texts: Sequence[str]) -> Score:
    """Compare answers with the truth and with those of the model in transformers."""
    known = [(row.truth, text) for row, text in zip(rows, texts, strict=True) if row.truth]
    right = sum(exact_match(text, truth) for truth, text in known) / len(known) if known else None
    same = sum(row.answer == text for row, text in zip(rows, texts, strict=True)) / len(rows)
    return Score(len(rows), right, same)


def faults(kind: str, measured: Score, expected: float | None) -> list[str]:
    """A message when the difference of a type's accuracy to `expected` exceeds BOUNDS."""
    if measured.accuracy is None or expected is None or kind not in BOUNDS:
        return []
    gap = abs(measured.accuracy - expected)
    if gap <= BOUNDS[kind] + 1e-9:
        return []
    allowed = f"allowed is {100 * BOUNDS[kind]:g}"
    return [f"{kind}: its accuracy {measured.accuracy:.3f} is {100 * gap:.1f} points from {expected:.3f}, {allowed}"]
