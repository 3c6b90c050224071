"""`python -m minirlaif`."""

import sys

from minirlaif.cli import main

if __name__ == "__main__":
    sys.exit(main())
