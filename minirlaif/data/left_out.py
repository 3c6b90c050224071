"""What a run leaves out of its data, with reasons: one file at the run's root, and the rules that allow it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.errors import UserError
from minirlaif.runs import clips
from minirlaif.runs.io import write_atomic
from minirlaif.runs.records import checked_rows
from minirlaif.runs.run import Run

FILE = "left_out.jsonl"
KINDS = ("bad row", "duplicate", "clip")  # in the order of the report


@dataclass(frozen=True)
class LeftOut:
    """A row (file and number) or a clip (a file without a number) that is not used."""

    kind: str  # one of KINDS
    file: str
    row: int
    reason: str


@dataclass
class RowRules:
    """How rows are read.

    ignore: columns to pass over; max_bad: share of a file's rows that may be bad; max_missing: share of its clips, or of the rows
    about them, that may be missing; left_out: what was left out, filled by the reader.
    """

    ignore: Sequence[str] = ()
    max_bad: float = 0.0
    max_missing: float = 0.0
    left_out: list[LeftOut] = field(default_factory=list)


def write(root: Path, entries: Iterable[LeftOut], is_replaced: Callable[[LeftOut], bool]) -> None:
    """Bring RUN/left_out.jsonl up to date: the entries, and those of before that are not replaced by them. Without any there is
    no file. Of several processes the leader writes. Prints what is new, in a line for each kind."""
    if not distributed.leads() or not root.is_dir():
        return
    path = root / FILE
    before = [LeftOut(row["kind"], row["file"], row["row"], row["reason"]) for row in _rows(root)]
    stage = root / "stage"  # any: they lie side by side
    kept = [entry for entry in before if not any(map(is_replaced, (entry, _with(entry, clips.located(stage, entry.file)))))]
    # What lies in the run is named from there: in a copy of the run it is the same entry.
    named = (_with(entry, clips.stored(root, stage, entry.file)) if os.path.isabs(entry.file) else entry for entry in entries)
    after = list(dict.fromkeys([*kept, *named]))
    if after == before:
        return
    if not after:
        os.unlink(path)
        return
    text = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in after)
    write_atomic(path, text)
    new = [entry for entry in after if entry not in before]
    for kind, count in Counter(entry.kind for entry in new).items():
        print(f"left out: {count} {kind}{'s' * (count > 1)}; {path} has the reasons", flush=True)


def _rows(root: Path) -> list[dict[str, Any]]:
    """The lines of the file. UserError: one is none."""
    try:
        if not os.path.lexists(root / FILE):
            return []
        if not (root / FILE).is_file():
            raise UserError(f"{root / FILE}: not a file")
        return checked_rows(root, "", FILE, ("kind", "file", "row", "reason"))
    except UserError as error:
        fault = str(error).partition("; make the stage")[0]
        anew = "stages that are made after that list what they leave out"
        raise UserError(f"{fault}; delete it and go on with `{Run(root).command('report')}`; {anew}") from None


def _with(entry: LeftOut, file: str) -> LeftOut:
    return replace(entry, file=file)


def counts(root: Path) -> dict[str, int]:
    """How many entries of each kind the file of a run has; empty without one. UserError: it is damaged."""
    kinds = Counter(row["kind"] for row in _rows(root))
    return {kind: kinds[kind] for kind in KINDS if kinds[kind]}
