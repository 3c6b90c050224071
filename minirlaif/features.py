"""Look once: a clip is decoded once and encoded once per frame plan, and every later stage reads the result from disk.

One SQLite file per run holds, by clip content, frame plan and vision weights: feature vectors, a small picture strip for
people, and what is known about each clip. SQLite because one file with its own journal survives a kill and needs no index.
Letters: F frames, K vectors per frame, D width.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minirlaif.frames import FramePlan
from minirlaif.video import ClipInfo, ClipReader

if TYPE_CHECKING:
    from minirlaif.backbone import Backbone

PICTURE = 96  # pixels of a side of one picture in a strip
MEMORY = 1 << 30  # bytes of features kept in host memory

Planner = Callable[[ClipInfo], Sequence[FramePlan]]


class FeatureStore:
    """Features of clips, made at the first call and read from disk ever after.

    Args:
        path: the SQLite file; made when missing.
        backbone: encodes frames; its vision weights are part of the key.
        reader: decodes clips.
        limit_gib: oldest features are deleted beyond this size.
    """

    def __init__(self, path: Path, backbone: Backbone, reader: ClipReader, limit_gib: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS clips (path TEXT PRIMARY KEY, stamp TEXT, info TEXT)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, frames INT, vectors INT, data BLOB, strip BLOB)"
        )
        self._backbone, self._reader = backbone, reader
        self._limit = int(limit_gib * (1 << 30))
        self._vision = vision_hash(backbone)
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._memory_bytes = 0
        self.counters = {"decodes": 0, "encodes": 0, "encoded_frames": 0, "plans": 0}

    def close(self) -> None:
        """Close the file; the reader is the caller's."""
        self._db.close()

    def info(self, video: str) -> ClipInfo:
        """What is known about a clip; the file is opened only when it has changed since it was last looked at."""
        try:
            status = Path(video).stat()
        except OSError:
            return self._reader.info(video)  # says by name and reason why there is none
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
        known = self._db.execute("SELECT info FROM clips WHERE path = ? AND stamp = ?", (video, stamp)).fetchone()
        if known:
            return ClipInfo(**json.loads(known[0]))
        info = self._reader.info(video)
        self._db.execute("REPLACE INTO clips VALUES (?, ?, ?)", (video, stamp, json.dumps(info.__dict__)))
        self._db.commit()
        return info

    def get(self, video: str, planner: Planner) -> list[tuple[FramePlan, Tensor]]:
        """The frame plans of a clip with their features_FKD (on the CPU), in the planner's order."""
        info = self.info(video)
        plans = list(planner(info))
        keys = [self._key(info, plan) for plan in plans]
        found = {key: self._read(key) for key in keys}
        missing = list({key: plan for key, plan in zip(keys, plans, strict=True) if found[key] is None}.items())
        if missing:  # a plan that is asked for twice, as of a clip with a single segment, is decoded once
            frames = self._reader.frames(video, [plan for _, plan in missing], self._backbone.frame_size)
            self.counters["decodes"] += len(missing)
            features_FKD = self._backbone.encode_frames(np.concatenate(frames)).to("cpu")
            parts = features_FKD.split([len(pixels) for pixels in frames])
            for (key, _), pixels, part in zip(missing, frames, parts, strict=True):
                self.counters["encodes"] += 1
                self.counters["encoded_frames"] += len(pixels)
                found[key] = part.contiguous()
                self._write(key, part.contiguous(), _strip(pixels))
            self._db.commit()
            self._shrink()
        return [(plan, _present(found[key])) for key, plan in zip(keys, plans, strict=True)]

    def strip(self, video: str, plan: FramePlan) -> bytes:
        """A JPEG of the frames side by side, as the model saw them; empty when the plan was never decoded."""
        row = self._db.execute("SELECT strip FROM features WHERE key = ?", (self._key(self.info(video), plan),)).fetchone()
        return b"" if row is None else bytes(row[0])

    def _key(self, info: ClipInfo, plan: FramePlan) -> str:
        return f"{info.id}:{plan.key}:{self._backbone.frame_size}:{self._vision}"

    def _read(self, key: str) -> Tensor | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        row = self._db.execute("SELECT frames, vectors, data FROM features WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        kind = self._backbone.text_model.embed_tokens.weight.dtype
        features = torch.frombuffer(bytearray(row[2]), dtype=kind).view(row[0], row[1], -1)
        self._remember(key, features)
        return features

    def _write(self, key: str, features_FKD: Tensor, strip: bytes) -> None:
        kind = self._backbone.text_model.embed_tokens.weight.dtype
        data = features_FKD.to(kind).view(torch.uint8).numpy().tobytes()
        row = (key, features_FKD.shape[0], features_FKD.shape[1], data, strip)
        self._db.execute("REPLACE INTO features VALUES (?, ?, ?, ?, ?)", row)
        self.counters["plans"] += 1
        self._remember(key, features_FKD.to(kind))

    def _remember(self, key: str, features: Tensor) -> None:
        self._memory[key] = features
        self._memory_bytes += features.nbytes
        while self._memory_bytes > MEMORY and len(self._memory) > 1:
            self._memory_bytes -= self._memory.popitem(last=False)[1].nbytes

    def _shrink(self) -> None:
        while self._size() > self._limit:  # freed pages are used again, so the file stops growing
            gone = self._db.execute(
                "DELETE FROM features WHERE rowid IN (SELECT rowid FROM features ORDER BY rowid LIMIT"
                " (SELECT max(1, count(*) / 10) FROM features))"
            )
            self._db.commit()
            if not gone.rowcount:
                return

    def _size(self) -> int:
        """Bytes in use."""
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self._db.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
        return (pages - free) * size


def vision_hash(backbone: Backbone) -> str:
    """16 hex digits of the vision tower's and connector's weights: other weights, other features."""
    digest = hashlib.sha256()
    for part in (backbone.vision_model, backbone.connector):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def blank_features(backbone: Backbone, count: int, cache: dict[int, Tensor]) -> Tensor:
    """Features_FKD of `count` mid-grey frames, for the blind control."""
    if count not in cache:
        grey = np.full((count, backbone.frame_size, backbone.frame_size, 3), 30, np.uint8)
        cache[count] = backbone.encode_frames(grey).to("cpu")
    return cache[count]


def _present(features: Tensor | None) -> Tensor:
    assert features is not None
    return features


def _strip(pixels_FHW3: np.ndarray) -> bytes:
    from PIL import Image

    pictures: list[Any] = [
        Image.fromarray(p).resize((PICTURE, PICTURE), Image.Resampling.NEAREST if len(p) < PICTURE else Image.Resampling.BICUBIC)
        for p in pixels_FHW3
    ]
    sheet = Image.new("RGB", (PICTURE * len(pictures), PICTURE))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * PICTURE, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
