"""When each frame of a clip is shown, from the timestamps of its packets; nothing is decoded.

Every reader takes its frames by this one list, so they agree on which frame is on screen at a time.
"""

import bisect
import os
from dataclasses import dataclass
from typing import Any

SLACK = 1e-3  # seconds by which a frame may start late and still count: containers round timestamps to a millisecond
HDR_TRANSFERS = {16: "pq", 18: "hlg"}  # FFmpeg's numbers of SMPTE ST 2084 and ARIB STD-B67


class Unreadable(Exception):
    """Why a clip cannot be used, in words for its owner."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip in the order they are shown."""

    path: str
    ticks: tuple[int, ...]  # start of each frame, ascending
    keys: tuple[int, ...]  # rows where decoding can begin
    tick_seconds: float
    seconds: float  # from the first frame's start to the last one's end
    stream: int  # number of the stream in the file
    transfer: int
    pixels: int
    exact: bool  # ticks are presentation times, so a decoded frame is known by its own
    decord: bool  # decord can be trusted with it

    def rows_at(self, times: list[float]) -> list[int]:
        """The frame on screen at each time; before the first and after the last one: that one."""
        starts = [(tick - self.ticks[0]) * self.tick_seconds for tick in self.ticks]
        return [max(0, bisect.bisect_right(starts, time + SLACK) - 1) for time in times]


def inspect(path: str) -> Timeline:
    """The timeline of a clip, from its packets. Decodes nothing. Raises Unreadable."""
    import av

    if not os.path.exists(path):
        raise Unreadable("the file does not exist")
    if os.path.isdir(path):
        raise Unreadable("it is a folder, not a file")
    if not os.path.getsize(path):
        raise Unreadable("the file is empty (0 bytes)")
    try:
        container = av.open(path)
    except av.error.FFmpegError as error:
        raise Unreadable(_why_not_open(path, error)) from error
    with container:
        streams = [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise Unreadable("it has no video stream" + (", only sound" if container.streams.audio else ""))
        stream = streams[0]
        index = stream.index_entries
        if index is not None and len(index) and index[-1].pos + index[-1].size > os.path.getsize(path):
            raise Unreadable("the file is cut short: its index points past its end")
        if stream.codec_context is None:
            raise Unreadable("no installed decoder supports its video codec")
        packets: list[Any] = []
        try:
            packets.extend((p.pts, p.dts, p.is_keyframe, p.is_discard, p.duration) for p in container.demux(stream) if p.size)
        except av.error.FFmpegError:
            pass  # what came before the damage is still there; decoding says whether it is enough
        return _timeline(path, stream, packets, sole=len(container.streams.video) == 1)


def _timeline(
    path: str, stream: Any, packets: list[tuple[int | None, int | None, bool, bool, int | None]], sole: bool
) -> Timeline:
    """Order the packets (pts, dts, is_keyframe, is_discard, duration) of a stream by the time they are shown."""
    rate = float(stream.average_rate or 25)
    kept = [packet for packet in packets if not packet[3]]
    if not kept:
        raise Unreadable("it has a video stream but no frames")
    exact = all(pts is not None for pts, *_ in packets)
    clocked = all(dts is not None for _, dts, *_ in kept)  # AVI: decoding times only, the same set of times
    tick_seconds = float(stream.time_base) if exact or clocked else 1 / rate
    shown = [
        (pts if exact and pts is not None else dts if clocked and dts is not None else number, key, duration or 0)
        for number, (pts, dts, key, _, duration) in enumerate(kept)
    ]
    leading, key_tick = False, 0  # a picture that follows a key frame in the file and is shown before it: an open group
    for tick, key, _ in shown:
        key_tick = tick if key else key_tick
        leading = leading or tick < key_tick
    shown.sort()
    ticks = tuple(tick for tick, _, _ in shown)
    gap = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 1 / rate / tick_seconds
    declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    codec = stream.codec_context
    transfer = int(codec.color_trc or 0)
    trusted = sole and exact and not leading and len(shown) == len(packets) and len(set(ticks)) == len(ticks)
    return Timeline(
        path=path,
        ticks=ticks,
        keys=tuple(row for row, packet in enumerate(shown) if packet[1]),
        tick_seconds=tick_seconds,
        seconds=max(declared, (ticks[-1] - ticks[0] + (shown[-1][2] if exact and shown[-1][2] else gap)) * tick_seconds),
        stream=stream.index,
        transfer=transfer,
        pixels=codec.width * codec.height,
        exact=exact,
        decord=trusted and codec.name not in ("av1", "libdav1d") and transfer not in HDR_TRANSFERS,
    )


def _why_not_open(path: str, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] in (b"ftyp", b"moov", b"mdat"):
        return "an mp4 whose index (moov) is missing or damaged: the file is cut short or broken"
    return f"not a video file that FFmpeg knows ({getattr(error, 'strerror', None) or error})"
