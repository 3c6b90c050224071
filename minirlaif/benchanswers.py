"""A model's answers to a benchmark: asked in batches, kept as they come, written in the benchmark's own format.

Lies in runs/NAME/benchmarks/B/MODEL/ like a stage: a killed one goes on, a finished one is not made twice, its manifest says
what it was made from. answers.jsonl has a line per item: what was said, and the right candidate's place where they were ranked.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirlaif.artifacts import Run
from minirlaif.benchmarks import Benchmark, Item
from minirlaif.contestants import Contestant, Entry, opened
from minirlaif.metrics import progress
from minirlaif.predictions import prediction_files, read_predictions
from minirlaif.records import UserError
from minirlaif.rubric import asked_choice
from minirlaif.stagedir import StageDir

SHOWN = 10  # candidates of a ranking that are kept
SAMPLE_EVERY = 25
NO_CLIP = "no such clip"
NOT_PREDICTED = "not in the file of predictions"
ASKS = {  # what is asked where candidates are compared by their likelihood
    "action": "What is the person in the video doing?",
    "retrieval": "Describe the video.",
}


@dataclass(frozen=True)
class Answer:
    """What a model said to one item. said: one text, two for consistency, or the likeliest candidates in order; rank: place of
    the right candidate from 1, candidates that are as likely counted before it; None where nothing was ranked."""

    said: tuple[str, ...]
    rank: int | None = None


class BenchmarkRun(Run):
    """A run folder whose messages name the command that was typed rather than a stage's."""

    def __init__(self, root: Path, words: Sequence[str]) -> None:
        super().__init__(root)
        self._words = [word for word in words if word != "--redo"]

    def command(self, stage: str) -> str:
        """See Run."""
        return self._said() if stage.startswith("benchmarks/") else super().command(stage)

    def remake(self, stage: str, *settings: str) -> str:
        """See Run."""
        return f"{self._said()} --redo" if stage.startswith("benchmarks/") else super().remake(stage, *settings)

    def _said(self) -> str:
        return "python -m minirlaif " + shlex.join(self._words)


def answer_benchmark(run: Run, benchmark: Benchmark, entry: Entry, readout: str, ask: str, redo: bool) -> Path:
    """Let a model answer; returns the folder.

    readout: of multiple choice, letter or likelihood; ask: the question for action and retrieval ("": as in ASKS).
    UserError when clips are missing or unreadable beyond video.max_unreadable, or the folder was made with other settings.
    """
    asked = ask or ASKS.get(benchmark.kind, "")
    gone = hashlib.sha256(json.dumps(sorted(benchmark.missing)).encode()).hexdigest()[:16] if benchmark.missing else ""
    named = {"name": benchmark.name, "sha256": benchmark.sha256, "items": len(benchmark.items), "missing_clips": gone}
    settings = {**entry.settings, "benchmark": named, "readout": readout, "ask": asked}
    stage = f"benchmarks/{benchmark.name}/{entry.title}"
    with run.stage(stage, settings, inputs=entry.inputs, redo=redo) as out:
        if out is not None:
            _check_missing(benchmark, entry)
            with opened(entry, run) as model:
                _ask_all(out, benchmark, model, readout, asked)
    return run.dir(stage)


def take_predictions(run: Run, benchmark: Benchmark, source: Path, title: str, redo: bool) -> Path:
    """Other people's predictions as if a model had answered here; returns the folder. UserError as `read_predictions`."""
    found = read_predictions(source, benchmark)
    told = json.dumps(sorted(found.items()))
    named = {"name": benchmark.name, "sha256": benchmark.sha256, "items": len(benchmark.items)}
    settings = {"predictions": hashlib.sha256(told.encode()).hexdigest(), "benchmark": named}
    with run.stage(f"benchmarks/{benchmark.name}/{title}", settings, redo=redo) as out:
        if out is not None:
            lines = [
                {"id": item.id, "said": found[item.id]} if item.id in found else {"id": item.id, "why": NOT_PREDICTED}
                for item in benchmark.items
            ]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (out.path / "answers.jsonl").write_text(text, encoding="utf-8")
            out.summary.update({"answered": len(found), "unanswered": len(benchmark.items) - len(found)})
    return run.dir(f"benchmarks/{benchmark.name}/{title}")


def read_answers(folder: Path) -> tuple[dict[str, Answer], dict[str, str]]:
    """Answers by item id, and the items without one with the reason."""
    answers: dict[str, Answer] = {}
    without: dict[str, str] = {}
    for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("why"):
            without[row["id"]] = row["why"]
        else:
            answers[row["id"]] = Answer(tuple(row["said"]), row.get("rank"))
    return answers, without


def _check_missing(benchmark: Benchmark, entry: Entry) -> None:
    missing = benchmark.missing
    clips = len({item.name for item in benchmark.items})
    if missing and len(missing) / clips > entry.cfg.video.max_unreadable:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        share = min(1.0, -(-100 * len(missing) // clips) / 100)
        raise UserError(
            f"{len(missing)} of {clips} clips are not below --videos ({shown}; frame folders are not read). Get them, or count"
            f" their rows as unanswered with --set video.max_unreadable={share}"
        )


def _ask_all(out: StageDir, benchmark: Benchmark, model: Contestant, readout: str, asked: str) -> None:
    """1. clips that cannot be read 2. answers, batch by batch 3. prediction files."""
    # 1. clips
    names = {item.video: item.name for item in benchmark.items if item.video}
    unreadable = model.unreadable(sorted(names))
    good = {video: name for video, name in sorted(names.items()) if video not in unreadable}
    # 2. answers, the rows of one clip together: an engine looks at a clip once. By name: the same order wherever the clips lie.
    order = sorted(benchmark.items, key=lambda item: item.name)
    size = 1 if benchmark.kind in ASKS or readout == "likelihood" else model.batch_size
    begun = out.resume()
    first = begun[0] if begun else 0
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for number, batch in enumerate(progress(batches[first:], len(batches), f"ask {benchmark.name}", initial=first), first + 1):
        whole = [item for item in batch if item.video in good]
        said = dict(zip((item.id for item in whole), _said(model, whole, readout, asked, good), strict=True))
        with (out.path / "answers.jsonl").open("a", encoding="utf-8") as file:
            for item in batch:
                file.write(json.dumps(_line(item, said.get(item.id), unreadable), ensure_ascii=False) + "\n")
        out.log(number, answered=len(said))
        model.counted(out)
        out.commit_state(number, lambda folder: None)
    # 3. prediction files
    answers, without = read_answers(out.path)
    for name, rows in prediction_files(benchmark, {id_: answer.said for id_, answer in answers.items()}).items():
        (out.path / name).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    for item in benchmark.items[::SAMPLE_EVERY]:
        if item.id in answers:
            said_of = {"question": " / ".join(item.questions), "answer": item.answer, "said": answers[item.id].said}
            out.sample({"video": item.name, **said_of})
    out.summary.update({"answered": len(answers), "unanswered": len(without)})


def _line(item: Item, answer: Answer | None, unreadable: Mapping[str, str]) -> dict[str, Any]:
    if answer is None:
        return {"id": item.id, "why": unreadable.get(item.video, NO_CLIP) if item.video else NO_CLIP}
    return {"id": item.id, "said": answer.said, **({"rank": answer.rank} if answer.rank else {})}


def _said(model: Contestant, items: Sequence[Item], readout: str, asked: str, good: Mapping[str, str]) -> list[Answer]:
    """Answers to items whose clips can be read. good: name of every such clip by its path."""
    if not items:
        return []
    part = items[0].part
    if part == "retrieval":
        told = list(good.values())
        return [_ranked(model, [(v, asked, i.answer) for v in good], told, list(good).index(i.video)) for i in items]
    if part == "action" or (part == "choice" and readout == "likelihood"):
        return [
            _ranked(model, [(i.video, [*i.questions, asked][0], o) for o in i.options], i.options, i.options.index(i.answer))
            for i in items
        ]
    pairs = [
        (item.video, asked_choice(text, item.options) if part == "choice" else text) for item in items for text in item.questions
    ]
    texts = iter(model.answers(pairs))
    return [Answer(tuple(next(texts) for _ in item.questions)) for item in items]


def _ranked(model: Contestant, told: Sequence[tuple[str, str, str]], candidates: Sequence[str], right: int) -> Answer:
    """Candidates by likelihood. Ties count against the model: one that finds all alike is no better than the last place."""
    values = model.likelihoods(told)
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return Answer(tuple(candidates[i] for i in order[:SHOWN]), sum(value >= values[right] for value in values))
