"""The chat app: `python app.py`, or `python app.py --help`."""

from minirlaif.app.server import main

if __name__ == "__main__":
    raise SystemExit(main())
