"""Calls that the page does not send: each is refused in one line, and the server's log stays without tracebacks."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from minirlaif.app import conversations
from minirlaif.app.requests import calls
from tests.fixtures.browser import Served
from tests.fixtures.http_client import Client

ANSWER = ["rlaif", 0.0, 1.0, 16]
DEEP = "[" * 60 + "]" * 60
VALUES = {  # what stands in the place of the temperature
    "NaN": "not a finite number",
    "-Infinity": "not a finite number",
    "1e999": "not a finite number",
    "9" * 400: "400 digits",
    "9" * 5000: "5000 digits",
    "true": "data[1]: not a number",
    '"1"': "data[1]: not a number",
    "null": "data[1]: a number is missing",
    "[]": "data[1]: not a number",
    "-0.5": "data[1]: not between 0 and 2",
    "1e300": "data[1]: not between 0 and 2",
    DEEP: "too deeply nested",
    "[" * 90_000: "not JSON",
}
FIELDS: list[tuple[dict[str, Any], str]] = [
    *(({"fn_index": number}, "no such function") for number in (9999, -1, True, "3", 1.0, None)),
    *(({"session_hash": name}, "not the name of a page") for name in (None, 7, "", "../x", "a b", "x" * 65, ["a"])),
    *(({"data": data}, "data: not a list of 4 values") for data in (None, {}, [], ANSWER[:3], [*ANSWER, 1])),
    ({"data": ["nobody", 0.0, 1.0, 16]}, "data[0]: not one of the choices"),
    ({"data": [None, 0.0, 1.0, 16]}, "data[0]: not one of the choices"),
    ({"data": [[], 0.0, 1.0, 16]}, "data[0]: not one of the choices"),
    ({"trigger_id": "x"}, "not as the page sends it"),
    ({"batched": True}, "not as the page sends it"),
    ({"event_id": 5}, "not a text"),
]


def post(client: Client, path: str, body: str | bytes) -> tuple[int, str]:
    data = body.encode() if isinstance(body, str) else body
    status, reply = client.send("POST", f"/gradio_api/{path}", data, {"Content-Type": "application/json"})
    (line,) = reply.decode().splitlines()
    return status, json.loads(line)["detail"]


def test_values_that_are_none_are_refused_in_one_line(unlocked: Served, capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(unlocked.address)
    number = client.after[client.events["question", "submit"]]
    whole = {"fn_index": number, "session_hash": client.session, "data": ANSWER}
    for value, wanted in VALUES.items():
        body = json.dumps(whole).replace("0.0", value, 1)
        status, text = post(client, "queue/join", body)
        assert 400 <= status < 500 and wanted in text and len(text) < 250, (value[:20], text)
    for changed, wanted in FIELDS:
        status, text = post(client, "queue/join", json.dumps({**whole, **changed}))
        assert (status, wanted in text) == (422, True), (changed, text)
    for body in ("", "[]", "null", "1", '"x"', b"\xff\xfe", b"{", '{"session_hash": "a", "fn_index": NaN, "event_id": ""}'):
        for path in ("queue/join", "run/predict", "cancel"):
            assert post(client, path, body)[0] in (400, 422)
    assert post(client, "run/predict", json.dumps(whole))[0] == 422  # past the queue
    assert post(client, "cancel", '{"session_hash": "nobody", "fn_index": 1, "event_id": ""}') == (404, "there is no such page")
    assert client.get("/gradio_api/queue/data?session_hash=nobody")[0] == 404
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("Checkbox", 1, "not true or false"),
        ("Checkbox", True, ""),
        ("Textbox", None, "not a text"),
        ("Textbox", "x", ""),
        ("Number", None, ""),
        ("Video", None, ""),
        ("Video", {"path": "/uploads/x/y.mp4"}, ""),
        ("Video", {"url": "x"}, "not a clip"),
        ("Video", "x", "not a clip"),
    ],
)
def test_each_component_has_its_values(kind: str, value: Any, wanted: str) -> None:
    component = type(kind, (), {"minimum": 0, "maximum": None})()
    assert calls.value_error(component, value, True) == wanted


def test_those_who_wait_leave_the_threads_to_others(
    unlocked: Served, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty questions wait for a clip that never comes; another visitor does not notice."""
    monkeypatch.setattr(conversations, "CLIP_SECONDS", 6.0)
    hostile, other = Client(unlocked.address), Client(unlocked.address)
    unlocked.service.expect_upload(unlocked.service.session(hostile.session), str(tmp_path / "never.mp4"))
    begin = hostile.events["question", "submit"]
    threads = [threading.Thread(target=hostile.quick, args=(begin, ["what?"])) for _ in range(60)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    began = time.monotonic()
    other.show(place / "good.mp4")
    assert "rlaif heard: and me?" in other.ask("and me?")
    assert time.monotonic() - began < 4.0 and all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()


def test_replies_name_no_path_of_this_machine(unlocked: Served, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(unlocked.address)
    status, path = client.upload("good.mp4", (place / "good.mp4").read_bytes())
    assert status == 200 and path.startswith(b"/uploads/")
    assert client.get(f"/gradio_api/file={path.decode()}")[1] == (place / "good.mp4").read_bytes()
    replies = [client.get("/")[1], client.get("/config")[1], str(client.open(path.decode())).encode(), client.received]
    replies += [client.upload("x.mp4", b"nothing")[1], str(client.open("/uploads/none/x.mp4")).encode()]
    for reply in replies:
        assert reply and not [each for each in (unlocked.folder, place, Path.home(), Path.cwd()) if str(each).encode() in reply]


def test_what_is_asked_again_is_as_it_was(tmp_path: Path) -> None:
    body = json.dumps({"data": ["\ud800 é", 1.5, -3, None, True, {"path": "/uploads/a/b.mp4", "meta": {}}]}).encode()
    files = calls.UploadFolder(tmp_path, {tmp_path.parent / "other": "x"})
    value = calls.parsed(body, files.located)
    assert value["data"][:5] == ["\ud800 é", 1.5, -3, None, True]
    assert value["data"][5] == {"path": f"{tmp_path}/a/b.mp4", "meta": {}}
    assert files.shown(json.dumps(value).encode()) == body
    assert asyncio.iscoroutinefunction(conversations.ChatService.stop)  # it waits without a thread
