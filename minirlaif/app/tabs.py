"""The tabs that only read files: the progress and results of a run, and the votes.

Events that need the model share one queue with one job at a time ("model"); reading the files of a run does not wait for it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from minirlaif.app import run_reader, views
from minirlaif.app.conversations import ChatService
from minirlaif.app.requests.quotas import MODEL_QUEUE
from minirlaif.app.votes import agreement
from minirlaif.errors import UserError
from minirlaif.reports.html import UNREADABLE, Html
from minirlaif.runs.run import Run

MODEL: dict[str, Any] = {"concurrency_id": MODEL_QUEUE, "concurrency_limit": 1, "api_visibility": "private"}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
LIVE, IDLE = 4.0, 8.0  # seconds between updates: while a stage runs, and otherwise
FRESH_SECONDS = 2.0  # what one visitor was shown is shown to others as well
READS: dict[str, Any] = {"concurrency_id": "reads", "concurrency_limit": 4, "api_visibility": "private"}
READS["show_progress"] = "hidden"


@dataclass(frozen=True)
class AppContext:
    """What the page shows. service: None without a model; run: the run that is selected first; runs_dir: the folder of all runs;
    examples: clips, each with a thumbnail; is_public: visitors see this run alone, and of the votes their own."""

    service: ChatService | None
    run: Run | None
    runs_dir: Path
    examples: Sequence[tuple[Path, Path]] = ()
    questions: Sequence[str] = ()
    is_public: bool = False

    def runs(self) -> list[Run]:
        """The runs that a visitor may see, the last modified first."""
        return [*([self.run] if self.run else []), *([] if self.is_public else run_reader.runs(self.runs_dir))]


def run_tab(page: gr.Blocks, context: AppContext) -> None:
    """Progress, test answers and verdicts of the selected run, updated while it runs."""
    known = list(dict.fromkeys(run.root.name for run in context.runs()))
    first = known[0] if known else None
    with gr.Tab("Run", elem_id="tab-run") as tab:
        chosen = gr.Dropdown(known, value=first, label="Run", elem_id="run", visible=bool(known))
        with gr.Tabs():
            with gr.Tab("Progress"):
                progress = gr.HTML(apply_default_css=False, elem_id="progress")
                curves = gr.HTML(apply_default_css=False, elem_id="curves")
            with gr.Tab("Test answers"):
                with gr.Row(equal_height=True):
                    kind = gr.Dropdown(list(views.GROUPS), value="all", label="Effect of alignment", elem_id="kind")
                    page_number = _paged("Page", "page")
                gallery = gr.HTML(apply_default_css=False, elem_id="gallery")
            with gr.Tab("Verdicts"):
                with gr.Row(equal_height=True):
                    verdict_filter = gr.Dropdown(list(run_reader.VERDICT_FILTERS), value="all", label="Show", elem_id="filter")
                    verdict_number = _paged("Verdict", "number")
                verdict = gr.HTML(apply_default_css=False, elem_id="verdict")
    clock = gr.Timer(LIVE)  # always active: another stage or run may start

    def run_of(name: str | None) -> Run | None:
        """The run of this name, if it exists; the name comes from the browser."""
        return next((run for run in context.runs() if run.root.name == name), None)

    def update_progress(name: str | None) -> list[Any]:
        run = run_of(name)
        timer = gr.Timer(IDLE if run is None or not run_reader.running_stage(run) else LIVE)
        return [_shown(views.progress, run), _shown(views.curves, run), timer]

    def page_of(draw: Callable[[Run | None, str, int], tuple[Html, int]], label: str) -> Callable[..., list[Any]]:
        def update(name: str | None, group: str, at: float | None) -> list[Any]:
            run = run_of(name)
            drawn, count = _shown(draw, run, group, 1)
            number = min(max(1, int(at or 1)), max(1, count))  # so that no number is drawn that does not exist
            if number > 1:
                drawn, count = _shown(draw, run, group, number)
            return [drawn, gr.Number(label=f"{label} (of {count})", value=number)]

        return update

    for event in (page.load, tab.select, chosen.change, clock.tick):
        event(update_progress, chosen, [progress, curves, clock], **READS)
    for draw, label, group, number, content in (
        (views.gallery, "Page", kind, page_number, gallery),
        (views.verdict, "Verdict", verdict_filter, verdict_number, verdict),
    ):
        for event in (page.load, tab.select, chosen.change, group.change, number.change):
            event(page_of(draw, label), [chosen, group, number], [content, number], **READS)


def _shown(draw: Callable[..., Any], run: Run | None, *values: Any) -> Any:
    """What a view makes of a run; one line, with a count of 0 for a view that counts, where its files cannot be shown. Drawn once
    within FRESH_SECONDS, however many visitors look at it."""
    is_public = isinstance(run, run_reader.PublicRun)
    return _drawn(draw, run and run.root, is_public, values, int(time.monotonic() / FRESH_SECONDS))


@lru_cache(maxsize=16)  # pages with pictures
def _drawn(draw: Callable[..., Any], root: Path | None, is_public: bool, values: tuple[Any, ...], moment: int) -> Any:
    run = None if root is None else run_reader.PublicRun(root) if is_public else Run(root)
    try:
        if run is not None:
            run_reader.check_links(run)
        return draw(run, *values)
    except (UserError, *UNREADABLE) as error:
        line = views.unreadable(run, error)
        return (line, 0) if values else line


def _paged(label: str, name: str) -> Any:
    """A number with buttons for the previous and the next one."""
    with gr.Column(min_width=220), gr.Row(elem_classes="paged", equal_height=True):
        number = gr.Number(1, label=label, precision=0, elem_id=name, min_width=90, scale=3)
        before = gr.Button("‹", min_width=40, scale=1, elem_id=f"{name}-before", elem_classes="step")
        after = gr.Button("›", min_width=40, scale=1, elem_id=f"{name}-after", elem_classes="step")
    before.click(None, number, number, js="(at) => Math.max(1, (at || 1) - 1)", api_visibility="private")
    after.click(None, number, number, js="(at) => (at || 0) + 1", api_visibility="private")
    return number


def votes_tab(service: ChatService, is_public: bool) -> None:
    """How often people and the judge agree, and the latest votes."""
    with gr.Tab("Votes", elem_id="tab-votes") as tab:
        counted = gr.HTML(apply_default_css=False, elem_id="agreement")
        other = gr.Checkbox(label="Only votes on which people and the judge disagree", elem_id="differ")
        listed = gr.HTML(apply_default_css=False, elem_id="vote-list")

    def count(only_other: bool, request: gr.Request) -> list[Any]:
        try:
            rows = service.vote_store.rows() if service.vote_store else []
        except UserError as error:
            return [views.notice(str(error)), ""]
        if is_public:
            own = service.session(request.session_hash or "").votes
            rows = [row for row in rows if row.get("id") in own]
        file = service.vote_store.shown if service.vote_store and not is_public else ""
        return [views.votes(agreement(rows), file), views.vote_cards(rows, only_other)]

    for event in (tab.select, other.change):
        event(count, other, [counted, listed], **READS)
