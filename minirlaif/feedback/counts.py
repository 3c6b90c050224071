"""What became of the prompts: pairs decided and not, texts cut at their limit; and the setting that helps where too many were."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.config import FeedbackSection
from minirlaif.errors import UserError
from minirlaif.feedback.verdicts import is_order_consistent
from minirlaif.runs.io import read_jsonl
from minirlaif.types import Verdict

DECIDED_SHARE = 0.5  # of pairs, below which the setting is named that decides more
CUT_SHARE = 0.05  # of answers or descriptions cut at their limit, above which a warning is printed


def count_verdicts(folder: Path) -> dict[str, Any]:
    """Of the stage's folder: pairs, decided ones, each outcome, and the shares that show a judge that does not read."""
    rows = read_jsonl(folder / "verdicts.jsonl", missing_ok=True)
    choices = [row["choice"] for row in rows]
    compared = [row for row in rows if row["answer_a"] != row["answer_b"]]
    decided = sum(choice in ("A", "B") for choice in choices)
    firm = [is_order_consistent(Verdict(row["id"], row["choice"], row["margin"], tuple(row["orders"]))) for row in compared]
    longer = [
        len(row["answer_a"]) > len(row["answer_b"]) if row["choice"] == "A" else len(row["answer_b"]) > len(row["answer_a"])
        for row in compared
        if row["choice"] in ("A", "B") and len(row["answer_a"]) != len(row["answer_b"])
    ]
    return {
        "decided": decided,
        "pairs": len(compared),
        "same_answers": len(rows) - len(compared),
        "decided_share": round(decided / max(1, len(compared)), 4),
        **{name: choices.count(name) for name in ("A", "B", "tie", "invalid", "disagree")},
        "swap_consistency": round(sum(firm) / max(1, sum(row["choice"] != "tie" for row in compared)), 4),
        "longer_wins": round(sum(longer) / max(1, len(longer)), 4),
    }


def count_cut(folder: Path) -> dict[str, int]:
    """How many answers and descriptions there are, and how many of them were cut at their limit of tokens."""
    stopped = [each for row in read_jsonl(folder / "answers.jsonl", missing_ok=True) for each in row.get("stopped", ())]
    described = read_jsonl(folder / "contexts.jsonl", missing_ok=True)
    segments, cut = sum(len(row["segments"]) for row in described), sum(row.get("cut", 0) for row in described)
    answers = {"sampled_answers": len(stopped), "cut_answers": stopped.count(False)}
    missing = sum(row.get("missing", 0) for row in described)
    counts = answers | {"descriptions": segments, "cut_descriptions": cut}
    undivided = sum(len(row["segments"]) == 1 for row in described)
    counts |= {"described_clips": len(described), "one_segment_clips": undivided}
    return counts | ({"refused_descriptions": missing} if missing else {})


def warn_of_cut(counts: Mapping[str, Any], f: FeedbackSection) -> None:
    """Say what to raise where more than a few texts were cut, and how many descriptions are missing."""
    if (missing := counts.get("refused_descriptions", 0)) and distributed.leads():
        print(f"feedback: the describer gave no text for {missing:,} of {counts['descriptions']:,} segments", flush=True)
    undivided, clips = counts["one_segment_clips"], counts["described_clips"]
    if undivided and f.context and distributed.leads():
        print(
            f"feedback: {undivided:,} of {clips:,} clips have one segment, whose description holds hardly more than the model"
            " sees without it: see video.min_segments and video.max_segments (clips of up to a second keep one)",
            flush=True,
        )
    limits = {
        "answers": (counts["cut_answers"], counts["sampled_answers"], f"feedback.max_new_tokens, which is {f.max_new_tokens}"),
        "descriptions": (
            counts["cut_descriptions"],
            counts["descriptions"],
            f"feedback.describe_tokens, which is {f.describe_tokens}",
        ),
    }
    for name, (cut, of, setting) in limits.items():
        if cut > CUT_SHARE * of and distributed.leads():
            kept = "; they are in no pair" if name == "answers" else "; the judge reads what there is of them"
            print(f"feedback: {cut:,} of {of:,} {name} were cut at the limit of tokens{kept}: raise {setting}", flush=True)


def advice(counts: Mapping[str, Any], f: FeedbackSection, text_judge: bool = False) -> tuple[str, str, str]:
    """What became of the pairs that were not decided, what most of them call for, and the setting that does it. text_judge: the
    judge reads text, and has no read-out."""
    became = {
        "disagree": counts["disagree"],
        "tie": counts["tie"] - counts["same_answers"],
        "invalid": counts["invalid"],
        "alike": counts["same_answers"],
    }
    outcomes = ", ".join(f"{name} {count:,}" for name, count in became.items())
    if counts["cut_answers"] > counts["sampled_answers"] / 2:
        cut = f"{counts['cut_answers']:,} of {counts['sampled_answers']:,} answers were cut at the limit of tokens"
        return cut, "allow longer answers", f"feedback.max_new_tokens={4 * f.max_new_tokens}"
    why = max(became, key=lambda name: became[name])
    if why in ("disagree", "invalid") and f.readout == "letter" and not text_judge:
        return outcomes, "score each answer by itself", "feedback.readout=likelihood"
    if why == "disagree" and f.disagreement == "drop":
        return outcomes, "let the mean of both orders decide", "feedback.disagreement=average"
    if why == "tie" and f.margin > 0:
        return outcomes, "let less clear verdicts count", f"feedback.margin={f.margin / 10:.2g}"
    return outcomes, "draw more answers per question", f"feedback.answers={2 * f.answers}"


def undecided(counts: Mapping[str, Any], f: FeedbackSection, text_judge: bool = False) -> UserError:
    """The error when no pair was decided."""
    outcomes, remedy, setting = advice(counts, f, text_judge)
    return UserError(f"feedback: the judge decided no pair ({outcomes}); {remedy}", again=(setting,))


def warn(counts: Mapping[str, Any], f: FeedbackSection, text_judge: bool, paired: bool) -> None:
    """Print what to change where texts were cut, descriptions are missing or few pairs were decided. paired: a stage learns from
    pairs."""
    warn_of_cut(counts, f)
    if paired:
        warn_of_undecided(counts, f, text_judge)


def warn_of_undecided(counts: Mapping[str, Any], f: FeedbackSection, text_judge: bool = False) -> None:
    """Say what to change where fewer than half of the pairs were decided, prompts whose answers are all alike among them."""
    total, decided = counts["pairs"] + counts["same_answers"], counts["decided"]
    if 0 < decided < DECIDED_SHARE * total and distributed.leads():
        outcomes, remedy, setting = advice(counts, f, text_judge)
        print(f"feedback: the judge decided {decided:,} of {total:,} pairs ({outcomes}); {remedy}: {setting}", flush=True)


def count_step(written: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """What the judge made of the pairs of one step, for metrics.jsonl. written: (file, line) of each."""
    rows = [record for name, record in written if name == "verdicts.jsonl"]
    choices = [row["choice"] for row in rows]
    counts = {name: float(choices.count(name)) for name in ("tie", "invalid", "disagree")}
    mean = sum(row["margin"] for row in rows) / len(rows) if rows else 0.0
    described = sum(name == "contexts.jsonl" for name, _ in written)
    decided = float(sum(choice in ("A", "B") for choice in choices))
    return {"clips_described": float(described), "pairs": float(len(rows)), "decided": decided, **counts, "margin": mean}
