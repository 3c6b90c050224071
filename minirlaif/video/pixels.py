"""From decoded frames to the pixels that are shown: display shape, upright, standard range, the size that a model wants."""

import functools
import struct
from typing import Any

from minirlaif.video.containers import Unreadable
from minirlaif.video.frame_sampling import FrameSize
from minirlaif.video.timestamps import HDR_TRANSFERS, Timeline

REFERENCE_WHITE, PEAK = 203.0, 1000.0  # nits: ITU-R BT.2408's diffuse white, and the mastering peak that is kept
# Matrices that the scaler refuses, and what players take for them: BT.2020 for its constant-luminance form, BT.601 for YCgCo,
# YDzDx, ICtCp and those derived from chromaticities. FFmpeg's numbers.
OTHER_MATRICES = {8: 5, 10: 9, 11: 5, 12: 5, 13: 5, 14: 5, 15: 5, 16: 5, 17: 5}
KNEE = 0.3  # share of white below which tone mapping changes nothing
BT2020_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))  # ITU-R BT.2087


class FrameConverter:
    """Turns PyAV frames into upright RGB of display shape; keeps swscale's tables between frames (making them takes longer than
    using them)."""

    def __init__(self, timeline: Timeline) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._curve = HDR_TRANSFERS.get(timeline.transfer)
        self._shape = (timeline.width, timeline.height)  # of the first size, whatever comes later

    def __call__(self, frame: Any) -> Any:
        kind = "rgb48le" if self._curve else "rgb24"
        if frame.colorspace in OTHER_MATRICES:
            frame.colorspace = OTHER_MATRICES[frame.colorspace]
        width, height = self._shape
        image = self._reformatter.reformat(
            frame, width=width, height=height, format=kind, interpolation="BICUBIC", threads=1
        ).to_ndarray()
        if self._curve:
            image = tone_map(image, self._curve)
        return upright(image, _display_matrix(frame), frame.rotation)


def is_unwritten(frame: Any) -> bool:
    """Whether a decoder has handed out a frame that it never filled: chroma of nothing but zeros, which no camera gives."""
    import numpy as np

    if not frame.format.name.startswith("yuv") or len(frame.planes) < 3:
        return False
    chroma = (np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size) for plane in frame.planes[1:3])
    return not any(rows[:, : plane.width].any() for rows, plane in zip(chroma, frame.planes[1:3], strict=True))


def _display_matrix(frame: Any) -> tuple[float, float, float, float] | None:
    """a, b, c, d of a frame's display matrix: a stored pixel (x, y) is shown at (a x + c y, b x + d y). None: it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data)[:36])
    return a / 65536, b / 65536, c / 65536, d / 65536


def upright(image: Any, matrix: tuple[float, float, float, float] | None, rotation: int) -> Any:
    """[H, W, 3] as a display matrix shows it: quarter turns and mirrors exactly, other angles to the nearest quarter turn."""
    import numpy as np

    if matrix is None:
        return np.ascontiguousarray(image)
    a, b, c, d = matrix
    if b == c == 0 and a and d:
        across, down = a < 0, d < 0
    elif a == d == 0 and b and c:
        image = image.transpose(1, 0, 2)
        across, down = c < 0, b < 0
    elif not any(matrix):  # some muxers write zeros, which players take for nothing
        across = down = False
    else:
        turns = round(rotation / 90)
        if abs(rotation - 90 * turns) > 1:
            raise Unreadable(f"its display matrix turns it by {rotation} degrees, which is no quarter turn: write it upright")
        return np.ascontiguousarray(np.rot90(image, turns))  # both count counterclockwise
    image = image[:, ::-1] if across else image
    return np.ascontiguousarray(image[::-1] if down else image)


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
