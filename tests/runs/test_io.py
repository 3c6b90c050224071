"""JSON Lines files, and databases that several processes open."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from minirlaif import config
from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.runs.database import database_errors, open_database, read_only
from minirlaif.runs.io import open_file, read_json, read_jsonl, sha256, write_atomic
from minirlaif.runs.run import Run
from tests.fixtures import forked, tiny
from tests.fixtures.forged import INSTEAD, replace_with


def test_rows_in_order_without_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n\n{"n": 2}', encoding="utf-8")  # ends of lines in other standards
    assert read_jsonl(path) == [{"text": "a\u2028b\u0085c"}, {"n": 2}]


def test_a_damaged_line_is_named_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n\n{"n": 2}\n{"n":')
    with pytest.raises(UserError, match=r"rows.jsonl:4: not valid JSON"):
        read_jsonl(path)
    assert read_jsonl(path, skip_damaged=True) == [{"n": 1}, {"n": 2}]
    path.write_bytes(b'{"n": 1}\n{"n": "\xc3')
    with pytest.raises(UserError, match="cannot be read"):
        read_jsonl(path)
    assert read_jsonl(path, skip_damaged=True) == [{"n": 1}]


def test_a_missing_file(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none.jsonl", missing_ok=True) == []
    with pytest.raises(UserError, match=r"none.jsonl: cannot be read"):
        read_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("what", INSTEAD)
def test_what_is_no_file_is_refused_and_not_waited_for(what: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def read() -> int:
        replace_with(path, what)
        for function in (open_file, sha256):
            with pytest.raises(OSError):
                function(path)
        for function in (read_json, read_jsonl, config.load):
            with pytest.raises(UserError, match=r"config\.yaml: "):
                function(path)
        with pytest.raises(UserError, match=r"config\.yaml: "), database_errors(path, "delete it"):
            if "link" in what:
                raise UserError("config.yaml: made anew by SQLite")
            open_database(path)
        return 0

    assert forked.forked(read, 20).code == 0


@pytest.mark.parametrize("what", INSTEAD)
@pytest.mark.parametrize("name", ["config.yaml", "sft.partial/state/position.json", "sft.partial/metrics.jsonl", "report.json"])
def test_status_of_a_run_with_what_is_no_file(name: str, what: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    tiny.finished(run, "world")
    for file in ("config.yaml", "report.json", "report.html", name):
        (run.root / file).parent.mkdir(parents=True, exist_ok=True)
        (run.root / file).write_text("{}")
    replace_with(run.root / name, what)
    outcome = forked.forked(lambda: main.main(["status", "--run", "a", "--runs-dir", str(tmp_path)]), 20)
    assert outcome.code == 0 and "world" in outcome.text, outcome.text


def test_a_link_beside_a_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "config.yaml.new").symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "config.yaml", "a: 1")
    assert (tmp_path / "elsewhere").read_text() == "precious" and (tmp_path / "config.yaml").read_text() == "a: 1"


def test_a_database_that_never_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite"
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS path FROM c"
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE VIEW clips AS {endless}")
    with pytest.raises(sqlite3.OperationalError, match="interrupted"), read_only(path, 0.2) as reading:
        reading.execute("SELECT count(*) FROM clips").fetchone()
    with pytest.raises(UserError, match=r"features\.sqlite: .*views or triggers"), database_errors(path, "delete it"):
        open_database(path)
