"""The limits of the decoding process, each tried from inside such a process, and files that are no recordings."""

from __future__ import annotations

import ctypes
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from minirlaif.video import sandbox
from minirlaif.video.containers import MOST_PIXELS
from minirlaif.video.frame_sampling import FramePlan
from minirlaif.video.reader import ClipReader, UnreadableClip
from tests.fixtures import clips

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux kernels")
TRY = """
import ctypes, json, os, platform, resource, socket, subprocess, sys
from minirlaif.video import sandbox
active = sandbox.enter()
def attempt(action):
    try:
        action()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"
TGKILL = {"x86_64": 234, "aarch64": 131}.get(platform.machine(), -1)
def raw(*words):
    if ctypes.CDLL(None, use_errno=True).syscall(*words):
        raise OSError(ctypes.get_errno(), "refused")
folder = sys.argv[1]
results = {
    "network": attempt(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=1)),
    "program": attempt(lambda: subprocess.run(["true"])),
    "signal": attempt(lambda: os.kill(os.getppid(), 0)),
    "new file": attempt(lambda: open(folder + "/new", "w")),
    "old file": attempt(lambda: open(folder + "/old", "w")),
    "remove": attempt(lambda: os.remove(folder + "/old")),
    "rename": attempt(lambda: os.rename(folder + "/old", folder + "/renamed")),
    "memory": attempt(lambda: bytearray(sandbox.ADDRESS_SPACE)),
    "read": attempt(lambda: open(folder + "/old").read()),
    "cut": attempt(lambda: os.truncate(folder + "/old", 0)),
    "mode": attempt(lambda: os.chmod(folder + "/old", 0o777)),
    "mode in a folder": attempt(lambda: os.chmod("old", 0o777, dir_fd=os.open(folder, os.O_RDONLY))),
    "mode of an open file": attempt(lambda: os.fchmod(os.open(folder + "/old", os.O_RDONLY), 0o777)),
    "owner of an open file": attempt(lambda: os.fchown(os.open(folder + "/old", os.O_RDONLY), os.getuid(), os.getgid())),
    "owner of a link": attempt(lambda: os.lchown(folder + "/old", os.getuid(), os.getgid())),
    "times": attempt(lambda: os.utime(folder + "/old", (1, 1))),
    "owner": attempt(lambda: os.chown(folder + "/old", os.getuid(), os.getgid())),
    "label": attempt(lambda: os.setxattr(folder + "/old", "user.a", b"b")),
    "thread": attempt(lambda: raw(TGKILL, os.getppid(), os.getppid(), 0)),
    "own thread": attempt(lambda: raw(TGKILL, os.getpid(), os.getpid(), 0)),
    "limits": attempt(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)),
    "own limits": attempt(lambda: resource.prlimit(0, resource.RLIMIT_NOFILE)),
    "keys": attempt(lambda: open(f"/proc/{os.getppid()}/environ", "rb").read()),
    "own files": attempt(lambda: open("/proc/self/status").read()),
}
print(json.dumps([active, results]))
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[ClipReader]:
    with ClipReader(60) as reader:
        yield reader


def landlock_version() -> int:
    """The kernel's answer, without this package."""
    return int(ctypes.CDLL(None).syscall(444, None, 0, 1))


@linux
def test_a_decoding_process_can_only_read(tmp_path: Path) -> None:
    import socket

    (tmp_path / "old").write_text("old")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", TRY, str(tmp_path), str(server.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    active, results = json.loads(done.stdout)
    assert [results.pop(name) for name in ("read", "own thread", "own limits", "own files")] == ["done"] * 4
    assert results.pop("memory") == "MemoryError"
    text = ", ".join(active)
    known = Path("/proc/sys/kernel/seccomp/actions_avail").is_file() and platform.machine() in ("x86_64", "aarch64")
    assert ("seccomp" in text) is known and ("Landlock" in text) is (landlock_version() > 0)
    refused = (
        {"network", "program", "signal", "cut", "mode", "mode in a folder", "mode of an open file", "times", "owner"}
        | {"owner of an open file", "owner of a link", "label", "thread", "limits"}
        if "seccomp" in text
        else set()
    )
    refused |= {"new file", "old file", "remove", "rename", "keys"} if "Landlock" in text else set()
    assert {name for name, result in results.items() if result == "PermissionError"} >= refused
    assert "no new privileges" in text


@linux
def test_cpu_time_is_limited() -> None:
    code = "from minirlaif.video import sandbox; sandbox.CPU_SLACK = 0; sandbox.enter(); sandbox.allow_cpu(0)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], timeout=300)
    assert done.returncode == -24  # SIGXCPU


def test_the_decoding_process_gets_no_keys(monkeypatch: pytest.MonkeyPatch, reader: ClipReader) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MINIRLAIF_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    assert not any("secret" in value for value in sandbox.environment().values())
    with ClipReader(60) as fresh:
        with pytest.raises(UnreadableClip):
            fresh.info("gone.mp4")
        assert fresh.sandbox
        if sys.platform == "linux":
            assert fresh._child is not None
            given = Path(f"/proc/{fresh._child.pid}/environ").read_bytes()
            assert b"secret" not in given and b"PYTHONPATH=" in given


NOT_RECORDINGS = {
    "text.txt": b"Hello, this is a text.\n" * 200,
    "text.mp4": b"Hello, this is a text.\n" * 200,
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile clip.ts\n",
    "list.mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    "session.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "art.ans": b"\x1b[31mred\x1b[0m\r\n" * 100,
    "subtitles.srt": b"1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 20,
}


@pytest.mark.parametrize("name", NOT_RECORDINGS)
def test_files_that_are_no_recordings_are_refused(name: str, tmp_path: Path, reader: ClipReader) -> None:
    clips.write_clip(tmp_path / "clip.ts")
    (tmp_path / name).write_bytes(NOT_RECORDINGS[name])
    with pytest.raises(UnreadableClip, match="not a video file"):
        reader.info(tmp_path / name)


def growing(path: Path, sizes: list[int]) -> Path:
    """A MOV of PNG pictures of several sizes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width = stream.height = sizes[0]
        stream.pix_fmt = "rgb24"
        stream.time_base = Fraction(1, 10)
        for number, size in enumerate(sizes):
            data = io.BytesIO()
            Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB").resize((size, size)).save(data, "PNG")
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts, packet.duration = stream, number, number, 1
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            container.mux(packet)
    return path


def test_a_clip_whose_frames_grow_is_refused_before_they_are_scaled(tmp_path: Path, reader: ClipReader) -> None:
    side = int(MOST_PIXELS**0.5) + 16
    path = growing(tmp_path / "grows.mov", [64, 64, side, 64])
    with pytest.raises(UnreadableClip, match=rf"its size changes to {side}x{side}; {MOST_PIXELS:,} pixels are allowed"):
        reader.frames(path, [FramePlan((0.0, 0.1, 0.2, 0.3))])


def test_uploads_may_grow_to_their_own_limit_only(tmp_path: Path) -> None:
    path = growing(tmp_path / "grows.mov", [64, 64, 200, 64])
    with ClipReader(60, most_pixels=100 * 100) as reader, pytest.raises(UnreadableClip, match="200x200; 10,000 pixels"):
        reader.frames(path, [FramePlan((0.0, 0.2))])
    with ClipReader(60) as reader:
        (frames,) = reader.frames(path, [FramePlan((0.0, 0.2))])
        assert frames.shape == (2, 64, 64, 3) and os.path.exists(path)
