"""ablation.md and ablation.html from the numbers of ablation.json. Pure functions from values to text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.ablation.arms import COUNTS
from minirlaif.ablation.claims import FAILS, HOLDS, MISSING, OPEN
from minirlaif.reports import html
from minirlaif.reports.html import Html, bar, bars, duration, interval, join, number, percent, points, section, share, table, tag

Numbers = Mapping[str, Any]
TONES = {HOLDS: "ok", FAILS: "no", OPEN: "open", MISSING: "open"}
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", MISSING: "–"}
FAILED = "Could not be made; what stands on it was not measured"
HEAD = ("arm", "changed settings", "makes", "made for seeds")
STYLE = """.open{color:var(--soft);font-weight:650}.ok,.no,.open{white-space:nowrap}
.gap{position:relative;height:16px;background:linear-gradient(90deg,var(--track) 50%,transparent 50%);border-radius:5px}
.gap{background:var(--track)}.gap i{position:absolute;display:block;top:0;bottom:0}
.gap .zero{left:50%;border-left:2px dashed var(--ink);opacity:.55;top:-5px;bottom:-5px}
.gap .point{width:10px;height:10px;border-radius:50%;margin:3px 0 0 -5px;bottom:auto;background:var(--rlaif)}
.gap .seed.point{width:8px;height:8px;margin:4px 0 0 -4px;background:var(--plain)}
.claim{border-top:1px solid var(--line);padding-top:12px;margin-top:14px}
.claim .bars{gap:5px}.claim .bars li{grid-template-columns:minmax(90px,130px) 1fr 12.5em}
.claim .bars b{font-weight:500;font-size:.88rem}
.verdicts td:nth-child(n){vertical-align:top}.verdicts tr>:last-child{text-align:left}
.lost{background:var(--hint);border-radius:12px;padding:12px 16px;margin:0 0 1em}.lost p,.lost ul{margin:.2em 0}
.lost li,.claim p{overflow-wrap:anywhere}
.arms td,.arms th{text-align:left;vertical-align:top}.arms td{white-space:normal}.arms tbody th{white-space:nowrap}
.arms td span{display:block;overflow-wrap:anywhere}
@media(max-width:560px){.claim .bars li{grid-template-columns:1fr auto}.claim .gap{grid-row:2;grid-column:1/-1}
.verdicts thead,.arms thead{position:absolute;clip-path:inset(50%)}
.verdicts tbody,.verdicts th,.verdicts td,.arms tbody,.arms tr,.arms th,.arms td{display:block;border:0;padding:1px 0}
.verdicts tr,.arms tr{border-bottom:1px solid var(--line);padding:8px 0}
.verdicts tr{display:grid;grid-template-columns:3.6em 1fr auto}.verdicts th{grid-column:1/-1}
.verdicts td{text-align:left}.arms tbody th{font-weight:650}.arms td:nth-child(3)::before{content:"makes "}
.arms td:last-child::before{content:"made for seeds "}}
"""


def sentence(claim: Numbers) -> str:
    """The claim, its verdict and what it stands on, or why there are no figures."""
    if claim["verdict"] == MISSING:
        return f"{claim['text']}: {MISSING} ({claim['reason']})."
    all_seeds, seeds = claim["pooled"], ", ".join(points(figure["mean"]) for figure in claim["seeds"].values())
    reverse = "; it is the other way round" if all_seeds["high"] < 0 else ""
    sides = f"{claim['better']} {percent(claim['better_mean'])}, {claim['worse']} {percent(claim['worse_mean'])}"
    gain = f"{points(all_seeds['mean'])} points ({interval(all_seeds['low'], all_seeds['high'])}; by seed {seeds})"
    return f"{claim['text']}: {claim['verdict']}{reverse}. {sides}: {gain}, n {number(all_seeds['n'])}."


def lead(numbers: Numbers) -> str:
    """How many claims there are, and how many of each verdict."""
    counts = Counter(claim["verdict"] for group in numbers["groups"] for claim in group["claims"])
    n, holding, failing, unsure, missing = counts.total(), *(counts[verdict] for verdict in TONES)
    told = [
        f"{holding} {'holds' if holding == 1 else 'hold'}",
        f"{failing} {'does' if failing == 1 else 'do'} not",
        f"{unsure} {'is' if unsure == 1 else 'are'} undecided",
        *([f"{missing} {'was' if missing == 1 else 'were'} not measured"] if missing else []),
    ]
    return f"Of {n} claim{'s' * (n != 1)} {', '.join(told[:-1])}, and {told[-1]}."


def failures(numbers: Numbers) -> list[str]:
    """A line for each arm that could not be made."""
    return [f"seed {lost['seed']}, {lost['arm']}: {lost['reason']}" for lost in numbers["failed"]]


def markdown(numbers: Numbers) -> str:
    """The count of verdicts, what could not be made, a table of claims, then the figures of each question."""
    lines = [lead(numbers), ""]
    if lost := failures(numbers):
        lines += [f"{FAILED}:", "", *(f"- {line}" for line in lost), ""]
    lines.append("| claim | | difference, points [95 %] | by seed | verdict |\n| --- | --- | --- | --- | --- |")
    for group in numbers["groups"]:
        for claim in group["claims"]:
            seeds = ", ".join(points(figure["mean"]) for figure in claim["seeds"].values())
            sides = f"{percent(claim['better_mean'])} against {percent(claim['worse_mean'])}"
            figures = ("–", "–", "–") if claim["verdict"] == MISSING else (sides, _gain(claim["pooled"]), seeds)
            lines.append(f"| {claim['text']} | {' | '.join(figures)} | **{claim['verdict']}**{_because(claim)} |")
    lines += ["", numbers["rule"], ""]
    for group in numbers["groups"]:
        lines += [
            f"**{group['title']}** {group['note']}",
            "",
            "| | counted | % [95 %] | by seed | |",
            "| --- | --- | --- | --- | --- |",
        ]
        for entry in group["entries"]:
            seeds = ", ".join(share(figure["mean"]) for figure in entry["seeds"].values())
            counted = f"{COUNTS[entry['counts']]}, n {number(entry['pooled']['n'])}"
            lines.append(f"| {entry['label']} | {counted} | {_level(entry['pooled'])} | {seeds} | {_remarks(entry)} |")
        lines.append("")
    spent = numbers["seconds"]
    lines.append(f"Stages of the main runs {duration(spent['main'])}, of the arms {duration(spent['arms'])}, on one core each.")
    return "\n".join(lines) + "\n"


def document(numbers: Numbers) -> Html:
    """The self-contained page."""
    claims = [claim for group in numbers["groups"] for claim in group["claims"]]
    seeds = ", ".join(map(str, numbers["seeds"]))
    lost = failures(numbers)
    parts = [
        tag(
            "header",
            tag("p", f"minirlaif ablation · tiny world · seeds {seeds}", class_="eyebrow"),
            tag("h1", "Does it do what the paper says?"),
            tag("p", lead(numbers), class_="lead"),
            tag("div", tag("p", f"{FAILED}:"), tag("ul", *(tag("li", line) for line in lost), class_="plain"), class_="lost")
            if lost
            else "",
            tag("p", numbers["rule"], class_="note"),
        ),
        section("verdicts", "Claims", tag("div", _verdicts(claims), class_="verdicts")),
        *(_group(group) for group in numbers["groups"]),
        _foot(numbers),
    ]
    return html.page("minirlaif ablation", parts, STYLE)


def _verdicts(claims: Sequence[Numbers]) -> Html:
    head = ("Claim", "Points", "95 %", "Verdict")
    rows = [
        (c["text"], points(c["pooled"]["mean"]), "–" if c["verdict"] == MISSING else _ends(c["pooled"]), _badge(c))
        for c in claims
    ]
    return table(head, rows)


def _badge(claim: Numbers) -> Html:
    return tag("span", f"{SIGNS[claim['verdict']]} {claim['verdict']}", class_=TONES[claim["verdict"]])


def _group(group: Numbers) -> Html:
    shown = []
    for counts, what in COUNTS.items():
        entries = [entry for entry in group["entries"] if entry["counts"] == counts]
        if entries:
            n = number(entries[0]["pooled"]["n"])
            shown.append(tag("div", tag("h3", f"{what[0].upper()}{what[1:]} (n {n})"), bars(map(_bar, entries), what)))
    rows = [
        (entry["label"], *(share(figure["mean"]) for figure in entry["seeds"].values()), share(entry["pooled"]["mean"]))
        for entry in group["entries"]
    ]
    seeds = [f"seed {seed}" for entry in group["entries"][:1] for seed in entry["seeds"]]
    by_seed = tag("details", tag("summary", "By seed"), table(("%", *seeds, "all"), rows)) if rows else ""
    note = tag("p", group["note"], class_="note")
    return section(group["name"], group["title"], note, tag("div", *shown, class_="two"), *map(_claim, group["claims"]), by_seed)


def _bar(entry: Numbers) -> Html:
    figure = entry["pooled"]
    tone = "sft" if entry["label"].startswith("SFT") else "base" if entry["label"].startswith("Base") else "rlaif"
    return bar(entry["label"], figure["mean"], tone, (figure["low"], figure["high"]), note=_remarks(entry))


def _claim(claim: Numbers) -> Html:
    """The sentence, and the difference with its interval over all seeds and in each."""
    if claim["verdict"] == MISSING:
        return tag("div", tag("p", f"{claim['text']}: ", _badge(claim), f"{_because(claim)}."), class_="claim")
    ends = [abs(figure[end]) for figure in (claim["pooled"], *claim["seeds"].values()) for end in ("low", "high", "mean")]
    span = max(0.05, *ends)  # what half of the track stands for
    rows = [_gap("All seeds", claim["pooled"], span, "")]
    rows += [_gap(f"Seed {seed}", figure, span, "seed ") for seed, figure in claim["seeds"].items()]
    text = sentence(claim).removeprefix(f"{claim['text']}: {claim['verdict']}")
    return tag("div", tag("p", f"{claim['text']}: ", _badge(claim), text), bars(rows, claim["text"]), class_="claim")


def _gap(label: str, figure: Numbers, span: float, kind: str) -> Html:
    at = {name: 50 + 50 * figure[name] / span for name in ("mean", "low", "high")}
    inside = [
        tag("i", class_="zero"),
        tag("i", class_="whisker", style=f"left:{at['low']:.2f}%;width:{at['high'] - at['low']:.2f}%"),
        tag("i", class_=f"{kind}point", style=f"left:{at['mean']:.2f}%"),
    ]
    return tag(
        "li", tag("span", label, class_="name"), tag("span", *inside, class_="gap", aria_hidden="true"), tag("b", _gain(figure))
    )


def _gain(figure: Numbers) -> str:
    return f"{points(figure['mean'])} [{_ends(figure)}]"


def _ends(figure: Numbers) -> str:
    return interval(figure["low"], figure["high"])


def _because(claim: Numbers) -> str:
    """Why a claim was not measured, for behind its verdict. A | would end the cell of a table."""
    return f" ({claim['reason'].replace('|', '¦')})" if claim["reason"] else ""


def _level(figure: Numbers) -> str:
    return f"{share(figure['mean'])} [{share(figure['low'])} to {share(figure['high'])}]"


def _remarks(entry: Numbers) -> str:
    """Shares as percent, other numbers as they are. Orders that always agree (the likelihood read-out's) are not news."""
    shares = ("decided", "right of the decided", "both orders agree", "agrees with the judge")
    known = {name: value for name, value in entry["remarks"].items() if (name, value) != ("both orders agree", 1.0)}
    told = {name: percent(value) if name in shares else number(value) for name, value in known.items()}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _foot(numbers: Numbers) -> Html:
    rows = [
        (name, _lines(arm["changed"]), " ".join(arm["makes"]), ", ".join(map(str, arm["seeds"])) or "none")
        for name, arm in numbers["arms"].items()
    ]
    spent = numbers["seconds"]
    told = (
        f"Stages of the main runs took {duration(spent['main'])}, those of the arms {duration(spent['arms'])}, on one core each."
    )
    shared = "An arm makes the stages named here; the others are those of the main run of its seed."
    return section("arms", "Arms", tag("p", f"{told} {shared}", class_="note"), tag("div", table(HEAD, rows), class_="arms"))


def _lines(texts: Sequence[str]) -> Html:
    """Each on its own line."""
    return join(tag("span", text) for text in texts or ("–",))
