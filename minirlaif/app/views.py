"""Parts of the page as HTML, from the macros of views.html. All text of people and models is escaped. No torch."""

from __future__ import annotations

import base64
import io
from functools import partial
from importlib.resources import files

import numpy as np

from minirlaif.app.sessions import PAIR, Session
from minirlaif.app.votes import Agreement
from minirlaif.inference.engine import LoadedClip
from minirlaif.reports.html import Html, macro
from minirlaif.stages.registry import MODELS

MAX_HEIGHT = 160  # of a frame on the page, in pixels; smaller frames are not smoothed

part = partial(macro, "app/views.html")
chat, empty, masthead, notice = (partial(part, name) for name in ("chat", "empty", "masthead", "notice"))


def page_script() -> str:
    """The script element for the head of the page."""
    return f"<script>{(files('minirlaif') / 'app/app.js').read_text(encoding='utf-8')}</script>"


def page_style() -> str:
    """The report's style, limited to elements of class `report`, then the app's own style."""
    report, app = ((files("minirlaif") / name).read_text(encoding="utf-8") for name in ("reports/page.css", "app/app.css"))
    return f".report{{\n{report}\n}}\n{app}"


def strip(clip: LoadedClip | None, limits: str) -> Html:
    """The frames exactly as the model receives them, with their times. limits: of uploads, as text."""
    return part("strip", clip, [_source(pixels_HW3, clip.aspect) for pixels_HW3 in clip.pixels_FHW3] if clip else (), limits)


def _source(pixels_HW3: np.ndarray, aspect: float) -> str:
    """A frame as a data URL: a small one as PNG, a larger one as JPEG of MAX_HEIGHT pixels."""
    from PIL import Image

    picture, kind = Image.fromarray(pixels_HW3), "png"
    if picture.height > MAX_HEIGHT:
        picture, kind = picture.resize((max(1, round(MAX_HEIGHT * aspect)), MAX_HEIGHT)), "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def side_by_side(session: Session, compares: bool) -> Html:
    """Two answers side by side; the models' names are shown after the vote."""
    if not compares:
        text = "Nothing to compare: this needs an SFT model and an aligned model. A finished run has both, and so has an export"
        return empty(f"{text} made with --adapters.")
    if session.side_by_side is None:
        text = "Ask one question. The SFT model and the aligned model answer side by side; their names are hidden until you vote."
        return empty(text)
    return part("side_by_side", session.side_by_side)


def votes(counts: Agreement, file: str) -> Html:
    """How people voted, and how often the judge agrees with them."""
    if not counts.votes:
        return empty("No votes yet. Compare two answers and choose the better one.")
    return part("votes", counts, file, [(name, MODELS[name]) for name in PAIR])
