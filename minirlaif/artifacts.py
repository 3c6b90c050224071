"""Run folders: one folder per stage, a manifest written last, hashes, and a state from which a killed stage goes on. No torch.

    runs/<name>/<stage>.partial/   a stage in progress or dead
        begun.json                 its settings and inputs, so that only the same call goes on
        state/                     what the last commit_state wrote, with position.json
    runs/<name>/<stage>/           finished: manifest.json is there, everything it lists is unchanged
    runs/<name>/<stage>.old/       what --redo replaces; deleted when the new one is finished

Paths inside manifests are relative, so a run folder can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minirlaif import parallel
from minirlaif.disk import disk_is_full, empty, locked, plain, read_json, sha256, sync, write_atomic
from minirlaif.provenance import code_version, gpu_use, package_versions, start_gpu_count
from minirlaif.records import StageStopped, UserError

SCHEMA = 1
_STATES = ("state", "state.new", "state.old")  # in the order of trust, see commit_state


class Run:
    """The folder of one run."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def dir(self, stage: str) -> Path:
        """Where a finished stage lies (it need not exist)."""
        return self.root / stage

    def partial(self, stage: str) -> Path:
        """Where a stage in progress lies (it need not exist)."""
        return self.root / f"{stage}.partial"

    def command(self, stage: str) -> str:
        """What a user types to make a stage."""
        config = self.root / "config.yaml"
        folder = "" if self.root.parent == Path("runs") else f" --runs-dir {self.root.parent}"
        return f"python -m minirlaif {stage} --config {config if config.is_file() else '…'} --run {self.root.name}{folder}"

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage, or None."""
        path = self.dir(stage) / "manifest.json"
        if not path.is_file():
            return None
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise UserError(f"{path}: not a manifest of this version; make the stage again: `{self.command(stage)} --redo`")
        return manifest

    def require(self, stage: str) -> Path:
        """The folder of a finished stage. UserError if it is not finished, was changed, or stands on a stage made again since."""
        manifest = self.manifest(stage)
        if manifest is None:
            done = "was not finished" if self.partial(stage).exists() else "does not exist yet"
            raise UserError(f"{self.dir(stage)}: {done}; run `{self.command(stage)}` first")
        for name, output in manifest["outputs"].items():
            path = self.dir(stage) / name
            if not path.is_file() or path.stat().st_size != output["bytes"] or sha256(path) != output["sha256"]:
                what = "has changed since the stage finished" if path.is_file() else "is missing"
                raise UserError(f"{path}: {what}; make the stage again: `{self.command(stage)} --redo`")
        older = self.outdated(stage)
        if older:
            raise UserError(f"{self.dir(stage)}: made from another {older}; make it again: `{self.command(stage)} --redo`")
        return self.dir(stage)

    def outdated(self, stage: str) -> str:
        """The first input of a finished stage that was made again with another result, or ""."""
        manifest = self.manifest(stage) or {"inputs": {}}
        for name, identity in manifest["inputs"].items():
            current = self.manifest(name)
            if current is not None and current["identity"] != identity:
                return str(name)
        return ""

    def set_aside(self, stage: str) -> None:
        """Forget an attempt in progress, and keep a finished stage as <stage>.old until a new one is finished."""
        partial, old = self.partial(stage), self.root / f"{stage}.old"
        if partial.exists():
            with locked(partial):
                empty(partial)
                partial.rmdir()
        if self.dir(stage).exists():
            shutil.rmtree(old, ignore_errors=True)
            self.dir(stage).rename(old)

    @contextmanager
    def stage(
        self, name: str, config: Mapping[str, Any], inputs: Sequence[str] = (), redo: bool = False
    ) -> Iterator[StageDir | None]:
        """Open a stage: yields its folder to fill, or None when it is finished with the same config and inputs.

        Leaving the block without an error hashes the outputs, writes the manifest and gives the folder its final name; after an
        error or a kill the partial folder stays and the same call goes on from its last committed state.
        UserError when the stage was made or begun with other settings or inputs, unless `redo`.
        """
        for each in inputs:
            self.require(each)
        begun = {"stage": name, "config": plain(config), "inputs": {each: self._identity(each) for each in inputs}}
        partial = self.partial(name)
        if redo:
            self.set_aside(name)
        if (partial / "manifest.json").is_file():  # killed between the manifest and the rename
            self._publish(name)
        if self._is_finished(name, begun):
            print(f"{name}: finished already (--redo makes it again)", flush=True)
            yield None
            return
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial):
            try:
                out = self._open(name, begun)
                start_gpu_count()
                yield out
                out._write_manifest(begun)
                self._publish(name)
            except Exception as error:
                if disk_is_full(error, partial):
                    raise StageStopped(
                        f"{partial}: the disk is full; free some space and repeat the command, it goes on"
                    ) from error
                raise

    def _identity(self, stage: str) -> str:
        manifest = self.manifest(stage)
        return "" if manifest is None else str(manifest["identity"])

    def _is_finished(self, name: str, begun: Mapping[str, Any]) -> bool:
        manifest = self.manifest(name)
        if manifest is None:
            return False
        changes = _differences({key: manifest[key] for key in ("config", "inputs")}, begun)
        if changes:
            raise UserError(f"{self.dir(name)}: made with other settings or inputs ({changes}); --redo makes it again")
        return True

    def _open(self, name: str, begun: Mapping[str, Any]) -> StageDir:
        partial = self.partial(name)
        out = StageDir(partial, name)
        if out._state() is None:  # nothing was committed, so there is nothing to lose
            empty(partial)
            write_atomic(partial / "begun.json", json.dumps(begun, indent=1))
            return out
        changes = _differences(read_json(partial / "begun.json"), begun)
        if changes:
            raise UserError(f"{partial}: begun with other settings or inputs ({changes}); --redo starts it again")
        return out

    def _publish(self, name: str) -> None:
        partial = self.partial(name)
        for state in _STATES:
            shutil.rmtree(partial / state, ignore_errors=True)
        (partial / "begun.json").unlink(missing_ok=True)
        partial.rename(self.dir(name))
        shutil.rmtree(self.root / f"{name}.old", ignore_errors=True)


class StageDir:
    """The folder of a stage while it is filled.

    `path` is where outputs go. `summary` becomes manifest["metrics"], its first entry is what `status` shows; `counters` becomes
    manifest["counters"]. Both survive a kill as they were at the last commit_state.

    Of several processes only the leader fills the real folder; the others fill a scratch folder and `follow` the leader's.
    """

    def __init__(self, path: Path, name: str, follows: Path | None = None) -> None:
        self.path, self.name, self._follows = path, name, follows
        self.summary: dict[str, Any] = {}
        self.counters: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent, with that of killed attempts up to their last committed state."""
        return self._seconds_before + time.monotonic() - self._started

    def log(self, step: int, **metrics: Any) -> None:
        """One line of metrics.jsonl. Numbers that are not finite become null."""
        self._append("metrics.jsonl", {"step": step, **metrics})

    def sample(self, record: Mapping[str, Any]) -> None:
        """One line of samples.jsonl: something a person can read."""
        self._append("samples.jsonl", record)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(record), ensure_ascii=False) + "\n")

    def commit_state(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a fresh folder with everything that later steps need, then make it the state to resume from.

        `step` is the number of finished steps. A kill at any moment leaves either the old state or the new one: position.json is
        written last, so a state folder that has it is whole.
        """
        if self._follows:
            return
        state, new, old = (self.path / name for name in _STATES)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write(new)
        lines = [path for path in self.path.rglob("*.jsonl") if path.relative_to(self.path).parts[0] not in _STATES]
        for path in [*lines, *(path for path in new.rglob("*") if path.is_file())]:
            sync(path)
        position = {
            "step": step,
            "seconds": self.seconds,
            "summary": plain(self.summary),
            "counters": plain(self.counters),
            "lengths": {path.relative_to(self.path).as_posix(): path.stat().st_size for path in lines},
        }
        write_atomic(new / "position.json", json.dumps(position, indent=1))
        shutil.rmtree(old, ignore_errors=True)
        if state.exists():
            state.rename(old)
        new.rename(state)
        shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> tuple[int, Path] | None:
        """(finished steps, state folder) of the last commit_state, or None. jsonl lines written after it are cut off."""
        if self._follows:
            return self._resume_behind(self._follows)
        state = self._state()
        if state is None:
            parallel.wait()
            return None
        position = read_json(state / "position.json")
        for path in list(self.path.rglob("*.jsonl")):
            name = path.relative_to(self.path)
            if name.parts[0] in _STATES:
                continue
            length = position["lengths"].get(name.as_posix())
            if length is None:
                path.unlink()
            elif path.stat().st_size < length:
                raise UserError(f"{path}: shorter than when the state was saved; --redo starts the stage again")
            else:
                os.truncate(path, length)
        parallel.wait()  # the others read these files now
        return self._goes_on(position, state)

    def _resume_behind(self, leader: Path) -> tuple[int, Path] | None:
        parallel.wait()  # until the leader has cut its lines
        state = leader / "state"
        if not state.is_dir():
            return None
        for path in leader.glob("*.jsonl"):
            shutil.copyfile(path, self.path / path.name)
        return self._goes_on(read_json(state / "position.json"), state)

    def _goes_on(self, position: Mapping[str, Any], state: Path) -> tuple[int, Path]:
        self.summary, self.counters = position["summary"], position["counters"]
        self._seconds_before, self._started = position["seconds"], time.monotonic()
        return int(position["step"]), state

    def _state(self) -> Path | None:
        """The state folder to resume from, under its proper name also if the kill came in the middle of a swap."""
        for name in _STATES:
            if (self.path / name / "position.json").is_file():
                if name != "state":
                    shutil.rmtree(self.path / "state", ignore_errors=True)
                    (self.path / name).rename(self.path / "state")
                return self.path / "state"
        return None

    def _write_manifest(self, begun: Mapping[str, Any]) -> None:
        outputs = {}
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name = path.relative_to(self.path)
            if name.parts[0] not in (*_STATES, "begun.json"):
                sync(path)
                outputs[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        manifest = {
            "schema": SCHEMA,
            **begun,
            "outputs": outputs,
            "identity": _identity_of(begun, outputs),
            "metrics": plain(self.summary),
            "counters": plain(self.counters),
            "seconds": round(self.seconds, 3),
            "code": code_version(),
            "versions": package_versions(),
            **gpu_use(),
        }
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))


def _identity_of(begun: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash of what a stage is: settings, inputs, outputs. Without metrics.jsonl, whose timings differ between equal runs."""
    hashes = {name: output["sha256"] for name, output in outputs.items() if name != "metrics.jsonl"}
    return hashlib.sha256(json.dumps([begun, hashes], sort_keys=True).encode()).hexdigest()


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few settings and inputs that differ, as `name old -> new`; "" when none does."""
    sides = [_flat({key: side[key] for key in ("config", "inputs")}) for side in (old, new)]
    names = sorted(name for name in sides[0].keys() | sides[1].keys() if sides[0].get(name) != sides[1].get(name))
    shown = [f"{name.partition('.')[2]} {sides[0].get(name)!r:.40} -> {sides[1].get(name)!r:.40}" for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat
