"""The app in a process of its own, for the tests: serves with the flags of app.py and answers lines on stdin.

"counters": the engine's, as JSON; "asked": the questions that it was asked so far; "at once" and "most at once": answers
in progress; "modules": which of the heavy modules were imported.

The tiny model answers within milliseconds. Behind a question that begins with "slow " each piece of its answer takes PAUSE; the
model is asked without the word.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from minirlaif.app import server
from minirlaif.app.conversations import Talks
from minirlaif.gguf.runtime import engine as runtime
from minirlaif.inference.engine import Look, Options
from minirlaif.types import Turn

HEAVY = ("torch", "transformers", "peft", "accelerate")
PAUSE = 0.3  # seconds


class SlowEngine(runtime.GgufEngine):
    """The engine over exported files, at the pace of a large model where a question wants that."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    def stream(self, look: Look, turns: Sequence[Turn], question: str, options: Options, model: str = "") -> Iterator[str]:
        self.asked.append(question)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        pieces: Any = super().stream(look, turns, question.removeprefix("slow "), options, model)
        try:
            with closing(pieces):
                for piece in pieces:
                    yield piece
                    time.sleep(PAUSE if question.startswith("slow ") else 0)
        finally:
            self.at_once -= 1


def main() -> int:
    kept: list[Talks] = []

    class Kept(Talks):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            kept.append(self)

    def answer() -> None:
        for line in sys.stdin:
            found: Any = [name for name in HEAVY if name in sys.modules]
            engine: Any = kept[0].engine
            if line.strip() == "counters":
                found = dict(engine.counters)
            elif line.strip() == "asked":
                found = engine.asked
            elif line.strip() == "at once":
                found = engine.at_once
            elif line.strip() == "most at once":
                found = engine.most_at_once
            print(json.dumps(found), flush=True)

    server.Talks = Kept  # type: ignore[misc]
    runtime.GgufEngine = SlowEngine  # type: ignore[misc]
    threading.Thread(target=answer, daemon=True).start()
    return server.main(sys.argv[1:])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(main())
