"""How long a run will take on this machine: seconds for each unit of work of every stage, measured by `small_run`, times the
units that the settings and the data ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minirlaif.errors import counted
from minirlaif.memory.tables import aligned
from minirlaif.runs.hash_cache import cache_folder
from minirlaif.runs.io import read_text, write_atomic
from minirlaif.runs.progress import clock


@dataclass(frozen=True)
class Work:
    """So many units of work, and the seconds that each takes."""

    count: int
    unit: str
    each: float


@dataclass(frozen=True)
class StageTime:
    """fixed: seconds whatever the amount of data, such as loading the model; works: the main part first; why: it was not
    measured."""

    stage: str
    fixed: float = 0.0
    works: tuple[Work, ...] = ()
    why: str = ""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.fixed + sum(work.count * work.each for work in self.works)


@dataclass(frozen=True)
class Hours:
    """The estimate of a run. cache_gib: of its feature cache; host_gib: most resident memory of the small run (None: unknown);
    pairs: to be decided, and held out of them; small_run: seconds that the measurement took."""

    stages: tuple[StageTime, ...]
    device: str
    date: str
    cache_gib: float
    host_gib: float | None
    pairs: tuple[int, int] | None
    small_run: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)


def lines(hours: Hours) -> list[str]:
    """The table for people, and the sentences below it."""
    rows = [["stage", "work", "s each", "time"]]
    for stage in hours.stages:
        if not stage.works and not stage.why and stage.seconds < 1:
            continue
        main = stage.works[0] if stage.works else None
        work = counted(main.count, main.unit) if main else ""
        rows.append([stage.stage, work, f"{main.each:.3g}" if main else "", clock(stage.seconds) if stage.seconds else "-"])
    left_out = [f"{stage.stage}: {stage.why}" for stage in hours.stages if stage.why]
    size = f"feature cache: about {hours.cache_gib:.1f} GiB on disk"
    if hours.host_gib:
        size += f"; host memory: {hours.host_gib:.1f} GiB at the peak of the measurement"
    result = [aligned(rows), total(hours), size]
    if hours.pairs:
        result.append(f"pairs: about {hours.pairs[0]:,} decided, {hours.pairs[1]:,} of them held out")
    return [*result, *left_out]


def total(hours: Hours) -> str:
    """One line: the whole time, and where it comes from."""
    open_ends = [stage.stage for stage in hours.stages if stage.why]
    least = "at least" if open_ends else "about"
    measured = f"measured on {hours.device}, {hours.date}, by a small run of {clock(hours.small_run)}"
    return f"time: {least} {clock(hours.seconds)} ({measured})"


def _file(settings: str) -> Path:
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return cache_folder() / "hours" / f"{key}.json"


def keep(settings: str, hours: Hours) -> None:
    """Remember the estimate for the command that runs these settings (as YAML); where nothing can be written, it is not."""
    with suppress(OSError):
        _file(settings).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(settings), json.dumps(asdict(hours)))


def known(settings: str) -> Hours | None:
    """The estimate that was kept for these settings, or None."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        values: dict[str, Any] = json.loads(read_text(_file(settings)))
        stages = [
            StageTime(each["stage"], each["fixed"], tuple(Work(**work) for work in each["works"]), each["why"])
            for each in values["stages"]
        ]
        pairs = (values["pairs"][0], values["pairs"][1]) if values["pairs"] else None
        return Hours(**(values | {"stages": tuple(stages), "pairs": pairs}))
    return None


def seconds_left(hours: Hours | None, stages: Sequence[str]) -> float:
    """Of these stages, those of further rounds under the names of the first; 0: not known."""
    each: Mapping[str, float] = {stage.stage: stage.seconds for stage in hours.stages} if hours else {}
    return sum(each.get(name.rpartition("/")[2], 0.0) for name in stages)
