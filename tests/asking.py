"""A running app over plain HTTP, as somebody would ask it who does not use its page."""

from __future__ import annotations

import html
import http.client
import json
import re
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit


def login(address: str, password: str) -> tuple[int, str]:
    """Status, and the cookie that was given for a password."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        form = urlencode({"username": "me", "password": password})
        connection.request("POST", "/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
        reply = connection.getresponse()
        given = [value.split(";")[0] for name, value in reply.getheaders() if name.lower() == "set-cookie"]
        return reply.status, "; ".join(given)
    finally:
        connection.close()


def turns(chat: str) -> list[tuple[str, str, str]]:
    """Question, answer and note ("" without one) of each turn in the markup of a chat."""
    found = []
    for turn in chat.split('<div class="turn asked">')[1:]:
        asked, told = turn.split('<div class="turn told">')
        (question,), (answer,) = (
            re.findall(r'<div[^>]* class="bubble"[^>]*>(.*?)</div>', part, re.DOTALL) for part in (asked, told)
        )
        note = re.search(r'class="ended">(.*?)<', told, re.DOTALL)
        found.append((html.unescape(question), html.unescape(answer), html.unescape(note[1]) if note else ""))
    return found


class Client:
    """A visitor with a session of its own. Paths are sent exactly as they are given.

    heard: what came from the server while the last event ran, byte by byte; cookie: from `login`.
    """

    def __init__(self, address: str, cookie: str = "") -> None:
        parts = urlsplit(address)
        self.host, self.port, self.cookie = str(parts.hostname), int(parts.port or 80), cookie
        self.session = uuid.uuid4().hex[:10]
        self.heard = b""
        config = json.loads(self.get("/config")[1])
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self.events = {
            (names.get(target[0]), target[1]): event["id"] for event in config["dependencies"] for target in event["targets"]
        }
        self.after = {event.get("trigger_after"): event["id"] for event in config["dependencies"]}

    def known(self) -> dict[str, str]:
        return {"Cookie": self.cookie} if self.cookie else {}

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in {**self.known(), **(headers or {}), "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.send("GET", path, headers=headers)

    def post(self, path: str, value: Any) -> tuple[int, bytes]:
        return self.send("POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def upload(self, name: str, data: bytes) -> tuple[int, bytes]:
        """Status, and the path on the server or what was said instead."""
        head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        status, body = self.send(
            "POST", "/gradio_api/upload", head + data + b"\r\n--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}
        )
        return status, json.loads(body)[0].encode() if status == 200 else body

    def event(self, number: int, data: Sequence[Any]) -> dict[str, Any]:
        """Run one of the page's events in the queue and wait for its last message."""
        asked = {"data": list(data), "fn_index": number, "session_hash": self.session}
        status, body = self.post("/gradio_api/queue/join", asked)
        if status != 200:
            return {"success": False, "status": status, "output": body.decode()}
        connection, self.heard = http.client.HTTPConnection(self.host, self.port, timeout=120), b""
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}", headers=self.known())
            reply = connection.getresponse()
            while line := reply.readline():
                self.heard += line
                if line.startswith(b"data: "):
                    message: dict[str, Any] = json.loads(line[6:])
                    if message["msg"] in ("process_completed", "unexpected_error"):
                        return message
        finally:
            connection.close()
        return {"success": False, "output": "the server hung up"}

    def quick(self, number: int, data: Sequence[Any]) -> tuple[int, Any]:
        """Run one of the events that wait for nobody."""
        status, body = self.post(
            "/gradio_api/run/predict", {"data": list(data), "fn_index": number, "session_hash": self.session}
        )
        return status, json.loads(body) if body.startswith(b"{") else body

    def open(self, path: str, frames: int = 4) -> dict[str, Any]:
        """Let the page open a clip by its path on the server."""
        return self.event(self.events["clip", "upload"], [{"path": path, "meta": {"_type": "gradio.FileData"}}, frames])

    def show(self, clip: Path) -> None:
        status, path = self.upload(clip.name, clip.read_bytes())
        assert status == 200 and "<img" in str(self.open(path.decode())["output"])

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Hold the connection that an open page holds; closing it is closing the page."""
        with socket.create_connection((self.host, self.port), timeout=60) as line:
            line.sendall(f"GET /gradio_api/heartbeat/{self.session} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
            heard = b""
            while b"ALIVE" not in heard:
                more = line.recv(4096)
                assert more, heard
                heard += more
            yield

    def ask(self, question: str) -> str:
        """Ask as the page does; returns the chat as it stands afterwards."""
        begin = self.events["question", "submit"]
        status, _ = self.quick(begin, [question])
        assert status == 200
        self.event(self.after[begin], ["rlaif", 0.0, 1.0, 16])
        status, drawn = self.quick(begin, [" "])  # an empty question draws the page anew
        assert status == 200
        return str(drawn["data"][2])
