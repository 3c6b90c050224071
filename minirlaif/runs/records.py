"""What a commit vouches for: size and hash of each file that it relies on, and a hash of the record itself. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.io import read_json, sync, write_atomic

BLOCK = 1 << 20
SEAL = "sha256_of_this"  # the key of a record's own hash


class FileRecords:
    """Hashes files, each part of them once: files that only grow (lines) are read on from where they ended, others again when
    their size or time of change differs."""

    def __init__(self) -> None:
        self._grown: dict[Path, tuple[int, Any]] = {}  # bytes read, and the hash so far
        self._known: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}

    def record(self, path: Path) -> dict[str, Any]:
        """{"bytes", "sha256"} of a file, which is on the disk afterwards."""
        stat = path.stat()
        if path.suffix == ".jsonl":
            sync(path)
            return self.prefix(path, stat.st_size)
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._known.get(path, ((), {}))[0] != stamp:
            sync(path)
            self._known[path] = (stamp, {"bytes": stat.st_size, "sha256": _digest(path, 0, stat.st_size).hexdigest()})
        return self._known[path][1]

    def prefix(self, path: Path, size: int) -> dict[str, Any]:
        """As `record`, of the first `size` bytes."""
        offset, so_far = self._grown.get(path, (0, hashlib.sha256()))
        if offset > size:
            offset, so_far = 0, hashlib.sha256()
        so_far = _digest(path, offset, size, so_far.copy())
        self._grown[path] = (size, so_far)
        return {"bytes": size, "sha256": so_far.hexdigest()}

    def check(self, root: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
        """UserError for a file that is missing, shorter or changed since it was recorded. Lines may have been added to a .jsonl
        file. records: by name, seen from `root`."""
        for name, known in records.items():
            path = root / name
            if not path.is_file():
                raise UserError(f"{path}: missing, though the state relies on it; start the stage again", again=())
            size = path.stat().st_size
            if size < known["bytes"] or (size > known["bytes"] and path.suffix != ".jsonl"):
                raise UserError(f"{path}: not as long as when the state was saved; start the stage again", again=())
            if self.prefix(path, known["bytes"])["sha256"] != known["sha256"]:
                raise UserError(f"{path}: changed since the state was saved; start the stage again", again=())


def _digest(path: Path, begin: int, end: int, digest: Any = None) -> Any:
    digest = digest or hashlib.sha256()
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (block := file.read(min(BLOCK, end - begin))):
            digest.update(block)
            begin += len(block)
    return digest


def files_below(folder: Path, leave_out: Iterable[str] = ()) -> list[Path]:
    """The files below a folder in order, without those in folders, or of names, at its top that are left out."""
    names = frozenset(leave_out)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in names)


def write_sealed(path: Path, value: Mapping[str, Any], **how: Any) -> None:
    """Write a record as JSON with the hash of its content."""
    content = {name: item for name, item in json.loads(json.dumps(value)).items() if name != SEAL}
    write_atomic(path, json.dumps({**content, SEAL: _seal(content)}, **how))


def read_sealed(path: Path) -> dict[str, Any]:
    """A record without its hash. UserError when it cannot be read, or is not what was written; one without a hash, of an earlier
    version, is taken as it is."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a record; make the stage again", again=())
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise UserError(f"{path}: damaged, its content is not what was written; make the stage again", again=())
    return value


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
