"""`python -m minirlaif`."""

import os
import select
import sys

from minirlaif.cli.main import main


def _spoken() -> int:
    """`main`, for a reader of the output that may leave early, as `head` does: what other programs die of quietly (SIGPIPE)."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        if not any(what & select.POLLERR for _, what in watch.poll(0)):
            raise  # another pipe's trouble
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return 141
    return code


if __name__ == "__main__":
    sys.exit(_spoken())
