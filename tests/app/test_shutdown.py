"""What is left of a server after SIGTERM, SIGHUP or Ctrl-C: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from minirlaif.app import server
from minirlaif.app.engine_thread import EngineThread
from minirlaif.errors import UserError
from tests.fixtures import chat_run
from tests.fixtures.browser import FakeEngine, wait_for
from tests.fixtures.http_client import Client
from tests.fixtures.processes import tree

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 120.0  # on a busy machine; usually a few seconds


@contextmanager
def program(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`python app.py`, whose temporary files go to a folder of their own."""
    (folder / "temp").mkdir()
    variables = {**os.environ, "TMPDIR": str(folder / "temp"), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "errors.txt").open("w") as errors:
        command = [sys.executable, str(ROOT / "app.py"), "--port", "0", *words]
        app = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
        started = {app.pid: "app"}
        try:
            yield app
        finally:
            with suppress(ProcessLookupError):
                started = tree(app.pid)
            app.kill()
            app.wait()
            for pid in started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def address_of(app: subprocess.Popen[str]) -> str:
    assert app.stdout is not None
    return next(line for line in iter(app.stdout.readline, "") if line.startswith("open ")).split()[1].rstrip("/")


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def answering(client: Client, clip: Path, answers: int) -> None:
    """Bring the model to work: a clip, then long answers that nobody reads."""
    client.show(clip)
    begin = client.events["question", "submit"]
    client.quick(begin, ["Describe it at length."])
    call = {"data": ["rlaif", 2.0, 1.0, 512], "fn_index": client.after[begin], "session_hash": client.session}
    for _ in range(answers):
        client.post("/gradio_api/queue/join", call)


@pytest.mark.parametrize("engine", ["run", "gguf"])
def test_a_server_that_is_told_to_stop_leaves_nothing(engine: str, tmp_path: Path) -> None:
    """In the middle of answers, with pages open, an upload on its way and another clip in the decoder."""
    clip = chat_run.world_clip(tmp_path / "good.mp4")
    if engine == "run":
        chat_run.run_of(tmp_path / "runs" / "a")
        words: tuple[str, ...] = ("--run", "a")
    else:
        chat_run.exported(tmp_path / "files")
        words = ("--gguf", "files")
    with program(tmp_path, *words) as app:
        address = address_of(app)
        clients = [Client(address) for _ in range(2)]
        with clients[0].beating():
            for client in clients:
                answering(client, clip, 2)
            children = set(tree(app.pid)) - {app.pid}
            assert len(children) >= 2 and [*(tmp_path / "temp").glob("minirlaif-app-*")]
            time.sleep(0.5)
            began = time.monotonic()
            app.send_signal(signal.SIGTERM)
            assert app.wait(STOP_SECONDS) == 0, (tmp_path / "errors.txt").read_text()
        assert time.monotonic() - began < STOP_SECONDS
        wait_for(lambda: not any(map(alive, children)))
    assert [*(tmp_path / "temp").iterdir()] == []
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()


def test_a_server_is_stopped_while_it_loads(tmp_path: Path) -> None:
    chat_run.run_of(tmp_path / "runs" / "a")
    with program(tmp_path, "--run", "a") as app:
        assert app.stdout is not None and app.stdout.readline().startswith("loading ")
        app.send_signal(signal.SIGTERM)
        assert app.wait(STOP_SECONDS) == 0
        assert app.stdout.read() == ""
    assert [*(tmp_path / "temp").iterdir()] == [] and "Traceback" not in (tmp_path / "errors.txt").read_text()


def test_frames_of_uploads_go_after_a_kill_as_well(tmp_path: Path) -> None:
    clip = chat_run.world_clip(tmp_path / "good.mp4")
    chat_run.run_of(tmp_path / "runs" / "a")
    with program(tmp_path, "--run", "a") as app:
        Client(address_of(app)).show(clip)
        app.kill()
    left = [path for path in (tmp_path / "temp").rglob("*") if path.is_file()]
    assert {path.name for path in left} >= {"features.sqlite", "good.mp4"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.tempfile, "tempdir", str(tmp_path / "temp"))
        server.remove_leftovers()
    assert [path.name for path in (tmp_path / "temp").rglob("*") if path.is_file()] == []


def test_closing_waits_for_no_answer() -> None:
    """The one in progress ends after its next piece, others do not begin."""
    made = EngineThread(FakeEngine)

    def endless(engine: FakeEngine) -> Iterator[str]:
        while True:
            yield "on"
            time.sleep(0.01)

    first, second = (made.stream(endless, threading.Event()) for _ in range(2))
    assert next(first) == "on"
    refused: list[str] = []

    def read() -> None:
        try:
            next(second)
        except UserError as error:
            refused.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_for(lambda: made._jobs.qsize() == 1)
    closing = threading.Thread(target=made.close, daemon=True)
    closing.start()
    closing.join(60.0)
    reader.join(60.0)
    assert not closing.is_alive() and set(first) <= {"on"} and refused == ["the app is closing"]
    with pytest.raises(UserError, match="closing"):
        made.call(lambda engine: 1)
