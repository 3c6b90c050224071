"""Small clips of every awkward kind, written with PyAV, for the tests of the reader.

A frame says who it is: its corners are red, green, blue and white (clockwise from the top left), and its number is written as
eight black or white cells across the middle. So a test can tell which frame came back, which way up, and in which colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 8
CORNERS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (235, 235, 235))
TICKS = 90_000  # clock of the written files: ticks per second


def picture(number: int, width: int = 64, height: int = 64) -> NDArray[np.uint8]:
    """Frame `number` as [height, width, 3] RGB."""
    image = np.full((height, width, 3), 120, dtype=np.uint8)
    near_y, near_x = height // 4, width // 4
    image[:near_y, :near_x], image[:near_y, -near_x:] = CORNERS[0], CORNERS[1]
    image[-near_y:, -near_x:], image[-near_y:, :near_x] = CORNERS[2], CORNERS[3]
    top, bottom = height * 3 // 8, height * 5 // 8
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        image[top:bottom, left:right] = 235 if number >> (BITS - 1 - bit) & 1 else 16
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """The number that `picture` wrote into an upright frame."""
    height, width = image.shape[:2]
    middle = image[height // 2 - 1 : height // 2 + 1].mean(axis=(0, 2))
    return sum((middle[(2 * bit + 1) * width // (2 * BITS)] > 110) << (BITS - 1 - bit) for bit in range(BITS))


def corners_of(image: NDArray[np.uint8]) -> list[int]:
    """Which colour each corner has (index into CORNERS), clockwise from the top left."""
    height, width = image.shape[:2]
    spots = [(height // 8, width // 8), (height // 8, -width // 8), (-height // 8, -width // 8), (-height // 8, width // 8)]
    return [int(np.argmin([np.abs(image[y, x].astype(int) - colour).sum() for colour in CORNERS])) for y, x in spots]


def write_clip(
    path: Path,
    times: Sequence[float] | None = None,
    width: int = 64,
    height: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    colours: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
    images: Sequence[NDArray[Any]] | None = None,
    last_seconds: float | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A clip whose frame k is shown from times[k] seconds on (default: 24 frames at 24 per second).

    rotation: degrees counterclockwise that a player has to turn the picture, as PyAV counts; colours: codec-context tags such as
    color_trc; last_seconds: how long the last frame stays (default: as long as the one before it).
    """
    import av

    times = [number / 24 for number in range(24)] if times is None else list(times)
    frames = [picture(number, width, height) for number in range(len(times))] if images is None else images
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(24), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.time_base = Fraction(1, TICKS)
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, (when, image) in enumerate(zip(times, frames, strict=True)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24" if image.dtype == np.uint8 else "rgb48le")
            if colours:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=colours.get("colorspace", 1), dst_color_range=1)
                for name, value in colours.items():
                    setattr(frame, name, value)
            else:
                frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(when * TICKS), Fraction(1, TICKS)
            later = times[number + 1] - when if number + 1 < len(times) else last_seconds
            if later is None:
                later = when - times[number - 1] if number else 1 / 24
            frame.duration = round(later * TICKS)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    """An mp4 with one moment of silence and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def write_no_frames(path: Path) -> Path:
    """An mp4 that announces a video stream and holds no frame of it."""
    import av

    with av.open(str(path), "w", container_options={"movflags": "empty_moov"}) as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return path


def write_hidden_start(path: Path, source: Path, key: float, start: float) -> Path:
    """A lossless cut of an mp4, as phones and editors make it: packets from the key frame at `key` on, shown from `start`."""
    import av

    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream: Any = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        tick = float(stream.time_base)
        packet: Any
        for packet in old.demux(stream):
            if packet.size and packet.pts * tick >= key - 1e-3:
                packet.pts, packet.dts = packet.pts - round(start / tick), packet.dts - round(start / tick)
                packet.stream = copy
                new.mux(packet)
    return path
