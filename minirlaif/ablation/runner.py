"""The verb `ablate`: makes what is missing of the main runs and the arms, then writes the report. No torch.

DIR/seed0/                     the main run of a seed: made when it is missing, checked when it is finished
runs/NAME/seed0/ARM/           a run folder; stages that it shares with the main run are links to that
    arm.json                   settings and shared stages, so that only the same arm is resumed
    log.txt                    output of its child process
runs/NAME/ablation.html, .json, .md
"""

import argparse
import ctypes
import difflib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from itertools import product, repeat
from pathlib import Path
from typing import Any

from minirlaif import config
from minirlaif.ablation import earlier_seeds, report
from minirlaif.ablation.arms import MAIN, Arm, arms, groups
from minirlaif.algorithms.reward_file import ENDING
from minirlaif.errors import UserError
from minirlaif.runs.io import read_json, sha256, write_atomic
from minirlaif.runs.plan import with_rounds
from minirlaif.runs.progress import clock, progress
from minirlaif.runs.run import Run
from minirlaif.stages.registry import until

POLL_SECONDS = 0.2
VERSION = 2  # one more when the same settings make another model: a change of arms, or of how a checkpoint is chosen
MAIN_WEIGHT, CHECK_WEIGHT = 1000, 15  # about how many seconds a main run takes, and the check of a finished one


@dataclass(frozen=True)
class Job:
    """The work of one child process.

    needs: names of jobs that must be done before. command: called when the job starts; the command line, or None when there is
    nothing to do. log: file for its output. weight: about how many seconds it takes.
    """

    name: str
    command: Callable[[], Sequence[str] | None]
    log: Path
    needs: tuple[str, ...] = ()
    weight: int = 60


@dataclass(frozen=True)
class ArmRun:
    """An arm of one seed: its settings as YAML, its run folder, and the run whose stages it shares."""

    seed: int
    arm: Arm
    settings: str
    run: Run
    source: Run

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"seed {self.seed}, {self.arm.name}"


def run(options: argparse.Namespace) -> int:
    """1. settings 2. main runs, then arms, in child processes 3. the report. UserError when something could not be made."""
    started = time.monotonic()
    # 1. settings
    if not options.run or Path(options.run).name != options.run or options.run == "..":
        raise UserError(f"--run {options.run!r}: must be a plain name; name its parent folder with --runs-dir")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    seeds, root = _seeds(options.seeds), options.runs_dir / options.run
    cfg = config.load(options.config, options.set)
    if not cfg.data.world:
        raise UserError(f'{options.config}: data.world is empty; ablate runs only on the tiny world; set data.world to "tiny"')
    if cfg.optimize.rounds > 1:
        raise UserError(
            f"{options.config}: optimize.rounds is {cfg.optimize.rounds}; ablate compares runs of one round: set it to 1"
        )
    sections = {name: section for name, section in vars(cfg).items() if is_dataclass(section)}
    digest = settings_hash(sections, cfg.model, (cfg.feedback.describer, cfg.feedback.judge), cfg.optimize.reward)
    earlier = earlier_seeds.read(options.add, digest, seeds)
    stages = until("evaluate", config.stages_of(cfg))
    chosen = _chosen(arms(cfg.world, cfg.video, cfg.feedback, cfg.rollout, cfg.ppo, stages), options.arms)
    mains = {seed: Run((options.main_runs or options.runs_dir) / f"seed{seed}") for seed in seeds}
    arm_runs = []
    for seed, arm in product(seeds, chosen):
        settings = config.dump(config.load(options.config, [*options.set, f"seed={seed}", *arm.changed]))
        folder = root / f"seed{seed}"
        source = mains[seed] if arm.source == MAIN else Run(folder / arm.source)
        arm_runs.append(ArmRun(seed, arm, settings, Run(folder / arm.name), source))
    if options.redo:
        for each in arm_runs:
            shutil.rmtree(each.run.root, ignore_errors=True)  # links go, what they point to stays
    # 2. main runs and arms
    failed: dict[str, str] = {}
    of_main = with_rounds(stages, cfg.optimize.rounds)
    jobs = [_main_job(options, root, seed, mains[seed], of_main) for seed in seeds] + [_arm_job(each) for each in arm_runs]
    for _ in progress(_ticks(jobs, options.jobs, failed), sum(job.weight for job in jobs), "ablate, seconds of work"):
        pass
    # 3. the report
    runs = {seed: {MAIN: mains[seed]} for seed in seeds if f"seed {seed}, {MAIN}" not in failed}
    failures: dict[int, dict[str, str]] = {}
    for each in arm_runs:
        if each.name in failed:
            failures.setdefault(each.seed, {})[each.arm.name] = failed[each.name]
        else:
            runs[each.seed][each.arm.name] = each.run
    if all(seed in runs for seed in seeds):
        questions = groups(cfg.feedback.margin, cfg.rollout.kl_coef, stages)
        report.write(root, questions, cfg.evaluate.bootstrap, runs, chosen, failures, earlier, digest)
        print(f"ablate: {clock(time.monotonic() - started)}; report: {root / 'ablation.html'}", flush=True)
    if failed:
        name, why = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"{name}{more}: {why}")
    return 0


def settings_hash(sections: Mapping[str, Any], model: config.ModelSection, roles: Sequence[str], reward: str) -> str:
    """What the figures of a seed depend on beside the seed: all sections by name, the base's files, who describes and judges
    (roles), a file that scores answers (reward), and VERSION."""
    from minirlaif.models.loading import base_hash  # with torch

    recorded = {name: config.recorded(section) for name, section in sections.items()}
    known: dict[str, Any] = {name: values for name, values in recorded.items() if values}  # younger sections leave no trace
    known["roles"] = [*roles]  # manifests have who they are, sections do not
    known |= {"base": base_hash(model), "version": VERSION}
    if reward.endswith(ENDING):
        known["reward"] = sha256(Path(reward))
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds {text}: write whole numbers with commas between them, such as 0,1,2") from None
    if min(seeds) < 0:
        raise UserError(f"--seeds {text}: a seed must not be negative")
    return seeds


def _chosen(known: Sequence[Arm], text: str) -> list[Arm]:
    """The arms to make, with those whose stages they share. The name main stands for no arm: main runs alone."""
    names = {arm.name: arm for arm in known}
    wanted = set(filter(None, text.split(","))) - {MAIN}
    for name in sorted(wanted - names.keys()):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(f"--arms {name}: no such arm (did you mean {near}?); all: {', '.join([MAIN, *names])}")
    wanted |= {names[name].source for name in wanted} - {MAIN}
    return [arm for arm in known if not text or arm.name in wanted]


def _main_job(options: argparse.Namespace, root: Path, seed: int, main: Run, stages: Sequence[str]) -> Job:
    """The `run` command itself: of finished stages it only checks settings and inputs."""
    words = ["run", *stages, "--config", options.config, "--run", main.root.name, "--runs-dir", str(main.root.parent)]
    words = [sys.executable, "-m", "minirlaif", *words, "--set", *options.set, f"seed={seed}"]
    weight = CHECK_WEIGHT if all(main.manifest(stage) for stage in stages) else MAIN_WEIGHT
    return Job(f"seed {seed}, {MAIN}", lambda: words, root / f"seed{seed}" / "main.txt", (), weight)


def _arm_job(arm_run: ArmRun) -> Job:
    def command() -> list[str] | None:
        """UserError when the folder was made with other settings, or from another source."""
        if _finished(arm_run):
            return None
        path, made = arm_run.run.root / "arm.json", _made_with(arm_run)
        if path.is_file() and read_json(path) != made:
            raise UserError(
                f"{arm_run.run.root}: made with other settings, or from another {arm_run.arm.source} run; to make it again,"
                f" repeat the command with --arms {arm_run.arm.name} --redo"
            )
        arm_run.run.take_over(arm_run.source, arm_run.arm.shares)
        write_atomic(arm_run.run.root / "config.yaml", made["config"])
        write_atomic(path, json.dumps(made, indent=1))
        return [sys.executable, "-m", "minirlaif.ablation.run_arm", str(arm_run.run.root)]

    weight = 0 if _finished(arm_run) else arm_run.arm.weight
    return Job(arm_run.name, command, arm_run.run.root / "log.txt", (f"seed {arm_run.seed}, {arm_run.arm.source}",), weight)


def _ticks(jobs: Sequence[Job], at_once: int, failed: dict[str, str]) -> Iterator[None]:
    """An item for each second's worth of work."""
    given = 0
    for done in run_jobs(jobs, at_once, failed):
        yield from repeat(None, int(done) - given)
        given = max(given, int(done))


def _made_with(arm_run: ArmRun) -> dict[str, Any]:
    """The content of arm.json: settings, stages of its own, and identities of shared stages (None: not finished yet)."""
    shared = {stage: (arm_run.source.manifest(stage) or {"identity": None})["identity"] for stage in arm_run.arm.shares}
    return {"config": arm_run.settings, "shares": shared, "makes": list(arm_run.arm.makes), "exam": arm_run.arm.answered_by}


def _finished(arm_run: ArmRun) -> bool:
    """Whether all stages of an arm are there, made with these settings from the main run as it is now."""
    path = arm_run.run.root / "arm.json"
    if not path.is_file() or read_json(path) != _made_with(arm_run):
        return False
    return all(arm_run.run.manifest(stage) is not None and not arm_run.run.outdated(stage) for stage in arm_run.arm.makes)


def run_jobs(jobs: Sequence[Job], at_once: int, failed: dict[str, str]) -> Iterator[float]:
    """Run jobs, at most `at_once` at a time. Yields, several times a second, how much of their weight is done.

    A job that fails is put into `failed` with the last line of its log; jobs that need it are not started and put there too. When
    the caller stops early, running children are stopped; the same command resumes them from their last saved step.
    """
    waiting = list(jobs)
    ended: dict[str, int] = {}  # weights of jobs that are done or failed
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            for job in list(waiting):
                missing = next((name for name in job.needs if name in failed), None)
                if missing is None and (len(running) >= at_once or not ended.keys() >= set(job.needs)):
                    continue
                waiting.remove(job)
                if missing is not None:
                    failed[job.name] = f"needs {missing}"
                elif child := _started(job, failed):
                    running[job] = child, time.monotonic()
                    continue
                ended[job.name] = job.weight
            for job, (child, since) in list(running.items()):
                if child.poll() is not None:
                    del running[job]
                    ended[job.name] = job.weight
                    if child.returncode:
                        lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
                        last = next(filter(str.strip, reversed(lines)), "").removeprefix("minirlaif: ")
                        failed[job.name] = last or f"ended with {child.returncode}"
                    took = clock(time.monotonic() - since)
                    print(f"{job.name}: {'failed' if job.name in failed else 'done'} after {took}", flush=True)
            # A job that runs counts for the time it took so far, but never as done.
            elapsed = (min(0.9 * job.weight, time.monotonic() - since) for job, (_, since) in running.items())
            yield sum(ended.values()) + sum(elapsed)
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for child, _ in running.values():
            child.terminate()
        for child, _ in running.values():
            child.wait()


def _started(job: Job, failed: dict[str, str]) -> subprocess.Popen[bytes] | None:
    try:
        words = job.command()
    except UserError as error:
        failed[job.name] = str(error)
        return None
    if words is None:
        return None
    job.log.parent.mkdir(parents=True, exist_ok=True)
    one = {"OMP_NUM_THREADS": "1"}  # a small model is faster on one thread, and there are other children
    with job.log.open("ab") as log:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**one, **os.environ}, preexec_fn=_end_with_parent
        )


def _end_with_parent() -> None:
    """In the child: stop when the parent is gone, also when it was killed. Linux only; elsewhere the child runs to its end."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
