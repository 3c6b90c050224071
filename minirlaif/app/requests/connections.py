"""Connections of a client: so many at once, and each asks for something in time. No torch."""

from collections import defaultdict
from typing import Any

from minirlaif.app.requests.quotas import LOOPBACK, OPEN_REQUESTS, SILENT_SECONDS, client_of


def limited_protocol(base: type[Any]) -> type[Any]:
    """uvicorn's protocol (a class) with OPEN_REQUESTS connections of a client and SILENT_SECONDS for the head of each request."""
    count: dict[str, int] = defaultdict(int)

    class LimitedProtocol(base):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.peer = client_of({"client": transport.get_extra_info("peername"), "type": "http", "headers": []})
            count[self.peer] += 1
            if count[self.peer] > OPEN_REQUESTS and self.peer not in LOOPBACK:
                transport.abort()
            self.end = self.loop.call_later(SILENT_SECONDS, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle and not self.cycle.response_complete:  # a whole head has come; bodies have limits of their own
                self.end.cancel()
            elif self.end.cancelled():  # a part of one, after which uvicorn waits for ever
                self.end = self.loop.call_later(SILENT_SECONDS, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self.end.cancel()
            count[self.peer] -= 1
            if not count[self.peer]:
                del count[self.peer]
            super().connection_lost(exc)

    return LimitedProtocol
