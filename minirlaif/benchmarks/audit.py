"""`audit`: a person labels a sample of the judge's verdicts, and their agreement and biases are measured.

The page shows frames, the clip, the question and both answers in a random order, and not the judge's verdict. Each label is
written at once (runs/NAME/audit/labels.jsonl), so an audit can be interrupted and resumed. result.json has the figures.

Choices are "A", "B" and "none" (a tie, a disagreement between the orders, an unreadable reply), named as in the stored order of
the pair. Intervals are bootstraps over clips, since pairs about one clip depend on each other.
"""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.io import plain, read_json, read_jsonl, write_atomic
from minirlaif.runs.run import Run
from minirlaif.stats import FEW, cluster_bootstrap, grouped, kappa, paired_bootstrap, wilson

RESAMPLES = 2000
DECIDED = ("A", "B")
LABELS = {"first": "The first is better", "second": "The second is better", "tie": "Equally good", "skip": "I cannot tell"}
BY_CONSTRUCTION = "This judge's readout, likelihood, scores one answer at a time, so its two orders agree by construction."
MEANING = {
    "agreement": "Judge and person agree (pairs that both decided)",
    "kappa": "Cohen's kappa (A, B, undecided)",
    "judge_first": "Judge chooses the answer shown first (0.5: no position bias)",
    "judge_longer": "Judge chooses the longer answer",
    "person_longer": "Person chooses the longer answer",
    "longer_gap": "Chooses the longer answer: judge minus person (0: no difference)",
    "person_first": "Person chooses the answer shown first",
}


@dataclass(frozen=True)
class Vote:
    """One pair. judge: its choice; orders: the judge's choice with A shown first and with B shown first; person: "" where nobody
    has labelled it; person_first: the answer that the person was shown first; lengths: letters of A and of B."""

    clip: str
    judge: str
    orders: tuple[str, str]
    person: str
    person_first: str
    lengths: tuple[int, int]

    def is_longer(self, choice: str) -> bool | None:
        """Whether a choice is the longer answer; None for no choice, and for answers of one length."""
        first, second = self.lengths
        return None if choice not in DECIDED or first == second else (choice == "A") == (first > second)


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, out of n; None where nothing was measured."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class AuditPair:
    """One pair to label. flipped: answer B stands first."""

    id: str
    video: str
    question: str
    answers: tuple[str, str]
    flipped: bool


def audit_figures(votes: Sequence[Vote], resamples: int, seed: int) -> dict[str, Figure]:
    """Every figure of an audit by its key in MEANING: shares from 0 to 1; kappa, and longer_gap of the pairs that both decided,
    from -1 to 1."""
    labelled = [vote for vote in votes if vote.person]
    by_person = [vote for vote in labelled if vote.person in DECIDED]
    sides = [(v.clip, float(v.orders[i] == "AB"[i])) for v in votes for i in (0, 1) if v.orders[i] in DECIDED]
    longer = [(v.clip, v.is_longer(v.judge), v.is_longer(v.person)) for v in votes]
    pairs = grouped((v.clip, (v.judge, v.person)) for v in labelled)
    return {
        "agreement": _share([v.judge == v.person for v in by_person if v.judge in DECIDED]),
        "kappa": Figure(*cluster_bootstrap(pairs, kappa, resamples, seed), len(labelled)),
        "judge_first": _mean(sides, resamples, seed),
        "judge_longer": _mean([(clip, float(a)) for clip, a, _ in longer if a is not None], resamples, seed),
        "person_longer": _share([b for _, _, b in longer if b is not None]),
        "longer_gap": _mean([(clip, float(a - b)) for clip, a, b in longer if a is not None and b is not None], resamples, seed),
        "person_first": _share([v.person == v.person_first for v in by_person]),
    }


def _share(hits: Sequence[bool]) -> Figure:
    return Figure(sum(hits) / len(hits), *wilson(sum(hits), len(hits)), len(hits)) if hits else Figure()


def _mean(values: Sequence[tuple[str, float]], resamples: int, seed: int) -> Figure:
    return Figure(*paired_bootstrap(grouped(values), resamples, seed), len(values)) if values else Figure()


class Audit:
    """The sample and its labels, in runs/NAME/audit/. note: says that an earlier sample is used instead of the requested one; ""
    where it is the requested one. UserError: no finished `feedback`, a sample of verdicts that were made again since, or a file
    that is no sample."""

    def __init__(self, run: Run, count: int, seed: int, redo: bool = False) -> None:
        self._folder = run.root / "audit"
        run.require("feedback")
        manifest = run.manifest("feedback") or {}
        rows = run.rows("feedback", "verdicts.jsonl", "id", "video", "question", "answer_a", "answer_b", "choice")
        self._rows = {row["id"]: row for row in rows if row["answer_a"] != row["answer_b"]}
        chosen = manifest["metrics"].get("readout", "")  # of two that were tried
        self.readout = str(chosen or manifest["config"].get("feedback", {}).get("readout", ""))
        self.note = ""
        sample = self._sample(manifest["identity"], count, seed, redo)
        # Which answer stands first comes from the sample's own seed: labels say first and second.
        self.items = []
        for id_ in sample["ids"]:
            row, flipped = self._rows[id_], random.Random(f"{sample['seed']} {id_}").random() < 0.5
            answers = (row["answer_a"], row["answer_b"])
            self.items.append(AuditPair(id_, run.located(row["video"]), row["question"], answers, flipped))
        labels = read_jsonl(self._folder / "labels.jsonl", missing_ok=True, skip_damaged=True)
        self.labels = {row["id"]: row["label"] for row in labels if isinstance(row, dict) and {"id", "label"} <= set(row)}

    def _sample(self, identity: str, count: int, seed: int, redo: bool) -> dict[str, Any]:
        """ids and seed of the existing sample, or else of a new one."""
        path = self._folder / "sample.json"
        if path.is_file() and not redo:
            sample: dict[str, Any] = read_json(path)
            try:
                old, known = sample["feedback"], (sample["seed"], len(sample["ids"]))
                if old == identity and not set(sample["ids"]) <= set(self._rows):
                    raise ValueError
            except (LookupError, TypeError, ValueError):
                raise UserError(f"{path}: not a sample of these verdicts; draw again with --redo") from None
            if old != identity:
                kept = "old labels are kept in labels.old.jsonl"
                raise UserError(f"{path}: drawn from other verdicts; draw again with --redo ({kept})")
            if known != (seed, min(count, len(self._rows))):
                self.note = f"{known[1]} pairs drawn before (seed {known[0]}) are used; --redo draws anew and sets labels aside"
            return sample
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / "labels.jsonl").is_file():
            (self._folder / "labels.jsonl").replace(self._folder / "labels.old.jsonl")
        sample = {"feedback": identity, "seed": seed, "ids": draw_pairs(self._rows, count, seed)}
        write_atomic(path, json.dumps(sample, indent=1))
        return sample

    def label(self, item: AuditPair, label: str) -> None:
        """Save a label (a key of LABELS; first and second as the person saw them). ValueError for any other."""
        if label not in LABELS:
            raise ValueError(f"no such label: {label}")
        line = {"id": item.id, "label": label, "flipped": item.flipped, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        path = self._folder / "labels.jsonl"
        broken = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * broken + json.dumps(line) + "\n")
        self.labels[item.id] = label

    def next_place(self) -> int | None:
        """Place of the first item without a label."""
        return next((place for place, item in enumerate(self.items) if item.id not in self.labels), None)

    def figures(self) -> dict[str, Figure]:
        """All figures; position and length bias of the judge come from every verdict, the others from the labels."""
        flipped = {item.id: item.flipped for item in self.items}
        votes = []
        for id_, row in self._rows.items():
            first, second = ("B", "A") if flipped.get(id_) else ("A", "B")
            label = self.labels.get(id_) if id_ in flipped else None
            person = {"first": first, "second": second, "tie": "none"}.get(label or "", "")
            judge = row["choice"] if row["choice"] in DECIDED else "none"
            lengths = (len(row["answer_a"]), len(row["answer_b"]))
            votes.append(Vote(str(row["video"]), judge, tuple(row["orders"]), person, first, lengths))
        return audit_figures(votes, RESAMPLES, 0)

    def write(self) -> str:
        """Write result.json; returns its path."""
        labels = list(self.labels.values())
        counts = {name: labels.count(name) for name in LABELS}
        value = {"pairs": len(self._rows), "sampled": len(self.items), "labels": counts, "readout": self.readout}
        figures = {name: vars(figure) for name, figure in self.figures().items()}
        write_atomic(self._folder / "result.json", json.dumps(plain({**value, **figures}), indent=1) + "\n")
        return str(self._folder / "result.json")

    def table_rows(self, few: str = f", fewer than {FEW}: too few to rely on") -> list[tuple[str, str, str, str]]:
        """The figures for people: what, value, interval, out of how many; few: added to a small number."""
        rows = []
        for name, figure in self.figures().items():
            if figure.value is None:
                rows.append((MEANING[name], "–", "", "0"))
                continue
            ends = "" if figure.low is None or figure.high is None else f"{figure.low:.3f} to {figure.high:.3f}"
            n = f"{figure.n}{few}" if figure.n < FEW else str(figure.n)
            rows.append((MEANING[name], f"{figure.value:.3f}", ends, n))
        return rows

    def summary(self) -> str:
        """The figures as lines of text."""
        lines = [*([self.note] if self.note else []), f"{len(self.items)} pairs drawn, {len(self.labels)} labelled"]
        lines += [f"{what}: {value}" + (f" [{ends}]" if ends else "") + f" (n {n})" for what, value, ends, n in self.table_rows()]
        return "\n".join([*lines, *([BY_CONSTRUCTION] if self.readout == "likelihood" else [])])


def draw_pairs(rows: Mapping[str, Mapping[str, Any]], count: int, seed: int) -> list[str]:
    """Ids of `count` pairs at random, one of each clip before a second one of any: labels then are as good as independent."""
    order = sorted(rows)
    random.Random(seed).shuffle(order)
    turns: Counter[str] = Counter()
    turn_of = {}
    for id_ in order:
        turns[rows[id_]["video"]] += 1
        turn_of[id_] = turns[rows[id_]["video"]]
    return sorted(order, key=lambda id_: turn_of[id_])[:count]
