"""The one place that opens a clip with FFmpeg: containers and codecs of recordings alone, no address but a file."""

from __future__ import annotations

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
