"""A judge behind an OpenAI-compatible address (`POST URL/chat/completions`).

What passes by itself (busy, broken or silent servers, cut connections, replies that are no JSON) is tried again after a growing
pause; what does not (a wrong key, an unknown model) stops at once. The key comes from the environment, goes into one header and
nowhere else: no redirect is followed, which would carry it to another host, and it is cut out of every text of the server.
"""

import ipaddress
import json
import os
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import Message
from minirlaif.judges.cache import Refused, Reply, today
from minirlaif.judges.config import JudgeSettings, check_judge
from minirlaif.judges.grade import ChatJudge

LONGEST_PAUSE = 120.0  # seconds, whatever a server asks for
MAX_BYTES = 1 << 20  # of a reply or an error
MAX_ERROR_LETTERS = 200  # of an error that are shown
MIN_KEY = 8  # letters: a shorter key is a placeholder for a local server, and may be a word of any reply
REPORTED_PAUSE, REPORT_EVERY = 2.0, 10.0  # seconds: shorter pauses are not reported, and reports are at least so far apart
BUSY = (408, 409, 425, 429)  # and every 5xx: tried again
REFUSES = (400, 413, 422)  # this question alone, as far as one can tell


class _TryAgain(Exception):
    """The request may work later. wait: seconds that the server asked for, 0 for none; hint: what to do when it never does."""

    def __init__(self, reason: str, wait: float = 0.0, hint: str = "repeat the command when it answers again") -> None:
        super().__init__(reason)
        self.wait, self.hint = wait, hint


class EndpointJudge(ChatJudge):
    """Asks one model at one address; several threads may ask at once."""

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        super().__init__(settings, replies)
        self.kind, self.name, self.parallel = "openai", settings.name, settings.parallel
        self._extra: dict[str, Any] = json.loads(settings.extra or "{}")
        self._body = {"model": settings.name, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
        self.signature = {"kind": self.kind, "url": settings.url.rstrip("/"), **self._with_extra(self._body)}
        self._secret = _key_from(settings) if settings.key_env else ""
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._client = _client(settings, self._secret)
        self._closed = threading.Event()
        self._lock, self._reported_at, self._next_request = threading.Lock(), -REPORT_EVERY, 0.0
        self._gap = 60.0 / settings.per_minute if settings.per_minute else 0.0  # seconds between requests

    def stop(self) -> None:
        """No connection stays open between requests; threads that pause or wait for their turn raise."""
        self._closed.set()

    def ask(self, messages: Sequence[Message], grammar: str = "") -> Reply:
        """One reply in any form, after as many tries as the settings allow."""
        s, failed = self.settings, _TryAgain("")
        for attempt in range(s.retries + 1):
            if self._gap:  # until enough time has passed since the last request of any thread, or until the judge is closed
                with self._lock:
                    turn = max(self._next_request, time.monotonic())
                    self._next_request = turn + self._gap
                self._closed.wait(max(0.0, turn - time.monotonic()))
            if self._closed.is_set():
                raise UserError(f"judge {self.name}: closed before this question had a reply")
            try:
                return self._ask_once(messages)
            except _TryAgain as error:
                failed = error
                if attempt < s.retries:
                    # Doubled each time; the random part keeps several threads from coming back all at once.
                    backoff = s.backoff_seconds * 2**attempt * (1 + random.random()) / 1.5
                    pause = min(max(error.wait, backoff), LONGEST_PAUSE)
                    again = f"trying again in {pause:.0f} s ({attempt + 2} of {s.retries + 1})"
                    self._report(f"{self._hidden(str(error))}; {again}", pause)
                    self._closed.wait(pause)
        raise UserError(
            f"judge {self.name}: no reply from {s.url} after {s.retries + 1} tries ({self._hidden(str(failed))}); replies so far"
            f" are kept, {failed.hint}"
        )

    def _report(self, text: str, pause: float) -> None:
        """Print why nothing happens, once for all threads."""
        with self._lock:
            if pause < REPORTED_PAUSE or time.monotonic() - self._reported_at < REPORT_EVERY:
                return
            self._reported_at = time.monotonic()
        print(f"judge {self.name}: {text}", file=sys.stderr, flush=True)

    def _ask_once(self, messages: Sequence[Message]) -> Reply:
        body = json.dumps(self._with_extra({**self._body, "messages": list(messages)})).encode()
        deadline = time.monotonic() + self.settings.timeout_seconds
        try:
            with self._client.stream("POST", self._url, content=body) as response:
                if response.is_success:
                    return self._read(_content(response, deadline))
                raise self._status_error(response, deadline)
        except (httpx.TimeoutException, TimeoutError):
            raise _TryAgain(f"no answer within {self.settings.timeout_seconds:g} s") from None
        except httpx.InvalidURL as error:
            raise UserError(f"judge {self.name}: {self.settings.url} is no address ({error}); check url") from None
        except httpx.ConnectError as error:
            raise _TryAgain(str(error)) from None
        except httpx.HTTPError as error:
            raise _TryAgain(f"the connection was cut ({type(error).__name__})") from None

    def _status_error(self, response: httpx.Response, deadline: float) -> Exception:
        """The meaning of an HTTP error for the one question and for all."""
        try:
            data = _content(response, deadline)
        except (TimeoutError, httpx.HTTPError):
            data = b""
        # Of a longer text nothing is shown: where it was cut, the first part of a key may stand.
        text = self._hidden(data.decode(errors="replace")) if len(data) <= MAX_BYTES else ""
        code = response.status_code
        message = f"HTTP {code} {' '.join(text.split())[:MAX_ERROR_LETTERS]}".strip()
        if code == 429 and "insufficient_quota" in text:
            return UserError(
                f"judge {self.name}: the account at {self.settings.url} has no credit left (insufficient_quota); replies so far"
                " are kept, repeat the command when it has"
            )
        if code in BUSY or code >= 500:
            return _TryAgain(message, _retry_after(response.headers.get("Retry-After")))
        if code in REFUSES:
            return Refused(message)
        hint = "set key_env to the environment variable that holds its key" if code in (401, 403) else "check url and name"
        return UserError(f"judge {self.name}: {self.settings.url} answers {message}; {hint}")

    def _read(self, data: bytes) -> Reply:
        hint = "check that url is the address of its API"
        if len(data) > MAX_BYTES:
            raise _TryAgain(f"the reply is longer than {MAX_BYTES} bytes", hint=hint)
        try:
            completion = json.loads(data)
            choice = completion["choices"][0]
            text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
            usage = completion.get("usage") or {}
            tokens_in, tokens_out = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
            version = str(completion.get("model") or self.name)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _TryAgain(f"the reply is not what the protocol says ({len(data)} bytes)", hint=hint) from None
        if not isinstance(text, str):
            raise Refused("the reply holds no text")
        # Halves of letters, which JSON can spell, can be written into no file.
        text, version = (each.encode(errors="replace").decode() for each in (text, version))
        if len(self._secret) >= MIN_KEY:
            text, version = self._hidden(text), self._hidden(version)
        return Reply(text, version, today(), tokens_in, tokens_out, cut)

    def _with_extra(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**body, **self._extra}.items() if value is not None}

    def _hidden(self, text: str) -> str:
        """The text without the key, whichever way JSON spells its slashes."""
        for key in {self._secret, self._secret.replace("/", "\\/")} if self._secret else ():
            text = text.replace(key, "[key]")
        return text


def _client(settings: JudgeSettings, key: str) -> httpx.Client:
    """Follows no redirect. Proxies of the environment count, except on the way to this machine itself."""
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "minirlaif"}
    headers |= {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    limits, use_proxy = httpx.Limits(max_connections=None, max_keepalive_connections=0), not _is_local(settings.url)
    try:
        return httpx.Client(headers=headers, timeout=settings.timeout_seconds, limits=limits, trust_env=use_proxy)
    except (ImportError, ValueError) as error:
        raise UserError(f"judge {settings.name}: the environment names a proxy that cannot be used ({error})") from None


def _content(response: httpx.Response, deadline: float) -> bytes:
    """The body, of a longer one a byte more than MAX_BYTES. TimeoutError after the deadline (of the monotonic clock):
    httpx's time-out is for each read, and a server that sends a byte now and then would hold a request for ever."""
    data = b""
    for part in response.iter_raw():
        data += part
        if len(data) > MAX_BYTES:
            return data[: MAX_BYTES + 1]
        if time.monotonic() > deadline:
            raise TimeoutError
    return data


def _count(value: Any) -> int:
    """Tokens as a server counts them; 0 for whatever is no number."""
    try:
        return max(0, int(value or 0))
    except (ValueError, TypeError, OverflowError):
        return 0


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key_from(settings: JudgeSettings) -> str:
    check_judge(settings)
    key = os.environ[settings.key_env].strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"judge {settings.name}: {settings.key_env} cannot be a key: it has characters that HTTP headers forbid")
    if settings.url.startswith("http://") and not _is_local(settings.url):
        print(f"judge {settings.name}: {settings.url} is not encrypted, so the key can be read on its way", flush=True)
    return key


def _retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 for anything else."""
    for seconds in (float, lambda text: (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()):
        try:
            return max(0.0, seconds(header or ""))
        except (ValueError, TypeError):
            continue
    return 0.0
