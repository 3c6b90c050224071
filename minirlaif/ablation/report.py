"""ablation.json for programs, ablation.md to paste and ablation.html to look at: figures, intervals, verdicts. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from minirlaif.ablation import view
from minirlaif.ablation.arms import COUNTS, Arm, Group, groups
from minirlaif.ablation.items import Found, read, remarks
from minirlaif.ablation.verdict import RULE, Figure, ahead, common, figure, pooled, verdict
from minirlaif.artifacts import Run
from minirlaif.config import Config
from minirlaif.disk import plain, write_atomic

Runs = Mapping[int, Mapping[str, Run]]  # seed -> arm -> its run folder


def write(root: Path, cfg: Config, runs: Runs, arms: Sequence[Arm]) -> None:
    """Read the finished arms and write the three files. A figure is shown when its arm is finished for every seed."""
    numbers = summary(cfg, runs, arms)
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / "ablation.json", json.dumps(plain(numbers), indent=1, ensure_ascii=False) + "\n")
    write_atomic(root / "ablation.md", view.markdown(numbers))
    write_atomic(root / "ablation.html", view.document(numbers))


def summary(cfg: Config, runs: Runs, arms: Sequence[Arm]) -> dict[str, Any]:
    """The content of ablation.json: shares from 0 to 1, differences of shares, seconds."""
    shown = [_group(group, runs, cfg.evaluate.bootstrap) for group in groups(cfg)]
    return {
        "seeds": list(runs),
        "rule": RULE,
        "groups": [group for group in shown if group["claims"]],
        "arms": {arm.name: {"changed": list(arm.changed), "shares": list(arm.shares), "makes": list(arm.makes)} for arm in arms},
        "seconds": _seconds(runs, arms),
    }


def _group(group: Group, runs: Runs, resamples: int) -> dict[str, Any]:
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
    labels = {entry.key: entry.label for entry in measured}
    shown = [
        {"key": entry.key, "label": entry.label, "arm": entry.arm, "counts": entry.counts}
        | _figures(items[entry.key], resamples)
        | {"remarks": _mean([remarks(entry, arms[entry.arm]) for arms in runs.values()])}
        for entry in measured
    ]
    claims = [
        {"text": claim.text, "better": labels[claim.better], "worse": labels[claim.worse]}
        | _claim(items[claim.better], items[claim.worse], resamples)
        for claim in group.claims
        if claim.better in labels and claim.worse in labels
    ]
    return {"name": group.name, "title": group.title, "note": group.note, "entries": shown, "claims": claims}


def _figures(items: Mapping[int, Found], resamples: int) -> dict[str, Any]:
    seeds = {seed: figure(found, resamples) for seed, found in items.items()}
    return {"pooled": asdict(figure(pooled(items), resamples)), "seeds": {seed: asdict(f) for seed, f in seeds.items()}}


def _claim(better: Mapping[int, Found], worse: Mapping[int, Found], resamples: int) -> dict[str, Any]:
    """How far one entry is ahead of the other, over all seeds and in each, and what that says about the claim."""
    gains = {seed: ahead(better[seed], worse[seed]) for seed in better}
    found = _figures(gains, resamples)
    seeds = {seed: Figure(**values) for seed, values in found["seeds"].items()}
    means = {"better_mean": figure(pooled(better), 1).mean, "worse_mean": figure(pooled(worse), 1).mean}
    return {**found, **means, "verdict": verdict(Figure(**found["pooled"]), seeds)}


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
