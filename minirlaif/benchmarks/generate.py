"""A model's answers to a benchmark: asked in batches, kept as they come, written in the benchmark's own format.

Lies in runs/NAME/benchmarks/B/MODEL/ like a stage: a killed one goes on, a finished one is not made twice, its manifest says
what it was made from. answers.jsonl has a line per item: what was said, and the right candidate's place where they were ranked.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.dataset import Benchmark, Item, listed
from minirlaif.benchmarks.models import BenchmarkModel, ModelSpec, load_model
from minirlaif.benchmarks.predictions import prediction_files
from minirlaif.errors import UserError
from minirlaif.judges.rubric import asked_choice
from minirlaif.runs.io import empty, read_json, read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir

EVERY_CLIP = "In retrieval every clip is a candidate, and fewer make it easier: get them, or remove their rows"
SHOWN = 10  # candidates of a ranking that are kept
SAMPLE_EVERY = 25
NO_CLIP = "no such clip"
NOT_PREDICTED = "not in the file of predictions"
NO_NUMBER = "the likelihood of a candidate is not a number"
ASKS = {  # what is asked where candidates are compared by their likelihood
    "action": "What is the person in the video doing?",
    "retrieval": "Describe the video.",
}


@dataclass(frozen=True)
class Answer:
    """What a model said to one item. said: one text, two for consistency, or the likeliest candidates in order; rank: place of
    the right candidate from 1, candidates that are as likely counted before it; None where nothing was ranked; why: the reason
    where nothing could be said, "" otherwise."""

    said: tuple[str, ...]
    rank: int | None = None
    why: str = ""


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


def answer_benchmark(run: Run, benchmark: Benchmark, entry: ModelSpec, readout: str, ask: str) -> Path:
    """Let a model answer; returns the folder.

    readout: of multiple choice, letter or likelihood; ask: the question for action and retrieval ("": as in ASKS).
    UserError when clips are missing or unreadable beyond video.max_unreadable, or the folder was made with other settings.
    """
    stage = f"benchmarks/{benchmark.name}/{entry.title}"
    _check_folder(run, benchmark, entry.title, False, predictions=False)
    asked = ask or ASKS.get(benchmark.kind, "")
    gone = hashlib.sha256(json.dumps(sorted(benchmark.missing)).encode()).hexdigest()[:16] if benchmark.missing else ""
    named = {"name": benchmark.name, "sha256": benchmark.sha256, "items": len(benchmark.items), "missing_clips": gone}
    settings = {**entry.settings, "benchmark": named, "readout": readout, "ask": asked}
    with run.stage(stage, settings, inputs=entry.inputs) as out:
        if out is not None:
            with _nothing_left(out):
                _check_missing(benchmark, entry)
                with load_model(entry, run) as model:
                    _ask_all(out, benchmark, model, readout, asked)
    return run.dir(stage)


def begin_again(run: Run, benchmark: Benchmark, entries: Sequence[ModelSpec]) -> None:
    """Set the folders of several models aside at once, so that after a kill the command without --redo goes on. UserError before
    anything is touched when clips are missing, or a folder is another program's."""
    for entry in entries:
        _check_folder(run, benchmark, entry.title, True, predictions=False)
        _check_missing(benchmark, entry)
    for entry in entries:
        run.set_aside(f"benchmarks/{benchmark.name}/{entry.title}")


def take_predictions(run: Run, benchmark: Benchmark, told_by: Mapping[str, tuple[str, ...]], title: str, redo: bool) -> Path:
    """Other people's predictions (by item id, as `read_predictions` gives them) as if a model had answered here; returns the
    folder. UserError when something else has the name, or when none of them is about this benchmark."""
    _check_folder(run, benchmark, title, redo, predictions=True)
    found = {item.id: told_by[item.id] for item in benchmark.items if item.id in told_by}
    if not found:
        raise UserError(
            f"--predictions: none of its rows is among the {len(benchmark.items)} of {benchmark.name}; leave --limit out"
        )
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
    for row in read_jsonl(folder / "answers.jsonl"):
        if row.get("why"):
            without[row["id"]] = row["why"]
        else:
            answers[row["id"]] = Answer(tuple(row["said"]), row.get("rank"))
    return answers, without


def _check_folder(run: Run, benchmark: Benchmark, title: str, redo: bool, predictions: bool) -> None:
    """UserError when the folder of this name holds what --redo must not destroy: predictions of another program where a model is
    to answer, or the other way round; or, unless it was asked for, answers to another file of the benchmark's name."""
    stage = f"benchmarks/{benchmark.name}/{title}"
    begun = run.partial(stage) / "begun.json"
    made = run.manifest(stage) or (read_json(begun) if begun.is_file() else None)
    if made is None:
        return
    if ("predictions" in made["config"]) != predictions:
        what = "answers of a model" if predictions else "predictions of another program"
        advice = "choose another name" if predictions else "evaluate into another --run"
        raise UserError(f"--model {title}: the name is taken: {run.dir(stage)} holds {what}; {advice}")
    if made["config"]["benchmark"]["sha256"] != benchmark.sha256 and not redo:
        raise UserError(
            f"{run.dir(stage)}: holds answers to another file of the name {benchmark.name}; rename one of the two files, or make"
            f" it again: `{run.remake(stage)}`"
        )


@contextmanager
def _nothing_left(out: StageDir) -> Iterator[None]:
    """Delete a folder in which nothing was said yet when a model or clips are refused: a wrong name leaves no trace."""
    try:
        yield
    except UserError:
        if out.state() is None:
            with suppress(OSError):  # other models' folders lie in those above it
                empty(out.path)
                out.path.rmdir()
                out.path.parent.rmdir()
                out.path.parent.parent.rmdir()
        raise


def _check_missing(benchmark: Benchmark, entry: ModelSpec) -> None:
    missing, clips = benchmark.missing, len(benchmark.clips)
    shown = f"{listed(missing)}; frame folders are not read"
    if len(missing) == clips:
        raise UserError(f"none of the {clips} clips is below --videos ({shown}): is it the right folder?")
    if missing and benchmark.kind == "retrieval":
        raise UserError(f"{len(missing)} of {clips} clips are not below --videos ({shown}). {EVERY_CLIP}")
    if missing and len(missing) / clips > entry.cfg.video.max_unreadable:
        share = min(1.0, -(-100 * len(missing) // clips) / 100)
        raise UserError(
            f"{len(missing)} of {clips} clips are not below --videos ({shown}). Get them, or count their rows as unanswered with"
            f" --set video.max_unreadable={share}"
        )


def _ask_all(out: StageDir, benchmark: Benchmark, model: BenchmarkModel, readout: str, asked: str) -> None:
    """1. clips that cannot be read 2. answers, batch by batch 3. prediction files."""
    # 1. clips
    names = {item.video: item.name for item in benchmark.items if item.video}
    unreadable = model.unreadable(sorted(names))
    if unreadable and benchmark.kind == "retrieval":
        raise UserError(
            f"clips cannot be read: {listed([f'{names[video]} ({why})' for video, why in unreadable.items()])}. {EVERY_CLIP}"
        )
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
        out.log(number, answered=sum(not answer.why for answer in said.values()))
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
    if answer.why:
        return {"id": item.id, "why": answer.why}
    return {"id": item.id, "said": answer.said, **({"rank": answer.rank} if answer.rank is not None else {})}


def _said(model: BenchmarkModel, items: Sequence[Item], readout: str, asked: str, good: Mapping[str, str]) -> list[Answer]:
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


def _ranked(model: BenchmarkModel, told: Sequence[tuple[str, str, str]], candidates: Sequence[str], right: int) -> Answer:
    """Candidates by likelihood. Ties count against the model: one that finds all alike is no better than the last place. A
    likelihood that is not a number is neither above nor below another: then there is no place."""
    values = model.likelihoods(told)
    if not all(map(math.isfinite, values)):
        return Answer((), why=NO_NUMBER)
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return Answer(tuple(candidates[i] for i in order[:SHOWN]), sum(value >= values[right] for value in values))
