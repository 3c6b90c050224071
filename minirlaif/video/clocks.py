"""The clock of a file: the times of its packets, where they jump, and where frames are missing. Decodes nothing."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.video.containers import Unreadable, mended

JUMP_SECONDS = 10.0  # ffmpeg's -dts_delta_threshold: a larger step of the clock in a broadcast format is closed
# A frame counts so much before it starts: containers round to a millisecond, so that one of 30 a second that is asked for at
# 2/30 s may start at 0.067 s. The smaller of seconds and a share of the frame before it.
SLACK, SLACK_SHARE = 1e-3, 0.1
GAP_SECONDS = 0.5  # without a frame, where frames are otherwise regular
MISSING = "frames are missing"  # how a report of it begins


@dataclass(frozen=True)
class Packet:
    """Times of a packet in ticks of its stream, None where the container has none."""

    pts: int | None
    dts: int | None
    key: bool
    hidden: bool  # an edit list says that it is decoded and not shown
    duration: int


def clock_shifts(packets: list[Packet], tick_seconds: float, rate: float) -> tuple[tuple[int, int], ...]:
    """Where the clock jumps, and what to add from there on, so that each part follows the one before. ffmpeg's rule: the decoding
    time goes back, or forward by more than JUMP_SECONDS."""
    shifts: list[tuple[int, int]] = []
    shift, expected = 0, None
    step = max(1, round(1 / rate / tick_seconds))
    for number, packet in enumerate(packets):
        time = packet.dts if packet.dts is not None else packet.pts
        if time is None:
            continue
        if expected is not None:
            off = (time + shift - expected) * tick_seconds
            if off > JUMP_SECONDS or off < -0.1 - step * tick_seconds:
                shift = expected - time
                shifts.append((number, shift))
        expected = time + shift + (packet.duration or step)
    return tuple(shifts)


def missing_frames(ticks: tuple[int, ...], tick_seconds: float, unread: int) -> tuple[str, ...]:
    """Where frames are missing in a clip that is otherwise regular: a few longer steps, or a single one that is much longer.

    unread: frames that the index of the file counts and that cannot be read.
    """
    texts = (f"its index counts {unread} frames that cannot be read",) if unread > 0 else ()
    steps = [later - tick for tick, later in zip(ticks, ticks[1:], strict=False)]
    usual = sorted(steps)[len(steps) // 2] if steps else 0
    odd = [(tick, step) for tick, step in zip(ticks[:-1], steps, strict=True) if step > 2.5 * usual > 0]
    single = len(odd) == 1 and odd[0][1] > 10 * usual and odd[0][1] * tick_seconds > GAP_SECONDS
    if not odd or (len(odd) > len(steps) / 50 and not single):
        return texts
    more = f" and {len(odd) - 1} more times" if len(odd) > 1 else ""
    return (*texts, f"{MISSING} after {(odd[0][0] - ticks[0]) * tick_seconds:.2f} seconds{more}")


def row_at(starts: Sequence[float], when: float) -> int:
    """The frame on screen at a time: the last of those that start at or before it, or later by no more than the slack; before the
    first one, that one. starts: ascending seconds."""
    row = max(0, bisect.bisect_right(starts, when) - 1)
    if row + 1 < len(starts):
        later = starts[row + 1]
        if later - when <= min(SLACK, SLACK_SHARE * (later - starts[row])):
            return bisect.bisect_right(starts, later) - 1
    return row


def refuse_unordered(path: str, container: str, codec: Any, packets: list[Packet]) -> None:
    """Raise Unreadable for H.264 and HEVC in MXF whose frames are reordered: FFmpeg numbers packets there as they are decoded."""
    reordered = codec.name in ("h264", "hevc") and codec.has_b_frames
    if container == "mxf" and reordered and all(packet.pts == packet.dts for packet in packets):
        raise Unreadable(f"an MXF file that does not say when its frames are shown; write it anew with `{mended(path, '')}`")
