"""An allowlist of requests: the few paths that the page needs, for the expected host names. No torch.

Gradio serves many more (a proxy, monitoring, editors, files that it downloads for the client); every request that is not listed
here is refused before it reaches Gradio.
"""

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from minirlaif.app.quotas import TooMuch, UploadQuota

_GET = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login_check|logout)/?"
    r"|/(?:static(?!/ffmpeg)|assets)/[\w./-]+"  # ffmpeg: 30 MB for the player's editor, which app.css hides
    r"|/gradio_api/(?:queue/data|upload_progress|startup-events|user|login_check|app_id|theme\.css|info|heartbeat/\w+)/?"
    r"|/gradio_api/file=.+"
)
_POST = re.compile(r"/login/?|/gradio_api/(?:queue/join|upload|cancel|reset|run/predict)/?")
UPLOAD = "/gradio_api/upload"
_PRIVATE = re.compile(
    r"/gradio_api/(?:heartbeat/\w+|cancel|reset|upload|queue/join|run/predict)"
)  # need a login, where there is one
EVENTS = ("/queue/join", "/run/predict")  # paths of requests whose body may name files
MAX_BODY_BYTES = 1 << 20  # of any request but an upload
MAX_CLIP_BYTES = 200 << 20
LOGIN_SECONDS = 1.0  # delay after a wrong password
# The browser loads nothing from other hosts, whatever a model, a person or a component writes into the page.
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


class RequestFilter:
    """ASGI middleware.

    Args:
        folder: only files below it are served.
        hosts: allowed host names, without port; empty: any. On a loopback address this prevents DNS rebinding, where a web page
            reaches the app by a name of its own that points to this machine.
        same_origin_only: refuse requests from pages of other origins. Off where a tunnel changes the host name.
        largest: bytes of the largest clip.
    """

    def __init__(
        self, app: Any, folder: Path, hosts: Sequence[str] = (), same_origin_only: bool = True, largest: int = MAX_CLIP_BYTES
    ) -> None:
        self.app, self.folder, self.hosts, self.same_origin_only = app, folder.resolve(), tuple(hosts), same_origin_only
        self._quota = UploadQuota(self.folder, largest)
        self._uploads = 0  # in progress
        self._login = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        reason = self.refusal(scope) or self._needs_login(scope)
        path = str(scope["path"]).rstrip("/")
        if not reason and scope["method"] == "POST" and path != UPLOAD:
            body, receive = await _buffered(receive)
            if len(body) > MAX_BODY_BYTES:
                reason = (413, "request too large")
            elif path.endswith(EVENTS):
                reason = self._foreign_files(body)
        if reason:
            await _refuse(scope, receive, send, *reason)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._forward(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # an interrupted upload
        except TooMuch as limit:
            if not started:
                await _refuse(scope, receive, send, limit.status, limit.reason)
        except (RuntimeError, OSError):
            if started or self.refusal(scope) is None:
                raise
            await _refuse(scope, receive, send, 404, "")  # a clip that was refused, and deleted while the player requested it

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio answer; clean up after interrupted uploads and delay wrong passwords."""
        path = str(scope["path"]).rstrip("/")
        if scope["method"] == "POST" and path == UPLOAD:
            receive, end = self._quota.received(scope, receive)
            self._uploads += 1
            try:
                await self.app(scope, receive, send)
            finally:
                end()
                self._uploads -= 1
                if not self._uploads:  # complete uploads are in subfolders; plain files are interrupted or unexpected ones
                    for file in self.folder.iterdir():
                        if file.is_file():
                            file.unlink(missing_ok=True)
        elif scope["method"] == "POST" and path == "/login":

            async def delay_failure(message: Message) -> None:
                if message.get("status", 0) >= 400:
                    async with self._login:  # wrong passwords wait for one another; the right one does not wait
                        await asyncio.sleep(LOGIN_SECONDS)
                await send(message)

            await self.app(scope, receive, delay_failure)
        else:
            await self.app(scope, receive, send)

    def _needs_login(self, scope: Scope) -> tuple[int, str] | None:
        """Gradio's heartbeat, cancel and reset work without a login; with them, anyone could stop the answers of others. Uploads
        are read before Gradio looks at who sends them."""
        app: Any = scope.get("app")
        path = str(scope["path"]).rstrip("/")
        if getattr(app, "auth", None) is None or not _PRIVATE.fullmatch(path):
            return None
        names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
        cookies = Request(scope).cookies
        return None if any(cookies.get(name) in app.tokens for name in names) else (401, "log in first")

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason if a request is refused, by its headers and path."""
        headers = dict(scope.get("headers", ()))
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and re.sub(r":\d*$", "", host) not in self.hosts:
            return 403, "unknown host name"
        if self._is_cross_origin(scope["method"], headers, host):
            return 403, "cross-origin requests are refused"
        path = str(scope["path"])
        if scope["method"] in ("GET", "HEAD"):
            if not _GET.fullmatch(path) or ".." in path.split("/"):
                return 404, ""
            if path.startswith("/gradio_api/file="):
                name = path.removeprefix("/gradio_api/file=")
                # Decoding the name once or twice more must not lead out of the folder either.
                if not self._is_upload(name) or not all(self._is_inside(n) for n in (unquote(name), unquote(unquote(name)))):
                    return 403, "this file is not served"
        elif scope["method"] != "POST" or not _POST.fullmatch(path):
            return 404, ""
        return None

    def _is_cross_origin(self, method: str, headers: Mapping[bytes, bytes], host: str) -> bool:
        """Whether the request comes from a page of another origin, through the browser of somebody who may use this one."""
        if method == "POST" and headers.get(b"sec-fetch-site", b"") == b"cross-site":
            return True
        # Browsers send no fetch site to plain network addresses, but they send the origin. A proxy sends the page's host.
        origin = headers.get(b"origin", b"").decode("latin-1")
        own_hosts = {host, headers.get(b"x-forwarded-host", b"").decode("latin-1")} - {""}
        return bool(origin and self.same_origin_only) and urlsplit(origin).netloc not in own_hosts

    def _foreign_files(self, body: bytes) -> tuple[int, str] | None:
        """Refuse other files than uploads: Gradio would download a file named by a URL, or copy one from another folder."""
        paths: list[Any] = []  # of all objects, at any depth

        def collect(value: dict[str, Any]) -> dict[str, Any]:
            paths.append(value.get("path"))
            return value

        try:
            json.loads(body, object_hook=collect)
        except (ValueError, RecursionError):
            return 400, "not JSON"
        return None if all(path is None or self._is_upload(path) for path in paths) else (403, "this file was not uploaded here")

    def _is_upload(self, name: Any) -> bool:
        """Whether this is a file below the folder, after resolving symbolic links."""
        return self._is_inside(name) and os.path.isfile(name)

    def _is_inside(self, name: Any) -> bool:
        if not isinstance(name, str) or "\0" in name or "\\" in name or not name.startswith("/"):
            return False
        try:
            return Path(name).resolve().is_relative_to(self.folder)
        except (OSError, RuntimeError, ValueError):
            return False


async def _buffered(receive: Receive) -> tuple[bytes, Receive]:
    """The body of a request, incomplete if it is longer than MAX_BODY_BYTES, and a `receive` that gives it once more."""
    body, more = b"", True
    while more and len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return body, replay


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    """In JSON for requests of the page, which shows the reason; a file that it loads as a script must not be JSON."""
    in_json = scope["method"] == "POST"
    body, kind = (json.dumps({"detail": reason}), "application/json") if in_json else (reason, "text/plain")
    await Response(body, status, media_type=kind)(scope, receive, send)
