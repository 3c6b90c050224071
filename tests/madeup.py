"""A made-up ablation: run folders whose files say how many of 40 clips each arm gets right, so that every figure is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shrunk
import tiny

from minirlaif import config
from minirlaif.ablation.arms import MAIN, Arm, arms
from minirlaif.runs.run import Run

TRUE, FALSE = "a red circle moves left.", "a blue cross stays still."
CLIPS = 40
# How many of 40 clips are right; no two figures of one kind are alike, so that a figure read from another place is seen.
JUDGE = {
    "": {MAIN: 32, "segments-1": 12, "segments-1-whole": 33, "segments-2": 31, "segments-fine": 20, "letter": 16},
    "without_context": {MAIN: 22},
}
REWARD = {MAIN: 34, "reward-bare": 14, "pairs-250": 18, "pairs-1000": 28}
SEGMENTS = {MAIN: 10, "sft-mixed": 30}
ANSWERS: dict[str, dict[str, int]] = {
    MAIN: {"base": 36, "sft": 8, "rlaif": 26},
    "bare": {"policy": 13},
    "reward-bare": {"policy": 23},
    "pairs-250": {"policy": 5},
    "pairs-1000": {"policy": 15},
    "short": {"policy": 25},
    "kl-0.01": {"policy": 7},
    "kl-0.1": {"policy": 24},
    "kl-0.3": {"policy": 35},
    "best": {"best_2": 9, "best_4": 14, "best_8": 19},
    "sft-mixed": {"sft": 28},
}


def right(clip: int, count: int, shift: int = 0) -> bool:
    """Whether a clip is among those that are right; `shift` moves them on, so that seeds differ."""
    return (clip - shift) % CLIPS < count


def make(runs_dir: Path, seeds: Sequence[int] = (0,), shift: int = 0) -> dict[int, dict[str, Run]]:
    """The folders of the main runs and of all arms of configs/tiny.yaml, under the names that `ablate` gives them."""
    known = arms(config.load(shrunk.TINY))
    found: dict[int, dict[str, Run]] = {}
    for seed in seeds:
        found[seed] = {MAIN: _main(runs_dir / f"seed{seed}", shift * seed)}
        for arm in known:
            found[seed][arm.name] = _arm(runs_dir / "ablation" / f"seed{seed}" / arm.name, arm, found[seed][MAIN], shift * seed)
    return found


def _main(root: Path, shift: int) -> Run:
    run = Run(root)
    facts = [{"id": f"p{n}-0", "video": f"clips/p{n}.mp4", "answer": TRUE, "segments": [TRUE]} for n in range(CLIPS)]

    def world(path: Path) -> None:
        tiny.write_lines(path / "truth.jsonl", facts)
        tiny.write_lines(path / "prompts.jsonl", [{"id": fact["id"]} for fact in facts])

    tiny.finished(run, "world", world)
    tiny.finished(run, "sft")
    _finish(run, MAIN, ("feedback", "reward", "ppo"), shift)
    tiny.finished(run, "evaluate", lambda path: tiny.write_lines(path / "answers.jsonl", _answers(MAIN, shift)))
    return run


def _arm(root: Path, arm: Arm, main: Run, shift: int) -> Run:
    run = Run(root)
    run.take_over(main, arm.shares)
    _finish(run, arm.name, arm.makes, shift)
    return run


def _finish(run: Run, arm: str, stages: Sequence[str], shift: int) -> None:
    def feedback(path: Path) -> None:
        tiny.write_lines(path / "verdicts.jsonl", _verdicts(arm, shift))
        tiny.write_lines(path / "contexts.jsonl", _told(arm, shift))

    fill = {
        "sft": lambda path: None,
        "feedback": feedback,
        "reward": lambda path: tiny.write_lines(path / "held_out.jsonl", _scored(arm, shift)),
        "ppo": lambda path: None,
        "exam": lambda path: tiny.write_lines(path / "answers.jsonl", _answers(arm, shift)),
    }
    for stage in stages:
        tiny.finished(run, stage, fill[stage], accuracy=0.75, kl=1.5, chosen_iteration=5)


def _answers(arm: str, shift: int) -> list[dict[str, Any]]:
    return [
        {"id": f"t{n}-0", "video": f"../world/clips/t{n}.mp4", "truth": TRUE}
        | {column: TRUE if right(n, count, shift) else FALSE for column, count in ANSWERS[arm].items()}
        for n in range(CLIPS)
    ]


def _verdicts(arm: str, shift: int) -> list[dict[str, Any]]:
    def said(column: str, n: int) -> Mapping[str, Any]:
        choice = "A" if right(n, JUDGE[column].get(arm, 1), shift) else "B"
        return {"choice": choice, "orders": [choice, choice]}

    asked = {"answer_a": TRUE, "answer_b": FALSE}
    return [
        {"id": f"p{n}-0#0", "video": f"../world/clips/p{n}.mp4", **asked, **said("", n)}
        | {"without_context": said("without_context", n)}
        for n in range(CLIPS)
    ]


def _scored(arm: str, shift: int) -> list[dict[str, Any]]:
    pairs = {"chosen": TRUE, "rejected": FALSE, "score_rejected": 1.0}
    return [
        {"id": f"p{n}-0#0", **pairs, "score_chosen": 2.0 if right(n, REWARD.get(arm, 1), shift) else 0.0} for n in range(CLIPS)
    ]


def _told(arm: str, shift: int) -> list[dict[str, Any]]:
    return [
        {"video": f"../world/clips/p{n}.mp4", "segments": [TRUE if right(n, SEGMENTS.get(arm, 1), shift) else FALSE]}
        for n in range(CLIPS)
    ]
