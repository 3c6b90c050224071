"""Limits of what clients send, counted while the bytes arrive: a length that a client announces is not believed. No torch."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

MAX_STORED_BYTES = 8 << 30  # of all uploads together
WINDOW_SECONDS = 600.0
UPLOADS_AT_ONCE = 4  # of one client
CLIPS_IN_WINDOW = 20  # of the largest size that one client may send within WINDOW_SECONDS
FORM_BYTES = 1 << 16  # of an upload around its file
LOOPBACK = ("127.0.0.1", "::1")


class TooMuch(Exception):
    """A client sends more than it may; status and reason of the reply."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def client_of(scope: Scope) -> str:
    """Who sends a request: its address; behind a tunnel or proxy on this machine, the one that this noted last."""
    host = str((scope.get("client") or ("",))[0])
    forwarded = Request(scope).headers.get("x-forwarded-for", "")
    return forwarded.rpartition(",")[2].strip() or host if host in LOOPBACK else host


class UploadQuota:
    """Counts uploads by client, and all of them together.

    Args:
        folder: where uploads are stored.
        largest: bytes of the largest clip.
        clock: seconds, ascending.
    """

    def __init__(self, folder: Path, largest: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._largest, self._clock = folder, largest + FORM_BYTES, clock
        self._running: dict[str, int] = defaultdict(int)
        self._sent: dict[str, deque[tuple[float, int]]] = {}
        self._arriving = 0  # bytes of uploads that are not stored yet

    def received(self, scope: Scope, receive: Receive) -> tuple[Receive, Callable[[], None]]:
        """A `receive` that raises TooMuch once a limit is passed, and what to call at the end of the upload. Raises TooMuch."""
        client = client_of(scope)
        announced = Request(scope).headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._largest:
            raise TooMuch(413, "the clip is too large")
        if self._running[client] >= UPLOADS_AT_ONCE:
            raise TooMuch(429, "too many uploads at once")
        stored = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        self._running[client] += 1
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            size = len(message.get("body", b""))
            count += size
            self._arriving += size
            self._note(client, size)
            if count > self._largest:
                raise TooMuch(413, "the clip is too large")
            if stored + self._arriving > MAX_STORED_BYTES:
                raise TooMuch(507, "the upload storage is full")
            if self._in_window(client) > CLIPS_IN_WINDOW * self._largest:
                raise TooMuch(429, f"more than {CLIPS_IN_WINDOW} clips within {WINDOW_SECONDS / 60:.0f} minutes")
            return message

        def end() -> None:
            self._arriving -= count
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

        return counted, end

    def _note(self, client: str, size: int) -> None:
        self._forget()
        parts = self._sent.setdefault(client, deque())
        if parts and self._clock() - parts[-1][0] < 1:  # one entry a second is enough
            parts[-1] = (parts[-1][0], parts[-1][1] + size)
        else:
            parts.append((self._clock(), size))

    def _in_window(self, client: str) -> int:
        return sum(size for _, size in self._sent.get(client, ()))

    def _forget(self) -> None:
        """Drop what is older than the window, and clients of whom nothing is left."""
        oldest = self._clock() - WINDOW_SECONDS
        for client in [*self._sent]:
            parts = self._sent[client]
            while parts and parts[0][0] < oldest:
                parts.popleft()
            if not parts:
                del self._sent[client]
