"""A table as Markdown and as HTML: means with intervals, ungraded rows, differences, pictures, worst and best examples."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minirlaif.benchmarks.kinds import metrics as all_metrics
from minirlaif.benchmarks.tables import NO_PROTOCOL, judge_head, uncertain
from minirlaif.reports import html
from minirlaif.stats import FEW, grouped

Table = Mapping[str, Any]
FEW_CLIPS = "†"  # behind a figure of fewer than FEW clips
COUNTS = ("Rows", "Clips", "Grades")  # the last columns of a judge's table
DIFFERENCE = ("Metric", "Difference [95 %]", "p", "Rows", "Left out", "Clips")


def markdown(table: Table, charts: Sequence[str] = ()) -> str:
    """The table as Markdown. charts: names of picture files beside it."""
    lines = [f"# {table['benchmark']}", ""]
    for judge in map(judge_texts, table["tables"]):
        lines += [f"## Judge: {judge['name']}", "", *([", ".join(judge["details"]), ""] if judge["details"] else [])]
        lines += [*_table(judge["head"], [[model, *cells, *counts] for model, cells, counts in judge["rows"]]), ""]
        if judge["parts"]:
            lines += [*_table(judge["part_head"], judge["parts"]), ""]
        lines += [*(f"- {note}" for note in judge["notes"]), ""]
        for models, rows in judge["differences"]:
            lines += [f"{models}:", "", *_table(DIFFERENCE, rows), ""]
    for published_by, head, rows in _published(table):
        lines += [f"## Published, {published_by}", "", *_table(head, rows), ""]
    lines += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in charts]
    return "\n".join(lines).rstrip() + "\n"


def document(
    table: Table, run: str, pictures: Mapping[str, str], examples: Sequence[Mapping[str, Any]], strips: Mapping[str, bytes]
) -> str:
    """The page of one benchmark. pictures: name -> SVG; examples: as table.html describes them; strips: key -> JPEG of frames."""
    body = html.render(
        "benchmarks/table.html",
        **{"eyebrow": f"minirlaif benchmark · {run}", "title": table["benchmark"]},
        tables=[("", [judge_texts(each) for each in table["tables"]])],
        published=_published(table),
        pictures={name: base64.b64encode(svg.encode()).decode() for name, svg in pictures.items()},
        examples=grouped((example["side"], example) for example in examples),
    )
    return html.page(f"minirlaif: {table['benchmark']}", [body], html.strip_styles(strips))


def comparison(tables: Sequence[Table], title: str, not_compared: Sequence[str]) -> str:
    """The page of `compare`: the judges' tables of each benchmark, and what could not be compared."""
    judges = [(table["benchmark"], [judge_texts(each) for each in table["tables"]]) for table in tables]
    values = {"eyebrow": "minirlaif comparison", "title": title, "tables": judges, "not_compared": not_compared}
    return html.page(f"minirlaif: {title}", [html.render("benchmarks/table.html", **values)])


def judge_texts(each: Mapping[str, Any]) -> dict[str, Any]:
    """One judge's table in texts. details: what else must be equal for grades to be comparable; rows: (model, cells, counts);
    parts: a mean per model for each part, empty where there is one; differences: (the two models, rows)."""
    judge, metrics = each["judge"], _metrics(row["cells"] for row in each["rows"])
    version = f"version {judge['version']}" if judge["version"] not in ("", judge["name"]) else ""
    prompt = f"prompt {judge['prompt']}" if judge["prompt"] else ""
    differences = []
    for pair in each["differences"]:
        rows = [[all_metrics()[m].label, *_change(change, m)] for m, change in pair["changes"].items()]
        differences.append((f"{pair['second']} minus {pair['first']}", rows))
    return {
        "name": judge_head(judge),
        "details": list(filter(None, [version, judge["asked"], prompt, " to ".join(dict.fromkeys(judge["dates"]))])),
        "head": [*_head(metrics), *COUNTS],
        "rows": [(row["model"], [_cell(row["cells"].get(m), m) for m in metrics], _counts(row)) for row in each["rows"]],
        "part_head": ["Part", *(row["model"] for row in each["rows"]), "Rows"],
        "parts": _parts(each["rows"], metrics),
        "notes": notes(each),
        "difference_head": DIFFERENCE,
        "differences": differences,
    }


def notes(each: Mapping[str, Any]) -> list[str]:
    """Notes below a table: ungraded rows, where the mean would lie with them, few clips."""
    lines = []
    for row in each["rows"]:
        reasons = [(why, row["rows_without_mark"][why], count) for why, count in row["without_mark"].items()]
        if reasons:
            text = ", ".join(f"{w}: {n} row{'s' * (n != 1)}" + f" ({count} grades)" * (count != n) for w, n, count in reasons)
            lines.append(f"{row['model']}: grades missing or wrong by form: {text}.")
        for metric, cell in row["cells"].items():
            subject, n, lacking = f"{row['model']}, {all_metrics()[metric].label}", cell["rows"], cell["rows"] - cell["marked"]
            if cell["mean"] is None:
                none = "not all of the five have a grade" if metric == "mean" else f"none of {n} rows has a grade"
                lines.append(f"{subject}: {none}.")
            elif lacking:
                what = "grades are missing" if metric == "mean" else "rows have no grade"
                ends = f"{_value(cell['worst'], metric)} or {_value(cell['best'], metric)}"
                lines.append(f"{subject}: {lacking} of {n} {what}; with all of them worst or best the mean would be {ends}.")
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


def _parts(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[list[str]]:
    """A line per part and metric: the mean of each model, and the part's rows."""
    lines = []
    for part in sorted({part for row in rows for part in row.get("parts", {})}):
        of_models = [row.get("parts", {}).get(part, {}) for row in rows]
        for metric in metrics:
            used = [cells[metric] for cells in of_models if metric in cells]
            if used:
                name = part if len(metrics) == 1 else f"{part}, {all_metrics()[metric].label}"
                means = [_value(cells.get(metric, {}).get("mean"), metric) for cells in of_models]
                lines.append([name, *means, str(max(cell["rows"] for cell in used))])
    return lines


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    used = {metric for row in rows for metric in row}
    return [name for name in all_metrics() if name in used]


def _published(table: Table) -> list[tuple[str, list[str], list[list[str]]]]:
    """(judge in words, head, rows) per judge of the published figures."""
    result = []
    for judge, rows in grouped((row["judge"], row) for row in table["published"]).items():
        metrics = _metrics(row["values"] for row in rows)
        names = [f"{row['model']} (read off a figure)" if row["read_off"] else str(row["model"]) for row in rows]
        cells = [[name, *(_value(row["values"].get(m), m) for m in metrics)] for name, row in zip(names, rows, strict=True)]
        result.append((judge if judge == NO_PROTOCOL else f"judge: {judge}", _head(metrics), cells))
    return result


def _head(metrics: Sequence[str]) -> list[str]:
    columns = [all_metrics()[metric] for metric in metrics]
    return ["Model", *(f"{column.label} %" if column.is_share else column.label for column in columns)]


def _value(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{100 * value:.1f}" if all_metrics()[metric].is_share else f"{value:.2f}"


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
    scale, digits = (100, 1) if all_metrics()[metric].is_share else (1, 2)
    mean, low, high = (f"{scale * change[end] + 0.0:+.{digits}f}" for end in ("mean", "low", "high"))
    p = "< 0.001" if change["p"] < 0.001 else f"{change['p']:.3f}"
    few = f" {FEW_CLIPS}" if uncertain(change) else ""
    return [f"{mean} [{low}, {high}]{few}", f"{p}{few}", *counts]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
