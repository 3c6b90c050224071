"""Generate a model's answers to a benchmark in batches, save them as they come, and write them in the benchmark's own format.

The folder runs/NAME/benchmarks/B/MODEL/ is like a stage's: an interrupted run resumes, a finished one is not repeated, and its
manifest names its inputs. answers.jsonl has a line per item: the texts, and the right candidate's rank where they were ranked.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.dataset import Benchmark, listed
from minirlaif.benchmarks.kinds.base import Answer, Candidates
from minirlaif.benchmarks.models import BenchmarkModel, ModelSpec, load_model
from minirlaif.benchmarks.predictions import Predictions, prediction_files
from minirlaif.errors import UserError
from minirlaif.runs.io import empty, read_json, read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir

EVERY_CLIP = "In retrieval every clip is a candidate: add the missing clips, or remove their rows"
KEPT_CANDIDATES = 10  # of a ranking
SAMPLE_EVERY = 25


class BenchmarkRun(Run):
    """A run folder whose messages name the command that was typed rather than a stage's."""

    def __init__(self, root: Path, words: Sequence[str]) -> None:
        super().__init__(root)
        self._rerun = "python -m minirlaif " + shlex.join(word for word in words if word != "--redo")

    def command(self, stage: str) -> str:
        return self._rerun if stage.startswith("benchmarks/") else super().command(stage)

    def remake(self, stage: str, *settings: str, report: bool = False) -> str:
        return f"{self._rerun} --redo" if stage.startswith("benchmarks/") else super().remake(stage, *settings)


def answer_benchmark(run: Run, benchmark: Benchmark, spec: ModelSpec, readout: str, ask: str) -> Path:
    """Generate a model's answers; returns the folder. readout: of multiple choice, letter or likelihood; ask: the question where
    rows have none ("": the kind's own). UserError when clips are missing or unreadable beyond video.max_unreadable, or the folder
    was made with other settings."""
    stage = f"benchmarks/{benchmark.name}/{spec.title}"
    _check_folder(run, benchmark, spec.title, False, predictions=False)
    ask = ask or benchmark.kind.ask
    missing = hashlib.sha256(json.dumps(sorted(benchmark.missing)).encode()).hexdigest()[:16] if benchmark.missing else ""
    source = {**_source(benchmark), "missing_clips": missing}
    settings = {**spec.settings, "benchmark": source, "readout": readout, "ask": ask}
    with run.stage(stage, settings, inputs=spec.inputs) as out:
        if out is not None:
            with _removed_if_refused(out):
                _check_missing(benchmark, spec)
                with load_model(spec, run) as model:
                    _answer_items(out, benchmark, model, readout, ask)
    return run.dir(stage)


def set_aside(run: Run, benchmark: Benchmark, specs: Sequence[ModelSpec]) -> None:
    """Set the folders of several models aside at once, so that after a kill the command without --redo resumes. UserError before
    anything is touched when clips are missing, or a folder is another program's."""
    for spec in specs:
        _check_folder(run, benchmark, spec.title, True, predictions=False)
        _check_missing(benchmark, spec)
    for spec in specs:
        run.set_aside(f"benchmarks/{benchmark.name}/{spec.title}")


def import_predictions(run: Run, benchmark: Benchmark, predictions: Predictions, title: str, redo: bool) -> Path:
    """Save other people's predictions like a model's answers; returns the folder. UserError when something else has the name, or
    when none of them is about this benchmark."""
    _check_folder(run, benchmark, title, redo, predictions=True)
    texts = {item.id: predictions[item.id] for item in benchmark.items if item.id in predictions}
    if not texts:
        rows = f"the {len(benchmark.items)} of {benchmark.name}"
        raise UserError(f"--predictions: none of its rows is among {rows}; leave --limit out")
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
    settings = {"predictions": digest, "benchmark": _source(benchmark)}
    with run.stage(f"benchmarks/{benchmark.name}/{title}", settings, redo=redo) as out:
        if out is not None:
            blank = {item.id: Answer((), why="not in the file of predictions") for item in benchmark.items}
            _append_answers(out, blank | {id_: Answer(each) for id_, each in texts.items()})
            out.summary.update({"answered": len(texts), "unanswered": len(benchmark.items) - len(texts)})
    return run.dir(f"benchmarks/{benchmark.name}/{title}")


def read_answers(folder: Path) -> dict[str, Answer]:
    """Answers by item id, also those that only say why there is none."""
    rows = read_jsonl(folder / "answers.jsonl")
    return {row["id"]: Answer(tuple(row.get("said", ())), row.get("rank"), row.get("why", "")) for row in rows}


def _append_answers(out: StageDir, answers: Mapping[str, Answer]) -> None:
    with (out.path / "answers.jsonl").open("a", encoding="utf-8") as file:
        for id_, answer in answers.items():
            rank = {"rank": answer.rank} if answer.rank is not None else {}
            line = {"id": id_, "why": answer.why} if answer.why else {"id": id_, "said": answer.texts, **rank}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _source(benchmark: Benchmark) -> dict[str, Any]:
    source = {"name": benchmark.name, "sha256": benchmark.sha256, "items": len(benchmark.items)}
    if spans := sum(item.has_span for item in benchmark.items):  # older answers were about the whole clips
        source["spans"] = spans
    return source | ({"kind": [benchmark.kind.name, benchmark.kind.revision]} if benchmark.kind.revision else {})


def _check_folder(run: Run, benchmark: Benchmark, title: str, redo: bool, predictions: bool) -> None:
    """UserError when the folder of this name holds what --redo must not destroy: predictions of another program where a model is
    to answer, or the other way round; or, without --redo, answers to another file of the benchmark's name."""
    stage = f"benchmarks/{benchmark.name}/{title}"
    started = run.partial(stage) / "begun.json"
    made = run.manifest(stage) or (read_json(started) if started.is_file() else None)
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
def _removed_if_refused(out: StageDir) -> Iterator[None]:
    """Delete a folder without any answer when a model or clips are refused: a wrong name leaves no trace."""
    try:
        yield
    except UserError:
        if out.state() is None:
            with suppress(OSError):  # other models' folders lie in those above it
                empty(out.path)
                for folder in (out.path, *out.path.parents[:2]):
                    folder.rmdir()
        raise


def _check_missing(benchmark: Benchmark, spec: ModelSpec) -> None:
    missing, clips = benchmark.missing, len(benchmark.clips)
    names = f"{listed(missing)}; frame folders are not read"
    if len(missing) == clips:
        raise UserError(f"none of the {clips} clips is below --videos ({names}): is it the right folder?")
    if missing and benchmark.kind.needs_every_clip:
        raise UserError(f"{len(missing)} of {clips} clips are not below --videos ({names}). {EVERY_CLIP}")
    if missing and len(missing) / clips > spec.config.video.max_unreadable:
        share = min(1.0, -(-100 * len(missing) // clips) / 100)
        raise UserError(
            f"{len(missing)} of {clips} clips are not below --videos ({names}). Get them, or count their rows as unanswered with"
            f" --set video.max_unreadable={share}"
        )


def _answer_items(out: StageDir, benchmark: Benchmark, model: BenchmarkModel, readout: str, ask: str) -> None:
    """1. clips that cannot be read 2. answers, batch by batch 3. prediction files."""
    # 1. clips
    kind = benchmark.kind
    names = {item.video: item.name for item in benchmark.items if item.video}
    unreadable = model.unreadable(sorted(names))
    if unreadable and kind.needs_every_clip:
        faults = listed([f"{names[video]} ({why})" for video, why in unreadable.items()])
        raise UserError(f"clips cannot be read: {faults}. {EVERY_CLIP}")
    readable = {video: name for video, name in sorted(names.items()) if video not in unreadable}
    # 2. answers, the rows of one clip together: an engine encodes it once. By name: the same order wherever the clips lie.
    order = sorted(benchmark.items, key=lambda item: (item.name, item.start, math.inf if item.end is None else item.end))
    size = 1 if kind.ranks(readout) else model.batch_size
    resume_point = out.resume()
    first = resume_point[0] if resume_point else 0
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for number, batch in enumerate(progress(batches[first:], len(batches), f"ask {benchmark.name}", initial=first), first + 1):
        items = [item for item in batch if item.video in readable]
        if kind.ranks(readout):
            answers = {item.id: _ranked(model, kind.candidates(item, ask, readable)) for item in items}
        else:
            prompts = [(item, kind.prompts(item)) for item in items]
            pairs = [(item.video, text) for item, texts in prompts for text in texts]
            replies = iter(model.answers(pairs) if pairs else ())
            answers = {item.id: Answer(tuple(next(replies) for _ in texts)) for item, texts in prompts}
        _append_answers(out, {item.id: Answer((), why=unreadable.get(item.video, "no such clip")) for item in batch} | answers)
        out.log(number, answered=sum(not answer.why for answer in answers.values()))
        model.add_counters(out)
        out.commit_state(number, lambda folder: None)
    # 3. prediction files
    answers = {id_: answer for id_, answer in read_answers(out.path).items() if not answer.why}
    for name, rows in prediction_files(benchmark, {id_: answer.texts for id_, answer in answers.items()}).items():
        (out.path / name).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    for item in benchmark.items[::SAMPLE_EVERY]:
        if item.id in answers:
            sample = {"question": " / ".join(item.questions), "answer": item.answer, "said": answers[item.id].texts}
            out.sample({"video": item.name, **sample})
    out.summary.update({"answered": len(answers), "unanswered": len(benchmark.items) - len(answers)})


def _ranked(model: BenchmarkModel, candidates: Candidates) -> Answer:
    """Candidates by likelihood. Ties count against the model: one that finds all alike is no better than the last place. A
    likelihood that is not a number is neither above nor below another: then there is no rank."""
    scored, names, right = candidates
    values = model.likelihoods(scored)
    if not all(map(math.isfinite, values)):
        return Answer((), why="the likelihood of a candidate is not a number")
    order = sorted(range(len(values)), key=lambda i: -values[i])
    rank = sum(value >= values[right] for value in values)
    return Answer(tuple(names[i] for i in order[:KEPT_CANDIDATES]), rank)
