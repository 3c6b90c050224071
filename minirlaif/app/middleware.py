"""What the server answers at all: the few addresses that the page needs, to the hosts it is meant for. No torch.

Gradio serves many more (a proxy, monitoring, editors, addresses it fetches for the asker); whatever is not named here is
refused before it gets there.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.requests import ClientDisconnect

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

_GET = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login_check|logout)/?"
    r"|/(?:static(?!/ffmpeg)|assets)/[\w./-]+"  # 30 MB for the player's editor, which app.css hides
    r"|/gradio_api/(?:queue/data|upload_progress|startup-events|user|login_check|app_id|theme\.css|info|heartbeat/\w+)/?"
    r"|/gradio_api/file=.+"
)
_POST = re.compile(r"/login/?|/gradio_api/(?:queue/join|upload|cancel|reset|run/predict)/?")
UPLOAD = "/gradio_api/upload"
ASKS = ("/queue/join", "/run/predict")  # requests that may name files
MOST_ASKED = 1 << 20  # bytes of such a request
MOST_KEPT = 8 << 30  # bytes of all uploads together
LOGIN_SECONDS = 1.0  # after a wrong password, for everybody who tries one
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
        alone: only pages of this server itself may ask. Off where a tunnel changes the name of the host.
    """

    def __init__(self, app: Any, folder: Path, hosts: Sequence[str] = (), alone: bool = True) -> None:
        self.app, self.folder, self.hosts, self.alone = app, folder.resolve(), tuple(hosts), alone
        self._uploads = 0  # under way
        self._login = asyncio.Lock()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        reason = self.refuses(scope) or self._unknown(scope) or self._full(scope)
        if not reason and scope["method"] == "POST" and str(scope["path"]).rstrip("/").endswith(ASKS):
            body = await _whole(receive)
            reason = (413, "too much at once") if body is None else self._names_others(body)
            receive = _again(body or b"", receive)
        if reason:
            await _refuse(send, *reason, in_json=scope["method"] == "POST")
            return

        started = False

        async def marked(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                known = {name for name, _ in message.get("headers", ())}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            await self._passed(scope, receive, marked)
        except ClientDisconnect:
            pass  # an upload that broke off
        except (RuntimeError, OSError):
            if started or self.refuses(scope) is None:
                raise
            await _refuse(send, 404, "")  # a clip that was refused, and deleted while the player asked for it

    async def _passed(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Gradio's part; uploads that broke off and wrong passwords are seen to here."""
        path = str(scope["path"]).rstrip("/")
        if scope["method"] == "POST" and path == UPLOAD:
            self._uploads += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self._uploads -= 1
                if not self._uploads:  # whole ones lie in folders; what broke off, or had no business there, is a plain file
                    for left in self.folder.iterdir():
                        if left.is_file():
                            left.unlink(missing_ok=True)
        elif scope["method"] == "POST" and path == "/login":

            async def seen(message: Message) -> None:
                if message.get("status", 0) >= 400:
                    async with self._login:  # wrong ones wait for one another; the right one waits for nobody
                        await asyncio.sleep(LOGIN_SECONDS)
                await send(message)

            await self.app(scope, receive, seen)
        else:
            await self.app(scope, receive, send)

    def _unknown(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
        """Gradio asks for no password where a page says that it lives, or that it stops waiting; a stranger could end it."""
        app, path = scope.get("app"), str(scope["path"]).rstrip("/")
        if getattr(app, "auth", None) is None or not re.fullmatch(r"/gradio_api/(?:heartbeat/\w+|cancel|reset)", path):
            return None
        cookies = SimpleCookie(dict(scope.get("headers", ())).get(b"cookie", b"").decode("latin-1"))
        names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")  # type: ignore[union-attr]
        known = any(name in cookies and cookies[name].value in app.tokens for name in names)  # type: ignore[union-attr]
        return None if known else (401, "log in first")

    def _full(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
        if scope["method"] != "POST" or str(scope["path"]).rstrip("/") != UPLOAD:
            return None
        kept = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return (507, "there is no room for more clips now") if kept > MOST_KEPT else None

    def refuses(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
        """Status and reason where a request is refused."""
        headers = dict(scope.get("headers", ()))
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and re.sub(r":\d*$", "", host) not in self.hosts:
            return 403, "this name is not served"
        if self._from_elsewhere(scope["method"], headers, host):
            return 403, "another page may not ask"
        path = str(scope["path"])
        if scope["method"] in ("GET", "HEAD"):
            if not _GET.fullmatch(path) or ".." in path.split("/"):
                return 404, ""
            if path.startswith("/gradio_api/file="):
                name = path.removeprefix("/gradio_api/file=")
                # Who reads the name again, or twice again, must not come out of the folder either.
                if not self._is_ours(name) or not all(self._is_inside(n) for n in (unquote(name), unquote(unquote(name)))):
                    return 403, "this file is not served"
        elif scope["method"] != "POST" or not _POST.fullmatch(path):
            return 404, ""
        return None

    def _from_elsewhere(self, method: str, headers: Mapping[bytes, bytes], host: str) -> bool:
        """Whether a page of another address asks, through the browser of somebody who may use this one."""
        if method == "POST" and headers.get(b"sec-fetch-site", b"") == b"cross-site":
            return True
        # Browsers tell no fetch site to plain addresses of a network; the origin they do tell. A proxy tells the page's host.
        origin = headers.get(b"origin", b"").decode("latin-1")
        asked = {host, headers.get(b"x-forwarded-host", b"").decode("latin-1")} - {""}
        return bool(origin and self.alone) and urlsplit(origin).netloc not in asked

    def _names_others(self, body: bytes) -> tuple[int, str] | None:
        """Gradio would fetch a file that a request names by its address, or copy one of another folder."""
        try:
            named = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return 400, "not JSON"
        return None if all(name is None or self._is_ours(name) for name in named) else (403, "this file was not uploaded here")

    def _is_ours(self, name: Any) -> bool:
        """Whether there is such a file in the folder, by its real path."""
        try:
            return self._is_inside(name) and Path(name).is_file()
        except OSError:  # longer than a name can be
            return False

    def _is_inside(self, name: Any) -> bool:
        if not isinstance(name, str) or "\0" in name or "\\" in name or not name.startswith("/"):
            return False
        try:
            return Path(name).resolve().is_relative_to(self.folder)
        except (OSError, RuntimeError, ValueError):
            return False


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


async def _refuse(send: Send, status: int, reason: str, in_json: bool = False) -> None:
    """in_json: as the page expects answers to what it sends, and shows the reason; what it loads as a script must not be JSON."""
    body = json.dumps({"detail": reason}).encode() if in_json else reason.encode()
    kind = b"application/json" if in_json else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
