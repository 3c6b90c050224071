"""When each frame of a clip is shown, from the timestamps of its packets; nothing is decoded.

Every decoder takes its frames by this one list, so all agree on which frame is on screen at a time. The times are those of
ffmpeg: jumps of the clock in a transport stream are closed as ffmpeg closes them, and the first frame is at 0.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from minirlaif.video.clocks import JUMP_SECONDS, Packet, clock_shifts, missing_frames, refuse_unordered, row_at
from minirlaif.video.containers import (
    MOST_PACKETS,
    MOST_PIXELS,
    Unreadable,
    known_codec,
    mended,
    open_container,
    why_not_codec,
    why_not_open,
)

HDR_TRANSFERS = {16: "pq", 18: "hlg"}  # FFmpeg's numbers of SMPTE ST 2084 and ARIB STD-B67
HOLD_SECONDS = 0.5  # the last frame may always stand in for so long, as in a player, however short the clip
STILL_SECONDS = 3600.0  # no picture of a recording stays longer; a larger step elsewhere is a camera that set its clock
BACK_SECONDS, BACK_SHARE = 1.0, 0.1  # by how much decoding times go back, and of how many packets, where files were joined
BROADCAST = {"mpegts", "mpeg"}  # formats in which the clock may start again
NO_DISPLAY_TIMES = {"avi", "h264", "hevc", "mpegvideo", "m4v", "vc1"}  # packets come without the time at which they are shown
NOT_SEEKABLE = NO_DISPLAY_TIMES | {"mpeg"}  # after a seek the demuxer gives other times than from the start


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip in the order they are shown."""

    path: str
    ticks: tuple[int, ...]  # start of each frame, ascending
    keys: tuple[int, ...]  # rows where decoding can begin
    tick_seconds: float
    seconds: float  # from the first frame's start to the last one's end
    lost: float  # seconds after them that the file announces and does not hold
    stream: int  # number of the stream in the file
    transfer: int
    width: int  # pixels of a frame as displayed: its sample aspect ratio applied, before the display matrix
    height: int
    coded: tuple[int, int]  # width and height of the stored frame
    by_pts: bool  # a decoded frame is known by its own time; otherwise by its place in the order of decoding
    learn: bool  # the times have to be learned by decoding once
    open_groups: bool  # some frames after a key frame in the file are shown before it and need the group before
    seekable: bool
    shifts: tuple[tuple[int, int], ...]  # (number of a packet, ticks that are added from it on), ascending
    repaired: tuple[str, ...]
    decord: bool  # decord was seen to be right about clips of this kind
    most_pixels: int = MOST_PIXELS  # of a frame
    damaged_start: float = 0.0  # seconds before them that cannot be decoded

    @property
    def pixels(self) -> int:
        """Pixels of the larger of the stored and the displayed frame."""
        return max(self.width * self.height, self.coded[0] * self.coded[1])

    @property
    def announced(self) -> float:
        """Seconds of the clip with what is lost at its start and its end."""
        return self.damaged_start + self.seconds + self.lost

    def repair(self, lost: float) -> str:
        """What to do about a damaged clip, for a message. lost: seconds that cannot be decoded."""
        text, share = f"write what can be read to a new file with `{mended(self.path, '')}`", lost / self.announced + 5e-3
        return f"{text}, or use it as it is with --set video.max_damaged={share:.2f}" if share < 0.99 else text

    def limit(self, share: float) -> float:
        """Seconds of the clip that may be undecodable, from a share of its time; none at a share of 0."""
        return max(HOLD_SECONDS, self.announced * share) if share else 0.0

    def rows_at(self, times: list[float]) -> list[int]:
        """The frame on screen at each time; before the first and after the last one: that one."""
        starts = [(tick - self.ticks[0]) * self.tick_seconds for tick in self.ticks]
        return [row_at(starts, time) for time in times]

    def starting_at(self, row: int, reason: str, damaged: bool = False) -> Timeline:
        """The same clip without the frames before a row. damaged: whether they count as such."""
        lost = (self.ticks[row] - self.ticks[0]) * self.tick_seconds
        return replace(
            self,
            ticks=self.ticks[row:],
            keys=tuple(key - row for key in self.keys if key >= row),
            seconds=self.seconds - lost,
            damaged_start=self.damaged_start + lost * damaged,
            repaired=(*self.repaired, f"{reason}: the first {lost:.2f} seconds are left out"),
        )

    def shift(self, packet: int) -> int:
        """Ticks to add to the times of a packet, by its number in the file."""
        place = bisect.bisect_right(self.shifts, (packet, float("inf"))) - 1
        return self.shifts[place][1] if place >= 0 else 0


def inspect(path: str) -> Timeline:
    """The timeline of a clip, from its packets. Decodes nothing. Raises Unreadable."""
    import av

    if not os.path.exists(path):
        is_part = "#t=" in path and os.path.exists(path.partition("#t=")[0])
        if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE):
            raise Unreadable("an address is not read: download the clip and name the file")
        raise Unreadable("its part must be written #t=START,END in seconds" if is_part else "the file does not exist")
    if os.path.isdir(path):
        raise Unreadable("it is a folder, not a file: name a clip in it")
    if not os.path.isfile(path):
        raise Unreadable("it is no regular file but a device or pipe: copy what it gives into a file")
    if not os.path.getsize(path):
        raise Unreadable("the file is empty (0 bytes): copy or download it again")
    try:
        container = open_container(path)
    except av.error.FFmpegError as error:
        raise Unreadable(why_not_open(path, error)) from error
    with container:
        stream = main_stream(container, path)
        if not known_codec(stream.codec_context):
            raise Unreadable(why_not_codec(path, stream.codec_context))
        if stream.frames > MOST_PACKETS:
            raise Unreadable(f"it announces {stream.frames:,} frames, {MOST_PACKETS:,} are allowed")
        index = stream.index_entries
        cut = index is not None and len(index) > 0 and index[-1].pos + index[-1].size > os.path.getsize(path)
        packets: list[Packet] = []
        try:
            for p in container.demux(stream):
                if p.size:
                    packets.append(Packet(p.pts, p.dts, p.is_keyframe, p.is_discard, p.duration or 0))
                if len(packets) > MOST_PACKETS:
                    raise Unreadable(f"it has more than {MOST_PACKETS:,} packets")
        except av.error.FFmpegError:
            cut = True  # what came before the damage is still there; decoding says whether it is enough
        refuse_unordered(path, container.format.name, stream.codec_context, packets)
        if not BROADCAST & set(container.format.name.split(",")):
            _refuse_joined(path, packets, float(stream.time_base), float(stream.average_rate or 25))
        return _timeline(path, container, stream, packets, cut)


def main_stream(container: Any, path: str) -> Any:
    """The video stream that a player shows: default before others, then the longest, then the largest. Cover art is none, and a
    single picture is none beside a longer stream."""
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise Unreadable("it has no video stream" + (", only sound" if container.streams.audio else "") + ": name another file")
    if len(streams) == 1:
        return streams[0]
    frames, seconds = _lengths(path)
    moving = [stream for stream in streams if frames[stream.index] > 1]

    def rank(stream: Any) -> tuple[bool, float, int]:
        codec = stream.codec_context
        default = bool(stream.disposition & av.stream.Disposition.default)
        return default, round(seconds[stream.index], 1), codec.width * codec.height if codec else 0

    return max(moving or streams, key=rank)


def _lengths(path: str) -> tuple[dict[int, int], dict[int, float]]:
    """Packets and seconds of each video stream; headers do not always say them."""
    import av

    frames: dict[int, int] = defaultdict(int)
    times: dict[int, list[float]] = defaultdict(lambda: [0.0])
    with open_container(path) as container:
        try:
            for packet in container.demux(video=list(range(len(container.streams.video)))):
                if packet.size:
                    frames[packet.stream.index] += 1
                    time = packet.dts if packet.pts is None else packet.pts
                    if time is not None:
                        times[packet.stream.index].append(float(time * packet.time_base))
        except av.error.FFmpegError:
            pass
    return frames, defaultdict(float, {index: max(seconds) - min(seconds[1:]) for index, seconds in times.items()})


def _timeline(path: str, container: Any, stream: Any, packets: list[Packet], cut: bool) -> Timeline:
    """Order the packets of a stream by the time they are shown."""
    names = set(container.format.name.split(","))
    codec = stream.codec_context
    rate = float(stream.average_rate or 25)
    shown = [(number, packet) for number, packet in enumerate(packets) if not packet.hidden]
    if not shown:
        raise Unreadable("it has a video stream but no frames")
    by_pts = all(packet.pts is not None for packet in packets)
    clocked = all(packet.dts is not None for _, packet in shown)  # decoding times only, the same set of times
    # Times of display on some packets alone (transport streams), or on none (AVI): the decoder says which frames they are of.
    mixed = not by_pts and any(p.pts is not None for p in packets) or "avi" in names and any(p.pts != p.dts for p in packets)
    tick_seconds = float(stream.time_base) if by_pts or clocked or mixed else 1 / rate
    shifts = clock_shifts(packets, tick_seconds, rate) if names & BROADCAST and (by_pts or clocked) else ()
    line = Timeline(
        path=path, ticks=(), keys=(), tick_seconds=tick_seconds, seconds=0.0, lost=0.0, stream=stream.index,
        transfer=int(codec.color_trc or 0), width=codec.width, height=codec.height, coded=(codec.width, codec.height),
        by_pts=by_pts, learn=False, open_groups=False,
        seekable=by_pts and not shifts and not names & NOT_SEEKABLE, shifts=shifts, repaired=(), decord=False,
    )  # fmt: skip
    rows = []
    for number, packet in shown:
        time = packet.pts if by_pts else packet.dts if clocked else round(number / rate / tick_seconds)
        rows.append(((time or 0) + (line.shift(number) if by_pts or clocked else 0), packet.key, packet.duration))
    leading, key_tick = False, 0  # a picture that follows a key frame in the file and is shown before it: an open group
    for tick, key, _ in rows:
        key_tick = tick if key else key_tick
        leading = leading or tick < key_tick
    in_order = all(one[0] <= two[0] for one, two in zip(rows, rows[1:], strict=False))
    rows.sort()
    ticks = tuple(tick for tick, _, _ in rows)
    _refuse_odd_clocks(path, ticks, tick_seconds, rate)
    gap = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 1 / rate / tick_seconds
    declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base and not shifts else 0.0
    width, height = displayed(codec.width, codec.height, stream.sample_aspect_ratio or codec.sample_aspect_ratio)
    actual = (ticks[-1] - ticks[0] + (by_pts and rows[-1][2] or gap)) * tick_seconds
    lost = declared - actual if declared - actual > 2.5 * gap * tick_seconds else 0.0  # encoders announce up to two frames more
    if not cut and "avi" not in names:  # their headers speak of this stream alone, those of others of the sound as well
        lost = 0.0
    repaired: tuple[str, ...] = (f"its clock jumps {len(shifts)} times: the gaps are closed",) if shifts else ()
    if names & BROADCAST and not (by_pts or clocked or mixed):
        repaired += (f"it carries no times: its frames are spread evenly, {rate:.3f} a second",)
    early = "mp4" in names and declared > actual + gap * tick_seconds  # an edit list may leave out frames, and then their time
    repaired += missing_frames(ticks, tick_seconds, stream.frames - len(packets) if early else 0)
    apart = max((abs(p.pts - p.dts) for p in packets if p.pts is not None and p.dts is not None), default=0) * tick_seconds
    widest = max((later - tick for tick, later in zip(ticks, ticks[1:], strict=False)), default=0) * tick_seconds
    if by_pts and apart > JUMP_SECONDS + 4 * widest:
        repaired = (*repaired, f"its decoding times lie {apart:,.0f} seconds from those of display: these count")
    if lost or cut:
        missing = f"the last {lost:.2f} seconds are missing" if lost else f"nothing can be read after {actual:.2f} seconds"
        repaired = (*repaired, f"it is cut short or damaged: {missing}")
    plain = (width, height) == line.coded and not shifts and len(container.streams.video) == 1 and not names & NOT_SEEKABLE
    complete = by_pts and not leading and len(shown) == len(packets) and len(set(ticks)) == len(ticks)
    return replace(
        line,
        ticks=ticks,
        keys=tuple(row for row, entry in enumerate(rows) if entry[1]),
        seconds=declared if 0 < declared - actual <= gap * tick_seconds else actual,
        lost=lost,
        width=width,
        height=height,
        learn=mixed or _must_learn(names, codec, by_pts, in_order, ticks, bool(shifts) and widest > JUMP_SECONDS),
        open_groups=leading,
        repaired=repaired,
        decord=plain
        and complete
        and not names & BROADCAST
        and codec.name not in ("av1", "libdav1d")
        and line.transfer not in HDR_TRANSFERS,
    )


def _must_learn(names: set[str], codec: Any, by_pts: bool, in_order: bool, ticks: tuple[int, ...], jumps: bool) -> bool:
    """Whether packets do not say when frames are shown: they lack the times, are in the order of display although the decoder
    reorders, share times, or the clock jumps among frames that are decoded in another order."""
    reorders = bool(codec.has_b_frames)
    lack = bool(names & NO_DISPLAY_TIMES) and (not by_pts or reorders)
    return (
        lack or (in_order and codec.name == "mpeg4" and reorders) or ("mpeg" in names and len(set(ticks)) < len(ticks)) or jumps
    )


def displayed(width: int, height: int, aspect: Any) -> tuple[int, int]:
    """Width and height of a frame whose samples have an aspect ratio (width by height); the width is scaled, as players do."""
    ratio = float(aspect) if aspect else 1.0
    if not 1 / 16 <= ratio <= 16:  # a broken header
        ratio = 1.0
    return max(1, int(width * ratio + 1e-6)), height


def _refuse_joined(path: str, packets: list[Packet], tick_seconds: float, rate: float) -> None:
    """Raise Unreadable for files with a clock each that follow one another: in order of time their frames would alternate."""
    times = [packet.dts for packet in packets if packet.dts is not None]
    latest = list(itertools.accumulate(times, max))
    back = [number for number, time in enumerate(times) if (latest[number] - time) * tick_seconds > BACK_SECONDS]
    if len(back) > BACK_SHARE * len(times):
        at, to = ((time - times[0]) * tick_seconds for time in (latest[back[0]], times[back[0]]))
        raise Unreadable(
            f"its clock goes back from {at:.2f} to {to:.2f} seconds, as where files were joined; give it new times with"
            f" `{mended(path, f'-vf setpts=N/{rate:g}/TB -r {rate:g}')}`"
        )


def _refuse_odd_clocks(path: str, ticks: tuple[int, ...], tick_seconds: float, rate: float) -> None:
    """Raise Unreadable for times that cannot be those of a recording."""
    retime = f"give it new times with `{mended(path, f'-vf setpts=N/{rate:g}/TB -r {rate:g}')}`"
    if len(ticks) > 1 and ticks[0] == ticks[-1]:
        raise Unreadable(f"all {len(ticks)} frames carry the same time; {retime}")
    steps = [(later - tick) * tick_seconds for tick, later in zip(ticks, ticks[1:], strict=False)]
    if steps and (jump := max(steps)) > STILL_SECONDS:
        at = (ticks[steps.index(jump)] - ticks[0]) * tick_seconds
        raise Unreadable(f"its clock jumps by {jump:,.0f} seconds at {at:.2f} seconds; {retime}")
