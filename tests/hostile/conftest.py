"""Tests marked `exclusive` compare waits of two times: no other test of this tier runs beside them, in whatever worker, nor do
its fixtures."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    run = getattr(item.config, "workerinput", {}).get("testrunuid", "alone")  # the same for all workers
    with (Path(tempfile.gettempdir()) / f"minirlaif-hostile-{run}.lock").open("w") as file:
        is_exclusive = item.get_closest_marker("exclusive") is not None
        fcntl.flock(file, fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH)
        return (yield)
