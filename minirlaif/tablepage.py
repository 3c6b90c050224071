"""A table as Markdown and as a page: figures with intervals, what has no mark, differences, pictures, worst and best examples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from minirlaif import page
from minirlaif.page import Html, section, tag
from minirlaif.rubric import LABELS, SHARES

Table = Mapping[str, Any]
LEAD = (
    "Scores of 0 to 5 and shares in percent, with 95 % intervals (whole clips drawn). Every judge has a table of its own: marks"
    " of different judges, versions or prompts cannot be compared."
)


@dataclass(frozen=True)
class Example:
    """One item for the page. said: (model, answer, mark in words); strip: key of its frames, "" without; frames: how many."""

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
        lines += [f"## Judge: {each['title']}", "", _row(["model", *(_head(m) for m in metrics), "rows marked"])]
        lines.append(_row(["---"] * (len(metrics) + 2)))
        for row in each["rows"]:
            cells = [_cell(row["cells"].get(m), m) for m in metrics]
            lines.append(_row([row["model"], *cells, _marked(row["cells"])]))
        lines += ["", *(f"- {line}" for line in notes(each)), ""]
        for change in each["differences"]:
            lines += [
                f"{change['second']} minus {change['first']}:",
                "",
                _row(["metric", "difference [95 %]", "p", "rows", "left out"]),
            ]
            lines.append(_row(["---"] * 5))
            lines += [_row([LABELS[m], *_change(c, m)]) for m, c in change["changes"].items()]
            lines.append("")
    for judge, rows in _published(table):
        metrics = _metrics(row["values"] for row in rows)
        lines += [
            f"## Published, judge: {judge}",
            "",
            _row(["model", *(_head(m) for m in metrics)]),
            _row(["---"] * (len(metrics) + 1)),
        ]
        lines += [_row([_name(row), *(_value(row["values"].get(m), m) for m in metrics)]) for row in rows]
        lines.append("")
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
            f"Judge: {judge}. Not comparable with the tables above; read the order of models, not the figures.",
            class_="note",
        )
        shown = page.table(["Model", *(_head(m) for m in metrics)], lines)
        parts.append(section(f"published{number}", "Published figures", note, shown))
    drawn = [
        tag(
            "figure",
            tag(
                "img",
                src=f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
                alt=name,
                style="max-width:100%",
            ),
        )
        for name, svg in pictures.items()
    ]
    if drawn:
        parts.append(section("pictures", "Pictures", *drawn))
    for name, title, some in (("worst", "Worst marks", worst), ("best", "Best marks", best)):
        if some:
            parts.append(section(name, title, tag("div", *(_card(example) for example in some), class_="cards")))
    style = (files("minirlaif") / "page.css").read_text(encoding="utf-8")
    return page.page(f"minirlaif: {table['benchmark']}", parts, style, page.strip_styles(strips))


def comparison(tables: Sequence[Table], title: str, notes: Sequence[str]) -> Html:
    """The page of `compare`: a table as in `document` per benchmark, and what could not be compared."""
    top = tag("p", "minirlaif comparison", class_="eyebrow")
    parts: list[object] = [tag("header", top, tag("h1", title), tag("p", LEAD, class_="lead"))]
    for place, table in enumerate(tables):
        parts.append(tag("h2", table["benchmark"]))
        parts += [_judged(f"table{place}-{number}", each) for number, each in enumerate(table["tables"])]
    if notes:
        parts.append(section("notes", "Not compared", tag("ul", *(tag("li", note) for note in notes), class_="plain")))
    style = (files("minirlaif") / "page.css").read_text(encoding="utf-8")
    return page.page(f"minirlaif: {title}", parts, style)


def notes(each: Mapping[str, Any]) -> list[str]:
    """What must be known beside a table's means: rows without a mark, and where the mean would lie with them."""
    told = []
    for row in each["rows"]:
        reasons = ", ".join(f"{why} {count}" for why, count in row["without_mark"].items())
        if reasons:
            told.append(f"{row['model']}: marks missing or wrong by form: {reasons}.")
        for metric, cell in row["cells"].items():
            if cell["marked"] < cell["rows"] and cell["mean"] is not None:
                low, high = (_value(cell[end], metric) for end in ("worst", "best"))
                told.append(
                    f"{row['model']}, {LABELS[metric]}: {cell['rows'] - cell['marked']} of {cell['rows']} rows have no mark;"
                    f" with all of them worst or best the mean would be {low} or {high}."
                )
            elif cell["mean"] is None:
                told.append(f"{row['model']}, {LABELS[metric]}: not one of {cell['rows']} rows has a mark.")
    return told


def _judged(name: str, each: Mapping[str, Any]) -> Html:
    metrics = _metrics(row["cells"] for row in each["rows"])
    lines = [
        [row["model"], *(_two_lines(row["cells"].get(m), m) for m in metrics), _marked(row["cells"])] for row in each["rows"]
    ]
    inside: list[object] = [page.table(["Model", *(_head(m) for m in metrics), "Rows marked"], lines)]
    told = notes(each)
    if told:
        inside.append(tag("ul", *(tag("li", line) for line in told), class_="plain"))
    for change in each["differences"]:
        rows = [[LABELS[m], *_change(c, m)] for m, c in change["changes"].items()]
        head = ["Metric", "Difference [95 %]", "p", "Rows", "Left out"]
        inside += [
            tag("h3", f"{change['second']} minus {change['first']}"),
            page.table(head, rows, "Same rows, sign-flip test by clip"),
        ]
    return section(name, f"Judge: {each['title']}", *inside)


def _card(example: Example) -> Html:
    missing = tag("p", "No frames of this clip.", class_="note")
    strip = page.frames(example.strip, example.frames, example.aspect) if example.strip else missing
    told = [
        tag("div", tag("dt", who, tag("b", f" {mark}") if mark else ""), tag("dd", text or tag("em", "no answer")))
        for who, text, mark in example.said
    ]
    return page.card(example.question, "", strip, example.truth, told)


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
    return f"{_value(cell['mean'], metric)} [{_value(cell['low'], metric)}, {_value(cell['high'], metric)}]"


def _two_lines(cell: Mapping[str, Any] | None, metric: str) -> Html:
    """The interval below the mean: six metrics do not fit beside theirs."""
    mean, _, ends = _cell(cell, metric).partition(" ")
    return tag("span", mean, tag("small", ends, style="display:block") if ends else "")


def _marked(cells: Mapping[str, Any]) -> str:
    """Rows with a mark of all rows, over the metrics (the mean counts no rows of its own)."""
    some = [cell for metric, cell in cells.items() if metric not in ("mean", "score")]
    return f"{sum(cell['marked'] for cell in some)} of {sum(cell['rows'] for cell in some)}"


def _change(change: Mapping[str, Any], metric: str) -> list[str]:
    if change["mean"] is None:
        return ["–", "–", str(change["rows"]), str(change["left_out"])]
    scale = 100 if metric in SHARES else 1
    digits = 1 if metric in SHARES else 2
    mean, low, high = (f"{scale * change[end] + 0.0:+.{digits}f}" for end in ("mean", "low", "high"))
    p = "< 0.001" if change["p"] < 0.001 else f"{change['p']:.3f}"
    return [f"{mean} [{low}, {high}]", p, str(change["rows"]), str(change["left_out"])]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
