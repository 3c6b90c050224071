"""Frames of clips: decoded in a process of its own that can be killed, picked by time, checked before anything trains.

decord can hang while it holds the interpreter lock (dmlc/decord#373), and a broken file can crash a decoder, so nothing decodes
in this process: `ClipReader` talks to `_reader.py`, which also says which decoder reads what.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minirlaif.errors import UserError
from minirlaif.video.frame_sampling import FramePlan, FrameSize, uniform_plan

START_SECONDS = 120.0  # the reader's imports may come from a cold disk
NAMED = 20  # unreadable clips that an error lists
PICTURE = 96  # pixels of a side of one picture in a strip


@dataclass(frozen=True)
class ClipInfo:
    """What is known about a readable clip."""

    path: str
    id: str  # first 16 hex digits of the sha256 of its bytes
    seconds: float  # from the first frame's start to the last one's end
    width: int  # pixels, upright (rotation metadata applied)
    height: int
    fps: float  # frames per second, on average
    reader: str  # "decord" or "av": who decodes it


class UnreadableClip(UserError):
    """A clip that no reader can use: .path, and .reason in words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class _Lost(Exception):
    """The reader died or was killed; the text says which."""


class ClipReader:
    """Decodes clips in a child process that is killed when it takes too long, and started again for the next clip.

    A context manager, not for use by several threads at once. The process starts at the first clip.
    A decoder that hangs or dies over a clip gets no second chance with it: PyAV tries instead, with the same time; then the clip
    is reported.

    Args:
        timeout_seconds: time for one call of `info` or `frames` and for one decoder.
        most_pixels: of a frame; a clip with more is not decoded. 0: no limit.
    Attributes:
        decodes: (clip, plan) pairs decoded by `frames` so far. `info` looks at three frames, which do not count.
    """

    command: tuple[str, ...] = (
        sys.executable,
        "-P",
        "-m",
        "minirlaif.video.decode_worker",
    )  # -P: nothing in the working folder may shadow a module

    def __init__(self, timeout_seconds: float, most_pixels: int = 0) -> None:
        self.decodes = 0
        self._timeout, self._most_pixels = timeout_seconds, most_pixels
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # what the child printed
        self._only_av: set[str] = set()  # clips that decord hung on

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def info(self, path: str | Path) -> ClipInfo:
        """Length, size and content hash of a clip; first, middle and last frame are decoded. Raises UnreadableClip."""
        header, _ = self._ask({"verb": "info", "path": str(path)})
        return ClipInfo(**header["info"])

    def frames(self, path: str | Path, plans: Sequence[FramePlan], size: FrameSize | None = None) -> list[NDArray[np.uint8]]:
        """The frames of a clip on screen at the plans' times, all plans in one pass of decoding.

        A time after the end shows the last frame. Returns one uint8 array [F, H, W, 3] (RGB, upright) per plan; with `size`,
        each frame is turned into those pixels by PIL's bicubic filter. Raises UnreadableClip, also for a clip that is blank
        throughout.
        """
        if not plans:
            raise ValueError("no frame plan")
        times = [plan.times for plan in plans]
        header, frames = self._ask({"verb": "frames", "path": str(path), "plans": times, "size": size and asdict(size)})
        self.decodes += len(plans)
        return [frames[places] for places in header["places"]]

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout, self._errors):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:  # a request that never reached a dead child
                        pass
            self._child = None

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        path, lost = request["path"], []
        for only_av in (True,) if path in self._only_av else (False, True):
            try:
                header, frames = self._exchange(
                    {**request, "only_av": only_av, "seconds": self._timeout, "most_pixels": self._most_pixels}
                )
            except _Lost as error:
                lost.append(str(error))
                self._only_av.add(path)
                continue
            if "error" in header:
                raise UnreadableClip(path, header["error"])
            return header, frames
        raise UnreadableClip(path, lost[-1])

    def _exchange(self, request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Send a request, read the reply. Raises _Lost; any interruption ends the child: half a reply may be on its way."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        try:
            return self._timed(json.dumps(request).encode() + b"\n", self._timeout)
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self.close()
        self._errors = tempfile.TemporaryFile()
        root = str(Path(__file__).parents[2])
        self._child = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the child
        )
        try:
            self._timed(b"", START_SECONDS)
        except _Lost as error:
            self._errors.seek(0)
            printed = self._errors.read().decode(errors="replace").strip().splitlines() or [str(error)]
            self.close()
            raise UserError(
                f"the clip reader does not start ({printed[-1]}); `python -m minirlaif doctor` says what is missing"
            ) from None
        except BaseException:
            self.close()
            raise

    def _timed(self, line: bytes, seconds: float) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Write a line to the child and read its reply. A timer kills the child, which ends the reading: pipes have no time
        limit."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        expired = threading.Event()

        def kill() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            child.stdin.write(line)
            child.stdin.flush()
            header = json.loads(child.stdout.readline() or b"null")
            if header is not None:
                frames = np.empty(header.get("shape", 0), dtype=np.uint8)
                if not frames.size or _fill(child.stdout, frames.data.cast("B")):
                    return header, frames
        except (BrokenPipeError, json.JSONDecodeError):
            pass  # it died over the request, or in the middle of a reply
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set():
            raise _Lost(
                f"no answer within {seconds:g} seconds (video.timeout_seconds): the decoder hangs or the clip is too long"
            )
        child.kill()  # it may live on after half a reply
        raise _Lost(f"the decoder crashed (exit status {child.wait()})")


def _fill(pipe: IO[bytes], buffer: memoryview) -> bool:
    """Read until the buffer is full; False when the pipe ends before that."""
    return pipe.readinto(buffer) == len(buffer)  # type: ignore[attr-defined]


class KnowsClips(Protocol):
    """Whatever can say what is known about a clip: a reader, or a cache in front of one."""

    def info(self, path: str) -> ClipInfo:
        """Raises UnreadableClip."""


def check_clips(
    paths: Iterable[str | Path], reader: KnowsClips, max_unreadable: float
) -> tuple[list[ClipInfo], list[UnreadableClip]]:
    """Look at every clip (each once) before anything trains: what is known about the good ones, and the bad ones with reasons.

    Raises UserError that names the bad clips when their share is over max_unreadable (0: any bad clip).
    """
    good: list[ClipInfo] = []
    bad: list[UnreadableClip] = []
    for path in dict.fromkeys(str(path) for path in paths):
        try:
            good.append(reader.info(path))
        except UnreadableClip as error:
            bad.append(error)
    total = len(good) + len(bad)
    if bad and len(bad) / total > max_unreadable:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise UserError(
            f"{len(bad)} of {total} clips cannot be read: {'; '.join(map(str, bad[:NAMED]))}{more}. "
            f"Repair or remove them, or skip them with --set video.max_unreadable={min(1.0, -(-100 * len(bad) // total) / 100)}"
        )
    return good, bad


def clip_strip(reader: ClipReader, video: str, frames: int) -> tuple[bytes, float]:
    """A JPEG of so many frames of a clip side by side, spread evenly, and its width by height. Raises UnreadableClip."""
    info = reader.info(video)
    (pixels_FHW3,) = reader.frames(video, [uniform_plan(info.seconds, frames)])
    aspect = info.width / info.height
    return picture_strip(pixels_FHW3, aspect), aspect


def picture_strip(pixels_FHW3: NDArray[np.uint8], aspect: float) -> bytes:
    """A JPEG of frames side by side. aspect: width by height of the clip, which may be squeezed into a square here."""
    from PIL import Image

    height = pixels_FHW3.shape[1]
    shape = (max(1, round(PICTURE * aspect)), PICTURE)
    how = Image.Resampling.NEAREST if height < PICTURE else Image.Resampling.BICUBIC
    sheet = Image.new("RGB", (shape[0] * len(pixels_FHW3), PICTURE))
    for number, pixels in enumerate(pixels_FHW3):
        sheet.paste(Image.fromarray(pixels).resize(shape, how), (number * shape[0], 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
