"""Run folders: one folder per stage, a manifest written last, hashes, and a state from which a killed stage resumes. No torch.

    runs/<name>/<stage>.partial/   a stage in progress or dead
        begun.json                 its settings and inputs, so that only the same call resumes
        state/                     what the last commit_state wrote, with position.json
    runs/<name>/<stage>/           finished: manifest.json is there, everything it lists is unchanged
    runs/<name>/<stage>.old/       what --redo replaces; deleted when the new one is finished

Paths inside manifests are relative, so a run folder can be moved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from minirlaif import distributed
from minirlaif.errors import StageStopped, UserError
from minirlaif.runs import clips, gains
from minirlaif.runs.commands import Commands
from minirlaif.runs.io import (
    disk_is_full,
    empty,
    locked,
    plain,
    private_folder,
    real_path,
    refuse_dead_links,
    refuse_links,
    sha256,
)
from minirlaif.runs.records import SETTINGS, checked_metrics, checked_rows, differences, read_manifest, read_record, write_sealed
from minirlaif.runs.stage_dir import SCHEMA, TEMPORARY, StageDir, start_memory_count

T = TypeVar("T")


class Run(Commands):
    """The folder of one run. given: the settings that the command in progress was started with, as flags, for messages."""

    def __init__(self, root: Path | str, given: Sequence[str] = ()) -> None:
        self.root = Path(root)
        self.accepted: Callable[[str], None] = lambda stage: None  # called once a stage has taken its settings
        self.checked = False  # whether this command has looked at all rows and clips that are still to be read
        self.given = tuple(given)

    @property
    def full_run(self) -> Run:
        """The run itself; of one of its further rounds (rounds.py) the run that it belongs to."""
        return self

    @property
    def folder(self) -> Path:
        """Where its stages lie: its own folder, of a further round that of the round."""
        return self.dir("feedback").parent

    def name(self, stage: str) -> str:
        """The name of a stage in the whole run: in a round, those that each round has are its own."""
        return gains.name_of(*gains.split_name(stage))

    def dir(self, stage: str) -> Path:
        """Where a finished stage lies (it need not exist)."""
        return super().dir(self.name(stage))

    def partial(self, stage: str) -> Path:
        """Where a stage in progress lies (it need not exist)."""
        return super().partial(self.name(stage))

    def stored(self, video: str) -> str:
        """See `clips.stored`."""
        return clips.stored(self.root, self.folder / "stage", video)

    def located(self, name: str) -> str:
        """The absolute path behind `stored`."""
        return clips.located(self.folder / "stage", name)

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage, or None."""
        path = self.dir(stage) / "manifest.json"
        if not path.is_file():
            return None
        manifest = self._readable(stage, lambda: read_manifest(path))
        if manifest.get("schema") != SCHEMA:
            raise UserError(f"{path}: not a manifest of this version; make the stage again: `{self.remake(stage)}`")
        return manifest

    def settings(self, stage: str) -> dict[str, Any]:
        """What a stage was made or started with; empty without it. UserError as for `manifest`."""
        manifest, started = self.manifest(stage), self.partial(stage) / "begun.json"
        if manifest is None and not started.is_file():
            return {}
        record = manifest or self._readable(stage, lambda: read_record(started, SETTINGS))
        return dict(record["config"])

    def rows(self, stage: str, name: str, *needed: str) -> list[dict[str, Any]]:
        """See `records.checked_rows`; the UserError names the command that makes the stage again."""
        return self._readable(stage, lambda: checked_rows(self.dir(stage), gains.split_name(stage)[1], name, needed))

    def metrics(self, stage: str, *needed: str) -> dict[str, Any]:
        """See `records.checked_metrics`; UserError as for `rows`."""
        return self._readable(
            stage, lambda: checked_metrics(self.dir(stage) / "manifest.json", gains.split_name(stage)[1], needed)
        )

    def _readable(self, stage: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except UserError as error:
            raise self._with_command(error, stage) from None

    def require(self, stage: str) -> Path:
        """The folder of a finished stage. UserError if it is not finished, was changed, or stands on a stage made again since."""
        manifest = self.manifest(stage)
        if manifest is None:
            done = "was not finished" if self.partial(stage).exists() else "does not exist yet"
            raise UserError(f"{self.dir(stage)}: {done}; run `{self.command(stage)}` first")
        self._check_files(stage, manifest)
        older = self.outdated(stage)
        if older:
            raise UserError(f"{self.dir(stage)}: made from another {older}; make it again: `{self.remake(stage)}`")
        return self.dir(stage)

    def _check_files(self, stage: str, manifest: Mapping[str, Any]) -> None:
        for name, output in manifest["outputs"].items():
            path = self.dir(stage) / name
            if not path.is_file() or path.stat().st_size != output["bytes"] or sha256(path) != output["sha256"]:
                what = "has changed since the stage finished" if path.is_file() else "is missing"
                raise UserError(f"{path}: {what}; make the stage again: `{self.remake(stage)}`")

    def adapter(self, model: str) -> Path:
        """The adapter folder of "sft", "reward" or "rlaif", or of a method. UserError as for `require`."""
        return self.require(self.producer(model)) / "adapter"

    def start_adapter(self, method: str = "") -> Path | None:
        """The adapter that a method starts from, or (without one) that of the start model; None: the base has none."""
        start = self.start(method) if method else self.start_model
        return None if start == "base" else self.require(start) / "adapter"

    def outdated(self, stage: str) -> str:
        """The first input of a finished stage that was made again with another result, or ""."""
        manifest = self.manifest(stage) or {"inputs": {}}
        for name, identity in manifest["inputs"].items():
            current = self.full_run.manifest(name)
            if current is not None and current["identity"] != identity:
                return str(name)
        return ""

    def take_over(self, other: Run, stages: Sequence[str]) -> None:
        """Use finished stages of another run as this run's own, with its feature cache. They stay where they lie, behind links.

        A link is checked as a stage is, by its hashes, and what is made of it remembers its identity: `require` and `outdated`
        see it when the other run makes the stage again. UserError when one is not finished, or something else lies here.
        """
        private_folder(self.root)
        (other.root / "cache").mkdir(exist_ok=True)
        for name in [*stages, "cache"]:
            source, link = other.root / name if name == "cache" else other.require(name), self.root / name
            if link.is_symlink() and real_path(link) == real_path(source):
                continue
            if link.is_symlink() or link.exists():
                raise UserError(f"{link}: exists, but must become a link to {source}; delete it")
            link.symlink_to(os.path.relpath(real_path(source), real_path(self.root)))

    def set_aside(self, stage: str) -> None:
        """Forget an attempt in progress, and keep a finished stage as <stage>.old until a new one is finished."""
        partial, old = self.partial(stage), self.root / f"{self.name(stage)}.old"
        if partial.is_symlink():
            partial.unlink()
        elif partial.exists():
            with locked(partial):
                empty(partial)
                partial.rmdir()
        if self.dir(stage).is_symlink():  # the stage of another run, see take_over
            self.dir(stage).unlink()
        elif self.dir(stage).exists():
            shutil.rmtree(old, ignore_errors=True)
            self.dir(stage).rename(old)

    @contextmanager
    def stage(
        self, name: str, config: Mapping[str, Any], inputs: Sequence[str] = (), redo: bool = False
    ) -> Iterator[StageDir | None]:
        """Open a stage: yields its folder to fill, or None when it is finished with the same config and inputs.

        Leaving the block without an error hashes the outputs, writes the manifest and gives the folder its final name; after an
        error or a kill the partial folder stays and the same call resumes from its last committed state.
        UserError when the stage was made or begun with other settings or inputs, unless `redo`.
        """
        identities = {self.name(each): str(read_manifest(self.require(each) / "manifest.json")["identity"]) for each in inputs}
        origin = {"stage": self.name(name), "config": plain(config), "inputs": identities}
        partial = self.partial(name)
        if distributed.from_leader(lambda: self._settled(name, origin, redo)):
            yield None
        elif not distributed.leads():
            with tempfile.TemporaryDirectory() as scratch:
                distributed.wait()  # until the leader has opened the folder
                start_memory_count()
                yield StageDir(Path(scratch), name, config, follows=partial)
                distributed.wait()  # until it is published
        else:
            private_folder(self.root)
            partial.mkdir(parents=True, exist_ok=True)
            with locked(partial):
                try:
                    out = self._open(name, origin)
                    self.accepted(name)
                    distributed.wait()
                    start_memory_count()
                    yield out
                    out.write_manifest(origin)
                    self._publish(name)
                except Exception as error:
                    if disk_is_full(error, partial):
                        raise StageStopped(
                            f"{partial}: the disk is full; free some space and run the command again to resume"
                        ) from error
                    if isinstance(error, UserError) and error.again is not None:
                        raise self._with_command(error, name) from None
                    raise
            distributed.wait()

    def _with_command(self, error: UserError, stage: str) -> UserError:
        """The same error with the command that makes the stage again."""
        return type(error)(f"{error}: `{self.remake(stage, *(error.again or ()))}`")

    def _settled(self, name: str, origin: Mapping[str, Any], redo: bool) -> bool:
        """Whether there is nothing left to do. What an earlier attempt left half done is cleared or completed first."""
        if redo:
            self.set_aside(name)
        refuse_links(self.partial(name))
        refuse_dead_links(self.root, self.root / "cache", self.dir(name))
        full_run = self.full_run  # names of inputs are those in the whole run
        for each in origin["inputs"]:
            full_run._check_clips(each, full_run.dir(each))
        for each, made in full_run._made_before(origin["inputs"]).items():  # stages read the world's clips without it as input
            full_run._check_files(each, made)
        if (self.partial(name) / "manifest.json").is_file():  # killed between the manifest and the rename
            self._publish(name)
        manifest = self.manifest(name)
        if manifest is None:
            if self.dir(name).is_dir() and any(self.dir(name).iterdir()):
                raise UserError(f"{self.dir(name)}: its manifest.json is missing; make the stage again: `{self.remake(name)}`")
            return False
        if changes := differences(manifest, origin):
            raise UserError(
                f"{self.dir(name)}: made with other settings or inputs ({changes}); make it again: `{self.remake(name)}`"
                + (", or keep it and name another run with --run" if name in self.order() else "")
            )
        self._check_files(name, manifest)
        self._check_clips(name, self.dir(name))
        self.accepted(name)
        print(f"{self.name(name)}: finished already; to make it again: `{self.remake(name)}`", flush=True)
        return True

    def _made_before(self, inputs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Manifests of the stages that a stage's inputs were made from, those that are still here and no input themselves."""
        made: dict[str, dict[str, Any]] = {}
        names = [*inputs]
        for name in names:
            if (manifest := self.manifest(name)) is not None and name not in made:
                made[name] = manifest
                names += manifest["inputs"]
        return {name: manifest for name, manifest in made.items() if name not in inputs}

    def _open(self, name: str, origin: Mapping[str, Any]) -> StageDir:
        partial = self.partial(name)
        out = StageDir(partial, name, origin["config"])
        if out.state() is None:  # nothing was committed, so there is nothing to lose
            empty(partial)
            write_sealed(partial / "begun.json", origin, indent=1)
            return out
        changes = differences(read_record(partial / "begun.json", SETTINGS), origin)
        if changes:
            raise UserError(f"{partial}: begun with other settings or inputs ({changes}); start it again: `{self.remake(name)}`")
        self._check_clips(name, partial)
        return out

    def _check_clips(self, stage: str, folder: Path) -> None:
        try:
            if clip := clips.replaced(self.root, folder):
                raise UserError(f"{clip}: replaced since `{stage}` read it; make the stage again", again=())
        except UserError as error:
            raise self._with_command(error, stage) from None

    def _publish(self, name: str) -> None:
        partial = self.partial(name)
        for each in TEMPORARY:
            shutil.rmtree(partial / each, ignore_errors=True)
        (partial / "begun.json").unlink(missing_ok=True)
        partial.rename(self.dir(name))
        shutil.rmtree(self.root / f"{self.name(name)}.old", ignore_errors=True)
