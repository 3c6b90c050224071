"""One thread that owns the engine and runs its jobs one after the other.

Gradio runs each step of a stream in another thread, but torch's modes, the active adapter and the connection to the feature
cache belong to the thread that opened them.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any, TypeVar

from minirlaif.inference.engine import ChatEngine

T = TypeVar("T")


class EngineThread:
    """Starts the thread, in which `load` opens the engine; errors of `load` are raised here."""

    def __init__(self, load: Callable[[], ChatEngine]) -> None:
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run_jobs, name="engine", daemon=True)
        self._thread.start()
        self.engine: ChatEngine = self._submit(load).result()

    def call(self, job: Callable[[ChatEngine], T]) -> T:
        """Run a job; returns or raises what the job does."""
        return self._submit(lambda: job(self.engine)).result()

    def stream(self, job: Callable[[ChatEngine], Iterator[str]], stop: threading.Event) -> Iterator[str]:
        """The pieces of a job as they come. It ends after a piece when `stop` is set or the consumer closes the stream."""
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
                        if stop.is_set() or closed.is_set():
                            break
            finally:
                pieces.put(None)

        result = self._submit(work)
        try:
            yield from iter(pieces.get, None)
            result.result()
        finally:
            closed.set()

    def close(self) -> None:
        """Wait for the current job, free the engine, end the thread."""
        self.call(lambda engine: engine.close())
        self._jobs.put(None)
        self._thread.join()

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        result: Future[T] = Future()
        self._jobs.put((job, result))
        return result

    def _run_jobs(self) -> None:
        for job, result in iter(self._jobs.get, None):
            try:
                result.set_result(job())
            except BaseException as error:
                result.set_exception(error)
