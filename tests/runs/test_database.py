"""SQLite files that several processes open, that are locked, damaged or cannot be written."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from minirlaif.errors import UserError
from minirlaif.judges.cache import Replies, Reply
from minirlaif.runs import database
from minirlaif.runs.database import database_errors, open_database


def test_a_database_that_is_opened_by_many_at_once(tmp_path: Path) -> None:
    """Without another try SQLite refuses one opening of a few hundred."""
    errors: list[sqlite3.Error] = []

    def opened(path: Path, start: threading.Barrier) -> None:
        start.wait()
        try:
            open_database(path).close()
        except sqlite3.Error as error:
            errors.append(error)

    for number in range(300):
        start = threading.Barrier(4)
        threads = [threading.Thread(target=opened, args=(tmp_path / f"{number}.sqlite", start)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_file_that_another_process_holds_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
    replies = Replies(tmp_path / "r.sqlite")
    with sqlite3.connect(tmp_path / "r.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="r.sqlite: another process holds it .*; stop that process, then run") as caught:
            replies.put("k", Reply("text", "v", "2026-01-01"))
        assert "\n" not in str(caught.value)
        other.execute("ROLLBACK")
    replies.put("k", Reply("text", "v", "2026-01-01"))
    assert replies.get("k") == Reply("text", "v", "2026-01-01")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.OperationalError("attempt to write a readonly database"), "cannot be written .*; make .* writable"),
        (sqlite3.OperationalError("unable to open database file"), "cannot be written"),
        (sqlite3.OperationalError("database is locked"), "another process holds it"),
        (sqlite3.DatabaseError("database disk image is malformed"), "damaged, or not such a file .*; delete it"),
    ],
)
def test_errors_of_sqlite_are_one_line_with_a_remedy(error: sqlite3.Error, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"x.sqlite: {words}"), database_errors(tmp_path / "x.sqlite", "delete it"):
        raise error


def test_a_full_disk_is_left_to_the_stage(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError), database_errors(tmp_path / "x.sqlite", "delete it"):
        raise sqlite3.OperationalError("database or disk is full")


def test_a_damaged_reply_is_asked_for_again(tmp_path: Path) -> None:
    replies = Replies(tmp_path / "r.sqlite")
    replies.put("k", Reply("text", "v", "2026-01-01"))
    with sqlite3.connect(tmp_path / "r.sqlite") as other:
        other.execute("UPDATE replies SET reply = substr(reply, 1, 9)")
    assert replies.get("k") is None
