"""The commands that make the stages of a run, as messages print them. No torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from minirlaif.runs.io import without_folders
from minirlaif.runs.plan import StagePlan


class Commands(StagePlan):
    """The commands of one run. given: the settings that the command in progress was started with, as flags."""

    given: tuple[str, ...] = ()

    def dir(self, stage: str) -> Path:
        """Where a finished stage lies (it need not exist)."""
        return self.root / stage

    def partial(self, stage: str) -> Path:
        """Where a stage in progress lies (it need not exist)."""
        return self.root / f"{stage}.partial"

    def command(self, stage: str) -> str:
        """What a user types to make a stage."""
        return self._typed([*(["run"] if "/" in stage else []), stage], self._last())

    def remake(self, stage: str, *settings: str, report: bool = False) -> str:
        """What a user types to make a stage again, and whatever was made of it; with settings (section.field=value) changed.
        report: the report is being written, and counts as made."""
        order = self.order()
        start = order.index(stage) + 1 if stage in order[1:] else len(order)
        later = [  # those that were made or begun; the report is a file at the root
            name
            for name in order[start:]
            if any(path.exists() for path in (self.dir(name), self.partial(name), self.root / f"{name}.html"))
            or (report and name == "report")
        ]
        given = [*(self.given or self._last())]
        if settings:
            given += [*([] if "--set" in given else ["--set"]), *settings]
        return self._typed([*(["run"] if later or "/" in stage else []), stage, *later], given) + " --redo"

    def app(self) -> str:
        """What a user types to open the app over the run."""
        return self._line(["python", "app.py"])

    def _last(self) -> tuple[str, str]:
        return "--config", str(path) if (path := self.root / "config.yaml").is_file() else "…"

    def _typed(self, verbs: Sequence[str], settings: Sequence[str]) -> str:
        return self._line(["python", "-m", "minirlaif", *verbs, *settings])

    def _line(self, words: Sequence[str]) -> str:
        folder = [] if self.root.parent == Path("runs") else ["--runs-dir", str(self.root.parent)]
        words = [*words, "--run", self.root.name, *folder]
        return " ".join(word if word.endswith("…") else shlex.quote(word) for word in words)


def without_paths(command: str) -> str:
    """A command as it may be published: of absolute paths only the names."""
    return " ".join(word if word == "…" else shlex.quote(without_folders(word)) for word in shlex.split(command))
