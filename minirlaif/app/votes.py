"""What people voted: a file that `reward` takes as it is (`data.preferences`), with the clips beside it. No torch.

runs/NAME/votes/votes.jsonl    a row per vote, see `Vote.row`
runs/NAME/votes/clips/         the clips that were voted on, by content
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from minirlaif.data.formats import BadRow, parse_preference
from minirlaif.errors import UserError
from minirlaif.runs.io import read_jsonl, sha256
from minirlaif.stats import wilson

CHOICES = {"A": 1, "B": 2, "tie": "tie", "both bad": "both bad"}  # on the page -> `preference` of a row


@dataclass(frozen=True)
class Vote:
    """A vote on two answers as they stood on the page. models: who answered A and B; judge: its choice in the same letters, ""
    where it was not asked; facts: what else is kept (texts and numbers)."""

    clip: Path
    question: str
    answers: tuple[str, str]
    models: tuple[str, str]
    choice: str  # a key of CHOICES
    judge: str = ""
    context: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def row(self, video: str) -> dict[str, Any]:
        """The line of the file: VLM-RLAIF's preference format with what else is known as extra columns."""
        return {
            "id": f"vote-{uuid4().hex[:16]}",
            "videos": [video],
            "prompt": self.question,
            "output_1": self.answers[0],
            "output_2": self.answers[1],
            "preference": CHOICES[self.choice],
            "context": self.context,
            "model_1": self.models[0],
            "model_2": self.models[1],
            "judge": CHOICES.get(self.judge, self.judge),
            **self.facts,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }


class VoteStore:
    """The votes of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    @property
    def file(self) -> Path:
        """Where the rows are."""
        return self.folder / "votes.jsonl"

    def add(self, vote: Vote) -> None:
        """Append a vote and keep its clip.

        Raises:
            UserError: `reward` would refuse the row, which would spoil the whole file.
        """
        name = f"clips/{sha256(vote.clip)[:16]}{vote.clip.suffix.lower()}"
        row = vote.row(name)
        try:
            parse_preference(row | {"preference": 1})  # a vote without a winner has the same texts
        except BadRow as error:
            raise UserError(f"this vote cannot be kept: {error}") from None
        with self._lock:
            kept = self.folder / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not kept.is_file():
                part = kept.with_suffix(".part")
                shutil.copyfile(vote.clip, part)
                part.replace(kept)
            with self.file.open("ab+") as file:
                end, missing = _whole_rows(file)
                file.truncate(end)
                file.write((missing + json.dumps(row, ensure_ascii=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows so far."""
        return read_jsonl(self.file, missing_ok=True, skip_damaged=True)


def _whole_rows(file: IO[bytes]) -> tuple[int, str]:
    """Bytes of a file up to the end of its last whole row, and the end of line that this row lacks (some editors take it away).
    What comes behind was cut short by a full disk or a kill."""
    file.seek(0)
    data = file.read()
    start = data.rfind(b"\n") + 1
    try:
        json.loads(data[start:])
    except ValueError:
        return start, ""
    return len(data), "\n"


@dataclass(frozen=True)
class Agreement:
    """What votes say: how often the aligned model won, and how often judge and people chose alike.

    wins, losses: of the aligned model against SFT; ties, bad: votes without a winner; alike, both_decided: votes of which
    people and the judge both named a winner, and those in which it was the same.
    """

    votes: int
    wins: int
    losses: int
    ties: int
    bad: int
    alike: int
    both_decided: int

    @property
    def win_interval(self) -> tuple[float, float] | None:
        """95 % interval of the share of wins among decided votes."""
        return wilson(self.wins, self.wins + self.losses) if self.wins + self.losses else None

    @property
    def alike_interval(self) -> tuple[float, float] | None:
        """95 % interval of the agreement."""
        return wilson(self.alike, self.both_decided) if self.both_decided else None


def agreement(rows: Sequence[Mapping[str, Any]]) -> Agreement:
    """Count votes."""
    decided = [row for row in rows if row.get("preference") in (1, 2)]
    winners = [row.get(f"model_{row['preference']}") for row in decided]
    judged = [row for row in decided if row.get("judge") in (1, 2)]
    return Agreement(
        votes=len(rows),
        wins=winners.count("rlaif"),
        losses=winners.count("sft"),
        ties=sum(row.get("preference") == "tie" for row in rows),
        bad=sum(row.get("preference") == "both bad" for row in rows),
        alike=sum(row["judge"] == row["preference"] for row in judged),
        both_decided=len(judged),
    )
