"""What a commit vouches for: size and hash of each file that it relies on, and a hash of the record itself. Read back, records
and rows have the fields and types that their readers count on. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.io import open_file, read_json, read_jsonl, sync, without_folders, write_atomic
from minirlaif.stages.registry import STAGES

BLOCK = 1 << 20
SEAL = "sha256_of_this"  # the key of a record's own hash
NUMBER = (int, float)
CHOICE = (int, str)
# Fields that readers of a record, or of the rows of a stage's file, count on.
MANIFEST = {
    "config": dict,
    "inputs": dict,
    "outputs": dict,
    "identity": str,
    "metrics": dict,
    "counters": dict,
    "seconds": NUMBER,
}
POSITION = {"step": int, "seconds": NUMBER, "summary": dict, "counters": dict, "files": dict, "state": dict}
SETTINGS = {"config": dict, "inputs": dict}
READOUT = {"choice": str, "margin": NUMBER, "orders": [str]}
ROWS: Mapping[tuple[str, str], Mapping[str, Any]] = {  # a name that ends in ? may be missing, or None
    ("", "left_out.jsonl"): {**dict.fromkeys(("kind", "file", "reason"), str), "row": int},
    ("votes", "votes.jsonl"): {
        **dict.fromkeys(("id", "prompt", "output_1", "output_2", "model_1", "model_2"), str),
        "preference": CHOICE,
        "judge?": CHOICE,
    },
    ("world", "truth.jsonl"): {**dict.fromkeys(("id", "video", "type", "key", "answer"), str), "segments": [str]},
    ("evaluate", "answers.jsonl"): {
        **dict.fromkeys(("id", "video", "question", "rlaif", "base"), str),
        **{f"{name}?": str for name in ("sft", "truth", "strip", "type")},
    },
    ("feedback", "verdicts.jsonl"): {
        **dict.fromkeys(("id", "video", "question", "answer_a", "answer_b", "context"), str),
        **READOUT,
        "without_context?": READOUT,
        "letter?": READOUT,
        "tags?": {"type?": str},
    },
    ("feedback", "contexts.jsonl"): {"video": str, "context": str, "segments": [str]},
    ("feedback", "answers.jsonl"): {
        **dict.fromkeys(("id", "video", "question"), str),
        **{"answers": [str], "ids?": [[int]], "stopped?": [bool], "with_context?": [bool]},
    },
    ("reward", "held_out.jsonl"): {
        **dict.fromkeys(("id", "chosen?", "rejected?"), str),
        **dict.fromkeys(("score_chosen", "score_rejected"), NUMBER),
    },
}
COUNTS = ("swap_consistency", "decided_share", "longer_wins", "pairs", "tie", "invalid", "disagree")  # of verdicts
MEASURED: Mapping[str, Mapping[str, Any]] = {  # metrics of a stage's manifest that other stages compute with
    "feedback": {f"{name}?": NUMBER for name in COUNTS},
    "reward": {"accuracy?": NUMBER, "accuracy_by_type?": dict, "bias?": NUMBER},
}


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
    with open_file(path) as file:
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


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a stage. UserError when it is damaged or has not the fields of one, or names a file outside the stage."""
    manifest = read_sealed(path)
    if not has_fields(manifest, MANIFEST) or not _are_files(manifest["outputs"]) or not all(map(inside, manifest["inputs"])):
        raise UserError(f"{path}: not a manifest of this version; make the stage again", again=())
    return manifest


def read_record(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """As `read_sealed`, with the fields that it must have."""
    record = read_sealed(path)
    if not has_fields(record, fields) or not all(_are_files(record[name]) for name in ("files", "state") if name in fields):
        raise UserError(f"{path}: of an earlier version, or not such a record; start the stage again", again=())
    return record


def _are_files(records: Mapping[str, Any]) -> bool:
    """Whether these are files within a folder, each with its size and hash."""
    known = {"bytes": int, "sha256": str}
    return all(inside(name) and has_fields(each, known) and each["bytes"] >= 0 for name, each in records.items())


def read_rows(folder: Path, stage: str, name: str) -> list[dict[str, Any]]:
    """Rows of a stage's file that have the fields and types of such rows, for readers that show what there is: others, such as
    the last one of a file whose writer was killed, are left out. No file: no rows."""
    fields = _fields_of(stage, name)
    rows = read_jsonl(folder / name, missing_ok=True, skip_damaged=True)
    return [row for row in rows if has_fields(row, fields)]


def checked_rows(folder: Path, stage: str, name: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a finished stage's file, for readers that compute with all of them. No file: no rows.
    needed: fields that each row must have, also in objects within it. UserError: a row, named by its number, lacks one, or has a
    field of ROWS with another type, whatever the manifest says of the file."""
    fields = _needed(_fields_of(stage, name), needed)
    rows = read_jsonl(folder / name, missing_ok=True)
    for number, row in enumerate(rows, start=1):
        if wrong := wrong_field(row, fields):
            raise UserError(f"{folder / name}: row {number}, {wrong}; make the stage again", again=())
    return rows


def checked_metrics(path: Path, stage: str, needed: Sequence[str]) -> dict[str, Any]:
    """The metrics of a stage's manifest. UserError: they lack a needed one, or one of MEASURED has another type."""
    metrics: dict[str, Any] = read_manifest(path)["metrics"]
    if wrong := wrong_field(metrics, _needed(MEASURED.get(stage, {}), needed)):
        raise UserError(f"{path}: metrics, {wrong}; make the stage again", again=())
    return metrics


def _needed(fields: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """Fields with those optional that nobody needs."""
    return {
        name if (name := key.removesuffix("?")) in needed else f"{name}?": _needed(kind, needed)
        if isinstance(kind, Mapping)
        else kind
        for key, kind in fields.items()
    }


def _fields_of(stage: str, name: str) -> Mapping[str, Any]:
    if name != "metrics.jsonl":
        return ROWS.get((stage, name), {})
    curves = STAGES[stage].curves if stage in STAGES else ()
    return {"step": int, "stage?": str, "pairs?": NUMBER, **{f"{curve.field}?": NUMBER for curve in curves}}


def has_fields(value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether a value is an object with these fields, each of its type (not a bool) and finite; see ROWS."""
    return not wrong_field(value, fields)


def wrong_field(value: Any, fields: Mapping[str, Any]) -> str:
    """What is wrong with the first field of a value that `has_fields` would refuse, in words; "" for none."""
    if not isinstance(value, dict):
        return f"which is {_shown(value)}, not an object"
    for name, kind in fields.items():
        key, item = name.removesuffix("?"), value.get(name.removesuffix("?"))
        if item is None and name.endswith("?"):
            continue
        if isinstance(kind, Mapping) and isinstance(item, dict):
            if wrong := wrong_field(item, kind):
                return f"{key}, {wrong}"
        elif not _is(item, kind):
            return f"{key}: missing" if item is None else f"{key}: {_shown(item)}, not {_word(kind)}"
    return ""


def _word(kind: Any) -> str:
    words: dict[Any, str] = {
        str: "a text",
        int: "a whole number",
        NUMBER: "a finite number",
        dict: "an object",
        CHOICE: "a choice",
    }
    if isinstance(kind, list):
        return "a list of texts" if kind == [str] else "a list" if kind != [[int]] else "lists of token ids"
    return "an object" if isinstance(kind, Mapping) else words[kind]


def _shown(value: Any) -> str:
    return ascii(value)[:40] if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(item, kind[0]) for item in value)
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or isinstance(kind, Mapping) or not isinstance(value, kind):
        return False
    return abs(value) < 1e300 if isinstance(value, int | float) else not isinstance(value, str) or _is_text(value)


def _is_text(value: str) -> bool:
    """Whether it can be written: half of a surrogate pair cannot."""
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def inside(name: str) -> bool:
    """Whether a path, seen from a folder, leads to something within it that can have this name."""
    path = PurePosixPath(name)
    sound = all(len(part.encode(errors="replace")) < 256 and part != ".." for part in path.parts) and len(name) < 1024
    return sound and "\0" not in name and _is_text(name) and not path.is_absolute()


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few settings and inputs that differ, as `name old -> new`; "" when none does."""
    if without_folders(new["config"]) == new["config"]:  # published manifests have had folders in their paths
        old = {**old, "config": without_folders(old["config"])}
    sides = [_flat({key: side[key] for key in ("config", "inputs")}) for side in (old, new)]
    names = sorted(name for name in sides[0].keys() | sides[1].keys() if sides[0].get(name) != sides[1].get(name))
    shown = [f"{name.partition('.')[2]} {sides[0].get(name)!r:.40} -> {sides[1].get(name)!r:.40}" for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat
