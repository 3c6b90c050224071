"""Vision features of clips: a clip is decoded and encoded once per frame plan, and every later stage reads the result from disk.

One SQLite file per run holds, by clip content, frame plan and vision weights: feature vectors, a small picture strip for
people, and the properties of each clip. SQLite because one file with its own journal survives a kill and needs no index.
Letters: F frames, G groups of frames, H x W vectors per group, E numbers per vector (see backbones/base.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minirlaif.config import VideoSection
from minirlaif.models.offload import OffloadableWeights
from minirlaif.runs.database import open_database
from minirlaif.runs.records import SEAL
from minirlaif.video.frame_sampling import BLANK, FramePlan, FrameSize
from minirlaif.video.reader import ClipInfo, ClipReader, part_info, picture_strip
from minirlaif.video.spans import file_of

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import VisionLanguageModel

PROPERTIES = {each.name for each in fields(ClipInfo)}
MEMORY = 1 << 30  # bytes of features kept in host memory

Planner = Callable[[ClipInfo], Sequence[FramePlan]]


class VisionFeatureCache:
    """Features of clips, encoded at the first call and read from disk ever after. Between encodings the backbone's vision
    modules are offloaded to host memory.

    Args:
        path: the SQLite file; made when missing.
        backbone: encodes frames; its vision weights are part of the key.
        reader: decodes clips.
        video: uses cache_gib (oldest features are deleted beyond this size) and frame_pixels.
        memory: bytes of features that stay in host memory as well; the last ones do in any case.
    """

    def __init__(
        self, path: Path, backbone: VisionLanguageModel, reader: ClipReader, video: VideoSection, memory: int = MEMORY
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = open_database(path)
        self._db.execute("PRAGMA synchronous=NORMAL")
        _make_tables(self._db)
        self._backbone, self._reader = backbone, reader
        self._limit, self._frame_pixels = int(video.cache_gib * (1 << 30)), video.frame_pixels
        self._vision = vision_hash(backbone)
        self._vision_modules = offloaded_vision(backbone)
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._memory_bytes, self._memory_limit = 0, memory
        self.counters = {"decodes": 0, "encodes": 0, "encoded_frames": 0, "plans": 0, "opened": 0}

    def close(self) -> None:
        """Close the file; the reader is the caller's."""
        self._db.close()

    def info(self, video: str) -> ClipInfo:
        """Properties of a clip; the file is opened only when it has changed since it was last read, under whichever name (a run
        may reach another run's clips through a link). Of a part of a clip (video/spans.py) the file is what was opened."""
        file = file_of(video)
        try:
            status = Path(file).stat()
        except OSError:
            return self._reader.info(file)  # raises the error with name and reason
        stamp = f"{status.st_size}:{status.st_mtime_ns}:{self._reader.settings}"
        name = os.path.realpath(file)
        known = self._db.execute("SELECT info FROM clips WHERE path = ? AND stamp = ?", (name, stamp)).fetchone()
        if known and (values := _unsealed(known[0])):
            return part_info(ClipInfo(**{**values, "path": file, "repaired": tuple(values["repaired"])}), video)
        info = self._reader.info(file)
        self.counters["opened"] += 1
        self._db.execute("REPLACE INTO clips VALUES (?, ?, ?)", (name, stamp, _sealed(info.__dict__)))
        self._db.commit()
        for text in info.repaired:
            print(f"repaired: {file}: {text}", flush=True)
        return part_info(info, video)

    def _note_repairs(self, info: ClipInfo) -> None:
        """Store what was repaired in frames that were decoded since a file was opened, and print it once."""
        info = self.info(file_of(info.path))
        new = [text for text in self._reader.repaired.get(info.path, ()) if text not in info.repaired]
        if new:
            values = _sealed({**info.__dict__, "repaired": [*info.repaired, *new]})
            self._db.execute("UPDATE clips SET info = ? WHERE path = ?", (values, os.path.realpath(info.path)))
            print(f"repaired: {info.path}: {'; '.join(new)}", flush=True)

    def size(self, info: ClipInfo) -> FrameSize:
        """Pixels of a clip's frames."""
        return self._backbone.frame_size(info.width, info.height, self._frame_pixels)

    def get(self, video: str, planner: Planner) -> list[tuple[FramePlan, Tensor]]:
        """The frame plans of a clip with their features_GHWE (on the CPU), in the planner's order."""
        info = self.info(video)
        plans = list(planner(info))
        keys = [self._key(info, plan) for plan in plans]
        features = {key: value for key in keys if (value := self._read(key)) is not None}
        # By key, as a plan may come twice (of a clip with a single segment) and is decoded once.
        missing = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in features}
        if missing:
            encoded = self._encode_plans(info, list(missing.items()))
            features |= {key: value for key, (_, value) in zip(missing, encoded, strict=True)}
        return [(plan, features[key]) for key, plan in zip(keys, plans, strict=True)]

    def pixels(self, video: str, plan: FramePlan) -> tuple[np.ndarray, Tensor]:
        """The frames of a plan as the model gets them, uint8 [F, H, W, 3], with their features_GHWE, which are stored for `get`.
        The frames are not: every call decodes."""
        info = self.info(video)
        ((pixels_FHW3, features_GHWE),) = self._encode_plans(info, [(self._key(info, plan), plan)])
        return pixels_FHW3, features_GHWE

    def _encode_plans(self, info: ClipInfo, missing: Sequence[tuple[str, FramePlan]]) -> list[tuple[np.ndarray, Tensor]]:
        """Decode and encode plans by key, in one pass over the file, and store their features."""
        frames = self._reader.frames(info.path, [plan for _, plan in missing], self.size(info))
        self.counters["decodes"] += len(missing)
        self._note_repairs(info)
        encoded = []
        for (key, _), pixels in zip(missing, frames, strict=True):
            features_GHWE = self.encode(pixels)
            self.counters["encodes"] += 1
            self.counters["encoded_frames"] += len(pixels)
            self._write(key, features_GHWE, picture_strip(pixels, info.width / info.height))
            encoded.append((pixels, features_GHWE))
        self._db.commit()
        self._shrink()
        return encoded

    def encode(self, pixels_FHW3: np.ndarray) -> Tensor:
        """features_GHWE of frames on the CPU, not stored; the vision modules are on the device only meanwhile."""
        with self._vision_modules.on_device():
            return self._backbone.encode_frames(pixels_FHW3).to("cpu").contiguous()

    def strip(self, video: str, plan: FramePlan) -> bytes:
        """A JPEG of the frames side by side, in the proportions of the clip; empty when the plan was never decoded."""
        row = self._db.execute("SELECT strip FROM vectors WHERE key = ?", (self._key(self.info(video), plan),)).fetchone()
        return b"" if row is None else bytes(row[0])

    def _key(self, info: ClipInfo, plan: FramePlan) -> str:
        return f"{info.id}:{plan.key}:{self.size(info).key}:{self._vision}:{info.reader}"  # decoders may differ about a frame

    def _read(self, key: str) -> Tensor | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        row = self._db.execute("SELECT shape, data, digest FROM vectors WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[2] is not None and row[2] != _digest(key, row[0], row[1]):
            print(f"features of a clip ({key.partition(':')[0]}) are damaged in the cache: encoded again", flush=True)
            return None
        features = torch.frombuffer(bytearray(row[1]), dtype=self._backbone.dtype).view(json.loads(row[0]))
        self._remember(key, features)
        return features

    def _write(self, key: str, features_GHWE: Tensor, strip: bytes) -> None:
        features = features_GHWE.to(self._backbone.dtype)
        data = features.view(torch.uint8).numpy().tobytes()
        shape = json.dumps(list(features.shape))
        row = (key, shape, data, strip, _digest(key, shape, data))
        self._db.execute("REPLACE INTO vectors (key, shape, data, strip, digest) VALUES (?, ?, ?, ?, ?)", row)
        self.counters["plans"] += self._db.execute("INSERT OR IGNORE INTO looked VALUES (?)", (key,)).rowcount
        self._remember(key, features)

    def _remember(self, key: str, features: Tensor) -> None:
        self._memory[key] = features
        self._memory_bytes += features.nbytes
        while self._memory_bytes > self._memory_limit and len(self._memory) > 1:
            self._memory_bytes -= self._memory.popitem(last=False)[1].nbytes

    def _shrink(self) -> None:
        while self._bytes_in_use() > self._limit:  # freed pages are used again, so the file stops growing
            deleted = self._db.execute(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY rowid LIMIT"
                " (SELECT max(1, count(*) / 10) FROM vectors))"
            )
            self._db.commit()
            if not deleted.rowcount:
                return

    def _bytes_in_use(self) -> int:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self._db.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
        return (pages - free) * size


def _make_tables(db: sqlite3.Connection) -> None:
    """What is missing, under the write lock: of processes that open a new file at once, one makes it and the others wait. A file
    that has everything is not locked."""
    if {"clips", "vectors", "looked"} <= {row[0] for row in db.execute("SELECT name FROM sqlite_master")} and _has_digests(db):
        return
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE IF NOT EXISTS clips (path TEXT PRIMARY KEY, stamp TEXT, info TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, shape TEXT, data BLOB, strip BLOB, digest BLOB)")
    if not _has_digests(db):
        db.execute("ALTER TABLE vectors ADD COLUMN digest BLOB")  # rows of an earlier version have none
    # Every plan that was ever encoded: features may be deleted for their size, and encoding twice must be counted once.
    db.execute("CREATE TABLE IF NOT EXISTS looked (key TEXT PRIMARY KEY)")
    db.commit()


def _has_digests(db: sqlite3.Connection) -> bool:
    return "digest" in {row[1] for row in db.execute("PRAGMA table_info(vectors)")}


def _digest(key: str, shape: str, data: bytes) -> bytes:
    """Of a row, without its picture."""
    digest = hashlib.blake2b(f"{key} {shape} ".encode(), digest_size=16)
    digest.update(data)
    return digest.digest()


def _sealed(values: Mapping[str, Any]) -> str:
    """Properties of a clip with their hash."""
    return json.dumps({**values, SEAL: _digest("clip", "", json.dumps(values).encode()).hex()})


def _unsealed(row: str) -> dict[str, Any] | None:
    """The same without it; None: they are damaged, and the clip is read again. Rows of an earlier version have no hash."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        values: dict[str, Any] = json.loads(row)
        seal = values.pop(SEAL, None)
        if values.keys() == PROPERTIES and seal in (None, _digest("clip", "", json.dumps(values).encode()).hex()):
            return values
    print("properties of a clip are damaged in the cache: read again", flush=True)
    return None


def vision_hash(backbone: VisionLanguageModel) -> str:
    """16 hex digits of the vision tower's and connector's weights: other weights, other features."""
    digest = hashlib.sha256()
    for name, tensor in (named for part in backbone.vision_modules for named in part.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def offloaded_vision(backbone: VisionLanguageModel) -> OffloadableWeights:
    """The vision tower and projector, offloaded to host memory."""
    tensors = (tensor for part in backbone.vision_modules for tensor in (*part.parameters(), *part.buffers()))
    weights = OffloadableWeights(tensors, frozen=True)
    weights.offload()
    return weights


def blank_features(store: VisionFeatureCache, count: int, size: FrameSize, cache: dict[tuple[int, FrameSize], Tensor]) -> Tensor:
    """features_GHWE of `count` dark grey frames, for the blind control."""
    if (count, size) not in cache:
        cache[count, size] = store.encode(np.full((count, size.height, size.width, 3), BLANK, np.uint8))
    return cache[count, size]
