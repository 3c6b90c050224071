"""The verbs beside a run: `plan`, `bench`, `convert` and `ablate`. No torch before work starts."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif import config
from minirlaif.ablation import arms
from minirlaif.cli.export import default_options
from minirlaif.cli.flags import add_flags, verb
from minirlaif.errors import UserError, counted
from minirlaif.runs.gains import split_name
from minirlaif.runs.io import write_atomic
from minirlaif.runs.run import Run

if TYPE_CHECKING:
    from minirlaif.memory.hours import Hours
    from minirlaif.memory.planner import Planned

GPU_GIB = (8, 12, 16, 24)  # the columns of `plan --table`


def add(verbs: Any) -> None:
    """Add the parsers of these verbs."""
    text = "estimate each stage's peak GPU memory without running anything"
    memory = verb(verbs, "plan", text, "plan --config mine.yaml --gpu-gib 24", plan)
    add_flags(memory, "config", "set", "gpu-gib")
    folder = "folder of config.json, if it is not that of model.base"
    memory.add_argument("--model-config", metavar="FOLDER", default="", help=folder)
    memory.add_argument("--fit", metavar="FILE", type=Path, help="write the settings, reduced until they fit")
    memory.add_argument("--probe", action="store_true", help="run the longest row through every stage and compare")
    memory.add_argument("--hours", action="store_true", help="measure how long the run will take, with a small run of all stages")
    memory.add_argument(
        "--table", action="store_true", help="print a markdown table: configs/24gb-*.yaml on 8, 12, 16 and 24 GiB"
    )

    text = "measure peak memory and speed of every stage, with random weights"
    measured = verb(verbs, "bench", text, "bench --model smolvlm2-500m", bench)
    add_flags(measured, "config", "set", "gpu-gib")
    model = "a standard backbone or a folder; overrides model.base"
    measured.add_argument("--model", metavar="NAME", default="", help=model)
    measured.add_argument("--stages", metavar="LIST", default="", help="only these, such as sft,ppo (default: all)")
    measured.add_argument("--out", metavar="FILE", type=Path, help="write the numbers as JSON")

    text = "convert a checkpoint in LLaVA's old layout to a folder for model.base"
    old = verb(verbs, "convert", text, "convert --from OLD --to NEW", convert)
    old.add_argument("--from", dest="old", metavar="OLD", required=True, help="folder or hub id of the old checkpoint")
    old.add_argument("--to", dest="new", metavar="NEW", required=True, type=Path, help="folder to write")
    vision = "folder or hub id of the vision tower, if OLD does not contain it"
    old.add_argument("--vision", metavar="CLIP", default="", help=vision)

    text = "measure on the tiny world what each part of the method contributes"
    study = verb(verbs, "ablate", text, "ablate --config configs/tiny.yaml --jobs 2", ablate)
    study.epilog = f"{arms.listing()}\n\n{study.epilog}"
    run = {"required": False, "default": "ablation", "help": "folder for arms and report (default: ablation)"}
    redo = {"help": "run arms again from the beginning; main runs are kept"}
    add_flags(study, "config", "run", "runs-dir", "set", "redo", config={"required": True}, run=run, redo=redo)
    study.add_argument("--seeds", metavar="LIST", default="0,1,2", help="seeds, one main run each (default: 0,1,2)")
    study.add_argument("--arms", metavar="LIST", default="", help="only these, such as short,kl-0.1; main: no arm (default: all)")
    study.add_argument("--jobs", metavar="N", type=int, default=2, help="child processes at a time (default: 2)")
    add = "ablation.json of other seeds, whose answers are counted as well"
    study.add_argument("--add", metavar="FILE", nargs="+", default=[], help=add)
    main_runs = "parent of the main runs seed0, seed1 … (default: --runs-dir)"
    study.add_argument("--from", dest="main_runs", metavar="DIR", type=Path, help=main_runs)


def convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint."""
    from minirlaif.convert import llava

    llava.convert(options.old, options.new, options.vision)
    print(f"{options.new}: written; set model.base to this folder")
    return 0


def ablate(options: argparse.Namespace) -> int:
    """Run the ablation."""
    from minirlaif.ablation import runner

    return runner.run(options)


def _check(gpu_gib: float | None, flag: str, path: Path | None) -> None:
    """UserError for a size that is none, and for a file that cannot be written, before the work whose result it is to hold."""
    if gpu_gib is not None and not gpu_gib > 0:
        raise UserError(f"--gpu-gib {gpu_gib}: must be above 0")
    if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
        raise UserError(f"--{flag} {path}: no file can be written there; create its folder, or name another file")


def plan_of(cfg: config.Config, gpu: bool, folder: str = "") -> Planned:
    """The settings with the numbers of their models. folder: where config.json lies when it is not at `model.base`."""
    from minirlaif.memory import planner

    return planner.Planned(cfg, *planner.shapes_of(cfg.model, cfg.reward, folder), gpu, planner.RUNTIME)


def plan(options: argparse.Namespace) -> int:
    """Print the estimate, and what the flags ask for. Exit code 0: it fits, 1: it does not, or the probe failed."""
    from minirlaif.memory import fit, planner, tables

    _check(options.gpu_gib, "fit", options.fit)
    if options.table:
        paths = sorted(path for path in Path("configs").glob("24gb-*.yaml") if "own-clips" not in path.name)
        if not paths:
            raise UserError("configs/24gb-*.yaml: no such files; run `plan --table` in the project's folder")
        print(fit.markdown([(path, plan_of(config.load(path), True)) for path in paths], GPU_GIB))
        return 0
    if options.config is None:
        raise UserError("plan: name the settings with --config; see `python -m minirlaif plan --help`")
    cfg = config.load(options.config, options.set)
    card = fit.find_card(options.gpu_gib, cfg.model.device)
    planned = plan_of(cfg, card.gpu, options.model_config)
    print(tables.table(planner.estimate(planned)))
    print("\n".join(fit.verdict(planned, card)))
    if options.fit is not None:
        smaller, changes = fit.fitted(planned, card)
        write_atomic(options.fit, config.dump(smaller.settings))
        print(f"{options.fit}: {', '.join(changes) or 'no change was needed'}")
    if options.hours:
        print()
        print("\n".join(measured_hours(planned)))
    if options.probe:
        with tempfile.TemporaryDirectory() as folder:
            results = probe(cfg, Path(folder), options.gpu_gib)
        if any("error" in result for result in results):
            return 1
    return 0 if planner.peak(planned)[1] <= card.room or options.fit is not None else 1


def measured_hours(planned: Planned) -> list[str]:
    """The time of the whole run by a small one, as lines to print; remembered for `run`. UserError as of `small_run.measure`."""
    from minirlaif.memory import hours, small_run

    measured = small_run.measure(planned, default_options(planned.settings))
    hours.keep(config.dump(planned.settings), measured)
    return hours.lines(measured)


def probe(cfg: config.Config, run_folder: Path, gpu_gib: float | None, stages: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The longest row on the biggest frames of the config's data through every stage (or these), one step each, with the real
    model; prints what was measured and planned.

    Raises:
        UserError: the config names no data that can be read before the run (the tiny world is made by it).
    """
    from minirlaif.memory import longest_row, measure, planner

    rows = longest_row.longest(cfg.data, cfg.video, run_folder)
    results = [measure.measure(config.dump(cfg), stage, gpu_gib, rows) for stage in stages or planner.steps_for(_stages(cfg))]
    print(measure.table(results))
    return results


def _stages(cfg: config.Config) -> tuple[str, ...]:
    return config.stages_of(cfg)


def before_run(cfg: config.Config, run: Run, names: Sequence[str], redo: bool = False) -> None:
    """What `run` does before the long work: it looks at the free disk and, on a GPU, makes the probe of those of the stages that
    are not finished, and measures the time. For the tiny world only the disk.

    Raises:
        UserError: a stage failed on the longest row, most often because it does not fit, or the disk is too small.
    """
    from minirlaif.memory import disk
    from minirlaif.memory.planner import steps_of

    left = dict.fromkeys(split_name(name)[1] for name in names if redo or run.manifest(name) is None)
    if left:
        disk.line(plan_of(cfg, False), known_hours(cfg), run.root)
    steps = [step for stage in left for step in steps_of(stage)]
    if cfg.data.world or not steps:
        return
    from minirlaif.models.loading import pick_device

    if pick_device(cfg.model.device).type != "cuda":
        return
    print("probe: the longest row through every stage", flush=True)
    for result in probe(cfg, run.root, None, steps):
        if "error" in result:
            raise UserError(
                f"probe: {result['stage']} fails on the longest row ({result['error']}); `python -m minirlaif plan` names the"
                " settings to reduce"
            )
    if known_hours(cfg) is None and len(left) > 1:
        print("\n".join(measured_hours(plan_of(cfg, True))), flush=True)


def known_hours(cfg: config.Config) -> Hours | None:
    """The estimate that `plan --hours` kept for these settings on this machine, or None."""
    from minirlaif.memory import hours

    return hours.known(config.dump(cfg))


def seconds_left(known: Hours | None, names: Sequence[str]) -> float:
    """Of these stages; 0: not known."""
    from minirlaif.memory import hours

    return hours.seconds_left(known, names)


def time_line(cfg: config.Config, path: str) -> str:
    """What is known of the time that the run takes, or the command that measures it. path: of the settings."""
    from minirlaif.memory import hours

    if known := hours.known(config.dump(cfg)):
        return hours.total(known)
    return f"time: not measured yet; `python -m minirlaif plan --config {path} --hours` does it with a small run of all stages"


def dry_run(cfg: config.Config, path: str, run: Run, names: Sequence[str], redo: bool = False) -> int:
    """What `run --dry-run` prints in place of the work: the settings as they are used, the rows of the data, the stages that are
    left (all, with redo), and the memory that the run takes. Nothing is written. Exit code as of `plan`. UserError: rows that a
    stage would refuse."""
    from minirlaif.memory import disk, fit, planner, tables

    print(config.dump(cfg))
    print("\n".join(_data_lines(cfg)))
    left = [name for name in names if redo or name == "report" or run.manifest(name) is None]
    print(f"stages to make: {', '.join(left) or 'none'}", end="\n\n")
    card = fit.find_card(None, cfg.model.device)
    planned = plan_of(cfg, card.gpu)
    print(tables.table(planner.estimate(planned)))
    print("\n".join(fit.verdict(planned, card)))
    print(disk.line(planned, known_hours(cfg), run.root))
    print(time_line(cfg, path))
    return 0 if planner.peak(planned)[1] <= card.room else 1


def _data_lines(cfg: config.Config) -> list[str]:
    """How many rows and clips each part of the data has, read as the stages read them."""
    from minirlaif.data.preflight import read_preferences, read_samples
    from minirlaif.stages.questions import clip_rows

    data, most = cfg.data, cfg.video.max_unreadable
    if data.world:
        return [f"data.world: {data.world}, made by the run"]
    lines = []
    with tempfile.TemporaryDirectory() as folder:  # for the list of what is left out
        for part in ("sft", "prompts", "dev", "test"):
            if not getattr(data, part) or (part == "sft" and not cfg.sft.enabled):
                continue
            rows = read_samples(data, Run(folder), part, need_answers=part == "sft", max_missing=most)
            lines.append(f"data.{part}: {counted(len(rows), 'row')} about {counted(len({row.video for row in rows}), 'clip')}")
        if data.preferences:
            lines.append(f"data.preferences: {counted(len(read_preferences(data, Run(folder), most)), 'pair')}")
    if data.writes_questions:
        clips = len(clip_rows(data))
        lines.append(f"data.clips: {counted(clips, 'clip')}, about each at most {cfg.questions.per_clip} questions")
    return lines


def bench(options: argparse.Namespace) -> int:
    """Measure stages, print the table and, when all stages were measured, the header line for the config; write JSON.
    Exit code 1 when a stage failed. UserError when the models' sizes are not known."""
    from minirlaif.memory import fit, measure, planner

    _check(options.gpu_gib, "out", options.out)
    if options.config is None and not options.model:
        raise UserError("bench: name a model with --model, or settings with --config; see `python -m minirlaif bench --help`")
    base = [f"model.base={options.model}"] if options.model else []
    cfg = config.load(options.config, [*base, *options.set])
    stages, settings = measure.chosen(options.stages, planner.steps_for(_stages(cfg))), config.dump(cfg)
    planner.shapes_of(cfg.model, cfg.reward)  # a wrong name is reported once, not by every child
    results = [measure.measure(settings, stage, options.gpu_gib) for stage in stages]
    print(measure.table(results))
    failures = [result for result in results if "error" in result]
    for result in failures:
        print(f"{result['stage']}: {result['error']}", file=sys.stderr)
    versions = measure.versions()
    if not failures and set(stages) == set(planner.steps_for(_stages(cfg))):
        print(fit.header(results, options.gpu_gib, versions))
    if options.out is not None:
        write_atomic(options.out, json.dumps({"versions": versions, "config": settings, "stages": results}, indent=1))
    return 1 if failures else 0
