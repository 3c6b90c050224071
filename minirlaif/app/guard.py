"""What the server answers at all: the few addresses that the page needs, to the hosts it is meant for. No torch.

Gradio serves many more (a proxy, monitoring, editors, addresses it fetches for the asker); whatever is not named here is
refused before it gets there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
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
_POST = re.compile(r"/login/?|/gradio_api/(?:queue/join|upload|cancel|reset)/?")
# Nothing is loaded from elsewhere, whatever a model, a person or a component writes into the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' blob: data:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:;"
    " frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
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

    def _is_ours(self, name: str) -> bool:
        """Whether a file lies in the folder, by its real path; a name that is still escaped has no business here."""
        if unquote(name) != name or "\0" in name or "\\" in name or not name.startswith("/"):
            return False
        try:
            path = Path(name).resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return path.is_relative_to(self.folder) and path.is_file()


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = (reason + "\n").encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
