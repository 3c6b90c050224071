"""The endpoint judge against servers on this machine: faults that pass, faults that do not, and where the key goes."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from minirlaif.errors import UserError
from minirlaif.judges import config, openai
from minirlaif.judges.cache import Refused
from minirlaif.judges.config import JudgeSettings, judge_settings
from minirlaif.judges.openai import EndpointJudge
from tests.fixtures import endpoints, fixed_reply
from tests.fixtures.endpoints import Act, Server, answer, send

MESSAGES = [{"role": "system", "content": "mark"}, {"role": "user", "content": "Who?"}]
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


def chat(text: str, **more: Any) -> bytes:
    return json.dumps({"model": "judge-1", "choices": [{"message": {"content": text}}], **more}).encode()


def dripping(code: int) -> Act:
    """A byte every 0.1 s, for ten seconds: no read waits long."""

    def act(handler: Any, body: Any) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.1)

    return act


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
    reply = judge(server, temperature=0.0, max_tokens=50).ask(MESSAGES)
    assert (reply.text, reply.version, reply.tokens_in, reply.tokens_out) == ('{"score": 4}', "judge-1", 7, 3)
    (body,) = server.bodies
    assert body == {"path": "/v1/chat/completions", "model": "judge", "temperature": 0.0, "max_tokens": 50, "messages": MESSAGES}
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(502),
        status(503),
        status(504),
        status(520),
        status(408),
        cut_before,
        cut_within,
        raw(b"<html>busy</html>"),
        raw(b""),
        raw(b"\xff\xfe"),
        raw(b'{"choices": []}'),
        raw(b'{"choices": [{"text": "old form"}]}'),
        raw(b'["not", "an object"]'),
        lambda handler, body: send(handler, chat('{"score": 1}') + b" " * (1 << 20)),  # more than a reply may have
    ],
    ids="429 500 502 503 504 520 408 reset cut html empty bytes no-choices other-form list endless".split(),
)
def test_what_passes_is_tried_again(serve, fault: Act):
    server = serve(fault, fault, good)
    assert judge(server).ask(MESSAGES).text == '{"score": 4}'
    assert len(server.bodies) == 3


def test_a_silent_server_is_left_after_the_time_out(serve):
    server = serve(silent, good)
    assert judge(server, timeout_seconds=0.2).ask(MESSAGES).text == '{"score": 4}'
    with pytest.raises(UserError, match=r"after 2 tries \(no answer within 0.2 s\)"):
        judge(serve(silent), timeout_seconds=0.2, retries=1).ask(MESSAGES)


@pytest.mark.parametrize("code", [200, 500])
def test_the_time_out_is_of_the_whole_request(serve, code: int):
    started = time.monotonic()
    assert judge(serve(dripping(code), good), timeout_seconds=0.5).ask(MESSAGES).text == '{"score": 4}'
    assert time.monotonic() - started < 5.0  # of the ten that it would take; half a second and a slow machine


def test_tries_come_to_an_end_and_nothing_is_lost(serve):
    server = serve(status(500, "out of order"))
    with pytest.raises(UserError, match=r"no reply from .* after 4 tries \(HTTP 500 out of order\); replies so far are kept"):
        judge(server).ask(MESSAGES)
    assert len(server.bodies) == 4


def test_a_server_that_is_not_there(serve):
    server = serve(good)
    server.close()
    with pytest.raises(UserError, match="after 1 tries"):
        judge(server, retries=0).ask(MESSAGES)


def test_pauses_grow(serve, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: pauses.append(seconds) or False)
    subject = judge(serve(status(500)), retries=4, backoff_seconds=3.0)
    pauses.clear()
    with pytest.raises(UserError):
        subject.ask(MESSAGES)
    waits = [pause for pause in pauses if pause is not None and pause >= 1.9]
    assert len(waits) == 4
    for number, pause in enumerate(waits):  # 3 s doubled each time, between two thirds and four thirds of that
        assert 2.0 * 2**number <= pause <= 4.0 * 2**number


def test_a_server_says_how_long_to_wait(serve, monkeypatch):
    pauses: list[float] = []
    subject = judge(serve(status(429, Retry_After="7"), status(429, Retry_After="9999"), good))
    monkeypatch.setattr(subject._closed, "wait", lambda seconds: pauses.append(seconds))
    subject.ask(MESSAGES)
    assert pauses == [7.0, 120.0]


def test_a_date_to_wait_for(serve, monkeypatch):
    pauses: list[float] = []
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    subject = judge(serve(status(429, Retry_After=later), status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
                          status(429, Retry_After="soon"), good))  # fmt: skip
    monkeypatch.setattr(subject._closed, "wait", lambda seconds: pauses.append(seconds))
    subject.ask(MESSAGES)
    assert 30.0 < pauses[0] <= 60.0  # a slow machine needs some of it
    assert len(pauses) == 3 and max(pauses[1:]) < 1.0  # a date that has passed, and what is none


def test_a_long_pause_says_why(serve, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(openai.time, "monotonic", lambda: now[0])
    subject = judge(serve(status(503, "busy", Retry_After="7")), retries=6, backoff_seconds=0.001)
    monkeypatch.setattr(subject._closed, "wait", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(UserError):
        subject.ask(MESSAGES)
    lines = capsys.readouterr().err.splitlines()  # at 0, 14 and 28 s, not at 7, 21 and 35
    assert lines == [f"judge judge: HTTP 503 busy; trying again in 7 s ({number} of 7)" for number in (2, 4, 6)]


def test_short_pauses_say_nothing(serve, capsys):
    judge(serve(status(503), good)).ask(MESSAGES)
    assert capsys.readouterr().err == ""


def test_a_closed_judge_neither_pauses_nor_asks(serve):
    server = serve(status(503, "busy", Retry_After="100"))
    subject = judge(server)
    errors: list[str] = []

    def ask() -> None:
        with pytest.raises(UserError) as error:
            subject.ask(MESSAGES)
        errors.append(str(error.value))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(server.bodies) < 2:
        time.sleep(0.01)
    subject.stop()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 2 and all("closed before" in error for error in errors)
    ask()
    assert len(server.bodies) == 2


def test_who_waits_for_its_turn_is_woken_by_close_and_does_not_send(serve):
    server = serve(good)
    subject = judge(server, per_minute=1.0)
    subject.ask(MESSAGES)
    ended = threading.Event()

    def ask() -> None:
        with pytest.raises(UserError, match="closed before"):
            subject.ask(MESSAGES)
        ended.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert not ended.wait(0.2)
    subject.stop()
    assert ended.wait(60) and len(server.bodies) == 1


def test_pages_and_endless_replies_are_of_another_address(serve):
    for act in (raw(b"<html>welcome</html>"), raw(b" " * (1 << 21))):
        with pytest.raises(UserError, match="after 1 tries .*check that url is the address"):
            judge(serve(act), retries=0).ask(MESSAGES)
    with pytest.raises(UserError, match="repeat the command when it answers again"):
        judge(serve(status(503)), retries=0).ask(MESSAGES)


def test_an_empty_account_is_not_asked_again(serve):
    server = serve(status(429, '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'))
    with pytest.raises(UserError, match="no credit left"):
        judge(server).ask(MESSAGES)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ('{"prompt_tokens": 1e999, "completion_tokens": NaN}', (0, 0)),
        ('{"prompt_tokens": -4, "completion_tokens": "many"}', (0, 0)),
        ('{"prompt_tokens": 4, "completion_tokens": null}', (4, 0)),
        ("null", (0, 0)),
    ],
)
def test_token_counts_that_are_none(serve, usage: str, counted: tuple[int, int]):
    server = serve(raw(chat("yes", usage="U").replace(b'"U"', usage.encode())))
    reply = judge(server, retries=0).ask(MESSAGES)
    assert (reply.tokens_in, reply.tokens_out) == counted


def test_halves_of_letters_can_be_written(serve, tmp_path: Path):
    reply = judge(serve(raw(chat("a \ud83d b").replace(b"judge-1", b"judge-\\ud83d")))).ask(MESSAGES)
    assert reply.text == "a ? b" and reply.version == "judge-?"


@pytest.mark.parametrize(
    ("code", "words"), [(401, "set key_env"), (403, "set key_env"), (404, "check url and name"), (302, "check url and name")]
)
def test_what_does_not_pass_stops_at_once(serve, code: int, words: str):
    server = serve(status(code, "because", Location="http://127.0.0.1:9/"))
    with pytest.raises(UserError, match=f"HTTP {code} because; {words}"):
        judge(server).ask(MESSAGES)
    assert len(server.bodies) == 1


def test_one_question_may_be_refused(serve):
    with pytest.raises(Refused, match="HTTP 400 too long"):
        judge(serve(status(400, "too long"))).ask(MESSAGES)
    with pytest.raises(Refused, match="holds no text"):
        judge(serve(lambda handler, body: answer(handler, None))).ask(MESSAGES)


def test_no_redirect_carries_the_key_away(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    thief = serve(good)
    server = serve(status(307, "go there", Location=f"{thief.url}/chat/completions"))
    with pytest.raises(UserError, match="HTTP 307"):
        judge(server, key_env="JUDGE_KEY").ask(MESSAGES)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}" and thief.headers == []


@pytest.mark.parametrize("code", [401, 400, 500])
def test_the_key_is_cut_out_of_what_a_server_says(serve, monkeypatch, code: int):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises((UserError, Refused)) as error:
        judge(serve(status(code, f"wrong key {KEY}!")), key_env="JUDGE_KEY", retries=0).ask(MESSAGES)
    assert KEY not in str(error.value) and "wrong key [key]!" in str(error.value)


@pytest.mark.parametrize("before", range(200 - len(KEY), 201))
def test_no_part_of_the_key_is_shown_where_an_error_is_cut(serve, monkeypatch, before: int):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(Refused) as error:
        judge(serve(status(400, "x" * before + KEY)), key_env="JUDGE_KEY").ask(MESSAGES)
    assert "sk" not in str(error.value)


@pytest.mark.parametrize("before", [1990, 2000, 2010, *range((1 << 20) - len(KEY) - 1, (1 << 20) + 2)])
def test_no_part_of_the_key_is_shown_where_reading_ends(serve, monkeypatch, before: int):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(Refused) as error:
        judge(serve(status(400, "no" + " " * (before - 2) + KEY + " " * 100)), key_env="JUDGE_KEY").ask(MESSAGES)
    assert "HTTP 400 no [key]".startswith(str(error.value))


def test_the_key_is_cut_out_of_replies(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(raw(chat(f"{KEY}!").replace(b"judge-1", KEY.encode())))
    reply = judge(server, key_env="JUDGE_KEY").ask(MESSAGES)
    assert reply.text == "[key]!" and reply.version == "[key]"
    monkeypatch.setenv("JUDGE_KEY", "no")  # any word, for a server that asks for one: it hides nothing
    assert judge(serve(raw(chat("no"))), key_env="JUDGE_KEY").ask(MESSAGES).text == "no"


def test_escaped_slashes_hide_no_key(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(Refused) as error:
        judge(serve(status(400, "wrong " + KEY.replace("/", "\\/"))), key_env="JUDGE_KEY").ask(MESSAGES)
    assert str(error.value) == "HTTP 400 wrong [key]"


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://judge.example/v1", True), ("https://judge.example/v1", False), ("http://127.0.0.1:1/v1", False)],
)
def test_a_key_that_others_can_read_is_reported(monkeypatch, capsys, url: str, warned: bool):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    EndpointJudge(JudgeSettings("openai", "judge", url=url, key_env="JUDGE_KEY"))
    assert ("is not encrypted" in capsys.readouterr().out) == warned
    EndpointJudge(JudgeSettings("openai", "judge", url=url))  # without a key there is nothing to read
    assert capsys.readouterr().out == ""


def test_the_signature_has_the_request_settings():
    ways: list[dict[str, Any]] = [
        {}, {"url": "http://b/v1"}, {"temperature": 0.5}, {"max_tokens": 5}, {"name": "m"}, {"extra": '{"top_p": 0.5}'},
    ]  # fmt: skip
    signatures = [dict(EndpointJudge(JudgeSettings(**{"kind": "openai", "url": "http://a/v1", **way})).signature) for way in ways]
    assert all(a != b for a, b in itertools.combinations(signatures, 2))


def test_the_key_is_in_no_setting(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    subject = judge(serve(good), key_env="JUDGE_KEY")
    assert KEY not in repr(dict(subject.signature)) and KEY not in repr(subject.settings)


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
    subject.ask(MESSAGES)
    assert "max_tokens" not in server.bodies[0]
    assert (server.bodies[0]["max_completion_tokens"], server.bodies[0]["temperature"]) == (9, 1)
    assert subject.signature != judge(server).signature


def test_requests_keep_their_distance(serve):
    server = serve(good)
    subject = judge(server, per_minute=600.0)  # one in 0.1 s
    threads = [threading.Thread(target=subject.ask, args=(MESSAGES,)) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(server.times) - began >= 0.29  # three gaps; a slow machine makes them longer, never shorter


def test_no_proxy_is_used_for_this_machine(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert judge(serve(good), retries=0).ask(MESSAGES).text == '{"score": 4}'


def test_a_proxy_that_cannot_be_used(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "strange://127.0.0.1:9")
    with pytest.raises(UserError, match="the environment names a proxy that cannot be used"):
        EndpointJudge(JudgeSettings("openai", "judge", url="http://judge.example/v1"))


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
        ("normalized", [], "did you mean normalised"),
        ("normalised", ["judge=3"], r"unknown setting judge \(normalised has none\)"),
        ("gguf:x", ["batch=3"], r"batch \(gguf has prompts, temperature, max_tokens, attempts, context, threads\)"),
        ("hf:x", ["seed=3"], "seed .hf has prompts, temperature, max_tokens, attempts, device, dtype, quantization"),
        ("hf:x", ["temperature=0.5"], "temperature is 0.5: a judge of kind hf"),
        ("openai:m", ["url=http://[::1/v1"], r"url http://\[::1/v1 is no address"),
        ("openai:m", ["url=http:///v1"], "is no address"),
        ("openai:m", ["url=http://host:99999/v1"], "is no address"),
        ("openai:m", ["url=http://my host/v1"], "is no address"),
        ("openai:m", ["url=http://host", 'extra={"API_Key": "x"}'], "extra contains API_Key .*key_env"),
        ("openai:m", ["url=http://host", 'extra={"headers": {"Authorization": "x"}}'], "extra contains Authorization"),
        ("openai:m", ["url=http://host", 'extra={"token": "x"}'], "extra contains token"),
        ("nowhere.yaml", [], "cannot be read"),
    ],
)
def test_wrong_settings(spec: str, changes: list[str], words: str):
    with pytest.raises(UserError, match=words):
        judge_settings(spec, changes)


def test_every_setting_is_of_some_kind():
    listed = ["kind", "name", *config.OF_MODELS, *(name for row in config.JUDGES.values() for name in row.settings)]
    assert sorted(listed) == sorted(field.name for field in fields(JudgeSettings))


def test_settings_from_a_file(tmp_path: Path):
    path = tmp_path / "judge.yaml"
    path.write_text("kind: openai\nname: m\nurl: http://127.0.0.1:1/v1\nper_minute: 60\nextra: {seed: 1}\n")
    settings = judge_settings(str(path), ["per_minute=30", "parallel=1"])
    assert (settings.name, settings.per_minute, settings.parallel, settings.extra) == ("m", 30.0, 1, '{"seed": 1}')
    assert judge_settings(str(path), ['extra={"top_p": 1, "max_tokens": null}']).extra == '{"top_p": 1, "max_tokens": null}'


def test_llama_cpps_own_server(tmp_path: Path):
    """A real server with a real model behind it: a reply, and a question that is too long for it."""
    model = fixed_reply.write_gguf(tmp_path / "parrot.gguf", '{"pred": "yes", "score": 4}')
    with endpoints.llama_server(model) as url:
        subject = EndpointJudge(JudgeSettings("openai", "parrot", url=url, retries=1, backoff_seconds=0.01))
        reply = subject.ask(MESSAGES)
        assert reply.text == '{"pred": "yes", "score": 4}' and reply.version == "parrot"
        assert reply.tokens_in > 5 and reply.tokens_out >= 1
        with pytest.raises(Refused, match="HTTP 400 .*maximum context length"):
            subject.ask([{"role": "user", "content": "long " * 3000}])
