"""Fixtures of the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minirlaif.app.conversations import ChatService
from minirlaif.app.engine_thread import EngineThread
from minirlaif.app.uploads import Limits, UploadStore
from minirlaif.app.votes import VoteStore
from tests.fixtures import chat_run
from tests.fixtures.browser import FakeEngine, Served, serving


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    chat_run.world_clip(folder / "good.mp4")
    return folder


@pytest.fixture(scope="module")
def unlocked(place: Path) -> Iterator[Served]:
    with serving(FakeEngine(), None, place / "none", place / "uploads2") as served:
        yield served
