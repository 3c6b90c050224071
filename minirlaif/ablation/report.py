"""The three files of an ablation: figures, intervals and verdicts as JSON, Markdown and HTML. No torch."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from minirlaif.ablation import view
from minirlaif.ablation.arms import ANSWERS, COUNTS, MAIN, Arm, Group, Measure
from minirlaif.ablation.earlier_seeds import EarlierSeeds, encode, encode_own
from minirlaif.ablation.outcomes import (
    MISSING,
    RULE,
    Figure,
    Items,
    common,
    differences,
    figure,
    over_seeds,
    read,
    remarks,
    verdict,
)
from minirlaif.errors import UserError
from minirlaif.runs.io import plain, write_atomic
from minirlaif.runs.run import Run
from minirlaif.stats import grouped, t_interval

Runs = Mapping[int, Mapping[str, Run]]  # seed -> arm -> its run folder
Failures = Mapping[int, Mapping[str, str]]  # seed -> arm that could not be made -> why


def write(
    root: Path,
    groups: Sequence[Group],
    resamples: int,
    runs: Runs,
    arms: Sequence[Arm],
    failures: Failures,
    earlier: Mapping[str, EarlierSeeds],
    settings: str,
) -> None:
    """Read the finished arms and write the three files. A figure is shown when its arm is finished for every seed; a claim about
    an arm that failed is shown without figures. resamples: of the bootstrap; earlier: answers of other seeds, by question;
    settings: hash of them without the seed."""
    numbers = {"settings": settings, **summary(groups, resamples, runs, arms, failures, earlier)}
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / "ablation.json", json.dumps(plain(numbers), indent=1, ensure_ascii=False) + "\n")
    write_atomic(root / "ablation.md", view.markdown(numbers))
    write_atomic(root / "ablation.html", view.document(numbers))


def summary(
    groups: Sequence[Group],
    resamples: int,
    runs: Runs,
    arms: Sequence[Arm],
    failures: Failures,
    earlier: Mapping[str, EarlierSeeds] = MappingProxyType({}),
) -> dict[str, Any]:
    """The content of ablation.json: shares from 0 to 1, differences of shares, seconds."""
    shown = [_group(group, runs, failures, resamples, earlier.get(group.name, EarlierSeeds())) for group in groups]
    return {
        "seeds": sorted({*runs, *(seed for each in earlier.values() for seed in each.items)}),
        "rule": RULE,
        "groups": [group for group in shown if group["claims"]],
        "failed": [{"seed": seed, "arm": arm, "reason": why} for seed, failed in failures.items() for arm, why in failed.items()],
        "arms": {
            arm.name: {name: list(getattr(arm, name)) for name in ("changed", "shares", "makes")}
            | {"seeds": [seed for seed, made in runs.items() if arm.name in made]}
            for arm in arms
        },
        "seconds": _seconds(runs, arms),
    }


def _group(group: Group, runs: Runs, failures: Failures, resamples: int, earlier: EarlierSeeds) -> dict[str, Any]:
    """One question: its figures, on the items that all measures which count the same have, and its claims."""
    before = {seed: of_seed for seed, of_seed in earlier.items.items() if seed not in runs}
    measures = [
        measure
        for measure in group.measures
        if all(measure.arm in arms for arms in runs.values()) and all(measure.key in of_seed for of_seed in before.values())
    ]
    items: dict[str, dict[int, Items]] = {measure.key: {} for measure in measures}
    notes: dict[int, dict[str, Mapping[str, float]]] = {seed: dict(earlier.remarks.get(seed, {})) for seed in before}
    for seed, of_seed in before.items():
        for measure in measures:
            items[measure.key][seed] = of_seed[measure.key]
    for seed, arms in runs.items():
        notes[seed] = {measure.key: remarks(measure, arms[measure.arm]) for measure in measures}
        for counts in COUNTS:
            alike = {measure.key: read(measure, arms[measure.arm], seed) for measure in measures if measure.counts == counts}
            for key, kept in common(alike).items():
                items[key][seed] = kept
    _check_questions({m.key: items[m.key] for m in measures if m.counts == ANSWERS}, before)
    shown = []
    for measure in measures:
        if all(items[measure.key].values()):
            known = grouped(note for of_seed in notes.values() for note in of_seed.get(measure.key, {}).items())
            entry = {"key": measure.key, "label": measure.label, "arm": measure.arm, "counts": measure.counts}
            means = {name: fmean(values) for name, values in known.items()}
            shown.append({**entry, **_figures(items[measure.key], resamples), "remarks": means})
    by_key, there = {measure.key: measure for measure in group.measures}, {entry["key"] for entry in shown}
    # Other arms were left out with --arms, and so are their claims.
    chosen = {MAIN}.union(*runs.values(), *failures.values(), *(() if runs else [[measure.arm for measure in measures]]))
    claims = []
    for text, *keys in group.claims:
        better, worse = (by_key[key] for key in keys)
        if {better.arm, worse.arm} <= chosen:
            if {better.key, worse.key} <= there:
                outcome = _claim(items[better.key], items[worse.key], resamples)
            else:
                outcome = _not_measured(better, worse, failures)
            claims.append({"text": text, "better": better.label, "worse": worse.label, **outcome})
    texts = {"name": group.name, "title": group.title, "note": group.note}
    return {**texts, "entries": shown, "claims": claims, **_kept([m for m in measures if m.key in there], items, notes)}


def _kept(
    measures: Sequence[Measure], items: Mapping[str, Mapping[int, Items]], notes: Mapping[int, Mapping[str, Mapping[str, float]]]
) -> dict[str, Any]:
    """What `--add` reads: "answers" to the test questions, items of the seeds' "own", and the remarks on those."""
    of_tests = [measure.key for measure in measures if measure.counts == ANSWERS]
    others = {measure.key: measure.counts for measure in measures if measure.counts != ANSWERS}

    def by_seed(keys: Collection[str]) -> dict[int, dict[str, Items]]:
        return {seed: {key: items[key][seed] for key in keys} for seed in notes}

    def of(keys: Collection[str]) -> dict[int, dict[str, dict[str, float]]]:
        return {seed: {key: dict(of_seed.get(key, {})) for key in keys} for seed, of_seed in notes.items()}

    own = encode_own(by_seed(others), others) if others else {}
    return {"answers": encode(by_seed(of_tests), of(of_tests)), "own": own, "remarks": of(others) if others else {}}


def _check_questions(items: Mapping[str, Mapping[int, Items]], before: Collection[int]) -> None:
    """UserError: earlier seeds answered other questions than those of this command."""
    for of_measure in items.values():
        own = [of_seed.keys() for seed, of_seed in of_measure.items() if seed not in before]
        if any(own[0] != of_measure[seed].keys() for seed in before if own):
            raise UserError("--add: the questions of earlier seeds are others than those of this command; measure them together")


def _figures(items: Mapping[int, Items], resamples: int) -> dict[str, Any]:
    seeds = {seed: asdict(figure(of_seed, resamples)) for seed, of_seed in sorted(items.items())}
    over_t = t_interval([each["mean"] for each in seeds.values()])
    return {"pooled": asdict(over_seeds(items, resamples)), "seeds": seeds, "t": over_t}


def _claim(better: Mapping[int, Items], worse: Mapping[int, Items], resamples: int) -> dict[str, Any]:
    """The difference of two measures over all seeds and in each, and the verdict on the claim."""
    gains = {seed: differences(better[seed], worse[seed]) for seed in better}
    figures = _figures(gains, resamples)
    seeds = {seed: Figure(**values) for seed, values in figures["seeds"].items()}
    means = {"better_mean": over_seeds(better, 1).mean, "worse_mean": over_seeds(worse, 1).mean}
    return {**figures, **means, "verdict": verdict(Figure(**figures["pooled"]), seeds), "reason": ""}


def _not_measured(better: Measure, worse: Measure, failures: Failures) -> dict[str, Any]:
    """A claim without figures, and why: the arms that failed, or else nothing to count."""
    arms = dict.fromkeys((better.arm, worse.arm))
    why = [f"seed {seed}, {arm}: {failures[seed][arm]}" for arm in arms for seed in failures if arm in failures[seed]]
    reason = "; ".join(why) or "no items that both arms have in every seed"
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    means = {"better_mean": None, "worse_mean": None}
    return {"pooled": nothing, "seeds": {}, "t": None, **means, "verdict": MISSING, "reason": reason}


def _seconds(runs: Runs, arms: Sequence[Arm]) -> dict[str, float]:
    """Time of the stages from their manifests: of the main runs, and of the arms."""

    def spent(run: Run) -> float:
        stages = [path.parent.name for path in run.root.glob("*/manifest.json") if not path.parent.is_symlink()]
        return sum(float((run.manifest(stage) or {"seconds": 0.0})["seconds"]) for stage in stages)

    made = [run for of_seed in runs.values() for arm in arms if (run := of_seed.get(arm.name))]
    return {"main": sum(spent(of_seed[MAIN]) for of_seed in runs.values()), "arms": sum(map(spent, made))}
