"""SQLite files of a run: opened by several processes at once, and every failure in one line with the file. No torch."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from minirlaif.errors import UserError
from minirlaif.runs.io import disk_is_full

WAIT_SECONDS = 60.0  # for another process


def open_database(path: Path, check_same_thread: bool = True) -> sqlite3.Connection:
    """A SQLite file with a write-ahead log, made when missing; several processes may open it at once. Where two of them switch
    the log on, SQLite refuses one without waiting, so that is tried again for a minute."""
    if path.exists() and not path.is_file():
        raise sqlite3.DatabaseError("a pipe, a device or a folder lies there")
    database = sqlite3.connect(path, timeout=WAIT_SECONDS, check_same_thread=check_same_thread)
    last = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            # Of a run that others made: a query that never ends may lie behind the name of a table.
            if database.execute("SELECT 1 FROM sqlite_master WHERE type IN ('view', 'trigger')").fetchone():
                raise sqlite3.DatabaseError("views or triggers lie in it")
            database.execute("PRAGMA journal_mode=WAL")
            return database
        except sqlite3.DatabaseError as error:
            if "locked" not in str(error) or time.monotonic() > last:
                database.close()
                raise
            time.sleep(0.05)


@contextmanager
def read_only(path: Path, seconds: float = 2.0) -> Iterator[sqlite3.Connection]:
    """A SQLite file to look at; sqlite3.Error for what takes longer: in a run that others made, a query may never end."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=seconds)) as database:
        last = time.monotonic() + seconds
        database.set_progress_handler(lambda: time.monotonic() > last, 10_000)
        yield database


@contextmanager
def database_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn SQLite's errors within the block into a UserError. remedy: what to do about a file of damaged content. A full disk
    is left to the stage, which can be resumed."""
    try:
        yield
    except sqlite3.Error as error:
        if disk_is_full(error, path.parent if path.parent.is_dir() else Path()):
            raise
        text = str(error)
        if "locked" in text or "busy" in text:
            reason = f"another process holds it ({text}); stop that process, then run the command again"
        elif type(error) is sqlite3.OperationalError and any(word in text for word in ("readonly", "unable to open", "disk I/O")):
            reason = f"cannot be written ({text}); make {path.parent} writable, then run the command again"
        else:
            reason = f"damaged, or not such a file ({text}); {remedy}"
        raise UserError(f"{path}: {reason}") from None
