"""The verbs that measure models: `evaluate --benchmark`, `compare`, `audit`. No torch before work starts."""

from __future__ import annotations

import argparse
from typing import Any

from minirlaif import distributed
from minirlaif.cli.flags import add_flags, tables, verb
from minirlaif.errors import UserError
from minirlaif.runs.run import Run

DECODE_SECONDS = 60.0  # longest time to decode a clip that the audit page shows


def add_benchmark_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that turn the stage `evaluate` into the evaluation of a benchmark."""
    group = parser.add_argument_group("a benchmark instead of the run's own test questions (--config is then the run's own)")
    add_flags(group, tables()["benchmark"])


def add(verbs: Any) -> None:
    """Add the parsers of `compare` and `audit`."""
    verb(verbs, "compare", compare)
    verb(verbs, "audit", audit)


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate models on a benchmark."""
    if distributed.count() > 1:
        raise UserError("evaluate --benchmark: works in one process; start it without `accelerate launch`")
    if not options.videos and not options.predictions:
        raise UserError("evaluate --benchmark: name the folder of its clips with --videos")
    if options.limit < 0:
        raise UserError(f"--limit {options.limit}: must not be negative")
    if options.predictions and len(options.model) != 1:
        raise UserError("--predictions: give these answers one name with --model")
    from minirlaif.benchmarks import run

    return run.evaluate(options, options.arguments)


def compare(options: argparse.Namespace) -> int:
    """Compare two runs."""
    from minirlaif.benchmarks import compare

    return compare.compare(options.runs_dir, options.first, options.second, options.out)


def audit(options: argparse.Namespace) -> int:
    """Serve the labelling page, or print the results."""
    from minirlaif.benchmarks.audit import Audit

    sample = Audit(Run(options.runs_dir / options.run), options.count, options.seed, options.redo)
    if options.report:
        print(sample.summary())
        print(f"audit: {sample.write()}")
        return 0
    from minirlaif.app.audit_tab import serve

    serve(sample, options.port, DECODE_SECONDS)
    return 0
