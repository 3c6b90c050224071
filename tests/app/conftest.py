"""Fixtures of the app without its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minirlaif.app.conversations import ChatService
from minirlaif.app.engine_thread import EngineThread
from minirlaif.app.uploads import Limits, UploadStore
from minirlaif.app.votes import VoteStore
from tests.fixtures.browser import FakeEngine


@pytest.fixture
def engine_thread() -> Iterator[EngineThread]:
    made = EngineThread(FakeEngine)
    yield made
    made.close()


@pytest.fixture
def upload_store(tmp_path: Path) -> Iterator[UploadStore]:
    (tmp_path / "uploads").mkdir()
    made = UploadStore(tmp_path / "uploads", Limits(1, 60.0, 100 * 100), seconds=10.0)
    yield made
    made.close()


@pytest.fixture
def service(engine_thread: EngineThread, upload_store: UploadStore, tmp_path: Path) -> ChatService:
    return ChatService(engine_thread, upload_store, VoteStore(tmp_path / "votes"))
