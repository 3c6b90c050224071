"""The content of the page as HTML, from the macros of views.html: a chat, a comparison, votes, and the files of a run.

All text of people and models is escaped. No torch.
"""

import base64
import io
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from minirlaif.app import run_reader
from minirlaif.app.run_reader import Row
from minirlaif.app.sessions import Session
from minirlaif.app.votes import Agreement
from minirlaif.errors import UserError
from minirlaif.inference.engine import LoadedClip
from minirlaif.reports import html, run_results
from minirlaif.reports.html import Html, bar, curve, macro, number, strip_styles
from minirlaif.runs.gains import split_name
from minirlaif.runs.run import Run
from minirlaif.runs.status import status_rows
from minirlaif.stages.registry import MODELS, STAGES

MAX_HEIGHT = 160  # of a frame on the page, in pixels; smaller frames are not smoothed
CARDS_PER_PAGE = 8
GROUPS = {"all": "all", **{title: kind for kind, title in run_results.KINDS.items() if kind}}  # titles of groups of answers
DEFAULT_FRAMES = 16  # where the settings of a run cannot be read

part = partial(macro, "app/views.html")
chat, empty, masthead, notice = (partial(part, name) for name in ("chat", "empty", "masthead", "notice"))


def unreadable(run: Run | None, error: Exception) -> Html:
    """The place of a run's files that cannot be shown."""
    text = str(error) if isinstance(error, UserError) else f"a file of it cannot be shown ({type(error).__name__}: {error})"
    return notice(f"{run.root.name if run else 'run'}: {text[:300]}")


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
    picture, kind = Image.fromarray(pixels_HW3), "png"
    if picture.height > MAX_HEIGHT:
        picture, kind = picture.resize((max(1, round(MAX_HEIGHT * aspect)), MAX_HEIGHT)), "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def side_by_side(session: Session, compares: bool) -> Html:
    """Two answers side by side; the models' names are shown after the vote."""
    if not compares:
        text = (
            "Nothing to compare: this needs the aligned model and the one it started from. A run has both, and so has an export"
        )
        return empty(f"{text} made with --adapters.")
    if session.side_by_side is None:
        text = "Ask one question. The aligned model and the one that it started from answer side by side; their names are hidden"
        text += " until you vote."
        return empty(text)
    return part("side_by_side", session.side_by_side)


def votes(counts: Agreement, file: str) -> Html:
    """How people voted, and how often the judge agrees with them."""
    if not counts.votes:
        return empty("No votes yet. Compare two answers and choose the better one.")
    return part("votes", counts, file, MODELS["rlaif"], {"sft": "SFT", "base": "the base"}[counts.start])


def progress(run: Run | None) -> Html:
    """The stages with their state, and how far the running one is."""
    if run is None:
        return no_run()
    try:
        rows = [
            [name, part("state", state), time, "report.html" if name == "report" and result else result]
            for name, state, time, result in status_rows(run, run.stages)
        ]
    except UserError as error:
        return notice(str(error))
    stage = run_reader.running_stage(run)
    if not stage:
        return part("progress", "", rows)
    metrics = run_reader.rows(run, stage, "metrics.jsonl")
    step = metrics[-1]["step"] if metrics else 0
    total = getattr(getattr(run_reader.config_of(run), split_name(stage)[1], None), "iterations", None)
    text = f"step {number(step)} of {number(total)}" if total else f"step {number(step)}"
    share = step / total if total else 0.0
    return part("progress", bar(f"{stage} is running", share, "rlaif", value=text, note="updates automatically"), rows)


def curves(run: Run | None) -> Html:
    """The metrics of all training stages so far, the last stage first."""
    if run is None:
        return Html("")
    figures = []
    for name in reversed(run.order()):
        number, stage = split_name(name)[0], STAGES[split_name(name)[1]]
        metrics = run_reader.rows(run, name, "metrics.jsonl") if stage.curves else ()
        # without the rows of feedback that only describe dev clips
        rows = [row for row in metrics if row.get("pairs") != 0]
        for each in stage.curves:
            points = [(row["step"], row.get(each.field)) for row in rows]
            points = [(x, y) for x, y in points if isinstance(y, int | float)]
            if points:
                title = f"Round {number}: {each.title}" if number > 1 else each.title
                figures.append(curve(title, points, stage.tone, note=each.note, span=each.span))
    return part("curves", figures) if figures else empty("No stage has logged metrics yet.")


def gallery(run: Run | None, group: str, page: int) -> tuple[Html, int]:
    """A page (from 1) of test answers with frames, and the number of pages. group: a key of GROUPS."""
    if run is None:
        return no_run(), 1
    all_rows = run_reader.rows(run, "evaluate", "answers.jsonl")
    answers = run_reader.answers(run, GROUPS.get(group, "all"))
    if not answers:
        return empty("No test answers in this group." if all_rows else "`evaluate` has not finished."), 1
    pages = -(-len(answers) // CARDS_PER_PAGE)
    start = (min(max(1, page), pages) - 1) * CARDS_PER_PAGE
    rows, strips, count = answers[start : start + CARDS_PER_PAGE], {}, _frame_count(run)
    for row in rows:
        strips[row["video"]] = run_reader.picture(run, row["strip"]) or run_reader.strip(run, row["video"], count)
    names = {video: f"g{number}" for number, video in enumerate(strips) if strips[video]}
    pictures = {row["id"]: html.strip(names[row["video"]], strips[row["video"]], count) for row in rows if row["video"] in names}
    style = strip_styles({name: strips[video] for video, name in names.items()})
    kinds = [run_results.kind(row) for row in all_rows]
    numbers = {"cases": {name: kinds.count(name) for name in run_results.KINDS if name}, "answered_items": sum(map(bool, kinds))}
    cards = run_results.gallery([{**row, "strip": row["id"]} for row in rows], pictures, numbers)
    return part("gallery", style, cards), pages


def verdict(run: Run | None, group: str, number: int) -> tuple[Html, int]:
    """One verdict of the judge (number from 1) among those that match a filter, and how many match."""
    if run is None:
        return no_run(), 0
    verdicts = run_reader.verdicts(run, group)
    if not verdicts:
        any_row = run_reader.rows(run, "feedback", "verdicts.jsonl")
        return empty("No verdict matches this filter." if any_row else "No verdicts yet."), 0
    row = verdicts[min(max(1, number), len(verdicts)) - 1]
    count = _frame_count(run)
    strip = run_reader.strip(run, row["video"], count)
    picture, style = (html.strip("v0", strip, count), strip_styles({"v0": strip})) if strip else ("", "")
    names = {"verdict": row, "without context": row.get("without_context"), "as letters": row.get("letter")}
    readouts = [[name, *each["orders"], each["choice"], f"{each['margin']:.3f}"] for name, each in names.items() if each]
    return part("judged_pair", row, style, picture, readouts), len(verdicts)


def vote_cards(rows: Sequence[Row], only_different: bool, most: int = 20) -> Html:
    """The latest votes, or those for which people and the judge chose differently."""
    if only_different:
        chosen = [row for row in rows if row.get("judge") and row["judge"] != row.get("preference")]
    else:
        chosen = list(rows)
    if not chosen:
        return empty("None.") if rows else Html("")
    words: dict[Any, str] = {1: "A", 2: "B"}
    cards = []
    for row in reversed(chosen[-most:]):
        vote, judge = (words.get(row.get(name), row.get(name) or "no verdict") for name in ("preference", "judge"))
        models = [(n, str(row.get(f"model_{n}"))) for n in words]
        answers = [(words[n], model, MODELS.get(model, "?"), row.get(f"output_{n}")) for n, model in models]
        cards.append((row, vote, judge, answers))
    return part("vote_cards", cards)


def no_run() -> Html:
    """The page without a run: the command that makes one."""
    text = "There is no run in this folder yet. This command makes a small one in about half an hour, without a GPU:"
    return empty(text, "OMP_NUM_THREADS=1 python -m minirlaif run --config configs/tiny.yaml --run tiny")


def _frame_count(run: Run) -> int:
    settings = run_reader.config_of(run)
    return settings.video.frames if settings else DEFAULT_FRAMES
