"""From an arm's files to the items of a figure, from items to intervals, and from intervals to a verdict on a claim. No torch.

Items are (clip, value from 0 to 1), by a key that is equal where two arms have the same item. Intervals of one seed resample
whole clips, those of all seeds the seeds and then clips. Equal names of clips in two seeds mean the same clip.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from minirlaif.ablation.arms import ANSWERS, JUDGE, MAIN, REWARD, SEGMENTS, Measure
from minirlaif.runs import gains
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.run import Run
from minirlaif.stages.registry import REPEATED, SAMPLING
from minirlaif.stats import exact_match, grouped, paired_bootstrap, two_level_bootstrap

Items = dict[str, tuple[str, float]]  # item -> (clip, value)
Truth = Mapping[str, Mapping[str, Any]]  # rows of truth.jsonl by id
LEAST_GAIN = 0.01  # a difference of less than a point does not count
FEW = 30  # with fewer items an interval is too unsure
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
MISSING = "not measured"  # an arm of the claim failed, so there are no figures
RULE = (
    "A claim is a difference that should be above zero. It holds when the whole 95 % interval over all seeds lies above zero"
    " and no seed has a difference below zero. Otherwise it does not hold when the whole interval lies below one point, so"
    f" that any advantage would be smaller than that. Everything else is undecided, as is a claim with fewer than {FEW} items."
    " Intervals resample the seeds, and then whole clips. With few seeds that is too narrow (with three, what the seeds differ by"
    " counts about a fifth too little), so Student's t over the seeds' means stands beside it."
)


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval, over n items."""

    mean: float
    low: float
    high: float
    n: int


def verdict(pooled: Figure, seeds: Mapping[int, Figure]) -> str:
    """HOLDS, FAILS or OPEN, by RULE."""
    if pooled.n < FEW:
        return OPEN
    if pooled.low > 0 and all(figure.mean >= 0 for figure in seeds.values()):
        return HOLDS
    return FAILS if pooled.high < LEAST_GAIN else OPEN


def figure(items: Items, resamples: int) -> Figure:
    """Mean and interval of the items. ValueError when there are none."""
    return Figure(*paired_bootstrap(grouped(items.values()), resamples, seed=0), len(items))


def over_seeds(seeds: Mapping[int, Items], resamples: int) -> Figure:
    """Mean and interval of the items of all seeds: seeds are drawn, then clips. ValueError when there are none."""
    clips = [grouped(items.values()) for items in seeds.values()]
    return Figure(*two_level_bootstrap(clips, resamples, seed=0), sum(map(len, seeds.values())))


def differences(better: Items, worse: Items) -> Items:
    """Value of the better arm minus that of the worse one, for the items that both have."""
    return {key: (clip, value - worse[key][1]) for key, (clip, value) in better.items() if key in worse}


def common(arms: Mapping[str, Items]) -> dict[str, Items]:
    """The same arms with only the items that all of them have."""
    kept = set.intersection(*(set(items) for items in arms.values())) if arms else set()
    return {name: {key: items[key] for key in items if key in kept} for name, items in arms.items()}


def read(measure: Measure, run: Run, seed: int) -> Items:
    """The items of one figure. Test clips are the same for every seed and keep their names; those of prompts get the seed's."""
    if measure.counts == ANSWERS:
        rows = read_jsonl(run.dir("evaluate" if measure.arm == MAIN else "exam") / "answers.jsonl")
        return {row["id"]: (_clip(row), float(exact_match(row[measure.column], row["truth"]))) for row in rows if row["truth"]}
    prompts = {row["id"] for row in read_jsonl(run.dir("world") / "prompts.jsonl")}
    truth = {row["id"]: row for row in read_jsonl(run.dir("world") / "truth.jsonl") if row["id"] in prompts}
    if measure.counts == JUDGE:
        items = _judged(run.dir("feedback") / "verdicts.jsonl", truth, measure.column)
    elif measure.counts == REWARD:
        items = _scored(run.dir("reward") / "held_out.jsonl", truth)
    else:
        assert measure.counts == SEGMENTS
        items = _described(run.dir("feedback") / "contexts.jsonl", truth)
    return {key: (f"{seed}/{clip}", value) for key, clip, value in items}


def remarks(measure: Measure, run: Run) -> dict[str, float]:
    """Further shares and counts of one seed that explain a figure, by name."""
    if measure.counts == JUDGE:
        rows = [row for row in read_jsonl(run.dir("feedback") / "verdicts.jsonl") if row["answer_a"] != row["answer_b"]]
        verdicts = [verdict for row in rows if (verdict := row.get(measure.column) if measure.column else row)]
        agree = fmean(v["orders"][0] == v["orders"][1] for v in verdicts) if verdicts else 0.0
        decided = fmean(v["choice"] in ("A", "B") for v in verdicts) if verdicts else 0.0
        right = [value for _, value in read(measure, run, 0).values() if value != 0.5]
        return {"decided": decided, "right of the decided": fmean(right) if right else 0.0, "both orders agree": agree}
    if measure.counts == REWARD:
        return {"agrees with the judge": (run.manifest("reward") or {})["metrics"]["accuracy"]}
    if measure.counts == ANSWERS and measure.column in ("policy", "rlaif"):
        metrics = (run.manifest(run.producer("rlaif")) or {})["metrics"]
        known = {"KL at the end, nats": metrics.get("kl"), "kept iteration": metrics["chosen_iteration"]}
        return {name: value for name, value in (known | _cost(run)).items() if value is not None}
    return {}


def _cost(run: Run) -> dict[str, float]:
    """What the aligned model took from feedback on: sampled answers, minutes, and the highest peak of memory, where known."""
    answers, seconds, peaks = 0, 0.0, list[float]()
    for name in run.order():
        stage, manifest = gains.split_name(name)[1], run.manifest(name)
        if manifest is None or stage not in REPEATED or stage not in run.stages:
            continue
        seconds += manifest.get("seconds", 0.0)
        peaks += [peak for key in ("peak_gib", "peak_rss_gib") if (peak := manifest.get(key))]
        answers += manifest["metrics"].get("sampled_answers", 0)
        if stage in SAMPLING:
            each = manifest["config"].get("rollout", {}).get("rollouts", 0)
            answers += each * len(read_jsonl(run.dir(name) / "metrics.jsonl", missing_ok=True))
    known = {"answers sampled": float(answers), "minutes": seconds / 60, "peak GiB": max(peaks, default=0.0)}
    return {name: value for name, value in known.items() if value}


def _judged(path: Path, truth: Truth, column: str) -> Iterator[tuple[str, str, float]]:
    """Pairs of which exactly one answer is true: 1 if the judge chose it, 0 if the other one, one half if it chose none."""
    for row in read_jsonl(path):
        true = truth[row["id"].split("#")[0]]["answer"]
        a, b = exact_match(row["answer_a"], true), exact_match(row["answer_b"], true)
        verdict = row.get(column) if column else row  # without context only some pairs are judged
        if a != b and verdict:
            choice = verdict["choice"]
            value = float((choice == "A") == a) if choice in ("A", "B") else 0.5
            yield f"{row['id']}|{row['answer_a']}|{row['answer_b']}", _clip(row), value


def _scored(path: Path, truth: Truth) -> Iterator[tuple[str, str, float]]:
    """Held-out preferences of which exactly one answer is true: 1 if the reward model scores it higher, 0 also for a tie."""
    for row in read_jsonl(path):
        known = truth[row["id"].split("#")[0]]
        chosen, rejected = exact_match(row["chosen"], known["answer"]), exact_match(row["rejected"], known["answer"])
        if chosen != rejected:
            true, false = ("chosen", "rejected") if chosen else ("rejected", "chosen")
            right = row[f"score_{true}"] > row[f"score_{false}"]
            yield f"{row['id']}|{row['chosen']}|{row['rejected']}", _clip(known), float(right)


def _described(path: Path, truth: Truth) -> Iterator[tuple[str, str, float]]:
    """Events of a clip: 1 if the segment in their place is described in the true words."""
    descriptions = {_clip(row): row["segments"] for row in read_jsonl(path)}
    for clip, events in {_clip(known): known["segments"] for known in truth.values()}.items():
        if clip in descriptions:
            for place, event in enumerate(events):
                right = place < len(descriptions[clip]) and exact_match(descriptions[clip][place], event)
                yield f"{clip}#{place}", clip, float(right)


def _clip(row: Mapping[str, Any]) -> str:
    return Path(row["video"]).stem
