"""Which moments of a clip the model looks at, as how many pixels and how many vectors. No decoding, no disk."""

import hashlib
import math
from dataclasses import dataclass

SHORTEST_CUT = 1.0  # seconds: only longer clips are cut for `min_segments`
BLANK = 30  # brightness of the dark grey frames of the blind control, of 255


@dataclass(frozen=True)
class FramePlan:
    """The moments of one clip that are shown to the model, in order.

    times: seconds from the clip's start; at least one, finite, not negative (ValueError otherwise: no plan, no empty tensor).
    A reader answers with the picture on screen at each moment: the last frame that starts at or before it.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.times or not all(math.isfinite(time) and time >= 0 for time in self.times):
            raise ValueError(f"a frame plan needs finite times >= 0, at least one; it has {self.times[:4]!r}")

    @property
    def key(self) -> str:
        """Short text that is the same for the same moments (to a millisecond): part of a cache key."""
        milliseconds = ",".join(str(round(time * 1000)) for time in self.times)
        return f"{len(self.times)}f-{hashlib.sha256(milliseconds.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class FrameSize:
    """The pixels that every frame of a clip is turned into before the vision tower sees it.

    pad: colour (RGB, 0 to 255) that first fills a frame up to a centred square; None: the frame is stretched to height x width.
    longest: before that, a frame is scaled to so many pixels on its longer side and an even number on the other; 0: it is not.
    filter: "bicubic" or "lanczos".
    """

    height: int
    width: int
    pad: tuple[int, int, int] | None = None
    longest: int = 0
    filter: str = "bicubic"

    @property
    def key(self) -> str:
        """Short text, equal for equal sizes: part of a cache key."""
        pad = "" if self.pad is None else f"-pad{'.'.join(map(str, self.pad))}"
        way = (f"-by{self.longest}" if self.longest else "") + ("" if self.filter == "bicubic" else f"-{self.filter}")
        return f"{self.height}x{self.width}{pad}{way}"


@dataclass(frozen=True)
class Sizing:
    """How a model turns a clip's width and height into the pixels of its frames.

    unit: pixels of a side of the square that becomes one vector; tile: every frame becomes one square of so many pixels (0: whole
    units near the clip's own size and shape); pad, longest, filter: as in FrameSize.
    """

    unit: int
    tile: int = 0
    pad: tuple[int, int, int] | None = None
    longest: int = 0
    filter: str = "bicubic"

    def size(self, width: int, height: int, frame_pixels: int) -> FrameSize:
        """Pixels that each frame of a width x height clip becomes.

        frame_pixels: the most, where there is no tile (more only where a side would vanish).

        Source: `smart_resize` of transformers for a clip of an even number of frames, its limit shared by the frames.
        """
        if self.tile:
            return FrameSize(self.tile, self.tile, self.pad, self.longest, self.filter)
        unit = self.unit
        if min(width, height) < unit:
            scale = max(unit / height, unit / width)
            width, height = int(width * scale), int(height * scale)
        high, wide = round(height / unit) * unit, round(width / unit) * unit
        if high * wide > frame_pixels:
            shrink = math.sqrt(height * width / frame_pixels)
            high, wide = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        return FrameSize(high, wide, self.pad, self.longest, self.filter)

    def vectors(self, size: FrameSize) -> int:
        """How many vectors a frame of these pixels becomes, or a group of frames that share placeholders."""
        return (size.height // self.unit) * (size.width // self.unit)


def uniform_plan(seconds: float, count: int, start: float = 0.0, end: float | None = None) -> FramePlan:
    """`count` moments evenly over [start, end): the centres of equal bins, so that no end weighs more than the middle.

    seconds: length of the clip; end: None means the whole clip, a later end is cut there. Raises ValueError for an empty span or
    no frames.
    """
    end = seconds if end is None else min(end, seconds)
    if count < 1 or not 0 <= start < end:
        raise ValueError(f"cannot take {count} frames of [{start}, {end}) from a clip of {seconds} seconds")
    width = (end - start) / count
    return FramePlan(tuple(start + (bin_number + 0.5) * width for bin_number in range(count)))


def segment_spans(
    seconds: float, segment_seconds: float, max_segments: int, min_segments: int = 1
) -> tuple[tuple[float, float], ...]:
    """Consecutive (start, end) spans in seconds that cover a clip without gaps.

    Each lasts segment_seconds, except the last: a rest of half a segment or more is a span of its own, a shorter one joins its
    neighbour. A clip that would need more than max_segments is cut into max_segments equal, longer spans; one of more than a
    second that would need fewer than min_segments into so many equal, shorter ones (max_segments at most). Raises ValueError
    for lengths that are not positive.
    """
    if seconds <= 0 or segment_seconds <= 0 or max_segments < 1:
        raise ValueError(f"cannot cut {seconds} seconds into at most {max_segments} segments of {segment_seconds} seconds")
    count = wanted = max(1, math.floor(seconds / segment_seconds + 0.5))
    if seconds > SHORTEST_CUT:
        count = max(count, min_segments)
    count = min(count, max_segments)
    if count != wanted:
        segment_seconds = seconds / count
    bounds = [number * segment_seconds for number in range(count)] + [seconds]
    return tuple(zip(bounds[:-1], bounds[1:], strict=True))
