"""The verb `ablate`: which folders there are, what is left to make in them, and the report at the end. No torch.

DIR/seed0/                     the main run of a seed: made when it is missing, looked at when it is finished
runs/NAME/seed0/ARM/           a run folder; what it shares with the main run are links into that
    arm.json                   settings and shared stages, so that only the same arm goes on
    log.txt                    what its child process said
runs/NAME/ablation.html, .json, .md
"""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from minirlaif import config
from minirlaif.ablation import report
from minirlaif.ablation.arms import MAIN, Arm, arms
from minirlaif.ablation.jobs import Job, carry_out
from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.runs.io import read_json, write_atomic
from minirlaif.runs.progress import clock, progress
from minirlaif.runs.run import Run
from minirlaif.stages.registry import until

MAIN_STAGES = until("evaluate")
MAIN_WEIGHT, LOOK_WEIGHT = 1000, 15  # about how many seconds a main run takes, and a look at a finished one


@dataclass(frozen=True)
class Place:
    """An arm of one seed: the settings it is made with, its run folder, and the main run that it stands on."""

    seed: int
    arm: Arm
    cfg: Config
    run: Run
    main: Run

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"seed {self.seed}, {self.arm.name}"


def run(options: argparse.Namespace) -> int:
    """1. settings 2. main runs, then arms, in child processes 3. the report. UserError when something could not be made."""
    began = time.monotonic()
    # 1. settings
    if not options.run or Path(options.run).name != options.run or options.run == "..":
        raise UserError(f"--run {options.run!r}: must be a plain name; the folder it lies in goes to --runs-dir")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    seeds, root = _seeds(options.seeds), options.runs_dir / options.run
    cfg = config.load(options.config, options.set)
    if not cfg.data.world:
        raise UserError(f'{options.config}: data.world is empty, and an ablation needs the truth; set data.world to "tiny"')
    chosen = _chosen(arms(cfg), options.arms)
    mains = {seed: Run((options.main_runs or options.runs_dir) / f"seed{seed}") for seed in seeds}
    places = [_place(options, root, seed, arm, mains[seed]) for seed in seeds for arm in chosen]
    if options.redo:
        for place in places:
            shutil.rmtree(place.run.root, ignore_errors=True)  # links go, what they point to stays
    # 2. main runs and arms
    failed: dict[str, str] = {}
    jobs = [_main_job(options, root, seed, mains[seed]) for seed in seeds] + [_arm_job(place) for place in places]
    for _ in progress(_ticks(jobs, options.jobs, failed), sum(job.weight for job in jobs), "ablate, seconds of work"):
        pass
    # 3. the report
    runs = {seed: {MAIN: mains[seed]} for seed in seeds if f"seed {seed}, {MAIN}" not in failed}
    for place in places:
        if place.name not in failed:
            runs[place.seed][place.arm.name] = place.run
    if all(seed in runs for seed in seeds):
        lost: dict[int, dict[str, str]] = {}
        for place in places:
            if place.name in failed:
                lost.setdefault(place.seed, {})[place.arm.name] = failed[place.name]
        report.write(root, cfg, runs, chosen, lost)
        print(f"ablate: {clock(time.monotonic() - began)}; report: {root / 'ablation.html'}", flush=True)
    if failed:
        name, why = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"{name}{more}: {why}")
    return 0


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds {text}: write whole numbers with commas between them, such as 0,1,2") from None
    if min(seeds) < 0:
        raise UserError(f"--seeds {text}: a seed must not be negative")
    return seeds


def _chosen(known: Sequence[Arm], text: str) -> list[Arm]:
    names = {arm.name: arm for arm in known}
    for name in filter(None, text.split(",")):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise UserError(f"--arms {name}: no such arm (did you mean {near}?); all: {', '.join(names)}")
    return [arm for arm in known if not text or arm.name in text.split(",")]


def _place(options: argparse.Namespace, root: Path, seed: int, arm: Arm, main: Run) -> Place:
    cfg = config.load(options.config, [*options.set, f"seed={seed}", *arm.changed])
    return Place(seed, arm, cfg, Run(root / f"seed{seed}" / arm.name), main)


def _main_job(options: argparse.Namespace, root: Path, seed: int, main: Run) -> Job:
    """The stages' own commands: finished ones only say so, after a look at their settings and inputs."""
    words = ["run", *MAIN_STAGES, "--config", options.config, "--run", main.root.name, "--runs-dir", str(main.root.parent)]
    words = [sys.executable, "-m", "minirlaif", *words, "--set", *options.set, f"seed={seed}"]
    finished = all(main.manifest(stage) is not None for stage in MAIN_STAGES)
    weight = LOOK_WEIGHT if finished else MAIN_WEIGHT
    return Job(f"seed {seed}, {MAIN}", lambda: words, root / f"seed{seed}" / "main.txt", (), weight)


def _arm_job(place: Place) -> Job:
    def command() -> list[str] | None:
        if _finished(place):
            return None
        _prepare(place)
        return [sys.executable, "-m", "minirlaif.ablation.run_arm", str(place.run.root)]

    weight = 0 if _finished(place) else place.arm.weight
    return Job(place.name, command, place.run.root / "log.txt", (f"seed {place.seed}, {MAIN}",), weight)


def _ticks(jobs: Sequence[Job], at_once: int, failed: dict[str, str]) -> Iterator[None]:
    """An item for each second's worth of work."""
    given = 0
    for done in carry_out(jobs, at_once, failed):
        yield from repeat(None, int(done) - given)
        given = max(given, int(done))


def _made_with(place: Place) -> dict[str, Any]:
    """What arm.json holds: settings, which stages are whose, and the identity of what is shared (None: not finished yet)."""
    shared = {stage: (place.main.manifest(stage) or {"identity": None})["identity"] for stage in place.arm.shares}
    return {"config": config.dump(place.cfg), "shares": shared, "makes": list(place.arm.makes), "exam": place.arm.exam}


def _finished(place: Place) -> bool:
    """Whether an arm's last stage is there, made with these settings from what the main run is now."""
    path = place.run.root / "arm.json"
    if not path.is_file() or read_json(path) != _made_with(place):
        return False
    return all(place.run.manifest(stage) is not None and not place.run.outdated(stage) for stage in place.arm.makes)


def _prepare(place: Place) -> None:
    """The folder as its child needs it. UserError when it was made with other settings, or from another main run."""
    path, made = place.run.root / "arm.json", _made_with(place)
    if path.is_file() and read_json(path) != made:
        raise UserError(
            f"{place.run.root}: made with other settings, or from another main run; to make it again, repeat the command with"
            f" --arms {place.arm.name} --redo"
        )
    place.run.take_over(place.main, place.arm.shares)
    write_atomic(place.run.root / "config.yaml", made["config"])
    write_atomic(path, json.dumps(made, indent=1))
