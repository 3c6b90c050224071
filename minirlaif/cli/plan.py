"""The verbs beside a run: `plan`, `bench`, `convert` and `ablate`. No torch before work starts."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif import config
from minirlaif.ablation import arms
from minirlaif.cli.flags import verb
from minirlaif.errors import UserError
from minirlaif.runs.io import write_atomic

if TYPE_CHECKING:
    from minirlaif.memory.planner import Planned

GPU_GIB = (8, 12, 16, 24)  # the columns of `plan --table`


def add(verbs: Any) -> None:
    """Add the parsers of these verbs."""
    for name, call in (("plan", plan), ("bench", bench), ("convert", convert)):
        verb(verbs, name, call)
    study = verb(verbs, "ablate", ablate)
    study.epilog = f"{arms.listing()}\n\n{study.epilog}"


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
    from minirlaif.memory import fit, measure, planner

    _check(options.gpu_gib, "fit", options.fit)
    if options.table:
        paths = sorted(Path("configs").glob("24gb-*.yaml"))
        if not paths:
            raise UserError("configs/24gb-*.yaml: no such files; run `plan --table` in the project's folder")
        print(fit.markdown([(path, plan_of(config.load(path), True)) for path in paths], GPU_GIB))
        return 0
    if options.config is None:
        raise UserError("plan: name the settings with --config; see `python -m minirlaif plan --help`")
    cfg = config.load(options.config, options.set)
    card = fit.find_card(options.gpu_gib, cfg.model.device)
    planned = plan_of(cfg, card.gpu, options.model_config)
    print(planner.table(planner.estimate(planned)))
    print("\n".join(fit.verdict(planned, card)))
    if options.fit is not None:
        smaller, changes = fit.fitted(planned, card)
        write_atomic(options.fit, config.dump(smaller.settings))
        print(f"{options.fit}: {', '.join(changes) or 'no change was needed'}")
    if options.probe:
        with tempfile.TemporaryDirectory() as folder:
            results = measure.probe(cfg, Path(folder), options.gpu_gib)
        if any("error" in result for result in results):
            return 1
    return 0 if planner.peak(planned)[1] <= card.room or options.fit is not None else 1


def bench(options: argparse.Namespace) -> int:
    """Measure every stage. Exit code 1 when one fails."""
    from minirlaif.memory import measure

    _check(options.gpu_gib, "out", options.out)
    if options.config is None and not options.model:
        raise UserError("bench: name a model with --model, or settings with --config; see `python -m minirlaif bench --help`")
    base = [f"model.base={options.model}"] if options.model else []
    cfg = config.load(options.config, [*base, *options.set])
    return measure.run(cfg, measure.chosen(options.stages), options.gpu_gib, options.out)
