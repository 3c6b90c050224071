"""The app in a process of its own, for the tests: serves with the flags of app.py and answers lines on stdin.

"counters": the engine's, as JSON; "modules": which of the heavy modules were imported.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

from minirlaif.app import server
from minirlaif.app.talks import Talks

HEAVY = ("torch", "transformers", "peft", "accelerate")


def main() -> int:
    kept: list[Talks] = []

    class Kept(Talks):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            kept.append(self)

    def answer() -> None:
        for line in sys.stdin:
            found: Any = [name for name in HEAVY if name in sys.modules]
            if line.strip() == "counters":
                found = dict(kept[0].engine.counters)
            print(json.dumps(found), flush=True)

    server.Talks = Kept  # type: ignore[misc]
    threading.Thread(target=answer, daemon=True).start()
    return server.main(sys.argv[1:])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(main())
