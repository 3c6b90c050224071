"""The endpoint judge against servers on this machine: faults that pass, faults that do not, and where the key goes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endpoints
import parrot
import pytest
from endpoints import Act, Server, answer, send

from minirlaif.grading import Refused
from minirlaif.grading.endpoint import EndpointJudge
from minirlaif.grading.settings import JudgeSettings, judge_settings
from minirlaif.records import UserError

ASKED = [{"role": "system", "content": "mark"}, {"role": "user", "content": "Who?"}]
KEY = "sk-a+b/secret=="


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*acts: Act) -> Server:
        servers.append(Server(*acts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def judge(server: Server, **changes: Any) -> EndpointJudge:
    values = {"kind": "openai", "name": "judge", "url": server.url, "backoff_seconds": 0.01, "timeout_seconds": 5.0, "retries": 3}
    return EndpointJudge(JudgeSettings(**{**values, **changes}))


def good(handler: Any, body: Any) -> None:
    answer(handler, '{"score": 4}')


def status(code: int, text: str = "no", **headers: str) -> Act:
    return lambda handler, body: send(handler, text.encode(), code, **headers)


def raw(data: bytes) -> Act:
    return lambda handler, body: send(handler, data)


def silent(handler: Any, body: Any) -> None:
    time.sleep(0.6)


def cut_before(handler: Any, body: Any) -> None:
    """Reset: what a crashed server or a dropped line look like."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    with contextlib.suppress(OSError, ValueError):
        handler.wfile.close()


def cut_within(handler: Any, body: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()


def test_a_request_is_what_the_protocol_says(serve):
    server = serve(good)
    reply = judge(server, temperature=0.0, max_tokens=50).ask(ASKED)
    assert (reply.text, reply.version, reply.tokens_in, reply.tokens_out) == ('{"score": 4}', "judge-1", 7, 3)
    (body,) = server.bodies
    assert body == {"path": "/v1/chat/completions", "model": "judge", "temperature": 0.0, "max_tokens": 50, "messages": ASKED}
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503),
        status(408),
        cut_before,
        cut_within,
        raw(b"<html>busy</html>"),
        raw(b""),
        raw(b"\xff\xfe"),
        raw(b'{"choices": []}'),
        raw(b'{"choices": [{"text": "old form"}]}'),
        raw(b'["not", "an object"]'),
    ],
    ids="429 500 503 408 reset cut html empty bytes no-choices other-form list".split(),
)
def test_what_passes_is_tried_again(serve, fault: Act):
    server = serve(fault, fault, good)
    assert judge(server).ask(ASKED).text == '{"score": 4}'
    assert len(server.bodies) == 3


def test_a_silent_server_is_left_after_the_time_out(serve):
    server = serve(silent, good)
    assert judge(server, timeout_seconds=0.2).ask(ASKED).text == '{"score": 4}'
    with pytest.raises(UserError, match=r"after 2 tries \(no answer within 0.2 s\)"):
        judge(serve(silent), timeout_seconds=0.2, retries=1).ask(ASKED)


def test_tries_come_to_an_end_and_nothing_is_lost(serve):
    server = serve(status(500, "out of order"))
    with pytest.raises(UserError, match=r"no reply from .* after 4 tries \(HTTP 500 out of order\); replies so far are kept"):
        judge(server).ask(ASKED)
    assert len(server.bodies) == 4


def test_a_server_that_is_not_there(serve):
    server = serve(good)
    server.close()
    with pytest.raises(UserError, match="after 1 tries"):
        judge(server, retries=0).ask(ASKED)


def test_pauses_grow(serve, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: pauses.append(seconds) or False)
    subject = judge(serve(status(500)), retries=4, backoff_seconds=3.0)
    pauses.clear()
    with pytest.raises(UserError):
        subject.ask(ASKED)
    asked = [pause for pause in pauses if pause is not None and pause >= 1.9]
    assert len(asked) == 4
    for number, pause in enumerate(asked):  # 3 s doubled each time, between two thirds and four thirds of that
        assert 2.0 * 2**number <= pause <= 4.0 * 2**number


def test_a_server_says_how_long_to_wait(serve, monkeypatch):
    pauses: list[float] = []
    subject = judge(serve(status(429, Retry_After="7"), status(429, Retry_After="9999"), good))
    monkeypatch.setattr(subject._closed, "wait", lambda seconds: pauses.append(seconds))
    subject.ask(ASKED)
    assert pauses == [7.0, 120.0]


@pytest.mark.parametrize(
    ("code", "words"), [(401, "set key_env"), (403, "set key_env"), (404, "check url and name"), (302, "check url and name")]
)
def test_what_does_not_pass_stops_at_once(serve, code: int, words: str):
    server = serve(status(code, "because", Location="http://127.0.0.1:9/"))
    with pytest.raises(UserError, match=f"HTTP {code} because; {words}"):
        judge(server).ask(ASKED)
    assert len(server.bodies) == 1


def test_one_question_may_be_refused(serve):
    with pytest.raises(Refused, match="HTTP 400 too long"):
        judge(serve(status(400, "too long"))).ask(ASKED)
    with pytest.raises(Refused, match="holds no text"):
        judge(serve(lambda handler, body: answer(handler, None))).ask(ASKED)


def test_no_redirect_carries_the_key_away(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    thief = serve(good)
    server = serve(status(307, "go there", Location=f"{thief.url}/chat/completions"))
    with pytest.raises(UserError, match="HTTP 307"):
        judge(server, key_env="JUDGE_KEY").ask(ASKED)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}" and thief.headers == []


@pytest.mark.parametrize("code", [401, 400, 500])
def test_the_key_is_cut_out_of_what_a_server_says(serve, monkeypatch, code: int):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises((UserError, Refused)) as error:
        judge(serve(status(code, f"wrong key {KEY}!")), key_env="JUDGE_KEY", retries=0).ask(ASKED)
    assert KEY not in str(error.value) and "wrong key [key]!" in str(error.value)


def test_the_key_is_in_no_setting(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    subject = judge(serve(good), key_env="JUDGE_KEY")
    assert KEY not in repr(dict(subject.signature)) and KEY not in repr(subject._settings)


@pytest.mark.parametrize(
    ("value", "words"), [("", "is empty"), ("two\nlines", "cannot be a key"), ("schlüssel", "cannot be a key")]
)
def test_keys_that_are_none(serve, monkeypatch, value: str, words: str):
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UserError, match=words):
        judge(serve(good), key_env="JUDGE_KEY")


def test_extra_fields(serve):
    server = serve(good)
    subject = judge(server, extra='{"max_tokens": null, "max_completion_tokens": 9, "temperature": 1}')
    subject.ask(ASKED)
    assert "max_tokens" not in server.bodies[0]
    assert (server.bodies[0]["max_completion_tokens"], server.bodies[0]["temperature"]) == (9, 1)
    assert subject.signature != judge(server).signature


def test_requests_keep_their_distance(serve):
    server = serve(good)
    subject = judge(server, per_minute=600.0)  # one in 0.1 s
    threads = [threading.Thread(target=subject.ask, args=(ASKED,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(server.times)
    assert times[-1] - times[0] >= 0.29  # three gaps; a slow machine makes them longer, never shorter


def test_proxies_are_not_asked_for_this_machine(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert judge(serve(good), retries=0).ask(ASKED).text == '{"score": 4}'


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        ("gpt", [], "no such judge"),
        ("openai:m", [], "url is empty"),
        ("openai:m", ["url=https://me:key@host/v1"], "the key goes to key_env"),
        ("openai:m", ["url=https://host/v1?key=x"], "the key goes to key_env"),
        ("openai:m", ["url=ftp://host"], "must begin with http"),
        ("openai", ["url=http://host"], "needs a name"),
        ("normalised", ["retries"], "write FIELD=VALUE"),
        ("normalised", ["retrys=3"], "did you mean retries"),
        ("normalised", ["timeout_seconds=0"], "--judge-set timeout_seconds=0: timeout_seconds must be above 0"),
        ("normalised", ["extra=[1]"], "extra must be a JSON object"),
        ("normalised", ["max_cost=1"], "max_cost needs price_in"),
        ("nowhere.yaml", [], "cannot be read"),
    ],
)
def test_wrong_settings(spec: str, changes: list[str], words: str):
    with pytest.raises(UserError, match=words):
        judge_settings(spec, changes)


def test_settings_from_a_file(tmp_path: Path):
    path = tmp_path / "judge.yaml"
    path.write_text("kind: openai\nname: m\nurl: http://127.0.0.1:1/v1\nper_minute: 60\nextra: {seed: 1}\n")
    settings = judge_settings(str(path), ["per_minute=30", "parallel=1"])
    assert (settings.name, settings.per_minute, settings.parallel, settings.extra) == ("m", 30.0, 1, '{"seed": 1}')
    assert judge_settings(str(path), ['extra={"top_p": 1, "max_tokens": null}']).extra == '{"top_p": 1, "max_tokens": null}'


def test_llama_cpps_own_server(tmp_path: Path):
    """A real server with a real model behind it: a reply, and a question that is too long for it."""
    model = parrot.write_gguf(tmp_path / "parrot.gguf", '{"pred": "yes", "score": 4}')
    with endpoints.llama_server(model) as url:
        subject = EndpointJudge(JudgeSettings("openai", "parrot", url=url, retries=1, backoff_seconds=0.01))
        reply = subject.ask(ASKED)
        assert reply.text == '{"pred": "yes", "score": 4}' and reply.version == "parrot"
        assert reply.tokens_in > 5 and reply.tokens_out >= 1
        with pytest.raises(Refused, match="HTTP 400 .*maximum context length"):
            subject.ask([{"role": "user", "content": "long " * 3000}])
