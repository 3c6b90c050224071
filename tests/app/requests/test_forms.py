"""Uploads hold one file, their progress is forgotten, and nobody reads the events of another page."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.routes import file_upload_statuses

from minirlaif.app.requests import forms
from minirlaif.app.requests.bodies import buffered
from minirlaif.app.requests.middleware import RequestFilter
from minirlaif.app.requests.quotas import TooMuch

PART = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\nx\r\n'


def scope(query: str = "", kind: str = "multipart/form-data; boundary=cut", **more: Any) -> dict[str, Any]:
    headers = [(b"content-type", kind.encode())]
    return {"type": "http", "method": "POST", "headers": headers, "query_string": query.encode(), **more}


@pytest.mark.parametrize("size", [1, 4, 7, 1 << 16])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=cut", 'multipart/form-data; a=b; boundary="cut"'])
def test_a_form_has_one_file(size: int, kind: str) -> None:
    """However its bytes arrive."""

    def read(data: bytes) -> None:
        pieces = iter([data[at : at + size] for at in range(0, len(data), size)])

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": next(pieces)}

        counted = forms.one_file(scope(kind=kind), receive)
        for _ in range(-(-len(data) // size)):
            asyncio.run(counted())  # type: ignore[arg-type]

    read(PART + b"--cut--\r\n")
    with pytest.raises(TooMuch, match="one file at a time"):
        read(PART * 3)
    for head in (
        b'form-data; name="files"',
        b'form-data; x="filename=a"',
        b'form-data; filename="a"\r\nContent-Disposition: form-data',
    ):
        with pytest.raises(TooMuch, match="not a file"):
            read(b"--cut\r\nContent-Disposition: " + head + b"\r\n\r\n" + bytes(100))
    with pytest.raises(TooMuch, match="not a file"):
        read(bytes(forms.LONGEST_HEAD + 1))


def test_text_is_utf_8() -> None:
    """Gradio decodes with whatever codec a form names, and that of punycode takes minutes for a megabyte."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x"}

    for kind in ("multipart/form-data; boundary=c; charset=punycode", "application/json; charset=utf-16"):
        for use in (lambda asked: forms.one_file(asked, receive), lambda asked: asyncio.run(buffered(asked, receive))):
            with pytest.raises(TooMuch, match="charset"):
                use(scope(kind=kind))
    assert asyncio.run(buffered(scope(kind="application/json; charset=UTF-8"), receive)) == b"x"  # type: ignore[arg-type]


def test_the_progress_of_an_upload_is_forgotten() -> None:
    async def look() -> None:
        with forms.progress(scope("upload_id=one")):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(file_upload_statuses.is_tracked("one"), 0.01)

    asyncio.run(look())
    assert "one" not in file_upload_statuses._signals
    for use in (lambda name: forms.one_file(name, None), lambda name: forms.progress(name).__enter__()):
        with pytest.raises(TooMuch, match="upload_id"):
            use(scope("upload_id=" + "x" * 65))


def test_a_stream_is_of_the_session_that_gradio_reads() -> None:
    """The last of two names; the first one was checked once."""
    streams: list[Any] = []

    async def answer(asked: Any, receive: Any, send: Any) -> None:
        streams.append(asked)

    async def ask(query: str) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        queue = SimpleNamespace(pending_messages_per_session={"theirs": 1, "mine": 1})
        app = SimpleNamespace(get_blocks=lambda: SimpleNamespace(_queue=queue))
        filter_ = RequestFilter(answer, Path("/nowhere"))
        filter_.visitors.enter("10.0.0.1", "theirs")
        asked = scope(query, method="GET", path="/gradio_api/queue/data", client=("10.0.0.2", 1), app=app)
        await filter_({**asked, "method": "GET"}, None, send)  # type: ignore[arg-type]
        return int(sent[0]["status"]) if sent else 200

    assert asyncio.run(ask("session_hash=mine")) == 200 and len(streams) == 1
    assert asyncio.run(ask("session_hash=mine&session_hash=theirs")) == 403 and len(streams) == 1
