"""The page: which parts stand where, and what each button does. Everything it shows is made in views.py and inside.py, and
everything it does in talks.py; here they are tied to Gradio.

The tabs that read a run's files are in tabs.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import gradio as gr

from minirlaif.app import run_pages, views
from minirlaif.app.conversations import Talks
from minirlaif.app.tabs import MODEL, QUICK, Place, run_tab, votes_tab
from minirlaif.app.uploads import duration
from minirlaif.app.votes import CHOICES
from minirlaif.inference.engine import SamplingParams
from minirlaif.stages.registry import MODELS

SAVE = """(text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json"; link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""


def page_script() -> str:
    """For the head of the page."""
    return f"<script>{(files('minirlaif') / 'app/app.js').read_text(encoding='utf-8')}</script>"


def page_style() -> str:
    """The report's style for the parts of ours, then the app's own."""
    read = [(files("minirlaif") / name).read_text(encoding="utf-8") for name in ("reports/page.css", "app/app.css")]
    return f".report{{\n{read[0]}\n}}\n{read[1]}"


def theme() -> gr.themes.Base:
    """Fonts of the system: gradio's default theme would ask a server for its own."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    return gr.themes.Base(primary_hue="blue", neutral_hue="zinc", radius_size="lg", font=system, font_mono=mono)


def build(place: Place) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="minirlaif", analytics_enabled=False, fill_width=True) as page:
        if place.talks is None:
            gr.HTML(_header("Nothing to chat with yet"), apply_default_css=False)
            gr.HTML(run_pages.nothing(), apply_default_css=False, elem_id="no-run")
            with gr.Tabs():
                run_tab(page, place)
        else:
            _talking(page, place, place.talks)
    page.queue(max_size=32, default_concurrency_limit=1, api_open=False)
    return page


def _header(title: str) -> str:
    return views.root(views.tag("div", views.tag("h1", "minirlaif"), views.tag("span", title, class_="note"), class_="masthead"))


def _talking(page: gr.Blocks, place: Place, talks: Talks) -> None:
    gr.HTML(_header(talks.engine.title), apply_default_css=False)
    with gr.Row(elem_id="desk", equal_height=False):
        with gr.Column(scale=2, min_width=320, elem_id="clip-panel"):
            clip = _clip_panel(place, talks)
        with gr.Column(scale=5, min_width=320), gr.Tabs():
            with gr.Tab("Chat", elem_id="tab-chat"):
                chat = _chat_tab(place, talks, clip)
            with gr.Tab("Compare", elem_id="tab-compare"):
                duel = _compare_tab(place, talks, clip)
            votes_tab(place, talks)
            run_tab(page, place)  # last: gradio counts its inner tabs along and draws a tab behind it twice

    shown = [clip.strip, clip.notice, chat.view, *chat.buttons, duel.view, *duel.buttons]

    def expected(upload: dict[str, Any] | None, request: gr.Request) -> None:
        if upload:
            talks.expect(talks.session(request.session_hash or ""), upload["path"])

    def opened(upload: dict[str, Any] | None, frames: float | None, request: gr.Request) -> list[Any]:
        session, path = talks.session(request.session_hash or ""), upload["path"] if upload else None
        count = int(frames) if frames and math.isfinite(frames) else talks.engine.frames  # an emptied box counts as untouched
        talks.open(session, path, min(max(1, count), clip.most_frames))
        drawn = [views.strip(session.loaded, clip.limits), views.notice(session.notice), *chat.draw(request), *duel.draw(request)]
        return [gr.skip() if session.clip or path is None else None, *drawn]

    bound = {"inputs": [clip.video, clip.frames], "outputs": [clip.video, *shown], **MODEL, "show_progress_on": clip.strip}
    bound["preprocess"] = False  # gradio would call ffmpeg to take the sound out
    gr.on([clip.video.upload, clip.video.stop_recording], expected, clip.video, preprocess=False, **QUICK)
    brought = [clip.video.upload, clip.video.stop_recording, clip.video.clear, clip.frames.release]
    gr.on(brought, opened, trigger_mode="always_last", **bound)
    for chosen in clip.examples:
        chosen.then(opened, **bound)

    def left(request: gr.Request) -> None:
        talks.leave(request.session_hash or "")

    page.unload(left)


@dataclass(frozen=True)
class _Clip:
    video: Any
    strip: Any
    notice: Any
    frames: Any
    sampling: list[Any]  # temperature, top-p, length
    limits: str  # in words
    most_frames: int
    examples: list[Any]  # events that put one there

    def options(self, talks: Talks, values: Sequence[float]) -> SamplingParams:
        """What the sliders say."""
        temperature, top_p, length = values
        return replace(talks.engine.sampling, temperature=float(temperature), top_p=float(top_p), max_new_tokens=int(length))


def _clip_panel(place: Place, talks: Talks) -> _Clip:
    """Clip, examples, the frames that the model sees, and how it answers."""
    trained, limits = talks.engine.sampling, talks.desk.limits
    told = f"Clips of at most {duration(limits.seconds)} and {limits.megabytes} MB."
    video = gr.Video(
        label="Clip", show_label=False, sources=["upload", "webcam"], include_audio=False, elem_id="clip", buttons=[]
    )
    chosen = []
    if place.examples:
        with gr.Row(elem_id="examples"):
            for number, (path, picture) in enumerate(place.examples, start=1):
                button = gr.Button(f"Example {number}", icon=str(picture), size="sm", min_width=70)
                chosen.append(button.click(lambda name=str(path): name, outputs=video, **QUICK))
    strip = gr.HTML(views.strip(None, told), apply_default_css=False, elem_id="strip")
    notice = gr.HTML("", apply_default_css=False, elem_id="clip-notice")
    with gr.Accordion("How it looks and answers", open=False, elem_id="settings"):
        most = max(64, talks.engine.frames)
        frames = gr.Slider(1, most, talks.engine.frames, step=1, label="Frames", info=f"trained with {talks.engine.frames}")
        temperature = gr.Slider(0, 2, trained.temperature, step=0.05, label="Temperature", info="0: the likeliest word each time")
        top_p = gr.Slider(0.05, 1, trained.top_p, step=0.05, label="Top-p", info="1: no word is ruled out")
        longest = max(512, trained.max_new_tokens)
        length = gr.Slider(1, longest, trained.max_new_tokens, step=1, label="Longest answer", info="in tokens")
    return _Clip(video, strip, notice, frames, [temperature, top_p, length], told, most, chosen)


@dataclass(frozen=True)
class _Tab:
    """A view, the buttons whose state follows the session, and how both are drawn for a page."""

    view: Any
    buttons: list[Any]
    draw: Callable[[gr.Request], list[Any]]


def _chat_tab(place: Place, talks: Talks, clip: _Clip) -> _Tab:
    view = gr.HTML(views.chat(talks.session("nobody"), ""), apply_default_css=False, elem_id="chat")
    status = gr.HTML("", apply_default_css=False, elem_id="chat-status")
    suggestions = _suggestions(place)
    box, ask, stop = _asking("Ask about the clip", "Question", "Ask", ("question", "ask", "stop"))
    with gr.Row(elem_classes="tools", equal_height=True):
        names = [(MODELS.get(name, name), name) for name in talks.engine.models]
        model = gr.Radio(names, value=talks.engine.models[0], label="Who answers", show_label=False, container=False, scale=6)
        retry = gr.Button("Retry", size="sm", min_width=70, interactive=False, elem_id="retry")
        clear = gr.Button("Clear", size="sm", min_width=70, interactive=False, elem_id="clear")
        export = gr.Button("Export", size="sm", min_width=70, interactive=False, elem_id="export")
    saved = gr.Textbox(visible=False)
    buttons = [ask, stop, retry, clear, export]

    def draw(request: gr.Request) -> list[Any]:
        session = talks.session(request.session_hash or "")
        idle, turns = not session.busy, bool(session.turns)
        states = [idle, not idle, idle and turns, idle and turns, idle and turns]
        return [views.chat(session, talks.engine.title), *(gr.Button(interactive=state) for state in states)]

    def begin(question: str, request: gr.Request) -> list[Any]:
        session = talks.session(request.session_hash or "")
        taken = talks.begin(session, question)
        return ["" if taken else gr.skip(), views.notice(session.notice), *draw(request)]

    def again(request: gr.Request) -> list[Any]:
        session = talks.session(request.session_hash or "")
        talks.again(session)
        return [views.notice(session.notice), *draw(request)]

    def answer(name: str, *values: Any) -> Iterator[list[Any]]:
        *sliders, request = values
        session = talks.session(request.session_hash or "")
        for _ in talks.answer(session, clip.options(talks, sliders), name):
            yield draw(request)
        yield draw(request)

    def told(request: gr.Request) -> str:
        return talks.export(talks.session(request.session_hash or ""))

    def act(action: Callable[[Any], None]) -> Callable[[gr.Request], list[Any]]:
        def handler(request: gr.Request) -> list[Any]:
            action(talks.session(request.session_hash or ""))
            return draw(request)

        return handler

    answering = {"fn": _with_request(answer), "inputs": [model, *clip.sampling], "outputs": [view, *buttons], **MODEL}
    answering |= {"show_progress": "minimal", "show_progress_on": status, "trigger_mode": "multiple"}  # a stopped one may go on
    started = gr.on([box.submit, ask.click], begin, box, [box, clip.notice, view, *buttons], **QUICK)
    first = started.then(**answering)
    second = retry.click(again, None, [clip.notice, view, *buttons], **QUICK).then(**answering)
    for asked in (first, second):  # a full queue, or a value that gradio refuses
        asked.failure(act(talks.give_up), None, [view, *buttons], **QUICK)
    stop.click(act(talks.halt), None, [view, *buttons], cancels=[first, second], **QUICK)
    clear.click(act(talks.clear), None, [view, *buttons], **QUICK)
    export.click(told, None, saved, **QUICK).then(None, saved, None, js=SAVE)
    _fill(suggestions, box)
    return _Tab(view, buttons, draw)


def _asking(hint: str, label: str, word: str, names: tuple[str, str, str], visible: bool = True) -> tuple[Any, Any, Any]:
    """A box for a question, the button that asks it (called `word`) and the one that stops the answer. names: on the page."""
    with gr.Row(elem_classes="asking", equal_height=True, visible=visible):
        box = gr.Textbox(
            placeholder=hint, show_label=False, label=label, lines=1, max_lines=6, scale=8, elem_id=names[0], container=False
        )
        ask = gr.Button(word, variant="primary", scale=1, min_width=90, elem_id=names[1])
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, interactive=False, elem_id=names[2])
    return box, ask, stop


def _suggestions(place: Place) -> list[Any]:
    with gr.Row(elem_classes="suggestions"):
        return [gr.Button(question, size="sm", min_width=60) for question in place.questions]


def _fill(suggestions: Sequence[Any], box: Any) -> None:
    for button in suggestions:
        button.click(None, button, box, js="(text) => text", api_visibility="private")


def _with_request(handler: Callable[..., Iterator[list[Any]]]) -> Callable[..., Iterator[list[Any]]]:
    """Gradio gives the request to the parameter that is annotated with it, so there has to be one behind the sliders."""

    def handled(first: Any, temperature: float, top_p: float, length: float, request: gr.Request) -> Iterator[list[Any]]:
        yield from handler(first, temperature, top_p, length, request)

    return handled


def _compare_tab(place: Place, talks: Talks, clip: _Clip) -> _Tab:
    view = gr.HTML(views.duel(talks.session("nobody"), talks.compares), apply_default_css=False, elem_id="duel")
    status = gr.HTML("", apply_default_css=False, elem_id="duel-status")
    shown = talks.compares
    with gr.Row(elem_classes="voting", equal_height=True, visible=shown):
        words = {"A": "A is better", "B": "B is better", "tie": "Tie", "both bad": "Both bad"}
        votes = [
            gr.Button(words[choice], interactive=False, min_width=90, elem_id=f"vote-{choice[:4].strip()}") for choice in CHOICES
        ]
    suggestions = _suggestions(place) if shown else []
    named = ("duel-question", "compare", "duel-stop")
    box, ask, stop = _asking("One question for both", "Question for both", "Compare", named, shown)
    if shown and talks.ballot is not None:
        told = f"A vote keeps the question, both answers and a copy of the clip in {talks.ballot.folder}."
        gr.HTML(views.root(views.tag("p", told, class_="note")), apply_default_css=False)
    buttons = [ask, stop, *votes]

    def draw(request: gr.Request) -> list[Any]:
        session = talks.session(request.session_hash or "")
        duel = session.duel
        open_ = duel is not None and duel.ready and not duel.vote and not duel.alike
        states = [not session.busy, session.busy, *([open_] * len(votes))]
        return [views.duel(session, talks.compares), *(gr.Button(interactive=state) for state in states)]

    def begin(question: str, request: gr.Request) -> list[Any]:
        session = talks.session(request.session_hash or "")
        taken = talks.begin_duel(session, question)
        return ["" if taken else gr.skip(), views.notice(session.notice), *draw(request)]

    def fight(_: Any, *values: Any) -> Iterator[list[Any]]:
        *sliders, request = values
        for _step in talks.fight(talks.session(request.session_hash or ""), clip.options(talks, sliders)):
            yield draw(request)
        yield draw(request)

    def halt(request: gr.Request) -> list[Any]:
        talks.halt(talks.session(request.session_hash or ""))
        return draw(request)

    def give_up(request: gr.Request) -> list[Any]:
        talks.give_up(talks.session(request.session_hash or ""))
        return draw(request)

    def chosen(choice: str) -> Callable[..., list[Any]]:
        def vote(temperature: float, top_p: float, length: float, request: gr.Request) -> list[Any]:
            options = clip.options(talks, (temperature, top_p, length))
            talks.vote(talks.session(request.session_hash or ""), choice, options)
            return draw(request)

        return vote

    fighting = {"fn": _with_request(fight), "inputs": [box, *clip.sampling], "outputs": [view, *buttons], **MODEL}
    fighting |= {"show_progress": "minimal", "show_progress_on": status, "trigger_mode": "multiple"}
    begun = gr.on([box.submit, ask.click], begin, box, [box, clip.notice, view, *buttons], **QUICK).then(**fighting)
    begun.failure(give_up, None, [view, *buttons], **QUICK)
    stop.click(halt, None, [view, *buttons], cancels=[begun], **QUICK)
    for button, choice in zip(votes, CHOICES, strict=True):
        button.click(chosen(choice), clip.sampling, [view, *buttons], **QUICK)
    _fill(suggestions, box)
    return _Tab(view, buttons, draw)
