"""The verbs that measure models: `evaluate --benchmark`, `compare`, `audit`. Their flags, and what each does. No torch before
work starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.cli import plan
from minirlaif.errors import UserError

VERBS = ("compare", "audit")
READ_SECONDS = 60.0  # for a clip that is shown


def add_benchmark_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that turn the stage `evaluate` into the evaluation of a benchmark."""
    group = parser.add_argument_group("a benchmark instead of the run's own test questions (--config is then the run's own)")
    group.add_argument("--benchmark", metavar="B", help="its file or folder, or the name of one in benchmarks/")
    group.add_argument("--videos", metavar="DIR", help="folder of its clips")
    group.add_argument(
        "--model",
        metavar="MODEL",
        nargs="+",
        default=[],
        help="rlaif (default), sft or base of the run; an adapter, a folder, a hub id, a .gguf",
    )
    group.add_argument(
        "--judge",
        metavar="J",
        default="normalised",
        help="exact, normalised, hf:FOLDER, gguf:FILE, openai:MODEL, none, or a YAML file",
    )
    group.add_argument(
        "--judge-set", metavar="FIELD=VALUE", nargs="+", action="extend", default=[], help="such as url=… key_env=NAME"
    )
    group.add_argument(
        "--predictions",
        metavar="FILE",
        type=Path,
        help="judge these answers of another program: the benchmark's rows with `pred` (consistency: `pred1` and `pred2`), a file"
        " or a folder; --model names it, --videos is for examples only",
    )
    group.add_argument(
        "--readout", choices=("letter", "likelihood"), default="letter", help="of multiple choice (default: letter)"
    )
    group.add_argument("--ask", metavar="TEXT", default="", help="question of action recognition and retrieval")
    group.add_argument("--limit", metavar="N", type=int, default=0, help="about so many rows, of randomly drawn clips")


def add(verbs: Any) -> None:
    """Add the parsers of VERBS."""
    compare = plan.verb(verbs, "compare", "two runs on everything that both were evaluated on", "compare seed0 seed1")
    compare.add_argument("first", metavar="RUN_A", help="a run, or RUN:MODEL such as tiny:sft")
    compare.add_argument("second", metavar="RUN_B", help="the same; differences are RUN_B minus RUN_A")
    compare.add_argument("--runs-dir", metavar="DIR", default="runs", type=Path, help="where run folders lie (default: runs)")
    compare.add_argument(
        "--out", metavar="DIR", default="", help="folder for the files (default: compare-RUN_A-RUN_B below --runs-dir)"
    )

    audit = plan.verb(verbs, "audit", "label a sample of the judge's verdicts and see how far it is right", "audit --run tiny")
    audit.add_argument("--run", metavar="NAME", required=True, help="a run whose stage feedback is finished")
    audit.add_argument("--runs-dir", metavar="DIR", default="runs", type=Path, help="where run folders lie (default: runs)")
    audit.add_argument("--count", metavar="N", type=int, default=50, help="pairs to label (default: 50)")
    audit.add_argument("--seed", metavar="N", type=int, default=0, help="other seed, other pairs")
    audit.add_argument("--port", metavar="N", type=int, default=7861, help="of the page on 127.0.0.1; 0: any free one")
    audit.add_argument("--report", action="store_true", help="print and write the figures, open no page")
    audit.add_argument("--redo", action="store_true", help="draw a new sample; labels so far are set aside")


def evaluate(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Evaluate models on a benchmark; words: the command line, for messages. UserError for what the user can put right."""
    if distributed.count() > 1:
        raise UserError("evaluate --benchmark: works in one process; start it without `accelerate launch`")
    if not options.videos and not options.predictions:
        raise UserError("evaluate --benchmark: name the folder of its clips with --videos")
    if options.limit < 0:
        raise UserError(f"--limit {options.limit}: must not be negative")
    if options.predictions and len(options.model) != 1:
        raise UserError("--predictions: say with --model whose answers these are, one name")
    from minirlaif.benchmarks import run

    return run.evaluate(options, words)


def dispatch(options: argparse.Namespace) -> int:
    """Run one of VERBS; returns the exit code."""
    if options.verb == "compare":
        from minirlaif.benchmarks.compare import compare

        return compare(options.runs_dir, options.first, options.second, options.out)
    return _audit(options)


def _audit(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise UserError(f"--count {options.count}: must be above 0")
    from minirlaif.benchmarks.audit import Audit
    from minirlaif.runs.run import Run

    audit = Audit(Run(options.runs_dir / options.run), options.count, options.seed, options.redo)
    if options.report:
        print(audit.summary())
        print(f"audit: {audit.write()}")
        return 0
    from minirlaif.app.audit_tab import serve

    serve(audit, options.port, READ_SECONDS)
    return 0
