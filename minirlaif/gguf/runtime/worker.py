"""The process in which llama.cpp runs; engine.py starts it and sends requests (see `child_process.serve`). No torch.

A request with a shape is followed by the raw bytes of frames.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.gguf import export_info
from minirlaif.gguf.runtime.generator import AnswerGenerator
from minirlaif.inference.engine import SamplingParams
from minirlaif.types import Turn
from minirlaif.video.child_process import serve


class Worker:
    """A generator and the answer in progress. One method per verb; each takes the request and the frames that came with it."""

    generator: AnswerGenerator
    pieces: Iterator[str]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call the method that the request names; its reply with the counters so far."""
        shape = request.get("shape", (0,))
        pixels = np.frombuffer(sys.stdin.buffer.read(int(np.prod(shape))), np.uint8).reshape(shape)
        reply: dict[str, Any] = getattr(self, request["verb"])(request, pixels)
        return reply | {"counters": self.generator.counters}

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
        """The next piece of the answer; None after the last one."""
        return {"piece": next(self.pieces, None)}


if __name__ == "__main__":
    serve(Worker().answer)
