"""The report's sections on how the result came about: judge, reward model, training, time, looks. Pure functions to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.reports.html import Html, bar, bars, curve, duration, number, percent, points, section, table, tag, tile
from minirlaif.reports.run_results import NOT_KEPT

Numbers = Mapping[str, Any]
SHARES = ("dev_win_rate", "accuracy")  # curves whose axis is all of 0 to 1


def judge(numbers: Numbers, settings: Mapping[str, Any]) -> Html:
    """How often the judge is right with and without the segment descriptions, and how firm it is."""
    j = numbers["judge"]
    parts: list[object] = [tag("p", _context_told(j))]
    shown = {"with_context": "with context", "without_context": "without context", "letter": "letter read-out, with context"}
    rows = [
        bar(label, j[name], "plain", j[f"{name}_ci95"], 0.5, note=f"{number(j[f'{name}_n'])} decided pairs")
        for name, label in shown.items()
        if j.get(name) is not None
    ]
    if rows:
        note = "Decided pairs of which exactly one answer is true. Whiskers: 95 % intervals. Dashed: a coin."
        parts += [bars(rows, "Agreement of the judge with truth"), tag("p", note, class_="note")]
    tables = [table(["The judge's verdicts", ""], _firmness(numbers, settings))]
    if set(j.get("by_type") or ()) - {"all"}:
        tables.append(
            table(["Right with context, by type", ""], [[kind, percent(share)] for kind, share in j["by_type"].items()])
        )
    parts.append(tag("div", *tables, class_="two"))
    if settings["readout"] == "likelihood":
        note = (
            "The likelihood read-out scores each answer by itself, so both orders agree by construction: that figure says nothing"
            " about position bias."
        )
        if j["letter_pairs"]:
            note += " The letter read-out can disagree with itself; it is measured here, never trained on."
        parts.append(tag("p", note, class_="note"))
    return section("judge", "The judge", *parts)


def _context_told(j: Mapping[str, Any]) -> str:
    if j["with_context"] is None or j["without_context"] is None:
        return "Agreement with truth was not measured: no truth is known for these pairs, or none was decided."
    gap = points(j["with_context"] - j["without_context"])
    apart = j["with_context_ci95"][0] > j["without_context_ci95"][1]
    return (
        f"Among decided pairs the segment descriptions move agreement with truth by {gap}"
        f" points; the two intervals {'are apart' if apart else 'overlap'}. With them the judge decides"
        f" {percent(j['decided_share'])} of its pairs, without them {percent(j['without_context_decided_share'])}."
    )


def _firmness(numbers: Numbers, settings: Mapping[str, Any]) -> list[list[str]]:
    j, context = numbers["judge"], numbers["context"] or {}
    rows = [[f"Both orders agree, {settings['readout']} read-out", percent(j["swap_consistency"])]]
    if j["letter_pairs"]:
        rows.append([f"Both orders agree, letters ({number(j['letter_pairs'])} pairs)", percent(j["letter_swap_consistency"])])
        rows.append(["Letters: always the first shown", percent(j["letter_first_shown_share"])])
        rows.append(["Letters: always the second shown", percent(j["letter_second_shown_share"])])
    rows += [["Pairs of different answers", number(j["pairs"])], ["Decided", percent(j["decided_share"])]]
    rows += [[f"Ties (less clear than {settings['margin']})", number(j["tie_asked"])], ["Invalid", number(j["invalid"])]]
    rows += [["Orders disagree", number(j["disagree"])], ["Answers all alike, not judged", number(j["same_answers"])]]
    rows.append(["The longer answer wins", percent(j["longer_wins"])])
    if context.get("segment_accuracy") is not None:
        rows.append(["Segment descriptions exactly true", percent(context["segment_accuracy"])])
    return rows


def reward(numbers: Numbers, settings: Mapping[str, Any]) -> Html:
    """Accuracy of the reward model on held-out pairs, and where it departs from the paper."""
    r = numbers["reward_model"]
    rows = [bar("against the judge", r["against_judge"], "plain", mark=0.5, note="held-out pairs")]
    if r["accuracy"] is not None:
        note = f"{number(r['n'])} held-out pairs with one true answer"
        rows.insert(0, bar("against truth", r["accuracy"], "plain", r.get("ci95"), 0.5, note=note))
    kinds = [bar(kind, share, "plain", mark=0.5) for kind, share in sorted(r["by_type"].items())]
    left = tag("div", tag("h3", "Picks the better answer"), bars(rows, "Accuracy of the reward model"))
    right: object = ""
    if set(r["by_type"]) - {"all"}:
        right = tag("div", tag("h3", "By type, against the judge"), bars(kinds, "Accuracy by type of question"))
    departures = []
    if settings["context"]:
        departures.append(tag("li", tag("code", "reward.context"), ": it reads the segment descriptions; the paper's does not."))
    if settings["likelihood"]:
        beta = f" Learned weight here: {number(r['beta'])}." if r.get("beta") is not None else ""
        told = f": a learned weight times the answer's mean log-likelihood is added to its score; not in the paper.{beta}"
        departures.append(tag("li", tag("code", "reward.likelihood"), told))
    parts: list[Html] = [tag("p", "No departure from the paper in what it reads and in how it scores.")]
    if departures:
        parts = [tag("h3", "Departures from the paper"), tag("ul", *departures, class_="plain")]
    return section("reward", "The reward model", tag("div", left, right, class_="two"), *parts)


def training(numbers: Numbers, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html:
    """Curves of PPO with the chosen iteration, then those of SFT and of the reward model."""
    best = numbers["ppo"]["chosen_iteration"]

    def drawn(stage: str, field: str, title: str, note: str = "", tone: str = "rlaif", mark: float | None = None) -> Html:
        rows = [(row["step"], row.get(field)) for row in metrics[stage]]
        return curve(title, rows, tone, mark, note, (0.0, 1.0) if field in SHARES else None)

    ppo = [
        drawn("ppo", "score", "Score", "reward model, mean over a batch", mark=best),
        drawn("ppo", "kl", "KL to SFT", "nats per answer", mark=best),
        drawn("ppo", "length", "Length", "tokens per answer", mark=best),
        drawn("ppo", "entropy", "Entropy", "nats per token", mark=best),
        drawn("ppo", "dev_win_rate", "Dev win rate", "dev answers preferred to SFT's; 0.5: no better", mark=best),
    ]
    short = [row["step"] for row in metrics["sft"] if row.get("stage") == "long"]
    others = [
        drawn("sft", "loss", "SFT loss", "dashed: long answers begin" if short else "", "sft", min(short, default=None)),
        drawn("reward", "loss", "Reward model loss", "", "plain"),
        drawn("reward", "accuracy", "Reward model accuracy", "on each step's training pairs; above: held-out", "plain"),
    ]
    told = "The weights after the last iteration were kept: there were no dev questions to choose by."
    if numbers["ppo"]["dev_win_rate"] is not None:
        told = NOT_KEPT if best == 0 else f"The dashed line marks iteration {number(best)}, whose weights were kept."
        told += (
            " Truth is not read before the evaluation, so the judge's win rate on dev questions stands in for accuracy while PPO"
            " runs."
        )
    return section(
        "training",
        "Training",
        tag("p", told),
        tag("div", *ppo, class_="curves"),
        tag("h3", "Before PPO"),
        tag("div", *others, class_="curves"),
    )


def time(numbers: Numbers) -> Html:
    """Seconds of each stage."""
    seconds = numbers["seconds"]
    total, most = sum(seconds.values()) or 1.0, max(seconds.values(), default=0.0) or 1.0
    rows = [
        bar(name, spent / most, "plain", value=duration(spent), note=percent(spent / total, 0)) for name, spent in seconds.items()
    ]
    return section("time", "Where the time went", tag("p", f"{duration(total)} in all."), bars(rows, "Time per stage"))


def looks(numbers: Numbers) -> Html:
    """Decodes, encodes and prefilled tokens."""
    c = numbers["counts"]
    names = {
        "decodes": "Decodes",
        "encodes": "Encodes",
        "plans": "Clip × frame plan",
        "encoded_frames": "Frames encoded",
        "opened": "Clips opened to check",
    }
    names["prefilled_tokens"] = "Tokens prefilled"
    rows = [[stage, *(number(row.get(name, 0)) for name in names)] for stage, row in c["by_stage"].items()]
    rows.append(["all", *(number(c["total"].get(name, 0)) for name in names)])
    told = "One look per clip and frame plan means 1.00 here."
    if c["decodes_per_clip"] == 1 and c["encodes_per_clip"] == 1:
        told = "Each clip was decoded and encoded once per frame plan; everything after that came from the run's cache."
    prefilled = c["prefilled_tokens_per_clip"]
    tiles = [
        tile("Decodes per clip and frame plan", _looks(c["decodes_per_clip"])),
        tile("Encodes per clip and frame plan", _looks(c["encodes_per_clip"])),
        tile("Tokens prefilled per clip", number(prefilled and round(prefilled)), f"{number(c['clips'])} clips"),
    ]
    kept = f" The cache holds {number(c['cached_plans'])} entries now." if c["cached_plans"] else ""
    told_tokens = "Tokens: prompts read to sample answers, and whole rows in sft; scoring passes are not counted."
    note = tag("p", f"An entry counts in the stage that made it.{kept} {told_tokens}", class_="note")
    counted = table(["Stage", *names.values()], rows, strong_last=True)
    return section("looks", "Looks and prefills", tag("p", told), tag("dl", *tiles, class_="tiles"), counted, note)


def foot(manifests: Mapping[str, Mapping[str, Any]], settings: str) -> Html:
    """The settings, and what they ran on."""
    last = manifests["evaluate"]
    code, versions = last.get("code") or {}, last.get("versions") or {}
    words = [f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if name in versions]
    words.append(str(last.get("gpu") or "no GPU"))
    if code.get("revision"):
        words.append(f"code {str(code['revision'])[:12]}{' with changes' if code.get('changed') else ''}")
    shown = tag("details", tag("summary", "All settings of this run"), tag("pre", settings))
    return tag("footer", shown, tag("p", " · ".join(words)))


def _looks(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
