"""The page: its layout and its events. views.py renders its content, conversations.py does the work, and this module connects
them to Gradio. The tabs that only read files are in tabs.py."""

import inspect
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from minirlaif.app import views
from minirlaif.app.conversations import ChatService
from minirlaif.app.engine_thread import in_steps, in_thread
from minirlaif.app.requests.quotas import MAX_EVENTS, client_of
from minirlaif.app.sessions import Session, compared_models
from minirlaif.app.tabs import MODEL, QUICK, AppContext, run_tab, votes_tab
from minirlaif.app.uploads import duration
from minirlaif.app.votes import CHOICES
from minirlaif.inference.engine import SamplingParams
from minirlaif.stages.registry import MODELS


def theme() -> gr.themes.Base:
    """System fonts: Gradio's default theme downloads fonts from a server."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    return gr.themes.Base(primary_hue="blue", neutral_hue="zinc", radius_size="lg", font=system, font_mono=mono)


def build(context: AppContext) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="minirlaif", analytics_enabled=False, fill_width=True) as page:
        if context.service is None:
            gr.HTML(views.masthead("No finished run to chat with yet"), apply_default_css=False)
            gr.HTML(views.no_run(), apply_default_css=False, elem_id="no-run")
            with gr.Tabs():
                run_tab(page, context)
        else:
            _chat_page(page, context, context.service)
    page.queue(max_size=MAX_EVENTS, default_concurrency_limit=1, api_open=False)
    return page


def _session(service: ChatService, request: gr.Request) -> Session:
    return service.session(request.session_hash or "")


def _client(request: gr.Request) -> str:
    return client_of(request.request.scope) if request.request else ""


def _chat_page(page: gr.Blocks, context: AppContext, service: ChatService) -> None:
    gr.HTML(views.masthead(service.engine.title), apply_default_css=False)
    with gr.Row(elem_id="workspace", equal_height=False):
        with gr.Column(scale=2, min_width=320, elem_id="clip-panel"):
            clip = _ClipPanel(context, service)
        with gr.Column(scale=5, min_width=320), gr.Tabs():
            with gr.Tab("Chat", elem_id="tab-chat"):
                chat = _chat_tab(context, service, clip)
            with gr.Tab("Compare", elem_id="tab-compare"):
                compare = _compare_tab(context, service, clip)
            votes_tab(service, context.is_public)
            run_tab(page, context)  # last: gradio counts its inner tabs along and draws a tab behind it twice

    def frame_count(frames: float | None) -> int:
        count = int(frames) if frames and math.isfinite(frames) else service.engine.frames  # an emptied box counts as untouched
        return min(max(1, count), clip.max_frames)

    async def expect_upload(upload: dict[str, Any] | None, request: gr.Request) -> None:
        if upload:
            service.expect_upload(_session(service, request), upload["path"])

    async def check_clip(upload: dict[str, Any] | None, frames: float | None, request: gr.Request) -> Any:
        """Gradio waits for it before the event has a place in the queue for the model."""
        if upload:
            await in_thread(service.check_clip, upload["path"], frame_count(frames), _client(request))
        return [gr.validate(True, "")] * 2

    async def open_clip(upload: dict[str, Any] | None, frames: float | None, request: gr.Request) -> list[Any]:
        session, path = _session(service, request), upload["path"] if upload else None
        await in_thread(service.open_clip, session, path, frame_count(frames), _client(request))
        panel = [views.strip(session.loaded, clip.limits), views.notice(session.notice)]
        return [gr.skip() if session.clip or path is None else None, *panel, *chat.draw(request), *compare.draw(request)]

    outputs = [clip.video, clip.strip, clip.notice, *chat.outputs, *compare.outputs]
    load_event = {"inputs": [clip.video, clip.frames], "outputs": outputs, **MODEL, "show_progress_on": clip.strip}
    load_event |= {"preprocess": False, "validator": check_clip}  # preprocess: gradio would call ffmpeg to remove the sound
    gr.on([clip.video.upload, clip.video.stop_recording], expect_upload, clip.video, preprocess=False, **QUICK)
    changes = [clip.video.upload, clip.video.stop_recording, clip.video.clear, clip.frames.release]
    gr.on(changes, open_clip, trigger_mode="always_last", **load_event)
    for example in clip.examples:
        example.then(open_clip, **load_event)

    async def close(request: gr.Request) -> None:
        await in_thread(service.close_session, request.session_hash or "")

    page.unload(close)


class _ClipPanel:
    """The left column. limits: of uploads, as text; examples: the events that select an example clip; sliders: temperature, top-p
    and length."""

    def __init__(self, context: AppContext, service: ChatService) -> None:
        trained, frames, limits = service.engine.sampling, service.engine.frames, service.upload_store.limits
        self.limits = f"Limits: {duration(limits.seconds)}, {limits.megabytes} MB."
        self.video: Any = gr.Video(
            label="Clip", show_label=False, sources=["upload", "webcam"], include_audio=False, elem_id="clip", buttons=[]
        )
        self.examples: list[Any] = []
        if context.examples:
            with gr.Row(elem_id="examples"):
                for number, (path, picture) in enumerate(context.examples, start=1):
                    button = gr.Button(f"Example {number}", icon=str(picture), size="sm", min_width=70)
                    self.examples.append(button.click(lambda name=str(path): name, outputs=self.video, **QUICK))
        self.strip = gr.HTML(views.strip(None, self.limits), apply_default_css=False, elem_id="strip")
        self.notice = gr.HTML("", apply_default_css=False, elem_id="clip-notice")
        with gr.Accordion("Frames and sampling", open=False, elem_id="settings"):
            self.max_frames, longest = max(64, frames), max(512, trained.max_new_tokens)
            self.frames: Any = gr.Slider(1, self.max_frames, frames, step=1, label="Frames", info=f"training used {frames}")
            self.sliders = [
                gr.Slider(0, 2, trained.temperature, step=0.05, label="Temperature", info="0: always the most likely token"),
                gr.Slider(0.05, 1, trained.top_p, step=0.05, label="Top-p", info="1: sample from all tokens"),
                gr.Slider(1, longest, trained.max_new_tokens, step=1, label="Maximum length", info="of an answer, in tokens"),
            ]


def _question_row(
    suggestions: Sequence[str], placeholder: str, verb: str, ids: tuple[str, str, str], visible: bool = True
) -> tuple[Any, Any, Any]:
    """A box for a question below suggested ones, the button that sends it (named `verb`) and the one that stops the answer. ids:
    element ids of the three."""
    with gr.Row(elem_classes="suggestions", visible=visible):
        buttons = [gr.Button(question, size="sm", min_width=60) for question in suggestions]
    with gr.Row(elem_classes="question-row", equal_height=True, visible=visible):
        box = gr.Textbox(
            placeholder=placeholder, show_label=False, label="Question", max_lines=6, scale=8, elem_id=ids[0], container=False
        )
        ask = gr.Button(verb, variant="primary", scale=1, min_width=90, elem_id=ids[1])
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, interactive=False, elem_id=ids[2])
    for button in buttons:
        button.click(None, button, box, js="(text) => text", api_visibility="private")
    return box, ask, stop


@dataclass(frozen=True)
class _Tab:
    """A tab that asks questions, connected to the service. outputs: the answers, and the buttons whose state follows the session;
    draw: new values of them."""

    service: ChatService
    clip: _ClipPanel
    outputs: list[Any]
    draw: Callable[[gr.Request], list[Any]]

    def sampling(self, temperature: float, top_p: float, length: float) -> SamplingParams:
        """The sliders' values over those of training."""
        trained = self.service.engine.sampling
        return replace(trained, temperature=float(temperature), top_p=float(top_p), max_new_tokens=int(length))

    def act(self, action: Callable[[Session], Any]) -> Callable[..., Any]:
        """A handler that changes the session, with a function or a coroutine, and redraws notice and tab."""

        async def handler(request: gr.Request) -> list[Any]:
            session = _session(self.service, request)
            if inspect.isawaitable(result := action(session)):
                await result
            return [views.notice(session.notice), *self.draw(request)]

        return handler

    def questions(
        self,
        row: tuple[Any, Any, Any],
        begin: Callable[[Session, str], bool],
        answer: Callable[[Session, SamplingParams, str], Iterator[None]],
        model: Any,
        status: Any,
        retry: Any = None,
    ) -> None:
        """Send a question, stream its answer, stop it, send it again. row: box, send and stop button; model: the component whose
        value goes to `answer`."""

        async def send(question: str, request: gr.Request) -> list[Any]:
            session = _session(self.service, request)
            await self.service.clip_or_time(session)
            accepted = begin(session, question)
            return ["" if accepted else gr.skip(), views.notice(session.notice), *self.draw(request)]

        async def stream(
            name: str, temperature: float, top_p: float, length: float, request: gr.Request
        ) -> AsyncIterator[list[Any]]:
            steps = in_steps(answer(_session(self.service, request), self.sampling(temperature, top_p, length), name))
            with self.service.upload_store.model_time.taken(_client(request)):
                async with aclosing(steps):  # type: ignore[type-var]
                    async for _ in steps:
                        yield self.draw(request)
            yield self.draw(request)

        (box, ask, stop), outputs = row, [self.clip.notice, *self.outputs]
        streaming = {"fn": stream, "inputs": [model, *self.clip.sliders], "outputs": self.outputs, **MODEL}
        # trigger_mode: a stopped answer may still be running when the next question is sent
        streaming |= {"show_progress": "minimal", "show_progress_on": status, "trigger_mode": "multiple"}
        sent = gr.on([box.submit, ask.click], send, box, [box, *outputs], **QUICK)
        streams = [sent.then(**streaming)]
        if retry is not None:
            streams.append(retry.click(self.act(self.service.retry), None, outputs, **QUICK).then(**streaming))
        for event in streams:  # failure: the queue is full, or gradio refuses a value
            event.failure(self.act(self.service.abandon), None, outputs, **QUICK)
        stop.click(self.act(self.service.stop), None, outputs, cancels=streams, **QUICK)


def _chat_tab(context: AppContext, service: ChatService, clip: _ClipPanel) -> _Tab:
    content = gr.HTML(views.chat(Session(), ""), apply_default_css=False, elem_id="chat")
    status = gr.HTML("", apply_default_css=False, elem_id="chat-status")
    row = _question_row(context.questions, "Ask about the clip", "Ask", ("question", "ask", "stop"))
    with gr.Row(elem_classes="tools", equal_height=True):
        names = [(MODELS.get(name, name), name) for name in service.engine.models]
        model = gr.Radio(names, value=service.engine.models[0], label="Model", show_label=False, container=False, scale=6)
        retry, clear, export = (
            gr.Button(name, size="sm", min_width=70, interactive=False, elem_id=name.lower())
            for name in ("Retry", "Clear", "Export")
        )
    exported = gr.Textbox(visible=False)

    def draw(request: gr.Request) -> list[Any]:
        session = _session(service, request)
        idle, turns = not session.busy, bool(session.turns)
        states = [idle, not idle, idle and turns, idle and turns, idle and turns]
        return [views.chat(session, service.engine.title), *(gr.Button(interactive=state) for state in states)]

    async def export_text(request: gr.Request) -> str:
        return _session(service, request).export()

    tab = _Tab(service, clip, [content, *row[1:], retry, clear, export], draw)
    tab.questions(row, service.begin, service.answer, model, status, retry)
    clear.click(tab.act(service.clear), None, [clip.notice, *tab.outputs], **QUICK)
    export.click(export_text, None, exported, **QUICK).then(None, exported, None, js="(text) => saveConversation(text)")
    return tab


def _compare_tab(context: AppContext, service: ChatService, clip: _ClipPanel) -> _Tab:
    compares = bool(compared_models(service.engine.models))
    content = gr.HTML(views.side_by_side(Session(), compares), apply_default_css=False, elem_id="side-by-side")
    status = gr.HTML("", apply_default_css=False, elem_id="compare-status")
    with gr.Row(elem_classes="voting", equal_height=True, visible=compares):
        words = {"A": "A is better", "B": "B is better", "tie": "Tie", "both bad": "Both bad"}
        votes = [
            gr.Button(words[choice], interactive=False, min_width=90, elem_id=f"vote-{choice[:4].strip()}") for choice in CHOICES
        ]
    ids = ("compare-question", "compare", "compare-stop")
    row = _question_row(context.questions, "Ask both models about the clip", "Compare", ids, compares)
    if compares and service.vote_store is not None:
        where = "on this server" if context.is_public else f"beside {service.vote_store.shown}"
        text = f"A vote stores the question, both answers and a copy of the clip {where}."
        gr.HTML(views.part("note", text, True), apply_default_css=False)

    def draw(request: gr.Request) -> list[Any]:
        session = _session(service, request)
        pair = session.side_by_side
        states = [not session.busy, session.busy, *([pair is not None and pair.can_vote] * len(votes))]
        return [views.side_by_side(session, compares), *(gr.Button(interactive=state) for state in states)]

    tab = _Tab(service, clip, [content, *row[1:], *votes], draw)

    def vote_handler(choice: str) -> Callable[..., Any]:
        async def vote(temperature: float, top_p: float, length: float, request: gr.Request) -> list[Any]:
            sampling = tab.sampling(temperature, top_p, length)
            await in_thread(service.vote, _session(service, request), choice, sampling)  # copies the clip
            return draw(request)

        return vote

    tab.questions(
        row, service.begin_side_by_side, lambda session, sampling, _: service.answer_both(session, sampling), row[0], status
    )
    for button, choice in zip(votes, CHOICES, strict=True):
        button.click(vote_handler(choice), clip.sliders, tab.outputs, **QUICK)
    return tab
