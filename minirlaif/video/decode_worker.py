"""The process that decodes clips: `video.ClipReader` starts it, asks over stdin, and kills it when it hangs.

It imports nothing heavy but the decoders, and never torch: a restart has to be quick.
A request is one JSON line; a reply is one JSON line, followed by the raw bytes of the frames.

One timeline, made from the packets' timestamps, decides which frames are wanted, whoever decodes them. decord 0.6 decodes,
except where it was seen to be wrong or to fail, and there PyAV does:
- AV1, a second video stream, cover art: decord does not open them or may pick another stream;
- edit lists (frames that must not be shown): decord counts and times the hidden frames;
- open groups of pictures: decord takes the place of a key frame in the file for its place on screen and returns the wrong frame;
- no index (MPEG-TS) and damage: decord gives up, PyAV skips the damaged packets;
- PQ and HLG: decord hands out the HDR code values as they are; here they are tone-mapped (`tone_map`).
Rotation, variable frame rate, non-zero start times and 10 bits came out right in decord, equal to PyAV.
"""

import bisect
import functools
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from minirlaif.video.frame_sampling import FrameSize
from minirlaif.video.timestamps import HDR_TRANSFERS, Timeline, Unreadable, inspect

SEEK_ROWS = 24  # PyAV seeks only where that saves at least so many frames
HOLD_SECONDS = 0.5  # a damaged frame is replaced by the last good one, as a player does, if that is at most so old
BLANK_RANGE = 2  # a picture whose channels span at most so many of 255 levels shows nothing
BLANK_FRAMES = 16  # frames over the whole clip that have to be blank before it is called so
SMALL = 640 * 360  # up to so many pixels decoding threads cost more than they save
PROBES = 3  # frames that `info` decodes: first, middle, last
REFERENCE_WHITE, PEAK = 203.0, 1000.0  # nits: ITU-R BT.2408's diffuse white, and the mastering peak that is kept
KNEE = 0.3  # share of white below which tone mapping changes nothing
BT2020_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))  # ITU-R BT.2087


class _SeekMissed(Exception):
    """A seek landed behind the wanted frame."""


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


def av_frames(timeline: Timeline, rows: list[int]) -> Iterator[Any]:
    """The frames at ascending rows, by PyAV: uint8 arrays [H, W, 3], upright, in standard range."""
    done = 0
    try:
        for frame in _av_walk(timeline, rows, seek=timeline.exact):
            yield frame
            done += 1
    except _SeekMissed:
        yield from _av_walk(timeline, rows[done:], seek=False)


def _av_walk(timeline: Timeline, rows: list[int], seek: bool) -> Iterator[Any]:
    import av

    with av.open(timeline.path) as container:
        stream: Any = container.streams[timeline.stream]
        if timeline.pixels <= SMALL:
            stream.codec_context.thread_count = 1
        else:
            stream.thread_type = "AUTO"
        decoded = _av_decoded(timeline, container, stream)
        convert = _Converter(timeline.transfer)
        at, picture = -1, None  # the last good frame, which stays on screen
        ahead: tuple[int, Any] | None = None  # decoded already, but shown later
        for row in rows:
            place = bisect.bisect_right(timeline.keys, row) - 1
            key = timeline.keys[place] if place >= 0 else 0
            jumped = seek and key >= at + SEEK_ROWS
            if jumped:
                container.seek(timeline.ticks[key], stream=stream)
                decoded, ahead = _av_decoded(timeline, container, stream), None
            while at < row:
                ahead = ahead or next(decoded, None)
                if jumped and (ahead is None or ahead[0] > key):
                    raise _SeekMissed
                if ahead is None or ahead[0] > row:
                    break
                if not jumped or ahead[0] == key:
                    jumped, (at, picture) = False, ahead
                ahead = None
            late = (timeline.ticks[row] - timeline.ticks[at]) * timeline.tick_seconds if at >= 0 else 0.0
            if picture is None or late > HOLD_SECONDS:
                when = (timeline.ticks[row] - timeline.ticks[0]) * timeline.tick_seconds
                raise Unreadable(f"it is damaged or cut short: nothing can be decoded at {when:.2f} seconds")
            yield convert(picture)


def _av_decoded(timeline: Timeline, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(row, frame) of everything that can be decoded from here on. After a damaged packet that is nothing before the next key
    frame: what decoders hand out until then is guesswork."""
    import av

    count, sound = -1, True
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            sound = False
            continue
        for frame in frames:
            count += 1
            sound = not frame.is_corrupt and (sound or frame.key_frame)
            row = bisect.bisect_right(timeline.ticks, frame.pts) - 1 if timeline.exact and frame.pts is not None else count
            if row >= 0 and sound:
                yield min(row, len(timeline.ticks) - 1), frame


class _Converter:
    """Turns PyAV frames into upright RGB; keeps swscale's tables between frames (making them takes longer than using them)."""

    def __init__(self, transfer: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._curve = HDR_TRANSFERS.get(transfer)

    def __call__(self, frame: Any) -> Any:
        import numpy as np

        kind = "rgb48le" if self._curve else "rgb24"
        image = self._reformatter.reformat(frame, format=kind, interpolation="BICUBIC", threads=1).to_ndarray()
        if self._curve:
            image = tone_map(image, self._curve)
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))  # both count counterclockwise


def tone_map(image: Any, curve: str) -> Any:
    """HDR to standard range: [H, W, 3] uint16 R'G'B' code values in BT.2020 -> uint8 sRGB.

    PQ (SMPTE ST 2084) or HLG (BT.2100, shown at 1000 nits) -> light, where 1 is BT.2408's reference white of 203 nits -> BT.709
    primaries (out of gamut is cut off) -> the Mobius curve, which leaves light under KNEE alone and bends the rest up to PEAK
    into [0, 1] -> sRGB coding. The curve acts on the largest channel and scales all three, so hues stay.
    """
    import numpy as np

    light = _light_of_codes(curve)[image]
    if curve == "hlg":  # the display's part of the curve depends on luminance (BT.2100, gamma 1.2)
        luminance = np.maximum(light @ np.array([0.2627, 0.678, 0.0593], np.float32), 1e-6)
        light *= luminance[..., None] ** np.float32(0.2) * np.float32(PEAK / REFERENCE_WHITE)
    light = np.maximum(light @ np.array(BT2020_TO_BT709, np.float32).T, 0)
    peak = PEAK / REFERENCE_WHITE
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    most = np.minimum(light.max(axis=-1, keepdims=True), peak)
    bent = (b * b + 2 * b * KNEE + KNEE**2) / (b - a) * (most + a) / (most + b)
    light = np.clip(light * np.where(most > KNEE, bent / np.maximum(most, KNEE), 1), 0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-6) ** (1 / 2.4) - 0.055)
    return np.round(coded * 255).astype(np.uint8)


@functools.cache
def _light_of_codes(curve: str) -> Any:
    """Light of each 16-bit code value: PQ in units of reference white, HLG as scene light from 0 to 1."""
    import numpy as np

    code = np.arange(65536) / 65535
    if curve == "hlg":
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12).astype(np.float32)
    root = code ** (1 / 78.84375)
    nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    return (nits / REFERENCE_WHITE).astype(np.float32)


def decode(timeline: Timeline, rows: list[int], size: FrameSize | None, only_av: bool) -> tuple[Any, str]:
    """Ascending rows as one uint8 array [F, H, W, 3] in one pass, and who decoded them ("decord" or "av")."""
    import numpy as np

    if timeline.decord and not only_av and _has_decord():
        try:
            return np.stack([resized(frame, size) for frame in decord_frames(timeline, rows)]), "decord"
        except Exception:  # whatever decord says about a file, PyAV tries as well and has the last word
            pass
    return np.stack([resized(frame, size) for frame in av_frames(timeline, rows)]), "av"


def resized(frame: Any, size: FrameSize | None) -> Any:
    """[H, W, 3] as `size`, by PIL's filters (with antialiasing); None keeps it."""
    import numpy as np
    from PIL import Image

    if size is None:
        return frame
    height, width = frame.shape[:2]
    if size.pad is not None and height != width:
        side = max(height, width)
        square = np.empty((side, side, 3), np.uint8)
        square[:] = size.pad
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = frame
        frame = square
    steps = [(size.width, size.height)]
    if size.longest:
        long, ratio = size.longest, width / height
        other = int(long / ratio if ratio >= 1 else long * ratio)
        other = max(1, other + other % 2)
        steps.insert(0, (long, other) if ratio >= 1 else (other, long))
    for step in steps:
        if frame.shape[1::-1] != step:
            frame = np.asarray(Image.fromarray(frame).resize(step, Image.Resampling[size.filter.upper()]))
    return frame


def refuse_blank(timeline: Timeline, frames: Any, only_av: bool) -> None:
    """Raise Unreadable if the frames show one flat colour and so does the whole clip. A fade to black alone is no fault."""
    if not _flat(frames):
        return
    count = len(timeline.ticks)
    rows = sorted({number * count // BLANK_FRAMES for number in range(BLANK_FRAMES)})
    if _flat(decode(timeline, rows, None, only_av)[0]):
        raise Unreadable("it is blank: every frame shows the same flat colour")


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
    timeline = inspect(request["path"])
    only_av, count, most = request["only_av"], len(timeline.ticks), request.get("most_pixels", 0)
    if most and timeline.pixels > most:  # a few bytes may announce gigabytes of picture
        raise Unreadable(f"a frame has {timeline.pixels:,} pixels, {most:,} are allowed; scale the clip down")
    if request["verb"] == "frames":
        plans = [timeline.rows_at(times) for times in request["plans"]]
        rows = sorted({row for plan in plans for row in plan})
        size = request["size"] and FrameSize(**request["size"])
        frames, _ = decode(timeline, rows, size, only_av)
        refuse_blank(timeline, frames, only_av)
        places = {row: place for place, row in enumerate(rows)}
        return {"places": [[places[row] for row in plan] for plan in plans], "shape": frames.shape}, frames
    rows = sorted({number * (count - 1) // max(1, PROBES - 1) for number in range(PROBES)})
    frames, reader = decode(timeline, rows, None, only_av)
    refuse_blank(timeline, frames, only_av)
    with open(timeline.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    height, width = frames.shape[1:3]
    info = {"path": timeline.path, "id": digest, "seconds": timeline.seconds, "width": width, "height": height}
    return {"info": {**info, "fps": count / timeline.seconds, "reader": reader}}, None


def main() -> None:
    """Answer requests until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders that print must not print into the replies
    import av

    av.logging.set_level(av.logging.PANIC)
    _has_decord()
    replies.write(b"{}\n")  # ready
    replies.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):  # if the owner is gone as well, the system ends a decoder that hangs
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
        frames = None
        try:
            header, frames = answer(request)
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
