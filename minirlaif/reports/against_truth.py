"""A run's judge, reward model and segment descriptions against the truth of its world: pure functions of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirlaif.runs.records import COUNTS
from minirlaif.stats import exact_match, wilson

Truth = Mapping[str, Mapping[str, Any]]  # rows of truth.jsonl by id


def judge(rows: Sequence[dict[str, Any]], counts: Mapping[str, Any], truth: Truth) -> dict[str, Any]:
    """Agreement with truth on pairs of which exactly one answer is true, decided ones only, with and without context."""
    result: dict[str, Any] = {name: counts[name] for name in COUNTS}
    kinds: dict[str, list[float]] = {}
    for name in ("with_context", "without_context", "letter"):
        hits = []
        for row in rows:
            verdict = row if name == "with_context" else row.get(name)
            answer = truth[row["id"].split("#")[0]]["answer"]
            a, b = exact_match(row["answer_a"], answer), exact_match(row["answer_b"], answer)
            if verdict is None or a == b or verdict["choice"] not in ("A", "B"):
                continue
            hits.append(float((verdict["choice"] == "A") == a))
            if name == "with_context":
                kinds.setdefault((row.get("tags") or {}).get("type", "all") or "", []).append(hits[-1])
        result[name] = sum(hits) / len(hits) if hits else None
        result[f"{name}_n"] = len(hits)
        result[f"{name}_ci95"] = wilson(int(sum(hits)), len(hits)) if hits else None
    result["by_type"] = {kind: sum(hits) / len(hits) for kind, hits in sorted(kinds.items())}
    return result


def reward(rows: Sequence[dict[str, Any]], metrics: Mapping[str, Any], truth: Truth) -> dict[str, Any]:
    """The reward model on held-out pairs: against truth where exactly one answer is true, and against the judge."""
    hits = []
    for row in rows:
        answer = truth.get(row["id"].split("#")[0], {}).get("answer")
        if answer is None:
            continue
        chosen, rejected = exact_match(row["chosen"], answer), exact_match(row["rejected"], answer)
        if chosen != rejected:
            hits.append(float((row["score_chosen"] > row["score_rejected"]) == chosen))
    return {
        "accuracy": sum(hits) / len(hits) if hits else None,
        "n": len(hits),
        "against_judge": metrics["accuracy"],
        "by_type": metrics["accuracy_by_type"],
        "bias": metrics["bias"],
        "beta": metrics.get("beta"),
    }


def segments(rows: Sequence[dict[str, Any]], truth: Truth) -> dict[str, Any]:
    """How many segment descriptions are true, word for word."""
    described = {Path(row["video"]).name: row["segments"] for row in rows}
    hits = []
    for fact in {f["video"]: f for f in truth.values()}.values():
        lines = described.get(Path(fact["video"]).name)
        if lines is not None:
            pairs = zip(lines, fact["segments"], strict=False)
            hits += [float(exact_match(a, b)) for a, b in pairs] + [0.0] * abs(len(lines) - len(fact["segments"]))
    return {"segment_accuracy": sum(hits) / len(hits) if hits else None, "segments": len(hits)}
