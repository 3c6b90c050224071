"""Twenty visitors of a real server, one of them hostile: the others do not wait much longer, and its memory does not grow."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.fixtures import chat_run
from tests.fixtures.http_client import Client, turns
from tests.fixtures.processes import resident
from tests.hostile.attacker import KINDS, varied

ROOT = Path(__file__).parents[2]
HONEST = 19
WARM_SECONDS, QUIET_SECONDS, ATTACK_SECONDS = 60.0, 60.0, 120.0  # quiet: before the attack, and as long after it
THINK_SECONDS = 1.0  # between an answer and the next clip
MOST_WAIT, MOST_GROWTH = 2.0, 1.1  # with the hostile visitor, by what it is without
QUESTION = "What happens first?"


def steady_memory(root: int) -> int:
    """The median of the sums of ten looks within five seconds."""
    sums = []
    for _ in range(10):
        sums.append(sum(resident(root).values()))
        time.sleep(0.5)
    return round(median(sums))


@contextmanager
def server(folder: Path, *words: str) -> Iterator[tuple[str, int]]:
    """`python app.py` over a finished run of the tiny world; its address and its process."""
    clip = chat_run.world_clip(folder / "good.mp4")
    chat_run.add_stage_outputs(chat_run.run_of(folder / "runs" / "a"), clip)
    (folder / "temp").mkdir()
    command = [sys.executable, str(ROOT / "app.py"), "--port", "0", "--runs-dir", "runs", "--run", "a", *words]
    variables = {**os.environ, "TMPDIR": str(folder / "temp"), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "log.txt").open("w") as log:
        app = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert app.stdout is not None
            lines = iter(app.stdout.readline, "")
            yield next(line for line in lines if line.startswith("open ")).split()[1].rstrip("/"), app.pid
        finally:
            app.send_signal(signal.SIGTERM)
            try:
                app.wait(120)
            finally:
                app.kill()


class Visitors:
    """Honest visitors: each opens the page, uploads a clip that nobody else has, asks, reads, and comes again.

    waits: seconds from the upload to the frames, and from the question to the whole answer; failures: what else happened.
    """

    def __init__(self, address: str, clip: bytes, count: int = HONEST) -> None:
        self.address, self.clip = address, clip
        self.waits: dict[str, list[float]] = {"clip": [], "answer": []}
        self.failures: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(number,)) for number in range(count)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _visit(self, number: int) -> None:
        while not self._done.is_set():
            try:
                client = Client(self.address, source=f"127.0.1.{number + 1}")
                with client.beating():
                    self._ask(client)
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}"[:300])
            self._done.wait(THINK_SECONDS)

    def _ask(self, client: Client) -> None:
        began = time.monotonic()
        status, path = client.upload("clip.mp4", varied(self.clip))
        assert status == 200, path
        opened = client.open(path.decode())
        assert "<img" in str(opened["output"]), re.sub("<[^>]*>", " ", str(opened["output"]))
        middle = time.monotonic()
        ((question, answer, note),) = turns(client.ask(QUESTION))
        assert question == QUESTION and not note, note
        self.waits["clip"].append(middle - began)
        self.waits["answer"].append(time.monotonic() - middle)


def visited(address: str, clip: bytes, seconds: float) -> Visitors:
    """So many seconds of honest visitors alone."""
    with Visitors(address, clip) as visitors:
        time.sleep(seconds)
    return visitors


def attacked(address: str, clip: Path, seconds: float) -> tuple[Visitors, dict[str, dict[str, int]]]:
    """The same with the hostile one; how it was answered."""
    command = [sys.executable, "-m", "tests.hostile.attacker", address, str(clip), str(seconds)]
    with Visitors(address, clip.read_bytes()) as visitors:
        hostile = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            output, _ = hostile.communicate(timeout=seconds + 120)
        finally:
            hostile.kill()
    return visitors, json.loads(output)


def shown(waits: Sequence[float]) -> str:
    ordered = sorted(waits)
    return f"{len(ordered)} waits, median {median(ordered):.2f} s, 95 % {ordered[round(len(ordered) * 0.95) - 1]:.2f} s"


@pytest.mark.hostile
@pytest.mark.exclusive
def test_a_hostile_visitor_costs_the_others_little(tmp_path: Path) -> None:
    with server(tmp_path) as (address, pid):
        clip = tmp_path / "good.mp4"
        sizes = [steady_memory(pid)]
        visited(address, clip.read_bytes(), WARM_SECONDS)
        sizes.append(steady_memory(pid))
        alone = visited(address, clip.read_bytes(), QUIET_SECONDS)
        sizes.append(steady_memory(pid))
        together, answers = attacked(address, clip, ATTACK_SECONDS)
        sizes.append(steady_memory(pid))
        each = resident(pid)
        later = visited(address, clip.read_bytes(), QUIET_SECONDS)  # the machine may have become slower meanwhile
    print(json.dumps({kind: answers[kind] for kind in sorted(answers)}, indent=1))
    for name, waits in alone.waits.items():
        waits += later.waits[name]
        print(f"{name}: alone {shown(waits)}; with the hostile one {shown(together.waits[name])}")
    *_, before, after = sizes
    print(f"memory in KiB: at the start, after 60 s, before, after {sizes}, {after / before - 1:+.1%}; by process {each}")
    log = (tmp_path / "log.txt").read_text()
    assert alone.failures == together.failures == later.failures == []
    assert "Traceback" not in log, log[-3000:]
    assert all(sum(answers[kind].values()) >= 4 for kind in KINDS)  # each kind was tried
    for name in alone.waits:
        assert median(together.waits[name]) <= MOST_WAIT * median(alone.waits[name]), name
    assert after <= MOST_GROWTH * before
    assert not any(tmp_path.joinpath("temp").iterdir())
