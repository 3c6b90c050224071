"""The page of `audit`: one pair at a time, served to this machine alone. Every answer of a person is a form that is sent back."""

from __future__ import annotations

import base64
import hashlib
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from minirlaif.benchmarks.audit import BY_CONSTRUCTION, LABELS, Audit
from minirlaif.errors import UserError
from minirlaif.reports import html
from minirlaif.reports.html import Html, tag
from minirlaif.stats import FEW
from minirlaif.video.reader import ClipReader, UnreadableClip, clip_strip

FRAMES = 8
MOST_BYTES = 4096  # of a form
TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime", ".mkv": "video/x-matroska", ".ogv": "video/ogg"}
STYLE = (
    ".choose{display:flex;flex-wrap:wrap;gap:10px;margin-top:16px}"
    ".choose button{font:inherit;padding:10px 18px;border-radius:10px;border:1px solid var(--line);background:var(--card);"
    "color:var(--ink);cursor:pointer}.choose button:hover{border-color:var(--rlaif)}"
    "video{display:block;max-width:100%;height:min(320px,40vh);border-radius:8px;margin:12px 0}"
    ".frames{grid-template-columns:repeat(8,1fr)!important}tbody th{white-space:normal;min-width:9em}"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:0 20px;align-items:start}"
    ".answer{border-left:4px solid var(--line);padding:2px 14px}kbd{font:inherit;color:var(--soft);margin-right:.5em}"
)
# The page's only program: keys 1 to 4 press the buttons. A key that is held down must not label the pairs that follow.
KEYS = (
    'document.addEventListener("keydown",e=>{'
    "if(e.repeat||e.ctrlKey||e.altKey||e.metaKey||document.activeElement?.matches('input,textarea,select,[contenteditable]'))return;"
    "const b=document.querySelectorAll('.choose button')[e.key-1];if(b)b.click()})"
)
KEYS_HASH = base64.b64encode(hashlib.sha256(KEYS.encode()).digest()).decode()


def serve(audit: Audit, port: int, timeout: float, ready: Callable[[ThreadingHTTPServer], None] | None = None) -> None:
    """Serve until Ctrl-C; then the figures are written. ready: called with the server before it serves, to learn its port."""
    with ClipReader(timeout) as reader:
        try:
            parts = {"audit": audit, "token": secrets.token_urlsafe(16), "reader": reader, "one": threading.Lock()}
            server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), parts))
        except OSError as error:
            raise UserError(f"--port {port}: cannot be used ({error.strerror}); name another, or 0 for any free one") from None
        with server:
            if audit.note:
                print(audit.note, flush=True)
            print(f"label here: http://127.0.0.1:{server.server_address[1]}/ (Ctrl-C ends; labels are kept)", flush=True)
            if ready:
                ready(server)
            try:
                server.serve_forever(poll_interval=0.1)
            except KeyboardInterrupt:
                print(file=sys.stderr)
    print(audit.summary())
    print(f"audit: {audit.write()}")


class _Handler(BaseHTTPRequestHandler):
    """What is asked of the page. `serve` sets the attributes; browsers open several connections, `one` lets one in at a time."""

    audit: Audit
    token: str
    reader: ClipReader
    one: threading.Lock
    server_version = "minirlaif"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._is_local():
            return
        name, _, number = self.path.strip("/").partition("/")
        place = int(number) if number.isdecimal() and int(number) < len(self.audit.items) else None
        if not self.path.strip("/"):
            name, place = "item", self.audit.next_place()
            name = "result" if place is None else name
        if name == "result":
            self._page(lambda: _result_page(self.audit))
        elif name == "item" and place is not None:
            self._page(lambda: _item_page(self.audit, self.token, self.reader, place))
        elif name == "clip" and place is not None:
            self._clip(place)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self._is_local():
            return
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        form = {name: values[0] for name, values in parse_qs(self.rfile.read(int(length)).decode(errors="replace")).items()}
        number, label = form.get("item", ""), form.get("label", "")
        if form.get("token") != self.token:  # another page in the same browser must not label
            return self.send_error(HTTPStatus.FORBIDDEN, "this form is from an earlier start; open the first page again")
        if not number.isdecimal() or int(number) >= len(self.audit.items) or label not in LABELS:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        with self.one:
            self.audit.label(self.audit.items[int(number)], label)
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _is_local(self) -> bool:
        """A page elsewhere may point a name of its own at this machine; its requests bring that name along."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host in ("127.0.0.1", "localhost"):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _page(self, make: Callable[[], Html]) -> None:
        with self.one:
            text = make()
        self._send(text.encode(), "text/html; charset=utf-8")

    def _clip(self, number: int) -> None:
        path = Path(self.audit.items[number].video)
        try:
            self._send(path.read_bytes(), TYPES.get(path.suffix.lower(), "application/octet-stream"))
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        try:
            self.wfile.write(data)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass  # the browser went on to another page

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not printed."""


def _item_page(audit: Audit, token: str, reader: ClipReader, place: int) -> Html:
    item = audit.items[place]
    shown = item.answers[::-1] if item.flipped else item.answers
    buttons = [
        tag("button", tag("kbd", key), text, type="submit", name_="label", value=name)
        for key, (name, text) in enumerate(LABELS.items(), 1)
    ]
    form = tag("form", *_hidden(token, place), tag("div", *buttons, class_="choose"), method="post", action="/label")
    strip, jpeg = _strip(reader, item.video)
    clip = tag("video", src=f"/clip/{place}", controls="", preload="metadata")
    answers = [
        tag("div", tag("h3", name), tag("p", text), class_="answer")
        for name, text in zip(("First answer", "Second answer"), shown, strict=True)
    ]
    before = tag("p", tag("a", "the one before", href=f"/item/{place - 1}")) if place else ""
    so_far = tag("a", "figures so far", href="/result")
    head = tag("p", f"minirlaif audit · {len(audit.labels)} of {len(audit.items)} labelled · ", so_far, class_="eyebrow")
    body = [
        head,
        tag("h1", item.question),
        html.section(
            "pair",
            "Which answer is better?",
            strip,
            tag("div", clip, tag("div", *answers), class_="pair"),
            form,
            tag("p", f"Keys 1 to {len(LABELS)} press these buttons.", class_="note"),
            before,
        ),
        Html(f"<script>{KEYS}</script>"),
    ]
    return _document("minirlaif audit", body, html.strip_styles({"s": jpeg}) if jpeg else "")


def _result_page(audit: Audit) -> Html:
    audit.write()
    head = tag("p", f"minirlaif audit · {len(audit.labels)} of {len(audit.items)} labelled", class_="eyebrow")
    more = "" if audit.next_place() is None else tag("p", tag("a", "go on labelling", href="/"))
    rows = audit.table_rows(" †")
    few = tag("p", f"† Out of fewer than {FEW}: only a hint.", class_="note") if any("†" in row[3] for row in rows) else ""
    shown = html.table(["", "Value", "95 % interval", "Out of"], rows)
    by_construction = tag("p", BY_CONSTRUCTION, class_="note") if audit.readout == "likelihood" else ""
    note = tag("p", "Labels are kept in labels.jsonl, the figures in result.json of the run's folder audit.", class_="note")
    kept = tag("p", f"{audit.note}.", class_="note") if audit.note else ""
    figures = html.section("figures", "Figures", shown, few, by_construction)
    return _document("minirlaif audit", [head, tag("h1", "Judge and person"), figures, more, kept, note], "")


def _hidden(token: str, place: int) -> list[Html]:
    values = {"token": token, "item": place}
    return [Html(tag("input", type="hidden", name_=name, value=value).removesuffix("</input>")) for name, value in values.items()]


def _strip(reader: ClipReader, video: str) -> tuple[Html, bytes]:
    try:
        jpeg, aspect = clip_strip(reader, video, FRAMES)
    except UnreadableClip as error:
        return tag("p", f"The clip cannot be read: {error.reason}", class_="note"), b""
    return html.frames("s", FRAMES, aspect), jpeg


def _document(title: str, body: Sequence[object], strips: str) -> Html:
    policy = f"{html.POLICY}; media-src 'self'; form-action 'self'; script-src 'sha256-{KEYS_HASH}'"
    return html.page(title, body, f"{STYLE}\n{strips}", policy)
