"""How a run names clips, and which content of each a stage read, so that a clip replaced since is noticed. No torch.

clips.jsonl of a stage has a line for each file that no stage of the run made. Contents are hashed again only where size, times or
inode differ from those in the run's cache/clips.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.io import read_jsonl, sha256, write_atomic

NAME = "clips.jsonl"
DIGITS = 16  # of the sha256 of a file, as in ClipInfo.id


def stored(root: Path, video: str) -> str:
    """How a stage's files name a clip: seen from the stage's folder when it lies in the run, which can then be moved."""
    root, path = Path(os.path.abspath(root)), Path(os.path.abspath(video))
    return Path("..", path.relative_to(root)).as_posix() if path.is_relative_to(root) else str(path)


def located(root: Path, name: str) -> str:
    """The absolute path behind `stored`."""
    return os.path.abspath(root / "stage" / name)


def record(root: Path, folder: Path, ids: Mapping[str, str]) -> None:
    """Write the list of a stage's folder, once: a resumed stage has it. ids: first digits of the sha256, by absolute path."""
    world = os.path.abspath(root / "world") + os.sep
    ids = {path: ids[path] for path in sorted(ids) if not path.startswith(world)}
    if not ids or (folder / NAME).exists():
        return
    lines = (json.dumps({"video": stored(root, path), "id": id_}, ensure_ascii=False) + "\n" for path, id_ in ids.items())
    write_atomic(folder / NAME, "".join(lines))
    _remember(root, {path: [*_stamp(path), id_] for path, id_ in ids.items()})


def replaced(root: Path, folder: Path) -> str:
    """The first clip of a stage's folder that has another content now, or "". One that is gone is not replaced. UserError: the
    list is damaged."""
    rows = read_jsonl(folder / NAME, missing_ok=True)
    known = _known(root) if rows else {}
    hashed: dict[str, list[Any]] = {}
    first = ""
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("video"), str):
            raise UserError(f"{folder / NAME}: not a list of clips; make the stage again", again=())
        path = located(root, row["video"])
        with suppress(OSError):
            stamp, entry = _stamp(path), known.get(path, [])
            if entry[:-1] != stamp:
                entry = hashed[path] = [*stamp, sha256(Path(path))[:DIGITS]]
            if entry[-1] != row.get("id"):
                first = path
                break
    _remember(root, hashed)
    return first


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _known(root: Path) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        values = json.loads((root / "cache" / "clips.json").read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return {path: value for path, value in values.items() if isinstance(value, list) and len(value) == 5}
    return {}


def _remember(root: Path, values: Mapping[str, list[Any]]) -> None:
    if values:
        (root / "cache").mkdir(parents=True, exist_ok=True)
        write_atomic(root / "cache" / "clips.json", json.dumps({**_known(root), **values}))
