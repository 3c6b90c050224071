"""Five hundred uploads and five hundred request bodies against `python app.py` over a small run: it serves on, answers each with
a reply that is no error of its own, and its memory stays what it was."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures import chat_run, encoded_clips
from tests.fixtures.http_client import Client
from tests.fixtures.mutations import as_json, mutated, mutated_value
from tests.fixtures.server_process import ServerProcess, app_process

pytestmark = pytest.mark.hostile
UPLOADS, BODIES = 500, 500
WARM = 60  # requests of each kind before memory is compared
EACH = 25  # uploads or bodies of one visitor
LIMIT = 60.0  # seconds of one case: the decoder has 15 for the properties of a clip and 15 for its frames
GROWTH = 1.10  # of the memory of the server and its children, over what it was after the warm-up
SOURCES = "h264_g12_b2.mp4 vp9_g12.webm h264_g12_b0.ts mjpeg.avi mpeg2_g12_b2.mpg picture.gif h264_g50_b0.mkv flv1.flv".split()
NAMES = (
    "clip.mp4",
    "../../x.mp4",
    "a" * 300 + ".mp4",
    "x\0y.mp4",
    ".mp4",
    "",
    "con.webm",
    "ü #%41.avi",
    "a/b\\c.gif",
    "'\";.mkv",
)
PATHS = (
    *("/gradio_api/queue/join", "/gradio_api/run/predict") * 4,
    *("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/upload", "/login", "/gradio_api/info", "/config", "/x"),
)


class Visitor(Client):
    """A client behind a proxy on this machine, which tells the server the visitor's address: limits count for each by itself."""

    def __init__(self, address: str, number: int) -> None:
        self.number = number
        super().__init__(address)

    def known(self) -> dict[str, str]:
        return {"X-Forwarded-For": f"10.0.{self.number // 250}.{self.number % 250 + 1}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    clip = chat_run.world_clip(folder / "clip.mp4")
    chat_run.add_stage_outputs(chat_run.run_of(folder / "runs" / "a"), clip)
    with app_process(folder, "--runs-dir", str(folder / "runs"), "--run", "a", "--max-mb", "2") as process:
        yield process


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder, recipes = tmp_path_factory.mktemp("clips"), {recipe.name: recipe for recipe in encoded_clips.recipes()}
    return [encoded_clips.encode(folder / name, recipes[name]).read_bytes() for name in SOURCES]


def show_and_ask(server: ServerProcess, clip: bytes, number: int) -> None:
    """What a visitor wants of the server."""
    visitor = Visitor(server.address, number)
    status, path = visitor.upload("clip.mp4", clip)
    assert status == 200 and "<img" in str(visitor.open(path.decode())["output"])
    assert "what happens first?" in visitor.ask("what happens first?")


def upload(visitor: Visitor, clips: list[bytes], dice: random.Random) -> str:
    """Send one mutated clip and open it; "shown" or how it was refused."""
    first, other = dice.sample(clips, 2)
    _, data = mutated(first, dice, other)
    name = dice.choice(NAMES) if dice.random() < 0.3 else "clip.mp4"
    status, path = visitor.upload(name, data)
    if status != 200:
        return f"upload {status}"
    message = visitor.open(path.decode(), dice.choice((1, 4, 8)))
    text = str(message.get("output"))
    if not message["success"]:
        return f"open {message.get('status', 'failed')}"
    return "shown" if "<img" in text else "refused" if "notice" in text else f"neither: {text[:300]}"


def calls(visitor: Visitor) -> list[tuple[str, dict[str, Any]]]:
    """Requests as the page sends them: path and body."""
    events, session = visitor.events, {"session_hash": visitor.session}
    quick = {"fn_index": events["question", "submit"], "data": ["what happens?"]}
    ask = {"fn_index": visitor.after[events["question", "submit"]], "data": ["rlaif", 0.0, 1.0, 16]}
    clip = {
        "fn_index": events["clip", "upload"],
        "data": [{"path": "/uploads/x/clip.mp4", "meta": {"_type": "gradio.FileData"}}, 4],
    }
    return [
        ("/gradio_api/run/predict", {**quick, **session}),
        ("/gradio_api/queue/join", {**ask, **session}),
        ("/gradio_api/queue/join", {**clip, **session}),
        ("/gradio_api/run/predict", {"fn_index": events["clear", "click"], "data": [], **session}),
        ("/gradio_api/cancel", {**session, "fn_index": ask["fn_index"], "event_id": "x"}),
        ("/gradio_api/reset", {"event_id": "x"}),
    ]


def post(visitor: Visitor, dice: random.Random) -> str:
    """Send one body; its status, or "closed" for bytes that are no request."""
    path, call = dice.choice(calls(visitor))
    kind = dice.choice(("value", "value", "value", "bytes", "as it is", "as it is", "elsewhere", "no request"))
    body = as_json(call).encode()
    if kind == "value":
        body = as_json(mutated_value(call, dice)).encode()
    elif kind == "bytes":
        body = mutated(body, dice, b"name=x&password=y" * 9)[1]
    elif kind == "elsewhere":
        path = dice.choice(PATHS)
    elif kind == "no request":
        return unread(visitor, path, body, dice)
    types = ("application/json",) * 6 + ("text/plain", "multipart/form-data; boundary=cut", "multipart/form-data", "", "x" * 5000)
    status, reply = visitor.send("POST", path, body, {"Content-Type": dice.choice(types)})
    text = reply.decode(errors="replace")
    if status in (500, 502, 504) or "Traceback" in text or 'File "' in text:
        return f"fault: {kind} {path} {body[:200]!r} -> {status} {text[:300]}"
    if status == 200 and path.endswith("/join"):
        drain(visitor)
    return str(status)


def drain(visitor: Visitor) -> None:
    """Read the events of the page's queue until the one that was asked for has ended."""
    with socket.create_connection((visitor.host, visitor.port), timeout=LIMIT) as line:
        head = "".join(f"{name}: {value}\r\n" for name, value in visitor.known().items())
        path = f"/gradio_api/queue/data?session_hash={visitor.session}"
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: {visitor.host}\r\n{head}Connection: close\r\n\r\n".encode())
        received = b""
        while not any(end in received for end in (b"process_completed", b"unexpected_error", b"close_stream", b"HTTP/1.1 4")):
            if not (more := line.recv(65536)):
                return
            received += more


def unread(visitor: Visitor, path: str, body: bytes, dice: random.Random) -> str:
    """Send bytes that are no request, or half of one, and close the connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: {visitor.host}\r\nContent-Type: application/json\r\n".encode()
    data = dice.choice(
        (
            dice.randbytes(300),
            head + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
            head + b"Content-Length: -1\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n" + body,
            head + f"Content-Length: {len(body) + 50}\r\n\r\n".encode() + body,
            head + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
            b"\x16\x03\x01" + body,
            mutated(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body, dice)[1],
        )
    )
    with socket.create_connection((visitor.host, visitor.port), timeout=LIMIT) as line:
        line.settimeout(0.3)
        try:
            line.sendall(data)
            reply = line.recv(4096)
        except OSError:  # it waits for the rest, or has closed the connection
            return "closed"
    fault = reply[9:12] in (b"500", b"502", b"504") or b"Traceback" in reply
    return f"fault: {data[:300]!r} -> {reply[:300]!r}" if fault else "closed"


def campaign(server: ServerProcess, kind: str, count: int, clips: list[bytes]) -> Counter[str]:
    """Send so many uploads or bodies; how they ended, and what the server's memory was, by kind of the request."""
    ends, memory, slowest = Counter[str](), [], 0.0
    for number in range(WARM + count):
        dice = random.Random(f"{kind} {number}")
        if number % EACH == 0:
            visitor = Visitor(server.address, number // EACH + (1000 if kind == "bodies" else 2000))
            if number >= WARM:
                memory.append(server.memory())
        began = time.monotonic()
        end = upload(visitor, clips, dice) if kind == "uploads" else post(visitor, dice)
        slowest = max(slowest, time.monotonic() - began)
        assert server.alive(), f"{kind} {number}: the server died; {server.log.read_text()[-2000:]}"
        assert not end.startswith(("fault", "neither")), f"{kind} {number}: {end}; {server.log.read_text()[-2000:]}"
        ends[end] += number >= WARM
    memory.append(server.memory())
    shown = ", ".join(f"{value / 2**20:.0f}" for value in memory)
    print(f"{count} {kind}: {dict(ends)}; the slowest took {slowest:.1f} s; MiB after every {EACH}: {shown}")
    assert slowest < LIMIT
    assert max(memory) <= GROWTH * memory[0], memory
    return ends


@pytest.mark.parametrize(("kind", "count"), [("uploads", UPLOADS), ("bodies", BODIES)])
def test_it_serves_on_in_the_same_memory(server: ServerProcess, clips: list[bytes], kind: str, count: int) -> None:
    show_and_ask(server, clips[0], 1)
    ends = campaign(server, kind, count, clips)
    show_and_ask(server, clips[0], 2)
    assert "Traceback" not in server.log.read_text(), server.log.read_text()[-5000:]
    good = {"uploads": ("shown",), "bodies": ("200",)}[kind]
    served = sum(ends[end] for end in good)
    assert 0.1 * count < served < 0.9 * count, ends
    assert json.loads(Visitor(server.address, 3).get("/config")[1])["components"]
