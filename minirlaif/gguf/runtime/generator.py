"""An exported model that looks and answers, in this process: prompts, frames and sampling around `llama.Session`. No torch.

A native assertion of llama.cpp would end the process: `runtime.py` runs a speaker in a child. F frames, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minirlaif.errors import UserError
from minirlaif.gguf.export_info import FILE, Facts
from minirlaif.gguf.runtime.llama import Session, length
from minirlaif.gguf.runtime.projector import Seen, grouped, placed
from minirlaif.inference.engine import SamplingParams
from minirlaif.models.renderer import FrameLayout, Renderer, pieces
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import FrameSize

CLIPS = 8  # clips whose vectors are kept, the latest ones
GRAIN = 256  # a memory is made in steps of so many tokens, and with room for so many more than now needed


@dataclass(frozen=True, eq=False)
class _Clip:
    shown: FrameLayout
    seen: tuple[Seen, ...]


class Speaker:
    """A model with its renderer, its clips and its memory. Close it.

    Args:
        facts: how prompts and frames are made; adapters: LoRA file by model, where one is not the text file as it is.
        text, mmproj: the files; threads: of the CPU; n_ctx: tokens of the memory (0: as many as a conversation needs).
    Attributes:
        counters: encodes (of clips), prefilled_tokens, reused_tokens, decoded_tokens.
    """

    def __init__(
        self, facts: Facts, adapters: Mapping[str, Path], text: Path, mmproj: Path, threads: int = 1, n_ctx: int = 0
    ) -> None:
        self._facts, self._adapters, self._fixed, self._eyes_name = facts, adapters, bool(n_ctx), mmproj.name
        self._session = Session(text, mmproj, n_ctx or 1, threads)
        try:
            self.renderer = Renderer(self._session.vocabulary, facts.layout)
        except BaseException:
            self._session.close()
            raise
        banned = [*self._session.vocabulary.added_tokens_decoder, *self._session.vocabulary.unused]
        self._banned = [token for token in banned if token != self.renderer.end_id]
        self._clips: OrderedDict[str, _Clip] = OrderedDict()
        self._encodes = 0

    @property
    def counters(self) -> dict[str, int]:
        """What was done so far."""
        return {**self._session.counters, "encodes": self._encodes}

    def close(self) -> None:
        """Free the model."""
        self._session.close()

    def knows(self, key: str) -> bool:
        """Whether the vectors of a clip's frames are at hand."""
        return key in self._clips

    def see(self, key: str, times: Sequence[float], seconds: float, pixels_FHW3: np.ndarray) -> None:
        """Look at a clip's frames, once. A short last group repeats its last frame, as in training."""
        size = self._facts.layout.group or len(pixels_FHW3)
        vectors = self._facts.sizing.vectors(FrameSize(*pixels_FHW3.shape[1:3]))
        self._most(-(-len(pixels_FHW3) // size) * vectors)  # before anything costly
        seen = tuple(map(self._session.encode, grouped(pixels_FHW3, size)))
        if seen[0].vectors != vectors:
            raise UserError(
                f"{self._eyes_name}: makes {seen[0].vectors} vectors of a frame, {FILE} says {vectors}; take both from one export"
            )
        self._encodes += 1
        self._clips[key] = _Clip(FrameLayout(tuple(times), seconds, vectors), seen)
        while len(self._clips) > CLIPS:
            for old in self._clips.popitem(last=False)[1].seen:
                self._session.drop(old)

    def stream(self, key: str, turns: Sequence[Turn], question: str, options: SamplingParams, model: str) -> Iterator[str]:
        """Pieces of the answer; see `talk.Engine`. UserError when the conversation does not fit the model's context."""
        self._clips.move_to_end(key)
        clip = self._clips[key]
        items = placed(self.renderer.prompt(clip.shown, question, turns=turns), self.renderer.image_id, clip.seen)
        room = self._make_room(length(items), options.max_new_tokens)
        path = self._adapters.get(model)
        self._session.adapt({path: 1.0} if path else {})
        opening = len(placed(self.renderer.opening(clip.shown), self.renderer.image_id, clip.seen))
        yield from pieces(self.renderer, self._tokens(items, opening, options, room))

    def _make_room(self, asked: int, answer: int) -> int:
        """A memory for a prompt of `asked` tokens and an answer; how many tokens the answer may have."""
        session, most = self._session, self._most(asked)
        answer = min(answer, most - asked)
        if asked + answer > session.n_ctx:
            session.resize(min(most, (-(-(asked + answer) // GRAIN) + 1) * GRAIN))
        return answer

    def _most(self, asked: int) -> int:
        """How many tokens a conversation may have. UserError when so many are asked for that none is left for an answer."""
        most = self._session.n_ctx if self._fixed else self._session.trained_ctx
        if asked >= most:
            what, way = ("--ctx allows", "raise it, show") if self._fixed else ("the model takes", "clear the conversation, show")
            raise UserError(f"the conversation has {asked} tokens, {what} {most}: {way} fewer frames or ask for less")
        return most

    def _tokens(self, items: Sequence[int | Seen], opening: int, options: SamplingParams, room: int) -> Iterator[int]:
        source = np.random.default_rng(options.seed)
        logits_V = self._session.prefill(items, mark=opening)
        for number in range(room):
            logits_V[self._banned] = -np.inf
            token = choose(logits_V, options.temperature, options.top_p, source)
            if token == self.renderer.end_id:
                return
            yield token
            if number + 1 < room:
                logits_V = self._session.step(token)


def choose(logits_V: np.ndarray, temperature: float, top_p: float, source: np.random.Generator) -> int:
    """A token by its logits, as `sampling.sample` chooses: temperature 0 takes the most likely one; top_p keeps the smallest set
    of tokens with so much probability."""
    if temperature == 0:
        return int(logits_V.argmax())
    chances_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
    chances_V /= chances_V.sum()
    if top_p < 1:
        order_V = np.argsort(-chances_V, kind="stable")
        before_V = chances_V[order_V].cumsum() - chances_V[order_V]
        chances_V[order_V[before_V >= top_p]] = 0
    ladder_V = chances_V.cumsum()
    return int(np.searchsorted(ladder_V, source.random() * ladder_V[-1], side="right").clip(max=len(ladder_V) - 1))
