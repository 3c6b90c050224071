"""JSON Lines files, and databases that several processes open."""

from __future__ import annotations

from pathlib import Path

import pytest

from minirlaif.errors import UserError
from minirlaif.runs.io import read_jsonl


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
