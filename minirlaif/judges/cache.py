"""Replies of judges on disk: each is asked and paid for once. One SQLite file, written after every reply, safe for threads.

A reply's key is the hash of whoever was asked and of every word of the question: any run that asks the same finds it again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.judges.base import Reply
from minirlaif.judges.rubric import Message
from minirlaif.runs.io import disk_is_full


class Replies:
    """Kept replies. Closes with `close`; the file may be opened by several processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, version TEXT, reply TEXT)")
        except sqlite3.DatabaseError as error:
            if disk_is_full(error, path.parent):
                raise
            raise UserError(
                f"{path}: not a file of judges' replies ({error}); move it away, what it held is asked again"
            ) from None

    @staticmethod
    def key(signature: Mapping[str, Any], messages: Sequence[Message]) -> str:
        """Hash of everything that a reply depends on."""
        return hashlib.sha256(json.dumps([dict(signature), list(messages)], sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Reply | None:
        """The reply kept under a key."""
        with self._lock:
            found = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(**json.loads(found[0])) if found else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; on disk when this returns."""
        with self._lock:
            self._db.execute("REPLACE INTO replies VALUES (?, ?, ?)", (key, reply.version, json.dumps(asdict(reply))))
            self._db.commit()

    def drop(self, version: str) -> int:
        """Forget every reply of a model that called itself so; returns how many."""
        with self._lock:
            count = self._db.execute("DELETE FROM replies WHERE version = ?", (version,)).rowcount
            self._db.commit()
        return count

    def close(self) -> None:
        """Close the file."""
        self._db.close()
