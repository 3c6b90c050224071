"""Frames of a clip by PyAV: the frame of each row of its timeline, and a report of every frame that damage has touched.

Damage is found by a strict decoder, which fails where the usual one hides errors (it fills blocks that it cannot decode with
guesses). A clip is decoded strictly; from the first requested frame that does not come out so, it is decoded tolerantly. Frames
that only the tolerant decoder gives are used and reported; where it gives none, the last frame stays for a limited time.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minirlaif.video.av_packets import DecodedFrame, SeekMissed, walk
from minirlaif.video.containers import Unreadable
from minirlaif.video.pixels import FrameConverter, is_unwritten
from minirlaif.video.timestamps import HOLD_SECONDS, Timeline

COUNTED_PIXELS = 4 * 10**9  # of a whole clip; a damaged one of more is not decoded wholly to count what it lost
NAMED_TIMES = 4  # times that a report lists


class NothingYet(Unreadable):
    """No frame can be decoded at or before a time that was asked for."""


class _Damaged(Exception):
    """The strict decoder did not give a frame that was asked for."""


@dataclass
class Damage:
    """What was done about the frames of one request."""

    share: float  # of the clip's time that may be undecodable
    held: list[float] = field(default_factory=list)  # seconds at which an earlier frame stands
    faulty: list[float] = field(default_factory=list)  # seconds at which a frame was decoded from damaged data
    errors: list[float] = field(default_factory=list)  # seconds of packets that the strict decoder failed at
    disordered: bool = False  # frames come out of the decoder in another order than their times
    sizes: list[str] = field(default_factory=list)  # sizes that were scaled to the first one

    def texts(self) -> list[str]:
        """One text for each kind of damage."""
        texts = [f"its size changes to {size}: scaled to the first one" for size in dict.fromkeys(self.sizes)]
        if self.disordered:
            texts.append("its times go backwards: frames are shown in the order of their times")
        if self.held:
            texts.append(f"damaged at {_seconds(self.held)}: the last sound frame before is shown")
        if self.faulty:
            texts.append(f"damaged at {_seconds(self.faulty)}: what is shown there is the decoder's guess, often unusable")
        if self.errors and not self.held and not self.faulty:
            texts.append(f"damaged at {_seconds(self.errors)}: no frame shown is known to be faulty")
        return texts


def _seconds(times: list[float]) -> str:
    """Times for a text: "1.20, 3.00 seconds"."""
    ordered = sorted(set(times))
    more = f" and {len(ordered) - NAMED_TIMES} more times" if len(ordered) > NAMED_TIMES else ""
    return f"{', '.join(f'{time:.2f}' for time in ordered[:NAMED_TIMES])} seconds{more}"


def av_frames(timeline: Timeline, rows: list[int], damage: Damage) -> Iterator[Any]:
    """The frames at ascending rows: uint8 arrays [H, W, 3], upright, in display shape and standard range. Raises Unreadable."""
    convert = FrameConverter(timeline)
    done, seek = 0, timeline.seekable
    while done < len(rows):
        try:
            for decoded in _strict_frames(timeline, rows[done:], seek, damage):
                yield _shown(timeline, convert, decoded.frame, damage)
                done += 1
        except SeekMissed:
            seek = False
        except _Damaged:
            break
    if done < len(rows):
        for frame in _tolerant_frames(timeline, rows[done:], seek, damage):
            yield _shown(timeline, convert, frame, damage)


def _shown(timeline: Timeline, convert: FrameConverter, frame: Any, damage: Damage) -> Any:
    if (frame.width, frame.height) != timeline.coded:
        damage.sizes.append(f"{frame.width}x{frame.height}")
    return convert(frame)


def _strict_frames(timeline: Timeline, rows: list[int], seek: bool, damage: Damage) -> Iterator[DecodedFrame]:
    """The frames of rows, from a decoder that fails at errors. Raises _Damaged at the first that is not there, SeekMissed."""
    last: DecodedFrame | None = None
    for row, frames in walk(timeline, rows, seek, strict=True, needed_only=True, errors=damage.errors):
        for decoded in frames:
            if not decoded.sound and not timeline.by_pts:
                raise _Damaged  # rows are counted here, and some frames may be missing
            damage.disordered |= decoded.back
            last = decoded
        if last is None or last.row != row or not last.sound or is_unwritten(last.frame):
            raise _Damaged
        yield last


def _tolerant_frames(timeline: Timeline, rows: list[int], seek: bool, damage: Damage) -> Iterator[Any]:
    """The frames of rows of a damaged clip, from a decoder that guesses at errors. Raises Unreadable."""
    while True:
        try:
            sound_ids = {
                decoded.id for _, frames in walk(timeline, rows, seek, strict=True) for decoded in frames if decoded.sound
            }
            shown = []
            sound: DecodedFrame | None = None
            rough: DecodedFrame | None = None
            for row, frames in walk(timeline, rows, seek, strict=False):
                for decoded in frames:
                    damage.disordered |= decoded.back
                    if decoded.sound and decoded.id in sound_ids and not is_unwritten(decoded.frame):
                        sound = decoded
                    else:
                        rough = decoded
                shown.append(_on_screen(timeline, row, sound, rough, damage))
            break
        except SeekMissed:
            seek = False
            damage.held.clear()
            damage.faulty.clear()
    if damage.held:
        _refuse_loss(timeline, damage)
    yield from shown


def _on_screen(timeline: Timeline, row: int, sound: DecodedFrame | None, rough: DecodedFrame | None, damage: Damage) -> Any:
    """The frame to show for a row: itself; otherwise the last sound one, if it is recent; otherwise one from damaged data.
    Raises Unreadable."""
    if sound is not None and sound.row == row:
        return sound.frame

    def age(decoded: DecodedFrame | None) -> float:
        return float("inf") if decoded is None else (timeline.ticks[row] - timeline.ticks[decoded.row]) * timeline.tick_seconds

    when = (timeline.ticks[row] - timeline.ticks[0]) * timeline.tick_seconds
    limit = timeline.limit(damage.share)
    if sound is not None and age(sound) <= min(HOLD_SECONDS, limit):
        damage.held.append(when)
        return sound.frame
    if rough is not None and (sound is None or rough.row > sound.row) and age(rough) <= limit and limit:
        damage.faulty.append(when)
        return rough.frame
    if sound is not None and age(sound) <= limit:
        damage.held.append(when)
        return sound.frame
    if sound is None and rough is None:
        raise NothingYet(f"it is damaged: nothing can be decoded at {when:.2f} seconds; {timeline.repair(when)}")
    repair = timeline.repair(_lost_seconds(timeline, min(age(sound), age(rough))))
    raise Unreadable(f"it is damaged or cut short: nothing can be decoded at {when:.2f} seconds; {repair}")


def _refuse_loss(timeline: Timeline, damage: Damage) -> None:
    """Raise Unreadable if more of a clip's time is undecodable than is allowed."""
    seconds = _lost_seconds(timeline)
    if seconds > timeline.limit(damage.share):
        raise Unreadable(
            f"it is damaged: {seconds:.2f} of {timeline.announced:.2f} seconds cannot be decoded, the first at"
            f" {min(damage.held):.2f} seconds; {timeline.repair(seconds)}"
        )


def _lost_seconds(timeline: Timeline, at_least: float = 0.0) -> float:
    """Seconds of a clip that cannot be decoded. at_least: of them, for a clip that is too large to count."""
    outside = timeline.lost + timeline.damaged_start
    if len(timeline.ticks) * timeline.pixels > COUNTED_PIXELS:
        return at_least + outside
    ends = [*timeline.ticks[1:], timeline.ticks[0] + round(timeline.seconds / timeline.tick_seconds)]
    present = _rows_present(timeline)
    lost = sum((end - tick) for row, (tick, end) in enumerate(zip(timeline.ticks, ends, strict=True)) if row not in present)
    return max(at_least, lost * timeline.tick_seconds) + outside


@functools.lru_cache(maxsize=2)
def _rows_present(timeline: Timeline) -> frozenset[int]:
    """Rows for which any frame can be decoded."""
    rows = [len(timeline.ticks) - 1]
    return frozenset(decoded.row for _, frames in walk(timeline, rows, False, strict=False) for decoded in frames)
