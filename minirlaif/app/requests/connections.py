"""Connections of a client: so many at once, and each asks for something in time. No torch."""

from collections import defaultdict
from typing import Any

from minirlaif.app.requests.quotas import LOOPBACK, OPEN_REQUESTS, SILENT_SECONDS, client_of


def limited_protocol(base: type[Any]) -> type[Any]:
    """uvicorn's protocol (a class) with OPEN_REQUESTS connections of one client and SILENT_SECONDS until its first request."""
    count: dict[str, int] = defaultdict(int)

    class LimitedProtocol(base):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.peer = client_of({"client": transport.get_extra_info("peername"), "type": "http", "headers": []})
            count[self.peer] += 1
            if count[self.peer] > OPEN_REQUESTS and self.peer not in LOOPBACK:
                transport.abort()
            self.first = self.loop.call_later(SILENT_SECONDS, lambda: self.cycle or transport.abort())

        def connection_lost(self, exc: Exception | None) -> None:
            self.first.cancel()
            count[self.peer] -= 1
            if not count[self.peer]:
                del count[self.peer]
            super().connection_lost(exc)

    return LimitedProtocol
