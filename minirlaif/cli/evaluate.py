"""The verbs that measure models: `evaluate --benchmark`, `compare`, `audit`. No torch before work starts."""

import argparse
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.cli.flags import add_flags, positive, verb
from minirlaif.errors import UserError
from minirlaif.runs.run import Run

DECODE_SECONDS = 60.0  # longest time to decode a clip that the audit page shows


def add_benchmark_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that turn the stage `evaluate` into the evaluation of a benchmark."""
    group = parser.add_argument_group("evaluate a benchmark instead of the run's test questions (--config default: the run's)")
    group.add_argument("--benchmark", metavar="B", help="benchmark file or folder, or a name in benchmarks/")
    group.add_argument("--videos", metavar="DIR", help="folder of the benchmark's clips")
    models = "rlaif (default), sft or base of the run; an adapter folder, a model folder, a hub id, a .gguf file"
    group.add_argument("--model", metavar="MODEL", nargs="+", default=[], help=models)
    judges = "exact, normalised (default), hf:FOLDER, gguf:FILE, openai:MODEL, none, or a YAML file"
    group.add_argument("--judge", metavar="J", default="normalised", help=judges)
    fields = "fields of the judge, such as url=… key_env=NAME"
    group.add_argument("--judge-set", metavar="FIELD=VALUE", nargs="+", action="extend", default=[], help=fields)
    predictions = (
        "grade the answers of another program: a file or folder with the benchmark's rows and `pred` (consistency: `pred1` and"
        " `pred2`); --model gives them a name, --videos is only needed for examples"
    )
    group.add_argument("--predictions", metavar="FILE", type=Path, help=predictions)
    readout = "how multiple choice is answered (default: letter)"
    group.add_argument("--readout", choices=("letter", "likelihood"), default="letter", help=readout)
    group.add_argument("--ask", metavar="TEXT", default="", help="question for action recognition and retrieval")
    group.add_argument("--limit", metavar="N", type=int, default=0, help="use about N rows, of randomly drawn clips")


def add(verbs: Any) -> None:
    """Add the parsers of `compare` and `audit`."""
    text = "compare two runs on every question set that both were evaluated on"
    pair = verb(verbs, "compare", text, "compare seed0 seed1", compare)
    pair.add_argument("first", metavar="RUN_A", help="a run, or RUN:MODEL such as tiny:sft")
    pair.add_argument("second", metavar="RUN_B", help="another one; differences are RUN_B minus RUN_A")
    add_flags(pair, "runs-dir")
    pair.add_argument("--out", metavar="DIR", default="", help="output folder (default: compare-RUN_A-RUN_B in --runs-dir)")

    text = "label a sample of the judge's verdicts by hand and measure its agreement"
    labels = verb(verbs, "audit", text, "audit --run tiny", audit)
    redo = {"help": "draw a new sample; existing labels are moved to a backup"}
    add_flags(labels, "run", "runs-dir", "redo", run={"help": "a run whose stage feedback is finished"}, redo=redo)
    labels.add_argument("--count", metavar="N", type=positive, default=50, help="pairs to label (default: 50)")
    labels.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the sample (default: 0)")
    labels.add_argument("--port", metavar="N", type=int, default=7861, help="port on 127.0.0.1 (default: 7861; 0: any free one)")
    labels.add_argument("--report", action="store_true", help="print and write the results without opening the page")


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
