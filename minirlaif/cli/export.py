"""The verb `export`: its flags, and what each does. No torch before work starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from minirlaif import config
from minirlaif.errors import UserError
from minirlaif.gguf.export.quantize import chosen_types
from minirlaif.runs.run import Run

TYPES = "f16,q8_0,q4_k_m"
QUESTIONS = {True: 500, False: 20}  # most questions for each file: of the tiny world, of clips that take a CPU longer


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of `export`."""
    parser.add_argument("--config", metavar="FILE", help="settings (default: those of the run)")
    parser.add_argument("--run", metavar="NAME", required=True, help="name of the run folder")
    parser.add_argument("--runs-dir", metavar="DIR", default="runs", type=Path, help="where run folders lie (default: runs)")
    parser.add_argument("--types", metavar="LIST", default=TYPES, help="of the text model, best first (default: %(default)s)")
    parser.add_argument("--adapters", action="store_true", help="the base, and small LoRA files of sft and rlaif")
    parser.add_argument(
        "--questions", metavar="N", type=int, help="test questions to ask each file (default: 500, own clips: 20)"
    )
    parser.add_argument(
        "--verify",
        metavar="FOLDER",
        nargs="?",
        const=Path(),
        type=Path,
        help="make nothing, compare GGUF files with the run's model (default: those of its export)",
    )
    parser.add_argument("--redo", action="store_true", help="export again")


def run(options: argparse.Namespace) -> int:
    """Export a run, or compare files with it. Exit code 1 when `--verify` found a difference."""
    found = Run(options.runs_dir / options.run)
    settings = options.config or found.root / "config.yaml"
    if options.config is None and not settings.is_file():
        raise UserError(f"{found.root}: no such run folder, or no config.yaml in it; name a run with --run and --runs-dir")
    cfg = config.load(settings)
    types = chosen_types(options.types)
    questions = QUESTIONS[bool(cfg.data.world)] if options.questions is None else options.questions
    if questions < 1:
        raise UserError(f"--questions {questions}: must be at least 1")
    if options.verify is not None:
        from minirlaif.gguf.export.verify import verify

        return verify(cfg, found, options.verify if options.verify != Path() else found.dir("export"), questions)
    given = ["--types", options.types] if options.types != TYPES else []
    found = Run(found.root, [*found.given, *given, *(["--adapters"] if options.adapters else [])])
    export_run(cfg, found, types, options.adapters, questions, options.redo)
    return 0


def after_run(cfg: config.Config, run: Run, redo: bool) -> None:
    """What `run` does at its end where `export.enabled`: the export that the verb makes without flags."""
    export_run(cfg, Run(run.root), chosen_types(TYPES), False, QUESTIONS[bool(cfg.data.world)], redo)


def export_run(cfg: config.Config, run: Run, types: tuple[str, ...], adapters: bool, questions: int, redo: bool) -> None:
    """The stage, which loads torch."""
    from minirlaif.stages import export

    export.run(cfg, run, export.ExportOptions(types, adapters, questions), redo=redo)
