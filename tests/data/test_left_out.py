"""What is left out of the data: allowed up to a share, listed with reasons, counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minirlaif.data import left_out
from minirlaif.data.dataset import load_samples
from minirlaif.data.left_out import LeftOut, RowRules
from minirlaif.data.preflight import readable
from minirlaif.errors import UserError
from minirlaif.types import Sample, Turn
from minirlaif.video.reader import ClipInfo, UnreadableClip
from tests.fixtures.forged import INSTEAD, replace_with


@pytest.fixture
def source(tmp_path: Path) -> str:
    """20 rows about 3 clips: row 4 has no answer, the clip of row 7 is missing, row 9 repeats row 8."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"clip")
    rows = [{"video": f"{'ab'[n % 2]}.mp4", "question": f"Question {n}?", "answer": "So."} for n in range(1, 21)]
    rows[3]["answer"], rows[6]["video"], rows[8] = "", "gone.mp4", rows[7]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


def test_nothing_is_left_out_by_default_but_repetitions(source: str) -> None:
    with pytest.raises(UserError) as caught:
        load_samples(source)
    assert "2 bad rows, the first is row 4: answer 1 is empty" in str(caught.value) and "row 7: clip" in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "missing", "goes_on"), [(0.05, 0.05, True), (0.04, 1.0, False), (1.0, 0.04, False), (0.5, 0.34, True)]
)
def test_shares_of_bad_rows_and_of_missing_clips(source: str, bad: float, missing: float, goes_on: bool) -> None:
    rules = RowRules(max_bad=bad, max_missing=missing)
    if not goes_on:
        with pytest.raises(UserError):
            load_samples(source, rules=rules)
        assert not rules.left_out
        return
    assert len(load_samples(source, rules=rules)) == 17
    assert [(entry.kind, entry.row) for entry in rules.left_out] == [("bad row", 4), ("clip", 7), ("duplicate", 9)]
    assert all(entry.file == source and entry.reason for entry in rules.left_out)


def test_more_bad_rows_than_are_allowed(source: str) -> None:
    with pytest.raises(
        UserError,
        match=r"rows.jsonl \(1 bad row and 1 missing clip of 20 rows are more than data.max_bad_rows=0.04 and"
        r" video.max_unreadable=0 allow\): 2 bad rows, the first is row 4",
    ):
        load_samples(source, rules=RowRules(max_bad=0.04))


def test_all_rows_bad_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    with pytest.raises(UserError, match="holds no rows"):
        load_samples(str(tmp_path / "rows.jsonl"), rules=RowRules(max_bad=1.0))


def test_the_list_follows_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = LeftOut("bad row", "one.jsonl", 3, "empty"), LeftOut("duplicate", "two.jsonl", 4, "repeats row 1")
    left_out.write(tmp_path, [one], lambda entry: entry.file == "one.jsonl")
    left_out.write(tmp_path, [two], lambda entry: entry.file == "two.jsonl")
    assert left_out.counts(tmp_path) == {"bad row": 1, "duplicate": 1}
    assert "left out: 1 duplicate;" in capsys.readouterr().out
    left_out.write(tmp_path, [two], lambda entry: entry.file == "two.jsonl")  # read again: nothing new, nothing printed
    assert capsys.readouterr().out == ""
    left_out.write(tmp_path, [], lambda entry: entry.file == "one.jsonl")  # the file was put right
    assert left_out.counts(tmp_path) == {"duplicate": 1}
    left_out.write(tmp_path, [], lambda entry: True)
    assert not (tmp_path / left_out.FILE).exists() and left_out.counts(tmp_path) == {}


class Clips:
    """Clips whose name begins with "bad" cannot be read."""

    def info(self, path: str) -> ClipInfo:
        if Path(path).name.startswith("bad"):
            raise UnreadableClip(path, "cut short")
        return ClipInfo(path, "0", 1.0, 8, 8, 8.0, "av")


def test_unreadable_clips_count_by_clips_or_by_rows(tmp_path: Path) -> None:
    rows = [Sample(str(n), "bad.mp4" if n == 0 else "good.mp4", (Turn("Why?"),)) for n in range(10)]
    with pytest.raises(UserError, match="1 of 2 clips cannot be read: bad.mp4: cut short"):
        readable(rows, Clips(), 0.09)
    assert len(readable(rows, Clips(), 0.1, tmp_path)) == 9  # one row of ten, though one clip of two
    (entry,) = [json.loads(line) for line in (tmp_path / left_out.FILE).read_text().splitlines()]
    assert entry == {"kind": "clip", "file": "bad.mp4", "row": 0, "reason": "cut short"}


def test_a_copied_run_lists_a_clip_of_its_own_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for run in (tmp_path / "run", tmp_path / "run", tmp_path / "copy"):
        if run.name == "copy":
            shutil.copytree(tmp_path / "run", run)
        rows = [Sample(name, f"{run}/votes/clips/{name}.mp4", (Turn("Why?"),)) for name in ("bad", "good")]
        assert len(readable(rows, Clips(), 0.5, run)) == 1
        (entry,) = [json.loads(line) for line in (run / left_out.FILE).read_text().splitlines()]
        assert entry["file"] == "../votes/clips/bad.mp4"


GOOD = {"kind": "clip", "file": "../gone.mp4", "row": 0, "reason": "does not exist"}


@pytest.mark.parametrize("bad", [[], 3, {}, {**GOOD, "kind": []}, {**GOOD, "row": "1"}])
def test_a_row_that_says_nothing_of_what_was_left_out_is_refused(bad: Any, tmp_path: Path) -> None:
    """Passed over, it would be one less in the report, and gone after the next stage."""
    path = tmp_path / left_out.FILE
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, bad)))
    for use in (lambda: left_out.counts(tmp_path), lambda: left_out.write(tmp_path, [], lambda entry: False)):
        with pytest.raises(UserError, match=r"left_out\.jsonl: row 2.*; delete it and go on with `python -m minirlaif report"):
            use()
    path.write_text(json.dumps({**GOOD, "more": 1}) + "\n")
    assert left_out.counts(tmp_path) == {"clip": 1}


@pytest.mark.parametrize("what", INSTEAD)
def test_what_is_no_file_in_its_place_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / left_out.FILE
    path.write_text("")
    replace_with(path, what)
    with pytest.raises(UserError, match=r"left_out\.jsonl: .*; delete it"):
        left_out.counts(tmp_path)
