"""Messages to a chat model that judges, and its replies on disk: each is asked and paid for once.

One SQLite file, written after every reply, safe for threads. A reply's key is the hash of the judge's signature and of the
messages: any run that asks the same question reuses the reply.
"""

import json
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from minirlaif.runs.database import database_errors, open_database


@dataclass(frozen=True)
class Reply:
    """A model's reply. version: of the model that answered; date: UTC day; tokens: as counted by the model, 0 where unknown; cut:
    whether it ended at the limit of tokens, where the model says so."""

    text: str
    version: str
    date: str
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = False


class Refused(Exception):
    """This one question gets no reply, however often it is sent (too long, against a rule of the endpoint); the text says why."""


def today() -> str:
    """The date of a reply."""
    return datetime.now(UTC).date().isoformat()


class Replies:
    """Kept replies, in memory where no file is named. Several processes may open the file."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock, path = threading.Lock(), path or Path(":memory:")
        self._errors = partial(database_errors, path, "move or delete it, and the judge is asked again")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._db = open_database(path, check_same_thread=False)
            self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, version TEXT, reply TEXT)")

    def get(self, key: str) -> Reply | None:
        """The reply kept under a key."""
        with self._errors(), self._lock:
            row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        try:
            return Reply(**json.loads(row[0])) if row else None
        except (ValueError, TypeError):  # damaged: it is asked for again
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; on disk when this returns."""
        with self._errors(), self._lock, self._db:
            self._db.execute("REPLACE INTO replies VALUES (?, ?, ?)", (key, reply.version, json.dumps(asdict(reply))))

    def drop(self, version: str) -> int:
        """Delete every reply of a model that gave this version; returns how many."""
        with self._errors(), self._lock, self._db:
            return self._db.execute("DELETE FROM replies WHERE version = ?", (version,)).rowcount

    def close(self) -> None:
        """Close the file."""
        self._db.close()
