"""The process in which llama.cpp answers; engine.py starts it and sends requests (see `child_process.serve`). No torch.

Prompts, frames and sampling around a `LlamaSession`, in a process of their own because a native assertion of llama.cpp would end
it. F frames, V vocabulary.
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.runtime.bindings import EncodedFrames, group_frames, insert_frames
from minirlaif.gguf.runtime.llama import LlamaSession, length
from minirlaif.inference.engine import SamplingParams
from minirlaif.models.renderer import FrameLayout, Renderer, pieces
from minirlaif.types import Turn
from minirlaif.video.child_process import serve
from minirlaif.video.frame_sampling import FrameSize

CLIPS = 8  # clips whose vectors stay in memory, the latest ones
GRAIN = 256  # tokens; the KV cache grows in such steps, and by one more than the conversation needs now


class AnswerGenerator:
    """A model with its renderer, its encoded clips and its KV cache. Needs `close`.

    Args:
        folder: of the export; text, mmproj: the files; threads: of the CPU; n_ctx: tokens of the KV cache (0: as many as a
        conversation needs).
    Attributes:
        clips: encoded frames by key of a clip, the latest ones.
        counters: encodes (of clips), prefilled_tokens, reused_tokens, decoded_tokens.
        cut: whether the last answer ended at its limit of tokens.
    """

    cut = False

    def __init__(self, folder: Path, text: Path, mmproj: Path, threads: int = 1, n_ctx: int = 0) -> None:
        self._folder, self._fixed, self._mmproj_name = folder, bool(n_ctx), mmproj.name
        self._info = export_info.read(folder)
        self._session = LlamaSession(text, mmproj, n_ctx or 1, threads)
        self.renderer = Renderer(self._session.vocabulary, self._info.layout)
        disallowed = [*self._session.vocabulary.added_tokens_decoder, *self._session.vocabulary.unused]
        self._disallowed = [token for token in disallowed if token != self.renderer.end_id]
        self.clips: OrderedDict[str, tuple[FrameLayout, tuple[EncodedFrames, ...]]] = OrderedDict()
        self._encodes = 0

    @property
    def counters(self) -> dict[str, int]:
        """Counts so far."""
        return {**self._session.counters, "encodes": self._encodes}

    def close(self) -> None:
        """Free the model."""
        self._session.close()

    def encode_clip(self, key: str, times: Sequence[float], seconds: float, pixels_FHW3: np.ndarray) -> None:
        """Encode a clip's frames once. A short last group repeats its last frame, as in training."""
        size = self._info.layout.group or len(pixels_FHW3)
        vectors = self._info.sizing.vectors(FrameSize(*pixels_FHW3.shape[1:3]))
        self._context_limit(-(-len(pixels_FHW3) // size) * vectors)  # before the expensive part
        frames = tuple(map(self._session.encode, group_frames(pixels_FHW3, size)))
        if frames[0].vectors != vectors:
            raise UserError(
                f"{self._mmproj_name}: makes {frames[0].vectors} vectors of a frame, {export_info.FILE} requires {vectors};"
                " take both from one export"
            )
        self._encodes += 1
        self.clips[key] = FrameLayout(tuple(times), seconds, vectors), frames
        while len(self.clips) > CLIPS:
            _, (_, old_frames) = self.clips.popitem(last=False)
            for group in old_frames:
                self._session.drop(group)

    def stream(self, key: str, turns: Sequence[Turn], question: str, options: SamplingParams, model: str) -> Iterator[str]:
        """Pieces of the answer; see `ChatEngine.stream`. UserError when the conversation does not fit the model's context."""
        self.clips.move_to_end(key)
        layout, frames = self.clips[key]
        image_id = self.renderer.image_id
        items = insert_frames(self.renderer.prompt(layout, question, turns=turns), image_id, frames)
        session, used, most = self._session, length(items), self._context_limit(length(items))
        room = min(options.max_new_tokens, most - used)  # for the answer
        if used + room > session.n_ctx:
            session.resize(min(most, (-(-(used + room) // GRAIN) + 1) * GRAIN))
        adapter = self._info.adapters.get(model)
        session.adapt({self._folder / adapter: 1.0} if adapter else {})
        prefix = len(insert_frames(self.renderer.prefix(layout), image_id, frames))
        yield from pieces(self.renderer, self._tokens(items, prefix, options, room))

    def _context_limit(self, prompt_tokens: int) -> int:
        """How many tokens a conversation may have. UserError when the prompt leaves none for an answer."""
        most = self._session.n_ctx if self._fixed else self._session.trained_ctx
        if prompt_tokens >= most:
            limit, way = ("--ctx allows", "raise it") if self._fixed else ("the model takes", "clear the conversation")
            raise UserError(f"the conversation has {prompt_tokens} tokens, {limit} {most}: {way}, use fewer frames or less text")
        return most

    def _tokens(self, items: Sequence[int | EncodedFrames], prefix: int, options: SamplingParams, room: int) -> Iterator[int]:
        source, self.cut = np.random.default_rng(options.seed), False
        logits_V = self._session.prefill(items, prefix=prefix)
        for number in range(room):
            logits_V[self._disallowed] = -np.inf
            token = choose(logits_V, options.temperature, options.top_p, source)
            if token == self.renderer.end_id:
                return
            yield token
            if number + 1 < room:
                logits_V = self._session.step(token)
        self.cut = True


def choose(logits_V: np.ndarray, temperature: float, top_p: float, source: np.random.Generator) -> int:
    """Choose a token as `models.generation.sample` does: temperature 0 takes the most likely one; top_p keeps the
    smallest set of tokens with so much probability."""
    if temperature == 0:
        return int(logits_V.argmax())
    probs_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
    probs_V /= probs_V.sum()
    if top_p < 1:
        order_V = np.argsort(-probs_V, kind="stable")
        before_V = probs_V[order_V].cumsum() - probs_V[order_V]
        probs_V[order_V[before_V >= top_p]] = 0
    cumulative_V = probs_V.cumsum()
    return int(np.searchsorted(cumulative_V, source.random() * cumulative_V[-1], side="right").clip(max=len(cumulative_V) - 1))


class Worker:
    """A generator and the answer in progress. One method per verb; each takes the other entries of the request."""

    generator: AnswerGenerator
    pieces: Iterator[str]
    reported: Mapping[str, int] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call the method that the request names; its reply with what was counted meanwhile. The bytes of frames follow a request
        that has their shape."""
        method = getattr(self, request.pop("verb"))
        if shape := request.pop("shape", None):
            data = sys.stdin.buffer.read(math.prod(shape))
            request["pixels_FHW3"] = np.frombuffer(data, np.uint8).reshape(shape)
        reply: dict[str, Any] = method(**request) or {}
        before, self.reported = self.reported, self.generator.counters
        return reply | {"counted": {name: count - before.get(name, 0) for name, count in self.reported.items()}}

    def open(self, folder: str, text: str, mmproj: str, threads: int, n_ctx: int) -> None:
        self.generator = AnswerGenerator(Path(folder), Path(text), Path(mmproj), threads, n_ctx)

    def encode_clip(self, **clip: Any) -> None:
        self.generator.encode_clip(**clip)

    def begin(self, key: str, turns: Sequence[Sequence[str]], options: Mapping[str, Any], **request: str) -> dict[str, Any]:
        """Start an answer; {"known": False} when the clip has to be encoded first."""
        if key not in self.generator.clips:
            return {"known": False}
        history = [Turn(question, answer) for question, answer in turns]
        self.pieces = self.generator.stream(key, history, options=SamplingParams(**options), **request)
        return {"known": True}

    def next(self) -> dict[str, Any]:
        """The next piece of the answer; None after the last one, with whether the answer ended at its limit of tokens."""
        piece = next(self.pieces, None)
        return {"piece": piece} if piece is not None else {"piece": None, "cut": self.generator.cut}


if __name__ == "__main__":
    serve(Worker().answer)
