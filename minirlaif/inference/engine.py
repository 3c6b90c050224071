"""Talking about one clip: what the chat command and the app need of a model, whichever engine runs it. No torch.

An engine opens a clip once (`look`), then streams answers to any number of questions about it. `hf.py` runs a training run's
own adapters, `gguf/runtime.py` exported files through llama.cpp. F frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from minirlaif.types import Turn


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled. temperature 0: the most likely token every time, the same answer every time."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """A clip as an engine sees it.

    video: its path; seconds: its length; times: of each frame, in seconds; pixels_FHW3: uint8 frames exactly as the model gets
    them (maybe squeezed into its square); aspect: width by height of the clip, for showing them in its proportions; key: equal
    for equal clips and frame plans.
    """

    video: str
    seconds: float
    times: tuple[float, ...]
    pixels_FHW3: np.ndarray
    aspect: float
    key: str


class ChatEngine(Protocol):
    """A loaded model. One thread at a time may use it.

    models: names that `stream` takes, best first, such as ("rlaif", "sft"); title: what is loaded, in words; frames and options:
    what it was trained with; counters: decodes, encodes, prefilled_tokens and reused_tokens so far.
    """

    models: tuple[str, ...]
    title: str
    frames: int
    options: SamplingParams

    @property
    def counters(self) -> Mapping[str, int]:
        """What was done so far, by name."""
        ...

    def look(self, video: str, frames: int = 0) -> LoadedClip:
        """Decode `frames` frames (0: `self.frames`), spread evenly over the clip. UserError when it cannot be read."""
        ...

    def stream(
        self, look: LoadedClip, turns: Sequence[Turn], question: str, options: SamplingParams, model: str = ""
    ) -> Iterator[str]:
        """Pieces of the answer as they are sampled; joined, they are the answer.

        turns: the conversation so far, with answers; model: one of `models` ("": the first). A consumer may stop early.
        UserError when the conversation no longer fits the context.
        """
        ...

    def score(self, look: LoadedClip, question: str, answer: str) -> float | None:
        """The reward model's score of an answer; None where this engine has none."""
        ...

    def close(self) -> None:
        """Free the model and the clip reader."""
        ...


@dataclass(frozen=True)
class Judged:
    """What a run's own judge says about answers A and B: choice, margin and orders as in `records.Verdict`, and the context
    that it read ("": none)."""

    choice: str
    margin: float
    orders: tuple[str, str]
    context: str


@runtime_checkable
class Judging(Protocol):
    """An engine that also has the run's judge."""

    def judge(self, look: LoadedClip, question: str, answer_a: str, answer_b: str) -> Judged:
        """Which answer is better."""
        ...
