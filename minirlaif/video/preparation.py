"""The timeline of a clip, with what only decoding tells: times that the container lacks, and where the first frame lies."""

import functools
import os
from dataclasses import replace

from minirlaif.video.av_packets import decode_all, open_stream
from minirlaif.video.clocks import MISSING
from minirlaif.video.containers import Unreadable, has_frames_only, open_container
from minirlaif.video.timestamps import Timeline, inspect

DISORDER = "its times go backwards: frames are shown in the order of decoding"
FIELD_CODECS = ("h264", "mpeg2video")  # HEVC's decoder gives each field as a frame
FIELD_PACKETS = 8  # decoded to see whether two of them make a frame
SPREAD = "its times go backwards: the frames are spread evenly over its length"


def prepared(path: str, share: float) -> Timeline:
    """The timeline of a clip; the last few are kept, since one clip is asked for several times. Raises Unreadable.

    share: of its time that may be lost at its end.
    """
    try:
        stat = os.stat(path)
    except ValueError:
        raise Unreadable("it cannot be the name of a file") from None
    except OSError:
        return inspect(path)  # which says why
    return _prepared(path, share, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=8)
def _prepared(path: str, share: float, _stamp: tuple[int, int]) -> Timeline:
    """The timeline of a clip, with what only decoding tells: times that the container lacks, and where the first frame lies."""
    timeline = inspect(path)
    if timeline.lost > timeline.limit(share):
        raise Unreadable(
            f"the file is cut short: its index points past its end, {timeline.lost:.2f} of"
            f" {timeline.announced:.2f} seconds are missing; {timeline.repair(timeline.lost)}"
        )
    if timeline.learn or _has_fields(timeline):
        return _learned(timeline)
    if 0 not in timeline.keys or timeline.shifts:
        first = _first_row(timeline)
        if first:
            return timeline.starting_at(first, "it begins inside a group of pictures")
    return timeline


def _has_fields(timeline: Timeline) -> bool:
    """Whether packets are fields, two to a frame, as camcorders and broadcasts store interlaced H.264."""
    import av

    if len(timeline.ticks) < FIELD_PACKETS or 0 not in timeline.keys:
        return False
    packets = frames = 0
    with open_container(timeline.path) as container:
        stream = open_stream(container, timeline, strict=False)
        codec = stream.codec_context
        if codec.name not in FIELD_CODECS or (codec.name == "h264" and has_frames_only(bytes(codec.extradata or b""))):
            return False
        try:
            for packet in container.demux(stream):
                packets += bool(packet.size)
                frames += len(packet.decode())
                if packets == FIELD_PACKETS:
                    break
            frames += len(stream.codec_context.decode(None))
        except av.error.FFmpegError:
            return False
    return 0 < frames <= packets / 2 + 1


def after_damage(timeline: Timeline, share: float) -> Timeline:
    """A clip whose first frames cannot be decoded, from the first that can. Raises Unreadable when that is too much."""
    first = _first_row(timeline)
    lost = (timeline.ticks[first] - timeline.ticks[0]) * timeline.tick_seconds
    if not 0 < lost + timeline.lost <= timeline.limit(share):
        repair = timeline.repair(lost + timeline.lost)
        raise Unreadable(f"it is damaged: nothing can be decoded before {lost:.2f} seconds; {repair}")
    return timeline.starting_at(first, "its beginning is damaged", damaged=True)


def _first_row(timeline: Timeline) -> int:
    """The row of the first frame that is shown when a clip is decoded from its start. Raises Unreadable."""
    with open_container(timeline.path) as container:
        for decoded in decode_all(timeline, container, open_stream(container, timeline, strict=False)):
            return decoded.row
    raise Unreadable("it is damaged: no frame can be decoded")


def _learned(timeline: Timeline) -> Timeline:
    """The times of frames where packets do not carry them, by decoding everything once."""
    times: list[tuple[int | None, int | None]] = []
    lasts = 0  # ticks of the last frame
    with open_container(timeline.path) as container:
        parsed = container.streams[timeline.stream].codec_context.name in ("mpeg1video", "mpeg2video")
        is_avi = container.format.name == "avi" and not parsed  # FFmpeg finds the times of these in their headers
        for decoded in decode_all(timeline, container, open_stream(container, timeline, strict=False)):
            times.append((decoded.frame.pts, decoded.frame.dts))
            lasts = decoded.frame.duration or 0
    if not times:
        raise Unreadable("it is damaged: no frame can be decoded")
    ticks: list[int] = []
    step = max(1, round((timeline.ticks[-1] - timeline.ticks[0]) / max(1, len(timeline.ticks) - 1)))
    trusted = timeline.seekable or bool(timeline.shifts)
    twice = len(set(timeline.ticks)) < len(timeline.ticks)
    display_times, repaired = _display_times(times, trusted, twice, step, is_avi, lasts if is_avi else 0)
    reports = timeline.repaired
    if SPREAD in repaired:  # what the clock says of missing frames is no more to be trusted than the clock
        reports = tuple(text for text in reports if not text.startswith(MISSING))
    for time in display_times:
        ticks.append(time if not ticks else max(time, ticks[-1] + 1))
    gap = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 1
    seconds = (ticks[-1] - ticks[0] + gap) * timeline.tick_seconds
    return replace(
        timeline,
        ticks=tuple(ticks),
        keys=(),
        seconds=seconds,
        by_pts=False,
        decord=False,
        repaired=(*reports, *repaired),
    )


def _display_times(
    times: list[tuple[int | None, int | None]],
    trusted: bool,
    clocked: bool,
    step: int = 1,
    is_avi: bool = False,
    lasts: int = 0,
) -> tuple[list[int], tuple[str, ...]]:
    """When each frame is shown, from its own time and the decoding time of the packet that completed it, in order of decoding.
    The first that does not go backwards of: its own; ffmpeg's guess; the decoding time (before the guess where packets carry no
    times of display); the lower of both. If all do, the times of the file are wrong, and the frames are spread evenly.

    clocked: packets carry times of display, so that other times are a fault; step: ticks from a frame to the next one.
    is_avi: a frame's own time is that of its packet's place; lasts: ticks of the last frame, 0: as long as the one before.
    """
    own, completed, guess = [pts for pts, _ in times], [dts for _, dts in times], _best_effort(times)
    mixed = any(pts is None for pts in own) and any(pts is not None for pts in own)
    if mixed:  # frames without a time follow the one before, as in ffmpeg
        for number, time in enumerate(guess):
            guess[number] = time if time is not None else (guess[number - 1] or 0) + step if number else 0
    flushed = next((number for number in range(len(times), 0, -1) if completed[number - 1] is not None), len(times))
    order = (completed, own, guess) if is_avi else (own, guess, completed) if trusted or mixed else (own, completed, guess)
    for candidate in order:
        end = len(times) if candidate is own else flushed  # what comes after the last packet has no decoding time
        known = [time for time in candidate[:end] if time is not None]
        if len(known) == end and all(one < two for one, two in zip(known, known[1:], strict=False)):
            gap = lasts or (known[-1] - known[-2] if end > 1 else 1)
            faults = (DISORDER,) if clocked and candidate is not order[0] else ()
            return known + [known[-1] + gap * number for number in range(1, len(times) - end + 1)], faults
    lower = [min((time for time in pair if time is not None), default=None) for pair in times]
    known = [time for time in lower if time is not None]
    if len(known) == len(lower) and sorted(known) == known:
        return known, ()
    if len(known) < 2:
        return list(range(len(times))), (SPREAD,)
    spacing = (max(known) - min(known)) / (len(times) - 1)
    return [min(known) + round(number * spacing) for number in range(len(times))], (SPREAD,)


def _best_effort(times: list[tuple[int | None, int | None]]) -> list[int | None]:
    """FFmpeg's choice for each frame: of both times the one that went backwards less often so far (`guess_correct_pts`)."""
    chosen: list[int | None] = []
    faulty_own = faulty_completed = 0
    last_own = last_completed = float("-inf")
    for own, completed in times:
        if completed is not None:
            faulty_completed += completed <= last_completed
            last_completed = completed
        if own is not None:
            faulty_own += own <= last_own
            last_own = own
        chosen.append(own if own is not None and (faulty_own <= faulty_completed or completed is None) else completed)
    return chosen
