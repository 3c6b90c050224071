"""Decodes frames of clips in a child process that can be killed, and checks clips before training starts.

decord can hang while it holds the interpreter lock (dmlc/decord#373), and a broken file can crash a decoder, so this
process decodes nothing: `ClipReader` starts decode_worker.py, which also documents which decoder reads which files.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minirlaif.errors import UserError
from minirlaif.video import sandbox
from minirlaif.video.child_process import ChildLost, ChildProcess
from minirlaif.video.frame_sampling import FramePlan, FrameSize, uniform_plan
from minirlaif.video.spans import file_of, length_of, local_path, span_of

START_SECONDS = 120.0  # the reader's imports may come from a cold disk
NAMED = 20  # unreadable clips that an error lists
BEFORE_END = 2e-3  # seconds: a frame that starts at the end of a part is behind it
PICTURE = 96  # height of one picture in a strip, in pixels


@dataclass(frozen=True)
class ClipInfo:
    """Properties of a readable clip, or of a part of one (`a.mp4#t=10,20`, see spans.py)."""

    path: str  # as it was asked for, with its part
    id: str  # first 16 hex digits of the sha256 of the file's bytes; of a part, its seconds behind them
    seconds: float  # from the first frame's start to the last one's end, or the length of the part
    width: int  # pixels, upright (rotation metadata applied)
    height: int
    fps: float  # frames per second, on average
    reader: str  # "decord" or "av", the decoder
    repaired: tuple[str, ...] = ()  # faults of the file that decoding worked around, as far as three frames show


class UnreadableClip(UserError):
    """A clip that no decoder can read: .path, and .reason as text."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def part_info(info: ClipInfo, video: str) -> ClipInfo:
    """Properties of a part of a clip, from those of the whole file. UnreadableClip: the file does not have it."""
    span = span_of(video)
    if not span.is_part:
        return info
    try:
        seconds = length_of(span, info.seconds)
    except ValueError as error:
        raise UnreadableClip(video, str(error)) from None
    return replace(info, path=video, id=f"{info.id}@{span.start:.3f}+{seconds:.3f}", seconds=seconds)


class _Lost(Exception):
    """The decoder crashed or was killed."""


class ReaderSettings(Protocol):
    """The settings of section `video` that a reader takes."""

    @property
    def timeout_seconds(self) -> float: ...

    @property
    def reader(self) -> str: ...

    @property
    def max_damaged(self) -> float: ...


class ClipReader:
    """Decodes clips in a child process that is killed when it takes too long, and started again for the next clip.

    A context manager, not for use by several threads at once. The process starts at the first clip.
    A clip on which the decoder hangs or crashes is refused and not tried again, not by the other decoder either: such a file may
    be an attack. The process has no keys in its environment and limits itself (sandbox.py).

    Args:
        timeout_seconds: time for one call of `info` or `frames` and for one decoder.
        most_pixels: of a frame; a clip with more is not decoded. 0: no limit.
        decoder: "av" or "decord" (which is used only for clips of kinds that it reads right).
        max_damaged: share of a clip's time that may be undecodable. 0: none.
    Attributes:
        repaired: what was done about faults of each file, as far as it was decoded.
        sandbox: the limits of the process, in words, once it has started.
        decodes: (clip, plan) pairs decoded by `frames` so far. `info` decodes three frames, which do not count.
    """

    # -P: nothing in the working folder may shadow a module
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "minirlaif.video.decode_worker")

    def __init__(self, timeout_seconds: float, most_pixels: int = 0, decoder: str = "av", max_damaged: float = 0.05) -> None:
        self.decodes = 0
        self.repaired: dict[str, tuple[str, ...]] = {}
        self.settings = f"{decoder}:{max_damaged:g}"  # what decides, beside a clip, what is known about it
        self._timeout, self._most_pixels, self._decoder, self._max_damaged = timeout_seconds, most_pixels, decoder, max_damaged
        self._child: ChildProcess | None = None
        self.sandbox: tuple[str, ...] = ()
        self._lost: dict[tuple[str, int, int], str] = {}  # files on which the decoder hung or crashed, and how

    @classmethod
    def of(cls, video: ReaderSettings) -> ClipReader:
        """A reader with the settings of a run."""
        return cls(video.timeout_seconds, decoder=video.reader, max_damaged=video.max_damaged)

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def info(self, path: str | Path) -> ClipInfo:
        """Length, size and content hash of a clip; first, middle and last frame are decoded. Raises UnreadableClip."""
        video = local_path(str(path))
        header, _ = self._ask({"verb": "info", "path": file_of(video)})
        info = ClipInfo(**{**header["info"], "repaired": tuple(header["info"]["repaired"])})
        self._note(info.path, info.repaired)
        return part_info(info, video)

    def frames(self, path: str | Path, plans: Sequence[FramePlan], size: FrameSize | None = None) -> list[NDArray[np.uint8]]:
        """The frames of a clip on screen at the plans' times, all plans in one pass of decoding.

        Times of a part of a clip count from its start. A time after the end gives the last frame. Returns one uint8 array
        [F, H, W, 3] (RGB, upright) per plan; with `size`, each frame is scaled by PIL's bicubic filter. Raises
        UnreadableClip, also for a clip that is blank throughout.
        """
        if not plans:
            raise ValueError("no frame plan")
        span = span_of(local_path(str(path)))
        last = math.inf if span.end is None else max(span.start, span.end - BEFORE_END)
        times = [[min(span.start + time, last) for time in plan.times] for plan in plans]
        header, frames = self._ask({"verb": "frames", "path": span.file, "plans": times, "size": size and asdict(size)})
        self.decodes += len(plans)
        self._note(span.file, header["repaired"])
        return [frames[places] for places in header["places"]]

    def streams(self, path: str | Path) -> tuple[tuple[str, ...], int]:
        """The streams of a clip in words, the one that is read marked, and by how many degrees counterclockwise its frames are
        turned. Raises UnreadableClip."""
        header, _ = self._ask({"verb": "streams", "path": file_of(local_path(str(path)))})
        return tuple(header["streams"]), header["rotation"]

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _note(self, path: str, texts: Sequence[str]) -> None:
        if texts:
            self.repaired[path] = tuple(dict.fromkeys((*self.repaired.get(path, ()), *texts)))

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        path = request["path"]
        limits = {"seconds": self._timeout, "most_pixels": self._most_pixels, "max_damaged": self._max_damaged}
        file = _stamp(path)
        if file in self._lost:
            raise UnreadableClip(path, self._lost[file])
        try:
            header, frames = self._exchange({**request, **limits, "reader": self._decoder})
        except _Lost as error:
            self._lost[file] = str(error)
            raise UnreadableClip(path, str(error)) from None
        if "error" in header:
            raise UnreadableClip(path, header["error"])
        return header, frames

    def _exchange(self, request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Send a request, read the reply. Raises _Lost; any interruption ends the child: half a reply may be in the pipe."""
        if self._child is None or not self._child.alive():
            self._start()
        try:
            return self._timed(request, self._timeout)
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self.close()
        self._child = ChildProcess(self.command, only=sandbox.environment())
        try:
            header, _ = self._timed(None, START_SECONDS)
            self.sandbox = tuple(header.get("active", ()))
        except _Lost as error:
            printed = self._child.printed() or [str(error)]
            self.close()
            raise UserError(
                f"the clip reader does not start ({printed[-1]}); `python -m minirlaif doctor` lists what is missing"
            ) from None
        except BaseException:
            self.close()
            raise

    def _timed(self, request: dict[str, Any] | None, seconds: float) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """The child's reply to a request and the frames after it; the child is killed when it takes longer."""
        child = self._child
        assert child is not None
        frames: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

        def fill(header: dict[str, Any]) -> bool:
            nonlocal frames
            frames = np.empty(header.get("shape", 0), dtype=np.uint8)
            buffer = frames.data.cast("B") if frames.size else b""
            return not buffer or bool(child.stdout.readinto(buffer) == len(buffer))  # type: ignore[attr-defined]

        try:
            return child.ask(request, fill=fill, seconds=seconds), frames
        except ChildLost as lost:
            if lost.timed_out:
                raise _Lost(
                    f"no answer within {seconds:g} seconds (video.timeout_seconds): the decoder hangs or the clip is too long"
                ) from None
            raise _Lost(f"the decoder crashed (exit status {lost.status})") from None


def _stamp(path: str) -> tuple[str, int, int]:
    """What tells a file from another one that is put in its place."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return path, 0, 0
    return path, stat.st_size, stat.st_mtime_ns


class KnowsClips(Protocol):
    """A source of clip properties: a reader, or a cache in front of one."""

    def info(self, path: str) -> ClipInfo:
        """Raises UnreadableClip."""


def check_clips(
    paths: Iterable[str | Path], reader: KnowsClips, max_unreadable: float
) -> tuple[list[ClipInfo], list[UnreadableClip]]:
    """Read the properties of every clip (each once) before training starts; the readable clips, and the unreadable with reasons.

    Raises UserError that names the unreadable clips when their share exceeds max_unreadable (0: any).
    """
    readable: list[ClipInfo] = []
    bad: list[UnreadableClip] = []
    for path in dict.fromkeys(str(path) for path in paths):
        try:
            readable.append(reader.info(path))
        except UnreadableClip as error:
            bad.append(UnreadableClip(path, error.reason))  # by the name that was asked for, which may be a part of the file
    total = len(readable) + len(bad)
    if bad and len(bad) / total > max_unreadable:
        raise too_many(bad, total)
    return readable, bad


def too_many(bad: Sequence[UnreadableClip], total: int) -> UserError:
    """What to do about unreadable clips, which it names."""
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return UserError(
        f"{len(bad)} of {total} clips cannot be read: {'; '.join(map(str, bad[:NAMED]))}{more}. "
        f"Repair or remove them, or skip them with --set video.max_unreadable={min(1.0, -(-100 * len(bad) // total) / 100)}"
    )


def clip_strip(reader: ClipReader, video: str, frames: int) -> tuple[bytes, float]:
    """A JPEG of so many frames of a clip side by side, spread evenly, and its width by height. Raises UnreadableClip."""
    info = reader.info(video)
    (pixels_FHW3,) = reader.frames(video, [uniform_plan(info.seconds, frames)])
    aspect = info.width / info.height
    return picture_strip(pixels_FHW3, aspect), aspect


def picture_strip(pixels_FHW3: NDArray[np.uint8], aspect: float) -> bytes:
    """A JPEG of frames side by side. aspect: width by height of the clip, whose frames may be scaled to a square here."""
    from PIL import Image

    height = pixels_FHW3.shape[1]
    shape = (max(1, round(PICTURE * aspect)), PICTURE)
    resampling = Image.Resampling.NEAREST if height < PICTURE else Image.Resampling.BICUBIC
    sheet = Image.new("RGB", (shape[0] * len(pixels_FHW3), PICTURE))
    for number, pixels in enumerate(pixels_FHW3):
        sheet.paste(Image.fromarray(pixels).resize(shape, resampling), (number * shape[0], 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
