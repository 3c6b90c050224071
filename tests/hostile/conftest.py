"""Tests marked `exclusive` compare waits of two times: no other test of this tier runs beside them, in whatever worker."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    workers = tmp_path_factory.getbasetemp()
    common = workers.parent if hasattr(request.config, "workerinput") else workers
    with (common / "processor.lock").open("w") as file:
        is_exclusive = request.node.get_closest_marker("exclusive") is not None
        fcntl.flock(file, fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH)
        yield
