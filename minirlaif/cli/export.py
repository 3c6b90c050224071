"""The verb `export`. No torch before work starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif import config
from minirlaif.cli.flags import add_flags, positive, run_folder, verb
from minirlaif.errors import UserError
from minirlaif.gguf.export.quantize import chosen_types
from minirlaif.runs.run import Run

if TYPE_CHECKING:
    from minirlaif.stages.export import ExportOptions

TYPES = "f16,q8_0,q4_k_m"
QUESTIONS = {True: 500, False: 20}  # most questions for each file: of the tiny world, of clips that take a CPU longer


def add(verbs: Any) -> None:
    """Add the parser of `export`."""
    parser = verb(verbs, "export", "write the RLAIF model as GGUF files and compare them with it", "export --run tiny", run)
    settings = {"help": "settings (default: those of the run)"}
    add_flags(parser, "config", "run", "runs-dir", "redo", config=settings, redo={"help": "export again"})
    types = "types of the text model, best first (default: %(default)s)"
    parser.add_argument("--types", metavar="LIST", default=TYPES, help=types)
    parser.add_argument("--adapters", action="store_true", help="write the base model, and small LoRA files of sft and rlaif")
    questions = "test questions to ask each file (default: 500, own clips: 20)"
    parser.add_argument("--questions", metavar="N", type=positive, help=questions)
    verify = "export nothing; compare GGUF files (default: those of this run's export) with the run's model"
    parser.add_argument("--verify", metavar="FOLDER", nargs="?", const=Path(), type=Path, help=verify)


def run(options: argparse.Namespace) -> int:
    """Export a run, or compare files with it. Exit code 1 when `--verify` found a difference."""
    run = run_folder(options)
    settings = options.config or run.root / "config.yaml"
    if options.config is None and not settings.is_file():
        raise UserError(f"{run.root}: no such run folder, or no config.yaml in it; name a run with --run and --runs-dir")
    cfg = config.load(settings)
    types = chosen_types(options.types)
    questions = options.questions or QUESTIONS[bool(cfg.data.world)]
    if options.verify is not None:
        from minirlaif.gguf.export.verify import verify

        folder = options.verify if options.verify != Path() else run.dir("export")
        return verify(run, cfg.model, cfg.video, cfg.data, folder, questions, cfg.evaluate.max_new_tokens)
    given = ["--types", options.types] if options.types != TYPES else []
    run = Run(run.root, [*given, *(["--adapters"] if options.adapters else [])])
    export_run(cfg, run, types, options.adapters, questions, options.redo)
    return 0


def default_options(cfg: config.Config) -> ExportOptions:
    """What `export` writes without flags."""
    from minirlaif.stages.export import ExportOptions

    return ExportOptions(chosen_types(TYPES), False, QUESTIONS[bool(cfg.data.world)])


def after_run(cfg: config.Config, run: Run, redo: bool) -> None:
    """The export at the end of `run` with `export.enabled`: what the verb does without flags."""
    options = default_options(cfg)
    export_run(cfg, Run(run.root), options.types, options.adapters, options.questions, redo)


def export_run(cfg: config.Config, run: Run, types: tuple[str, ...], adapters: bool, questions: int, redo: bool) -> None:
    """Run the stage `export`, which loads torch."""
    from minirlaif.stages import export

    export.run(cfg, run, export.ExportOptions(types, adapters, questions), redo=redo)
