"""The parsers of the verbs from verbs.yaml, and the run that the flags name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from minirlaif.errors import UserError
from minirlaif.runs.run import Run


def positive(text: str) -> int:
    """A flag's value as a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return number


TYPES = {"int": int, "float": float, "path": Path, "positive": positive}


@cache
def tables() -> dict[str, Any]:
    """The content of verbs.yaml."""
    text = Path(__file__).with_name("verbs.yaml").read_text(encoding="utf-8")
    rows: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # every command reads it: prefer C
    return rows


def verb(
    verbs: Any, name: str, call: Callable[[argparse.Namespace], int], row: Mapping[str, Any] | None = None
) -> argparse.ArgumentParser:
    """The parser of one verb, with its flags. call: what the verb does with the parsed flags; it returns the exit code. row: its
    help, example and flags, where it has none in verbs.yaml."""
    row = row or tables()["verbs"][name]
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=row["help"],
        description=f"{row['help'][0].upper()}{row['help'][1:]}.",
        epilog=f"example:\n  python -m minirlaif {row['example']}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call)
    add_flags(parser, row.get("flags", {}))
    return parser


def add_flags(parser: Any, flags: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Add flags as verbs.yaml has them to a parser, or to a group of one."""
    for name, changes in flags.items():
        arguments = tables()["shared"].get(name, {}) | (changes or {})
        if "type" in arguments:
            arguments["type"] = TYPES[arguments["type"]]
        parser.add_argument(name, **arguments)


def run_folder(options: argparse.Namespace) -> Run:
    """The run that `--run` and `--runs-dir` name. UserError for a name that is no plain folder name."""
    if not options.run or Path(options.run).name != options.run or options.run == "..":
        raise UserError(f"--run {options.run!r}: must be a plain name; name its parent folder with --runs-dir")
    given: list[str] = []
    if hasattr(options, "set") and options.config:
        given = ["--config", options.config, *(["--set", *options.set] if options.set else [])]
    return Run(options.runs_dir / options.run, given)
