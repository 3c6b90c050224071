"""Child processes, a few at a time, each after the jobs that it needs. No torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minirlaif.errors import UserError
from minirlaif.runs.progress import clock

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """The work of one child process.

    needs: names of jobs that must be done before. command: called when the job starts; the command line, or None when there is
    nothing to do. log: file for its output. weight: about how many seconds it takes.
    """

    name: str
    command: Callable[[], Sequence[str] | None]
    log: Path
    needs: tuple[str, ...] = ()
    weight: int = 60


def run_jobs(jobs: Sequence[Job], at_once: int, failed: dict[str, str]) -> Iterator[float]:
    """Run jobs, at most `at_once` at a time. Yields, several times a second, how much of their weight is done.

    A job that fails is put into `failed` with the last line of its log; jobs that need it are not started and put there too. When
    the caller stops early, running children are stopped; the same command resumes them from their last saved step.
    """
    waiting = list(jobs)
    ended: dict[str, int] = {}  # weights of jobs that are done or failed
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            for job in list(waiting):
                missing = next((name for name in job.needs if name in failed), None)
                if missing is None and (len(running) >= at_once or not ended.keys() >= set(job.needs)):
                    continue
                waiting.remove(job)
                if missing is not None:
                    failed[job.name] = f"needs {missing}"
                elif child := _started(job, failed):
                    running[job] = child, time.monotonic()
                    continue
                ended[job.name] = job.weight
            for job, (child, since) in list(running.items()):
                if child.poll() is not None:
                    del running[job]
                    ended[job.name] = job.weight
                    if child.returncode:
                        lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
                        last = next(filter(str.strip, reversed(lines)), "").removeprefix("minirlaif: ")
                        failed[job.name] = last or f"ended with {child.returncode}"
                    took = clock(time.monotonic() - since)
                    print(f"{job.name}: {'failed' if job.name in failed else 'done'} after {took}", flush=True)
            # A job that runs counts for the time it took so far, but never as done.
            elapsed = (min(0.9 * job.weight, time.monotonic() - since) for job, (_, since) in running.items())
            yield sum(ended.values()) + sum(elapsed)
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for child, _ in running.values():
            child.terminate()
        for child, _ in running.values():
            child.wait()


def _started(job: Job, failed: dict[str, str]) -> subprocess.Popen[bytes] | None:
    try:
        words = job.command()
    except UserError as error:
        failed[job.name] = str(error)
        return None
    if words is None:
        return None
    job.log.parent.mkdir(parents=True, exist_ok=True)
    one = {"OMP_NUM_THREADS": "1"}  # a small model is faster on one thread, and there are other children
    with job.log.open("ab") as log:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**one, **os.environ}, preexec_fn=_end_with_parent
        )


def _end_with_parent() -> None:
    """In the child: stop when the parent is gone, also when it was killed. Linux only; elsewhere the child runs to its end."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
