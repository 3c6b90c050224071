"""How a run names clips, and which content of each a stage read, so that a clip replaced since is noticed. No torch.

clips.jsonl of a stage has a line for each file that no stage of the run made.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from minirlaif.errors import UserError
from minirlaif.runs.hash_cache import HashCache
from minirlaif.runs.io import read_jsonl, write_atomic

NAME = "clips.jsonl"


def stored(root: Path, folder: Path, video: str) -> str:
    """How a stage's files name a clip: seen from the stage's folder when it lies in the run, which can then be moved."""
    root, path = Path(os.path.abspath(root)), Path(os.path.abspath(video))
    return Path(os.path.relpath(path, os.path.abspath(folder))).as_posix() if path.is_relative_to(root) else str(path)


def located(folder: Path, name: str) -> str:
    """The absolute path behind `stored`."""
    return os.path.abspath(folder / name)


def record(root: Path, folder: Path, ids: Mapping[str, str]) -> None:
    """Write the list of a stage's folder, once: a resumed stage has it. ids: first digits of the sha256, by absolute path."""
    world = os.path.abspath(root / "world") + os.sep
    ids = {path: ids[path] for path in sorted(ids) if not path.startswith(world)}
    if not ids or (folder / NAME).exists():
        return
    lines = (json.dumps({"video": stored(root, folder, path), "id": id_}, ensure_ascii=False) + "\n" for path, id_ in ids.items())
    write_atomic(folder / NAME, "".join(lines))
    hashes = _hashes(root)
    hashes.put(ids)
    hashes.save()


def replaced(root: Path, folder: Path) -> str:
    """The first clip of a stage's folder that has another content now, or "". One that is gone is not replaced. UserError: the
    list is damaged."""
    rows = read_jsonl(folder / NAME, missing_ok=True)
    hashes, first = _hashes(root), ""
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("video"), str):
            raise UserError(f"{folder / NAME}: not a list of clips; make the stage again", again=())
        path = located(folder, row["video"])
        with suppress(OSError, ValueError):  # gone, not readable, or no name of a file: whoever needs it says so
            if hashes.digest(path) != row.get("id"):
                first = path
                break
    hashes.save()
    return first


def _hashes(root: Path) -> HashCache:
    return HashCache(root / "cache" / "clips.json")
