"""Servers on this machine for the tests of the endpoint judge: one that does as it is told, and llama.cpp's own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Act = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def answer(handler: BaseHTTPRequestHandler, text: Any, model: str = "judge-1", status: int = 200) -> None:
    """A well-formed chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"model": model, "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    send(handler, json.dumps(body).encode(), status)


def send(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


class Server:
    """Does the next of `acts` for each request; the last one for all that follow. Keeps what it was sent."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    owner.bodies.append({**body, "path": self.path})
                    owner.headers.append(dict(self.headers))
                    owner.times.append(time.monotonic())
                    act = owner.acts.pop(0) if len(owner.acts) > 1 else owner.acts[0]
                act(self, body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """llama-cpp-python's server over a GGUF file; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "llama_cpp.server", "--model", str(model), "--n_ctx", "2048", "--port", str(port)]
    words += ["--n_threads", "1", "--n_threads_batch", "1"]  # more would wait for one another on a busy machine
    with (model.parent / "server.log").open("w") as log:
        child = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert child.poll() is None, (model.parent / "server.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait(20)
