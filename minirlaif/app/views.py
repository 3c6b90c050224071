"""Parts of the page as HTML. All text of people and models is escaped. No torch."""

from __future__ import annotations

import base64
import io
from importlib.resources import files

import numpy as np

from minirlaif.app.sessions import PAIR, Answer, Session, SideBySide
from minirlaif.app.votes import Agreement
from minirlaif.inference.engine import LoadedClip
from minirlaif.reports.html import Html, bar, bars, join, number, percent, tag
from minirlaif.stages.registry import MODELS

MAX_HEIGHT = 160  # of a frame on the page, in pixels; smaller frames are not smoothed
CHOICE_WORDS = {"A": "Answer A", "B": "Answer B", "tie": "a tie", "both bad": "both bad", "invalid": "nothing (invalid output)"}


def page_script() -> str:
    """The script element for the head of the page."""
    return f"<script>{(files('minirlaif') / 'app/app.js').read_text(encoding='utf-8')}</script>"


def page_style() -> str:
    """The report's style, limited to elements of class `report`, then the app's own style."""
    report, app = ((files("minirlaif") / name).read_text(encoding="utf-8") for name in ("reports/page.css", "app/app.css"))
    return f".report{{\n{report}\n}}\n{app}"


def root(*inside: object) -> Html:
    """The element to which page.css applies."""
    return tag("div", *inside, class_="report")


def empty(*content: object) -> Html:
    """A text in place of missing content."""
    return root(tag("div", *content, class_="empty"))


def note(*content: object) -> Html:
    """A line in small type."""
    return tag("p", *content, class_="note")


def notice(text: str, tone: str = "warn") -> Html:
    """A line that screen readers announce when it appears; empty without text."""
    return root(tag("p", text, class_=f"notice {tone}", role="status")) if text else Html("")


def strip(clip: LoadedClip | None, limits: str) -> Html:
    """The frames exactly as the model receives them, with their times. limits: of uploads, as text."""
    if clip is None:
        return root(tag("p", f"The frames that the model receives appear here. {limits}", class_="note placeholder"))
    height, width = clip.pixels_FHW3.shape[1:3]
    count = len(clip.times)
    pictures = [
        tag(
            "figure",
            _picture(pixels, clip.aspect, f"frame {place} of {count}, at {time:.1f} seconds"),
            tag("figcaption", f"{time:.1f} s"),
        )
        for place, (pixels, time) in enumerate(zip(clip.pixels_FHW3, clip.times, strict=True), start=1)
    ]
    text = f"Model input: {count} frame{'s' * (count != 1)} of {width} × {height} pixels from {clip.seconds:.1f} s"
    return root(
        tag("p", text, class_="note"),
        tag("div", *pictures, class_="strip", tabindex="0", role="group", aria_label="frames in order", style=f"--n:{count}"),
    )


def _picture(pixels_HW3: np.ndarray, aspect: float, description: str) -> Html:
    from PIL import Image

    picture, small = Image.fromarray(pixels_HW3), pixels_HW3.shape[0] <= MAX_HEIGHT
    if not small:
        picture = picture.resize((max(1, round(MAX_HEIGHT * aspect)), MAX_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Html(
        tag(
            "img", alt=description, src=source, class_="pixels" if small else None, style=f"aspect-ratio:{aspect:.4g}"
        ).removesuffix("</img>")
    )


def chat(session: Session, title: str) -> Html:
    """The conversation, newest last."""
    if not session.turns:
        text = "Ask a question about the clip." if session.loaded else "Choose a clip, then ask a question about it."
        return empty(tag("p", text), note(title))
    parts: list[object] = []
    for turn in session.turns:
        parts.append(tag("div", tag("div", turn.question, class_="bubble"), class_="turn question"))
        parts.append(tag("div", _model_name(turn), _answer_text(turn), _footer(turn), class_="turn answer"))
    return root(tag("div", *parts, class_="conversation"))


def _model_name(answer: Answer) -> Html:
    name = MODELS.get(answer.model, answer.model) if answer.model else "waiting for the model"
    return tag("div", tag("i", class_=f"key {answer.model or 'plain'}"), name, class_="who")


def _answer_text(answer: Answer) -> Html:
    caret = tag("span", class_="caret", aria_hidden="true") if answer.state != "done" else ""
    body = [answer.text, caret] if answer.text or caret else [tag("em", "no answer")]
    return tag("div", *body, class_="bubble", aria_busy="true" if caret else "false")


def _footer(answer: Answer) -> Html:
    """Score, note and copy button. The line exists from the start, so that nothing moves when they appear."""
    parts: list[object] = []
    if answer.score is not None:
        parts.append(reward(answer.score))
    if answer.note:
        parts.append(tag("span", answer.note, class_="ended"))
    if answer.text and answer.state == "done":
        parts.append(tag("button", "Copy", type="button", class_="copy", data_copy=answer.text))
    return tag("div", *(parts or ["\u00a0"]), class_="below")


def reward(score: float) -> Html:
    """A score of the reward model."""
    signed = f"{score:+.2f}".replace("-", "−")
    return tag("span", f"reward {signed}", class_="chip", title="score of the reward model; 0 is its mean on held-out answers")


def side_by_side(session: Session, compares: bool) -> Html:
    """Two answers side by side; the models' names are shown after the vote."""
    pair = session.side_by_side
    if not compares:
        text = "Nothing to compare: this needs an SFT model and an aligned model. A finished run has both, and so has an export"
        return empty(f"{text} made with --adapters.")
    if pair is None:
        text = "Ask one question. The SFT model and the aligned model answer side by side; their names are hidden until you vote."
        return empty(text)
    return root(
        tag("p", tag("strong", pair.answers[0].question), class_="prompt"),
        tag("div", _side(pair, 0), _side(pair, 1), class_="sides"),
        tag("p", pair.note or _status(pair), class_="note", role="status"),
        _verdict(pair) if pair.vote else "",
    )


def _side(pair: SideBySide, place: int) -> Html:
    answer, letter = pair.answers[place], "AB"[place]
    shown: list[object] = [tag("span", f"Answer {letter}", class_="letter")]
    if pair.vote:
        shown += [tag("i", class_=f"key {answer.model}"), MODELS.get(answer.model, answer.model)]
    below = reward(answer.score) if pair.vote and answer.score is not None else "\u00a0"
    won = " won" if pair.vote == letter else ""
    parts = tag("div", *shown, class_="who"), _answer_text(answer), tag("div", below, class_="below")
    return tag("div", *parts, class_=f"side answer{won}")


def _status(pair: SideBySide) -> str:
    if pair.vote:
        return f"You chose {CHOICE_WORDS[pair.vote]}."
    if not pair.ready:
        generating = any(answer.state != "done" for answer in pair.answers)
        return "Generating both answers, one after the other." if generating else "Scoring and judging both answers."
    return "Both answers are identical: nothing to vote on." if pair.identical else "Which answer is better?"


def _verdict(pair: SideBySide) -> Html:
    verdict = pair.verdict
    if verdict is None:
        return note("The judge failed; the terminal shows why." if pair.judge_failed else "This engine has no judge.")
    choice = CHOICE_WORDS.get(verdict.choice, "neither: its two orders disagree")
    agrees = {True: "agrees with you", False: "disagrees with you"}[verdict.choice == pair.vote]
    parts: list[object] = [tag("p", "The judge chose ", tag("strong", choice), f" and {agrees} (margin {verdict.margin:.2f}).")]
    if verdict.context:
        lines = [tag("li", line) for line in verdict.context.strip().splitlines()]
        parts += [note("Descriptions of the clip that it read as context:"), tag("ul", *lines, class_="plain context")]
    else:
        parts.append(note("It read no descriptions, only the frames."))
    return tag("div", *parts, class_="verdict")


def votes(counts: Agreement, file: str) -> Html:
    """How people voted, and how often the judge agrees with them."""
    if not counts.votes:
        return empty("No votes yet. Compare two answers and choose the better one.")
    shares = (
        (f"{MODELS[PAIR[0]]} preferred", counts.wins, counts.wins + counts.losses, PAIR[0], counts.win_interval),
        ("Judge agrees with people", counts.agreed, counts.both_decided, "plain", counts.agreement_interval),
    )
    rows = [
        bar(title, share / total if total else None, tone, interval, 0.5, note=f"{number(total)} decided")
        for title, share, total, tone, interval in shares
    ]
    summary = [
        f"{number(counts.votes)} vote{'s' * (counts.votes != 1)}: {number(counts.wins)} for {MODELS[PAIR[0]]}, "
        f"{number(counts.losses)} for {MODELS[PAIR[1]]}, {number(counts.ties)} tied, {number(counts.bad)} both bad."
    ]
    if counts.both_decided:
        summary.append(
            f" Where people and judge both chose a winner, they agree on {percent(counts.agreed / counts.both_decided, 0)}."
        )
    scale = "Whiskers: 95 % confidence intervals. Dashed line: 50 %. Ties count in neither bar."
    setting = tag("code", f"--set data.preferences=[{file}]")
    use = note("To train the reward model on these votes: ", setting, " with ", tag("code", "reward"), ".")
    return root(tag("p", join(summary)), bars(rows, "People and judge"), note(scale), use)
