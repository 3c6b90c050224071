"""All frames that PyAV decodes of a clip, each with its row of the timeline and whether an error can have reached it."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minirlaif.video.containers import Unreadable, open_container
from minirlaif.video.timestamps import Timeline

SEEK_ROWS = 24  # seek only where that saves at least so many frames
SMALL = 640 * 360  # up to so many pixels decoding threads cost more than they save
WHOLE_PIXELS = (
    2.5e8  # of all frames: up to so many, frames that are not needed are decoded as well, so that damage on the way is noticed
)
THREAD_LAG = 16  # packets by which threads may report an error late
DISCARDS_EXACTLY = ("h264", "hevc")  # packets of these say whether another frame refers to them


class SeekMissed(Exception):
    """A seek landed behind the wanted frame."""


@dataclass(frozen=True)
class DecodedFrame:
    """A frame with its row of the timeline. sound: the decoder met no error that can have reached it."""

    row: int
    frame: Any
    sound: bool
    back: bool  # its time lies before that of the frame before it

    @property
    def id(self) -> tuple[int | None, int | None, int]:
        """The same for a frame whichever decoder gives it."""
        return self.frame.pts, self.frame.dts, self.row


def walk(
    timeline: Timeline, rows: list[int], seek: bool, strict: bool, needed_only: bool = False, errors: list[float] | None = None
) -> Iterator[tuple[int, list[DecodedFrame]]]:
    """Each row with the frames that were decoded on the way to it and are shown before or at it. Raises SeekMissed.

    needed_only: frames that no row and no other frame needs may be left out.
    errors: gets the seconds of packets at which the decoder fails.
    """
    with open_container(timeline.path) as container:
        stream = open_stream(container, timeline, strict)
        needed = None
        is_short = len(timeline.ticks) * timeline.pixels <= WHOLE_PIXELS
        if needed_only and not is_short and timeline.by_pts and stream.codec_context.name in DISCARDS_EXACTLY:
            needed = frozenset(timeline.ticks[row] for row in rows)
        failed: list[float] = []  # errors on the way to a row
        decoded, sound_from = decode_all(timeline, container, stream, needed, failed), 0.0
        at = -1  # the last row that was decoded
        ahead: DecodedFrame | None = None  # decoded already, but shown later
        for row in rows:
            place = bisect.bisect_right(timeline.keys, row) - 1 - timeline.open_groups
            key = timeline.keys[place] if place >= 0 else 0
            jumped = seek and key >= at + SEEK_ROWS
            if jumped:
                container.seek(timeline.ticks[key], stream=stream)
                decoded, ahead = decode_all(timeline, container, stream, needed, failed), None
                # In open groups a decoder may fail at sound packets up to the next key frame: they need what the seek left out.
                next_row = timeline.keys[place + timeline.open_groups]
                sound_from = (timeline.ticks[next_row] - timeline.ticks[0]) * timeline.tick_seconds * timeline.open_groups
            passed: list[DecodedFrame] = []
            while at < row:
                ahead = ahead or next(decoded, None)
                if jumped and (ahead is None or ahead.row > key or (ahead.row == key and not ahead.frame.key_frame)):
                    raise SeekMissed
                if ahead is None or ahead.row > row:
                    break
                if not jumped or ahead.row == key:
                    jumped = False
                    at = ahead.row
                    passed.append(ahead)
                ahead = None
            if errors is not None:
                errors += [time for time in failed if time >= sound_from]
            failed.clear()
            yield row, passed


def open_stream(container: Any, timeline: Timeline, strict: bool) -> Any:
    stream = container.streams[timeline.stream]
    if timeline.pixels <= SMALL:
        stream.codec_context.thread_count = 1
    else:
        stream.thread_type = "AUTO"
    if strict:
        stream.codec_context.options = {"err_detect": "explode"}
    return stream


def decode_all(
    timeline: Timeline, container: Any, stream: Any, needed: frozenset[int] | None = None, errors: list[float] | None = None
) -> Iterator[DecodedFrame]:
    """Everything that can be decoded from here on. After an error no frame of a later packet is sound before the next key frame:
    what decoders hand out until then is guesswork.

    needed: ticks of the only frames that are needed; others are decoded where frames refer to them. None: all.
    errors: gets the seconds of packets at which the decoder fails.
    """
    import av

    numbers: dict[int, list[int]] = {}  # the packets of each display time
    lag = 0 if timeline.pixels <= SMALL else THREAD_LAG
    count = -1
    bad_from: int | None = None  # number of the first packet that an error may have reached
    last_error = -1
    is_jpeg, unfilled = stream.codec_context.name == "mjpeg", set[int]()  # numbers of packets without a picture
    key_time: int | None = None  # of the first key frame
    twice: dict[int, int] = {}
    last_pts: float = float("-inf")
    for number, packet in enumerate(_packets(container, stream)):
        if timeline.shifts and packet.pts is not None:
            shift = timeline.shift(number)
            packet.pts += shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        if packet.pts is not None:
            numbers.setdefault(packet.pts, []).append(number)
        if is_jpeg and packet.size and not has_scan(bytes(packet)):
            unfilled.add(number)
        if packet.is_corrupt:  # packets are missing after it or the next one; what is missing within one, the decoder notices
            bad_from, last_error = number + 2 if bad_from is None else bad_from, max(last_error, number - 1)
        if packet.is_keyframe and key_time is None:
            key_time = packet.dts if packet.pts is None else packet.pts
        if needed is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            time = packet.dts if packet.pts is None else packet.pts
            # What is shown before the first key frame after a seek needs frames that were not read: no fault of the file, and
            # frames after the key frame do not refer to it.
            if time is not None and key_time is not None and time < key_time:
                continue
            if errors is not None and time is not None and key_time is not None:
                errors.append(max(0.0, (time - timeline.ticks[0]) * timeline.tick_seconds))
            start = max(0, number - lag)
            bad_from, last_error = start if bad_from is None else min(start, bad_from), number
            continue
        for frame in frames:
            if frame.width * frame.height > timeline.most_pixels:  # before anything is made of it
                raise Unreadable(f"its size changes to {frame.width}x{frame.height}; {timeline.most_pixels:,} pixels are allowed")
            count += 1
            waiting = numbers.get(frame.pts) if frame.pts is not None else None
            own = waiting.pop(0) if waiting else number
            if bad_from is not None and frame.key_frame and own > last_error and not frame.is_corrupt:
                bad_from = None
            row = count
            if timeline.by_pts and frame.pts is not None:
                row = bisect.bisect_right(timeline.ticks, frame.pts) - 1
                if row >= 1 and timeline.ticks[row - 1] == frame.pts:  # several frames at one time: in order of decoding
                    row = bisect.bisect_left(timeline.ticks, frame.pts) + twice.get(frame.pts, 0)
                    twice[frame.pts] = twice.get(frame.pts, 0) + 1
            back = timeline.by_pts and frame.pts is not None and frame.pts < last_pts
            last_pts = last_pts if frame.pts is None else frame.pts
            if row >= 0:
                sound = not frame.is_corrupt and (bad_from is None or own < bad_from) and own not in unfilled
                # A leading picture that a decoder has made up.
                sound = sound and not (key_time is not None and frame.pts is not None and frame.pts < key_time)
                yield DecodedFrame(min(row, len(timeline.ticks) - 1), frame, sound, back)


def has_scan(data: bytes) -> bool:
    """Whether the segments of a JPEG lead to its picture. Where they do not, FFmpeg hands out a buffer that was used before."""
    place = data.find(b"\xff\xd8") + 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xDA:
            return True
        place += 1 if data[place + 1] == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4])
    return False


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream up to the first that cannot be read; then an empty one, for the frames that a decoder holds."""
    import av

    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        yield av.Packet()
