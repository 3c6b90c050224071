"""`python -m minirlaif`."""

import os
import select
import sys

from minirlaif.cli.main import main


def _main() -> int:
    """`main`, with exit code 141 as after SIGPIPE when the reader of the output ends early, as `head` does."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        if not any(what & select.POLLERR for _, what in watch.poll(0)):
            raise  # it was another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python prints one more error at its end
        return 141
    return code


if __name__ == "__main__":
    sys.exit(_main())
