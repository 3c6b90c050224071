"""The thread that owns the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from minirlaif.app.engine_thread import EngineThread
from minirlaif.errors import UserError


def test_everything_happens_in_one_thread_in_order(engine_thread: EngineThread) -> None:
    names: list[str] = []
    for _ in range(3):
        engine_thread.call(lambda engine: names.append(threading.current_thread().name))
    assert names == ["engine"] * 3

    def pieces(engine: Any) -> Iterator[str]:
        for letter in "abc":
            yield letter + threading.current_thread().name

    assert list(engine_thread.stream(pieces, threading.Event())) == ["aengine", "bengine", "cengine"]


def test_errors_come_out_where_they_were_asked_for(engine_thread: EngineThread) -> None:
    def broken(engine: Any) -> Iterator[str]:
        yield "a"
        raise UserError("no")

    stream = engine_thread.stream(broken, threading.Event())
    assert next(stream) == "a"
    with pytest.raises(UserError, match="no"):
        next(stream)
    with pytest.raises(ZeroDivisionError):
        engine_thread.call(lambda engine: 1 / 0)
    assert engine_thread.call(lambda engine: 2) == 2

    def none() -> Any:
        raise UserError("no model")

    with pytest.raises(UserError, match="no model"):
        EngineThread(none)


@pytest.mark.parametrize("how", ["stop", "gone"])
def test_a_stream_that_nobody_hears_ends(engine_thread: EngineThread, how: str) -> None:
    ended = threading.Event()

    def endless(engine: Any) -> Iterator[str]:
        try:
            while True:
                yield "on"
                time.sleep(0.01)
        finally:
            ended.set()

    stop = threading.Event()
    stream: Any = engine_thread.stream(endless, stop)
    next(stream)
    if how == "stop":
        stop.set()
        assert set(stream) <= {"on"}
    else:
        stream.close()
    assert ended.wait(60) and engine_thread.call(lambda engine: True)
    assert how == "stop" or not stop.is_set()  # it was not stopped: its reader left
