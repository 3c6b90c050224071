"""Answers of an exported model: prompts, frames and sampling around a `LlamaSession`. No torch.

A native assertion of llama.cpp would end the process, so worker.py uses this class in a child process. F frames, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from minirlaif.errors import UserError
from minirlaif.gguf.export_info import FILE, ExportInfo
from minirlaif.gguf.runtime.llama import LlamaSession, length
from minirlaif.gguf.runtime.projector import EncodedFrames, group_frames, insert_frames
from minirlaif.inference.engine import SamplingParams
from minirlaif.models.renderer import FrameLayout, Renderer, pieces
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import FrameSize

CLIPS = 8  # clips whose vectors stay in memory, the latest ones
GRAIN = 256  # tokens; the KV cache grows in such steps, and by one more than the conversation needs now


class AnswerGenerator:
    """A model with its renderer, its encoded clips and its KV cache. Needs `close`.

    Args:
        info: how prompts and frames are made; adapters: LoRA file by model, for models that need one.
        text, mmproj: the files; threads: of the CPU; n_ctx: tokens of the KV cache (0: as many as a conversation needs).
    Attributes:
        counters: encodes (of clips), prefilled_tokens, reused_tokens, decoded_tokens.
    """

    def __init__(
        self, info: ExportInfo, adapters: Mapping[str, Path], text: Path, mmproj: Path, threads: int = 1, n_ctx: int = 0
    ) -> None:
        self._info, self._adapters, self._fixed, self._mmproj_name = info, adapters, bool(n_ctx), mmproj.name
        self._session = LlamaSession(text, mmproj, n_ctx or 1, threads)
        try:
            self.renderer = Renderer(self._session.vocabulary, info.layout)
        except BaseException:
            self._session.close()
            raise
        disallowed = [*self._session.vocabulary.added_tokens_decoder, *self._session.vocabulary.unused]
        self._disallowed = [token for token in disallowed if token != self.renderer.end_id]
        self._clips: OrderedDict[str, tuple[FrameLayout, tuple[EncodedFrames, ...]]] = OrderedDict()
        self._encodes = 0

    @property
    def counters(self) -> dict[str, int]:
        """Counts so far."""
        return {**self._session.counters, "encodes": self._encodes}

    def close(self) -> None:
        """Free the model."""
        self._session.close()

    def has_clip(self, key: str) -> bool:
        """Whether a clip's frames are encoded already."""
        return key in self._clips

    def encode_clip(self, key: str, times: Sequence[float], seconds: float, pixels_FHW3: np.ndarray) -> None:
        """Encode a clip's frames once. A short last group repeats its last frame, as in training."""
        size = self._info.layout.group or len(pixels_FHW3)
        vectors = self._info.sizing.vectors(FrameSize(*pixels_FHW3.shape[1:3]))
        self._context_limit(-(-len(pixels_FHW3) // size) * vectors)  # before the expensive part
        frames = tuple(map(self._session.encode, group_frames(pixels_FHW3, size)))
        if frames[0].vectors != vectors:
            raise UserError(
                f"{self._mmproj_name}: makes {frames[0].vectors} vectors of a frame, {FILE} requires {vectors};"
                " take both from one export"
            )
        self._encodes += 1
        self._clips[key] = FrameLayout(tuple(times), seconds, vectors), frames
        while len(self._clips) > CLIPS:
            _, (_, old_frames) = self._clips.popitem(last=False)
            for group in old_frames:
                self._session.drop(group)

    def stream(self, key: str, turns: Sequence[Turn], question: str, options: SamplingParams, model: str) -> Iterator[str]:
        """Pieces of the answer; see `ChatEngine.stream`. UserError when the conversation does not fit the model's context."""
        self._clips.move_to_end(key)
        layout, frames = self._clips[key]
        items = self.build_prompt(layout, frames, question, turns)
        room = self._make_room(length(items), options.max_new_tokens)
        path = self._adapters.get(model)
        self._session.adapt({path: 1.0} if path else {})
        prefix = len(insert_frames(self.renderer.prefix(layout), self.renderer.image_id, frames))
        yield from pieces(self.renderer, self._tokens(items, prefix, options, room))

    def build_prompt(
        self, layout: FrameLayout, frames: Sequence[EncodedFrames], question: str, turns: Sequence[Turn]
    ) -> list[int | EncodedFrames]:
        """Token ids of the trained prompt, with the encoded frames in place of the image tokens."""
        return insert_frames(self.renderer.prompt(layout, question, turns=turns), self.renderer.image_id, frames)

    def _make_room(self, prompt_tokens: int, answer: int) -> int:
        """Enlarge the KV cache for a prompt and an answer; how many tokens the answer may have."""
        session, most = self._session, self._context_limit(prompt_tokens)
        answer = min(answer, most - prompt_tokens)
        if prompt_tokens + answer > session.n_ctx:
            session.resize(min(most, (-(-(prompt_tokens + answer) // GRAIN) + 1) * GRAIN))
        return answer

    def _context_limit(self, prompt_tokens: int) -> int:
        """How many tokens a conversation may have. UserError when the prompt leaves none for an answer."""
        most = self._session.n_ctx if self._fixed else self._session.trained_ctx
        if prompt_tokens >= most:
            limit, way = ("--ctx allows", "raise it") if self._fixed else ("the model takes", "clear the conversation")
            raise UserError(f"the conversation has {prompt_tokens} tokens, {limit} {most}: {way}, use fewer frames or less text")
        return most

    def _tokens(self, items: Sequence[int | EncodedFrames], prefix: int, options: SamplingParams, room: int) -> Iterator[int]:
        source = np.random.default_rng(options.seed)
        logits_V = self._session.prefill(items, prefix=prefix)
        for number in range(room):
            logits_V[self._disallowed] = -np.inf
            token = choose(logits_V, options.temperature, options.top_p, source)
            if token == self.renderer.end_id:
                return
            yield token
            if number + 1 < room:
                logits_V = self._session.step(token)


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
