"""`evaluate --benchmark`: models answer, a judge grades, tables are written. Each step resumes where it was interrupted."""

import argparse
import itertools
import json
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from minirlaif.benchmarks import page, plots
from minirlaif.benchmarks.dataset import Benchmark, first_items, read_benchmark
from minirlaif.benchmarks.generate import BenchmarkRun, answer_benchmark, import_predictions, read_answers, set_aside
from minirlaif.benchmarks.kinds import metrics
from minirlaif.benchmarks.models import resolve_model, title_of
from minirlaif.benchmarks.predictions import read_predictions
from minirlaif.benchmarks.tables import Scores, examples, grade_answers, judge_head, load_all, save, table_json
from minirlaif.errors import UserError
from minirlaif.judges.config import REPLIES, check_judge, judge_prompts, judge_settings, open_judge
from minirlaif.judges.grade import MATCH_NAMES, nothing_read
from minirlaif.judges.rubric import CAPTIONING, HIGHEST
from minirlaif.runs.io import plain, read_json, write_atomic
from minirlaif.runs.run import Run
from minirlaif.video.reader import ClipReader, UnreadableClip, clip_strip

READ_SECONDS = 60.0  # for the clips of examples
FRAMES = 8  # of an example
EXAMPLES = 6  # worst ones, and as many best ones


def evaluate(options: argparse.Namespace, words: Sequence[str]) -> int:
    """1. settings and files, before anything expensive 2. each model's answers 3. grades 4. tables. Returns the exit code."""
    # 1. settings and files
    run = BenchmarkRun(options.runs_dir / options.run, words)
    settings = judge_settings(options.judge, options.judge_set)
    judge_prompts(settings)
    check_judge(settings)
    all_items = read_benchmark(options.benchmark, options.videos or "")
    benchmark = first_items(all_items, options.limit, 0)
    print(benchmark.summary(), flush=True)
    if not benchmark.kind.rubrics and settings.kind not in ("normalised", "none"):
        raise UserError(f"--judge {options.judge}: {benchmark.name} ({benchmark.kind.name}) needs no judge; leave --judge out")
    if settings.kind in MATCH_NAMES and CAPTIONING in itertools.chain(*benchmark.kind.rubrics.values()):
        raise UserError(
            f"--judge {options.judge}: a model answers questions from the captions of {benchmark.name}: hf:FOLDER, gguf:FILE or"
            " openai:MODEL; --judge none writes predictions only"
        )
    if benchmark.kind.ask and options.predictions:
        reason = "compares candidates by likelihood, which a file of answers does not hold"
        raise UserError(f"--predictions: {benchmark.name} {reason}")
    # 2. answers
    if options.predictions:  # they may cover all items where only a part of them is evaluated
        if not (title := title_of(options.model[0])):
            what = f"--model {options.model[0]}: is reserved, or not a valid folder name"
            raise UserError(f"{what}; choose another name for the predictions")
        predictions = read_predictions(options.predictions, all_items)
        folders = {title: import_predictions(run, benchmark, predictions, title, options.redo)}
    else:
        folders = _answers(options, run, benchmark)
    if settings.kind == "none":
        print("\n".join(f"predictions: {folder}" for folder in folders.values()))
        return 0
    # 3. grades
    judge = open_judge(settings, options.runs_dir / REPLIES) if benchmark.kind.rubrics else None
    ranked = benchmark.kind.ranks(options.readout) and not options.predictions  # also when no item could be ranked
    results = []
    with closing(judge) if judge else nullcontext():
        for title, folder in folders.items():
            model = {"run": run.root.name, "title": title, "answers": read_json(folder / "manifest.json")["identity"]}
            grader = judge or benchmark.kind.grader(ranked, options.ask)
            results.append(grade_answers(benchmark, model, read_answers(folder), grader))
            save(run.root / "benchmarks" / benchmark.name / "scores", results[-1])
    # 4. tables
    print(write_tables(run, benchmark, results, READ_SECONDS))
    print(f"table: {run.root / 'benchmarks' / benchmark.name / 'table.html'}")
    last = next((grade.reply for scores in reversed(results) for grade in reversed(scores.grades) if grade.reply), "")
    if error := nothing_read(results[-1].judge.name, [scores.counts for scores in results], last):
        raise error
    return 0


def _answers(options: argparse.Namespace, run: BenchmarkRun, benchmark: Benchmark) -> dict[str, Path]:
    """Folder of each model's answers, by title."""
    readout = options.readout if benchmark.kind.has_readouts else ""
    specs = [resolve_model(name, run, options.config, options.set) for name in options.model or ["rlaif"]]
    if readout == "likelihood":  # beside the same model's letters, not in their place
        specs = [replace(spec, title=f"{spec.title}-likelihood") for spec in specs]
    titles = [spec.title for spec in specs]
    if twice := {title for title in titles if titles.count(title) > 1}:
        raise UserError(f"--model: two models are called {twice.pop()}; evaluate them into two runs")
    # A difference between models may be one of frames: exported files take as many as they were exported for.
    frames = {spec.title: spec.frames if spec.kind == "gguf" else spec.config.video.frames for spec in specs}
    if len({number for number in frames.values() if number}) > 1:
        numbers = ", ".join(f"{title} {number}" for title, number in frames.items() if number)
        print(f"models get different numbers of frames ({numbers}); --set video.frames=N gives all the same", flush=True)
    if options.redo:
        set_aside(run, benchmark, specs)
    return {spec.title: answer_benchmark(run, benchmark, spec, readout, options.ask) for spec in specs}


def write_tables(run: Run, benchmark: Benchmark, results: Sequence[Scores], timeout: float) -> str:
    """Write table.json, table.md, table.html and the pictures from all saved scores; returns the Markdown.

    results: the grades of the command in progress, best model last; the examples are that model's.
    """
    folder = run.root / "benchmarks" / benchmark.name
    table = plain(table_json(load_all(run, benchmark.name), [scores.title for scores in results]))
    pictures = plots.draw(table)
    for name, svg in pictures.items():
        write_atomic(folder / name, svg)
    text = page.markdown(table, list(pictures))
    heads, judge = [judge_head(each["judge"]) for each in table["tables"]], ""
    if len(heads) > 1:  # the same judge may have been asked in several ways
        head = judge_head(vars(results[-1].judge))
        judge = head if heads.count(head) == 1 else results[-1].judge.title
    shown, strips = _examples(run, benchmark, results, timeout, judge)
    write_atomic(folder / "table.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.html", page.document(table, f"run {run.root.name}", pictures, shown, strips))
    return text


def _examples(
    run: Run, benchmark: Benchmark, results: Sequence[Scores], timeout: float, judge: str
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Worst and best items of the last model, with every model's answer, as table.html describes them; the frames of their clips
    by key. judge: named with every grade, "" where the page has only one."""
    kind = benchmark.kind
    items = {item.id: item for item in benchmark.items}
    answers = {s.model["title"]: read_answers(run.dir(f"benchmarks/{benchmark.name}/{s.model['title']}")) for s in results}
    chosen = list(zip(("worst", "best"), examples(results[-1], EXAMPLES), strict=True))
    strips: dict[str, tuple[str, bytes, float]] = {}  # clip -> key for the page, JPEG, width by height
    with ClipReader(timeout) as reader:
        for video in dict.fromkeys(items[id_].video for _, ids in chosen for id_ in ids if items[id_].video):
            with suppress(UnreadableClip):
                strips[video] = (f"s{len(strips)}", *clip_strip(reader, video, FRAMES))
    shown = []
    for side, id_ in ((side, id_) for side, ids in chosen for id_ in ids):
        item, rows = items[id_], []
        for scores in results:
            answer, grades = answers[scores.model["title"]].get(id_), _grades_text(scores, id_)
            text = kind.answer_text(item, answer) if answer and not answer.why else ""
            rows.append((scores.title, text, f"{grades}, by {judge}" if judge and grades else grades))
        key, _, aspect = strips.get(item.video, ("", b"", 1.0))
        texts = {"question": kind.question_text(item), "truth": kind.truth_text(item), "answers": rows}
        shown.append({"side": side, **texts, "strip": key, "frames": FRAMES, "aspect": aspect})
    return shown, {key: jpeg for key, jpeg, _ in strips.values()}


def _grades_text(scores: Scores, id_: str) -> str:
    """An item's grades in words."""
    texts = []
    for grade in (each for each in scores.grades if each.id == id_):
        metric = metrics()[grade.metric]
        value = "no grade" if grade.value is None else f"{grade.value:g}" + ("" if metric.is_share else f" of {HIGHEST}")
        texts.append(f"{metric.label.lower()} {value}")
    return ", ".join(texts)
