"""Pictures of a table: a radar of the five metrics and bars with intervals, as SVG. One panel per judge, for marks of different
judges share no axis. matplotlib is imported inside, and its global state is left alone."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.rubric import FIVE, HIGHEST, LABELS, SHARES

OWN = {"base": "#8b94a0", "sft": "#d6801f", "rlaif": "#2b6cd8"}  # as in the report
COLOURS = ("#4d8c7d", "#a05195", "#b3261e", "#7a5c00", "#2f4b7c", "#5b6570")
INK, SOFT, LINE = "#1b1f23", "#5b6570", "#d5d8d5"
MOST = 6  # models in one panel
LABELLED = 3  # up to so many, every bar has its value on it
KNOWN = ("Video-ChatGPT", "Video-LLaVA", "VLM-SFT", "VLM-RLAIF")  # of the published models, those that are drawn


@dataclass(frozen=True)
class Series:
    """One model in a panel. values: by metric; ends: low and high by metric, where there is an interval."""

    model: str
    values: Mapping[str, float]
    ends: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One judge's models."""

    title: str
    series: Sequence[Series]


def panels(table: Mapping[str, Any]) -> list[Panel]:
    """The panels of a table as `tables.table_json` gives it: one per judge, then one per judge of the published rows."""
    found = []
    for each in table["tables"]:
        series = []
        for row in each["rows"][:MOST]:
            known = {m: cell for m, cell in row["cells"].items() if cell["mean"] is not None}
            ends = {m: (cell["low"], cell["high"]) for m, cell in known.items()}
            series.append(Series(row["model"], {m: cell["mean"] for m, cell in known.items()}, ends))
        found.append(Panel(each["title"], series))
    rows = [row for row in table["published"] if row["model"].startswith(KNOWN)]
    for judge in dict.fromkeys(row["judge"] for row in rows):
        some = [Series(row["model"], row["values"], {}) for row in rows if row["judge"] == judge]
        found.append(Panel(f"Published ({judge})", some))
    return found


def radar(found: Sequence[Panel]) -> str:
    """Five axes from 0 to 5, a polygon per model. "" when no panel has all five metrics."""
    found = [panel for panel in found if any(set(FIVE) <= set(series.values) for series in panel.series)]
    if not found:
        return ""
    figure = _figure(5.2 * len(found), 5.2)
    angles = [2 * math.pi * i / len(FIVE) for i in range(len(FIVE))]
    for place, panel in enumerate(found, 1):
        axes = figure.add_subplot(1, len(found), place, projection="polar")
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_xticks(angles, [LABELS[metric] for metric in FIVE], color=INK, size=9)
        axes.set_ylim(0, HIGHEST)
        axes.set_yticks(range(1, HIGHEST + 1), map(str, range(1, HIGHEST + 1)), color=SOFT, size=7)
        axes.grid(color=LINE)
        axes.spines["polar"].set_color(LINE)
        for colour, series in zip(_colours(panel), panel.series, strict=True):
            if set(FIVE) <= set(series.values):
                heights = [series.values[metric] for metric in FIVE]
                axes.plot([*angles, angles[0]], [*heights, heights[0]], color=colour, linewidth=1.8, label=series.model)
                axes.fill(angles, heights, color=colour, alpha=0.08)
        axes.set_title(_wrapped(panel.title), size=8.5, color=SOFT, pad=22)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, frameon=False, fontsize=8)
    return _svg(figure)


def bars(found: Sequence[Panel]) -> str:
    """A group of bars per metric, whiskers where there are intervals. "" without any value."""
    found = [panel for panel in found if any(series.values for series in panel.series)]
    if not found:
        return ""
    figure = _figure(9.0, 2.9 * len(found) + 0.3)
    for place, panel in enumerate(found, 1):
        metrics = [m for m in LABELS if any(m in series.values for series in panel.series)]
        axes = figure.add_subplot(len(found), 1, place)
        width = 0.8 / len(panel.series)
        # Shares and scores of 0 to 5 share an axis as parts of the best mark.
        tops = {m: 1.0 if m in SHARES else float(HIGHEST) for m in metrics}
        for number, (colour, series) in enumerate(zip(_colours(panel), panel.series, strict=True)):
            known = [(i, m) for i, m in enumerate(metrics) if m in series.values]
            across = [i + (number - (len(panel.series) - 1) / 2) * width for i, _ in known]
            heights = [series.values[m] / tops[m] for _, m in known]
            axes.bar(across, heights, width * 0.92, color=colour, label=series.model)
            for x, height, (_, m) in zip(across, heights, known, strict=True):
                high = height
                if m in series.ends:
                    low, high = (end / tops[m] for end in series.ends[m])
                    axes.plot([x, x], [low, high], color=INK, linewidth=1.1)
                if len(panel.series) <= LABELLED:
                    shown = f"{100 * series.values[m]:.0f}" if m in SHARES else f"{series.values[m]:.2f}"
                    axes.annotate(shown, (x, high), (0, 2), textcoords="offset points", ha="center", size=7, color=SOFT)
        axes.set_xticks(range(len(metrics)), [f"{LABELS[m]}\n{'%' if m in SHARES else '0 to 5'}" for m in metrics], size=8.5)
        axes.set_ylim(0, 1.12)
        axes.set_yticks([])
        axes.tick_params(length=0, colors=INK)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.set_title(_wrapped(panel.title, 110), size=8.5, color=SOFT, loc="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    return _svg(figure)


def _colours(panel: Panel) -> list[str]:
    spare = iter(COLOURS)
    return [OWN.get(series.model.rsplit(" ", 1)[-1]) or next(spare) for series in panel.series]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "minirlaif"}):  # the same picture, the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _wrapped(text: str, width: int = 46) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
