"""The chat engine for exported GGUF files: llama.cpp on a CPU, in a child process (worker.py). No torch, no transformers."""

import os
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.config import VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.inference.engine import LoadedClip, SamplingParams
from minirlaif.types import Turn
from minirlaif.video.child_process import ChildLost, ChildProcess
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader

CACHED_CLIPS = 8  # clips whose frames stay in memory, the latest ones
SMALL = 1 << 27  # bytes of a text model below which more threads cost more time in synchronization than they save
MAX_THREADS = 8  # default maximum; more threads share arithmetic units or wait for memory
COUNTERS = ("encodes", "prefilled_tokens", "reused_tokens", "decoded_tokens")  # of worker.py


class GgufEngine:
    """Exported files as a `ChatEngine`.

    A native assertion of llama.cpp ends the child process alone and becomes a UserError of one line; the next request starts
    another one.

    Args:
        where: the export's folder, or one text GGUF in it; kind: the type of the text model, such as "q8_0" ("": the first one).
        mmproj: another vision projector than the export's; threads: CPU threads (0: one per core, at most MAX_THREADS; one for a
        small model); n_ctx: context length in tokens (0: as many as a conversation needs).

    Attributes:
        files: of the model; cut: whether the last answer ended at its limit of tokens.

    Raises:
        UserError: a file is missing, broken or does not belong to the others.
    """

    def __init__(self, where: Path, mmproj: Path | None = None, kind: str = "", threads: int = 0, n_ctx: int = 0) -> None:
        folder, text = _text_file(where, kind)
        self._info = export_info.read(folder)
        projector = mmproj or folder / self._info.mmproj
        export_info.check_files(
            folder, [export_info.FILE, text.name, *([] if mmproj else [self._info.mmproj]), *self._info.adapters.values()]
        )
        self.models = self._info.models
        self.title = f"{text.name}, run {self._info.run}"
        self.frames, self.sampling = self._info.frames, self._info.options
        self._clips: OrderedDict[str, LoadedClip] = OrderedDict()
        self._reader = ClipReader.of(VideoSection())
        self._process: ChildProcess | None = None
        self._counted = Counter(dict.fromkeys(COUNTERS, 0))  # over all processes
        settings = {"threads": threads or threads_for(text), "n_ctx": n_ctx}
        self.files = (text, projector, *(folder / name for name in self._info.adapters.values()))
        self.cut = False
        self._open_request: dict[str, Any] = {"folder": str(folder), "text": str(text), "mmproj": str(projector), **settings}
        try:
            self._ask("open", **self._open_request)
        except BaseException:
            self.close()
            raise

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals so far: decodes, encodes, prefilled_tokens, reused_tokens, decoded_tokens."""
        return {"decodes": self._reader.decodes, **self._counted}

    def load_clip(self, video: str, frames: int = 0, span: tuple[float, float | None] = (0.0, None)) -> LoadedClip:
        """See `ChatEngine.load_clip`. span: start and end in seconds of the part that the frames
        are spread over; the prompt states its length."""
        info = self._reader.info(video)
        plan, end = uniform_plan(info.seconds, frames or self.frames, *span), info.seconds if span[1] is None else span[1]
        size = self._info.sizing.size(info.width, info.height, self._info.frame_pixels)
        key = f"{info.id}:{plan.key}:{size.key}" + (f":{end - span[0]:.3f}" if span != (0.0, None) else "")
        if key not in self._clips:
            (pixels_FHW3,) = self._reader.frames(video, [plan], size)
            self._clips[key] = LoadedClip(video, end - span[0], plan.times, pixels_FHW3, info.width / info.height, key)
        self._clips.move_to_end(key)
        while len(self._clips) > CACHED_CLIPS:
            self._clips.popitem(last=False)
        return replace(self._clips[key], video=video)

    def stream(
        self, clip: LoadedClip, turns: Sequence[Turn], question: str, sampling: SamplingParams, model: str = ""
    ) -> Iterator[str]:
        """See `ChatEngine.stream`."""
        request: dict[str, Any] = {"key": clip.key, "question": question, "model": model or self.models[0]}
        request |= {"turns": [(turn.question, turn.answer) for turn in turns], "options": asdict(sampling)}
        if not self._ask("begin", **request)["known"]:
            self._ask("encode_clip", clip.pixels_FHW3, key=clip.key, times=clip.times, seconds=clip.seconds)
            self._ask("begin", **request)
        while (piece := (reply := self._ask("next"))["piece"]) is not None:
            yield piece
        self.cut = bool(reply["cut"])

    def score(self, clip: LoadedClip, question: str, answer: str) -> float | None:
        """None: exports hold no reward model."""
        return None

    def close(self) -> None:
        """End both child processes: the decoder and llama.cpp."""
        self._reader.close()
        self._end()

    def _ask(self, verb: str, pixels_FHW3: np.ndarray | None = None, **request: Any) -> dict[str, Any]:
        """One request, one reply. UserError for an error of the worker, and when it dies; any interruption ends it."""
        if self._process is None:
            # passive: llama.cpp's threads wait between steps without spinning, which on a busy machine takes the other threads'
            # cores (measured: 20 tokens a second instead of 900). -P: nothing in the working folder may shadow a module.
            policy = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
            self._process = ChildProcess((sys.executable, "-P", "-m", "minirlaif.gguf.runtime.worker"), policy)
            if verb != "open":
                self._ask("open", **self._open_request)
        shape = {} if pixels_FHW3 is None else {"shape": pixels_FHW3.shape}
        frames = b"" if pixels_FHW3 is None else np.ascontiguousarray(pixels_FHW3).data
        try:
            reply = self._process.ask({"verb": verb, **request, **shape}, frames)
        except ChildLost as lost:
            self._end()
            last = lost.printed[-1] if lost.printed else "no output"
            reason = next((line for line in lost.printed if "ASSERT" in line or "Error" in line), last)[:200]
            files = " and ".join(Path(self._open_request[name]).name for name in ("text", "mmproj"))
            raise UserError(
                f"{files}: llama.cpp exited with status {lost.status} ({reason}); if it happens again, export the files again"
            ) from None
        except BaseException:
            self._end()
            raise
        if "error" in reply:
            raise UserError(reply["error"])
        self._counted.update(reply["counted"])
        return reply

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def threads_for(text: Path) -> int:
    """One thread for a small text model, else one per core that this process may use, at most MAX_THREADS."""
    if not text.is_file() or text.stat().st_size < SMALL:
        return 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MAX_THREADS)


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
        raise UserError(f"{where}: a single file has no types to choose from; leave --type out, or name its folder")
    return where.parent, where
