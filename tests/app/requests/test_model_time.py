"""Who had the model for long lets others go first."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from minirlaif.app.requests import model_time
from minirlaif.app.requests.model_time import ModelTime
from minirlaif.app.requests.quotas import TooMuch
from tests.fixtures.browser import Served, wait_for
from tests.fixtures.http_client import Client, turns


def test_a_client_waits_for_what_it_took_while_others_want_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [100.0], list[str]()
    taken = ModelTime(lambda: now[0])

    async def sleep(seconds: float) -> None:
        waits.append("a")
        now[0] += 1.0

    def turn(client: str, others: int = 1000) -> int:
        """Seconds until its turn, if others want the model for so long."""
        waits.clear()
        asyncio.run(taken.turn(client, lambda: len(waits) < others))
        return len(waits)

    monkeypatch.setattr(model_time, "asyncio", type("fake", (), {"sleep": staticmethod(sleep)}))
    with taken.taken("a"):
        now[0] += 2.0
    taken.add("a", 3.0)
    assert turn("b") == 0 and turn("a", 4) == 4 and turn("a") == 5 * model_time.WAIT_PER_SECOND - 4
    assert turn("a") == 0
    taken.add("a", 1 + model_time.LONGEST_WAIT / model_time.WAIT_PER_SECOND)
    assert turn("a", 0) == 0  # nobody else is there
    with pytest.raises(TooMuch, match="ask again in 64 s"):
        turn("a")
    now[0] += 1000
    taken.add("b", 1.0)
    assert [*taken._due] == ["b"]  # nothing is remembered of who may go at once


def test_an_event_of_a_greedy_client_comes_after_those_of_others(unlocked: Served, place: Path) -> None:
    greedy, other = (Client(unlocked.address, source=f"127.0.0.{number}") for number in (7, 8))
    for client in (greedy, other):
        client.show(place / "good.mp4")
    begin = greedy.events["question", "submit"]
    times = unlocked.service.upload_store.model_time
    asking = threading.Thread(target=other.ask, args=("a slow one",))
    asking.start()
    wait_for(lambda: any(turn.text for turn in unlocked.service.session(other.session).turns))
    times.add("127.0.0.7", 30.0)
    call = {"data": ["rlaif", 0.0, 1.0, 16], "fn_index": greedy.after[begin], "session_hash": greedy.session}
    status, body = greedy.post("/gradio_api/queue/join", call)
    assert status == 429 and b"others want the model" in body
    times._due["127.0.0.7"] = time.monotonic() + 50.0
    began = time.monotonic()
    assert turns(greedy.ask("mine?")) == [("mine?", "rlaif heard: mine?", "")]
    assert not asking.is_alive() or time.monotonic() - began < 30
    asking.join()
    assert times._due["127.0.0.8"] > began + 3 * model_time.WAIT_PER_SECOND  # its answer took four seconds
