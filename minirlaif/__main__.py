"""`python -m minirlaif`."""

import os
import sys

from minirlaif.cli import main


def _spoken() -> int:
    """`main`, for a reader of the output that may leave early, as `head` does: what other programs die of quietly (SIGPIPE)."""
    try:
        try:
            return main()
        finally:  # also when argparse ends the program, after --help
            sys.stdout.flush()
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
            return 141
        raise  # another pipe's trouble


if __name__ == "__main__":
    sys.exit(_spoken())
