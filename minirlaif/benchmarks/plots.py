"""Pictures of a table as SVG: a radar of the five metrics, and bars with intervals. One panel per judge, since grades of
different judges share no axis. matplotlib is imported inside functions, and its global state is not changed."""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.benchmarks.kinds import metrics as all_metrics
from minirlaif.benchmarks.kinds.videoinstruct import FIVE
from minirlaif.benchmarks.tables import judge_head, uncertain
from minirlaif.judges.rubric import HIGHEST
from minirlaif.stats import FEW, grouped

OWN = {"base": "#8b94a0", "sft": "#d6801f", "rlaif": "#2b6cd8"}  # as in the report
COLOURS = ("#4d8c7d", "#b565a7", "#cf4b3f", "#9a7b1f", "#5572b0", "#8a6fd1")  # at least 3 to 1 on white and on the dark page
INK, SOFT, LINE = "#1b1f23", "#5b6570", "#d5d8d5"
DARK = {INK: "#e9ebed", SOFT: "#9fa9b3", LINE: "#3d454c"}  # of a page in dark colours
WIDTH = 4.6  # inches: on a phone the letters are then still nine pixels high
MOST = 6  # models in one panel
LABELLED = 12  # up to so many, every bar of a panel has its value on it
LEGEND: dict[str, Any] = {"ncols": 2, "frameon": False, "fontsize": 8.5, "labelcolor": INK}
THICKEST = 0.5  # inches, of a bar
KNOWN = ("Video-ChatGPT", "Video-LLaVA", "VLM-SFT", "VLM-RLAIF")  # of the published models, those that are drawn


@dataclass(frozen=True)
class Series:
    """One model in a panel. values: by metric; ends: low and high by metric, where there is an interval; few: metrics whose
    interval is of too few clips."""

    model: str
    values: Mapping[str, float]
    ends: Mapping[str, tuple[float, float]]
    few: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Panel:
    """One judge's models. left_out: what the table has and the picture has not, in words."""

    title: str
    series: Sequence[Series]
    left_out: str = ""

    def caption(self, whiskers: bool) -> str:
        """The text above the panel, on lines; whiskers: whether the picture shows intervals."""
        few = f"dotted: fewer than {FEW} clips" if whiskers and any(series.few for series in self.series) else ""
        return "\n".join("\n".join(textwrap.wrap(text, 56)) for text in (self.title, self.left_out, few) if text)


def draw(table: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG, for the pictures that the table has values for."""
    drawn = {"radar.svg": radar(panels(table)), "bars.svg": bars(panels(table))}
    return {name: svg for name, svg in drawn.items() if svg}


def panels(table: Mapping[str, Any]) -> list[Panel]:
    """The panels of a table as `tables.table_json` gives it: one per judge, then one per judge of the published rows."""
    result = []
    heads = [judge_head(each["judge"]) for each in table["tables"]]
    for head, each in zip(heads, table["tables"], strict=True):
        series = []
        for row in each["rows"][:MOST]:
            known = {m: cell for m, cell in row["cells"].items() if cell["mean"] is not None}
            ends = {m: (cell["low"], cell["high"]) for m, cell in known.items()}
            few = frozenset(m for m, cell in known.items() if uncertain(cell))
            series.append(Series(row["model"], {m: cell["mean"] for m, cell in known.items()}, ends, few))
        others = ", ".join(row["model"] for row in each["rows"][MOST:])
        title = head if heads.count(head) == 1 else each["title"]  # two versions of one judge
        result.append(Panel(title, series, f"not drawn, only in the table: {others}" if others else ""))
    for judge, rows in grouped((row["judge"], row) for row in table["published"]).items():
        series = [Series(row["model"], row["values"], {}) for row in rows if row["model"].startswith(KNOWN)]
        more = f"not drawn: {len(rows) - len(series)} more of the table's models" if len(rows) > len(series) else ""
        result += [Panel(f"Published ({judge})", series, more)] if series else []
    return result


def radar(all_panels: Sequence[Panel]) -> str:
    """Five axes from 0 to 5, a polygon per model, panels one below the other. "" when no panel has all five metrics."""
    drawn = [panel for panel in all_panels if any(set(FIVE) <= set(series.values) for series in panel.series)]
    return _picture(drawn, 4.9, _draw_radar, projection="polar")


def bars(all_panels: Sequence[Panel]) -> str:
    """A group of bars per metric, whiskers where there are intervals (dotted where they are not reliable). "" without any
    value."""
    return _picture([panel for panel in all_panels if any(series.values for series in panel.series)], 3.4, _draw_bars)


def _draw_radar(axes: Any, panel: Panel) -> None:
    angles = [2 * math.pi * i / len(FIVE) for i in range(len(FIVE))]
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [all_metrics()[metric].label for metric in FIVE], color=INK, size=9.5)
    axes.set_ylim(0, HIGHEST)
    axes.set_yticks(range(1, HIGHEST + 1), map(str, range(1, HIGHEST + 1)), color=SOFT, size=8)
    axes.grid(color=LINE)
    axes.spines["polar"].set_color(LINE)
    lines, lacking = [panel.caption(False)], []
    for colour, series in zip(_colours(panel), panel.series, strict=True):
        if set(FIVE) <= set(series.values):
            heights = [series.values[metric] for metric in FIVE]
            axes.plot([*angles, angles[0]], [*heights, heights[0]], color=colour, linewidth=1.8, label=series.model)
            axes.fill(angles, heights, color=colour, alpha=0.08)
        else:
            lacking.append(series.model)
    lines += [f"without all five, not drawn: {', '.join(lacking)}"] if lacking else []
    axes.set_title("\n".join(lines), size=9, color=SOFT, pad=26)  # above the word of the upper axis
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), **LEGEND)


def _draw_bars(axes: Any, panel: Panel) -> None:
    metrics = [m for m in all_metrics().values() if any(m.name in series.values for series in panel.series)]
    width = min(0.8 / len(panel.series), THICKEST / WIDTH * len(metrics))
    for number, (colour, series) in enumerate(zip(_colours(panel), panel.series, strict=True)):
        known = [(i, m) for i, m in enumerate(metrics) if m.name in series.values]
        across = [i + (number - (len(panel.series) - 1) / 2) * width for i, _ in known]
        # Shares and scores of 0 to 5 share an axis as parts of the best value.
        heights = [series.values[m.name] / m.best for _, m in known]
        axes.bar(across, heights, width * 0.92, color=colour, label=series.model, zorder=2)
        for x, high, (_, m) in zip(across, heights, known, strict=True):
            if m.name in series.ends:
                low, high = (end / m.best for end in series.ends[m.name])
                style = ":" if m.name in series.few else "-"
                axes.plot([x, x], [low, high], color=INK, linewidth=1.1, linestyle=style, zorder=3)
            if len(panel.series) * len(metrics) <= LABELLED:
                value = series.values[m.name]
                text = f"{100 * value:.0f}" if m.is_share else f"{value:.2f}"
                axes.annotate(text, (x, high), (0, 2), textcoords="offset points", ha="center", size=7.5, color=SOFT)
    axes.set_xticks(range(len(metrics)), [m.label.replace(" of ", "\nof ") for m in metrics], size=9, color=INK)
    axes.set_xlim(-0.5, len(metrics) - 0.5)
    _scale(axes, [m.is_share for m in metrics])
    axes.set_title(panel.caption(True), size=9, color=SOFT, loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), **LEGEND)


def _scale(axes: Any, are_shares: Sequence[bool]) -> None:
    """The axis of the values: percent, scores, or percent at the left and scores at the right where there are both."""
    steps = [i / HIGHEST for i in range(HIGHEST + 1)]
    percents, scores = [str(100 * i // HIGHEST) for i in range(HIGHEST + 1)], list(map(str, range(HIGHEST + 1)))
    axes.set_ylim(0, 1.12)
    axes.set_yticks(steps, percents if are_shares[0] else scores, size=8, color=SOFT)
    axes.set_ylabel("%" if are_shares[0] else f"score, 0 to {HIGHEST}", size=8, color=SOFT)
    if len(set(are_shares)) > 1:
        right = axes.secondary_yaxis("right")
        right.set_yticks(steps, scores if are_shares[0] else percents, size=8, color=SOFT)
        right.set_ylabel(f"score, 0 to {HIGHEST}" if are_shares[0] else "%", size=8, color=SOFT)
        right.tick_params(length=0)
        right.spines["right"].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)


def _colours(panel: Panel) -> list[str]:
    spare = iter(COLOURS)
    return [OWN.get(series.model.rsplit(" ", 1)[-1]) or next(spare) for series in panel.series]


def _picture(panels: Sequence[Panel], height: float, draw_panel: Callable[[Any, Panel], None], **axes: Any) -> str:
    """Panels one below the other as SVG, without a background; its ink turns light in dark mode. "" without panels. height: of a
    panel in inches; axes: options of each panel's axes."""
    if not panels:
        return ""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(hspace=0.08)  # the head of a panel must not touch the legend of the one above
    figure = Figure((WIDTH, height * len(panels)), layout=layout, facecolor="none")
    for place, panel in enumerate(panels, 1):
        draw_panel(figure.add_subplot(len(panels), 1, place, facecolor="none", **axes), panel)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "minirlaif"}):  # the same picture, the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    inks = [(what, ink, light) for ink, light in DARK.items() for what in ("fill", "stroke")]
    rules = "".join(f'[style*="{what}: {ink}"]{{{what}:{light}!important}}' for what, ink, light in inks)
    style = f"<style>@media(prefers-color-scheme:dark){{{rules}}}</style>"
    head, svg, tail = buffer.getvalue().partition("<svg")
    attributes, close, content = tail.partition(">")
    return head + svg + attributes + close + style + content
