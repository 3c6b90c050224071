"""The command line: the parser of all verbs, and the exit codes. No torch before work starts."""

import argparse
import difflib
import errno
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from minirlaif import __version__, distributed
from minirlaif.cli import chat, doctor, evaluate, export, frames, plan, run, start
from minirlaif.errors import UserError
from minirlaif.runs.io import disk_is_full
from minirlaif.runs.progress import heartbeat

INTERACTIVE = ("chat",)  # verbs that wait for a person
EXAMPLES = """examples:
  python -m minirlaif doctor                                            check the installation
  python -m minirlaif start clips --card 24                             write a config for a folder of clips
  python -m minirlaif run --config configs/tiny.yaml --run tiny         all stages on a laptop, into runs/tiny/
  python -m minirlaif run --config configs/tiny.yaml --run b --set seed=1 rollout.kl_coef=0.05
  python -m minirlaif status --run tiny                                 show which stages are finished
  python -m minirlaif plan --config configs/24gb-smolvlm2-500m.yaml --gpu-gib 24    estimate GPU memory
  python -m minirlaif bench --model smolvlm2-500m --gpu-gib 24          measure GPU memory, with random weights
"""


class _Parser(argparse.ArgumentParser):
    verbs: Mapping[str, Any] = {}

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"argument VERB: invalid choice: '(.*?)'", message):
            nearest = difflib.get_close_matches(match[1], self.verbs, n=1, cutoff=0.0)[0]
            message = f"{match[1]}: no such verb (did you mean {nearest}?)"
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0: done, 1: `doctor` found something missing, `plan` that it does not
    fit, or `bench` that a stage fails, 2: an error that the user can correct, 130: Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _parser().print_help()
        return 0
    try:
        options = _parser().parse_args(arguments)
        options.arguments = arguments
        with heartbeat(options.verb) if options.verb not in INTERACTIVE else nullcontext():
            code: int = options.call(options)
        return code
    except UserError as error:
        return _print_error(str(error))
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "minirlaif", *(word for word in arguments if word != "--redo")])
        return _print_error(f"interrupted; run `{again}` again to resume from the last saved step", code=130)
    except OSError as error:
        if disk_is_full(error, Path.cwd()):
            return _print_error("the disk is full; free some space and run the command again to resume")
        if error.filename is None:
            raise
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return _print_error(f"{error.filename}: {str(error.strerror).lower()}; choose another folder with --runs-dir")
        again = "see that the disk is there and nothing was renamed, then run the command again"
        return _print_error(f"{error.filename}: {str(error.strerror).lower()}; {again}")


def _print_error(message: str, code: int = 2) -> int:
    program = "minirlaif" if distributed.leads() else f"minirlaif, process {distributed.rank()}"
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m minirlaif",
        description="Train a video-language model with RLAIF: SFT, AI feedback, reward model, PPO, evaluation.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"minirlaif {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in (start, run, plan, export, chat, frames, evaluate, doctor):
        module.add(verbs)
    parser.verbs = verbs.choices
    return parser
