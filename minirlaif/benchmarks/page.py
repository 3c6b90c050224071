"""A table as Markdown and as a page: figures with intervals, what has no mark, differences, pictures, worst and best examples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.benchmarks.agreement import FEW
from minirlaif.benchmarks.published import NO_PROTOCOL
from minirlaif.benchmarks.tables import judge_head, uncertain
from minirlaif.judges.rubric import LABELS, SHARES
from minirlaif.reports import html
from minirlaif.reports.html import Html, section, tag

Table = Mapping[str, Any]
FEW_CLIPS = "†"  # behind a figure of fewer than FEW clips
COUNTS = ("Rows", "Clips", "Marks")  # the last columns of a judge's table
DIFFERENCE = ("Difference [95 %]", "p", "Rows", "Left out", "Clips")
LEAD = (
    "Scores of 0 to 5 and shares in percent, with 95 % intervals (whole clips drawn). Every judge has a table of its own: marks"
    " of different judges, versions or prompts cannot be compared."
)


@dataclass(frozen=True)
class Example:
    """One item for the page. said: (model, answer, mark in words); strip: key of its frames, "" without; frames: how many.
    Question, truth and answers may have several lines."""

    question: str
    truth: str
    said: Sequence[tuple[str, str, str]]
    strip: str
    frames: int
    aspect: float


def markdown(table: Table, charts: Sequence[str] = ()) -> str:
    """The table as Markdown. charts: names of picture files beside it."""
    lines = [f"# {table['benchmark']}", ""]
    for each in table["tables"]:
        metrics = _metrics(row["cells"] for row in each["rows"])
        name, *small = _judge(each["judge"])
        lines += [f"## Judge: {name}", "", *([", ".join(small), ""] if small else [])]
        rows = [[row["model"], *(_cell(row["cells"].get(m), m) for m in metrics), *_counts(row)] for row in each["rows"]]
        lines += [*_table(["model", *(_head(m) for m in metrics), *map(str.lower, COUNTS)], rows), ""]
        lines += [*(f"- {line}" for line in notes(each)), ""]
        for change in each["differences"]:
            rows = [[LABELS[m], *_change(c, m)] for m, c in change["changes"].items()]
            lines += [f"{change['second']} minus {change['first']}:", ""]
            lines += [*_table(["metric", *(head[0].lower() + head[1:] for head in DIFFERENCE)], rows), ""]
    for judge, published in _published(table):
        metrics = _metrics(row["values"] for row in published)
        rows = [[_name(row), *(_value(row["values"].get(m), m) for m in metrics)] for row in published]
        lines += [f"## Published, {_by(judge)}", "", *_table(["model", *(_head(m) for m in metrics)], rows), ""]
    lines += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in charts]
    return "\n".join(lines).rstrip() + "\n"


def document(
    table: Table,
    run: str,
    pictures: Mapping[str, str],
    worst: Sequence[Example],
    best: Sequence[Example],
    strips: Mapping[str, bytes],
) -> Html:
    """The page. pictures: name -> SVG; strips: key -> JPEG of the frames in `Example.strip`."""
    head = tag(
        "header",
        tag("p", f"minirlaif benchmark · {run}", class_="eyebrow"),
        tag("h1", str(table["benchmark"])),
        tag("p", LEAD, class_="lead"),
    )
    parts: list[object] = [head, *(_judged(f"judge{number}", each) for number, each in enumerate(table["tables"], 1))]
    for number, (judge, rows) in enumerate(_published(table), 1):
        metrics = _metrics(row["values"] for row in rows)
        lines = [[_name(row), *(_value(row["values"].get(m), m) for m in metrics)] for row in rows]
        note = tag(
            "p",
            f"{_by(judge).capitalize()}. Not comparable with the tables above; read the order of models, not the figures.",
            class_="note",
        )
        shown = html.table(["Model", *(_head(m) for m in metrics)], lines)
        parts.append(section(f"published{number}", "Published figures", note, shown))
    drawn = [
        tag("figure", tag("img", src=f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", alt=name))
        for name, svg in pictures.items()
    ]
    if drawn:
        parts.append(section("pictures", "Pictures", tag("div", *drawn, class_="pictures")))
    for name, title, some in (("worst", "Worst marks", worst), ("best", "Best marks", best)):
        if some:
            parts.append(section(name, title, tag("div", *(_card(example) for example in some), class_="cards")))
    return html.page(f"minirlaif: {table['benchmark']}", parts, html.strip_styles(strips))


def comparison(tables: Sequence[Table], title: str, notes: Sequence[str]) -> Html:
    """The page of `compare`: a table as in `document` per benchmark, and what could not be compared."""
    top = tag("p", "minirlaif comparison", class_="eyebrow")
    parts: list[object] = [tag("header", top, tag("h1", title), tag("p", LEAD, class_="lead"))]
    for place, table in enumerate(tables):
        parts.append(tag("h2", table["benchmark"]))
        parts += [_judged(f"table{place}-{number}", each) for number, each in enumerate(table["tables"])]
    if notes:
        parts.append(section("notes", "Not compared", tag("ul", *(tag("li", note) for note in notes), class_="plain")))
    return html.page(f"minirlaif: {title}", parts)


def notes(each: Mapping[str, Any]) -> list[str]:
    """What must be known beside a table's means: rows without a mark, where the mean would lie with them, few clips."""
    told = []
    for row in each["rows"]:
        reasons = [(why, row["rows_without_mark"][why], marks) for why, marks in row["without_mark"].items()]
        if reasons:
            shown = ", ".join(
                f"{why}: {_of(n, 'row')}" + (f" ({marks} marks)" if marks != n else "") for why, n, marks in reasons
            )
            told.append(f"{row['model']}: marks missing or wrong by form: {shown}.")
        for metric, cell in row["cells"].items():
            what = "marks are missing" if metric == "mean" else "rows have no mark"
            if cell["marked"] < cell["rows"] and cell["mean"] is not None:
                low, high = (_value(cell[end], metric) for end in ("worst", "best"))
                told.append(
                    f"{row['model']}, {LABELS[metric]}: {cell['rows'] - cell['marked']} of {cell['rows']} {what};"
                    f" with all of them worst or best the mean would be {low} or {high}."
                )
            elif cell["mean"] is None:
                none = "not all of the five have a mark" if metric == "mean" else f"not one of {cell['rows']} rows has a mark"
                told.append(f"{row['model']}, {LABELS[metric]}: {none}.")
    figures = [cell for row in each["rows"] for cell in row["cells"].values()]
    figures += [change for pair in each["differences"] for change in pair["changes"].values()]
    if any(map(uncertain, figures)):
        told.append(f"{FEW_CLIPS} Fewer than {FEW} clips: interval and p are not to be trusted.")
    if each.get("first_only"):
        more = any(change["first"] != each["rows"][0]["model"] for change in each["differences"])
        beside = "and between models named together" if more else "alone"
        first, *others = (":".join(row["model"].rsplit(" ", 1)) for row in each["rows"])
        told.append(
            f"Differences are to {each['rows'][0]['model']} {beside}; compare RUN:MODEL RUN:MODEL"
            f" shows any other pair, such as {others[0]} {others[1]}."
        )
    return told


def _judge(judge: Mapping[str, Any]) -> list[str]:
    """The head, then what makes these marks comparable with no others."""
    version = f"version {judge['version']}" if judge["version"] not in ("", judge["name"]) else ""
    prompt = f"prompt {judge['prompt']}" if judge["prompt"] else ""
    return list(filter(None, [judge_head(judge), version, judge["asked"], prompt, " to ".join(dict.fromkeys(judge["dates"]))]))


def _by(judge: str) -> str:
    return judge if judge == NO_PROTOCOL else f"judge: {judge}"


def _judged(name: str, each: Mapping[str, Any]) -> Html:
    metrics = _metrics(row["cells"] for row in each["rows"])
    lines = [[row["model"], *(_two_lines(row["cells"].get(m), m) for m in metrics), *_counts(row)] for row in each["rows"]]
    who, *small = _judge(each["judge"])
    exactly = [tag("span", part + ("," if place < len(small) else "")) for place, part in enumerate(small, 1)]
    inside: list[object] = [tag("p", html.join(exactly, " "), class_="note whole")] if small else []
    inside.append(html.table(["Model", *(_head(m) for m in metrics), *COUNTS], lines))
    told = notes(each)
    if told:
        inside.append(tag("ul", *(tag("li", line) for line in told), class_="plain"))
    for change in each["differences"]:
        rows = [[LABELS[m], *_change(c, m)] for m, c in change["changes"].items()]
        inside += [
            tag("h3", f"{change['second']} minus {change['first']}"),
            html.table(["Metric", *DIFFERENCE], rows, "Same rows, sign-flip test by clip"),
        ]
    return section(name, f"Judge: {who}", *inside)


def _card(example: Example) -> Html:
    missing = tag("p", "No frames of this clip.", class_="note")
    strip = html.frames(example.strip, example.frames, example.aspect) if example.strip else missing
    told = [
        tag(
            "div",
            tag("dt", who, tag("b", f" {mark}") if mark else ""),
            tag("dd", _lines(text) if text else tag("em", "no answer")),
        )
        for who, text, mark in example.said
    ]
    return html.card(_lines(example.question), "", strip, _lines(example.truth), told)


def _lines(text: str) -> Html:
    return html.join(text.split("\n"), Html("<br>"))


def _metrics(rows: Any) -> list[str]:
    found = {metric for row in rows for metric in row}
    return [metric for metric in LABELS if metric in found and metric != "mean"] + (["mean"] if "mean" in found else [])


def _published(table: Table) -> list[tuple[str, list[Any]]]:
    judges = dict.fromkeys(row["judge"] for row in table["published"])
    return [(judge, [row for row in table["published"] if row["judge"] == judge]) for judge in judges]


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['model']} (read off a figure)" if row["read_off"] else str(row["model"])


def _head(metric: str) -> str:
    return f"{LABELS[metric]} %" if metric in SHARES else LABELS[metric]


def _value(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{100 * value:.1f}" if metric in SHARES else f"{value:.2f}"


def _cell(cell: Mapping[str, Any] | None, metric: str) -> str:
    if cell is None or cell["mean"] is None:
        return "–"
    few = f" {FEW_CLIPS}" if uncertain(cell) else ""
    return f"{_value(cell['mean'], metric)} [{_value(cell['low'], metric)}, {_value(cell['high'], metric)}]{few}"


def _two_lines(cell: Mapping[str, Any] | None, metric: str) -> Html:
    """The interval below the mean: six metrics do not fit beside theirs."""
    mean, _, ends = _cell(cell, metric).partition(" ")
    return tag("span", mean, tag("small", ends, style="display:block") if ends else "")


def _counts(row: Mapping[str, Any]) -> list[str]:
    """Rows, clips with a mark, and marks of all marks that there should be (the mean of five has none of its own)."""
    some = [cell for metric, cell in row["cells"].items() if metric != "mean"]
    marks = f"{sum(cell['marked'] for cell in some)} of {sum(cell['rows'] for cell in some)}"
    return [str(row["rows"]), str(row["clips"]), marks]


def _change(change: Mapping[str, Any], metric: str) -> list[str]:
    unit = " marks" if metric == "mean" else ""  # of five metrics: a row may have three of them
    counts = [f"{change['rows']}{unit}", f"{change['left_out']}{unit}", str(change["clips"])]
    if change["mean"] is None:
        return ["–", "–", *counts]
    scale = 100 if metric in SHARES else 1
    digits = 1 if metric in SHARES else 2
    mean, low, high = (f"{scale * change[end] + 0.0:+.{digits}f}" for end in ("mean", "low", "high"))
    p = "< 0.001" if change["p"] < 0.001 else f"{change['p']:.3f}"
    few = f" {FEW_CLIPS}" if uncertain(change) else ""
    return [f"{mean} [{low}, {high}]{few}", f"{p}{few}", *counts]


def _of(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
