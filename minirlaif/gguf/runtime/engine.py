"""The engine over exported GGUF files, on a CPU through llama.cpp. No torch, no transformers.

The protocol is in inference/engine.py. llama.cpp runs in a child process (client.py).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minirlaif.config import VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.runtime.client import LlamaClient
from minirlaif.inference.engine import LoadedClip, SamplingParams
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader

CLIPS = 8  # clips whose frames are kept, the latest ones
SMALL = 1 << 27  # bytes of a text model up to which threads wait for one another longer than they work
MOST_THREADS = 8  # that are started unasked; more share their cores' arithmetic units, or wait for memory


class GgufEngine:
    """Exported files as an engine.

    Args:
        where: the export's folder, or one text GGUF in it; kind: which type of text model, such as "q8_0" ("": the first one).
        mmproj: another file that sees; threads: of the CPU (0: one per core, at most MOST_THREADS; one for a small model).
        n_ctx: tokens of the memory (0: as many as a conversation needs).
    Raises:
        UserError: a file is missing, broken or does not belong to the others.
    """

    def __init__(self, where: Path, mmproj: Path | None = None, kind: str = "", threads: int = 0, n_ctx: int = 0) -> None:
        folder, text = _text_file(where, kind)
        self._info = export_info.read(folder)
        projector = mmproj or folder / self._info.mmproj
        self.models = self._info.models
        self.title = f"{text.name}, run {self._info.run}"
        self.frames, self.options = self._info.frames, self._info.options
        self._clips: OrderedDict[str, LoadedClip] = OrderedDict()
        self._reader = ClipReader(VideoSection.timeout_seconds)
        self._child = LlamaClient(
            folder=str(folder), text=str(text), mmproj=str(projector), threads=threads or threads_for(text), n_ctx=n_ctx
        )
        try:
            self._child.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GgufEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def counters(self) -> Mapping[str, int]:
        """decodes, encodes, prefilled_tokens, reused_tokens and decoded_tokens so far."""
        return {"decodes": self._reader.decodes, **self._child.counters}

    def look(self, video: str, frames: int = 0) -> LoadedClip:
        """Decode `frames` frames (0: as many as in training), spread evenly over the clip; known ones are kept.

        Raises:
            UserError: the clip cannot be read.
        """
        info = self._reader.info(video)
        plan = uniform_plan(info.seconds, frames or self.frames)
        size = self._info.sizing.size(info.width, info.height, self._info.frame_pixels)
        key = f"{info.id}:{plan.key}:{size.key}"
        if key not in self._clips:
            (pixels_FHW3,) = self._reader.frames(video, [plan], size)
            self._clips[key] = LoadedClip(video, info.seconds, plan.times, pixels_FHW3, info.width / info.height, key)
        self._clips.move_to_end(key)
        while len(self._clips) > CLIPS:
            self._clips.popitem(last=False)
        return replace(self._clips[key], video=video)

    def stream(
        self, look: LoadedClip, turns: Sequence[Turn], question: str, options: SamplingParams, model: str = ""
    ) -> Iterator[str]:
        """Pieces of the answer as they are sampled; see `talk.Engine`. Finish or close one stream before the next call."""
        history = [(turn.question, turn.answer) for turn in turns]
        request: dict[str, Any] = {
            "turns": history,
            "question": question,
            "options": asdict(options),
            "model": model or self.models[0],
        }
        if not self._child.ask("begin", key=look.key, **request)["known"]:
            self._child.ask("encode_clip", look.pixels_FHW3, key=look.key, times=look.times, seconds=look.seconds)
            self._child.ask("begin", key=look.key, **request)
        while (piece := self._child.ask("next")["piece"]) is not None:
            yield piece

    def score(self, look: LoadedClip, question: str, answer: str) -> float | None:
        """None: the reward model is not exported."""
        return None

    def close(self) -> None:
        """End both children: the one that decodes and the one that answers."""
        self._reader.close()
        self._child.close()


def threads_for(text: Path) -> int:
    """One thread for a small text model, else one per core that this process may use, as far as MOST_THREADS."""
    if not text.is_file() or text.stat().st_size < SMALL:
        return 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_THREADS)


def _text_file(where: Path, kind: str) -> tuple[Path, Path]:
    """The export's folder and its text model."""
    if where.is_dir():
        texts = export_info.read(where).text
        if kind and kind.lower() not in texts:
            raise UserError(f"{where}: no text model of type {kind}; it has {', '.join(texts)}")
        return where, where / texts[kind.lower() if kind else next(iter(texts))]
    if not where.is_file():
        raise UserError(f"{where}: no such file or folder; `python -m minirlaif export` makes one")
    if kind:
        raise UserError(f"{where}: is one file, so there is no type to choose; leave --type out, or name its folder")
    return where.parent, where
