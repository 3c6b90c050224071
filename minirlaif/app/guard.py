"""What the server answers at all: the few addresses that the page needs, to the hosts it is meant for. No torch.

Gradio serves many more (a proxy, monitoring, editors, addresses it fetches for the asker); whatever is not named here is
refused before it gets there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

_GET = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login_check|logout)/?"
    r"|/(?:static|assets)/[\w./-]+"
    r"|/gradio_api/(?:queue/data|upload_progress|startup-events|user|login_check|app_id|theme\.css|info|heartbeat/\w+)/?"
    r"|/gradio_api/file=.+"
)
_POST = re.compile(r"/login/?|/gradio_api/(?:queue/join|upload|cancel|reset|run/predict)/?")
ASKS = ("/queue/join", "/run/predict")  # requests that may name files
MOST_ASKED = 1 << 20  # bytes of such a request
# Nothing is loaded from elsewhere, whatever a model, a person or a component writes into the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' blob: data:; font-src 'self' data:; connect-src 'self';"
    " worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware.

    Args:
        folder: files are served from below it alone.
        hosts: names under which the server may be asked, without port; none: under any. On a loopback address this keeps web
            pages from reaching the app by a name of theirs that points here.
    """

    def __init__(self, app: Any, folder: Path, hosts: Sequence[str] = ()) -> None:
        self.app, self.folder, self.hosts = app, folder.resolve(), tuple(hosts)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        reason = self.refuses(scope)
        if not reason and scope["method"] == "POST" and str(scope["path"]).rstrip("/").endswith(ASKS):
            body = await _whole(receive)
            reason = (413, "too much at once") if body is None else self._names_others(body)
            receive = _again(body or b"", receive)
        if reason:
            await _refuse(send, *reason)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message.get("headers", ())}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        await self.app(scope, receive, marked)

    def refuses(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
        """Status and reason where a request is refused."""
        headers = dict(scope.get("headers", ()))
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and re.sub(r":\d*$", "", host) not in self.hosts:
            return 403, "this name is not served"
        path = str(scope["path"])
        if scope["method"] in ("GET", "HEAD"):
            if not _GET.fullmatch(path) or ".." in path.split("/"):
                return 404, "not found"
            if path.startswith("/gradio_api/file=") and not self._is_ours(path.removeprefix("/gradio_api/file=")):
                return 403, "this file is not served"
        elif scope["method"] != "POST" or not _POST.fullmatch(path):
            return 404, "not found"
        return None

    def _names_others(self, body: bytes) -> tuple[int, str] | None:
        """Gradio would fetch a file that a request names by its address, or copy one of another folder."""
        try:
            named = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return 400, "not JSON"
        return None if all(name is None or self._is_ours(name) for name in named) else (403, "this file was not uploaded here")

    def _is_ours(self, name: Any) -> bool:
        """Whether a file lies in the folder, by its real path; a name that is still escaped has no business here."""
        if not isinstance(name, str) or unquote(name) != name or "\0" in name or "\\" in name or not name.startswith("/"):
            return False
        try:
            path = Path(name).resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return path.is_relative_to(self.folder) and path.is_file()


def _paths(value: Any) -> Iterator[Any]:
    """What stands under the name "path" anywhere in a JSON value."""
    if isinstance(value, dict):
        yield from (value["path"] for _ in range("path" in value))
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


async def _whole(receive: Receive) -> bytes | None:
    """The body of a request; None when it is longer than MOST_ASKED."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_ASKED:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for the next reader; then whatever else comes."""
    told = False

    async def once() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = (reason + "\n").encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
