"""Uploaded clips: which are accepted, what is deleted."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minirlaif.app.conversations import ChatService
from minirlaif.app.uploads import Limits, UploadStore, check_content, duration
from minirlaif.errors import UserError
from minirlaif.video.reader import ClipReader
from tests.fixtures.chat_service import uploaded
from tests.fixtures.clips import write_clip

HEADS = {
    "mp4": b"\0\0\0\x20ftypisom",
    "old mov": b"\0\0\0\x08wide\0\0\0\0mdat",
    "webm": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "mpg": b"\0\0\x01\xba",
    "flv": b"FLV\x01",
    "ogv": b"OggS",
    "wmv": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "gif": b"GIF89a",
    "ts": b"\x47" + bytes(187) + b"\x47" + bytes(187) + b"\x47",
}


OTHERS = {
    b"#EXTM3U\n/etc/passwd": "not a video but a playlist",
    b"ffconcat version 1.0\nfile /etc/passwd": "not a video; supported",
    b"\x89PNG\r\n\x1a\n": "not a video but a PNG image",
    b"RIFF\0\0\0\0WAVEfmt ": "not a video but a sound file",
    b"<html>": "not a video but a web page",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1": "not a video; supported",
    b"G" + bytes(500): "not a video; supported",  # one mark of a transport stream is none
}


@pytest.mark.parametrize("name", HEADS)
def test_containers_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(HEADS[name] + bytes(400))
    check_content(path, Limits())


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "the file is empty$"), (19, r"too short for a clip \(19 bytes"), (63, r"too short for a clip \(63 bytes")],
)
def test_a_file_that_is_only_the_head_of_a_video_is_refused(size: int, text: str, tmp_path: Path) -> None:
    """What a browser leaves of a recording that it had no time to write."""
    path, data = tmp_path / "clip.mp4", HEADS["mp4"] + bytes(52)
    assert len(data) == 64
    path.write_bytes(data)
    check_content(path, Limits())
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match=text):
        check_content(path, Limits())


@pytest.mark.parametrize("head", OTHERS)
def test_other_content_is_refused_before_anything_decodes_it(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(head + bytes(400))
    with pytest.raises(UserError, match=OTHERS[head]):
        check_content(path, Limits())


def test_limits_of_a_clip(upload_store: UploadStore, tmp_path: Path) -> None:
    assert upload_store.examine(uploaded(upload_store)).width == 64
    with pytest.raises(UserError, match="the clip lasts .* 60 s are allowed"):
        upload_store.examine(uploaded(upload_store, "long.mp4", times=[0.0, 100.0, 200.0], last_seconds=1.0))
    with pytest.raises(UserError, match="^a frame has 12,288 pixels, 10,000 are allowed; scale"):
        upload_store.examine(uploaded(upload_store, "wide.mp4", width=128, height=96))
    large = Path(uploaded(upload_store, "large.mp4"))
    with large.open("ab") as file:
        file.truncate(3 << 20)
    with pytest.raises(UserError, match="the file has 3 MB, 1 MB are allowed"):
        upload_store.examine(large)
    outside = write_clip(tmp_path / "outside.mp4")
    for path in (
        outside,
        upload_store.folder / "u" / ".." / ".." / "outside.mp4",
        upload_store.folder / "nothing.mp4",
        upload_store.folder,
    ):
        with pytest.raises(UserError, match="was not uploaded here"):
            upload_store.examine(path)
    link = upload_store.folder / "link.mp4"
    link.symlink_to(outside)
    with pytest.raises(UserError, match="was not uploaded here"):
        upload_store.examine(link)


def test_a_reason_names_neither_a_path_of_this_machine_nor_a_setting(upload_store: UploadStore) -> None:
    path = Path(
        uploaded(upload_store, "cut.mp4", times=[n / 24 for n in range(200)], container_options={"movflags": "faststart"})
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"the file is cut short.*`ffmpeg -i cut.mp4 -an -c:v libx264 cut_mended.mp4`$") as caught:
        upload_store.examine(path)
    assert str(upload_store.folder) not in str(caught.value)


HANGING = """
import time
from minirlaif.video import decode_worker
real = decode_worker.prepared
decode_worker.prepared = lambda path, share: time.sleep(600) if path.endswith("stuck.mp4") else real(path, share)
decode_worker.main()
"""


def test_a_clip_that_hangs_the_decoder_is_killed_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipReader, "command", (sys.executable, "-P", "-c", HANGING))
    upload_store = UploadStore(tmp_path, Limits(), seconds=3.0)
    hanging, good = uploaded(upload_store, "stuck.mp4"), uploaded(upload_store, "good.mp4")
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot be read: no answer within 3 seconds: the decoder hangs"):
        upload_store.examine(hanging)
    assert time.monotonic() - began < 30
    assert upload_store.examine(good).width == 64
    upload_store.close()


def test_examples_are_copies_with_a_picture(upload_store: UploadStore, tmp_path: Path) -> None:
    sources = [write_clip(tmp_path / f"{number}.mp4") for number in range(2)]
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 20)
    result = upload_store.examples([tmp_path / "bad.mp4", *sources, *sources], wanted=3)
    assert [clip.name for clip, _ in result] == ["0.mp4", "1.mp4", "0.mp4"]
    assert all(np.asarray(Image.open(picture)).shape == (96, 96, 3) for _, picture in result)
    assert all(clip.is_relative_to(upload_store.folder) for clip, _ in result)
    upload_store.drop(result[0][0])
    upload_store.sweep([], 0.0)
    assert result[0][0].is_file()  # examples stay


def test_a_picture_of_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    upload_store = UploadStore(tmp_path, Limits(1, 60.0, 100 * 100), seconds=10.0)
    (tmp_path / "u").mkdir()
    screen = b"GIF89a" + (8000).to_bytes(2, "little") * 2 + b"\xf0\0\0" + b"\0\0\0\xff\xff\xff"
    image = b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    (tmp_path / "u" / "huge.gif").write_bytes(screen + image * 3 + b"\x3b")
    began = time.monotonic()
    with pytest.raises(UserError, match="^a frame has 64,000,000 pixels, 10,000 are allowed"):
        upload_store.examine(tmp_path / "u" / "huge.gif")
    upload_store.close()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("seconds", "text"), [(20, "20 s"), (90, "90 s"), (150, "2.5 minutes"), (600, "10 minutes")])
def test_limits_are_told_as_they_are(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_broken_uploads_left_is_swept(service: ChatService) -> None:
    part, fresh = service.upload_store.folder / "tmpabc", service.upload_store.folder / "tmpdef"
    for path in (part, fresh):
        path.write_bytes(b"x")
    os.utime(part, (time.time() - 4000,) * 2)
    service.sweep(3600)
    assert not part.exists() and fresh.exists()
