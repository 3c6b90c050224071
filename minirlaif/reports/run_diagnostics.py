"""The report's sections on how the result came about: judge, reward model, training, time, counts. Pure functions to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.reports.html import Html, bar, curve, duration, number, percent, points, run_block, tile
from minirlaif.reports.run_results import NOT_KEPT
from minirlaif.stages.registry import STAGES

Numbers = Mapping[str, Any]
COUNTS = {
    "decodes": "Decodes",
    "encodes": "Encodes",
    "plans": "Clip × frame plan",
    "encoded_frames": "Frames encoded",
    "opened": "Clips opened to check",
    "prefilled_tokens": "Tokens prefilled",
}
BY_CONSTRUCTION = (
    "The likelihood read-out scores each answer by itself, so both orders agree by construction: that figure says nothing about"
    " position bias."
)


def judge(numbers: Numbers, settings: Mapping[str, Any]) -> Html:
    """How often the judge is right with and without the segment descriptions, and how many pairs it decides."""
    j = numbers["judge"]
    names = {"with_context": "with context", "without_context": "without context", "letter": "letter read-out, with context"}
    rows = [
        bar(label, j[name], "plain", j[f"{name}_ci95"], 0.5, note=f"{number(j[f'{name}_n'])} decided pairs")
        for name, label in names.items()
        if j.get(name) is not None
    ]
    kinds = j.get("by_type") or {}
    by_type = [[kind, percent(share)] for kind, share in kinds.items()] if set(kinds) - {"all"} else []
    notes = []
    if settings["readout"] == "likelihood":
        letters = " The letter read-out can depend on the order; it is measured here and trains nothing."
        notes = [BY_CONSTRUCTION + letters * bool(j["letter_pairs"])]
    return run_block("judge", _agreement(j), rows, _verdicts(numbers, settings), by_type, notes)


def _agreement(j: Mapping[str, Any]) -> str:
    if j["with_context"] is None or j["without_context"] is None:
        return "Agreement with the truth was not measured: no truth is known for these pairs, or no pair was decided."
    (low, high), (other_low, other_high) = j["with_context_ci95"], j["without_context_ci95"]
    apart = low > other_high or other_low > high
    return (
        f"With segment descriptions the judge agrees with the truth in {percent(j['with_context'])} of its decided pairs, without"
        f" them in {percent(j['without_context'])} ({points(j['with_context'] - j['without_context'])} points; the two 95 %"
        f" intervals {'do not overlap' if apart else 'overlap'}). With them it decides {percent(j['decided_share'])} of its"
        f" pairs, without them {percent(j['without_context_decided_share'])}."
    )


def _verdicts(numbers: Numbers, settings: Mapping[str, Any]) -> list[list[str]]:
    j, context = numbers["judge"], numbers["context"] or {}
    rows = [[f"Both orders agree, {settings['readout']} read-out", percent(j["swap_consistency"])]]
    if j["letter_pairs"]:
        rows.append([f"Both orders agree, letters ({number(j['letter_pairs'])} pairs)", percent(j["letter_swap_consistency"])])
        rows.append(["Letters: the first shown in both orders", percent(j["letter_first_shown_share"])])
        rows.append(["Letters: the second shown in both orders", percent(j["letter_second_shown_share"])])
    rows += [["Pairs of different answers", number(j["pairs"])], ["Decided", percent(j["decided_share"])]]
    rows += [[f"Ties (margin below {settings['margin']})", number(j["tie_asked"])], ["Invalid", number(j["invalid"])]]
    rows += [["Orders disagree", number(j["disagree"])], ["Equal answers, not judged", number(j["same_answers"])]]
    rows.append(["The longer answer wins", percent(j["longer_wins"])])
    if context.get("segment_accuracy") is not None:
        rows.append(["Segment descriptions equal to the truth", percent(context["segment_accuracy"])])
    return rows


def reward(numbers: Numbers, settings: Mapping[str, Any]) -> Html:
    """Accuracy of the reward model on held-out pairs, and where it departs from the paper."""
    r = numbers["reward_model"]
    rows = [bar("against the judge", r["against_judge"], "plain", dashed=0.5, note="held-out pairs")]
    if r["accuracy"] is not None:
        note = f"{number(r['n'])} held-out pairs with one true answer"
        rows.insert(0, bar("against truth", r["accuracy"], "plain", r.get("ci95"), 0.5, note=note))
    by_type = sorted(r["by_type"].items()) if set(r["by_type"]) - {"all"} else []
    departures = []
    if settings["context"]:
        departures.append(("reward.context", "it reads the segment descriptions; the paper's does not."))
    if settings["likelihood"]:
        beta = f" Learned weight here: {number(r['beta'])}." if r.get("beta") is not None else ""
        text = f"a learned weight times the answer's mean log-likelihood is added to its score; not in the paper.{beta}"
        departures.append(("reward.likelihood", text))
    return run_block("reward", rows, [bar(kind, share, "plain", dashed=0.5) for kind, share in by_type], departures)


def training(numbers: Numbers, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html:
    """Curves of the stage that trained the RLAIF model, with the chosen iteration, then those of the stages before it."""
    method = numbers["method"]
    best = numbers[method]["chosen_iteration"]
    long = min((row["step"] for row in metrics["sft"] if row.get("stage") == "long"), default=None)
    dashed = {method: best, "sft": long}

    def drawn(stage: str) -> list[Html]:
        rows = [row for row in metrics[stage] if row.get("pairs") != 0]  # of feedback: without chunks of dev clips
        note = "dashed: long answers begin" if stage == "sft" and long is not None else ""
        return [
            curve(
                each.title,
                [(row["step"], row.get(each.field)) for row in rows],
                STAGES[stage].tone,
                dashed.get(stage),
                note or each.note,
                each.span,
            )
            for each in STAGES[stage].curves
        ]

    text = "There were no dev questions, so the weights after the last iteration were kept."
    if numbers[method]["dev_win_rate"] is not None:
        text = NOT_KEPT if best == 0 else f"The dashed line marks iteration {number(best)}, whose weights were kept."
        text += " The checkpoint is chosen by the judge's win rate on dev questions; only the evaluation reads the truth."
    return run_block("training", text, drawn(method), [each for stage in metrics if stage != method for each in drawn(stage)])


def time(numbers: Numbers) -> Html:
    """Seconds of each stage."""
    seconds = numbers["seconds"]
    total, most = sum(seconds.values()) or 1.0, max(seconds.values(), default=0.0) or 1.0
    rows = [bar(name, s / most, "plain", value=duration(s), note=percent(s / total, 0)) for name, s in seconds.items()]
    return run_block("time", total, rows)


def counts(numbers: Numbers) -> Html:
    """Decodes, encodes and prefilled tokens."""
    c = numbers["counts"]
    rows = [[stage, *(number(row.get(name, 0)) for name in COUNTS)] for stage, row in c["by_stage"].items()]
    rows.append(["all", *(number(c["total"].get(name, 0)) for name in COUNTS)])
    text = "1.00 means one decode and one encode per clip and frame plan."
    if c["decodes_per_clip"] == 1 and c["encodes_per_clip"] == 1:
        text = "Each clip was decoded and encoded once per frame plan; later uses came from the run's cache."
    tokens = c["prefilled_tokens_per_clip"]
    tiles = [
        *(
            tile(f"{COUNTS[name]} per clip and frame plan", "–" if (mean := c[f"{name}_per_clip"]) is None else f"{mean:.2f}")
            for name in ("decodes", "encodes")
        ),
        tile("Tokens prefilled per clip", number(tokens and round(tokens)), f"{number(c['clips'])} clips"),
    ]
    return run_block("counts", text, tiles, ["Stage", *COUNTS.values()], rows, c["cached_plans"])


def foot(manifests: Mapping[str, Mapping[str, Any]], settings: str) -> Html:
    """The settings, and what they ran on."""
    last = manifests["evaluate"]
    code, versions = last.get("code") or {}, last.get("versions") or {}
    words = [f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if name in versions]
    words.append(str(last.get("gpu") or "no GPU"))
    if code.get("revision"):
        words.append(f"code {str(code['revision'])[:12]}{' with changes' if code.get('changed') else ''}")
    return run_block("foot", settings, words)
