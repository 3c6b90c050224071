"""What an arm's files say, item by item, against the truth. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from minirlaif.ablation.arms import ANSWERS, JUDGE, MAIN, REWARD, SEGMENTS, Entry
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.run import Run
from minirlaif.stats import exact_match

Found = dict[str, tuple[str, float]]  # item -> (clip, value)
Facts = Mapping[str, Mapping[str, Any]]  # rows of truth.jsonl by id


def read(entry: Entry, run: Run, seed: int) -> Found:
    """The items of one figure. Test clips are the same for every seed and keep their names; those of prompts get the seed's."""
    if entry.counts == ANSWERS:
        folder = run.dir("evaluate" if entry.arm == MAIN else "exam")
        return dict(_answers(folder / "answers.jsonl", entry.column))
    prompts = {row["id"] for row in read_jsonl(run.dir("world") / "prompts.jsonl")}
    facts = {row["id"]: row for row in read_jsonl(run.dir("world") / "truth.jsonl") if row["id"] in prompts}
    if entry.counts == JUDGE:
        found = _judged(run.dir("feedback") / "verdicts.jsonl", facts, entry.column)
    elif entry.counts == REWARD:
        found = _scored(run.dir("reward") / "held_out.jsonl", facts)
    else:
        assert entry.counts == SEGMENTS
        found = _described(run.dir("feedback") / "contexts.jsonl", facts)
    return {key: (f"{seed}/{clip}", value) for key, (clip, value) in found}


def remarks(entry: Entry, run: Run) -> dict[str, float]:
    """What else is worth knowing about a figure: shares and counts of one seed, by name."""
    if entry.counts == JUDGE:
        rows = [row for row in read_jsonl(run.dir("feedback") / "verdicts.jsonl") if row["answer_a"] != row["answer_b"]]
        said = [(row[entry.column] if entry.column else row) for row in rows]
        agree = fmean(v["orders"][0] == v["orders"][1] for v in said) if said else 0.0
        decided = fmean(v["choice"] in ("A", "B") for v in said) if said else 0.0
        right = [value for _, value in read(entry, run, 0).values() if value != 0.5]
        return {"decided": decided, "right of the decided": fmean(right) if right else 0.0, "both orders agree": agree}
    if entry.counts == REWARD:
        metrics = _metrics(run, "reward")
        return {"agrees with the judge": metrics["accuracy"]}
    if entry.counts == ANSWERS and entry.column in ("policy", "rlaif"):
        metrics = _metrics(run, run.producer("rlaif"))
        return {"KL at the end, nats": metrics["kl"], "kept iteration": metrics["chosen_iteration"]}
    return {}


def _answers(path: Path, column: str) -> Iterator[tuple[str, tuple[str, float]]]:
    for row in read_jsonl(path):
        if row["truth"]:
            yield row["id"], (_clip(row["video"]), float(exact_match(row[column], row["truth"])))


def _judged(path: Path, facts: Facts, column: str) -> Iterator[tuple[str, tuple[str, float]]]:
    """Pairs of which exactly one answer is true: 1 if the judge chose it, 0 if the other one, one half if it chose none."""
    for row in read_jsonl(path):
        truth = facts[row["id"].split("#")[0]]["answer"]
        a, b = exact_match(row["answer_a"], truth), exact_match(row["answer_b"], truth)
        if a != b:
            choice = (row[column] if column else row)["choice"]
            value = float((choice == "A") == a) if choice in ("A", "B") else 0.5
            yield f"{row['id']}|{row['answer_a']}|{row['answer_b']}", (_clip(row["video"]), value)


def _scored(path: Path, facts: Facts) -> Iterator[tuple[str, tuple[str, float]]]:
    """Held-out preferences of which exactly one answer is true: 1 if the reward model scores it higher, 0 also for a tie."""
    for row in read_jsonl(path):
        fact = facts[row["id"].split("#")[0]]
        chosen, rejected = exact_match(row["chosen"], fact["answer"]), exact_match(row["rejected"], fact["answer"])
        if chosen != rejected:
            true, false = ("chosen", "rejected") if chosen else ("rejected", "chosen")
            right = row[f"score_{true}"] > row[f"score_{false}"]
            yield f"{row['id']}|{row['chosen']}|{row['rejected']}", (_clip(fact["video"]), float(right))


def _described(path: Path, facts: Facts) -> Iterator[tuple[str, tuple[str, float]]]:
    """Events of a clip: 1 if the segment in their place is described in the true words."""
    told = {_clip(row["video"]): row["segments"] for row in read_jsonl(path)}
    for clip, events in {_clip(fact["video"]): fact["segments"] for fact in facts.values()}.items():
        if clip in told:
            for place, event in enumerate(events):
                right = place < len(told[clip]) and exact_match(told[clip][place], event)
                yield f"{clip}#{place}", (clip, float(right))


def _clip(video: str) -> str:
    return Path(video).stem


def _metrics(run: Run, stage: str) -> dict[str, Any]:
    metrics: dict[str, Any] = (run.manifest(stage) or {"metrics": {}})["metrics"]
    return metrics
