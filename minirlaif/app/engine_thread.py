"""One thread that owns the engine. Everything that a model does happens there, one job after the other.

Gradio hands each step of a stream to another thread, and torch's modes, the switched adapter and the feature cache's file all
belong to the thread that opened them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any, TypeVar

from minirlaif.inference.engine import ChatEngine

T = TypeVar("T")
_END = object()


class Worker:
    """Starts the thread and lets it open the engine; an error of that is raised here."""

    def __init__(self, opened: Callable[[], ChatEngine]) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        self.engine = self._run(opened)

    def call(self, job: Callable[[ChatEngine], T]) -> T:
        """What the job returns or raises."""
        return self._run(lambda: job(self.engine))

    def stream(self, job: Callable[[ChatEngine], Iterator[str]], stop: threading.Event) -> Iterator[str]:
        """The pieces of a job as they come. `stop` ends it after the piece in progress; so does a consumer that goes away."""
        pieces: queue.Queue[Any] = queue.Queue()
        gone = threading.Event()

        def work() -> None:
            try:
                if stop.is_set() or gone.is_set():
                    return
                source: Any = job(self.engine)
                with closing(source):
                    for piece in source:
                        pieces.put(piece)
                        if stop.is_set() or gone.is_set():
                            break
            except BaseException as error:
                pieces.put(error)
            finally:
                pieces.put(_END)

        self._jobs.put(work)
        try:
            while (piece := pieces.get()) is not _END:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            gone.set()

    def close(self) -> None:
        """Let the job in progress end, free the engine, end the thread."""
        self._run(self.engine.close)
        self._jobs.put(None)
        self._thread.join()

    def _run(self, job: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(job())
            except BaseException as error:
                result.set_exception(error)

        self._jobs.put(work)
        return result.result()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
