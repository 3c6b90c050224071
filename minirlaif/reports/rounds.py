"""The rounds of a run side by side: win rate on dev prompts, the judge's pairs, and test accuracy where `evaluate` has it."""

from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.reports.html import Html, curve, interval, number, percent, points, run_block, share
from minirlaif.runs import gains
from minirlaif.stats import exact_match, paired_bootstrap
from minirlaif.video.spans import file_of

JUDGE = ("pairs", "decided", "decided_share", "swap_consistency", "same_answers")  # of the metrics of `feedback`
METHOD = ("chosen_iteration", "dev_win_rate")


def figures(
    rounds: gains.Rounds,
    metrics: Mapping[int, Mapping[str, Any]],
    result: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    resamples: int,
) -> list[dict[str, Any]]:
    """One entry per finished round for report.json. metrics: those of each round's `feedback`; result: of `evaluate`, with its
    answers. Accuracy and its change from the round before are over test questions with a true answer, with 95 % intervals for
    which whole clips are resampled; None where the model of a round was not asked, or there is no truth."""
    counts, rows, before = gains.counting(rounds), [row for row in answers if row.get("truth")], None
    made = []
    for each in rounds:
        place = each["round"]
        rates = [method["dev_win_rate"] for method in each["methods"].values() if method.get("dev_win_rate") is not None]
        column = "rlaif" if place == counts else f"{gains.FOLDER}{place}"
        right = [float(exact_match(row[column], row["truth"])) for row in rows] if all(column in row for row in rows) else []
        changes: list[float] = [a - b for a, b in zip(right, before, strict=True)] if right and before else []
        accuracy, gain = (_mean(rows, values, resamples, int(result["seed"])) for values in (right, changes))
        truth = (result.get("rounds") or {}).get(str(place)) or {}
        made.append(
            {
                "round": place,
                "gained": each["gained"],
                "dev_win_rate": max(rates) if rates else None,
                "methods": {name: {key: method[key] for key in METHOD} for name, method in each["methods"].items()},
                **{name: metrics.get(place, {}).get(name) for name in JUDGE},
                "judge_accuracy": (truth.get("judge") or {}).get("with_context"),
                "segment_accuracy": (truth.get("context") or {}).get("segment_accuracy"),
                "accuracy": accuracy and accuracy["mean"],
                "accuracy_ci95": accuracy and [accuracy["ci95_low"], accuracy["ci95_high"]],
                "gain_over_round_before": gain,
            }
        )
        before = right or None
    return made


def _mean(rows: Sequence[Mapping[str, Any]], values: Sequence[float], resamples: int, seed: int) -> dict[str, float] | None:
    """Mean of the values of rows with its interval; None without any."""
    clusters: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=False):
        clusters.setdefault(file_of(row["video"]), []).append(value)
    if not clusters:
        return None
    mean, low, high = paired_bootstrap(clusters, resamples, seed)
    return {"mean": mean, "ci95_low": low, "ci95_high": high}


def section(rounds: Sequence[Mapping[str, Any]], counts: int, outcome: str) -> Html:
    """The rounds as a table and as curves. counts: the round whose model is the aligned model; outcome: how they ended."""
    lines = []
    for each in rounds:
        gain = each["gain_over_round_before"]
        change = f"{points(gain['mean'])} ({interval(gain['ci95_low'], gain['ci95_high'])})" if gain else "–"
        checkpoints = ", ".join(
            f"{name}: {number(method['chosen_iteration'])} at {percent(method['dev_win_rate'])}"
            for name, method in each["methods"].items()
        )
        shares = [
            share(each[name]) for name in ("dev_win_rate", "decided_share", "judge_accuracy", "segment_accuracy", "accuracy")
        ]
        win_rate, *others = shares
        name = f"{each['round']}{' (counts)' if each['round'] == counts else ''}"
        lines.append([name, win_rate, checkpoints or "–", number(each["pairs"]), *others, change])
    curves = [
        curve(
            "Dev win rate",
            [(each["round"], each["dev_win_rate"]) for each in rounds],
            note="the best of its methods over its own start",
            span=(0, 1),
        ),
        curve("Test accuracy", [(each["round"], each["accuracy"]) for each in rounds], note="by round"),
        curve("Pairs decided", [(each["round"], each["decided_share"]) for each in rounds], note="share of pairs", span=(0, 1)),
    ]
    head = [
        "Round",
        "Dev win rate",
        "Checkpoint",
        "Pairs",
        "Decided",
        "Judge right",
        "Descriptions right",
        "Test accuracy",
        "Change",
    ]
    return run_block("rounds", counts, outcome, head, lines, curves)
