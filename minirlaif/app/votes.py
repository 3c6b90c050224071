"""Votes of people, in a file that `reward` reads directly (`data.preferences`), with their clips. No torch.

runs/NAME/votes/votes.jsonl    one row per vote, see `VoteStore.add`
runs/NAME/votes/clips/         clips of the votes, named by content hash
"""

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from minirlaif.data.formats import BadRow, parse_preference
from minirlaif.errors import UserError
from minirlaif.runs.io import private_folder, real_path, sha256
from minirlaif.runs.records import read_rows
from minirlaif.stats import wilson

CHOICES = {"A": 1, "B": 2, "tie": "tie", "both bad": "both bad"}  # choice on the page -> `preference` of the row


class VoteStore:
    """The votes of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "votes.jsonl"
        self._lock = threading.Lock()

    @property
    def shown(self) -> str:
        """The file as seen from the working folder: no page shows an absolute path."""
        return os.path.relpath(self.file)

    def add(
        self,
        clip: Path,
        question: str,
        answers: tuple[str, str],
        models: tuple[str, str],
        choice: str,
        judge: str = "",
        context: str = "",
        **extra: str | float,
    ) -> str:
        """Append a vote on answers A and B as shown on the page, in VLM-RLAIF's preference format, and copy its clip.

        Args:
            models: of A and of B; choice: a key of CHOICES; judge: the judge's choice, "" without one; extra: further columns.

        Returns:
            The id of the row.

        Raises:
            UserError: `reward` would refuse the row, and with it the whole file; or a link leads elsewhere.
        """
        name = f"clips/{sha256(clip)[:16]}{clip.suffix.lower()}"
        row = {
            "id": f"vote-{uuid4().hex[:16]}",
            "videos": [name],
            "prompt": question,
            "output_1": answers[0],
            "output_2": answers[1],
            "preference": CHOICES[choice],
            "context": context,
            "model_1": models[0],
            "model_2": models[1],
            "judge": CHOICES.get(judge, judge),
            **extra,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            parse_preference(row | {"preference": 1})  # the parser accepts only rows with a winner; the texts are the same
        except BadRow as error:
            raise UserError(f"this vote cannot be stored: {error}") from None
        stored = self.folder / name
        part = stored.with_suffix(".part")
        self._check_links(stored, part)
        with self._lock:
            private_folder(self.folder)
            stored.parent.mkdir(parents=True, exist_ok=True)
            if not stored.is_file():
                shutil.copyfile(clip, part)
                part.replace(stored)
            with self.file.open("ab+") as file:
                file.seek(0)
                complete, newline, last = file.read().rpartition(b"\n")
                try:
                    json.loads(last)
                except ValueError:  # no row, or one that was cut off by a full disk or a kill
                    file.truncate(len(complete + newline))
                else:  # some editors remove the last newline
                    file.write(b"\n")
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        return str(row["id"])

    def _check_links(self, *more: Path) -> None:
        """UserError for a file of the votes that lies elsewhere, behind a link, or nowhere: a run may be a stranger's."""
        for path in (self.folder, self.file, *more):
            if path.is_symlink() and not path.exists():
                raise UserError(f"{os.path.relpath(path, self.folder.parent)}: a link that leads nowhere; delete it")
            if not real_path(path).is_relative_to(real_path(self.folder.parent)):
                raise UserError(f"{os.path.relpath(path, self.folder.parent)}: a link out of the run; put a copy in its place")

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows, those that are votes. UserError as for `add`, and for a link that leads elsewhere."""
        self._check_links()
        return read_rows(self.folder, "votes", self.file.name)


@dataclass(frozen=True)
class Agreement:
    """How often the aligned model won, and how often the judge agrees with people.

    wins, losses: of the aligned model against the one it started from; ties, bad: votes without a winner; both_decided: votes
    for which people and the judge both chose a winner; agreed: those with the same winner; start: the model it
    started from, "sft" or "base".
    """

    votes: int
    wins: int
    losses: int
    ties: int
    bad: int
    agreed: int
    both_decided: int
    start: str = "sft"

    @property
    def win_interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the share of wins among decided votes."""
        return wilson(self.wins, self.wins + self.losses) if self.wins + self.losses else None

    @property
    def agreement_interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the agreement."""
        return wilson(self.agreed, self.both_decided) if self.both_decided else None


def agreement(rows: Sequence[Mapping[str, Any]]) -> Agreement:
    """Count votes."""
    decided = [row for row in rows if row.get("preference") in (1, 2)]
    winners = [row.get(f"model_{row['preference']}") for row in decided]
    judged = [row for row in decided if row.get("judge") in (1, 2)]
    return Agreement(
        votes=len(rows),
        wins=winners.count("rlaif"),
        losses=winners.count("sft") + winners.count("base"),
        ties=sum(row.get("preference") == "tie" for row in rows),
        bad=sum(row.get("preference") == "both bad" for row in rows),
        agreed=sum(row["judge"] == row["preference"] for row in judged),
        both_decided=len(judged),
        start="base" if rows and not {"sft"} & {row.get(f"model_{n}") for row in rows for n in (1, 2)} else "sft",
    )
