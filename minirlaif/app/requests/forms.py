"""Uploads as the page sends them: a form with one file, whose progress is forgotten in the end. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from minirlaif.app.requests.quotas import TooMuch

PROGRESS = "/gradio_api/upload_progress"
MOST_BORDERS = 4  # boundaries in a form; that of the page has two, around its file
LONGEST_NAME = 64  # of an upload


def one_file(scope: Scope, receive: Receive) -> Receive:
    """A `receive` that raises TooMuch for a form of many parts: Gradio stores a thousand small files while everybody waits."""
    _name(scope)
    _, options = parse_options_header(Request(scope).headers.get("content-type", ""))
    border, end, count = b"--" + options.get(b"boundary", b""), b"", 0

    async def counted() -> Message:
        nonlocal end, count
        message = await receive()
        data = end + message.get("body", b"")
        count, end = count + data.count(border), data[1 - len(border) :]
        if count > MOST_BORDERS and b"boundary" in options:  # without one, Gradio refuses the form
            raise TooMuch(400, "one file at a time")
        return message

    return counted


@contextmanager
def progress(scope: Scope) -> Iterator[None]:
    """While a page looks at the progress of an upload. Gradio remembers each name that was ever asked for."""
    name = _name(scope)
    try:
        yield
    finally:
        from gradio.routes import file_upload_statuses as known

        known.stop_tracking(name)
        known._signals.pop(name, None)


def _name(scope: Scope) -> str:
    name = Request(scope).query_params.get("upload_id", "")
    if len(name) > LONGEST_NAME:
        raise TooMuch(400, "upload_id: too long")
    return name
