"""A judge behind an OpenAI-compatible address (`POST URL/chat/completions`), with the standard library alone.

What passes by itself (busy, broken or silent servers, cut connections, replies that are no JSON) is tried again after a growing
pause; what does not (a wrong key, an unknown model) stops at once. The key comes from the environment, goes into one header and
nowhere else: no redirect is followed, which would carry it to another host, and it is cut out of whatever a server says.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from minirlaif.grading import Refused, Reply
from minirlaif.grading.settings import JudgeSettings
from minirlaif.records import UserError
from minirlaif.rubric import Message

LONGEST_PAUSE = 120.0  # seconds, whatever a server asks for
MOST_BYTES = 1 << 20  # of a reply
BUSY = (408, 409, 425, 429)  # and every 5xx: tried again
REFUSES = (400, 413, 422)  # this question alone, as far as one can tell


class _TryAgain(Exception):
    """The request may work later. wait: seconds that the server asked for, 0 for none."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class EndpointJudge:
    """Asks one model at one address; several threads may ask at once."""

    kind = "openai"

    def __init__(self, settings: JudgeSettings) -> None:
        self.name, self.parallel = settings.name, settings.parallel
        self._settings = settings
        self._extra: dict[str, Any] = json.loads(settings.extra or "{}")
        self._body = {"model": settings.name, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
        self.signature: Mapping[str, Any] = {"kind": self.kind, "url": settings.url.rstrip("/"), **self._with_extra(self._body)}
        self._key = _key_from(settings)
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._open = _opener(settings.url)
        self._pace = _Pace(settings.per_minute)
        self._closed = threading.Event()

    def close(self) -> None:
        """Nothing stays open between requests; whoever pauses before another try gives up."""
        self._closed.set()

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply, after as many tries as the settings allow."""
        s, reason = self._settings, ""
        for attempt in range(s.retries + 1):
            self._pace.wait()
            try:
                return self._ask_once(messages)
            except _TryAgain as error:
                reason = self._hidden(str(error))
                if attempt < s.retries:
                    # Doubled each time; the random part keeps several threads from coming back all at once.
                    pause = max(error.wait, s.backoff_seconds * 2**attempt * (1 + random.random()) / 1.5)
                    self._closed.wait(min(pause, LONGEST_PAUSE))
            if self._closed.is_set():
                break
        raise UserError(
            f"judge {self.name}: no reply from {s.url} after {s.retries + 1} tries ({reason}); replies so far are kept, repeat"
            " the command when it answers again"
        )

    def _ask_once(self, messages: Sequence[Message]) -> Reply:
        body = json.dumps(self._with_extra({**self._body, "messages": list(messages)})).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "minirlaif"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._open.open(request, timeout=self._settings.timeout_seconds) as response:
                return self._read(response.read(MOST_BYTES + 1))
        except urllib.error.HTTPError as error:
            raise self._meaning(error) from None
        except TimeoutError:
            raise _TryAgain(f"no answer within {self._settings.timeout_seconds:g} s") from None
        except urllib.error.URLError as error:
            timed_out = isinstance(error.reason, TimeoutError)
            reason = f"no answer within {self._settings.timeout_seconds:g} s" if timed_out else str(error.reason)
            raise _TryAgain(reason) from None
        except (http.client.HTTPException, ConnectionError, OSError) as error:
            raise _TryAgain(f"the connection was cut ({type(error).__name__})") from None

    def _meaning(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means for the one question and for all."""
        try:
            said = " ".join(error.read(2000).decode(errors="replace").split())[:200]
        except OSError:
            said = ""
        told = self._hidden(f"HTTP {error.code} {said}".strip())
        if error.code in BUSY or error.code >= 500:
            return _TryAgain(told, _wait_of(error.headers.get("Retry-After")))
        if error.code in REFUSES:
            return Refused(told)
        hint = "set key_env to the environment variable that holds its key" if error.code in (401, 403) else "check url and name"
        return UserError(f"judge {self.name}: {self._settings.url} says {told}; {hint}")

    def _read(self, data: bytes) -> Reply:
        try:
            found = json.loads(data)
            text = found["choices"][0]["message"]["content"]
            usage = found.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            version = str(found.get("model") or self.name)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _TryAgain(f"the reply is not what the protocol says ({len(data)} bytes)") from None
        if not isinstance(text, str):
            raise Refused("the reply holds no text")
        return Reply(text, version, datetime.now(UTC).date().isoformat(), *tokens)

    def _with_extra(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**body, **self._extra}.items() if value is not None}

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


class _Pace:
    """Keeps requests of all threads at least so far apart."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Sleep until it is this request's turn."""
        if not self._gap:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - time.monotonic()))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None  # the redirect then arrives as an HTTP error


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Proxies of the environment count, except on the way to this machine itself."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if _is_here(url):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key_from(settings: JudgeSettings) -> str:
    if not settings.key_env:
        return ""
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise UserError(
            f"judge {settings.name}: the environment variable {settings.key_env} (key_env) is empty; put the key there"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"judge {settings.name}: what {settings.key_env} holds cannot be a key (letters that no header may have)")
    if settings.url.startswith("http://") and not _is_here(settings.url):
        print(f"judge {settings.name}: {settings.url} is not encrypted, so the key can be read on its way", flush=True)
    return key


def _wait_of(header: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
