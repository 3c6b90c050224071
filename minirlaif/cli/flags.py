"""Flags that several verbs share, each in one place, and the parser of a verb."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.run import Run

FLAGS: dict[str, dict[str, Any]] = {
    "config": {"metavar": "FILE", "help": "settings, such as configs/tiny.yaml"},
    "run": {"metavar": "NAME", "required": True, "help": "name of the run folder"},
    "runs-dir": {"metavar": "DIR", "default": "runs", "type": Path, "help": "parent of the run folders (default: runs)"},
    "set": {
        "metavar": "SECTION.FIELD=VALUE",
        "nargs": "+",
        "action": "extend",
        "default": [],
        "help": "settings that override the file, such as seed=1 rollout.kl_coef=0.05",
    },
    "redo": {"action": "store_true", "help": "run stages again from the beginning, finished ones too"},
    "gpu-gib": {"metavar": "GIB", "type": float, "help": "GPU memory to plan for, or a limit on that of the installed GPU"},
}


def verb(verbs: Any, name: str, text: str, example: str, call: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """The parser of one verb. call: what the verb does with the parsed flags; it returns the exit code."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  python -m minirlaif {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call)
    return parser


def add_flags(parser: argparse.ArgumentParser, *names: str, **changes: dict[str, Any]) -> None:
    """Add shared flags (keys of FLAGS). changes: what differs for this verb, by the flag's name with underscores."""
    for name in names:
        parser.add_argument(f"--{name}", **FLAGS[name] | changes.get(name.replace("-", "_"), {}))


def positive(text: str) -> int:
    """A flag's value as a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return number


def run_folder(options: argparse.Namespace) -> Run:
    """The run that `--run` and `--runs-dir` name. UserError for a name that is no plain folder name."""
    if not options.run or Path(options.run).name != options.run or options.run == "..":
        raise UserError(f"--run {options.run!r}: must be a plain name; name its parent folder with --runs-dir")
    given: list[str] = []
    if hasattr(options, "set") and options.config:
        given = ["--config", options.config, *(["--set", *options.set] if options.set else [])]
    return Run(options.runs_dir / options.run, given)
