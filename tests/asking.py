"""A running app over plain HTTP, as somebody would ask it who does not use its page."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Client:
    """A visitor with a session of its own. Paths are sent exactly as they are given."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.session = uuid.uuid4().hex[:10]
        config = json.loads(self.get("/config")[1])
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self.events = {
            (names.get(target[0]), target[1]): event["id"] for event in config["dependencies"] for target in event["targets"]
        }
        self.after = {event.get("trigger_after"): event["id"] for event in config["dependencies"]}

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
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
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
            reply = connection.getresponse()
            while line := reply.readline():
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
        return self.event(self.events["clip", "change"], [{"path": path, "meta": {"_type": "gradio.FileData"}}, frames])

    def show(self, clip: Path) -> None:
        status, path = self.upload(clip.name, clip.read_bytes())
        assert status == 200 and "<img" in str(self.open(path.decode())["output"])

    def ask(self, question: str) -> str:
        """Ask as the page does; returns the chat as it stands afterwards."""
        begin = self.events["question", "submit"]
        status, _ = self.quick(begin, [question])
        assert status == 200
        self.event(self.after[begin], ["rlaif", 0.0, 1.0, 16])
        status, drawn = self.quick(begin, [" "])  # an empty question draws the page anew
        assert status == 200
        return str(drawn["data"][2])
