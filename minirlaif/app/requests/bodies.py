"""Bodies of requests: read within a limit of bytes and time, then given to Gradio. No torch."""

import asyncio

from starlette.types import Message, Receive, Scope

from minirlaif.app.requests.forms import options_of
from minirlaif.app.requests.quotas import SILENT_SECONDS, TooMuch

MAX_BODY_BYTES = 1 << 20  # of any request but an upload


async def buffered(scope: Scope, receive: Receive) -> bytes:
    """The body of a request. TooMuch: it is too large or too slow, or of another charset."""
    options_of(scope)
    body, more = b"", True
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > MAX_BODY_BYTES:
                    raise TooMuch(413, "request too large")
    except TimeoutError:
        raise TooMuch(408, "the request did not arrive in time") from None
    return body


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
