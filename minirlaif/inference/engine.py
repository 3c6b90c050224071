"""Chat about one clip: the interface that `chat`, the app and the benchmarks use, whichever engine runs the model. No torch.

An engine loads a clip once (`load_clip`), then streams answers to any number of questions about it. `hf_engine.py` runs the
adapters of a training run, `gguf/runtime/engine.py` runs exported files through llama.cpp. F: number of frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from minirlaif.types import Turn


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled. temperature 0: greedy decoding, the same answer every time."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """A clip as an engine has loaded it.

    video: its path; seconds: its length; times: of each frame, in seconds; pixels_FHW3: uint8 frames exactly as the model gets
    them (possibly resized to a square); aspect: width divided by height of the clip, to show frames undistorted; key: equal for
    equal clips and frame plans.
    """

    video: str
    seconds: float
    times: tuple[float, ...]
    pixels_FHW3: np.ndarray
    aspect: float
    key: str


class ChatEngine(Protocol):
    """A loaded model. Only one thread at a time may use it.

    models: names that `stream` takes, best first, such as ("rlaif", "sft"); title: the model and its run, for people; frames and
    sampling: the values that it was trained with.
    """

    models: tuple[str, ...]
    title: str
    frames: int
    sampling: SamplingParams

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals so far: decodes, encodes, prefilled_tokens, reused_tokens."""

    def load_clip(self, video: str, frames: int = 0) -> LoadedClip:
        """Decode `frames` frames (0: `self.frames`), spread evenly over the clip; recent clips are cached.
        UserError: the clip cannot be read."""

    def stream(
        self, clip: LoadedClip, turns: Sequence[Turn], question: str, sampling: SamplingParams, model: str = ""
    ) -> Iterator[str]:
        """Pieces of the answer as they are sampled; joined, they are the answer. Finish or close a stream before the next call.

        turns: the conversation so far, with answers; model: one of `models` ("": the first).
        UserError: the conversation no longer fits the context.
        """

    def score(self, clip: LoadedClip, question: str, answer: str) -> float | None:
        """The reward model's score of an answer; None for an engine without a reward model."""

    def close(self) -> None:
        """Free the model and stop the clip reader."""


@dataclass(frozen=True)
class JudgeVerdict:
    """The verdict of a run's own judge on answers A and B: choice, margin and orders as in `types.Verdict`, and the context that
    it read ("": none)."""

    choice: str
    margin: float
    orders: tuple[str, str]
    context: str


@runtime_checkable
class JudgingEngine(Protocol):
    """An engine that also has the run's judge."""

    def judge(self, clip: LoadedClip, question: str, answer_a: str, answer_b: str) -> JudgeVerdict:
        """Which answer is better."""
