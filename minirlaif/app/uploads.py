"""Clips that people bring: what is taken, where copies lie, and when they go. No torch.

A file is judged by its content before any decoder sees it: libraries that read video also read playlists, which name other
files and addresses.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minirlaif.errors import UserError
from minirlaif.video.frame_sampling import FramePlan
from minirlaif.video.reader import ClipInfo, ClipReader, UnreadableClip

# What stands at which byte of the containers that are taken.
_CONTAINERS = (
    (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),  # mp4, mov, m4v, 3gp
    (0, (b"\x1a\x45\xdf\xa3",)),  # webm, mkv
    (8, (b"AVI ",)),
    (0, (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),  # mpg
    (0, (b"FLV\x01", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"GIF8")),  # flv, ogv, wmv, gif
)
_OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"#EXTM3U", "a playlist"),
    (b"ID3", "a sound file"),
    (b"RIFF", "a sound file or a picture"),
    (b"\x7fELF", "a program"),
    (b"<", "a web page or XML"),
)


EXAMPLES = "examples"  # folder of clips that are ours


@dataclass(frozen=True)
class Limits:
    """What a clip may be at most."""

    megabytes: int = 200
    seconds: float = 600.0
    pixels: int = 4096 * 2304  # of one frame


def check_content(path: Path, limits: Limits) -> None:
    """UserError unless the file begins like a video and is not too large. Nothing is decoded."""
    size = path.stat().st_size
    if size < 64:  # also what a browser makes of a recording that it had no time to write
        raise UserError("the file is empty" if size == 0 else f"the file is too short for a clip ({size} bytes)")
    if size > limits.megabytes << 20:
        raise UserError(f"the file has {size / (1 << 20):.0f} MB, {limits.megabytes} MB are allowed; cut the clip or shrink it")
    with path.open("rb") as file:
        head = file.read(400)
    stream = len(head) > 376 and head[0] == head[188] == head[376] == 0x47  # MPEG-TS: a mark every 188 bytes
    if not stream and not any(head[at : at + len(mark)] == mark for at, marks in _CONTAINERS for mark in marks):
        what = next((f", it begins like {name}" for mark, name in _OTHERS if head.startswith(mark)), "")
        raise UserError(f"not a video{what}; bring mp4, webm, mkv, mov, avi, mpg, wmv, flv or ogv")


class UploadStore:
    """Examines clips before an engine sees them, in a decoder that is killed when it hangs.

    Args:
        folder: where uploads lie; nothing outside it is taken.
        seconds: time for one decoder and clip.
    """

    def __init__(self, folder: Path, limits: Limits, seconds: float = 15.0) -> None:
        self.folder, self.limits = folder.resolve(), limits
        self._reader = ClipReader(seconds, limits.pixels)
        self._lock = threading.Lock()

    def examine(self, path: str | Path) -> ClipInfo:
        """What is known about a clip within the limits. UserError in words for its owner: no path of ours is in it."""
        file = Path(path).resolve()
        if not file.is_relative_to(self.folder) or not file.is_file():
            raise UserError("this file was not uploaded here")
        check_content(file, self.limits)
        try:
            with self._lock:
                info = self._reader.info(file)
        except UnreadableClip as error:
            large = error.reason.startswith("a frame has")
            raise UserError(("" if large else "cannot be read: ") + _plain(error.reason)) from None
        if info.seconds > self.limits.seconds:
            raise UserError(
                f"the clip lasts {duration(info.seconds)}, {duration(self.limits.seconds)} are allowed; cut out what matters"
            )
        return info

    def examples(self, clips: Iterable[Path], wanted: int = 4) -> list[tuple[Path, Path]]:
        """Copies of the first clips that pass, in a folder of their own below `folder`, each with a picture from its middle."""
        kept: list[tuple[Path, Path]] = []
        for number, clip in enumerate(clips):
            if len(kept) == wanted:
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
            kept.append((copy, picture))
        return kept

    def drop(self, clip: Path) -> None:
        """Delete an upload with the folder that it came in. Examples stay, and so does whatever lies elsewhere."""
        folder = clip.resolve().parent
        if folder.parent == self.folder and folder.name != EXAMPLES:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, used: Sequence[Path], older: float) -> None:
        """Delete uploads that nobody uses and that came more than so many seconds ago, and what is left of broken ones."""
        keep = {path.resolve().parent for path in used}
        for path in self.folder.iterdir():
            with suppress(OSError):  # somebody else deleted it
                if path in keep or time.time() - path.stat().st_mtime < older:
                    continue
                if path.is_dir():
                    self.drop(path / "clip")
                else:
                    path.unlink()

    def close(self) -> None:
        """End the decoder."""
        with self._lock:
            self._reader.close()


def duration(seconds: float) -> str:
    """For people, as exact as a limit has to be."""
    return f"{seconds:g} s" if seconds < 120 else f"{round(seconds / 60, 1):g} minutes"


def _plain(reason: str) -> str:
    """A decoder's reason without names of settings."""
    return reason.replace(" (video.timeout_seconds)", "")
