"""The folder of a stage while it is filled: metrics and samples, the state to resume from, the manifest at the end. No torch.

The manifest says where the result comes from: code revision, package versions, GPU (none if nobody loaded torch).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.runs.io import plain, sha256, sync
from minirlaif.runs.records import POSITION, FileRecords, files_below, read_record, write_sealed

SCHEMA = 1
SAVE_SECONDS = 120.0  # no more work than this is lost to a kill, whatever the settings say about steps
STATES = ("state", "state.new", "state.old")  # in the order of trust, see commit_state
KEPT = "kept"  # what a stage may publish in the end, such as the best checkpoint so far, in a folder for each commit
TEMPORARY = (*STATES, KEPT, "begun.json")  # not part of the result
NOT_COUNTED = ("metrics.jsonl", "adapter/README.md")  # in a stage's identity: timings, and words about the same figures
PACKAGES = "torch transformers peft accelerate bitsandbytes datasets decord av numpy pillow tokenizers safetensors".split()


class StageDir:
    """The folder of a stage while it is filled.

    `path` is where outputs go; `settings` are those that the manifest records. `summary` becomes manifest["metrics"], its first
    entry is what `status` shows; `counters` becomes manifest["counters"]. Both survive a kill as they were at the last
    commit_state. `extra`: further entries of the manifest. `identity_name`: the name under which a file counts in the identity,
    "" for one that differs between equal runs.

    Of several processes only the leader fills the real folder; the others fill a scratch folder and `follow` the leader's.
    """

    def __init__(self, path: Path, name: str, settings: Mapping[str, Any], follows: Path | None = None) -> None:
        self.path, self.name, self.settings, self._follows = path, name, settings, follows
        self.summary: dict[str, Any] = {}
        self.counters: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.identity_name: Callable[[str], str] = lambda name: "" if name in NOT_COUNTED else name
        self._records = FileRecords()
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()

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

    def due(self, step: int, every: int) -> bool:
        """Whether to commit the state after this step: every so many steps, and when the last commit is SAVE_SECONDS old. Of
        several processes the leader's clock counts, so all of them have to call this."""
        return step % every == 0 or distributed.from_leader(lambda: time.monotonic() - self._saved >= SAVE_SECONDS)

    def commit_state(self, step: int, write: Callable[[Path], object], kept: str = "") -> None:
        """Let `write` fill a fresh folder with everything that later steps need, then make it the state to resume from.

        `step` is the number of finished steps. A kill at any moment leaves either the old state or the new one: position.json is
        written last, so a state folder that has it is whole. It records every file of the stage, and `resume` compares them: what
        a power loss or a person has changed since is not worked on. kept: the folder of `kept` that counts from now on; others
        are deleted.
        """
        if self._follows:
            return
        state, new, old = (self.path / name for name in STATES)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write(new)
        files = [*files_below(self.path, (*STATES, KEPT)), *(files_below(self.path / KEPT / kept) if kept else ())]
        position = {
            "step": step,
            "seconds": self.seconds,
            "summary": plain(self.summary),
            "counters": plain(self.counters),
            "files": {path.relative_to(self.path).as_posix(): self._records.record(path) for path in files},
            "state": {path.relative_to(new).as_posix(): FileRecords().record(path) for path in files_below(new)},
        }
        write_sealed(new / "position.json", position, indent=1)
        shutil.rmtree(old, ignore_errors=True)
        if state.exists():
            state.rename(old)
        new.rename(state)
        shutil.rmtree(old, ignore_errors=True)
        for folder in (self.path / KEPT).glob("*"):
            if folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)
        self._saved = time.monotonic()

    def kept(self, name: str) -> Path:
        """A folder for what may be published in the end. The state names which: a kill leaves both of one commit, or neither."""
        folder = self.path / KEPT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        return folder

    def publish_kept(self, name: str, target: str) -> None:
        """Copy a kept folder to where the result has it. It stays, too: until the stage is finished, the state relies on it."""
        if self._follows:  # a resumed follower has not kept anything
            return
        shutil.rmtree(self.path / target, ignore_errors=True)
        shutil.copytree(self.path / KEPT / name, self.path / target)

    def resume(self) -> tuple[int, Path] | None:
        """(finished steps, state folder) of the last commit_state, or None. Files and lines written after it are deleted."""
        if self._follows:
            distributed.wait()  # until the leader has cut its lines
            leaders = self._follows / STATES[0]
            if not leaders.is_dir():
                return None
            for path in self._follows.glob("*.jsonl"):
                shutil.copyfile(path, self.path / path.name)
            return self._restore(read_record(leaders / "position.json", POSITION), leaders)
        state = self.state()
        if state is None:
            distributed.wait()
            return None
        position = read_record(state / "position.json", POSITION)
        self._records.check(self.path, position["files"])
        self._records.check(state, position["state"])
        for path in files_below(self.path, (*STATES, KEPT)):
            known = position["files"].get(path.relative_to(self.path).as_posix())
            if known is None:  # also half a manifest: what is not deleted is published
                path.unlink()
            elif path.suffix == ".jsonl":
                os.truncate(path, known["bytes"])
        distributed.wait()  # the others read these files now
        return self._restore(position, state)

    def _restore(self, position: Mapping[str, Any], state: Path) -> tuple[int, Path]:
        self.summary, self.counters = position["summary"], position["counters"]
        self._seconds_before, self._started = position["seconds"], time.monotonic()
        return int(position["step"]), state

    def state(self) -> Path | None:
        """The state folder to resume from, under its proper name also if the kill came in the middle of a swap."""
        for name in STATES:
            if (self.path / name / "position.json").is_file():
                if name != "state":
                    shutil.rmtree(self.path / "state", ignore_errors=True)
                    (self.path / name).rename(self.path / "state")
                return self.path / "state"
        return None

    def write_manifest(self, origin: Mapping[str, Any]) -> None:
        """The last file of a stage: hashes of all files in the folder, and where they come from. origin: settings and inputs."""
        outputs = {}
        for path in files_below(self.path, TEMPORARY):
            sync(path)
            outputs[path.relative_to(self.path).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        # of settings, inputs and outputs; without metrics.jsonl, whose timings differ between equal runs
        hashes = {known: output["sha256"] for name, output in outputs.items() if (known := self.identity_name(name))}
        manifest = {
            "schema": SCHEMA,
            **origin,
            "outputs": outputs,
            "identity": hashlib.sha256(json.dumps([origin, hashes], sort_keys=True).encode()).hexdigest(),
            "metrics": plain(self.summary),
            "counters": plain(self.counters),
            **plain(self.extra),
            "seconds": round(self.seconds, 3),
            "code": code_version(),
            "versions": package_versions(),
            **memory_use(),
        }
        write_sealed(self.path / "manifest.json", manifest, indent=1, ensure_ascii=False)


def code_version() -> dict[str, Any]:
    """Git revision of the package's folder and whether files differ from it; None where it is not a git checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        revision, changes = (
            subprocess.check_output([*git, *words], stderr=subprocess.DEVNULL, text=True, timeout=20).strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "changed": None}
    return {"revision": revision, "changed": bool(changes)}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result, and of Python."""
    versions = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _gpu() -> Any:
    """torch.cuda where this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def start_memory_count() -> None:
    """Count the peak memory from here on: of the GPU, and of the process where Linux allows it."""
    if gpu := _gpu():
        gpu.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark of resident memory starts anew


def memory_use() -> dict[str, Any]:
    """Name of the GPU in use and the peak of memory allocated on it (GiB) since start_memory_count, None without one; and the
    peak of the process's resident memory (GiB), None where that cannot be read."""
    gpu, resident = _gpu(), None
    peak = gpu and round(gpu.max_memory_allocated() / 2**30, 3)
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        resident = round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20, 3)
    return {"gpu": gpu and gpu.get_device_name(), "peak_gib": peak, "peak_rss_gib": resident}
