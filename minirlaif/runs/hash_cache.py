"""Hashes of large files, computed again only where size, times or inode differ from those of the last time. No torch."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlaif.runs.io import read_text, sha256, write_atomic

DIGITS = 16  # of the sha256 of a file, as in ClipInfo.id


def cache_folder() -> Path:
    """The user's folder of what is fetched or computed once for all runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "minirlaif"


class HashCache:
    """The first DIGITS hex digits of the sha256 of files. file: remembers them; where it cannot be read or written, files are
    hashed again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            values = json.loads(read_text(file)).items()
            self._known = {path: value for path, value in values if isinstance(value, list) and value}

    def digest(self, path: str) -> str:
        """Of a file by its absolute path. OSError: it cannot be read."""
        stamp = _stamp(path)
        if self._known.get(path, [])[:-1] != stamp:
            self._known[path] = self._new[path] = [*stamp, sha256(Path(path))[:DIGITS]]
        return str(self._known[path][-1])

    def put(self, digests: Mapping[str, str]) -> None:
        """Remember digests that were computed elsewhere just now."""
        for path, digest in digests.items():
            with suppress(OSError):
                self._new[path] = [*_stamp(path), digest]

    def save(self) -> None:
        """Write what was new."""
        if self._new:
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._file, json.dumps({**self._known, **self._new}))


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
