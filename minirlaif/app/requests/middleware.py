"""An allowlist of requests: the few paths that the page needs, for the expected host names. No torch.

Gradio serves many more (a proxy, monitoring, editors, files that it downloads for the client); every request that is not listed
here is refused before it reaches Gradio.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from minirlaif.app.requests.bodies import buffered, replayed
from minirlaif.app.requests.calls import UploadFolder, call_error, parsed
from minirlaif.app.requests.forms import PROGRESS, one_file, progress
from minirlaif.app.requests.model_time import ModelTime
from minirlaif.app.requests.quotas import MODEL_QUEUE, TooMuch, UploadQuota, Visitors, client_of, cost_of

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
_STREAM = re.compile(r"/gradio_api/(?:heartbeat/(\w+)|queue/data)/?")  # connections that keep a session
_RANGE = re.compile(rb"bytes=([0-9]{1,15})-([0-9]{1,15})?")  # as browsers ask for parts of a clip
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
JOIN, CALLS = "/queue/join", ("/queue/join", "/run/predict")  # requests that call a function of the page
TOO_SOON_SECONDS = 1.0  # delay of a refusal, so that asking again at once brings nothing
EXPIRY_SECONDS = 5.0  # between looks for sessions that ended
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
    """ASGI middleware. No path of this machine stands in a reply.

    Args:
        folder: only files below it are served.
        hosts: allowed host names, without port; empty: any. On a loopback address this prevents DNS rebinding, where a web page
            reaches the app by a name of its own that points to this machine.
        same_origin_only: refuse requests from pages of other origins. Off where a tunnel changes the host name.
        largest: bytes of the largest clip.
        ended: called, in a thread, with the name of a session that ended; arrived: called with the path of an upload before its
            client gets it; model_time: how long each client had the model; names: what stands in replies for other folders.
    """

    def __init__(
        self,
        app: Any,
        folder: Path,
        hosts: Sequence[str] = (),
        same_origin_only: bool = True,
        largest: int = MAX_CLIP_BYTES,
        ended: Callable[[str], object] | None = None,
        arrived: Callable[[Path], object] | None = None,
        model_time: ModelTime | None = None,
        names: Mapping[Path, str] | None = None,
    ) -> None:
        self.app, self.files = app, UploadFolder(folder, names or {})
        self.hosts, self.same_origin_only = tuple(hosts), same_origin_only
        self.visitors = Visitors(lambda name: self._tasks.add(asyncio.create_task(self._forget(name))))
        self._model_time = model_time
        self._ended, self._arrived, self._quota = ended, arrived, UploadQuota(self.files.folder, largest)
        self._uploads = 0  # in progress
        self._login = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gradio: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if self._gradio is None:
            self._gradio = scope["app"]
            self._tasks.add(asyncio.create_task(self._expire()))
        scope = {**scope, "path": self.files.requested(str(scope["path"]))}
        started = False

        async def checked_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(self._shown(scope, message))

        try:
            await self._answer(scope, receive, checked_send)
        except ClientDisconnect:
            pass  # an interrupted upload
        except TooMuch as limit:
            if not started:
                await _refuse(scope, receive, checked_send, limit.status, limit.reason)
        except (RuntimeError, OSError):
            if started or self.refusal(scope) is None:
                raise
            await _refuse(scope, receive, send, 404, "")  # a clip that was refused, and deleted while the player requested it

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then let Gradio answer. TooMuch: it is refused."""
        client, path = client_of(scope), str(scope["path"]).rstrip("/")
        with ExitStack() as held:
            if held.enter_context(self.visitors.request(client, cost_of(scope["method"], path))):
                await asyncio.sleep(TOO_SOON_SECONDS)
                raise TooMuch(429, "too many requests: wait a moment")
            if reason := self.refusal(scope) or self._needs_login(scope):
                raise TooMuch(*reason)
            if scope["method"] == "POST" and path != UPLOAD:
                body = await buffered(scope, receive)
                if not path.endswith(("/login", "/reset")):
                    body, is_model = self._checked_body(client, path, body, held)
                    if is_model and self._model_time is not None:
                        queue = self._gradio.get_blocks()._queue
                        await self._model_time.turn(client, lambda: self.visitors.others_wait(client, queue))
                receive = replayed(body, receive)
            elif stream := _STREAM.fullmatch(path):
                name = stream[1] or Request(scope).query_params.get("session_hash", "")  # as Gradio reads it
                if not stream[1] and name not in self._gradio.get_blocks()._queue.pending_messages_per_session:
                    raise TooMuch(404, "this page has asked for nothing")
                held.enter_context(self.visitors.connected(client, name))
            elif path == PROGRESS:
                held.enter_context(progress(scope))
            await self._forward(scope, receive, send)

    def _checked_body(self, client: str, path: str, body: bytes, held: ExitStack) -> tuple[bytes, bool]:
        """The body of a request as Gradio gets it, and whether it joins the queue for the model. TooMuch: it is refused."""
        objects: list[dict[str, Any]] = []
        is_model = False

        def located(value: dict[str, Any]) -> dict[str, Any]:
            objects.append(self.files.located(value))
            return objects[-1]

        try:
            call = parsed(body, located)
        except (ValueError, RecursionError) as error:
            raise TooMuch(400, f"not JSON that is accepted here: {error}"[:200]) from None
        if not all(each.get("path") is None or self.files.has(each["path"]) for each in objects):  # Gradio takes any
            raise TooMuch(403, "this file was not uploaded here")
        if not isinstance(call, dict):
            raise TooMuch(422, "not an object")
        name = call.get("session_hash")
        if not isinstance(name, str) or not _SESSION.fullmatch(name):
            raise TooMuch(422, "session_hash: not the name of a page")
        blocks = self._gradio.get_blocks()
        if path.endswith(CALLS):
            if wrong := call_error(call, blocks.fns, path.endswith(JOIN)):
                raise TooMuch(422, wrong)
            self.visitors.enter(client, name)
            if path.endswith(JOIN):
                is_model = blocks.fns[call["fn_index"]].concurrency_id == MODEL_QUEUE
                held.enter_context(self.visitors.joining(client, blocks._queue, is_model))
        elif name not in self.visitors.sessions:
            raise TooMuch(404, "there is no such page")
        else:
            self.visitors.enter(client, name)  # only its own client cancels something
            if type(call.get("fn_index")) is not int or not isinstance(call.get("event_id"), str):
                raise TooMuch(422, "fn_index or event_id is missing")
        return json.dumps(call).encode(), is_model

    def _shown(self, scope: Scope, message: Message) -> Message:
        """A part of a reply with the headers of every reply, and without the place of the uploads."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            scope["is_text"] = headers.get("content-type", "").startswith(("application/json", "text/html", "text/event-stream"))
            if scope["is_text"]:
                del headers["content-length"]
        elif scope.get("is_text") and message.get("body"):
            return {**message, "body": self.files.shown(message["body"])}
        return message

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self.visitors.expire()
            self._tasks = {task for task in self._tasks if not task.done()}

    async def _forget(self, name: str) -> None:
        """Let Gradio and the app drop a session."""
        blocks = self._gradio.get_blocks()
        await blocks._queue.clean_events(session_hash=name)  # first: what still runs for it sends no more messages
        kept = (blocks._queue.pending_messages_per_session, blocks._queue.pending_event_ids_session)
        for each in (*kept, blocks.state_holder.session_data, blocks.state_holder.time_last_used):
            each.pop(name, None)
        if self._ended is not None:
            await asyncio.to_thread(self._ended, name)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio answer; clean up after interrupted uploads and delay wrong passwords."""
        path = str(scope["path"]).rstrip("/")
        if scope["method"] == "POST" and path == UPLOAD:
            receive, end = self._quota.received(scope, one_file(scope, receive))
            self._uploads += 1

            async def note_arrival(message: Message) -> None:
                stored: set[str] = self._gradio.get_blocks().upload_file_set  # emptied here: Gradio only adds to it
                while stored:
                    path = Path(stored.pop())
                    if self._arrived is not None:
                        self._arrived(path)
                await send(message)

            try:
                await self.app(scope, receive, note_arrival)
            finally:
                end()
                self._uploads -= 1
                if not self._uploads:  # complete uploads are in subfolders; plain files are interrupted or unexpected ones
                    for file in self.files.folder.iterdir():
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
            part = _RANGE.fullmatch(headers.get(b"range", b"bytes=0-"))
            if part is None or (part[2] and int(part[1]) > int(part[2])):
                return 416, "range: not one part of a file"
            if path.startswith("/gradio_api/file="):
                name = path.removeprefix("/gradio_api/file=")
                # Decoding the name once or twice more must not lead out of the folder either.
                if not self.files.has(name) or not all(self.files.spans(n) for n in (unquote(name), unquote(unquote(name)))):
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


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    """In JSON for requests of the page, which shows the reason; a file that it loads as a script must not be JSON."""
    in_json = scope["method"] == "POST"
    body, kind = (json.dumps({"detail": reason}), "application/json") if in_json else (reason, "text/plain")
    await Response(body, status, media_type=kind)(scope, receive, send)
