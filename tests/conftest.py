"""Every test: one thread, no network, no cache of the user's, temporary run folders."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything loads torch. With more threads than cores each small step takes many times longer.
os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)
_CACHE = tempfile.mkdtemp(prefix="minirlaif-tests-")
os.environ.update(HF_HOME=_CACHE, MPLCONFIGDIR=_CACHE)

ROOT = Path(__file__).parents[1]


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_runtest_setup() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def is_local(family: int, address: Any) -> bool:
    """Unix sockets and loopback: child processes and the trackers' writers use them."""
    return family == getattr(socket, "AF_UNIX", None) or str(address[0]) in ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def _network_closed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        real_lookup = socket.getaddrinfo

        def lookup(host: Any, *rest: Any, **named: Any) -> Any:
            if host is not None and not is_local(socket.AF_INET, (host,)):
                raise RuntimeError(f"a test asked for the network address of {host}")
            return real_lookup(host, *rest, **named)

        patch.setattr(socket, "getaddrinfo", lookup)
        yield


def _guarded(real: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any) -> Any:
        if not is_local(self.family, address):
            raise RuntimeError(f"a test opened a connection to {address}")
        return real(self, address)

    return connect


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """An empty folder for run folders."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this interpreter in a folder of its own: `python("-m", "minirlaif", ...)`."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
        return subprocess.run([sys.executable, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)

    return call
