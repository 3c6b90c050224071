"""Uploaded clips: which are accepted, where they are stored, when they are deleted. No torch.

A file is identified by its content before any decoder opens it: video libraries also read playlists, which refer to other files
and addresses.
"""

import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minirlaif.app.requests.model_time import ModelTime
from minirlaif.app.requests.quotas import DECODING_SECONDS, Window
from minirlaif.errors import UserError
from minirlaif.video.frame_sampling import FramePlan, FrameSize, uniform_plan
from minirlaif.video.reader import ClipInfo, ClipReader, UnreadableClip

# Accepted containers: offset and possible bytes there.
_CONTAINERS = (
    (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),  # mp4, mov, m4v, 3gp
    (0, (b"\x1a\x45\xdf\xa3",)),  # webm, mkv
    (8, (b"AVI ",)),
    (0, (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),  # mpg
    (0, (b"FLV\x01", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"GIF8")),  # flv, ogv, wmv, gif
)
_OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"#EXTM3U", "a playlist"),
    (b"ID3", "a sound file"),
    (b"RIFF", "a sound file or an image"),
    (b"\x7fELF", "a program"),
    (b"<", "a web page or XML"),
)

REMEMBERED = 64  # checks of clips
HOLD_SECONDS = 60.0  # a page asks for its upload to be opened within seconds
EXAMPLES = "examples"  # the subfolder of example clips, which are never deleted


@dataclass(frozen=True)
class Limits:
    """Maximum size of a clip."""

    megabytes: int = 200
    seconds: float = 600.0
    pixels: int = 4096 * 2304  # of one frame


def check_content(path: Path, limits: Limits) -> None:
    """UserError unless the file starts like a video and is not too large. Nothing is decoded."""
    size = path.stat().st_size
    if size < 64:  # browsers also produce such files from a recording that ended at once
        raise UserError("the file is empty" if size == 0 else f"the file is too short for a clip ({size} bytes)")
    if size > limits.megabytes << 20:
        raise UserError(f"the file has {size / (1 << 20):.0f} MB, {limits.megabytes} MB are allowed; cut or compress the clip")
    with path.open("rb") as file:
        head = file.read(400)
    stream = len(head) > 376 and head[0] == head[188] == head[376] == 0x47  # MPEG-TS: a sync byte every 188 bytes
    if not stream and not any(head[at : at + len(magic)] == magic for at, magics in _CONTAINERS for magic in magics):
        kind = next((f" but {name}" for magic, name in _OTHERS if head.startswith(magic)), "")
        raise UserError(f"not a video{kind}; supported: mp4, webm, mkv, mov, avi, mpg, wmv, flv, ogv")


class UploadStore:
    """Checks clips before an engine loads them, in a decoder process that is killed when it hangs.

    Args:
        folder: where uploads are stored; paths outside it are refused.
        seconds: time limit of the decoder per clip.
    """

    def __init__(self, folder: Path, limits: Limits, seconds: float = 15.0) -> None:
        self.folder, self.limits = folder.resolve(), limits
        self._reader = ClipReader(seconds, limits.pixels)
        self._lock, self._lock_held = threading.Lock(), threading.Lock()
        self._decoding, self._is_closed = Window(), False
        self.model_time = ModelTime()
        self._held: dict[Path, list[float]] = {}  # folders of uploads that are still to be opened: when each upload came
        self._checked: OrderedDict[tuple[Path, int, int, int], ClipInfo | str] = OrderedDict()

    def examine(self, path: str | Path, frames: int = 0, client: str = "") -> ClipInfo:
        """Properties of a clip within the limits. UserError otherwise; its text names no path on this machine.

        The result is remembered: a page has a clip checked first, and opens it when it has the model.

        Args:
            frames: decode so many as well, as the model will.
            client: who may use the decoder for DECODING_SECONDS within ten minutes.
        """
        file = Path(path).resolve()
        if not file.is_relative_to(self.folder) or not file.is_file():
            raise UserError("this file was not uploaded here")
        check_content(file, self.limits)
        status = file.stat()
        with self._lock:
            if self._is_closed:  # another decoder would be left behind
                raise UserError("the app is closing")
            key = (file, status.st_mtime_ns, status.st_size, frames)
            if key not in self._checked:
                self._checked[key] = self._decoded(file, frames, client)
            while len(self._checked) > REMEMBERED:
                self._checked.popitem(last=False)
            info = self._checked[key]
        if isinstance(info, str):
            raise UserError(info)
        if info.seconds > self.limits.seconds:
            raise UserError(f"the clip lasts {duration(info.seconds)}, {duration(self.limits.seconds)} are allowed; cut the clip")
        return info

    def _decoded(self, file: Path, frames: int, client: str) -> ClipInfo | str:
        """What the decoder says of a clip, or why it refuses it."""
        if client and self._decoding.add(client, 0) > DECODING_SECONDS:
            raise UserError("your clips took the decoder too long; try again in ten minutes")
        began = time.monotonic()
        try:
            info = self._reader.info(file)
            if frames and info.seconds <= self.limits.seconds:
                self._reader.frames(file, [uniform_plan(info.seconds, frames)], FrameSize(8, 8))
            return info
        except UnreadableClip as error:
            # Settings are not a visitor's to change, and commands are for a file of that name on a machine of theirs.
            reason = re.sub(r" \(video\.timeout_seconds\)|, or use it as it is with --set \S+", "", error.reason)
            reason = reason.replace(f"{file.parent}{os.sep}", "")
            return reason if reason.startswith("a frame has") else f"cannot be read: {reason}"
        finally:
            if client:
                self._decoding.add(client, time.monotonic() - began)
                self.model_time.add(client, time.monotonic() - began)

    def examples(self, clips: Iterable[Path], wanted: int = 4) -> list[tuple[Path, Path]]:
        """Copies of the first accepted clips, each in its own folder below `folder`, with a thumbnail of the middle frame."""
        copies: list[tuple[Path, Path]] = []
        for number, clip in enumerate(clips):
            if len(copies) == wanted:
                break
            copy = self.folder / EXAMPLES / f"{number}" / clip.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(clip, copy)
                middle = FramePlan((self.examine(copy).seconds / 2,))
                with self._lock:
                    ((pixels_HW3,),) = self._reader.frames(copy, [middle])
            except (OSError, UserError):
                shutil.rmtree(copy.parent)
                continue
            picture = copy.with_suffix(".png")
            Image.fromarray(pixels_HW3).resize((96, 96)).save(picture)
            copies.append((copy, picture))
        return copies

    def hold(self, clip: Path) -> None:
        """An upload has arrived: its folder, which uploads of the same content share, stays until it was opened."""
        with self._lock_held:
            self._held.setdefault(clip.resolve().parent, []).append(time.monotonic())

    def release(self, clip: Path) -> None:
        """A page has opened an upload, or was refused it."""
        with self._lock_held:
            if times := self._held.get(folder := clip.resolve().parent):
                times.pop(0)
                if not times:
                    del self._held[folder]

    def drop(self, clip: Path, unused: Callable[[], bool] = lambda: True) -> None:
        """Delete an upload with its folder, if it is unused and no other upload of it is still to be opened: then whoever opens
        that one drops it, or `sweep`. Examples and files outside `folder` stay."""
        folder = clip.resolve().parent
        with self._lock_held:
            times = self._held.get(folder, [])
            if times and times[-1] > time.monotonic() - HOLD_SECONDS:
                return
            self._held.pop(folder, None)
            if not unused():  # asked last: a page has an upload before it says that it has opened it
                return
            if folder.parent == self.folder and folder.name != EXAMPLES:
                shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, used: Sequence[Path], min_age: float) -> None:
        """Delete uploads that are not in use and older than `min_age` seconds, those that no page asked for within HOLD_SECONDS,
        and what broken uploads left."""
        keep = {path.resolve().parent for path in used}
        with self._lock_held:
            old = time.monotonic() - HOLD_SECONDS
            expired = [folder for folder, times in self._held.items() if times[-1] < old]
        for folder in expired:
            self.drop(folder / "clip", lambda: folder not in keep)  # noqa: B023  called at once
        for path in self.folder.iterdir():
            with suppress(OSError):  # another thread deleted it
                if path in keep or time.time() - path.stat().st_mtime < min_age:
                    continue
                if path.is_dir():
                    self.drop(path / "clip")
                else:
                    path.unlink()

    def close(self) -> None:
        """Stop the decoder."""
        self._is_closed = True
        with self._lock:
            self._reader.close()


def duration(seconds: float) -> str:
    """A duration as text, such as "90 s" or "2.5 minutes"."""
    return f"{seconds:g} s" if seconds < 120 else f"{round(seconds / 60, 1):g} minutes"
