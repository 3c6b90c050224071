"""A child process that answers requests over its pipes. It can be killed at any time, and a native crash ends no other process.

A request is one JSON line, followed by raw bytes where there are any; a reply is one JSON line, and the caller reads what follows
it from `stdout`. The clip decoder, llama.cpp and its converter run in such processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from minirlaif.errors import UserError

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
        only: variables of the process, none of this one's but PYTHONPATH.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, only: Mapping[str, str] | None = None
    ) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # what the child prints
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            tuple(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**(os.environ if only is None else only), "PYTHONPATH": path, **(environment or {})},
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the child
        )
        assert self._process.stdout is not None
        self.stdout: IO[bytes] = self._process.stdout

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def send(self, request: Mapping[str, Any], data: Any = b"") -> None:
        """Write a request. Raises BrokenPipeError when the child has ended."""
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
            ChildLost: it died, was killed, or its reply is incomplete. Any other interruption leaves half a reply in the pipe:
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
            pass  # it died while it read the request or wrote the reply
        finally:
            if timer:
                timer.cancel()
                timer.join()
        if not expired.is_set():
            try:  # a child that is ending by itself is given time, so that its own exit status is reported
                self._process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                self._process.kill()  # it may still run after half a reply
        raise ChildLost(self._process.wait(), expired.is_set(), self.printed())

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


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """In the child: answer requests until stdin closes; a UserError becomes the reply {"error": its text}.

    answer: takes a request, reads the raw bytes that follow it from `sys.stdin.buffer`, and returns the reply.
    """
    # A file descriptor that stays open: the parent reads the end of the pipe only when this process has ended.
    replies = os.fdopen(os.dup(1), "wb", closefd=False)
    os.dup2(2, 1)  # output of libraries must not get into the replies
    sys.stdout = sys.stderr
    for line in sys.stdin.buffer:
        try:
            reply = answer(json.loads(line))
        except UserError as error:
            reply = {"error": str(error)}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
