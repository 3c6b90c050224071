"""Parts of the page as markup, by the blocks of page.py: everything a person or a model wrote is escaped. No torch."""

from __future__ import annotations

import base64
import io

import numpy as np

from minirlaif.app.sessions import PAIR, Answer, Session, SideBySide
from minirlaif.app.votes import Agreement
from minirlaif.inference.engine import LoadedClip
from minirlaif.reports.html import Html, bar, bars, join, number, percent, tag
from minirlaif.stages.registry import MODELS

TALLEST = 160  # pixels of a frame on the page; smaller frames are shown pixel by pixel
CHOICE_WORDS = {"A": "Answer A", "B": "Answer B", "tie": "a tie", "both bad": "both bad", "invalid": "nothing readable"}


def root(*inside: object) -> Html:
    """Where page.css counts."""
    return tag("div", *inside, class_="report")


def notice(text: str, tone: str = "warn") -> Html:
    """A line that is read out when it appears; empty without text."""
    return root(tag("p", text, class_=f"notice {tone}", role="status")) if text else Html("")


def strip(look: LoadedClip | None, limits: str) -> Html:
    """The frames exactly as the model gets them, each with its time. limits: of clips, in words."""
    if look is None:
        return root(tag("p", f"The frames that the model sees will stand here. {limits}", class_="note placeholder"))
    height, width = look.pixels_FHW3.shape[1:3]
    count = len(look.times)
    pictures = [
        tag(
            "figure",
            _picture(pixels, look.aspect, f"frame {place} of {count}, at {time:.1f} seconds"),
            tag("figcaption", f"{time:.1f} s"),
        )
        for place, (pixels, time) in enumerate(zip(look.pixels_FHW3, look.times, strict=True), start=1)
    ]
    told = f"What the model sees of {look.seconds:.1f} s: {count} frame{'s' * (count != 1)} of {width} × {height} pixels"
    return root(
        tag("p", told, class_="note"),
        tag("div", *pictures, class_="strip", tabindex="0", role="group", aria_label="frames in order", style=f"--n:{count}"),
    )


def _picture(pixels_HW3: np.ndarray, aspect: float, what: str) -> Html:
    from PIL import Image

    picture, small = Image.fromarray(pixels_HW3), pixels_HW3.shape[0] <= TALLEST
    if not small:
        picture = picture.resize((max(1, round(TALLEST * aspect)), TALLEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Html(
        tag("img", alt=what, src=source, class_="pixels" if small else None, style=f"aspect-ratio:{aspect:.4g}").removesuffix(
            "</img>"
        )
    )


def chat(session: Session, title: str) -> Html:
    """The conversation, newest last."""
    if not session.turns:
        told = "Ask something about the clip." if session.loaded else "Choose a clip, then ask about it."
        return root(tag("div", tag("p", told), tag("p", title, class_="note"), class_="empty"))
    parts: list[object] = []
    for turn in session.turns:
        parts.append(tag("div", tag("div", turn.question, class_="bubble"), class_="turn asked"))
        parts.append(tag("div", _who(turn), _said(turn), _below(turn), class_="turn told"))
    return root(tag("div", *parts, class_="talk"))


def _who(answer: Answer) -> Html:
    name = MODELS.get(answer.model, answer.model) if answer.model else "waiting for the model"
    return tag("div", tag("i", class_=f"key {answer.model or 'plain'}"), name, class_="who")


def _said(answer: Answer) -> Html:
    caret = tag("span", class_="caret", aria_hidden="true") if answer.state != "done" else ""
    body = [answer.text, caret] if answer.text or caret else [tag("em", "no answer")]
    return tag("div", *body, class_="bubble", aria_busy="true" if caret else "false")


def _below(answer: Answer) -> Html:
    """Score and note; the line is there from the start, so that nothing moves when they come."""
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
    return tag("span", f"reward {signed}", class_="chip", title="reward model's score; 0 is its mean on held-out answers")


def duel(session: Session, compares: bool) -> Html:
    """Two answers side by side; who is who shows after the vote."""
    pair = session.duel
    if not compares:
        return root(
            tag(
                "p",
                "Here is no SFT model beside an aligned one, so there is nothing to compare. A finished run has both, and"
                " so has an export with --adapters.",
                class_="empty",
            )
        )
    if pair is None:
        told = "Ask one question: SFT and the aligned model answer side by side, in hidden order. Vote, then see who is who."
        return root(tag("div", tag("p", told), class_="empty"))
    sides = [_side(pair, place) for place in (0, 1)]
    told = pair.note or _asked_to(pair)
    return root(
        tag("p", tag("strong", pair.answers[0].question), class_="asks"),
        tag("div", *sides, class_="sides"),
        tag("p", told, class_="note", role="status"),
        _verdict(pair) if pair.vote else "",
    )


def _side(pair: SideBySide, place: int) -> Html:
    answer, letter = pair.answers[place], "AB"[place]
    shown: list[object] = [tag("span", f"Answer {letter}", class_="letter")]
    if pair.vote:
        shown += [tag("i", class_=f"key {answer.model}"), MODELS.get(answer.model, answer.model)]
    below = reward(answer.score) if pair.vote and answer.score is not None else "\u00a0"
    won = " won" if pair.vote == letter else ""
    return tag(
        "div", tag("div", *shown, class_="who"), _said(answer), tag("div", below, class_="below"), class_=f"side told{won}"
    )


def _asked_to(pair: SideBySide) -> str:
    if pair.vote:
        return f"You chose {CHOICE_WORDS[pair.vote]}."
    if not pair.ready:
        speaking = any(answer.state != "done" for answer in pair.answers)
        return "Both models answer, one after the other." if speaking else "The judge reads both answers."
    return "Both said the same: nothing to vote on." if pair.alike else "Which answer is better?"


def _verdict(pair: SideBySide) -> Html:
    judged = pair.judged
    if judged is None:
        return tag("p", "The judge could not be asked." if pair.unjudged else "This engine has no judge.", class_="note")
    choice = CHOICE_WORDS.get(judged.choice, "neither: its two orders disagree")
    agrees = {True: "the same as you", False: "not as you"}[judged.choice == pair.vote]
    parts: list[object] = [tag("p", "The judge chose ", tag("strong", choice), f", {agrees} (margin {judged.margin:.2f}).")]
    if judged.context:
        lines = [tag("li", line) for line in judged.context.strip().splitlines()]
        parts += [tag("p", "It had read these descriptions:", class_="note"), tag("ul", *lines, class_="plain context")]
    else:
        parts.append(tag("p", "It had no descriptions to read, only the frames.", class_="note"))
    return tag("div", *parts, class_="verdict")


def votes(counts: Agreement, file: str) -> Html:
    """How people voted, and how far the judge votes with them."""
    if not counts.votes:
        return root(tag("p", "No votes yet: compare two answers and choose.", class_="empty"))
    decided = counts.wins + counts.losses
    rows = [
        bar(MODELS["rlaif"], counts.wins / decided if decided else None, "rlaif", counts.win_interval, 0.5, note=_of(decided)),
        bar(
            "Judge votes as people do",
            counts.alike / counts.both_decided if counts.both_decided else None,
            "plain",
            counts.alike_interval,
            0.5,
            note=_of(counts.both_decided),
        ),
    ]
    told = [
        f"{number(counts.votes)} vote{'s' * (counts.votes != 1)}: {number(counts.wins)} for {MODELS[PAIR[0]]}, "
        f"{number(counts.losses)} for {MODELS[PAIR[1]]}, {number(counts.ties)} tied, {number(counts.bad)} both bad."
    ]
    if counts.both_decided:
        told.append(f" Where both named a winner, it was the same in {percent(counts.alike / counts.both_decided, 0)}.")
    note = "Whiskers: 95 % intervals. Dashed: a coin. Ties are in neither bar."
    use = ["Train on them: ", tag("code", f"--set data.preferences=[{file}]"), " with ", tag("code", "reward"), "."]
    return root(
        tag("p", join(told)),
        bars(rows, "People and judge"),
        tag("p", note, class_="note"),
        tag("p", *use, class_="note"),
    )


def _of(count: int) -> str:
    return f"{number(count)} decided"
