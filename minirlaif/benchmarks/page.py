"""A table as Markdown and as HTML: means with intervals, ungraded rows, differences, pictures, worst and best examples."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.benchmarks.kinds import metrics as all_metrics
from minirlaif.benchmarks.tables import NO_PROTOCOL, judge_head, uncertain
from minirlaif.reports import html
from minirlaif.stats import FEW

Table = Mapping[str, Any]
FEW_CLIPS = "†"  # behind a figure of fewer than FEW clips
COUNTS = ("Rows", "Clips", "Grades")  # the last columns of a judge's table
DIFFERENCE = ("Metric", "Difference [95 %]", "p", "Rows", "Left out", "Clips")
LEAD = (
    "Scores from 0 to 5 and shares in percent, with 95 % bootstrap intervals over clips. Every judge has its own table: grades of"
    " different judges, versions or prompts cannot be compared."
)


@dataclass(frozen=True)
class Example:
    """One item for the page. answers: (model, answer, grades in words); strip: key of its frames, "" without; frames: how many.
    Question, truth and answers may have several lines."""

    question: str
    truth: str
    answers: Sequence[tuple[str, str, str]]
    strip: str
    frames: int
    aspect: float


def markdown(table: Table, charts: Sequence[str] = ()) -> str:
    """The table as Markdown. charts: names of picture files beside it."""
    lines = [f"# {table['benchmark']}", ""]
    for view in map(judge_view, table["tables"]):
        details = ", ".join(view["details"])
        lines += [f"## Judge: {view['name']}", "", *([details, ""] if details else [])]
        lines += [*_table(view["head"], [[model, *cells, *counts] for model, cells, counts in view["rows"]]), ""]
        lines += [*(f"- {note}" for note in view["notes"]), ""]
        for models, rows in view["differences"]:
            lines += [f"{models}:", "", *_table(DIFFERENCE, rows), ""]
    for judge, head, rows in _published(table):
        lines += [f"## Published, {judge}", "", *_table(head, rows), ""]
    lines += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in charts]
    return "\n".join(lines).rstrip() + "\n"


def document(
    table: Table,
    run: str,
    pictures: Mapping[str, str],
    worst: Sequence[Example],
    best: Sequence[Example],
    strips: Mapping[str, bytes],
) -> str:
    """The page of one benchmark. pictures: name -> SVG; strips: key -> JPEG of the frames in `Example.strip`."""
    body = html.render(
        "benchmarks/table.html",
        **{"eyebrow": f"minirlaif benchmark · {run}", "title": table["benchmark"], "lead": LEAD},
        tables=[("", [judge_view(each) for each in table["tables"]])],
        published=_published(table),
        pictures={name: base64.b64encode(svg.encode()).decode() for name, svg in pictures.items()},
        examples=[("worst", "Worst grades", worst), ("best", "Best grades", best)],
        not_compared=[],
    )
    return html.page(f"minirlaif: {table['benchmark']}", [body], html.strip_styles(strips))


def comparison(tables: Sequence[Table], title: str, not_compared: Sequence[str]) -> str:
    """The page of `compare`: the judges' tables of each benchmark, and what could not be compared."""
    body = html.render(
        "benchmarks/table.html",
        **{"eyebrow": "minirlaif comparison", "title": title, "lead": LEAD, "published": [], "pictures": {}, "examples": []},
        tables=[(table["benchmark"], [judge_view(each) for each in table["tables"]]) for table in tables],
        not_compared=not_compared,
    )
    return html.page(f"minirlaif: {title}", [body])


def judge_view(each: Mapping[str, Any]) -> dict[str, Any]:
    """One judge's table in texts. details: what else must be equal for grades to be comparable; rows: (model, cells, counts);
    differences: (the two models, rows)."""
    judge, metrics = each["judge"], _metrics(row["cells"] for row in each["rows"])
    version = f"version {judge['version']}" if judge["version"] not in ("", judge["name"]) else ""
    prompt = f"prompt {judge['prompt']}" if judge["prompt"] else ""
    return {
        "name": judge_head(judge),
        "details": list(filter(None, [version, judge["asked"], prompt, " to ".join(dict.fromkeys(judge["dates"]))])),
        "head": ["Model", *map(_head, metrics), *COUNTS],
        "rows": [(row["model"], [_cell(row["cells"].get(m), m) for m in metrics], _counts(row)) for row in each["rows"]],
        "notes": notes(each),
        "difference_head": DIFFERENCE,
        "differences": [
            (f"{pair['second']} minus {pair['first']}", [[_label(m), *_change(c, m)] for m, c in pair["changes"].items()])
            for pair in each["differences"]
        ],
    }


def notes(each: Mapping[str, Any]) -> list[str]:
    """Notes below a table: ungraded rows, where the mean would lie with them, few clips."""
    lines = []
    for row in each["rows"]:
        reasons = [(why, row["rows_without_mark"][why], count) for why, count in row["without_mark"].items()]
        if reasons:
            text = ", ".join(
                f"{why}: {_of(n, 'row')}" + (f" ({count} grades)" if count != n else "") for why, n, count in reasons
            )
            lines.append(f"{row['model']}: grades missing or wrong by form: {text}.")
        for metric, cell in row["cells"].items():
            what = "grades are missing" if metric == "mean" else "rows have no grade"
            if cell["marked"] < cell["rows"] and cell["mean"] is not None:
                low, high = (_value(cell[end], metric) for end in ("worst", "best"))
                lines.append(
                    f"{row['model']}, {_label(metric)}: {cell['rows'] - cell['marked']} of {cell['rows']} {what};"
                    f" with all of them worst or best the mean would be {low} or {high}."
                )
            elif cell["mean"] is None:
                none = "not all of the five have a grade" if metric == "mean" else f"none of {cell['rows']} rows has a grade"
                lines.append(f"{row['model']}, {_label(metric)}: {none}.")
    figures = [cell for row in each["rows"] for cell in row["cells"].values()]
    figures += [change for pair in each["differences"] for change in pair["changes"].values()]
    if any(map(uncertain, figures)):
        lines.append(f"{FEW_CLIPS} Fewer than {FEW} clips: interval and p are not reliable.")
    if each.get("first_only"):
        more = any(change["first"] != each["rows"][0]["model"] for change in each["differences"])
        scope = "and between models named together" if more else "only"
        first, *others = (":".join(row["model"].rsplit(" ", 1)) for row in each["rows"])
        lines.append(
            f"Differences are to {each['rows'][0]['model']} {scope}; compare RUN:MODEL RUN:MODEL"
            f" shows any other pair, such as {others[0]} {others[1]}."
        )
    return lines


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    used = {metric for row in rows for metric in row}
    return [name for name in (*(name for name in all_metrics() if name != "mean"), "mean") if name in used]


def _published(table: Table) -> list[tuple[str, list[str], list[list[str]]]]:
    """(judge in words, head, rows) per judge of the published figures."""
    views = []
    for judge in dict.fromkeys(row["judge"] for row in table["published"]):
        rows = [row for row in table["published"] if row["judge"] == judge]
        metrics = _metrics(row["values"] for row in rows)
        names = [f"{row['model']} (read off a figure)" if row["read_off"] else str(row["model"]) for row in rows]
        cells = [[name, *(_value(row["values"].get(m), m) for m in metrics)] for name, row in zip(names, rows, strict=True)]
        views.append((judge if judge == NO_PROTOCOL else f"judge: {judge}", ["Model", *map(_head, metrics)], cells))
    return views


def _label(metric: str) -> str:
    return all_metrics()[metric].label


def _is_share(metric: str) -> bool:
    return all_metrics()[metric].is_share


def _head(metric: str) -> str:
    return f"{_label(metric)} %" if _is_share(metric) else _label(metric)


def _value(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{100 * value:.1f}" if _is_share(metric) else f"{value:.2f}"


def _cell(cell: Mapping[str, Any] | None, metric: str) -> str:
    if cell is None or cell["mean"] is None:
        return "–"
    few = f" {FEW_CLIPS}" if uncertain(cell) else ""
    return f"{_value(cell['mean'], metric)} [{_value(cell['low'], metric)}, {_value(cell['high'], metric)}]{few}"


def _counts(row: Mapping[str, Any]) -> list[str]:
    """Rows, clips with a grade, and grades of all that there should be (the mean of five has none of its own)."""
    graded = [cell for metric, cell in row["cells"].items() if metric != "mean"]
    grades = f"{sum(cell['marked'] for cell in graded)} of {sum(cell['rows'] for cell in graded)}"
    return [str(row["rows"]), str(row["clips"]), grades]


def _change(change: Mapping[str, Any], metric: str) -> list[str]:
    unit = " grades" if metric == "mean" else ""  # of five metrics: a row may have three of them
    counts = [f"{change['rows']}{unit}", f"{change['left_out']}{unit}", str(change["clips"])]
    if change["mean"] is None:
        return ["–", "–", *counts]
    scale = 100 if _is_share(metric) else 1
    digits = 1 if _is_share(metric) else 2
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
