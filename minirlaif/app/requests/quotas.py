"""Limits of what clients send and keep, counted while bytes arrive: a length that is announced is not believed. No torch."""

import asyncio
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

MAX_STORED_BYTES = 8 << 30  # of all uploads together
WINDOW_SECONDS = 600.0
UPLOADS_AT_ONCE = 4  # of one client
CLIPS_IN_WINDOW = 20  # of the largest size that one client may send within WINDOW_SECONDS
UPLOAD_BYTES_PER_SECOND = 8 << 20  # of one client, after one largest clip: reading them takes the processor that all share
SLOWEST_BYTES_PER_SECOND = 2 << 10  # of an upload, over SILENT_SECONDS: slower ones would keep their places for days
SMALLEST_SHARE = 50  # an upload counts as at least this part of the largest: many small files are a burden as well
FORM_BYTES = 1 << 16  # of an upload around its file
SILENT_SECONDS = 20.0  # a client that sends nothing for so long in the middle of a request has gone
DECODING_SECONDS = 60.0  # of checks of one client's clips within WINDOW_SECONDS
MODEL_QUEUE = "model"  # concurrency_id of events that need the model
LOOPBACK = ("127.0.0.1", "::1")
# Of one client, which may be a house or a class behind one address:
OPEN_REQUESTS = 128  # and connections, but for tunnels and proxies on this machine
REQUESTS_PER_SECOND, BURST = 100.0, 2000.0  # a page takes about 150; see `cost_of`
SESSIONS_OF_CLIENT = 32
MODEL_PLACES = 4  # questions and clips that wait for the model
EVENT_PLACES = 48  # of these and others
MAX_EVENTS = 256  # that wait in Gradio's queue
MAX_SESSIONS = 512  # of all clients
SESSION_SECONDS = 60.0  # a session without heartbeat, stream or request is closed after so long


class TooMuch(Exception):
    """A client sends more than it may; status and reason of the reply."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def client_of(scope: Scope) -> str:
    """Who sends a request: its address (IPv6: its /64); behind a tunnel or proxy on this machine, the one it noted last."""
    host = str((scope.get("client") or ("",))[0])
    if host in LOOPBACK:
        noted = ",".join(Request(scope).headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
        host = re.sub(r"^\[(.+)\](?::\d+)?$|^([^:]+):\d+$", r"\1\2", noted) or host  # without a port
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv4Address) or host in LOOPBACK:
        return host
    return str(address.ipv4_mapped or ip_network(f"{host}/64", strict=False))


class Window:
    """How much each client took within WINDOW_SECONDS, in any unit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: dict[str, deque[tuple[float, float]]] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, client: str, amount: float) -> float:
        """Note an amount; returns the total of this client within the window. Clients of whom nothing is left are dropped."""
        now = self._clock()
        for name in [*self._taken]:
            parts = self._taken[name]
            while parts and parts[0][0] < now - WINDOW_SECONDS:
                parts.popleft()
            if not parts:
                del self._taken[name]
        if amount:
            parts = self._taken.setdefault(client, deque())
            if parts and now - parts[-1][0] < 1:  # one entry a second is enough
                parts[-1] = (parts[-1][0], parts[-1][1] + amount)
            else:
                parts.append((now, amount))
        return sum(size for _, size in self._taken.get(client, ()))


class UploadQuota:
    """Counts uploads by client, and all of them together.

    Args:
        folder: where uploads are stored.
        largest: bytes of the largest clip.
        clock: seconds, ascending.
    """

    def __init__(self, folder: Path, largest: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._largest, self._sent, self._clock = folder, largest + FORM_BYTES, Window(clock), clock
        self._running: dict[str, int] = defaultdict(int)
        self._busy_until: dict[str, float] = {}  # when a client's bytes so far have come at UPLOAD_BYTES_PER_SECOND
        self._arriving = 0  # bytes of uploads that are not stored yet

    def received(self, scope: Scope, receive: Receive) -> tuple[Receive, Callable[[], None]]:
        """A `receive` that raises TooMuch once a limit is passed, and what to call at the end of the upload. Raises TooMuch."""
        client = client_of(scope)
        announced = Request(scope).headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._largest:
            raise TooMuch(413, "the clip is too large")
        if self._running[client] >= UPLOADS_AT_ONCE:
            raise TooMuch(429, "too many uploads at once")
        self._note(client, self._largest // SMALLEST_SHARE)
        stored = _size(self._folder)
        self._running[client] += 1
        count, pace = 0, (self._clock(), 0)  # when it was last looked at, and bytes then

        async def counted() -> Message:
            nonlocal count, pace
            message = await unless_silent(receive)
            size = len(message.get("body", b""))
            count += size
            self._arriving += size
            passed = self._clock() - pace[0]
            if passed > SILENT_SECONDS:
                if count - pace[1] < passed * SLOWEST_BYTES_PER_SECOND:
                    raise TooMuch(408, "the upload is too slow")
                pace = (self._clock(), count)
            if count > self._largest:
                raise TooMuch(413, "the clip is too large")
            if stored + self._arriving > MAX_STORED_BYTES:
                raise TooMuch(507, "the upload storage is full")
            self._note(client, size)
            await asyncio.sleep(self._pause(client, size))
            return message

        def end() -> None:
            self._arriving -= count
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

        return counted, end

    def _pause(self, client: str, size: int) -> float:
        """Seconds that a client waits after these bytes."""
        now = time.monotonic()
        self._busy_until = {name: until for name, until in self._busy_until.items() if until > now}
        self._busy_until[client] = self._busy_until.get(client, now) + size / UPLOAD_BYTES_PER_SECOND
        return max(0.0, self._busy_until[client] - now - self._largest / UPLOAD_BYTES_PER_SECOND)

    def _note(self, client: str, size: int) -> None:
        if self._sent.add(client, size) > CLIPS_IN_WINDOW * self._largest:
            raise TooMuch(429, f"more than {CLIPS_IN_WINDOW} clips within {WINDOW_SECONDS / 60:.0f} minutes")


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; those that another thread deletes meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


async def unless_silent(receive: Receive) -> Message:
    """The next part of a request. TooMuch: the client sends none."""
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            return await receive()
    except TimeoutError:
        raise TooMuch(408, "the request did not arrive in time") from None


def cost_of(method: str, path: str) -> float:
    """What a request counts, in requests for small files: pages with all their settings and events cost more to answer."""
    path = path.rstrip("/")
    if path in ("", "/config", "/gradio_api/info"):
        return 20.0
    if path.endswith(("/queue/join", "/run/predict")):
        return 8.0
    return 1.0 if method == "GET" else 4.0


@dataclass
class _Session:
    """One open page. used: time of its last request; open: its connections (heartbeat, events)."""

    client: str
    used: float
    open: int = 0


class Visitors:
    """Who is here: open requests, sessions and queue places of each client. For one event loop, without locks.

    A session is created by its first request and closed once it had no connection and no request for SESSION_SECONDS: a name
    that no page keeps alive is not kept.

    Args:
        close: called with the name of a session that ended.
    """

    def __init__(self, close: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._close, self._clock = close, clock
        self._open: dict[str, int] = defaultdict(int)
        self._joining: dict[str, list[bool]] = {}  # events that are on their way into the queue: whether each needs the model
        self._credit: dict[str, tuple[float, float]] = {}  # time, and what was left of BURST then
        self.sessions: dict[str, _Session] = {}

    @contextmanager
    def request(self, client: str, cost: float) -> Iterator[bool]:
        """Count a request while it is open; yields whether it comes too soon after others. TooMuch: too many are open."""
        if self._open[client] >= OPEN_REQUESTS:
            raise TooMuch(429, "too many requests at once")
        now = self._clock()
        then, credit = self._credit.get(client, (now, BURST))
        credit = min(BURST, credit + (now - then) * REQUESTS_PER_SECOND)
        soon = credit < cost
        self._credit[client] = (now, credit if soon else credit - cost)
        self._open[client] += 1
        try:
            yield soon
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def enter(self, client: str, name: str) -> _Session:
        """The session of this name, created at its first request. TooMuch: it is another client's, or there are too many."""
        session = self.sessions.get(name)
        if session is None:
            if sum(each.client == client for each in self.sessions.values()) >= SESSIONS_OF_CLIENT:
                self._make_room(client, TooMuch(429, "too many open pages: close some and reload this one"))
            if len(self.sessions) >= MAX_SESSIONS:
                self._make_room("", TooMuch(503, "too many visitors: try again later"))
            session = self.sessions[name] = _Session(client, self._clock())
        if session.client != client:
            raise TooMuch(403, "this page belongs to another address: reload it")
        session.used = self._clock()
        return session

    def _make_room(self, client: str, refusal: TooMuch) -> None:
        idle = [name for name, each in self.sessions.items() if not each.open and each.client == (client or each.client)]
        if not idle:
            raise refusal
        self.leave(min(idle, key=lambda name: self.sessions[name].used))

    @contextmanager
    def connected(self, client: str, name: str) -> Iterator[None]:
        """Keep a session while one of its connections is open."""
        session = self.enter(client, name)
        session.open += 1
        try:
            yield
        finally:
            session.open -= 1
            session.used = self._clock()

    @contextmanager
    def joining(self, client: str, queue: Any, is_model: bool) -> Iterator[None]:
        """Count an event while it is on its way into Gradio's queue. TooMuch: the client has no place left there."""
        own = {name for name, each in self.sessions.items() if each.client == client}
        waiting = [event for event in queue.event_ids_to_events.values() if event.session_hash in own]
        unread = sum(len(queue.pending_event_ids_session.get(name, ())) for name in own)
        joining = self._joining.get(client, [])
        model = sum(event.concurrency_id == MODEL_QUEUE for event in waiting) + sum(joining)
        if (is_model and model >= MODEL_PLACES) or max(len(waiting), unread) + len(joining) >= EVENT_PLACES:
            raise TooMuch(429, "too many of your questions are waiting: ask again later")
        self._joining.setdefault(client, []).append(is_model)
        try:
            yield
        finally:
            self._joining[client].remove(is_model)
            if not self._joining[client]:
                del self._joining[client]

    def others_wait(self, client: str, queue: Any) -> bool:
        """Whether an event of another client waits for the model, or has it."""
        own = {name for name, each in self.sessions.items() if each.client == client}
        events = [*queue.event_ids_to_events.values()]
        return any(event.concurrency_id == MODEL_QUEUE and event.session_hash not in own for event in events)

    def leave(self, name: str) -> None:
        """End a session."""
        if self.sessions.pop(name, None):
            self._close(name)

    def expire(self) -> None:
        """End the sessions that nobody keeps alive; forget clients who could send BURST again."""
        now = self._clock()
        for name, each in [*self.sessions.items()]:
            if not each.open and each.used < now - SESSION_SECONDS:
                self.leave(name)
        for client, (then, credit) in [*self._credit.items()]:
            if credit + (now - then) * REQUESTS_PER_SECOND >= BURST:
                del self._credit[client]
