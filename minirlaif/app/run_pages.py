"""The pages about a run: how far it is, its curves, its test answers, its judge's verdicts. From files to markup. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.app import run_reader
from minirlaif.app.run_reader import Row
from minirlaif.app.views import root
from minirlaif.errors import UserError
from minirlaif.reports import run_results
from minirlaif.reports.html import Html, bar, bars, curve, frames, number, strip_styles, table, tag
from minirlaif.runs.run import Run
from minirlaif.runs.status import status_rows
from minirlaif.stages.registry import MODELS, PIPELINE, STAGES

CARDS = 8  # test answers on a page
KINDS = {"all": "all", **{title: kind for kind, title in run_results.KINDS.items() if kind}}


def progress(run: Run | None) -> Html:
    """The stages with their state, and how far the one in the making is."""
    if run is None:
        return nothing()
    try:
        rows = [[name, state, time, result] for name, state, time, result in status_rows(run, PIPELINE)]
    except UserError as error:
        return root(tag("p", str(error), class_="notice warn"))
    live = run_reader.at_work(run)
    parts: list[object] = []
    if live:
        parts.append(bars([_how_far(run, live)], "stage in the making"))
    for row in rows:
        row[1] = tag("span", row[1], class_=f"state {str(row[1]).split(':')[0]}")
        row[3] = "report.html" if row[0] == "report" and row[3] else row[3]
    parts.append(table(["Stage", "State", "Time", "Result"], rows))
    return root(*parts)


def _how_far(run: Run, stage: str) -> Html:
    cfg, lines = run_reader.config_of(run), run_reader.rows(run, stage, "metrics.jsonl")
    step = int(lines[-1]["step"]) if lines and "step" in lines[-1] else 0
    total = getattr(getattr(cfg, stage, None), "iterations", None)
    told = f"step {number(step)} of {number(total)}" if total else f"step {number(step)}"
    return bar(f"{stage} is running", step / total if total else 0.0, "rlaif", value=told, note="this page follows it")


def curves(run: Run | None) -> Html:
    """What was measured while training, as far as it has come."""
    if run is None:
        return Html("")
    drawn = []
    for stage in reversed(STAGES.values()):
        rows = _measured(run, stage.name) if stage.curves else []
        for each in stage.curves:
            points = [(row["step"], row.get(each.field)) for row in rows]
            if any(y is not None for _, y in points):
                drawn.append(curve(each.title, points, stage.tone, note=each.note, span=each.span))
    if not drawn:
        return root(tag("p", "No stage has measured anything yet.", class_="empty"))
    return root(tag("div", *drawn, class_="curves"))


def _measured(run: Run, stage: str) -> list[Row]:
    """Lines of metrics.jsonl; without those of feedback that only describe dev clips."""
    return [row for row in run_reader.rows(run, stage, "metrics.jsonl") if "step" in row and row.get("pairs") != 0]


def gallery(run: Run | None, kind: str, page: int) -> tuple[Html, int]:
    """A page (from 1) of test answers with frames, and how many pages there are. kind: a key of KINDS."""
    if run is None:
        return nothing(), 1
    found = run_reader.answers(run, KINDS.get(kind, "all"), run_results.kind)
    if not found:
        told = (
            "No test answer is of this kind."
            if run_reader.rows(run, "evaluate", "answers.jsonl")
            else "`evaluate` has not finished."
        )
        return root(tag("p", told, class_="empty")), 1
    pages = -(-len(found) // CARDS)
    page = min(max(1, page), pages)
    some, data = found[(page - 1) * CARDS : page * CARDS], {}
    for row in some:
        path = run.dir("evaluate") / (row["strip"] or "none")
        data[row["video"]] = path.read_bytes() if path.is_file() else run_reader.strip(run, row["video"], _frames_of(run))
    names = {video: f"g{place}" for place, video in enumerate(data) if data[video]}
    pictures = {row["id"]: _frames(run, names[row["video"]], data[row["video"]]) for row in some if row["video"] in names}
    style = Html(f"<style>{strip_styles({name: data[video] for video, name in names.items()})}</style>")
    numbers = {
        "cases": {name: len(run_reader.answers(run, name, run_results.kind)) for name in run_results.KINDS if name},
        "answered_items": sum(bool(run_results.kind(row)) for row in run_reader.rows(run, "evaluate", "answers.jsonl")),
    }
    shown = run_results.gallery([{**row, "strip": row["id"]} for row in some], pictures, numbers)
    return root(style, shown), pages


def verdict(run: Run | None, wanted: str, place: int) -> tuple[Html, int]:
    """One verdict of the judge (place from 1) among those that pass a filter, and how many those are."""
    if run is None:
        return nothing(), 0
    found = run_reader.verdicts(run, wanted)
    if not found:
        told = "No verdict passes this filter." if run_reader.rows(run, "feedback", "verdicts.jsonl") else "No verdicts yet."
        return root(tag("p", told, class_="empty")), 0
    row = found[min(max(1, place), len(found)) - 1]
    picture = run_reader.strip(run, row["video"], _frames_of(run))
    frames_shown: object = tag("p", "The frames of this clip are no longer in the run's cache.", class_="note")
    style = Html("")
    if picture:
        style, frames_shown = Html(f"<style>{strip_styles({'v0': picture})}</style>"), _frames(run, "v0", picture)
    context = [tag("li", line) for line in row["context"].strip().splitlines()]
    told = tag("ul", *context, class_="plain context") if context else tag("p", "The judge read no context.", class_="note")
    sides = tag("div", *(_side(row, letter) for letter in "AB"), class_="sides")
    left = tag("div", frames_shown, tag("h3", "What the judge had read"), told)
    right = tag("div", tag("p", tag("strong", row["question"]), class_="asks"), sides, _said(row))
    return root(style, tag("div", left, right, class_="two")), len(found)


def _side(row: Mapping[str, Any], letter: str) -> Html:
    won = row["choice"] == letter
    head = [tag("span", f"Answer {letter}", class_="letter"), *([tag("span", "chosen", class_="ok")] if won else [])]
    return tag(
        "div",
        tag("div", *head, class_="who"),
        tag("div", row[f"answer_{letter.lower()}"] or tag("em", "no answer"), class_="bubble"),
        class_=f"side told{' won' if won else ''}",
    )


def _said(row: Mapping[str, Any]) -> Html:
    """The verdict as read out in both orders, and the other ways in which the same pair was judged."""

    def line(name: str, said: Mapping[str, Any]) -> list[object]:
        return [name, *said["orders"], said["choice"], f"{said['margin']:.3f}"]

    lines = [line("verdict", row)]
    if row.get("without_context"):
        lines.append(line("without context", row["without_context"]))
    if row.get("letter"):
        lines.append(line("as letters", row["letter"]))
    parts = [table(["", "A first", "B first", "together", "margin"], lines)]
    if row.get("scores"):
        chosen, rejected = row["scores"]
        told = "agrees" if row["reward_says"] == "same" else "disagrees"
        parts.append(tag("p", f"Reward model: chosen {chosen:+.2f}, rejected {rejected:+.2f}; it {told}.", class_="note"))
    return tag("div", *parts)


def voted(rows: Sequence[Row], only_other: bool, most: int = 20) -> Html:
    """The last votes, or those in which people and the judge chose differently."""
    some = [row for row in rows if not only_other or (row.get("judge") and row["judge"] != row.get("preference"))]
    if not some:
        return root(tag("p", "None.", class_="empty")) if rows else Html("")
    words: dict[Any, str] = {1: "A", 2: "B"}
    cards = []
    for row in reversed(some[-most:]):
        vote, judge = (words.get(row.get(name), row.get(name) or "not asked") for name in ("preference", "judge"))
        sides = [
            tag(
                "div",
                tag(
                    "dt",
                    tag("i", class_=f"key {row.get(f'model_{n}')}"),
                    f"{words[n]}: {MODELS.get(str(row.get(f'model_{n}')), '?')}",
                ),
                tag("dd", row.get(f"output_{n}") or tag("em", "no answer")),
            )
            for n in (1, 2)
        ]
        told = tag("p", f"Vote: {vote} · judge: {judge}", class_="note")
        cards.append(tag("article", tag("h4", row.get("prompt", "")), tag("dl", *sides), told, class_="card"))
    return root(tag("div", *cards, class_="cards"))


def nothing() -> Html:
    """What stands where there is no run."""
    command = "OMP_NUM_THREADS=1 python -m minirlaif run --config configs/tiny.yaml --run tiny"
    told = ["There is no run here yet. This makes the laptop run, in about a quarter of an hour:", tag("pre", command)]
    return root(tag("div", *told, class_="empty"))


def _frames_of(run: Run) -> int:
    cfg = run_reader.config_of(run)
    return cfg.video.frames if cfg else 16


def _frames(run: Run, name: str, jpeg: bytes) -> Html:
    from PIL import Image

    count = _frames_of(run)
    with Image.open(io.BytesIO(jpeg)) as picture:
        return frames(name, count, picture.width / count / picture.height)
