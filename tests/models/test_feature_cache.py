"""The feature cache: one decode and one encode per clip content, frame plan and vision weights; a limit; a file that lasts."""

from __future__ import annotations

import io
import sqlite3
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minirlaif.config import VideoSection
from minirlaif.models.feature_cache import VisionFeatureCache, blank_features
from minirlaif.video.frame_sampling import FramePlan, FrameSize, uniform_plan
from minirlaif.video.reader import ClipInfo, ClipReader, UnreadableClip
from minirlaif.video.spans import file_of
from tests.fixtures import clips

K, D = 3, 5


class Encoder:
    """A backbone that sees the mean colour of a frame, times a weight."""

    def __init__(self, weight: float = 1.0, size: int = 8, width: int = D, dtype: torch.dtype = torch.float32) -> None:
        self.side, self.width, self.calls = size, width, 0
        self.vision_modules = (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            self.vision_modules[0].weight.fill_(0.5)
            self.vision_modules[0].bias.fill_(0.0)
            self.vision_modules[1].weight.fill_(weight)
        self.dtype = dtype

    def frame_size(self, width: int, height: int, frame_pixels: int) -> FrameSize:
        return FrameSize(self.side, self.side)

    def encode_frames(self, pixels: np.ndarray) -> torch.Tensor:
        self.calls += 1
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (self.side, self.side, 3)
        mean = torch.from_numpy(pixels).double().mean((1, 2, 3)) * self.vision_modules[1].weight.item()
        return mean[:, None, None, None].expand(-1, 1, K, self.width).to(self.dtype)


class Reader:
    """Clips without files' costs: frame k of a clip is k times the first byte of the file."""

    settings, decoder = "av:0.05", "av"

    def __init__(self) -> None:
        self.repaired: dict[str, tuple[str, ...]] = {}
        self.opened_paths: list[str] = []
        self.requests: list[tuple[str, list[str]]] = []

    def info(self, path: str) -> ClipInfo:
        self.opened_paths.append(path)
        if not Path(path).is_file():
            raise UnreadableClip(path, "does not exist")
        return ClipInfo(path, Path(path).read_bytes().hex(), 4.0, 64, 64, 8.0, self.decoder)

    def frames(self, path: str, plans: Any, size: FrameSize) -> list[np.ndarray]:
        self.requests.append((Path(path).name, [plan.key for plan in plans]))
        first = Path(file_of(path)).read_bytes()[0]
        return [
            np.stack([np.full((size.height, size.width, 3), first * number % 256, np.uint8) for number in range(len(plan.times))])
            for plan in plans
        ]


def test_a_part_of_a_clip_has_features_of_its_own_and_opens_the_file_once(tmp_path: Path) -> None:
    clip = clips.write_clip(tmp_path / "a.mp4", times=[number / 8 for number in range(32)])
    with ClipReader(timeout_seconds=60) as reader:
        cache = VisionFeatureCache(tmp_path / "features.sqlite", Encoder(), reader, VideoSection())
        names = [f"{clip}#t=0,2", f"{clip}#t=2,4", str(clip)]
        early, late, whole = (cache.get(name, one_plan) for name in names)
        assert early[0][0] == late[0][0] != whole[0][0]  # the same moments of parts of one length
        assert not torch.equal(early[0][1], late[0][1])
        assert cache.counters["opened"] == 1 and cache.counters["decodes"] == 3
        assert [cache.info(name).seconds for name in names] == [2.0, 2.0, 4.0]
        assert cache.strip(names[1], late[0][0]) != cache.strip(names[0], early[0][0])
        with pytest.raises(UnreadableClip, match="#t=7,8: the part from 7 s"):
            cache.info(f"{clip}#t=7,8")
        cache.close()


@pytest.mark.parametrize(
    "change", ["substr(data, 1, length(data) - 4)", "zeroblob(length(data))", "CAST(x'7f7f' || substr(data, 3) AS BLOB)"]
)
def test_features_that_were_damaged_on_disk_are_made_again(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\x07")
    first, damaged = Opened(tmp_path), ""
    ((_, features),) = first.feature_cache.get(str(tmp_path / "a.mp4"), one_plan)
    first.feature_cache.close()
    with closing(sqlite3.connect(tmp_path / "cache" / "f.sqlite")) as other:
        other.execute(f"UPDATE vectors SET data = {change}")
        other.commit()
        damaged = other.execute("SELECT data FROM vectors").fetchone()[0]
    second = Opened(tmp_path)
    ((_, again),) = second.feature_cache.get(str(tmp_path / "a.mp4"), one_plan)
    assert torch.equal(features, again) and second.feature_cache.counters["encodes"] == 1
    assert "damaged in the cache: encoded again" in capsys.readouterr().out
    second.feature_cache.close()
    with closing(sqlite3.connect(tmp_path / "cache" / "f.sqlite")) as other:
        assert other.execute("SELECT data FROM vectors").fetchone()[0] != damaged
    third = Opened(tmp_path)
    ((_, kept),) = third.feature_cache.get(str(tmp_path / "a.mp4"), one_plan)
    assert torch.equal(features, kept) and third.feature_cache.counters["encodes"] == 0


@pytest.mark.parametrize(
    ("old", "new"), [('"seconds": 4.0', '"seconds": 6.0'), ('"width"', '"widtg"'), ('"fps": ', '"fps": ,'), ("{", "[")]
)
def test_properties_that_were_damaged_on_disk_are_read_again(old: str, new: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\x07")
    clip, first = str(tmp_path / "a.mp4"), Opened(tmp_path)
    info = first.feature_cache.info(clip)
    first.feature_cache.close()
    with closing(sqlite3.connect(tmp_path / "cache" / "f.sqlite")) as other:
        assert other.execute("UPDATE clips SET info = replace(info, ?, ?)", (old, new)).rowcount == 1
        other.commit()
    second, third = Opened(tmp_path), Opened(tmp_path)
    assert second.feature_cache.info(clip) == info and second.feature_cache.counters["opened"] == 1
    assert third.feature_cache.info(clip) == info and third.feature_cache.counters["opened"] == 0


def test_a_cache_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\x07")
    first = Opened(tmp_path)
    ((_, features),) = first.feature_cache.get(str(tmp_path / "a.mp4"), one_plan)
    first.feature_cache.close()
    with closing(sqlite3.connect(tmp_path / "cache" / "f.sqlite")) as other:
        other.execute("ALTER TABLE vectors DROP COLUMN digest")
        other.commit()
    second = Opened(tmp_path)
    ((_, again),) = second.feature_cache.get(str(tmp_path / "a.mp4"), one_plan)
    assert torch.equal(features, again) and second.feature_cache.counters["encodes"] == 0


def test_processes_that_open_a_file_of_an_earlier_version_at_once_wait_for_each_other(tmp_path: Path) -> None:
    """The first one adds the column in a transaction; the second one must not read the table before it ends."""
    Opened(tmp_path).feature_cache.close()
    with closing(sqlite3.connect(tmp_path / "cache" / "f.sqlite")) as first, ThreadPoolExecutor(1) as pool:
        first.execute("ALTER TABLE vectors DROP COLUMN digest")
        first.execute("BEGIN IMMEDIATE")
        second = pool.submit(lambda: Opened(tmp_path).feature_cache.close())
        assert wait([second], timeout=0.5).not_done
        first.execute("ALTER TABLE vectors ADD COLUMN digest BLOB")
        first.commit()
        second.result(timeout=30)


def test_repairs_that_a_part_shows_are_stored_at_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found while a part was decoded: noted once, for every name of the file, whose own length stays."""
    (tmp_path / "a.mp4").write_bytes(b"\x07")
    clip, opened = str(tmp_path / "a.mp4"), Opened(tmp_path)
    opened.reader.repaired[clip] = ("damage at 1.00 seconds",)
    for name in (f"{clip}#t=1,3", f"{clip}#t=0,2"):
        opened.feature_cache.pixels(name, FramePlan((0.5,)))
    infos = [opened.feature_cache.info(name) for name in (clip, f"{clip}#t=1,3")]
    assert [(info.path, info.seconds, info.repaired) for info in infos] == [
        (clip, 4.0, ("damage at 1.00 seconds",)),
        (f"{clip}#t=1,3", 2.0, ("damage at 1.00 seconds",)),
    ]
    assert capsys.readouterr().out == f"repaired: {clip}: damage at 1.00 seconds\n"


def one_plan(info: ClipInfo) -> list[FramePlan]:
    return [uniform_plan(info.seconds, 4)]


def halves(info: ClipInfo) -> list[FramePlan]:
    return [*one_plan(info), uniform_plan(info.seconds, 2, 0.0, 2.0), uniform_plan(info.seconds, 2, 2.0, 4.0)]


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\x07")
    return str(path)


def settings(limit_gib: float) -> VideoSection:
    return VideoSection(cache_gib=limit_gib)


class Opened:
    """A store on `folder` with a reader and an encoder of its own, as a new process has."""

    def __init__(self, folder: Path, limit_gib: float = 1.0, **encoder: Any) -> None:
        self.reader, self.encoder = Reader(), Encoder(**encoder)
        self.feature_cache = VisionFeatureCache(folder / "cache" / "f.sqlite", self.encoder, self.reader, settings(limit_gib))  # type: ignore[arg-type]


def test_a_second_look_decodes_nothing(tmp_path: Path, clip: str):
    o = Opened(tmp_path)
    first = o.feature_cache.get(clip, one_plan)
    again = o.feature_cache.get(clip, one_plan)
    assert [plan for plan, _ in first] == [plan for plan, _ in again] == [uniform_plan(4.0, 4)]
    assert first[0][1].equal(again[0][1])
    assert first[0][1][:, 0, 0, 0].tolist() == [0.0, 7.0, 14.0, 21.0] and first[0][1].shape == (4, 1, K, D)
    assert len(o.reader.requests) == o.encoder.calls == 1 and len(o.reader.opened_paths) == 1
    assert o.feature_cache.counters == {"decodes": 1, "encodes": 1, "encoded_frames": 4, "plans": 1, "opened": 1}


def test_the_cache_outlives_the_process(tmp_path: Path, clip: str):
    before = Opened(tmp_path)
    first = before.feature_cache.get(clip, halves)
    before.feature_cache.close()
    after = Opened(tmp_path)
    again = after.feature_cache.get(clip, halves)
    assert all(a[1].equal(b[1]) and a[1].dtype == b[1].dtype for a, b in zip(first, again, strict=True))
    assert after.reader.requests == after.reader.opened_paths == [] and after.encoder.calls == 0
    assert set(after.feature_cache.counters.values()) == {0}


def test_plans_of_a_clip_come_from_one_pass_and_only_missing_ones(tmp_path: Path, clip: str):
    o = Opened(tmp_path)
    o.feature_cache.get(clip, one_plan)
    o.feature_cache.get(clip, halves)
    keys = [plan.key for plan in halves(o.feature_cache.info(clip))]
    assert o.reader.requests == [("a.mp4", keys[:1]), ("a.mp4", keys[1:])]
    assert o.feature_cache.counters == {"decodes": 3, "encodes": 3, "encoded_frames": 8, "plans": 3, "opened": 1}


def test_a_plan_asked_for_twice_is_looked_at_once(tmp_path: Path, clip: str):
    o = Opened(tmp_path)
    twice = o.feature_cache.get(clip, lambda info: one_plan(info) * 2)
    assert twice[0][1].equal(twice[1][1]) and o.feature_cache.counters["decodes"] == o.feature_cache.counters["encodes"] == 1


@pytest.mark.parametrize("other", [{"weight": 2.0}, {"size": 16}])
def test_other_eyes_see_other_features(tmp_path: Path, clip: str, other: dict[str, Any]):
    Opened(tmp_path).feature_cache.get(clip, one_plan)
    o = Opened(tmp_path, **other)
    o.feature_cache.get(clip, one_plan)
    assert o.feature_cache.counters["decodes"] == o.encoder.calls == 1
    back = Opened(tmp_path)
    assert back.feature_cache.get(clip, one_plan)[0][1][1, 0, 0, 0] == 7.0, "both are kept"
    assert back.encoder.calls == 0


def test_content_counts_not_the_name(tmp_path: Path, clip: str):
    o = Opened(tmp_path)
    o.feature_cache.get(clip, one_plan)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(clip).read_bytes())
    o.feature_cache.get(str(copy), one_plan)
    assert len(o.reader.requests) == 1
    Path(clip).write_bytes(b"\x09\x09")  # another clip under the old name
    assert o.feature_cache.get(clip, one_plan)[0][1][1, 0, 0, 0] == 9.0
    assert len(o.reader.requests) == 2 and o.feature_cache.info(clip).id == "0909"


def test_a_run_behind_a_link_looks_at_nothing_again(tmp_path: Path, clip: str):
    """Another run sees the same clips and the same cache through links: one entry, under the name that it requested."""
    Opened(tmp_path).feature_cache.get(clip, one_plan)
    (tmp_path / "other").symlink_to(tmp_path)
    o = Opened(tmp_path / "other")
    mine = str(tmp_path / "other" / "a.mp4")
    assert o.feature_cache.info(mine).path == mine and o.feature_cache.info(clip).path == clip
    o.feature_cache.get(mine, one_plan)
    assert not o.reader.opened_paths and not o.reader.requests and not o.encoder.calls
    assert o.feature_cache._db.execute("SELECT count(*) FROM clips").fetchone() == (1,)


def test_a_clip_that_vanished_is_named(tmp_path: Path):
    o = Opened(tmp_path)
    with pytest.raises(UnreadableClip, match="gone.mp4: does not exist"):
        o.feature_cache.info(str(tmp_path / "gone.mp4"))


def test_the_oldest_go_when_the_limit_is_reached(tmp_path: Path):
    limit, size = 1 << 20, 4 * K * 5000 * 4  # bytes; features of a clip take 240 kB
    o = Opened(tmp_path, limit_gib=limit / (1 << 30), width=5000)
    names = []
    for number in range(12):
        names.append(str(tmp_path / f"{number}.mp4"))
        Path(names[-1]).write_bytes(bytes([number + 1]))
        o.feature_cache.get(names[-1], one_plan)
    o.feature_cache.close()
    file = tmp_path / "cache" / "f.sqlite"
    assert file.stat().st_size < limit + 2 * size, "the file does not grow for ever"
    stored = Opened(tmp_path, width=5000)
    for name in reversed(names):
        stored.feature_cache.get(name, one_plan)
    still_stored = [name for name in names if Path(name).name not in {clip for clip, _ in stored.reader.requests}]
    assert still_stored == names[-len(still_stored) :] and 3 <= len(still_stored) <= limit // size


def test_a_clip_bigger_than_the_limit_still_comes(tmp_path: Path, clip: str):
    o = Opened(tmp_path, limit_gib=0.0)
    assert [len(features) for _, features in o.feature_cache.get(clip, halves)] == [4, 2, 2]


def test_half_precision_is_kept_as_it_is(tmp_path: Path, clip: str):
    first = Opened(tmp_path, dtype=torch.bfloat16).feature_cache.get(clip, one_plan)[0][1]
    again = Opened(tmp_path, dtype=torch.bfloat16).feature_cache.get(clip, one_plan)[0][1]
    assert again.dtype == torch.bfloat16 and again.equal(first)


def test_strip_shows_the_frames_side_by_side(tmp_path: Path):
    from PIL import Image

    path = str(clips.write_clip(tmp_path / "real.mp4", times=[n / 8 for n in range(32)]))
    with ClipReader(60) as reader:
        store = VisionFeatureCache(tmp_path / "f.sqlite", Encoder(size=64), reader, settings(1.0))  # type: ignore[arg-type]
        plan = uniform_plan(store.info(path).seconds, 4)
        assert store.strip(path, plan) == b""
        ((_, features),) = store.get(path, lambda info: [plan])
        assert reader.decodes == store.counters["decodes"] == 1
        (frames,) = reader.frames(path, [plan], FrameSize(64, 64))
        assert features.equal(Encoder(size=64).encode_frames(frames))
        picture = Image.open(io.BytesIO(store.strip(path, plan)))
        assert picture.format == "JPEG" and picture.size == (4 * 96, 96)
        parts = np.asarray(picture).reshape(96, 4, 96, 3).swapaxes(0, 1)
        assert [clips.number_of(part) for part in parts] == [clips.number_of(frame) for frame in frames] == [4, 12, 20, 28]
        store.close()


def test_a_second_look_at_features_that_were_deleted_shows(tmp_path: Path, clip: str):
    """The report divides decodes by plans: a cache that forgets must not look like one that never had to."""
    o = Opened(tmp_path, limit_gib=0.0)
    for _ in range(3):
        o.feature_cache.get(clip, one_plan)
        o.feature_cache._memory.clear()
    again = Opened(tmp_path, limit_gib=0.0)
    again.feature_cache.get(clip, one_plan)
    assert (o.feature_cache.counters["decodes"], o.feature_cache.counters["encodes"], o.feature_cache.counters["plans"]) == (
        3,
        3,
        1,
    )
    assert (again.feature_cache.counters["decodes"], again.feature_cache.counters["plans"]) == (1, 0)


def test_a_strip_has_the_proportions_of_the_clip(tmp_path: Path):
    """Also where the model sees every clip as a square."""
    from PIL import Image

    path = str(clips.write_clip(tmp_path / "wide.mp4", times=[n / 8 for n in range(8)], width=128))
    with ClipReader(60) as reader:
        store = VisionFeatureCache(tmp_path / "f.sqlite", Encoder(size=64), reader, settings(1.0))  # type: ignore[arg-type]
        plan = uniform_plan(store.info(path).seconds, 4)
        store.get(path, lambda info: [plan])
        assert Image.open(io.BytesIO(store.strip(path, plan))).size == (4 * 192, 96)
        store.close()


def test_blank_frames_are_encoded_once(tmp_path: Path):
    o, known = Opened(tmp_path), {}
    blank = blank_features(o.feature_cache, 4, FrameSize(8, 8), known)
    assert blank_features(o.feature_cache, 4, FrameSize(8, 8), known) is blank and o.encoder.calls == 1
    assert blank.shape == (4, 1, K, D) and blank.unique().numel() == 1
    assert len(blank_features(o.feature_cache, 2, FrameSize(8, 8), known)) == 2


def test_the_eyes_are_on_the_device_only_while_they_see(tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch):
    o, seen = Opened(tmp_path), []
    real = o.encoder.encode_frames

    def held() -> list[int]:
        return [p.untyped_storage().nbytes() for part in o.encoder.vision_modules for p in part.parameters()]

    monkeypatch.setattr(o.encoder, "encode_frames", lambda pixels: seen.append(held()) or real(pixels))
    assert held() == [0, 0, 0]
    first = o.feature_cache.get(clip, one_plan)
    assert held() == [0, 0, 0] and seen == [[4, 4, 4]]
    again = o.feature_cache.get(clip, halves)  # a plan that is not cached yet calls them back
    assert held() == [0, 0, 0] and seen == [[4, 4, 4]] * 3
    assert first[0][1].equal(again[0][1])
    blank_features(o.feature_cache, 2, FrameSize(8, 8), {})
    assert held() == [0, 0, 0] and seen == [[4, 4, 4]] * 4

    def blind(pixels: np.ndarray) -> torch.Tensor:
        raise ZeroDivisionError

    monkeypatch.setattr(o.encoder, "encode_frames", blind)
    with pytest.raises(ZeroDivisionError):
        o.feature_cache.encode(np.zeros((1, 8, 8, 3), np.uint8))
    assert held() == [0, 0, 0]


def test_another_decoder_gets_features_of_its_own(tmp_path: Path, clip: str):
    """Old features, whose key has no reader, are not read either."""
    first = Opened(tmp_path)
    first.feature_cache.get(clip, one_plan)
    assert first.feature_cache._key(first.feature_cache.info(clip), uniform_plan(4.0, 4)).endswith(":av")
    other = Opened(tmp_path)
    other.reader.settings, other.reader.decoder = "decord:0.05", "decord"
    other.feature_cache.get(clip, one_plan)
    assert len(other.reader.opened_paths) == len(other.reader.requests) == other.encoder.calls == 1


def test_repairs_are_printed_once_and_stored(tmp_path: Path, clip: str, capsys: pytest.CaptureFixture[str]):
    o = Opened(tmp_path)
    o.reader.repaired[clip] = ("damaged at 1.00 seconds",)
    for plan in (one_plan, halves):
        o.feature_cache.get(clip, plan)
    assert capsys.readouterr().out == f"repaired: {clip}: damaged at 1.00 seconds\n"
    assert Opened(tmp_path).feature_cache.info(clip).repaired == ("damaged at 1.00 seconds",)
