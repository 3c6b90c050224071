"""`audit`: a person labels a sample of the judge's verdicts and sees how far the judge is right. auditpage.py shows the pairs.

The person sees frames, the clip, the question and both answers, in an order drawn anew, and not what the judge said. Each label
is on disk at once (runs/NAME/audit/labels.jsonl), so an audit can be stopped and goes on. result.json has the figures.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.agreement import FEW, Ballot, Figure, as_json, audit, plain_choice
from minirlaif.errors import UserError
from minirlaif.runs.io import plain, read_json, read_jsonl, write_atomic
from minirlaif.runs.run import Run

RESAMPLES = 2000
LABELS = {"first": "The first is better", "second": "The second is better", "tie": "Equally good", "skip": "I cannot tell"}
BY_CONSTRUCTION = "This judge's read-out, likelihood, looks at one answer at a time, so its two orders agree by construction."
MEANING = {
    "agreement": "Judge and person agree (pairs that both decided)",
    "kappa": "Cohen's kappa (A, B, undecided)",
    "judge_first": "Judge takes the answer shown first (0.5: no position bias)",
    "judge_longer": "Judge takes the longer answer",
    "person_longer": "Person takes the longer answer",
    "longer_gap": "Judge minus person: takes the longer answer (0: no length bias of its own)",
    "person_first": "Person takes the answer shown first",
}


@dataclass(frozen=True)
class Asked:
    """One pair to label. flipped: answer B stands first."""

    id: str
    video: str
    question: str
    answers: tuple[str, str]
    flipped: bool


class Audit:
    """The sample and its labels, in runs/NAME/audit/. kept: in words, that an earlier sample is used and not what was asked for;
    "" where it is what was asked for.

    Raises:
        UserError: no finished `feedback`, a sample of verdicts that were made again since, or a file that is no sample.
    """

    def __init__(self, run: Run, count: int, seed: int, redo: bool = False) -> None:
        self._folder = run.root / "audit"
        feedback = run.require("feedback")
        manifest = run.manifest("feedback") or {}
        rows = read_jsonl(feedback / "verdicts.jsonl")
        self._rows = {row["id"]: row for row in rows if row["answer_a"] != row["answer_b"]}
        self.readout = str(manifest["config"].get("feedback", {}).get("readout", ""))
        self.token = secrets.token_urlsafe(16)
        self.kept = ""
        sample = self._sample(manifest["identity"], count, seed, redo)
        # Which answer stands first comes from the sample's own seed: labels say first and second.
        self.items = [self._asked(run, self._rows[id_], sample["seed"]) for id_ in sample["ids"]]
        self.labels = self._read_labels()

    def _sample(self, identity: str, count: int, seed: int, redo: bool) -> dict[str, Any]:
        """ids and seed of the sample that is there, or else of a new one."""
        path = self._folder / "sample.json"
        if path.is_file() and not redo:
            kept: dict[str, Any] = read_json(path)
            try:
                old, known = kept["feedback"], (kept["seed"], len(kept["ids"]))
                if old == identity and not set(kept["ids"]) <= set(self._rows):
                    raise ValueError
            except (LookupError, TypeError, ValueError):
                raise UserError(f"{path}: not a sample of these verdicts; draw again with --redo") from None
            if old != identity:
                raise UserError(
                    f"{path}: drawn from other verdicts; draw again with --redo (old labels are kept in labels.old.jsonl)"
                )
            if known != (seed, min(count, len(self._rows))):
                self.kept = f"{known[1]} pairs drawn before (seed {known[0]}) are used; --redo draws anew and sets labels aside"
            return kept
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / "labels.jsonl").is_file():
            (self._folder / "labels.jsonl").replace(self._folder / "labels.old.jsonl")
        sample = {"feedback": identity, "seed": seed, "ids": drawn(self._rows, count, seed)}
        write_atomic(path, json.dumps(sample, indent=1))
        return sample

    def _asked(self, run: Run, row: Mapping[str, Any], seed: int) -> Asked:
        from minirlaif.session import located

        flipped = random.Random(f"{seed} {row['id']}").random() < 0.5
        return Asked(row["id"], located(run, row["video"]), row["question"], (row["answer_a"], row["answer_b"]), flipped)

    def _read_labels(self) -> dict[str, str]:
        rows = read_jsonl(self._folder / "labels.jsonl", missing_ok=True, skip_damaged=True)
        return {row["id"]: row["label"] for row in rows if isinstance(row, dict) and {"id", "label"} <= set(row)}

    def label(self, item: Asked, label: str) -> None:
        """Keep a label (a key of LABELS; first and second as the person saw them). ValueError for any other."""
        if label not in LABELS:
            raise ValueError(f"no such label: {label}")
        line = {"id": item.id, "label": label, "flipped": item.flipped, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        path = self._folder / "labels.jsonl"
        whole = path.read_bytes().endswith(b"\n") if path.is_file() else True
        with path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(line) + "\n")
        self.labels[item.id] = label

    def next_place(self) -> int | None:
        """Place of the first item without a label."""
        return next((place for place, item in enumerate(self.items) if item.id not in self.labels), None)

    def figures(self) -> dict[str, Figure]:
        """All figures; position and length bias of the judge are read off every verdict, the rest off the labels."""
        asked = {item.id: item for item in self.items}
        ballots = [self._ballot(row, asked.get(id_)) for id_, row in self._rows.items()]
        return audit(ballots, RESAMPLES, 0)

    def _ballot(self, row: Mapping[str, Any], item: Asked | None) -> Ballot:
        label = self.labels.get(row["id"], "") if item else ""
        first, second = ("B", "A") if item and item.flipped else ("A", "B")
        person = {"first": first, "second": second, "tie": "none"}.get(label, "")
        lengths = (len(row["answer_a"]), len(row["answer_b"]))
        return Ballot(str(row["video"]), plain_choice(row["choice"]), tuple(row["orders"]), person, first, lengths)

    def write(self) -> Path:
        """Write result.json; returns its path."""
        labels = list(self.labels.values())
        counts = {name: labels.count(name) for name in LABELS}
        path = self._folder / "result.json"
        value = {"pairs": len(self._rows), "sampled": len(self.items), "labels": counts, "readout": self.readout}
        write_atomic(path, json.dumps(plain({**value, **as_json(self.figures())}), indent=1) + "\n")
        return path


def drawn(rows: Mapping[str, Mapping[str, Any]], count: int, seed: int) -> list[str]:
    """Ids of `count` pairs at random, one of each clip before a second one of any: labels then are as good as independent."""
    order = sorted(rows)
    random.Random(seed).shuffle(order)
    turns: dict[str, int] = {}
    ranked: list[tuple[int, int, str]] = []
    for id_ in order:
        clip = rows[id_]["video"]
        turns[clip] = turns.get(clip, 0) + 1
        ranked.append((turns[clip], len(ranked), id_))
    return [id_ for _, _, id_ in sorted(ranked)[:count]]


def rows_of(found: Audit, few: str = f", fewer than {FEW}: only a hint") -> list[tuple[str, str, str, str]]:
    """The figures for people: what, value, interval, out of how many, and behind a small number what it means."""
    rows = []
    for name, figure in found.figures().items():
        if figure.value is None:
            rows.append((MEANING[name], "–", "", "0"))
            continue
        ends = "" if figure.low is None or figure.high is None else f"{figure.low:.3f} to {figure.high:.3f}"
        rows.append((MEANING[name], f"{figure.value:.3f}", ends, f"{figure.n}{few}" if figure.n < FEW else str(figure.n)))
    return rows


def told(found: Audit) -> str:
    """The figures as lines of text."""
    lines = [*([found.kept] if found.kept else []), f"{len(found.items)} pairs drawn, {len(found.labels)} labelled"]
    lines += [f"{what}: {value}" + (f" [{ends}]" if ends else "") + f" (n {n})" for what, value, ends, n in rows_of(found)]
    return "\n".join([*lines, *([BY_CONSTRUCTION] if found.readout == "likelihood" else [])])
