"""Time of the model and of the decoder that each client takes: who took much lets others go first. No torch."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minirlaif.app.requests.quotas import TooMuch

WAIT_PER_SECOND = 4.0  # that a client took: while others want the model, it has a fifth of it at most
LONGEST_WAIT = 60.0  # seconds; a client who would wait longer is refused
POLL_SECONDS = 0.1


class ModelTime:
    """From when on each client's next event may join the queue for the model. Events may end in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._due: dict[str, float] = {}

    def add(self, client: str, seconds: float) -> None:
        """Note that a client took some time."""
        now = self._clock()
        with self._lock:
            due = {name: then for name, then in self._due.items() if then > now}
            due[client] = due.get(client, now) + seconds * WAIT_PER_SECOND
            self._due = due

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """The same for the time of a block."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(client, self._clock() - began)

    async def turn(self, client: str, others_wait: Callable[[], bool]) -> None:
        """Wait until a client's next event may join, or until nobody else wants the model. TooMuch: that would take too long."""
        wait = self._due.get(client, 0.0) - self._clock()
        if wait > LONGEST_WAIT and others_wait():
            raise TooMuch(429, f"others want the model, which you had for long: ask again in {wait:.0f} s")
        while self._due.get(client, 0.0) > self._clock() and others_wait():
            await asyncio.sleep(POLL_SECONDS)
