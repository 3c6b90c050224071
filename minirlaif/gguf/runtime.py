"""The engine over exported GGUF files, on a CPU through llama.cpp. See talk.py for what an engine is. No torch, no transformers.

llama.cpp works in a child process (`_worker.py`): a native assertion ends that one, and here is said so in a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from minirlaif.config import VideoSection
from minirlaif.frames import uniform_plan
from minirlaif.gguf import facts
from minirlaif.records import Turn, UserError
from minirlaif.talk import Look, Options
from minirlaif.video import ClipReader

LOOKS = 8  # clips whose frames are kept, the latest ones


class GgufEngine:
    """Exported files as an engine.

    Args:
        where: the export's folder, or one text GGUF in it; kind: which type of text model, such as "q8_0" ("": the first one).
        mmproj: another file that sees; threads: of the CPU; n_ctx: tokens of the memory (0: as many as a conversation needs).
    Raises:
        UserError: a file is missing, broken or does not belong to the others.
    """

    def __init__(self, where: Path, mmproj: Path | None = None, kind: str = "", threads: int = 1, n_ctx: int = 0) -> None:
        folder, text = _text_file(where, kind)
        self._facts = facts.read(folder)
        eyes = mmproj or folder / self._facts.mmproj
        self.models = self._facts.models
        self.title = f"{text.name}, run {self._facts.run}"
        self.frames, self.options = self._facts.frames, self._facts.options
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._reader = ClipReader(VideoSection.timeout_seconds)
        self._child = _Child(folder=str(folder), text=str(text), mmproj=str(eyes), threads=threads, n_ctx=n_ctx)
        try:
            self._child.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GgufEngine:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    @property
    def counters(self) -> Mapping[str, int]:
        """decodes, encodes, prefilled_tokens, reused_tokens and decoded_tokens so far."""
        return {"decodes": self._reader.decodes, **self._child.counters}

    def look(self, video: str, frames: int = 0) -> Look:
        """Decode `frames` frames (0: as many as in training), spread evenly over the clip; known ones are kept.

        Raises:
            UserError: the clip cannot be read.
        """
        info = self._reader.info(video)
        plan = uniform_plan(info.seconds, frames or self.frames)
        size = self._facts.sizing.size(info.width, info.height, self._facts.frame_pixels)
        key = f"{info.id}:{plan.key}:{size.key}"
        if key not in self._looks:
            (pixels_FHW3,) = self._reader.frames(video, [plan], size)
            self._looks[key] = Look(video, info.seconds, plan.times, pixels_FHW3, info.width / info.height, key)
        self._looks.move_to_end(key)
        while len(self._looks) > LOOKS:
            self._looks.popitem(last=False)
        return replace(self._looks[key], video=video)

    def stream(self, look: Look, turns: Sequence[Turn], question: str, options: Options, model: str = "") -> Iterator[str]:
        """Pieces of the answer as they are sampled; see `talk.Engine`. Finish or close one stream before the next call."""
        told = [(turn.question, turn.answer) for turn in turns]
        asked = {"turns": told, "question": question, "options": asdict(options), "model": model or self.models[0]}
        if not self._child.ask("begin", key=look.key, **asked)["known"]:
            self._child.ask("see", look.pixels_FHW3, key=look.key, times=look.times, seconds=look.seconds)
            self._child.ask("begin", key=look.key, **asked)
        while (piece := self._child.ask("next")["piece"]) is not None:
            yield piece

    def score(self, look: Look, question: str, answer: str) -> float | None:
        """None: the reward model is not exported."""
        return None

    def close(self) -> None:
        """End both children: the one that decodes and the one that answers."""
        self._reader.close()
        self._child.close()


def _text_file(where: Path, kind: str) -> tuple[Path, Path]:
    """The export's folder and its text model."""
    if where.is_dir():
        texts = facts.read(where).text
        if kind and kind.lower() not in texts:
            raise UserError(f"{where}: no text model of type {kind}; it has {', '.join(texts)}")
        return where, where / texts[kind.lower() if kind else next(iter(texts))]
    if not where.is_file():
        raise UserError(f"{where}: no such file or folder; `python -m minirlaif export` makes one")
    if kind:
        raise UserError(f"{where}: is one file, so there is no type to choose; leave --type out, or name its folder")
    return where.parent, where


class _Child:
    """The process with llama.cpp in it; one that died is started again by the next question.

    Args:
        opening: the files and settings that the process opens first.
    """

    def __init__(self, **opening: Any) -> None:
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # what the child printed
        self._before: Counter[str] = Counter()  # what processes that are gone had counted
        self._counted: Counter[str] = Counter(encodes=0, prefilled_tokens=0, reused_tokens=0, decoded_tokens=0)

    @property
    def counters(self) -> dict[str, int]:
        """What was done so far, by all processes."""
        return {name: number + self._before[name] for name, number in self._counted.items()}

    def start(self) -> None:
        """Start the process and open the files. UserError when they cannot be opened."""
        self._errors = tempfile.TemporaryFile()
        root = str(Path(__file__).parent.parent.parent)
        self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", "minirlaif.gguf._worker"),  # -P: nothing in the working folder may shadow a module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the child
        )
        self.ask("open", **self._opening)

    def ask(self, verb: str, pixels_FHW3: np.ndarray | None = None, **request: Any) -> dict[str, Any]:
        """One request, one reply. UserError for what the child says is wrong, and when it dies; any interruption ends it."""
        if self._process is None:
            self.start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        shape = {} if pixels_FHW3 is None else {"shape": pixels_FHW3.shape}
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **request, **shape}).encode() + b"\n")
            if pixels_FHW3 is not None:
                self._process.stdin.write(np.ascontiguousarray(pixels_FHW3).data)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            reply: dict[str, Any] = json.loads(line)
        except (BrokenPipeError, json.JSONDecodeError):
            raise self._lost() from None
        except BaseException:
            self.close()
            raise
        self._counted.update({name: number - self._counted[name] for name, number in reply["counters"].items()})
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def _lost(self) -> UserError:
        """What is to be said of a child that died."""
        assert self._process is not None and self._errors is not None
        status = self._process.wait()
        self._errors.seek(0)
        printed = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        reason = next((line for line in printed if "ASSERT" in line or "Error" in line), printed[-1] if printed else "no reason")
        self.close()
        files = f"{self._opening['text']} and {self._opening['mmproj']}"
        return UserError(f"llama.cpp ended with status {status} over {files} ({reason[:200]}); export them again")

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # a request that never reached a dead child
                    pass
        self._process = None
        self._before += self._counted
        self._counted = Counter(dict.fromkeys(self._counted, 0))
