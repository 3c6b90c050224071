"""A hostile visitor: `python -m tests.hostile.attacker ADDRESS CLIP SECONDS` tries everything that an app could be made to wait
for, keep or compute, from one address and all at once, and prints how each attempt was answered, as JSON.

A process of its own: the visitors whose wait is measured do not share an interpreter with it.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.fixtures.http_client import Client

SOURCE = "127.0.0.66"
FORM = "multipart/form-data; boundary=cut"
HEAD = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
API = "/gradio_api"
POSTS = (f"{API}/cancel", f"{API}/reset", f"{API}/queue/join", f"{API}/run/predict", f"{API}/upload", "/login", "/", "/nothing")
BAD_VALUES = (
    "NaN", "-Infinity", "1e999", "9" * 5000, "-1", "1e15", "null", '"x"', "[]", "{}", "true", "[" * 2000, '"\\ud800"', "0.0000001"
)  # fmt: skip
BAD_RANGES = (
    "bytes=NaN-",
    "bytes=-",
    "bytes=9-1",
    "bytes=0-0,1-1,2-2",
    f"bytes={'9' * 4000}-",
    "bytes=-1e9",
    "lines=1-2",
    "\xff",
)
BAD_FUNCTIONS: tuple[Any, ...] = (-1, 10**9, None, "0", 1.5, [0], {"a": 0}, True, "../../etc")
SLOW_SECONDS = 25.0


class Attacker:
    """What one attempt of each kind needs. done: whether the time is over."""

    def __init__(self, address: str, clip: bytes, seconds: float) -> None:
        self.address, self.clip, self.end = address, clip, time.monotonic() + seconds
        self.page = self.client()
        self.model_events = (self.page.events["clip", "upload"], self.page.after[self.page.events["question", "submit"]])
        self.answers: dict[str, Counter[str]] = {}

    def client(self) -> Client:
        """A page of its own."""
        return Client(self.address, source=SOURCE)

    def session(self, name: str = "") -> Client:
        """The same page under another name, which no page made."""
        client = Client.__new__(Client)
        client.__dict__.update(self.page.__dict__, session=name or uuid.uuid4().hex[:10])
        return client

    @property
    def done(self) -> bool:
        return time.monotonic() > self.end

    def open_line(self) -> socket.socket:
        """A connection, and nothing else."""
        return socket.create_connection((self.page.host, self.page.port), 10, (SOURCE, 0))

    def keep(self, kind: str, attempt: Callable[[Attacker], str]) -> None:
        """One kind of attack until the time is over."""
        counts = self.answers[kind] = Counter()
        while not self.done:
            try:
                counts[attempt(self)] += 1
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                counts[type(error).__name__] += 1
                time.sleep(0.05)


def large_body(by: Attacker) -> str:
    """300 MB that say no length, to any path."""
    path = random.choice(POSTS)
    form = path in ("/login", f"{API}/upload") or random.random() < 0.2
    connection = by.page.connection(30)
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", FORM if form else "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    piece = b"x" * (1 << 16)
    with suppress(OSError):
        for number in range(4800):
            data = (HEAD if form else b'{"data": ["') if number == 0 else piece
            connection.send(b"%x\r\n%s\r\n" % (len(data), data))
    try:
        return str(connection.getresponse().status)
    finally:
        connection.close()


def slow_bodies(by: Attacker) -> str:
    """Bodies of which a byte comes every second."""
    lines = [by.open_line() for _ in range(20)]
    for line in lines:
        path, kind = random.choice(POSTS), random.choice((FORM, "application/json"))
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: 100000\r\n\r\n"
        line.sendall(head.encode() + HEAD)
    return slowly(by, lines, b"x")


def half_open(by: Attacker) -> str:
    """Connections that say nothing, or half of a request."""
    lines = [by.open_line() for _ in range(40)]
    for line in lines[::2]:
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
    return slowly(by, lines[::2], b"a")


def slowly(by: Attacker, lines: list[socket.socket], data: bytes) -> str:
    """Send a little every second; returns whether anybody ended it."""
    end, ended = time.monotonic() + SLOW_SECONDS, 0
    while time.monotonic() < end and not by.done and ended < len(lines):
        time.sleep(1.0)
        ended = 0
        for line in lines:
            try:
                line.sendall(data)
            except OSError:
                ended += 1
    for line in lines:
        line.close()
    return "ended by the server" if ended == len(lines) else "ended by the visitor"


def calls_at_once(by: Attacker) -> str:
    """60 calls side by side: questions that wait for a clip, and reads of the run."""
    client = by.session()
    begin = client.events["question", "submit"]
    reads = {"data": ["a", "all", 1], "fn_index": client.events["tab-run", "select"], "session_hash": client.session}

    def one(number: int) -> int:
        return client.quick(begin, ["?"])[0] if number % 2 else client.post(f"{API}/queue/join", reads)[0]

    with ThreadPoolExecutor(60) as pool:
        statuses = Counter(pool.map(one, range(60)))
    return str(statuses.most_common(1)[0][0])


def invented_session(by: Attacker) -> str:
    """Names that no page has: streams, heartbeats, calls and ends of events."""
    name = random.choice((uuid.uuid4().hex, "x", "../..", "a" * 5000, "%00"))
    kind = random.randrange(4)
    if kind == 0:
        return str(by.page.get(f"{API}/queue/data?session_hash={name}")[0])
    if kind == 1:
        with by.open_line() as line:
            line.sendall(f"GET {API}/heartbeat/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            return line.recv(64).split()[1].decode()
    path = (f"{API}/reset", f"{API}/cancel")[kind - 2]
    return str(by.page.post(path, {"session_hash": name, "fn_index": 0, "event_id": uuid.uuid4().hex})[0])


def bad_value(by: Attacker) -> str:
    """Numbers that are none, and what is no number, wherever the page sends one; and ranges of a file."""
    if random.random() < 0.2:
        path = random.choice((f"{API}/file=/uploads/examples/0/clip.mp4", "/static/img/logo.svg"))
        return str(by.page.send("GET", path, headers={"Range": random.choice(BAD_RANGES)})[0])
    value, number = random.choice(BAD_VALUES), random.choice(by.model_events)
    upload = '{"path": "/uploads/x/a.mp4"}'
    data = f"[{upload}, {value}]" if number == by.model_events[0] else f'["rlaif", {value}, 1.0, {value}]'
    text = f'{{"data": {data}, "fn_index": {number}, "session_hash": "{by.page.session}", "trigger_id": {value}}}'
    return str(by.page.send("POST", f"{API}/queue/join", text.encode(), {"Content-Type": "application/json"})[0])


def unknown_function(by: Attacker) -> str:
    """Functions that do not exist, and those of the page in the wrong way."""
    call = {
        "data": [],
        "fn_index": random.choice(BAD_FUNCTIONS),
        "session_hash": by.page.session,
        "batched": random.random() < 0.1,
    }
    return str(by.page.post(f"{API}/{random.choice(('queue/join', 'run/predict'))}", call)[0])


def varied(clip: bytes) -> bytes:
    """Another file with the same frames: a box that players skip holds other bytes."""
    return clip + b"\0\0\0\x18free" + os.urandom(16)


def upload(by: Attacker) -> str:
    """A clip that is opened with as many frames as there may be, one with damage, one that is none."""
    data, kind = varied(by.clip), random.randrange(3)
    if kind == 1:
        broken = bytearray(data)
        for _ in range(30):
            broken[random.randrange(len(broken))] = random.randrange(256)
        data = bytes(broken)
    elif kind == 2:
        data = os.urandom(100_000)
    client = by.session()
    status, path = client.upload("clip.mp4", data)
    if status != 200:
        return str(status)
    opened = client.open(path.decode(), 64)
    return f"opened {opened.get('status', 200)}"


def queue_flood(by: Attacker) -> str:
    """Events for the model from ever new pages, for the longest answers, which nobody reads."""
    client = by.session()
    status, path = client.upload("clip.mp4", by.clip)
    if status == 200:
        client.open(path.decode(), 64)
    statuses = []
    for _ in range(10):
        client.quick(client.events["question", "submit"], ["Describe everything at length. " * 20])
        call = {"data": ["rlaif", 2.0, 1.0, 512], "fn_index": by.model_events[1], "session_hash": client.session}
        statuses.append(client.post(f"{API}/queue/join", call)[0])
    return str(Counter(statuses).most_common(1)[0][0])


KINDS: dict[str, tuple[Callable[[Attacker], str], int]] = {  # and how many do it side by side
    "large bodies": (large_body, 4),
    "slow bodies": (slow_bodies, 1),
    "half-open connections": (half_open, 1),
    "calls at once": (calls_at_once, 1),
    "invented sessions": (invented_session, 2),
    "bad values": (bad_value, 2),
    "unknown functions": (unknown_function, 2),
    "uploads": (upload, 3),
    "queue floods": (queue_flood, 3),
}


def attack(address: str, clip: bytes, seconds: float) -> dict[str, Counter[str]]:
    """All kinds at once. Returns how often each attempt of a kind was answered how."""
    by = Attacker(address, clip, seconds)
    threads = [
        threading.Thread(target=by.keep, args=(f"{name} {number}", attempt), daemon=True)
        for name, (attempt, count) in KINDS.items()
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, by.end - time.monotonic()) + SLOW_SECONDS + 5)
    total: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for name, counts in by.answers.items():
        total[name.rpartition(" ")[0]].update(counts)
    return total


def main(words: list[str]) -> Iterator[str]:
    address, clip, seconds = words
    os.nice(19)  # what it computes itself would be computed elsewhere
    yield json.dumps(attack(address, Path(clip).read_bytes(), float(seconds)))


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
    os._exit(0)  # whatever still hangs
