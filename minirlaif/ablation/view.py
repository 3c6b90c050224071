"""ablation.md and ablation.html from the numbers of ablation.json. Pure functions from values to text."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirlaif.ablation.arms import COUNTS
from minirlaif.ablation.outcomes import FAILS, HOLDS, MISSING, OPEN, Figure, verdict
from minirlaif.reports.html import Html, bar, bars, duration, interval, number, page, percent, points, render, share

Numbers = Mapping[str, Any]
TONES = {HOLDS: "ok", FAILS: "no", OPEN: "open", MISSING: "open"}
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", MISSING: "–"}
FAILED = "Arms that could not be made; claims about them were not measured"


def sentence(claim: Numbers) -> str:
    """The claim, its verdict and its figures, or why there are none."""
    if claim["verdict"] == MISSING:
        return f"{claim['text']}: {MISSING} ({claim['reason']})."
    all_seeds, seeds = claim["pooled"], ", ".join(points(figure["mean"]) for figure in claim["seeds"].values())
    reverse = "; the reverse holds" if _reversed_holds(claim) else ""
    sides = f"{claim['better']} {percent(claim['better_mean'])}, {claim['worse']} {percent(claim['worse_mean'])}"
    ends = interval(all_seeds["low"], all_seeds["high"])
    over_t = f"; t over seeds {interval(*claim['t'])}" if claim["t"] else ""
    gain = f"{points(all_seeds['mean'])} points ({ends}; by seed {seeds}{over_t})"
    return f"{claim['text']}: {claim['verdict']}{reverse}. {sides}: {gain}, n {number(all_seeds['n'])}."


def _reversed_holds(claim: Numbers) -> bool:
    """Whether the opposite claim would hold by the same rule."""
    pooled, *seeds = (
        Figure(-each["mean"], -each["high"], -each["low"], each["n"]) for each in (claim["pooled"], *claim["seeds"].values())
    )
    return verdict(pooled, dict(enumerate(seeds))) == HOLDS


def lead(numbers: Numbers) -> str:
    """How many claims there are, and how many of each verdict."""
    counts = Counter(claim["verdict"] for group in numbers["groups"] for claim in group["claims"])
    n, holding, failing, unsure, missing = counts.total(), *(counts[verdict] for verdict in TONES)
    parts = [
        f"{holding} {'holds' if holding == 1 else 'hold'}",
        f"{failing} {'does' if failing == 1 else 'do'} not",
        f"{unsure} {'is' if unsure == 1 else 'are'} undecided",
        *([f"{missing} {'was' if missing == 1 else 'were'} not measured"] if missing else []),
    ]
    return f"Of {n} claim{'s' * (n != 1)} {', '.join(parts[:-1])}, and {parts[-1]}."


def failures(numbers: Numbers) -> list[str]:
    """A line for each arm that could not be made."""
    return [f"seed {each['seed']}, {each['arm']}: {each['reason']}" for each in numbers["failed"]]


def markdown(numbers: Numbers) -> str:
    """The number of claims by verdict, arms that failed, a table of claims, then the figures of each question."""
    lines = [lead(numbers), ""]
    if failed := failures(numbers):
        lines += [f"{FAILED}:", "", *(f"- {line}" for line in failed), ""]
    lines.append("| claim | | difference, points [95 %] | by seed | t over seeds | verdict |\n" + "| --- " * 6 + "|")
    for group in numbers["groups"]:
        for claim in group["claims"]:
            seeds = ", ".join(points(figure["mean"]) for figure in claim["seeds"].values())
            sides = f"{percent(claim['better_mean'])} against {percent(claim['worse_mean'])}"
            over_t = interval(*claim["t"]) if claim["t"] else "–"
            figures = ("–",) * 4 if claim["verdict"] == MISSING else (sides, _gain(claim["pooled"]), seeds, over_t)
            lines.append(f"| {claim['text']} | {' | '.join(figures)} | **{claim['verdict']}**{_because(claim)} |")
    lines += ["", numbers["rule"], ""]
    for group in numbers["groups"]:
        lines += [f"**{group['title']}** {group['note']}", ""]
        lines.append("| | counted | % [95 %] | by seed | |\n| --- | --- | --- | --- | --- |")
        for measure in group["entries"]:
            seeds = ", ".join(share(figure["mean"]) for figure in measure["seeds"].values())
            mean, low, high = (share(measure["pooled"][end]) for end in ("mean", "low", "high"))
            counted = f"{COUNTS[measure['counts']]}, n {number(measure['pooled']['n'])}"
            lines.append(f"| {measure['label']} | {counted} | {mean} [{low} to {high}] | {seeds} | {_remarks(measure)} |")
        lines.append("")
    spent = numbers["seconds"]
    lines.append(f"Stages of the main runs {duration(spent['main'])}, of the arms {duration(spent['arms'])}, on one core each.")
    return "\n".join(lines) + "\n"


def document(numbers: Numbers) -> Html:
    """The self-contained page."""
    claims = [claim for group in numbers["groups"] for claim in group["claims"]]
    rows = []
    for claim in claims:
        mean, low, high = (claim["pooled"][end] for end in ("mean", "low", "high"))
        rows.append((claim["text"], points(mean), "–" if mean is None else interval(low, high), claim["verdict"]))
    body = render(
        "ablation/templates/ablation.html",
        **{"numbers": numbers, "claims": rows, "groups": [_group(group) for group in numbers["groups"]]},
        **{"lead": lead(numbers), "failed": failures(numbers), "FAILED": FAILED, "tones": TONES, "signs": SIGNS},
    )
    style = (Path(__file__).parent / "templates" / "ablation.css").read_text(encoding="utf-8")
    return page("minirlaif ablation", [body], style)


def _group(group: Numbers) -> dict[str, Any]:
    """What the template shows of a question: bars by what is counted, its claims, and a table by seed."""
    measures, charts = group["entries"], []
    for counts, what in COUNTS.items():
        of_kind = [each for each in measures if each["counts"] == counts]
        if of_kind:
            n = number(of_kind[0]["pooled"]["n"])
            charts.append((f"{what[0].upper()}{what[1:]} (n {n})", bars([_bar(each) for each in of_kind], what)))
    rows = [
        (each["label"], *(share(figure["mean"]) for figure in each["seeds"].values()), share(each["pooled"]["mean"]))
        for each in measures
    ]
    head = ["%", *(f"seed {seed}" for each in measures[:1] for seed in each["seeds"]), "all"]
    return {**group, "charts": charts, "claims": [_claim(claim) for claim in group["claims"]], "head": head, "rows": rows}


def _bar(measure: Numbers) -> Html:
    figure = measure["pooled"]
    tone = "sft" if measure["label"].startswith("SFT") else "base" if measure["label"].startswith("Base") else "rlaif"
    return bar(measure["label"], figure["mean"], tone, (figure["low"], figure["high"]), note=_remarks(measure))


def _claim(claim: Numbers) -> dict[str, Any]:
    """The sentence, and the difference with its interval over all seeds and in each, as places in percent of the track."""
    if claim["verdict"] == MISSING:
        return {**claim, "sentence": f"{_because(claim)}.", "rows": []}
    figures = {"All seeds": claim["pooled"], **{f"Seed {seed}": figure for seed, figure in claim["seeds"].items()}}
    span = max(0.05, *(abs(figure[end]) for figure in figures.values() for end in ("low", "high", "mean")))  # half of the track
    rows = [
        (label, *(50 + 50 * figure[end] / span for end in ("low", "high", "mean")), _gain(figure))
        for label, figure in figures.items()
    ]
    return {**claim, "sentence": sentence(claim).removeprefix(f"{claim['text']}: {claim['verdict']}"), "rows": rows}


def _gain(figure: Numbers) -> str:
    return f"{points(figure['mean'])} [{interval(figure['low'], figure['high'])}]"


def _because(claim: Numbers) -> str:
    """Why a claim was not measured, to stand behind its verdict. A | would end the cell of a table."""
    return f" ({claim['reason'].replace('|', '¦')})" if claim["reason"] else ""


def _remarks(measure: Numbers) -> str:
    """Shares as percent, other numbers as they are. Orders that always agree (as with likelihoods) are left out."""
    shares = ("decided", "right of the decided", "both orders agree", "agrees with the judge")
    known = {name: value for name, value in measure["remarks"].items() if (name, value) != ("both orders agree", 1.0)}
    return ", ".join(f"{name} {percent(value) if name in shares else number(value)}" for name, value in known.items())
