"""Stage `report`: report.html for people and report.json for programs, from what the finished stages wrote.

Both lie at the run's root and are written anew each time. Nothing is measured here but intervals and counts.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from minirlaif.config import Config, EvaluateSection
from minirlaif.data import left_out
from minirlaif.errors import UserError
from minirlaif.reports import html, rounds, run_results
from minirlaif.reports.html import Html
from minirlaif.reports.next_steps import next_steps
from minirlaif.runs import gains
from minirlaif.runs.commands import without_paths
from minirlaif.runs.database import read_only
from minirlaif.runs.io import plain, read_json, without_folders, write_atomic
from minirlaif.runs.run import Run
from minirlaif.stages.registry import MODELS, REPEATED, STAGES
from minirlaif.stats import exact_match, paired_bootstrap
from minirlaif.video.spans import file_of

METHOD_FIGURES = ("chosen_iteration", "dev_win_rate", "dev_questions", "kl", "score")
QUOTA = {"worse": 7, "better": 7, "both wrong": 6, "both right": 4}  # cards of each kind, as far as there are any


@dataclass(frozen=True)
class StageOutputs:
    """What the stages of a run wrote."""

    method: str  # the stage that trained the RLAIF model
    start: str  # the model that RLAIF started from, "sft" or "base"
    manifests: Mapping[str, dict[str, Any]]
    result: Mapping[str, Any]
    answers: Sequence[dict[str, Any]]
    verdicts: Sequence[dict[str, Any]]
    metrics: Mapping[str, list[dict[str, Any]]]
    strips: Mapping[str, bytes]  # name in an answer's row -> JPEG
    cached: tuple[int, int] | None  # clips and (clip, frame plan) entries in the feature cache
    rounds: gains.Rounds = ()  # as recorded; none for a run of one round
    wanted: int = 1  # rounds
    left_out: Mapping[str, int] = field(default_factory=dict)  # rows and clips of the data that were not used, by kind


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. read the stages 2. numbers 3. both files. Cheap, so `redo` changes nothing. UserError when a stage is not finished."""
    outputs = read(run)
    try:
        numbers = summary(cfg.evaluate, outputs)
        steps = next_steps(numbers, outputs.manifests, partial(_command, run), without_paths(run.app()))
        numbers["next_steps"] = [step._asdict() for step in steps]
        page = document(cfg.evaluate, run.root.name, outputs, numbers)
    except html.UNREADABLE as error:  # hashes are right, so it was made by others, or by another version
        made, again = run.dir("evaluate"), run.remake("evaluate")
        what = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise UserError(f"{made}, or a stage before it, is not of this version ({what}); make it again: `{again}`") from None
    write_atomic(run.root / "report.json", json.dumps(plain(numbers), indent=1, ensure_ascii=False) + "\n")
    write_atomic(run.root / "report.html", page)


def _command(run: Run, stage: str, *settings: str) -> str:
    """What a user types to make a stage again, from the run's own config."""
    own = copy(run)
    own.given = ()
    return without_paths(own.remake(stage, *settings, report=True))


def read(run: Run) -> StageOutputs:
    """Everything the report shows. UserError naming the command that makes a missing stage."""
    again = [stage for stage in run.stages if stage in REPEATED]
    further = [(each, stage) for each in gains.read(run.root) for stage in again]
    names = [gains.name_of(each["round"], stage) for each, stage in further if each["methods"] or stage == "feedback"]
    folders = {name: run.require(name) for name in dict.fromkeys((*run.inputs("report"), *names))}
    before = ("world", *(stage for stage in run.stages if stage == "questions"))
    manifests = {name: manifest for name in (*before, *folders) if (manifest := run.manifest(name)) is not None}
    strips = sorted(name for name in manifests["evaluate"]["outputs"] if name.startswith("strips/"))
    return StageOutputs(
        run.producer("rlaif"),
        run.start_model,
        manifests,
        read_json(folders["evaluate"] / "result.json"),
        run.rows("evaluate", "answers.jsonl", "id", "video", "question", *run_results.models_of({"start": run.start_model})),
        run.rows("feedback", "verdicts.jsonl", "answer_a", "answer_b", "choice", "orders"),
        {name: run.rows(name, "metrics.jsonl", "step") for name in folders if STAGES[gains.split_name(name)[1]].curves},
        {name: (folders["evaluate"] / name).read_bytes() for name in strips},
        _cached(run.root / "cache" / "features.sqlite"),
        gains.read(run.root),
        run.rounds,
        left_out.counts(run.root),
    )


def summary(evaluate: EvaluateSection, outputs: StageOutputs) -> dict[str, Any]:
    """The content of report.json: shares from 0 to 1, seconds, counts; None where nothing was measured."""
    result, method = outputs.result, outputs.manifests[outputs.method]["metrics"]
    number, name = gains.split_name(outputs.method)
    feedback = {each["round"]: outputs.manifests.get(gains.name_of(each["round"], "feedback"), {}) for each in outputs.rounds}
    judged = {place: made.get("metrics", {}) for place, made in feedback.items()}
    rates = [row["dev_win_rate"] for row in outputs.metrics.get(outputs.method, ()) if row.get("dev_win_rate") is not None]
    nothing = dict.fromkeys(("mean", "ci95_low", "ci95_high"))
    answered = result.get("answered_items", result["test_items"] if result.get("accuracy") else 0)
    return {
        "test_items": result["test_items"],
        "test_clips": result["test_clips"],
        "test_clips_seen_before": result.get("test_clips_seen_before"),
        "answered_items": answered,
        "seed": result["seed"],
        "evaluation": outputs.manifests["evaluate"]["identity"],  # so that `status` knows when there is a newer one
        "accuracy": result.get("accuracy") or dict.fromkeys((*MODELS, "guess", *(f"{model}_blind" for model in MODELS))),
        "accuracy_ci95": _intervals(evaluate.bootstrap, outputs) if result.get("accuracy") else None,
        "accuracy_by_type": result.get("accuracy_by_type"),
        "accuracy_gain": result.get("accuracy_gain", nothing),
        "guess_with_hindsight": result.get("guess_with_hindsight"),
        "gain_over_base": result.get("gain_over_base", nothing),
        "gain_over_blank": result.get("gain_over_blank"),
        "against_base": run_results.compared(result["gain_over_base"], answered) if result.get("gain_over_base") else None,
        "judge": _judge(outputs),
        "reward_model": _reward_model(outputs),
        "context": result.get("context"),
        "rounds": rounds.figures(outputs.rounds, judged, result, outputs.answers, evaluate.bootstrap),
        "round": number,
        "rounds_ended": gains.outcome(outputs.rounds, outputs.wanted),
        "method": name,
        "start": outputs.start,
        "base": outputs.manifests["feedback"]["config"].get("model", {}).get("base"),
        name: {n: method.get(n) for n in METHOD_FIGURES} | {"last_dev_win_rate": rates[-1] if rates else None},
        "world": "world" in outputs.manifests,
        "cases": {kind: sum(run_results.kind(row) == kind for row in outputs.answers) for kind in QUOTA},
        "counts": _counts(outputs),
        "seconds": {name: manifest["seconds"] for name, manifest in outputs.manifests.items()},
    }


def _reward_model(outputs: StageOutputs) -> dict[str, Any] | None:
    """Accuracy of the reward model, against truth where that is known; None for a run without one."""
    if "reward" not in outputs.manifests:
        return None
    reward = outputs.manifests["reward"]["metrics"]
    without_truth = {"accuracy": None, "n": 0, "against_judge": reward["accuracy"], "by_type": reward["accuracy_by_type"]}
    without_truth |= {name: reward.get(name) for name in ("bias", "beta")}
    made = {"held_out_pairs": reward.get("held_out_pairs")} | (outputs.result.get("reward_model") or without_truth)
    return made | ({"against_judge": None} if reward.get("held_out_pairs") == 0 else {})  # a share of nothing is no share


def document(evaluate: EvaluateSection, name: str, outputs: StageOutputs, numbers: Mapping[str, Any]) -> Html:
    """The content of report.html."""
    rows = chosen(outputs.answers, max(1, evaluate.gallery))
    strips = {row["strip"]: outputs.strips[row["strip"]] for row in rows if row.get("strip") in outputs.strips}
    by_content = {data: f"s{place}" for place, data in enumerate(dict.fromkeys(strips.values()))}
    frames = outputs.manifests["evaluate"]["config"].get("video", {}).get("frames")
    pictures = {strip: html.strip(by_content[data], data, frames) for strip, data in strips.items() if data}
    settings = {name: manifest["config"] for name, manifest in outputs.manifests.items()}
    feedback = settings["feedback"]["feedback"] | {"readout": numbers["judge"]["readout"]}
    parts = [
        run_results.headline(name, numbers),
        *([html.run_block("next_steps", numbers["next_steps"])] if numbers.get("next_steps") else []),
        *([run_results.accuracy(numbers), run_results.controls(numbers)] if numbers["accuracy"].get("base") is not None else []),
        run_results.judge(numbers, feedback),
        *([html.run_block("reward", numbers["reward_model"], settings["reward"]["reward"])] if numbers["reward_model"] else []),
        *([rounds.section(numbers["rounds"], numbers["round"], numbers["rounds_ended"])] if numbers["rounds"] else []),
        run_results.training(numbers, outputs.metrics),
        run_results.gallery(rows, pictures, numbers),
        html.run_block("time", numbers["seconds"]),
        run_results.counts(numbers),
        html.run_block("foot", _settings(outputs.manifests), outputs.manifests["evaluate"]),
    ]
    styles = html.strip_styles({key: data for data, key in by_content.items() if data})
    return html.page(f"minirlaif report: {name}", parts, styles)


def _settings(manifests: Mapping[str, dict[str, Any]]) -> str:
    """What the stages were made with, as YAML: a section once, and again where a later stage had other values in it."""
    shown: dict[str, Any] = {}
    for stage, manifest in manifests.items():
        for name, values in manifest["config"].items():
            if name == "data":  # each stage has its own parts of it
                known = shown.setdefault(name, {"sha256": {}})
                known.update({**values, "sha256": {**known["sha256"], **values["sha256"]}})
            elif shown.setdefault(name, values) != values:
                shown[f"{name} ({stage})"] = values
    return str(yaml.safe_dump(without_folders(shown), sort_keys=False, allow_unicode=True, width=130))


def chosen(answers: Sequence[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """Rows for the gallery: of each kind about its share in QUOTA, "worse" first, then others until `wanted` are there.

    A row without frames takes those of another question about the same clip, if there are any. Rows of a kind that has none with
    frames are shown without; of "worse" all are.
    """
    strips = {row["video"]: row["strip"] for row in reversed(answers) if row.get("strip")}
    rows = [{**row, "strip": row.get("strip") or strips.get(row["video"], "")} for row in answers]
    picked: list[dict[str, Any]] = []
    for kind, quota in QUOTA.items():
        of_kind = [row for row in rows if run_results.kind(row) == kind]
        candidates = _spread([row for row in of_kind if row["strip"]])
        if kind == "worse" or not candidates:
            candidates += [row for row in of_kind if not row["strip"]]
        picked += candidates[: max(1, round(quota * wanted / sum(QUOTA.values())))]
    ids = {row["id"] for row in picked}
    picked += _spread([row for row in rows if row["id"] not in ids and row["strip"]], run_results.kind)
    if not strips:
        picked += [row for row in rows if row["id"] not in ids]
    return picked[:wanted]


def _spread(rows: Sequence[dict[str, Any]], by: Callable[[dict[str, Any]], str] = itemgetter("video")) -> list[dict[str, Any]]:
    """The same rows, first one of each clip (or of what `by` says), then a second one, and so on."""
    seen: dict[str, Iterator[int]] = defaultdict(count)
    return [row for _, row in sorted(((next(seen[by(row)]), row) for row in rows), key=itemgetter(0))]


def _intervals(resamples: int, outputs: StageOutputs) -> dict[str, list[float]]:
    """95 % intervals of each model's accuracy; whole clips are resampled, as for the gain."""
    ends = {}
    for model in run_results.models_of({"start": outputs.start}):
        clusters: dict[str, list[float]] = {}
        for row in filter(run_results.kind, outputs.answers):  # those with a true answer
            clusters.setdefault(file_of(row["video"]), []).append(float(exact_match(row[model], row["truth"])))
        ends[model] = list(paired_bootstrap(clusters, resamples, outputs.result["seed"])[1:])
    return ends


def _judge(outputs: StageOutputs) -> dict[str, Any]:
    """The figures of `evaluate` and `feedback`, and what needs no truth: pairs decided without context, the letters."""
    metrics = outputs.manifests["feedback"]["metrics"]
    names = ("swap_consistency", "decided_share", "longer_wins", "pairs", "tie", "invalid", "disagree", "same_answers")
    known = (*names, "described_clips", "one_segment_clips")
    rows = [row for row in outputs.verdicts if row["answer_a"] != row["answer_b"]]
    without = [row["without_context"]["choice"] in ("A", "B") for row in rows if row.get("without_context")]
    letters = [tuple(row["letter"]["orders"]) for row in rows if row.get("letter")]

    def share(*orders: tuple[str, str]) -> float | None:
        return sum(map(letters.count, orders)) / len(letters) if letters else None

    decided = [row for row in rows if row["choice"] in ("A", "B")]
    counted = {  # shares of nothing are no shares
        "swap_consistency": any(row["choice"] != "tie" for row in rows),
        "longer_wins": any(len(row["answer_a"]) != len(row["answer_b"]) for row in decided),
        "decided_share": bool(rows),
    }
    # Orders are in names of the first one, so A then B is the answer shown first, both times.
    return {
        "with_context": None,
        "without_context": None,
        **{name: metrics.get(name) if counted.get(name, True) else None for name in known},
        **(outputs.result.get("judge") or {}),
        "readout": metrics.get("readout", outputs.manifests["feedback"]["config"]["feedback"].get("readout")),
        "readout_probe": metrics.get("readout_probe"),
        "tie_asked": sum(row["choice"] == "tie" for row in rows),
        "without_context_decided_share": sum(without) / len(without) if without else None,
        "letter_pairs": len(letters),
        "letter_swap_consistency": share(("A", "A"), ("B", "B")),
        "letter_first_shown_share": share(("A", "B")),
        "letter_second_shown_share": share(("B", "A")),
    }


def _counts(outputs: StageOutputs) -> dict[str, Any]:
    """Counters by stage and in all; decodes and encodes per (clip, frame plan), prefilled prompt tokens per clip."""
    stages = {name: manifest["counters"] for name, manifest in outputs.manifests.items() if manifest["counters"]}
    names = ("decodes", "encodes", "encoded_frames", "plans", "opened", "prefilled_tokens")
    total = {name: sum(counters.get(name, 0) for counters in stages.values()) for name in names}
    clips, cached = outputs.cached or (0, 0)
    return {
        "decodes_per_clip": total["decodes"] / total["plans"] if total["plans"] else None,
        "encodes_per_clip": total["encodes"] / total["plans"] if total["plans"] else None,
        "prefilled_tokens_per_clip": total["prefilled_tokens"] / clips if clips else None,
        "clips": clips or None,
        "cached_plans": cached or None,
        "total": total,
        "by_stage": stages,
        **({"left_out": dict(outputs.left_out)} if outputs.left_out else {}),
    }


def _cached(cache: Path) -> tuple[int, int] | None:
    """Clips (by content: a copied run has other paths) and entries of the feature cache; None: deleted, or it cannot be read."""
    if not cache.is_file():
        return None
    try:
        with read_only(cache, 60.0) as db:
            clips, plans = (
                db.execute(f"SELECT count(*) FROM {rows}").fetchone()[0]
                for rows in ("(SELECT DISTINCT json_extract(info, '$.id') FROM clips)", "vectors")
            )
    except sqlite3.Error:
        return None
    return int(clips), int(plans)
