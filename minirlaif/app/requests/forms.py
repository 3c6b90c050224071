"""Uploads as the page sends them: a form with one file, whose progress is forgotten in the end. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from minirlaif.app.requests.quotas import TooMuch

PROGRESS = "/gradio_api/upload_progress"
MOST_BORDERS = 2  # boundaries in a form, around its file
LONGEST_HEAD = 4096  # of a part of a form
LONGEST_NAME = 64  # of an upload


def one_file(scope: Scope, receive: Receive) -> Receive:
    """A `receive` that raises TooMuch for a form of anything but one file: everybody waits while Gradio stores a thousand, and
    fields that are no files stay in memory."""
    _name(scope)
    options = options_of(scope)
    border, end, count = b"--" + options.get(b"boundary", b""), b"", 0
    head: bytes | None = b""  # of the part, until it is known

    async def counted() -> Message:
        nonlocal end, count, head
        message = await receive()
        if head is not None:
            head += message.get("body", b"")
            if b"\r\n\r\n" in head or len(head) > LONGEST_HEAD:
                if not _is_file(head.partition(b"\r\n\r\n")[0]):
                    raise TooMuch(400, "not a file")
                head = None
        data = end + message.get("body", b"")
        count, end = count + data.count(border), data[1 - len(border) :]
        if count > MOST_BORDERS and b"boundary" in options:  # without one, Gradio refuses the form
            raise TooMuch(400, "one file at a time")
        return message

    return counted


def _is_file(head: bytes) -> bool:
    lines = [line.partition(b":") for line in head.split(b"\r\n")]
    values = [value for name, _, value in lines if name.strip().lower() == b"content-disposition"]
    return bool(values) and b"filename" in parse_options_header(values[-1].strip())[1]


def options_of(scope: Scope) -> dict[bytes, bytes]:
    """What the type of a request's body says besides. TooMuch: another charset than UTF-8: decoders of some take minutes."""
    _, options = parse_options_header(Request(scope).headers.get("content-type", ""))
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise TooMuch(415, "charset: only utf-8 is read here")
    return options


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
