"""One thread that owns the engine and runs its jobs one after the other.

Gradio runs each step of a stream in another thread, but torch's modes, the active adapter and the connection to the feature
cache belong to the thread that opened them. Who waits for that thread, for the decoder or for a disk does so in a thread of his
own: the threads of Gradio and its web server are for all visitors.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any, TypeVar

from minirlaif.errors import UserError
from minirlaif.inference.engine import ChatEngine

POLL_SECONDS = 0.05
T = TypeVar("T")


async def until(done: Callable[[], bool], seconds: float) -> None:
    """Wait for something, but at most so long, without a thread."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        await asyncio.sleep(POLL_SECONDS)


async def in_thread(job: Callable[..., T], *values: Any) -> T:
    """Run a job that waits in a thread of its own."""
    own = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(own, job, *values)
    finally:
        own.shutdown(wait=False)


async def in_steps(steps: Iterator[T]) -> AsyncIterator[T]:
    """The same for the steps of a generator, which is closed in that thread as well, after the step that runs."""
    own, end = ThreadPoolExecutor(1), object()
    try:
        while (step := await asyncio.get_running_loop().run_in_executor(own, next, steps, end)) is not end:
            yield step  # type: ignore[misc]
    finally:
        own.submit(getattr(steps, "close", lambda: None))
        own.shutdown(wait=False)


class EngineThread:
    """Starts the thread, in which `load` opens the engine; errors of `load` are raised here."""

    def __init__(self, load: Callable[[], ChatEngine]) -> None:
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run_jobs, name="engine", daemon=True)
        self._thread.start()
        self.engine: ChatEngine = self._submit(load).result()

    def call(self, job: Callable[[ChatEngine], T]) -> T:
        """Run a job; returns or raises what the job does."""
        return self._submit(lambda: job(self.engine)).result()

    def stream(self, job: Callable[[ChatEngine], Iterator[str]], stop: threading.Event) -> Iterator[str]:
        """The pieces of a job as they come. It ends after a piece when `stop` is set, the consumer closes the stream or
        `close` is called."""
        pieces: queue.Queue[str | None] = queue.Queue()  # None: the end
        closed = threading.Event()

        def work() -> None:
            try:
                if stop.is_set() or closed.is_set():
                    return
                source: Any = job(self.engine)
                with closing(source):
                    for piece in source:
                        pieces.put(piece)
                        if stop.is_set() or closed.is_set() or self._closing.is_set():
                            break
            finally:
                pieces.put(None)

        result = self._submit(work)
        result.add_done_callback(lambda _: pieces.put(None))  # it may never begin
        try:
            yield from iter(pieces.get, None)
            result.result()
        finally:
            closed.set()

    def close(self) -> None:
        """End the current stream after its next piece, refuse the jobs that wait, free the engine, end the thread. Jobs that were
        refused raise UserError."""
        freed: Future[None] = Future()
        with self._lock:
            self._closing.set()
            with suppress(queue.Empty):
                while job := self._jobs.get_nowait():
                    job[1].set_exception(_closed())
            self._jobs.put((self.engine.close, freed))
            self._jobs.put(None)
        freed.result()
        self._thread.join()

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        result: Future[T] = Future()
        with self._lock:
            if self._closing.is_set():
                result.set_exception(_closed())
            else:
                self._jobs.put((job, result))
        return result

    def _run_jobs(self) -> None:
        for job, result in iter(self._jobs.get, None):
            try:
                result.set_result(job())
            except BaseException as error:
                result.set_exception(error)


def _closed() -> UserError:
    return UserError("the app is closing")
