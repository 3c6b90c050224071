"""The one place that opens a clip with FFmpeg: containers and codecs of recordings alone, no address but a file; and what the
headers of files and of H.264 (ITU-T H.264, 7.3.2.1.1) say."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

# FFmpeg's names of its readers. Not among them: lists of other files (hls, dash, concat, image2), text that it would draw (tty),
# devices and streams of networks.
CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,asf,flv,gif,ogg,mxf,dv,ivf,obu,av1,apng,webp,h264,hevc,vvc,m4v,vc1"
    ",mjpeg,nut,rm,wtv,yuv4mpegpipe,webp_anim"
)
# FFmpeg's names of its decoders of moving pictures.
CODECS = frozenset(
    (
        "h264 hevc vvc av1 libdav1d libaom-av1 vp8 vp9 libvpx libvpx-vp9 mpeg1video mpeg2video mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4"
        " msmpeg4v3 wmv1 wmv2 wmv3 vc1 h261 h263 h263i h263p flv flashsv flashsv2 vp6 vp6a vp6f theora mjpeg mjpegb prores"
        " dnxhd dvvideo ffv1 huffyuv ffvhuff utvideo qtrle png apng gif webp rawvideo v210 cinepak svq1 svq3 rv10 rv20 rv30 rv40"
        " cfhd jpeg2000 magicyuv indeo3 indeo4 indeo5 snow zmbv msvideo1 msrle rpza 8bps"
    ).split()
)
MOST_PACKETS = 20_000_000  # of a stream: a week at 30 frames a second
MOST_PIXELS = 1 << 26  # of a frame: 8192 x 8192
# How files of pictures begin.
_PICTURE = re.compile(rb"\x89PNG|\xff\xd8\xff|BM....\0{4}|II\*\0|MM\0\*|GIF8|RIFF....WEBP", re.DOTALL)
ANIMATED = 0x02  # flag in the header of a WebP file
_SEQUENCE = 7  # type of H.264's NAL unit that describes a sequence
# Profiles of H.264 whose headers describe chroma and scaling as well.
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


class Unreadable(Exception):
    """Why a clip cannot be used, in words for its owner."""


def url(path: str) -> str:
    """A path as FFmpeg opens it: `a:b.mp4` or `50%.mp4` is a file, no protocol and no pattern."""
    return "file:" + path


def open_container(path: str) -> Any:
    """A clip for reading. Raises av.error.FFmpegError."""
    import av

    return av.open(url(path), options=dict(_OPTIONS))


def known_codec(codec: Any) -> bool:
    """Whether a stream is of a codec of recordings. codec: its codec context, None where FFmpeg has no decoder."""
    return codec is not None and codec.name in CODECS


def why_not_codec(path: str, codec: Any) -> str:
    """What to say of a stream whose codec is not read. codec: as in known_codec."""
    why = "no installed decoder supports its video codec"
    if codec is not None:
        why = f"its video codec {codec.name} is not among those that are read"
    return f"{why}; convert it with `{mended(path, '')}`"


def mended(path: str, options: str) -> str:
    """The ffmpeg command that writes a clip anew, beside it."""
    name = os.path.splitext(path)[0] + "_mended.mp4"
    source, target = (shlex.quote(url(file) if ":" in file or "%" in file else file) for file in (path, name))
    return f"ffmpeg -i {source} {options + ' ' if options else ''}-an -c:v libx264 {target}"


def why_not_open(path: str, error: Exception) -> str:
    """What to say of a file that FFmpeg does not open."""
    if reason := picture_reason(path):
        return reason
    if _head(path)[4:8] in (b"ftyp", b"moov", b"mdat"):
        return "an mp4 whose index (moov) is missing or damaged: the file is cut short or broken; copy or download it again"
    cause = getattr(error, "strerror", None) or error
    return f"not a video file of a kind that is read ({cause}); if a player shows it, convert it with `{mended(path, '')}`"


def picture_reason(path: str) -> str:
    """What to say of a file that begins like a picture; empty for others."""
    head = _head(path)
    if not _PICTURE.match(head):
        return ""
    if head[8:16] == b"WEBPVP8X" and head[20:21] and head[20] & ANIMATED:
        name = os.path.splitext(path)[0] + "_mended.apng"
        code = f"from PIL import Image; Image.open({path!r}).save({name!r}, save_all=True)"
        return f"it is an animated WebP, which no installed decoder reads; convert it with `python -c {shlex.quote(code)}`"
    return f"it is a picture; `{mended(path, '-vf loop=49:1,setpts=N/25/TB -r 25')}` makes a clip of two seconds of it"


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(32)


class _Bits:
    """Bits of a payload, from its start. IndexError behind its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def has_frames_only(extradata: bytes) -> bool:
    """Whether headers of H.264 promise that no picture is a field. False where they do not, or cannot be read.

    extradata: of the codec, as mp4 stores it (avcC) or with start codes.
    """
    try:
        return any(_frames_only(unit) for unit in _sequences(extradata))
    except IndexError:
        return False


def _sequences(extradata: bytes) -> list[bytes]:
    """The first sequence header, without its type."""
    if extradata[:1] == b"\1" and extradata[5] & 31 and extradata[8] & 31 == _SEQUENCE:
        length = int.from_bytes(extradata[6:8])
        return [extradata[9 : 8 + length]]
    units = extradata.split(b"\0\0\1")[1:]
    return [unit[1:] for unit in units if unit and unit[0] & 31 == _SEQUENCE][:1]


def _frames_only(payload: bytes) -> bool:
    """frame_mbs_only_flag of a sequence header."""
    bits = _Bits(payload.replace(b"\0\0\3", b"\0\0"))
    profile = bits.read(8)
    bits.read(16)
    bits.golomb()
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        bits.read(chroma == 3)
        bits.golomb(), bits.golomb(), bits.read(1)
        if bits.read(1):
            for number in range(8 if chroma != 3 else 12):
                if bits.read(1):
                    _skip_scaling(bits, 16 if number < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1), bits.signed(), bits.signed()
        for _ in range(bits.golomb()):
            bits.signed()
    bits.golomb(), bits.read(1), bits.golomb(), bits.golomb()
    return bool(bits.read(1))


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last
