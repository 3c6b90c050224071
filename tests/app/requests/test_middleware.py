"""Which requests the server refuses, and what broken ones leave."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from minirlaif.app.requests import middleware, quotas
from tests.fixtures.browser import FakeEngine, Served, serving
from tests.fixtures.http_client import Client, login


def test_strangers_cannot_end_anything(place: Path) -> None:
    """Before the other servers: gradio keeps one folder of uploads for a process."""
    with serving(FakeEngine(), None, place / "none", place / "uploads", "--password", "open sesame") as served:
        host, port = served.address.removeprefix("http://").split(":")
        for path in ("heartbeat/abc123", "cancel", "reset"):
            connection = http.client.HTTPConnection(host, int(port), timeout=120)
            method, body = ("GET", None) if path.startswith("heartbeat") else ("POST", json.dumps({}))
            connection.request(method, f"/gradio_api/{path}", body, {"Content-Type": "application/json"})
            assert connection.getresponse().status == 401
            connection.close()


def test_passwords_cannot_be_tried_fast(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LOGIN_SECONDS", 0.6)
    with serving(FakeEngine(), None, place / "none", place / "uploads3", "--password", "open sesame") as served:
        took = []
        for word, wanted in (("open", False), ("open sesame", True)):
            began = time.monotonic()
            status, _ = login(served.address, word)
            took.append(time.monotonic() - began)
            assert (status == 200) is wanted
        threads = [threading.Thread(target=login, args=(served.address, f"guess {n}")) for n in range(3)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert took[0] >= 0.6 and time.monotonic() - began >= 1.8  # one after the other, not side by side


def test_pages_of_other_addresses_may_not_ask(unlocked: Served) -> None:
    client = Client(unlocked.address)
    here = unlocked.address
    for headers in (
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "null"},
    ):
        assert client.send("POST", "/gradio_api/upload", b"", headers)[0] == 403
        assert client.get("/config", **headers)[0] == 403
    assert client.get("/config", Origin=here)[0] == 200
    assert client.upload("good.mp4", b"x" * 100)[0] == 200


def test_a_name_that_no_file_can_have_is_refused(unlocked: Served) -> None:
    assert Client(unlocked.address).get(f"/gradio_api/file={unlocked.folder}/{'a' * 5000}")[0] == 403


def test_an_unfinished_login_keeps_nobody_out(place: Path) -> None:
    with serving(FakeEngine(), None, place / "none", place / "uploads4", "--password", "open sesame") as served:
        host, port = served.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(f"POST /login HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 100\r\n\r\nuser".encode())
            began = time.monotonic()
            assert login(served.address, "open sesame")[0] == 200 and time.monotonic() - began < 5


def test_pages_elsewhere_may_not_ask_a_server_on_the_network() -> None:
    """Browsers tell plain addresses of a network no fetch site."""

    def status(alone: bool, *headers: tuple[bytes, bytes]) -> int:
        request = {"method": "POST", "path": "/gradio_api/upload", "headers": [(b"host", b"nas:7860"), *headers]}
        return (middleware.RequestFilter(None, Path("/nowhere"), (), alone).refusal(request) or (200, ""))[0]

    assert status(True) == status(True, (b"origin", b"http://nas:7860")) == 200
    assert status(True, (b"origin", b"http://evil.example")) == 403
    assert status(True, (b"origin", b"https://my.site"), (b"x-forwarded-host", b"my.site")) == 200  # behind a proxy
    assert status(False, (b"origin", b"https://some.gradio.live")) == 200  # --share


def test_uploads_together_have_a_limit(unlocked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(unlocked.address)
    assert client.upload("one.mp4", b"1" * 100)[0] == 200
    monkeypatch.setattr(quotas, "MAX_STORED_BYTES", 50)
    status, body = client.upload("two.mp4", b"2" * 100)
    assert status == 507 and b"storage is full" in body


def test_an_upload_under_another_name_leaves_nothing(unlocked: Served) -> None:
    client = Client(unlocked.address)
    body = b'--cut\r\nContent-Disposition: form-data; name="other"; filename="a.mp4"\r\n\r\nxyz\r\n--cut--\r\n'
    client.send("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=cut"})
    end = time.monotonic() + 5  # it goes when the request is over, which its answer does not wait for
    while (left := [path.name for path in unlocked.folder.iterdir() if path.is_file()]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def test_a_clip_with_an_escaped_name_is_taken(unlocked: Served, place: Path) -> None:
    client = Client(unlocked.address)
    status, path = client.upload("my%20clip.mp4", (place / "good.mp4").read_bytes())
    assert status == 200 and "<img" in str(client.open(path.decode())["output"])
