"""Limits of what clients send: counted while it arrives, before a login as well, and for each client."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minirlaif.app.requests import bodies, connections, quotas
from minirlaif.app.requests.bodies import MAX_BODY_BYTES
from minirlaif.app.requests.quotas import TooMuch, UploadQuota, Visitors, client_of
from tests.fixtures.browser import FakeEngine, Served, serving

HEAD = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=cut"}


def chunks(size: int, piece: int = 1 << 16) -> Iterator[bytes]:
    yield HEAD
    for _ in range(size // piece):
        yield bytes(piece)


def sent(served: Served, path: str, body: Any, headers: dict[str, str]) -> tuple[int, int]:
    """Status of a reply to a body of unknown length, and how many bytes were taken before the connection ended."""
    host, port = served.address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    connection.putrequest("POST", path)
    for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    count = 0
    try:
        for piece in body:
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            count += len(piece)
        connection.send(b"0\r\n\r\n")
    except OSError:  # it has been answered already
        pass
    try:
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        status = 0  # the connection was ended
    connection.close()
    return status, count


@pytest.fixture(scope="module")
def locked(place: Path) -> Iterator[Served]:
    with serving(FakeEngine(), None, place / "none", place / "uploads9", "--password", "open sesame", "--max-mb", "1") as served:
        yield served


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    with serving(FakeEngine(), None, place / "none", place / "uploads8", "--max-mb", "1") as served:
        yield served


@pytest.mark.parametrize(("path", "headers"), [("/login", FORM), ("/gradio_api/cancel", {"Content-Type": "application/json"})])
def test_nothing_is_stored_of_a_stranger(path: str, headers: dict[str, str], locked: Served) -> None:
    status, _ = sent(locked, path, chunks(32 << 20), headers)
    assert status in (401, 413, 0)
    assert sum(file.stat().st_size for file in locked.folder.rglob("*") if file.is_file()) < 2 * MAX_BODY_BYTES


def test_an_upload_of_a_stranger_is_refused(locked: Served) -> None:
    status, _ = sent(locked, "/gradio_api/upload", chunks(1 << 19), FORM)
    assert status in (401, 0)


def test_an_upload_that_does_not_say_its_length_ends_at_the_limit(served: Served) -> None:
    status, _ = sent(served, "/gradio_api/upload", chunks(64 << 20), FORM)
    assert status in (413, 0)
    assert [file for file in served.folder.rglob("*") if file.is_file() and file.stat().st_size > 2 << 20] == []


def scope(host: str = "10.0.0.1", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": (host, 1), "headers": pairs}


async def pieces(size: int) -> dict[str, Any]:
    return {"type": "http.request", "body": bytes(size), "more_body": True}


def take(quota: UploadQuota, who: dict[str, Any], *sizes: int) -> Any:
    """Start an upload and let bytes arrive; returns what ends it."""
    queue = list(sizes)
    receive, end = quota.received(who, lambda: pieces(queue.pop(0)))
    try:
        for _ in sizes:
            asyncio.run(receive())  # type: ignore[arg-type]
    except TooMuch:
        end()
        raise
    return end


def test_the_limits_of_one_client_are_not_those_of_another(tmp_path: Path) -> None:
    now = [0.0]
    quota = UploadQuota(tmp_path, 1000, clock=lambda: now[0])
    with pytest.raises(TooMuch, match="too large"):
        take(quota, scope(content_length="999999"))
    with pytest.raises(TooMuch, match="too large"):
        take(quota, scope(content_length="5"), 40_000, 40_000)  # a length that is not true
    ends = [take(quota, scope(), 10) for _ in range(quotas.UPLOADS_AT_ONCE)]
    with pytest.raises(TooMuch, match="at once") as caught:
        take(quota, scope(), 10)
    assert caught.value.status == 429
    take(quota, scope("10.0.0.2"), 10)()
    for end in ends:
        end()
    take(quota, scope(), 10)()
    most = quotas.CLIPS_IN_WINDOW * (1000 + quotas.FORM_BYTES)
    with pytest.raises(TooMuch, match="clips within 10 minutes"):
        for _ in range(most // 60_000 + 1):
            take(quota, scope(), 60_000)()
    take(quota, scope("10.0.0.2"), 60_000)()
    now[0] += quotas.WINDOW_SECONDS + 1
    take(quota, scope(), 60_000)()
    assert len(quota._sent) == 1  # nothing is kept of clients who are gone


def test_an_upload_of_a_byte_now_and_then_is_ended(tmp_path: Path) -> None:
    """It would keep its place among those at once, however often it says something."""
    now = [0.0]
    quota = UploadQuota(tmp_path, 1 << 20, clock=lambda: now[0])

    def arriving(size: int, seconds: float, first: int = 0) -> int:
        """How many parts arrive of at most 100. first: bytes of the first one."""
        receive, end = quota.received(scope(), lambda: pieces(size if number or not first else first))
        number = 0
        try:
            while number < 100:
                now[0] += seconds
                asyncio.run(receive())  # type: ignore[arg-type]
                number += 1
        except TooMuch as error:
            assert error.status == 408 and "too slow" in str(error)
        finally:
            end()
        return number

    assert arriving(1, 19.0) == 1
    assert arriving(1, 19.0, 500_000) == 3  # a fast start buys no time
    assert arriving(quotas.SLOWEST_BYTES_PER_SECOND, 1.0) == 100
    assert 20 <= arriving(quotas.SLOWEST_BYTES_PER_SECOND // 2, 1.0) <= 50


def test_room_is_counted_while_bytes_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MAX_STORED_BYTES", 100_000)
    (tmp_path / "stored").write_bytes(bytes(30_000))
    quota = UploadQuota(tmp_path, 60_000)
    first = take(quota, scope(), 40_000)
    with pytest.raises(TooMuch, match="storage is full") as caught:
        take(quota, scope("10.0.0.2"), 20_000, 20_000)
    assert caught.value.status == 507
    first()
    os.remove(tmp_path / "stored")
    take(quota, scope(), 60_000)()


def test_bytes_of_one_client_come_at_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After those of one largest clip, also those of several uploads; others do not wait for them."""
    monkeypatch.setattr(quotas, "UPLOAD_BYTES_PER_SECOND", 100_000)
    quota = UploadQuota(tmp_path, 1000)

    async def upload(host: str, size: int) -> float:
        receive, end = quota.received(scope(host), lambda: pieces(10_000))
        began = time.monotonic()
        for _ in range(size // 10_000):
            await receive()
        end()
        return time.monotonic() - began

    async def together() -> list[float]:
        return await asyncio.gather(upload("10.0.0.1", 60_000), upload("10.0.0.1", 60_000), upload("10.0.0.2", 60_000))

    first, second, other = asyncio.run(together())
    assert max(first, second) >= 0.5 and other < 0.3  # 120 kB, of which 66.5 at once


def test_files_that_go_while_they_are_counted_do_not_matter(tmp_path: Path) -> None:
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            for name in "abcdefgh":
                (tmp_path / name).mkdir()
                (tmp_path / name / "clip").write_bytes(b"x")
            for name in "abcdefgh":
                shutil.rmtree(tmp_path / name)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        quota, end = UploadQuota(tmp_path, 1000), time.monotonic() + 2
        for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
            quota.received(scope(f"10.0.{number // 250}.{number % 250}"), lambda: pieces(1))[1]()
    finally:
        done.set()
        other.join()


def test_a_client_behind_a_tunnel_is_the_one_that_the_tunnel_noted() -> None:
    assert client_of(scope("127.0.0.1", x_forwarded_for="1.2.3.4, 9.8.7.6")) == "9.8.7.6"  # type: ignore[arg-type]
    assert client_of(scope("10.0.0.1", x_forwarded_for="1.2.3.4")) == "10.0.0.1"  # type: ignore[arg-type]
    twice = scope("127.0.0.1", x_forwarded_for="6.6.6.6")
    twice["headers"].append((b"x-forwarded-for", b"9.8.7.6"))  # a line of the proxy's own
    assert client_of(twice) == "9.8.7.6"  # type: ignore[arg-type]
    for noted, client in (("9.8.7.6:4711", "9.8.7.6"), ("[2001:db8::5]:80", "2001:db8::/64"), ("::ffff:9.8.7.6", "9.8.7.6")):
        assert client_of(scope("127.0.0.1", x_forwarded_for=noted)) == client  # type: ignore[arg-type]
    assert client_of(scope("127.0.0.1")) == "127.0.0.1"  # type: ignore[arg-type]


def test_many_small_uploads_count_as_well(tmp_path: Path) -> None:
    quota = UploadQuota(tmp_path, 1000)
    most = quotas.CLIPS_IN_WINDOW * quotas.SMALLEST_SHARE
    for _ in range(round(most * 0.9)):
        take(quota, scope(), 1)()
    with pytest.raises(TooMuch, match="clips within 10 minutes"):
        for _ in range(most // 5):
            take(quota, scope(), 1)()


def visitors() -> tuple[Visitors, list[float], list[str]]:
    now, closed = [0.0], list[str]()
    return Visitors(closed.append, clock=lambda: now[0]), now, closed


def test_a_name_that_no_page_keeps_alive_is_not_kept() -> None:
    all_, now, closed = visitors()
    all_.enter("a", "invented")
    with all_.connected("a", "page"):
        now[0] = quotas.SESSION_SECONDS + 1
        all_.expire()
        assert closed == ["invented"] and [*all_.sessions] == ["page"]
        with pytest.raises(TooMuch, match="another address"):
            all_.enter("b", "page")
    now[0] *= 1.5
    all_.expire()
    assert closed == ["invented"]  # the page may come back
    now[0] *= 2
    all_.expire()
    assert closed == ["invented", "page"] and not all_.sessions


def test_a_client_has_so_many_sessions_and_takes_none_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    all_, now, closed = visitors()
    for number in range(quotas.SESSIONS_OF_CLIENT):
        now[0] += 1
        all_.enter("a", f"a{number}")
    all_.enter("b", "b0")
    all_.enter("a", "one more")
    assert closed == ["a0"]  # the one that was used least
    with ExitStack() as stack:
        for name in [*all_.sessions]:
            stack.enter_context(all_.connected(all_.sessions[name].client, name))
        with pytest.raises(TooMuch, match="too many open pages"):
            all_.enter("a", "another")
        monkeypatch.setattr(quotas, "MAX_SESSIONS", len(all_.sessions))
        with pytest.raises(TooMuch, match="too many visitors"):
            all_.enter("c", "c0")


def test_a_client_has_so_many_places_in_the_queue() -> None:
    all_, _, _ = visitors()
    all_.enter("a", "a0")
    all_.enter("b", "b0")
    events = {n: SimpleNamespace(session_hash="a0", concurrency_id=quotas.MODEL_QUEUE) for n in range(quotas.MODEL_PLACES - 1)}
    queue = SimpleNamespace(event_ids_to_events=events, pending_event_ids_session={"a0": set(events)})
    with all_.joining("a", queue, True):
        with pytest.raises(TooMuch, match="are waiting"), all_.joining("a", queue, True):
            pass
        with all_.joining("a", queue, False), all_.joining("b", queue, True):
            pass
    with ExitStack() as stack:  # side by side, before Gradio has any of them
        for _ in range(quotas.EVENT_PLACES - len(events)):
            stack.enter_context(all_.joining("a", queue, False))
        with pytest.raises(TooMuch, match="are waiting"), all_.joining("a", queue, False):
            pass
    assert not all_._joining
    queue.pending_event_ids_session["a0"] = set(range(quotas.EVENT_PLACES))  # of a stream that nobody reads
    with pytest.raises(TooMuch, match="are waiting"), all_.joining("a", queue, False):
        pass


def test_requests_of_a_client_have_a_rate_and_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    all_, now, _ = visitors()

    def soon(client: str) -> bool:
        with all_.request(client, 20.0) as result:
            return result

    assert [soon("a") for _ in range(round(quotas.BURST / 20) + 1)].count(True) == 1
    assert not soon("b")
    now[0] += 20.5 / quotas.REQUESTS_PER_SECOND
    assert [soon("a"), soon("a")] == [False, True]
    with ExitStack() as stack:
        for _ in range(quotas.OPEN_REQUESTS):
            stack.enter_context(all_.request("c", 0.0))
        with pytest.raises(TooMuch, match="at once"), all_.request("c", 0.0):
            pass
    requests = [("GET", "/"), ("GET", "/static/x.js"), ("POST", "/gradio_api/queue/join/"), ("POST", "/gradio_api/upload")]
    assert [quotas.cost_of(*request) for request in requests] == [20, 1, 8, 4]
    now[0] += 1000
    all_.expire()
    assert not all_._credit and not all_._open and not all_._joining


@pytest.mark.parametrize(("path", "kind"), [("/login", FORM), ("/gradio_api/queue/join", {}), ("/gradio_api/upload", FORM)])
def test_a_request_that_does_not_go_on_is_ended(
    served: Served, path: str, kind: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (quotas, bodies):
        monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    host, port = served.address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    connection.putrequest("POST", path)
    for name, value in {**kind, "Content-Length": "1000"}.items():
        connection.putheader(name, value)
    connection.endheaders(HEAD)
    assert connection.getresponse().status == 408
    connection.close()


def test_connections_of_a_client_are_counted_and_ask_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(connections, "OPEN_REQUESTS", 5)
    host, port = served.address.removeprefix("http://").split(":")
    lines = [socket.create_connection((host, int(port)), 10, source_address=("127.0.0.7", 0)) for _ in range(8)]
    ended = []
    for seconds in (0.25, 2.0):
        time.sleep(seconds)
        ended.append(len(select.select(lines, [], [], 0)[0]))
    for line in lines:
        line.close()
    assert ended == [3, 8]


def test_a_second_request_of_a_connection_is_asked_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.5)
    host, port = served.address.removeprefix("http://").split(":")
    line = http.client.HTTPConnection(host, int(port), timeout=120)
    for _ in range(2):
        line.request("GET", "/robots.txt")
        line.getresponse().read()
        time.sleep(0.7)  # between requests, uvicorn waits for longer
    assert line.sock is not None
    line.sock.sendall(b"G")
    assert line.sock.recv(1) == b""
    line.close()
