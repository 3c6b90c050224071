"""HTML pages from Jinja templates, which escape all text of models and users; numbers as people read them; curves.

Pages load nothing and run nothing; a content policy in the head says so to the browser. The blocks (tile, bar, table …) are the
macros of templates/blocks.html, where their arguments are described.
"""

import base64
import difflib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup as Html
from PIL.Image import DecompressionBombError

from minirlaif.errors import UserError
from minirlaif.runs.progress import clock

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# What content of a run's files can cause that is not of this version.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, TemplateError, DecompressionBombError)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 150, 44, 12, 10, 22  # of a curve, in its own units


def percent(share: float | None, digits: int = 1) -> str:
    """0.655 -> "65.5 %"; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def share(value: float | None) -> str:
    """0.655 -> "65.5": percent for a table whose caption names the unit."""
    return percent(value).removesuffix("\u00a0%")


def points(share: float | None) -> str:
    """0.128 -> "+12.8", -0.02 -> "−2.0": a difference of two shares, in percentage points."""
    return "–" if share is None else f"{100 * share + 0.0:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def interval(low: float, high: float) -> str:
    """Two differences as "+9.2 to +16.4"."""
    return f"{points(low)} to {points(high)}"


def number(value: float | None) -> str:
    """A count with thin spaces, a measurement with three figures."""
    if value is None:
        return "–"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def duration(seconds: float) -> str:
    """4.26 -> "4.3 s", 84.07 -> "1 min 24 s"."""
    return f"{seconds:.1f} s" if seconds < 9.95 else clock(seconds)


def common_words(text: str, truth: str) -> list[tuple[bool, str]]:
    """The text in pieces, each with whether the truth has it at the same place. One piece without a truth or for long texts."""
    words, true_words = text.split(), truth.split()
    if not true_words or len(words) > 80:
        return [(True, text)]
    changes = difflib.SequenceMatcher(None, words, true_words, autojunk=False).get_opcodes()
    return [(change == "equal", " ".join(words[start:end])) for change, start, end, _, _ in changes if end > start]


@cache
def environment() -> Environment:
    """Templates by their path in the package. Their filters are the functions above."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    for function in (percent, share, points, number, duration, common_words):
        env.filters[function.__name__] = function
    env.filters["track"] = lambda share: 100 * min(1.0, max(0.0, share))  # percent of a bar's track
    return env


def render(template: str, **values: Any) -> Html:
    """A template of the package, such as "reports/templates/page.html", filled in."""
    return Html(environment().get_template(template).render(values))


def macro(template: str, name: str, *args: object, **kwargs: object) -> Html:
    """One macro of a template, filled in."""
    return Html(getattr(environment().get_template(template).module, name)(*args, **kwargs))


block = partial(macro, "reports/templates/blocks.html")
run_block = partial(macro, "reports/templates/run_report.html")
tile, bar, bars, table, answer, card, frames, section = (
    partial(block, name) for name in ("tile", "bar", "bars", "table", "answer", "card", "frames", "section")
)


def ticks(low: float, high: float, wanted: int = 3) -> list[float]:
    """Round numbers that cover [low, high], about `wanted` steps apart. Equal ends are spread first. ValueError if not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"ticks: {low} to {high} is not a finite range")
    if high - low < 1e-9 * max(1.0, abs(high)):
        spread = abs(high) / 2 or 0.5
        low, high = low - spread, high + spread
    rough = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def curve(
    title: str,
    rows: Sequence[tuple[float, float | None]],
    tone: str = "rlaif",
    dashed: float | None = None,
    note: str = "",
    span: tuple[float, float] | None = None,
) -> Html:
    """A small line chart of (x, y) rows; rows without y are left out. dashed: an x at which a dashed line is drawn; span: range
    that the y axis shows at least."""
    known = [(x, y) for x, y in rows if y is not None and math.isfinite(y)]
    if not known:
        return block("chart", title, note, tone, None)
    heights = [*(y for _, y in known), *(span or ())]
    y_ticks = ticks(min(heights), max(heights))
    x_low, x_high = min(x for x, _ in rows), max(x for x, _ in rows)

    def across(x: float) -> float:
        return round(LEFT + ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5) * (WIDTH - LEFT - RIGHT), 1)

    def up(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM), 1)

    ends = [(x_low, "start"), (x_high, "end")] if x_high > x_low else [(x_low, "middle")]
    plot = {
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "rows": [(up(y), number(y)) for y in y_ticks],
        "columns": [(across(x), number(x), anchor) for x, anchor in ends],
        "dashed": None if dashed is None or not x_low <= dashed <= x_high else across(dashed),
        "points": [(across(x), up(y)) for x, y in known],
        "last": number(known[-1][1]),
        "summary": ", ".join(f"{number(y)} at {number(x)}" for x, y in (known[0], known[-1])),
    }
    return block("chart", title, note, tone, plot)


def strip(name: str, jpeg: bytes, count: int | None) -> Html:
    """The frames of a JPEG that has `count` pictures side by side (None: they are square); name: its key in strip_styles."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as picture:
        count = count or max(1, picture.width // picture.height)
        return frames(name, count, picture.width / count / picture.height)


def strip_styles(strips: Mapping[str, bytes]) -> str:
    """CSS that holds each JPEG once, however many cards show it."""
    return "\n".join(
        f".{k} i{{background-image:url(data:image/jpeg;base64,{base64.b64encode(v).decode()})}}" for k, v in strips.items()
    )


def page(title: str, body: Iterable[object], extra: str = "", policy: str = POLICY) -> Html:
    """The whole document, with page.css. extra: further CSS; policy: what the browser may load. UserError when CSS could close
    its own element."""
    style = f"{Path(__file__).with_name('page.css').read_text(encoding='utf-8')}\n{extra}"
    if "</" in style:
        raise UserError("report: a style holds markup")
    return render("reports/templates/page.html", title=title, body=body, style=style, policy=policy)
