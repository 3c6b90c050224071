"""The verb `frames`: what is read of clips, exactly as the model would get it. Needs no torch."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif.cli.flags import positive, verb
from minirlaif.config import VideoSection
from minirlaif.errors import UserError
from minirlaif.video.spans import LATE, clock_seconds, file_of

MOST_FRAMES = 4096
PICTURE_NAME = re.compile(r"\d{3,}_\d+\.\d{3}\.png|strip\.png")
UNIT = 32  # pixels of a side of one vector in Qwen3-VL

if TYPE_CHECKING:
    from minirlaif.video.reader import ClipInfo, ClipReader


def add(verbs: Any) -> None:
    """Add the parser of `frames`."""
    text, example = "print and write the frames of clips as a model gets them", "frames clip.mp4 --count 16 --out frames"
    parser = verb(verbs, "frames", text, example, run)
    share = VideoSection.max_damaged
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="files, file:// URLs, or parts of them: a.mp4#t=1,2")
    parser.add_argument("--count", metavar="N", type=positive, default=16, help="frames of each clip (default: 16)")
    parser.add_argument("--start", metavar="S", type=_time, default=0.0, help="seconds, or 1:30 (default: the start of the clip)")
    parser.add_argument("--end", metavar="S", type=_time, help="seconds, or 1:30 (default: the end of the clip)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="write each frame as PNG, and all as a model gets them (strip.png)"
    )
    parser.add_argument("--reader", choices=("av", "decord"), default="av", help="as video.reader (default: av)")
    parser.add_argument(
        "--max-damaged", metavar="SHARE", type=float, default=share, help=f"as video.max_damaged (default: {share})"
    )


@dataclass(frozen=True)
class _DecodedClip:
    """A clip as it was read. streams: of the file, in words; times: seconds of the frames, from the start of the clip or part."""

    info: ClipInfo
    streams: tuple[str, ...]
    rotation: int
    times: tuple[float, ...]
    frames_FHW3: Any
    repaired: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    """Print what is known about each clip; 2 when one is refused. UserError for a flag that makes no sense."""
    if options.count > MOST_FRAMES:
        raise UserError(f"--count {options.count}: at most {MOST_FRAMES} frames")
    if options.end is not None and options.end <= options.start:
        raise UserError(f"--start {options.start:g} --end {options.end:g}: the end must lie after the start")
    if not 0 <= options.max_damaged <= 1:
        raise UserError(f"--max-damaged {options.max_damaged:g}: a share, 0 to 1")
    from minirlaif.video.reader import ClipReader

    refused = 0
    with ClipReader(VideoSection.timeout_seconds, decoder=options.reader, max_damaged=options.max_damaged) as reader:
        for number, clip in enumerate(options.clips, start=1):
            folder = options.out and (
                options.out / f"{number:03}_{Path(file_of(clip)).stem}" if len(options.clips) > 1 else options.out
            )
            try:
                read = _read(reader, clip, options)
            except UserError as error:
                refused += 1
                reason = " ".join(str(getattr(error, "reason", error)).split())
                reason = reason.replace("--set video.max_damaged=", "--max-damaged ")
                if options.json:
                    print(json.dumps({"path": clip, "refused": reason}), flush=True)
                else:
                    print(f"minirlaif: {' '.join(clip.split())}: {reason}", file=sys.stderr, flush=True)
                continue
            print(_as_json(clip, read) if options.json else _as_text(clip, read), flush=True)
            if folder:
                try:
                    _write(folder, read)
                except OSError as error:
                    raise UserError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from None
    return 2 if refused else 0


def _time(text: str) -> float:
    seconds = clock_seconds(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text}: a time in seconds from 0, such as 2.5 or 1:30")
    return seconds


def _read(reader: ClipReader, clip: str, options: argparse.Namespace) -> _DecodedClip:
    from minirlaif.video.frame_sampling import uniform_plan

    info = reader.info(clip)
    for flag, value, late in (("--start", options.start, 0.0), ("--end", options.end or 0.0, LATE)):
        if value >= info.seconds + late:
            raise UserError(f"{flag} {value:g} lies behind its end at {info.seconds:.2f} seconds")
    plan = uniform_plan(info.seconds, options.count, options.start, options.end)
    (frames_FHW3,) = reader.frames(clip, [plan])
    streams, rotation = reader.streams(clip)
    return _DecodedClip(info, streams, rotation, plan.times, frames_FHW3, reader.repaired.get(file_of(info.path), ()))


def _as_json(clip: str, read: _DecodedClip) -> str:
    info = read.info
    values = {"path": clip, "reader": info.reader, "seconds": info.seconds, "width": info.width, "height": info.height}
    values |= {"times": list(read.times), "repaired": list(read.repaired)}
    return json.dumps(values)  # ASCII alone: a name need not be UTF-8


def _as_text(clip: str, read: _DecodedClip) -> str:
    info = read.info
    turned = f", turned by {read.rotation} degrees" if read.rotation else ""
    lines = [
        f"{clip}: {info.seconds:.3f} seconds, {info.width}x{info.height}{turned}, {info.fps:.3f} frames a second",
        f"  read by {info.reader}",
        *(f"  stream {stream}" for stream in read.streams),
        f"  frames at {', '.join(f'{time:.3f}' for time in read.times)} seconds",
        *(f"  repaired: {text}" for text in read.repaired),
    ]
    return "\n".join(lines)


def _write(folder: Path, read: _DecodedClip) -> None:
    """NNN_SECONDS.png for each frame at display size, and strip.png: all of them side by side, as a model gets them that takes
    frames of any size (video.frame_pixels)."""
    import numpy as np
    from PIL import Image

    from minirlaif.video.frame_sampling import Sizing
    from minirlaif.video.pixels import resized

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():  # of an earlier call
        if PICTURE_NAME.fullmatch(old.name):
            old.unlink()
    for number, (time, frame) in enumerate(zip(read.times, read.frames_FHW3, strict=True)):
        Image.fromarray(frame).save(folder / f"{number:03}_{time:.3f}.png")
    size = Sizing(UNIT).size(read.info.width, read.info.height, VideoSection.frame_pixels)
    strip = np.concatenate([resized(frame, size) for frame in read.frames_FHW3], axis=1)
    Image.fromarray(strip).save(folder / "strip.png")
