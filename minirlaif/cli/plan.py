"""The verbs beside a run: `plan`, `bench`, `convert` and `ablate`. Their flags, and what each does. No torch before
work starts."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from minirlaif import config
from minirlaif.ablation import arms
from minirlaif.errors import UserError
from minirlaif.runs.io import write_atomic

VERBS = ("plan", "bench", "convert", "ablate")
CARDS = (8, 12, 16, 24)  # GiB; the columns of `plan --table`


def verb(verbs: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    """A parser for one verb, with its help and an example."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=f"example:\n  python -m minirlaif {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add(verbs: Any) -> None:
    """Add the parsers of VERBS."""
    plan = verb(verbs, "plan", "what every stage takes of the card, before anything runs", "plan --config mine.yaml --gpu-gib 24")
    plan.add_argument("--config", metavar="FILE", help="settings, such as configs/24gb-smolvlm2-500m.yaml")
    plan.add_argument("--model-config", metavar="FOLDER", default="", help="where config.json lies, if not at model.base")
    plan.add_argument("--fit", metavar="FILE", type=Path, help="write the config shrunk until it fits")
    plan.add_argument("--probe", action="store_true", help="run the longest row of the data through every stage and compare")
    plan.add_argument("--table", action="store_true", help="markdown: all configs/24gb-*.yaml on cards of 8, 12, 16 and 24 GiB")
    session = verb(verbs, "bench", "peak memory and speed of every stage, with random weights", "bench --model smolvlm2-500m")
    session.add_argument("--config", metavar="FILE", help="settings to measure")
    session.add_argument("--model", metavar="NAME", default="", help="a standard backbone or folder; wins over model.base")
    session.add_argument("--stages", metavar="LIST", default="", help="such as sft,ppo (default: all)")
    session.add_argument("--out", metavar="FILE", type=Path, help="write the numbers as json")
    for parser in (plan, session):
        parser.add_argument("--gpu-gib", metavar="GIB", type=float, help="card to plan for, or cap on the card that is there")
        parser.add_argument(
            "--set", metavar="SECTION.FIELD=VALUE", nargs="+", action="extend", default=[], help="settings that win over the file"
        )
    convert = verb(
        verbs, "convert", "make a checkpoint in LLaVA's old layout usable as model.base", "convert --from OLD --to NEW"
    )
    convert.add_argument("--from", dest="old", metavar="OLD", required=True, help="folder or hub id of the old checkpoint")
    convert.add_argument("--to", dest="new", metavar="NEW", required=True, type=Path, help="folder to make")
    convert.add_argument("--vision", metavar="CLIP", default="", help="folder or hub id of the vision tower, if OLD has none")
    ablate = verb(
        verbs, "ablate", "on the tiny world, which parts of the method matter", "ablate --config configs/tiny.yaml --jobs 2"
    )
    ablate.epilog = f"{arms.listing()}\n\n{ablate.epilog}"
    ablate.add_argument("--config", metavar="FILE", required=True, help="settings of the main runs, such as configs/tiny.yaml")
    ablate.add_argument("--seeds", metavar="LIST", default="0,1,2", help="one main run each (default: 0,1,2)")
    ablate.add_argument("--arms", metavar="LIST", default="", help="only these, such as short,kl-0.1 (default: all)")
    ablate.add_argument("--jobs", metavar="N", type=int, default=2, help="child processes at a time (default: 2)")
    ablate.add_argument("--run", metavar="NAME", default="ablation", help="folder for arms and report (default: ablation)")
    ablate.add_argument("--runs-dir", metavar="DIR", default="runs", type=Path, help="where it lies (default: runs)")
    ablate.add_argument(
        "--from", dest="main_runs", metavar="DIR", type=Path, help="where the main runs seed0, seed1 … lie (default: --runs-dir)"
    )
    ablate.add_argument("--redo", action="store_true", help="make arms again from their start; main runs stay")
    ablate.add_argument(
        "--set", metavar="SECTION.FIELD=VALUE", nargs="+", action="extend", default=[], help="settings that win over the file"
    )


def dispatch(options: argparse.Namespace) -> int:
    """Run one of VERBS; returns the exit code. UserError for what the user can put right."""
    if options.verb == "convert":
        from minirlaif.convert.llava import convert

        convert(options.old, options.new, options.vision)
        print(f"{options.new}: done; name it in model.base")
        return 0
    if options.verb == "ablate":
        from minirlaif.ablation import runner

        return runner.run(options)
    if options.gpu_gib is not None and not options.gpu_gib > 0:
        raise UserError(f"--gpu-gib {options.gpu_gib}: must be above 0")
    for flag in ("fit", "out"):
        _check_place(flag, getattr(options, flag, None))
    return _plan(options) if options.verb == "plan" else _bench(options)


def _check_place(flag: str, path: Path | None) -> None:
    """UserError when a file cannot be written there, before the work whose result it is to hold."""
    if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
        raise UserError(f"--{flag} {path}: no file can be written there; make its folder first, or name another file")


def _plan(options: argparse.Namespace) -> int:
    """The table, the verdict, and what was asked for beside them. 0: it fits, 1: it does not, or the probe failed."""
    from minirlaif.memory import fit
    from minirlaif.memory import planner as plan

    if options.table:
        paths = sorted(Path("configs").glob("24gb-*.yaml"))
        if not paths:
            raise UserError("configs/24gb-*.yaml: none here; run `plan --table` in the project's folder")
        print(fit.markdown([(path, config.load(path)) for path in paths], CARDS))
        return 0
    if options.config is None:
        raise UserError("plan: name a config with --config; see `python -m minirlaif plan --help`")
    cfg = config.load(options.config, options.set)
    card = fit.find_card(options.gpu_gib, cfg.model.device)
    found = plan.planned(cfg, card.gpu, options.model_config, runtime=plan.RUNTIME)
    print(plan.table(plan.estimate(found)))
    print("\n".join(fit.verdict(found, card)))
    if options.fit is not None:
        smaller, changes = fit.fitted(found, card)
        write_atomic(options.fit, config.dump(smaller.cfg))
        print(f"{options.fit}: {', '.join(changes) or 'nothing had to change'}")
    if options.probe:
        from minirlaif.memory import measure as session

        with tempfile.TemporaryDirectory() as folder:
            results = session.probe(cfg, Path(folder), options.gpu_gib)
        if any("error" in result for result in results):
            return 1
    return 0 if plan.peak(found)[1] <= card.room or options.fit is not None else 1


def _bench(options: argparse.Namespace) -> int:
    from minirlaif.memory import measure as session

    if options.config is None and not options.model:
        raise UserError("bench: name a model with --model or a config with --config; see `python -m minirlaif bench --help`")
    more = [f"model.base={options.model}"] if options.model else []
    cfg = config.load(options.config, [*more, *options.set])
    return session.run(cfg, session.chosen(options.stages), options.gpu_gib, options.out)
