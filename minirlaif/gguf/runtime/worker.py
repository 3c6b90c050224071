"""The process in which llama.cpp runs; client.py starts it and sends requests over stdin. When it dies, the program lives on.

A request is one JSON line, followed by the raw bytes of frames where it has a shape; a reply is one JSON line. No torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.runtime.generator import AnswerGenerator
from minirlaif.inference.engine import SamplingParams
from minirlaif.types import Turn


class Worker:
    """A generator and the answer in progress. One method per verb; each takes the request and the frames that came with it."""

    generator: AnswerGenerator
    pieces: Iterator[str]

    def open(self, request: dict[str, Any], pixels_FHW3: np.ndarray) -> dict[str, Any]:
        """Open the files."""
        folder = Path(request["folder"])
        info = export_info.read(folder)
        adapters = {model: folder / name for model, name in info.adapters.items()}
        files = Path(request["text"]), Path(request["mmproj"])
        self.generator = AnswerGenerator(info, adapters, *files, request["threads"], request["n_ctx"])
        return {}

    def encode_clip(self, request: dict[str, Any], pixels_FHW3: np.ndarray) -> dict[str, Any]:
        """Encode the frames of a clip."""
        self.generator.encode_clip(request["key"], request["times"], request["seconds"], pixels_FHW3)
        return {}

    def begin(self, request: dict[str, Any], pixels_FHW3: np.ndarray) -> dict[str, Any]:
        """Start an answer; {"known": False} when the clip has to be encoded first."""
        if not self.generator.has_clip(request["key"]):
            return {"known": False}
        turns = [Turn(*turn) for turn in request["turns"]]
        options = SamplingParams(**request["options"])
        self.pieces = self.generator.stream(request["key"], turns, request["question"], options, request["model"])
        return {"known": True}

    def next(self, request: dict[str, Any], pixels_FHW3: np.ndarray) -> dict[str, Any]:
        """The next piece of the answer; None behind the last."""
        return {"piece": next(self.pieces, None)}


def main() -> None:
    """Answer requests until stdin closes."""
    replies: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not print into the replies
    worker = Worker()
    try:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            shape = request.get("shape", (0,))
            pixels = np.frombuffer(sys.stdin.buffer.read(int(np.prod(shape))), np.uint8).reshape(shape)
            try:
                reply = getattr(worker, request["verb"])(request, pixels)
            except UserError as error:
                reply = {"error": str(error)}
            generator = getattr(worker, "generator", None)
            replies.write(json.dumps(reply | {"counters": generator.counters if generator else {}}).encode() + b"\n")
            replies.flush()
    finally:
        if hasattr(worker, "generator"):
            worker.generator.close()


if __name__ == "__main__":
    main()
