"""The Gradio page of `audit` on 127.0.0.1: one pair at a time; keys 1 to 4 press the label buttons."""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from minirlaif.app import server
from minirlaif.benchmarks.audit import BY_CONSTRUCTION, LABELS, Audit
from minirlaif.reports import html
from minirlaif.stats import FEW
from minirlaif.video.reader import ClipReader, UnreadableClip, clip_strip

FRAMES = 8
TEMPLATE = "app/audit.html"
# A key that is held down must not label the pairs that follow.
KEYS = """<script>document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (document.activeElement?.matches("input:not([type=hidden]), textarea, select, [contenteditable]")) return;
  document.querySelectorAll("#labels button")[event.key - 1]?.click();
});</script>"""
EVENT: dict[str, Any] = {"concurrency_id": "audit", "concurrency_limit": 1, "api_visibility": "private"}


def serve(audit: Audit, port: int, timeout: float, stop: threading.Event | None = None) -> None:
    """Serve until Ctrl-C, or until `stop` is set; then the figures are written. UserError where the port is taken."""
    stop = stop or threading.Event()
    with serving(audit, port, timeout) as address:
        if audit.note:
            print(audit.note, flush=True)
        print(f"label at {address} (Ctrl-C to stop; labels are saved)", flush=True)
        try:
            while not stop.wait(1.0):
                pass
        except KeyboardInterrupt:
            print(file=sys.stderr)
    print(audit.summary())
    print(f"audit: {audit.write()}")


@contextmanager
def serving(audit: Audit, port: int, timeout: float) -> Iterator[str]:
    """The page at an address, for a block. timeout: seconds that reading a clip may take."""
    temporary = tempfile.TemporaryDirectory(prefix="minirlaif-audit-", ignore_cleanup_errors=True)
    with temporary as folder, ClipReader(timeout) as reader:
        server.quiet_gradio(Path(folder))
        page = build(audit, reader, Path(folder))
        with server.launched(page, Path(folder), "127.0.0.1", port, head=KEYS, allowed_paths=[folder]) as address:
            yield address


def build(audit: Audit, reader: ClipReader, folder: Path) -> Any:
    """The page. folder: clips are copied there, since nothing outside it is served."""
    import gradio as gr

    def show(place: int | None) -> tuple[Any, str]:
        """The number of a pair and its markup; without one, those of the next pair that has no label."""
        place = audit.next_place() if place is None else place
        return place, figures() if place is None else pair_view(audit, reader, folder, place)

    def choose(label: str, place: int | None) -> tuple[Any, str]:
        """place: of the pair on the screen: a second click on its buttons must not label the pair that follows."""
        if place is not None:
            audit.label(audit.items[int(place)], label)
        return show(None)

    def figures() -> str:
        audit.write()
        head, rows = ["", "Value", "95 % interval", "Out of"], audit.table_rows(" †")
        notes = [f"† Fewer than {FEW} pairs: too few to rely on."] if any("†" in row[3] for row in rows) else []
        notes += [BY_CONSTRUCTION] if audit.readout == "likelihood" else []
        return html.render(TEMPLATE, item=None, head=head, rows=rows, notes=notes, audit=audit)

    with gr.Blocks(title="minirlaif audit", analytics_enabled=False) as page:
        place = gr.Number(visible="hidden", precision=0)
        pair = gr.HTML(apply_default_css=False, elem_id="pair")
        with gr.Row(elem_id="labels"):
            for key, (label, text) in enumerate(LABELS.items(), 1):
                gr.Button(f"{key}  {text}").click(partial(choose, label), place, [place, pair], **EVENT)
        gr.Button("Previous pair", size="sm", elem_id="previous").click(
            lambda place: show(max(0, (len(audit.items) if place is None else int(place)) - 1)), place, [place, pair], **EVENT
        )
        with gr.Accordion("Figures so far", open=False, elem_id="figures") as accordion:
            table = gr.HTML(apply_default_css=False)
        accordion.expand(figures, None, table, **EVENT)
        page.load(lambda: show(None), None, [place, pair], **EVENT)
    page.queue(max_size=32, api_open=False)
    return page


def pair_view(audit: Audit, reader: ClipReader, folder: Path, place: int) -> str:
    """A pair in the order in which a person sees it, without the judge's verdict."""
    item = audit.items[place]
    clip = folder / f"{place}{Path(item.video).suffix.lower()}"
    reason, aspect, style = "", 1.0, ""
    try:
        jpeg, aspect = clip_strip(reader, item.video, FRAMES)
        style = html.strip_styles({"pair-frames": jpeg})
        if not clip.is_file():
            shutil.copyfile(item.video, clip)
    except UnreadableClip as error:
        reason = error.reason
    answers = item.answers[::-1] if item.flipped else item.answers
    return html.render(
        TEMPLATE,
        **{"audit": audit, "item": item, "answers": answers, "clip": clip, "frames": FRAMES},
        **{"reason": reason, "aspect": aspect, "style": style},
    )
