"""Building blocks of the report: a self-contained HTML page with tables, bars and curves. Pure functions from values to text.

Every block escapes what it is given, except `Html`, which only blocks make: text of a model or a user cannot become markup.
The page loads nothing and runs nothing; a content policy in its head says so to the browser.
"""

from __future__ import annotations

import base64
import difflib
import html
import math
from collections.abc import Iterable, Mapping, Sequence

from minirlaif.errors import UserError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 150, 44, 12, 10, 22  # of a curve, in its own units


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def safe(value: object) -> Html:
    """The value as markup: escaped, unless it is markup."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other, each made safe."""
    return Html(between.join(safe(part) for part in parts))


def tag(name: str, *inside: object, **attributes: object) -> Html:
    """An element. Attributes: `class_` gives class, `aria_label` gives aria-label; None leaves one out."""
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{safe(v)}"' for k, v in attributes.items() if v is not None)
    return Html(f"<{name}{given}>{join(inside)}</{name}>")


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
    """84.07 -> "1 min 24 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def tile(label: str, value: str, note: object = "", tone: str = "") -> Html:
    """A figure worth a glance."""
    return tag("div", tag("dt", label), tag("dd", value), tag("p", note), class_=f"tile {tone}".strip())


def bar(
    label: object,
    share: float | None,
    tone: str = "plain",
    ends: Sequence[float] | None = None,
    mark: float | None = None,
    value: str | None = None,
    note: str = "",
) -> Html:
    """One horizontal bar. share: 0 to 1 of the track; ends: an interval drawn as a whisker; mark: a dashed line across."""
    at = [_clamp(place) for place in (share or 0.0, *(ends or (0.0, 0.0)), mark or 0.0)]
    inside = [tag("i", class_=f"fill {tone}", style=f"width:{at[0]:.2f}%")]
    if mark is not None:
        inside.append(tag("i", class_="mark", style=f"left:{at[3]:.2f}%"))
    if ends:
        inside.append(tag("i", class_="whisker", style=f"left:{at[1]:.2f}%;width:{at[2] - at[1]:.2f}%"))
    shown = percent(share) if value is None else value
    return tag(
        "li",
        tag("span", label, tag("small", note) if note else "", class_="name"),
        tag("span", *inside, class_="track", aria_hidden="true"),
        tag("b", shown),
    )


def bars(rows: Iterable[Html], label: str) -> Html:
    """A group of bars; label is read to those who cannot see it."""
    return tag("ul", *rows, class_="bars", aria_label=label)


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "", strong_last: bool = False) -> Html:
    """A table whose first column names the row and whose others are numbers; it scrolls when the screen is too narrow."""
    lines = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    if strong_last and lines:
        lines[-1] = Html(lines[-1].replace("<tr>", '<tr class="total">', 1))
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    return tag("div", tag("table", tag("caption", caption) if caption else "", top, tag("tbody", *lines)), class_="scroll")


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
    mark: float | None = None,
    note: str = "",
    span: tuple[float, float] | None = None,
) -> Html:
    """A small line chart of (x, y) rows; rows without y are left out. mark: an x drawn as a dashed line; span: what the y axis
    shows at least."""
    known = [(x, y) for x, y in rows if y is not None and math.isfinite(y)]
    if not known:
        return tag("figure", tag("figcaption", title, tag("small", "not measured in this run")), class_="curve")
    heights = [*(y for _, y in known), *(span or ())]
    y_ticks = ticks(min(heights), max(heights))
    x_low, x_high = min(x for x, _ in rows), max(x for x, _ in rows)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for y in y_ticks:
        height = place(x_low, y)[1]
        drawn += [_line(LEFT, height, WIDTH - RIGHT, height, "grid"), _text(LEFT - 6, height + 3.5, number(y), "end")]
    drawn += [_text(place(x, y_ticks[0])[0], HEIGHT - 6, number(x), end) for x, end in _x_labels(x_low, x_high)]
    if mark is not None and x_low <= mark <= x_high:
        drawn.append(_line(place(mark, y_ticks[0])[0], TOP, place(mark, y_ticks[0])[0], HEIGHT - BOTTOM, "chosen"))
    spots = [place(x, y) for x, y in known]
    drawn.append(tag("polyline", points=" ".join(f"{x},{y}" for x, y in spots), class_=f"line {tone}"))
    dots = spots if len(spots) <= 25 else spots[-1:]
    drawn += [tag("circle", cx=x, cy=y, r=2.6, class_=f"dot {tone}") for x, y in dots]
    told = f"{title}: {number(known[0][1])} at {number(known[0][0])}, {number(known[-1][1])} at {number(known[-1][0])}"
    picture = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told)
    head = tag("figcaption", title, tag("b", number(known[-1][1])), tag("small", note) if note else "")
    return tag("figure", head, picture, class_="curve")


def answer(who: str, text: str, right: bool | None, tone: str, truth: str = "") -> Html:
    """One model's answer; right or wrong is said in words, a sign and a colour. Words not in the truth are marked."""
    if right is None:
        verdict, body = Html(""), safe(text)
    else:
        verdict = tag("span", "✓ right" if right else "✗ wrong", class_="ok" if right else "no")
        body = safe(text) if right else _marked(text, truth)
    return tag(
        "div", tag("dt", tag("i", class_=f"key {tone}"), who, verdict), tag("dd", body if text else tag("em", "no answer"))
    )


def card(question: str, kind: str, strip: Html, truth: str, answers: Iterable[Html]) -> Html:
    """A test question with its frames, the truth and the answers."""
    true = tag("div", tag("dt", "Truth"), tag("dd", truth), class_="truth") if truth else ""
    return tag(
        "article", strip, tag("h4", question, tag("small", kind) if kind else ""), tag("dl", true, *answers), class_="card"
    )


def frames(name: str, count: int, aspect: float = 1.0) -> Html:
    """The frames of a strip in two rows; `name` is its key in `strip_styles`, aspect the width by the height of one frame."""
    columns = min(8, max(1, math.ceil(count / 2)))
    places = [0.0 if count == 1 else 100 * i / (count - 1) for i in range(count)]
    inside = [tag("i", style=f"background-position:{place:.3f}% 0") for place in places]
    style = f"--n:{count};--aspect:{aspect:.4g};grid-template-columns:repeat({columns},1fr)"
    return tag(
        "div", *inside, class_=f"frames {name}", style=style, role="img", aria_label=f"{count} frames of the clip in order"
    )


def strip_styles(strips: Mapping[str, bytes]) -> str:
    """CSS that holds each JPEG once, however many cards show it."""
    return "\n".join(
        f".{k} i{{background-image:url(data:image/jpeg;base64,{base64.b64encode(v).decode()})}}" for k, v in strips.items()
    )


def section(name: str, title: str, *inside: object) -> Html:
    """A part of the page with an anchor."""
    return tag("section", tag("h2", title), *inside, id=name)


def page(title: str, body: Iterable[object], style: str, extra: str = "", policy: str = POLICY) -> Html:
    """The whole document. style and extra are CSS; policy: what the browser may load. UserError when CSS could close its own
    element."""
    if "</" in style + extra:
        raise UserError("report: a style holds markup")
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="viewport" content="width=device-width,initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        Html(f"<style>\n{style}\n{extra}\n</style>"),
    ]
    inside = join([tag("head", *head), tag("body", tag("main", *body))], "\n")
    return Html(f'<!doctype html>\n<html lang="en">\n{inside}\n</html>\n')


def _clamp(share: float) -> float:
    return 100 * min(1.0, max(0.0, share))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return tag("text", text, x=x, y=y, text_anchor=anchor)


def _x_labels(low: float, high: float) -> list[tuple[float, str]]:
    return [(low, "start"), (high, "end")] if high > low else [(low, "middle")]


def _marked(text: str, truth: str) -> Html:
    words, wanted = text.split(), truth.split()
    if not wanted or len(words) > 80:
        return safe(text)
    parts: list[object] = []
    for change, start, end, _, _ in difflib.SequenceMatcher(None, words, wanted, autojunk=False).get_opcodes():
        if end > start:
            said = " ".join(words[start:end])
            parts.append(said if change == "equal" else tag("mark", said))
    return join(parts, " ")
