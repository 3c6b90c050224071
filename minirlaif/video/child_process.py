"""A child process that answers requests over its pipes: it can be killed at any time, and a native crash ends it alone.

A request is one JSON line, followed by raw bytes where there are any; a reply is one JSON line, and the caller reads what follows
it from `stdout`. The clip decoder and llama.cpp run in such processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


class ChildLost(Exception):
    """The child died (`timed_out` False) or was killed because it took too long; `status` is its exit status."""

    def __init__(self, status: int, timed_out: bool, printed: Sequence[str]) -> None:
        super().__init__(f"exit status {status}")
        self.status, self.timed_out, self.printed = status, timed_out, printed


class ChildProcess:
    """A process started from `command` that can import minirlaif.

    Args:
        environment: variables beside those of this process.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # what the child prints
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            tuple(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the child
        )
        assert self._process.stdout is not None
        self.stdout: IO[bytes] = self._process.stdout

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def send(self, request: Mapping[str, Any], data: Any = b"") -> None:
        """Write a request. Raises BrokenPipeError when the child is gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        if len(data):
            self._process.stdin.write(data)
        self._process.stdin.flush()

    def ask(
        self, request: Mapping[str, Any] | None, data: Any = b"", fill: Any = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """Send a request (None: only wait) and read the reply.

        Args:
            fill: called with the reply; reads what follows it from `stdout`, False when that is cut short.
            seconds: the child is killed when it takes longer; pipes themselves have no time limit.
        Raises:
            ChildLost: it died, was killed, or its reply is not whole. Any other interruption leaves half a reply in the pipe:
                the caller closes the child then.
        """
        expired = threading.Event()

        def kill() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill) if seconds is not None else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            if request is not None:
                self.send(request, data)
            reply: dict[str, Any] | None = json.loads(self.stdout.readline() or b"null")
            if reply is not None and (fill is None or fill(reply)):
                return reply
        except (BrokenPipeError, json.JSONDecodeError):
            pass  # it died over the request, or in the middle of a reply
        finally:
            if timer:
                timer.cancel()
                timer.join()
        if not expired.is_set():
            self._end_dying()
        raise ChildLost(self._process.wait(), expired.is_set(), self.printed())

    def _end_dying(self) -> None:
        """Wait shortly for a child that is ending by itself, so that its own exit status is seen; then kill it."""
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it may live on after half a reply

    def printed(self) -> list[str]:
        """The lines that it printed to stderr."""
        self._errors.seek(0)
        return [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]

    def close(self) -> None:
        """Kill it and free its pipes. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # a request that never reached a dead child
                pass
