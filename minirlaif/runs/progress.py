"""Progress on the terminal while a command works, with the time left, and the times of loops for an estimate. Numbers for
programs go to metrics.jsonl."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from minirlaif import distributed

T = TypeVar("T")
QUIET_SECONDS = 30.0  # no command that works is silent for longer


@dataclass
class LoopTimes:
    """Seconds of every item of each loop, by the loop's label, and of what is timed apart from the items, by name."""

    items: dict[str, list[float]] = field(default_factory=dict)
    apart: dict[str, list[float]] = field(default_factory=dict)


class _Terminal:
    """What was printed last and when, and what the loops of this process are measured for."""

    last = 0.0  # time.monotonic() of the last line
    line = ""  # where the loop in progress is
    bar = False  # a tqdm bar is on the screen, which shows the time by itself
    after = 0.0  # seconds that the stages after this one will take, as far as they were measured
    times: LoopTimes | None = None


def progress(iterable: Iterable[T], total: int, label: str, initial: int = 0) -> Iterator[T]:
    """Pass items on and report to stderr: a tqdm bar on a terminal, else a line for about every tenth of `total`, and one every
    half minute.

    `initial` items were done before (a resumed stage), so they count as done but not for the time left. Of several
    processes only the leader reports.
    """
    if _Terminal.times is not None:
        yield from _timed(iterable, _Terminal.times, label)
    elif not distributed.leads():
        yield from iterable
    elif sys.stderr.isatty():
        yield from _bar(iterable, total, label, initial)
    else:
        yield from _lines(iterable, total, label, initial)


def _bar(iterable: Iterable[T], total: int, label: str, initial: int) -> Iterator[T]:
    from tqdm import tqdm

    _Terminal.bar = True
    try:
        yield from tqdm(iterable, total=total, desc=label, initial=initial, dynamic_ncols=True)
    finally:
        _Terminal.bar = False


def _lines(iterable: Iterable[T], total: int, label: str, initial: int) -> Iterator[T]:
    started, shown = time.monotonic(), 10 * initial // max(total, 1)
    try:
        for done, item in enumerate(iterable, start=initial + 1):
            _Terminal.line = f"{label}: {done - 1}/{total}"
            yield item
            tenth, now = 10 * done // max(total, 1), time.monotonic()
            if tenth > shown or now - _Terminal.last >= 0.8 * QUIET_SECONDS:  # before the line of `heartbeat`
                shown, spent = tenth, now - started
                left = spent / (done - initial) * max(total - done, 0)
                later = f", {clock(left + _Terminal.after)} with the stages after it" if _Terminal.after else ""
                print_line(f"{label}: {done}/{total}, {clock(spent)} spent, about {clock(left)} left{later}")
    finally:
        _Terminal.line = ""


def print_line(text: str) -> None:
    """Print to stderr at once; `heartbeat` waits from here on."""
    _Terminal.last = time.monotonic()
    print(text, file=sys.stderr, flush=True)


@contextmanager
def heartbeat(label: str) -> Iterator[None]:
    """While the block works, a line on stderr whenever nothing was reported for half a minute. label: what works."""
    started = _Terminal.last = time.monotonic()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(max(QUIET_SECONDS / 10, _Terminal.last + QUIET_SECONDS - time.monotonic())):
            if time.monotonic() - _Terminal.last >= QUIET_SECONDS and not _Terminal.bar:
                print_line(f"{_Terminal.line or label}: working, {clock(time.monotonic() - started)} since the start")

    thread = threading.Thread(target=watch, daemon=True)
    if distributed.leads():
        thread.start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def stages_after(seconds: float) -> Iterator[None]:
    """Lines of progress also state the time left with `seconds` of stages after this one; 0: not known."""
    _Terminal.after = seconds
    try:
        yield
    finally:
        _Terminal.after = 0.0


@contextmanager
def loop_times() -> Iterator[LoopTimes]:
    """Times the loops of the block in place of reporting them."""
    _Terminal.times = LoopTimes()
    try:
        yield _Terminal.times
    finally:
        _Terminal.times = None


@contextmanager
def timed_apart(name: str) -> Iterator[None]:
    """Work inside a loop's item that does not come with every item, such as a look at the dev prompts: timed under `name`."""
    started = time.monotonic()
    yield
    if _Terminal.times is not None:
        _Terminal.times.apart.setdefault(name, []).append(time.monotonic() - started)


def _timed(iterable: Iterable[T], times: LoopTimes, label: str) -> Iterator[T]:
    started, before = time.monotonic(), _apart(times)
    for item in iterable:  # an iterable may do the work itself, so its time counts
        yield item
        times.items.setdefault(label, []).append(time.monotonic() - started - (_apart(times) - before))
        started, before = time.monotonic(), _apart(times)


def _apart(times: LoopTimes) -> float:
    return sum(map(sum, times.apart.values()))


def clock(seconds: float) -> str:
    """Seconds as text: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
