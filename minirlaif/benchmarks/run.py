"""What `evaluate --benchmark` does: models answer, a judge marks, tables are written. Each step goes on where it was stopped."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from minirlaif.benchmarks.dataset import Benchmark, first_items, read_benchmark
from minirlaif.benchmarks.generate import ASKS, BenchmarkRun, answer_benchmark, begin_again, read_answers, take_predictions
from minirlaif.benchmarks.models import ModelSpec, resolve_model, title_of
from minirlaif.benchmarks.predictions import read_predictions
from minirlaif.benchmarks.scores import RANKED, Scores, judge_grades, rank_grades, save
from minirlaif.benchmarks.table_files import write_tables
from minirlaif.errors import UserError
from minirlaif.judges.config import JudgeSettings, check_judge, judge_prompts, judge_settings, open_judge
from minirlaif.judges.grade import nothing_read
from minirlaif.runs.io import read_json

REPLIES = "judge-replies.sqlite"  # in the folder of runs: whoever asks the same again pays nothing
READ_SECONDS = 60.0  # for the clips of examples


def evaluate(options: argparse.Namespace, words: Sequence[str]) -> int:
    """1. settings and files, before anything expensive 2. each model's answers 3. marks 4. tables. Returns the exit code."""
    # 1. settings and files
    run = BenchmarkRun(options.runs_dir / options.run, words)
    settings = judge_settings(options.judge, options.judge_set)
    judge_prompts(settings)
    check_judge(settings)
    whole = read_benchmark(options.benchmark, options.videos or "")
    benchmark = first_items(whole, options.limit, 0)
    print(benchmark.told(), flush=True)
    if benchmark.kind in RANKED and settings.kind not in ("normalised", "none"):
        raise UserError(f"--judge {options.judge}: {benchmark.name} has candidates and needs no judge; leave --judge out")
    if benchmark.kind in ASKS and options.predictions:
        raise UserError(
            f"--predictions: {benchmark.name} compares candidates by likelihood, which a file of answers does not hold"
        )
    # 2. answers
    folders = _predicted(options, run, benchmark, whole) if options.predictions else _answers(options, run, benchmark)
    if settings.kind == "none":
        print("\n".join(f"predictions: {folder}" for folder in folders.values()))
        return 0
    # 3. marks
    shown = _marks(options, run, benchmark, settings, folders)
    # 4. tables
    print(write_tables(run, benchmark, shown, READ_SECONDS))
    print(f"table: {run.root / 'benchmarks' / benchmark.name / 'table.html'}")
    last = next((mark.reply for scores in reversed(shown) for mark in reversed(scores.marks) if mark.reply), "")
    if failed := nothing_read(shown[-1].judge.name, [scores.counts for scores in shown], last):
        raise failed
    return 0


def _predicted(options: argparse.Namespace, run: BenchmarkRun, benchmark: Benchmark, whole: Benchmark) -> dict[str, Path]:
    """Folder of another program's answers, by title; they may be about the whole benchmark where a part of it is asked for."""
    title = title_of(options.model[0])
    if not title:
        raise UserError(
            f"--model {options.model[0]}: is a name of this program's own, or none that a folder can have; choose another"
            " name for the predictions"
        )
    return {title: take_predictions(run, benchmark, read_predictions(options.predictions, whole), title, options.redo)}


def _answers(options: argparse.Namespace, run: BenchmarkRun, benchmark: Benchmark) -> dict[str, Path]:
    """Folder of each model's answers, by title."""
    readout = options.readout if benchmark.kind == "choice" else ""
    entries = [resolve_model(name, run, options.config, options.set) for name in options.model or ["rlaif"]]
    if readout == "likelihood":  # beside the same model's letters, not in their place
        entries = [replace(entry, title=f"{entry.title}-likelihood") for entry in entries]
    twice = {entry.title for entry in entries if [other.title for other in entries].count(entry.title) > 1}
    if twice:
        raise UserError(f"--model: two models are called {twice.pop()}; evaluate them into two runs")
    _tell_frames(entries)
    if options.redo:
        begin_again(run, benchmark, entries)
    return {entry.title: answer_benchmark(run, benchmark, entry, readout, options.ask) for entry in entries}


def _tell_frames(entries: Sequence[ModelSpec]) -> None:
    """A difference between models may be one of frames: exported files look at as many as they were made for."""
    frames = {entry.title: entry.frames if entry.kind == "gguf" else entry.cfg.video.frames for entry in entries}
    if len({number for number in frames.values() if number}) > 1:
        told = ", ".join(f"{title} {number}" for title, number in frames.items() if number)
        print(f"models look at different numbers of frames ({told}); --set video.frames=N gives all the same", flush=True)


def _marks(
    options: argparse.Namespace, run: BenchmarkRun, benchmark: Benchmark, settings: JudgeSettings, folders: Mapping[str, Path]
) -> list[Scores]:
    """Every model's grades, saved."""
    judge = open_judge(settings, options.runs_dir / REPLIES) if benchmark.kind not in RANKED else None
    all_scores = []
    try:
        for title, folder in folders.items():
            answers, without = read_answers(folder)
            if judge is None:
                ask = options.ask or ASKS.get(benchmark.kind, "")
                ranked = benchmark.kind in ASKS or (options.readout == "likelihood" and not options.predictions)
                name, grades, counts = rank_grades(benchmark, answers, without, ask, ranked)
            else:
                name, grades, counts = judge_grades(benchmark, answers, without, judge)
            model = {"run": run.root.name, "title": title, "answers": read_json(folder / "manifest.json")["identity"]}
            scores = Scores(benchmark.name, benchmark.kind, benchmark.sha256, model, name, tuple(grades), counts)
            save(run.root / "benchmarks" / benchmark.name / "scores", scores)
            all_scores.append(scores)
    finally:
        if judge is not None:
            judge.close()
    return all_scores
