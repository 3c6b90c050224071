"""The tabs that only read: what happened inside a run, and the votes so far.

Whatever needs the model is in one queue with one job at a time ("model"); reading a run's files is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from minirlaif.app import run_pages, run_reader, views
from minirlaif.app.conversations import Talks
from minirlaif.app.votes import agreement
from minirlaif.runs.run import Run

MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
LIVE, QUIET = 4.0, 8.0  # seconds between looks at a run at work, and at one that rests
READS: dict[str, Any] = {"concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Place:
    """What the pages are about.

    talks: None where there is no model to talk with; run: the run they show first; runs_dir: where others are chosen from.
    """

    talks: Talks | None
    run: Run | None
    runs_dir: Path
    examples: Sequence[tuple[Path, Path]] = ()  # clips, each with a picture of it
    questions: Sequence[str] = ()


def run_tab(page: gr.Blocks, place: Place) -> None:
    """Progress, test answers and verdicts of a chosen run; they follow a run at work."""
    known = [run.root.name for run in run_reader.runs(place.runs_dir)]
    first = place.run.root.name if place.run else (known[0] if known else None)
    if first and first not in known:
        known.insert(0, first)
    with gr.Tab("Inside the run", elem_id="tab-inside") as tab:
        chosen = gr.Dropdown(known, value=first, label="Run", elem_id="run", visible=bool(known))
        with gr.Tabs():
            with gr.Tab("Progress"):
                progress = gr.HTML(apply_default_css=False, elem_id="progress")
                curves = gr.HTML(apply_default_css=False, elem_id="curves")
            with gr.Tab("Test answers"):
                with gr.Row(equal_height=True):
                    kind = gr.Dropdown(list(run_pages.KINDS), value="all", label="What alignment did", elem_id="kind")
                    page_number = _paged("Page", "page")
                gallery = gr.HTML(apply_default_css=False, elem_id="gallery")
            with gr.Tab("Verdicts"):
                with gr.Row(equal_height=True):
                    wanted = gr.Dropdown(list(run_reader.VERDICT_FILTERS), value="all", label="Show", elem_id="filter")
                    number = _paged("Verdict", "number")
                verdict = gr.HTML(apply_default_css=False, elem_id="verdict")
    clock = gr.Timer(LIVE)  # it never stops: the next stage may begin, or a run

    def run_of(name: str | None) -> Run | None:
        """A run by the name that the page sends: one of those that are there."""
        here = [*([place.run] if place.run else []), *run_reader.runs(place.runs_dir)]
        return next((run for run in here if run.root.name == name), None)

    def followed(name: str | None) -> list[Any]:
        run = run_of(name)
        return [
            run_pages.progress(run),
            run_pages.curves(run),
            gr.Timer(QUIET if run is None or not run_reader.at_work(run) else LIVE),
        ]

    def some_answers(name: str | None, of_kind: str, at: float | None) -> list[Any]:
        drawn, pages = run_pages.gallery(run_of(name), of_kind, int(at or 1))
        return [drawn, gr.Number(label=f"Page (of {pages})", value=min(max(1, int(at or 1)), pages))]

    def one_verdict(name: str | None, of_filter: str, at: float | None) -> list[Any]:
        drawn, count = run_pages.verdict(run_of(name), of_filter, int(at or 1))
        return [
            drawn,
            gr.Number(label=f"Verdict (of {count})", value=min(max(1, int(at or 1)), max(1, count))),
        ]

    following = [progress, curves, clock]
    for event in (page.load, tab.select, chosen.change, clock.tick):
        event(followed, chosen, following, **READS)
    for event in (page.load, tab.select, chosen.change, kind.change, page_number.change):
        event(some_answers, [chosen, kind, page_number], [gallery, page_number], **READS)
    for event in (page.load, tab.select, chosen.change, wanted.change, number.change):
        event(one_verdict, [chosen, wanted, number], [verdict, number], **READS)


def _paged(label: str, name: str) -> Any:
    """A number with buttons for the one before and after it."""
    with gr.Column(min_width=220), gr.Row(elem_classes="paged", equal_height=True):
        number = gr.Number(1, label=label, precision=0, elem_id=name, min_width=90, scale=3)
        before = gr.Button("‹", min_width=40, scale=1, elem_id=f"{name}-before", elem_classes="step")
        after = gr.Button("›", min_width=40, scale=1, elem_id=f"{name}-after", elem_classes="step")
    before.click(None, number, number, js="(at) => Math.max(1, (at || 1) - 1)", api_visibility="private")
    after.click(None, number, number, js="(at) => (at || 0) + 1", api_visibility="private")
    return number


def votes_tab(place: Place, talks: Talks) -> None:
    """How often people and the judge agree, and the votes themselves."""
    with gr.Tab("Votes", elem_id="tab-votes") as tab:
        counted = gr.HTML(apply_default_css=False, elem_id="agreement")
        other = gr.Checkbox(label="only where people and the judge differ", elem_id="differ")
        listed = gr.HTML(apply_default_css=False, elem_id="voted")

    def count(only_other: bool) -> list[Any]:
        rows = talks.ballot.rows() if talks.ballot else []
        file = str(talks.ballot.file) if talks.ballot else ""
        return [views.votes(agreement(rows), file), run_pages.voted(rows, only_other)]

    for event in (tab.select, other.change):
        event(count, other, [counted, listed], **READS)
