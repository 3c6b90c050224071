"""Progress on the terminal while a stage works, with the time left. Numbers for programs go to metrics.jsonl."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from minirlaif import distributed

T = TypeVar("T")


def progress(iterable: Iterable[T], total: int, label: str, initial: int = 0) -> Iterator[T]:
    """Pass items on and report to stderr: a tqdm bar on a terminal, else one line for about every tenth of `total`.

    `initial` items were done before (a resumed stage), so they count as done but not for the time left. Of several
    processes only the leader reports.
    """
    if not distributed.leads():
        yield from iterable
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=label, initial=initial, dynamic_ncols=True)
        return
    started, shown = time.monotonic(), 10 * initial // max(total, 1)
    for done, item in enumerate(iterable, start=initial + 1):
        yield item
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            spent = time.monotonic() - started
            left = spent / (done - initial) * max(total - done, 0)
            print(f"{label}: {done}/{total}, {clock(spent)} spent, about {clock(left)} left", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as text: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
