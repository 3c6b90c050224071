"""ablation.json for programs, ablation.md to paste and ablation.html to look at: figures, intervals, verdicts. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from minirlaif.ablation import view
from minirlaif.ablation.arms import COUNTS, MAIN, Arm, Entry, Group, groups
from minirlaif.ablation.claims import MISSING, RULE, Figure, ahead, common, figure, pooled, verdict
from minirlaif.ablation.outcomes import Found, read, remarks
from minirlaif.config import Config
from minirlaif.runs.io import plain, write_atomic
from minirlaif.runs.run import Run

Runs = Mapping[int, Mapping[str, Run]]  # seed -> arm -> its run folder
Lost = Mapping[int, Mapping[str, str]]  # seed -> arm that could not be made -> why
NOTHING = {"mean": None, "low": None, "high": None, "n": 0}  # the figure of a claim that was not measured


def write(root: Path, cfg: Config, runs: Runs, arms: Sequence[Arm], lost: Lost) -> None:
    """Read the finished arms and write the three files. A figure is shown when its arm is finished for every seed; a claim that
    stands on an arm that failed is shown without figures."""
    numbers = summary(cfg, runs, arms, lost)
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / "ablation.json", json.dumps(plain(numbers), indent=1, ensure_ascii=False) + "\n")
    write_atomic(root / "ablation.md", view.markdown(numbers))
    write_atomic(root / "ablation.html", view.document(numbers))


def summary(cfg: Config, runs: Runs, arms: Sequence[Arm], lost: Lost) -> dict[str, Any]:
    """The content of ablation.json: shares from 0 to 1, differences of shares, seconds."""
    shown = [_group(group, runs, lost, cfg.evaluate.bootstrap) for group in groups(cfg)]
    made = {arm.name: [seed for seed, found in runs.items() if arm.name in found] for arm in arms}
    return {
        "seeds": list(runs),
        "rule": RULE,
        "groups": [group for group in shown if group["claims"]],
        "failed": [{"seed": seed, "arm": arm, "reason": why} for seed, failed in lost.items() for arm, why in failed.items()],
        "arms": {
            arm.name: {
                "changed": list(arm.changed),
                "shares": list(arm.shares),
                "makes": list(arm.makes),
                "seeds": made[arm.name],  # for which it was made
            }
            for arm in arms
        },
        "seconds": _seconds(runs, arms),
    }


def _group(group: Group, runs: Runs, lost: Lost, resamples: int) -> dict[str, Any]:
    """One question: figures of its entries, on the items that all entries which count the same have, and its claims."""
    entries = [entry for entry in group.entries if all(entry.arm in arms for arms in runs.values())]
    items: dict[str, dict[int, Found]] = {entry.key: {} for entry in entries}
    for seed, arms in runs.items():
        found = {entry.key: read(entry, arms[entry.arm], seed) for entry in entries}
        for counts in COUNTS:
            alike = {entry.key: found[entry.key] for entry in entries if entry.counts == counts}
            for key, kept in common(alike).items():
                items[key][seed] = kept
    measured = [entry for entry in entries if all(items[entry.key].values())]
    shown = [
        {"key": entry.key, "label": entry.label, "arm": entry.arm, "counts": entry.counts}
        | _figures(items[entry.key], resamples)
        | {"remarks": _mean([remarks(entry, arms[entry.arm]) for arms in runs.values()])}
        for entry in measured
    ]
    there = {entry.key for entry in measured}
    claims = [
        {"text": text, "better": better.label, "worse": worse.label}
        | (
            _claim(items[better.key], items[worse.key], resamples)
            if {better.key, worse.key} <= there
            else _not_measured(better, worse, lost)
        )
        for text, better, worse in _asked(group, {MAIN}.union(*runs.values(), *lost.values()))
    ]
    return {"name": group.name, "title": group.title, "note": group.note, "entries": shown, "claims": claims}


def _asked(group: Group, arms: Collection[str]) -> Iterator[tuple[str, Entry, Entry]]:
    """Claims with both entries, but for those that stand on an arm which was left out with --arms."""
    known = {entry.key: entry for entry in group.entries}
    for claim in group.claims:
        better, worse = known[claim.better], known[claim.worse]
        if better.arm in arms and worse.arm in arms:
            yield claim.text, better, worse


def _figures(items: Mapping[int, Found], resamples: int) -> dict[str, Any]:
    seeds = {seed: figure(found, resamples) for seed, found in items.items()}
    return {"pooled": asdict(figure(pooled(items), resamples)), "seeds": {seed: asdict(f) for seed, f in seeds.items()}}


def _claim(better: Mapping[int, Found], worse: Mapping[int, Found], resamples: int) -> dict[str, Any]:
    """How far one entry is ahead of the other, over all seeds and in each, and what that says about the claim."""
    gains = {seed: ahead(better[seed], worse[seed]) for seed in better}
    found = _figures(gains, resamples)
    seeds = {seed: Figure(**values) for seed, values in found["seeds"].items()}
    means = {"better_mean": figure(pooled(better), 1).mean, "worse_mean": figure(pooled(worse), 1).mean}
    return {**found, **means, "verdict": verdict(Figure(**found["pooled"]), seeds), "reason": ""}


def _not_measured(better: Entry, worse: Entry, lost: Lost) -> dict[str, Any]:
    """A claim without figures, and why: the arms that failed, or else nothing to count."""
    arms = dict.fromkeys((better.arm, worse.arm))
    why = [f"seed {seed}, {arm}: {lost[seed][arm]}" for arm in arms for seed in lost if arm in lost[seed]]
    reason = "; ".join(why) or "nothing to count that all its arms have in every seed"
    empty = {"pooled": NOTHING, "seeds": {}, "better_mean": None, "worse_mean": None}
    return {**empty, "verdict": MISSING, "reason": reason}


def _mean(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(values[name] for values in seeds) for name in seeds[0]}


def _seconds(runs: Runs, arms: Sequence[Arm]) -> dict[str, float]:
    """Time that stages took, as their manifests say: of the main runs, and of the arms."""

    def spent(run: Run) -> float:
        stages = [path.parent.name for path in run.root.glob("*/manifest.json") if not path.parent.is_symlink()]
        return sum(float((run.manifest(stage) or {"seconds": 0.0})["seconds"]) for stage in stages)

    names = [arm.name for arm in arms]
    return {
        "main": sum(spent(found["main"]) for found in runs.values()),
        "arms": sum(spent(found[name]) for found in runs.values() for name in names if name in found),
    }
