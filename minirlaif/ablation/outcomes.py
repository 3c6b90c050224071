"""The items of a figure, read from an arm's files and compared with the truth. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from minirlaif.ablation.arms import ANSWERS, JUDGE, MAIN, REWARD, SEGMENTS, Measure
from minirlaif.ablation.claims import Items
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.run import Run
from minirlaif.stats import exact_match

Truth = Mapping[str, Mapping[str, Any]]  # rows of truth.jsonl by id


def read(measure: Measure, run: Run, seed: int) -> Items:
    """The items of one figure. Test clips are the same for every seed and keep their names; those of prompts get the seed's."""
    if measure.counts == ANSWERS:
        folder = run.dir("evaluate" if measure.arm == MAIN else "exam")
        return dict(_answers(folder / "answers.jsonl", measure.column))
    prompts = {row["id"] for row in read_jsonl(run.dir("world") / "prompts.jsonl")}
    truth = {row["id"]: row for row in read_jsonl(run.dir("world") / "truth.jsonl") if row["id"] in prompts}
    if measure.counts == JUDGE:
        items = _judged(run.dir("feedback") / "verdicts.jsonl", truth, measure.column)
    elif measure.counts == REWARD:
        items = _scored(run.dir("reward") / "held_out.jsonl", truth)
    else:
        assert measure.counts == SEGMENTS
        items = _described(run.dir("feedback") / "contexts.jsonl", truth)
    return {key: (f"{seed}/{clip}", value) for key, (clip, value) in items}


def remarks(measure: Measure, run: Run) -> dict[str, float]:
    """Further shares and counts of one seed that explain a figure, by name."""
    if measure.counts == JUDGE:
        rows = [row for row in read_jsonl(run.dir("feedback") / "verdicts.jsonl") if row["answer_a"] != row["answer_b"]]
        verdicts = [(row[measure.column] if measure.column else row) for row in rows]
        agree = fmean(v["orders"][0] == v["orders"][1] for v in verdicts) if verdicts else 0.0
        decided = fmean(v["choice"] in ("A", "B") for v in verdicts) if verdicts else 0.0
        right = [value for _, value in read(measure, run, 0).values() if value != 0.5]
        return {"decided": decided, "right of the decided": fmean(right) if right else 0.0, "both orders agree": agree}
    if measure.counts == REWARD:
        return {"agrees with the judge": _metrics(run, "reward")["accuracy"]}
    if measure.counts == ANSWERS and measure.column in ("policy", "rlaif"):
        metrics = _metrics(run, run.producer("rlaif"))
        return {"KL at the end, nats": metrics["kl"], "kept iteration": metrics["chosen_iteration"]}
    return {}


def _answers(path: Path, column: str) -> Iterator[tuple[str, tuple[str, float]]]:
    for row in read_jsonl(path):
        if row["truth"]:
            yield row["id"], (_clip(row["video"]), float(exact_match(row[column], row["truth"])))


def _judged(path: Path, truth: Truth, column: str) -> Iterator[tuple[str, tuple[str, float]]]:
    """Pairs of which exactly one answer is true: 1 if the judge chose it, 0 if the other one, one half if it chose none."""
    for row in read_jsonl(path):
        true = truth[row["id"].split("#")[0]]["answer"]
        a, b = exact_match(row["answer_a"], true), exact_match(row["answer_b"], true)
        if a != b:
            choice = (row[column] if column else row)["choice"]
            value = float((choice == "A") == a) if choice in ("A", "B") else 0.5
            yield f"{row['id']}|{row['answer_a']}|{row['answer_b']}", (_clip(row["video"]), value)


def _scored(path: Path, truth: Truth) -> Iterator[tuple[str, tuple[str, float]]]:
    """Held-out preferences of which exactly one answer is true: 1 if the reward model scores it higher, 0 also for a tie."""
    for row in read_jsonl(path):
        known = truth[row["id"].split("#")[0]]
        chosen, rejected = exact_match(row["chosen"], known["answer"]), exact_match(row["rejected"], known["answer"])
        if chosen != rejected:
            true, false = ("chosen", "rejected") if chosen else ("rejected", "chosen")
            right = row[f"score_{true}"] > row[f"score_{false}"]
            yield f"{row['id']}|{row['chosen']}|{row['rejected']}", (_clip(known["video"]), float(right))


def _described(path: Path, truth: Truth) -> Iterator[tuple[str, tuple[str, float]]]:
    """Events of a clip: 1 if the segment in their place is described in the true words."""
    descriptions = {_clip(row["video"]): row["segments"] for row in read_jsonl(path)}
    for clip, events in {_clip(known["video"]): known["segments"] for known in truth.values()}.items():
        if clip in descriptions:
            for place, event in enumerate(events):
                right = place < len(descriptions[clip]) and exact_match(descriptions[clip][place], event)
                yield f"{clip}#{place}", (clip, float(right))


def _clip(video: str) -> str:
    return Path(video).stem


def _metrics(run: Run, stage: str) -> dict[str, Any]:
    metrics: dict[str, Any] = (run.manifest(stage) or {"metrics": {}})["metrics"]
    return metrics
