"""The process that decodes clips: `video.ClipReader` starts it, asks over stdin, and kills it when it hangs.

It imports nothing heavy but the decoders, and never torch: a restart has to be quick.
A request is one JSON line; a reply is one JSON line, followed by the raw bytes of the frames.

One timeline, made from the packets' timestamps, decides which frames are wanted, whoever decodes them. PyAV does, unless the
setting video.reader is decord. decord 0.6 is not used even then where it was seen to be wrong or to fail:
- AV1, several video streams, cover art: decord does not open them or may pick another stream;
- edit lists (frames that must not be shown): decord counts and times the hidden frames;
- open groups of pictures: decord takes the place of a key frame in the file for its place on screen and returns the wrong frame;
- MPEG-TS, program streams, AVI, samples that are not square: wrong frames or shapes;
- damage: decord gives up, PyAV skips the damaged packets;
- PQ and HLG: decord hands out the HDR code values as they are; here they are tone-mapped (`pixels.tone_map`).
Rotation, variable frame rate, non-zero start times and 10 bits came out right in decord, equal to PyAV.
"""

import functools
import hashlib
import json
import os
import re
import signal
import stat
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from minirlaif.video import sandbox
from minirlaif.video.av_decoder import Damage, NothingYet, av_frames
from minirlaif.video.av_packets import SMALL
from minirlaif.video.containers import MOST_PIXELS, Unreadable, mended, open_container, picture_reason
from minirlaif.video.frame_sampling import FrameSize
from minirlaif.video.pixels import resized
from minirlaif.video.preparation import after_damage, prepared
from minirlaif.video.timestamps import Timeline

AHEAD = 2  # frames that are decoded while another one is scaled
BLANK_RANGE = 2  # a picture whose channels span at most so many of 255 levels shows nothing
CONTAINERS = ("asf", "avi", "flv", "matroska", "mov", "mpeg", "mpegts", "ogg")  # as FFmpeg names their readers
BLANK_FRAMES = 16  # frames over the whole clip that have to be blank before it is called so
MOST_SHOWN = 500_000_000  # pixels of all frames of a request together; each takes 3 bytes twice
PROBES = 3  # frames that `info` decodes: first, middle, last


def decord_frames(timeline: Timeline, rows: list[int]) -> Iterator[Any]:
    """The frames at ascending rows, by decord: uint8 arrays [H, W, 3], upright."""
    import decord

    threads = 1 if timeline.pixels <= SMALL else 0
    # A tolerance of next to nothing: decord must not repeat a frame where it failed to decode one.
    reader = decord.VideoReader(timeline.path, ctx=decord.cpu(0), num_threads=threads, fault_tol=1e-9)
    if len(reader) != len(timeline.ticks):
        raise RuntimeError("decord counts other frames")
    for row in rows:
        yield reader[row].asnumpy()


def decode(timeline: Timeline, rows: list[int], size: FrameSize | None, reader: str, damage: Damage) -> tuple[Any, str]:
    """Ascending rows as one uint8 array [F, H, W, 3] in one pass, and who decoded them ("decord" or "av").

    reader: the decoder to try first; whatever decord says about a file, PyAV tries as well and has the last word.
    """
    import numpy as np

    if reader == "decord" and timeline.decord and _has_decord():
        try:
            return np.stack(_all_resized(decord_frames(timeline, rows), size)), "decord"
        except Exception:
            pass
    return np.stack(_all_resized(av_frames(timeline, rows, damage), size)), "av"


def _all_resized(frames: Iterator[Any], size: FrameSize | None) -> list[Any]:
    """Each frame as `size`, in a thread of its own: PIL works while the next frame is decoded. At most AHEAD wait there."""
    done, waiting = [], deque[Future[Any]]()
    with ThreadPoolExecutor(1) as pool:
        for frame in frames:
            waiting.append(pool.submit(resized, frame, size))
            if len(waiting) > AHEAD:
                done.append(waiting.popleft().result())
        return done + [each.result() for each in waiting]


def refuse_blank(timeline: Timeline, frames: Any, reader: str, share: float) -> None:
    """Raise Unreadable if the frames show one flat colour and so does the whole clip. A fade to black alone is no fault."""
    if not _flat(frames):
        return
    count = len(timeline.ticks)
    rows = sorted({number * count // BLANK_FRAMES for number in range(BLANK_FRAMES)})
    if _flat(decode(timeline, rows, None, reader, Damage(share))[0]):
        raise Unreadable("it is blank: every frame shows the same flat colour; leave it out")


def _flat(frames: Any) -> bool:
    first = frames[0, 0, 0].astype(int)  # most clips are settled by their first frame
    return all(abs(frame.astype(int) - first).max() <= BLANK_RANGE for frame in frames)


@functools.cache
def _has_decord() -> bool:
    try:
        import decord
    except (ImportError, OSError):  # no wheels for ARM Macs
        return False
    decord.logging.set_level(decord.logging.QUIET)
    return True


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """One request -> the reply's JSON part and its frames (None for `info`). Raises Unreadable."""
    share, most = request["max_damaged"], request.get("most_pixels") or MOST_PIXELS
    timeline = replace(prepared(request["path"], share), most_pixels=most)
    if timeline.pixels > most:  # a few bytes may announce gigabytes of picture
        smaller = mended(timeline.path, "-vf scale=1280:-2")
        raise Unreadable(f"a frame has {timeline.pixels:,} pixels, {most:,} are allowed; scale the clip down with `{smaller}`")
    if len(timeline.ticks) == 1 and (reason := picture_reason(timeline.path)):
        raise Unreadable(reason)
    ask = {"frames": _frames, "info": _info, "streams": _streams}[request["verb"]]
    try:
        return ask(timeline, request)
    except NothingYet:
        return ask(after_damage(timeline, share), request)


def _complaint(printed: bytes) -> tuple[str, ...]:
    """The first error that FFmpeg's reader of the container printed, as a text of what was repaired. Those of decoders are left
    to the strict decoder: after a seek they are no fault."""
    lines = re.findall(r"^\[(\w+)[\w,]* @ 0x\w+\] (.+)$", printed.decode(errors="replace"), re.MULTILINE)
    return tuple(f"FFmpeg reports: {text}" for name, text in lines if name in CONTAINERS)[:1]


def _frames(timeline: Timeline, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Where the frames of each plan lie among those that follow."""
    damage = Damage(request["max_damaged"])
    plans = [timeline.rows_at(times) for times in request["plans"]]
    rows = sorted({row for plan in plans for row in plan})
    size = request["size"] and FrameSize(**request["size"])
    if size is None and len(rows) * timeline.pixels > MOST_SHOWN:
        frames_of = f"{len(rows):,} frames of {timeline.width}x{timeline.height}"
        raise Unreadable(f"{frames_of} do not fit the decoder's memory: ask for {MOST_SHOWN // timeline.pixels:,} at once")
    frames, _ = decode(timeline, rows, size, request["reader"], damage)
    refuse_blank(timeline, frames, request["reader"], damage.share)
    places = {row: place for place, row in enumerate(rows)}
    header = {"places": [[places[row] for row in plan] for plan in plans], "shape": frames.shape}
    return header | {"repaired": [*timeline.repaired, *damage.texts()]}, frames


def _streams(timeline: Timeline, _request: dict[str, Any]) -> tuple[dict[str, Any], None]:
    """The streams of the file in words, and the rotation of the first frame."""
    with open_container(timeline.path) as container:
        lines = []
        for stream in container.streams:
            codec: Any = stream.codec_context
            words = [f"{stream.index}: {stream.type} {codec.name if codec else 'of an unknown codec'}"]
            words += [f"{codec.width}x{codec.height}"] if codec and stream.type == "video" else []
            lines.append(" ".join([*words, *(["(this one is read)"] if stream.index == timeline.stream else [])]))
        frame: Any = next(iter(container.decode(container.streams[timeline.stream])), None)
        return {"streams": lines, "rotation": 0 if frame is None else frame.rotation}, None


def _info(timeline: Timeline, request: dict[str, Any]) -> tuple[dict[str, Any], None]:
    """What `ClipInfo` holds."""
    count, damage = len(timeline.ticks), Damage(request["max_damaged"])
    rows = sorted({number * (count - 1) // max(1, PROBES - 1) for number in range(PROBES)})
    frames, reader = decode(timeline, rows, None, request["reader"], damage)
    refuse_blank(timeline, frames, request["reader"], damage.share)
    with open(timeline.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    height, width = frames.shape[1:3]
    info = {"path": timeline.path, "id": digest, "seconds": timeline.seconds, "width": width, "height": height}
    info |= {"fps": count / timeline.seconds, "reader": reader, "repaired": [*timeline.repaired, *damage.texts()]}
    return {"info": info}, None


def _printed(clear: bool = False) -> bytes:
    """What was printed to stderr, which the owner has made a file. clear: empty it."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return b""
    if clear:
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
    return os.pread(2, 1 << 16, 0)


def main() -> None:
    """Answer requests until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders that print must not print into the replies
    import av

    active = sandbox.enter()
    # Not `set_level`: messages would pass through Python, and decoding threads wait for its lock while a clip is closed.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR)
    replies.write(json.dumps({"active": active}).encode() + b"\n")  # ready
    replies.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):  # if the owner is gone as well, the system ends a decoder that hangs
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
        sandbox.allow_cpu(request["seconds"])
        frames = None
        _printed(clear=True)
        try:
            header, frames = answer(request)
            reports = header.get("info", header)
            reports["repaired"] = [*reports.get("repaired", ()), *_complaint(_printed())]
        except Unreadable as error:
            header = {"error": str(error)}
        except Exception as error:  # whatever a broken file does to a decoder is a property of the file
            header = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        replies.write(json.dumps(header).encode() + b"\n")
        if frames is not None:
            replies.write(frames.data)
        replies.flush()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
