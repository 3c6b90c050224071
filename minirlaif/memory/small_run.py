"""Seconds per unit of work: all stages of a config, made once with little data in a temporary folder, and timed.

The stages are the real ones with the real model, data and settings; only rows, clips, iterations and looks at the dev prompts are
few. What is measured is scaled by `hours` with the amounts of the whole run.
"""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from minirlaif.config import Config, DataSection, WorldSection, stages_of
from minirlaif.data.preflight import read_preferences, read_samples
from minirlaif.errors import UserError
from minirlaif.memory.hours import Hours, StageTime, Work
from minirlaif.memory.planner import Planned
from minirlaif.runs.progress import LoopTimes, loop_times, print_line
from minirlaif.runs.run import Run
from minirlaif.stages import export
from minirlaif.stages.feedback import control_every
from minirlaif.stages.questions import clip_rows
from minirlaif.stages.registry import METHODS, REPEATED, SAMPLING, STAGES

CHUNKS = 2  # of prompts that `feedback` works on: the first one warms up
STEPS = 3  # optimiser steps of SFT per stage and epoch
ITERATIONS = 2  # of a method that samples; the first one warms up
DEV_CLIPS, TEST_CLIPS = 20, 40  # of the tiny world
FEWEST_CLIPS = 10  # without questions: some are kept for dev and test
NEVER = 10**6  # steps
ANSWERED = 20  # questions to each exported file
EXPORTED = 1e8  # weights: the export of a larger base takes many minutes itself, so it is not tried
PARTS = ("sft", "prompts", "dev", "test")


@dataclass(frozen=True)
class Amounts:
    """Rows by part of the data ("clips": those that `questions` or `world` works on) of the small run and of the whole one."""

    small: Mapping[str, float]
    full: Mapping[str, float]

    def scale(self, part: str) -> float:
        """How many times as many the whole run has."""
        return self.full[part] / self.small[part] if self.small.get(part) else 0.0


@dataclass
class _Made:
    """A stage of the small run. seconds: all of it; metrics: of its manifest; why: it was not made."""

    seconds: float = 0.0
    loops: LoopTimes = field(default_factory=LoopTimes)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def measure(plan: Planned, exported: export.ExportOptions) -> Hours:
    """Make the small run and scale it. exported: what the export at the end of the run is to write.

    Raises:
        UserError: what the run itself would refuse, or a judge that costs money.
    """
    feedback = plan.settings.feedback
    if any(role.endswith((".yaml", ".yml")) for role in (feedback.judge, feedback.describer)):
        raise UserError(
            "plan --hours: a judge or describer of a YAML file may cost money, so none is asked; name `start` to measure"
        )
    with tempfile.TemporaryDirectory() as folder:
        return SmallRun(plan, Run(Path(folder) / "small")).measure(exported)


@dataclass
class SmallRun:
    """The small run of a plan's settings. run: in an empty folder."""

    plan: Planned
    run: Run

    def __post_init__(self) -> None:
        cfg = self.plan.settings
        self.stages = [name for name in stages_of(cfg) if name != "world" or cfg.data.world]
        self.run.stages, self.run.rounds = tuple(self.stages), 1
        self.times: dict[str, _Made] = {}

    def measure(self, exported: export.ExportOptions) -> Hours:
        """See `measure`."""
        cfg, started = self.plan.settings, time.monotonic()
        self.make()
        stages = [StageTime(name, why=made.why) if made.why else self.stage_time(name, made) for name, made in self.times.items()]
        if cfg.export.enabled:
            stages.append(self.export_time(exported))
        manifests = [made for name in self.stages if (made := self.run.manifest(name))]
        cache = self.run.root / "cache" / "features.sqlite"
        size = cache.stat().st_size if cache.is_file() else 0
        return Hours(
            tuple(stages),
            torch.cuda.get_device_name() if self.plan.gpu else "cpu",
            time.strftime("%Y-%m-%d"),
            min(cfg.video.cache_gib, size * max(map(self.amounts.scale, PARTS)) / 2**30),
            max((made["peak_rss_gib"] for made in manifests if made.get("peak_rss_gib")), default=None),
            self.pairs(),
            time.monotonic() - started,
        )

    @cached_property
    def small(self) -> Config:
        """The settings of the small run."""
        cfg = self.plan.settings
        f, w, s = cfg.feedback, cfg.world, cfg.sft
        limit = min(f.limit or NEVER, CHUNKS * f.batch_size)
        share = min(1.0, STEPS * s.batch_size / max(1, w.sft_clips + w.sft_short_clips))
        world = replace(
            w,
            sft_clips=math.ceil(share * w.sft_clips),
            sft_short_clips=math.ceil(share * w.sft_short_clips),
            prompt_clips=min(w.prompt_clips, math.ceil(limit / w.questions_per_clip)),
            dev_clips=min(w.dev_clips, DEV_CLIPS),
            test_clips=min(w.test_clips, TEST_CLIPS),
        )
        # Clips without questions: about each of them several are written, and feedback.limit ends them.
        rows = max(FEWEST_CLIPS, f.batch_size) if cfg.data.writes_questions else max(limit, STEPS * s.batch_size)
        few: dict[str, Any] = {"dev_every": NEVER, "patience": 0}
        return replace(
            cfg,
            report_to="none",
            world=world,
            data=replace(cfg.data, max_rows=min(rows, cfg.data.max_rows or rows)),
            feedback=replace(f, limit=limit),
            reward=replace(cfg.reward, min_accuracy=0.0),
            optimize=replace(cfg.optimize, rounds=1),
            distill=replace(cfg.distill, **few),
            dpo=replace(cfg.dpo, **few),
            ppo=replace(cfg.ppo, **few, iterations=min(ITERATIONS, cfg.ppo.iterations)),
            group=replace(cfg.group, **few, iterations=min(ITERATIONS, cfg.group.iterations)),
        )

    def make(self) -> None:
        """Make the stages. After one that fails the others are not made; UserError when it is one of the first, which need none
        of the model's answers."""
        failed, started = "", time.monotonic()
        for name in self.stages:
            if failed:
                self.times[name] = _Made(why=f"not measured, because {failed} failed")
                continue
            print_line(f"plan: timing {name}, {time.monotonic() - started:.0f} s spent")
            start = time.monotonic()
            try:
                with loop_times() as loops, contextlib.redirect_stdout(io.StringIO()):
                    STAGES[name].load()(self.small, self.run)
            except UserError as error:
                if name in ("world", "sft", "questions") or not self.times:
                    raise
                self.times[name], failed = _Made(why=f"not measured: {error}"), name
                continue
            manifest = self.run.manifest(name)
            self.times[name] = _Made(time.monotonic() - start, loops, manifest["metrics"] if manifest else {})

    @cached_property
    def amounts(self) -> Amounts:
        """Of the rows that were read, or that the world makes."""
        cfg, few = self.plan.settings, self.small
        if cfg.data.world:
            rows, full = _world_rows(few.world), _world_rows(cfg.world)
        else:
            rows, full = (_file_rows(each.data, each.sft.enabled, each.video.max_unreadable, self.run) for each in (few, cfg))
        if cfg.data.writes_questions:
            written, scale = self.run.metrics("questions"), full["clips"] / max(1, rows["clips"])
            shares = {"dev": 0.0 if cfg.data.dev else cfg.questions.dev_share}
            shares["test"] = 0.0 if cfg.data.test else cfg.questions.test_share
            shares["prompts"] = 1.0 - sum(shares.values())
            for part in (part for part, share in shares.items() if share):
                rows[part] = written[f"{part}_questions"]
                full[part] = round(shares[part] * written["questions"] * scale)
        rows["prompts"] = min(rows["prompts"], few.feedback.limit)
        full["prompts"] = min(full["prompts"], cfg.feedback.limit or math.inf)
        return Amounts(rows, full)

    def stage_time(self, name: str, made: _Made) -> StageTime:
        """Scale one stage. Its loop has the label of its name; the rest of its time is fixed."""
        items, apart, amounts = made.loops.items.get(name, []), made.loops.apart, self.amounts
        fixed = made.seconds - sum(map(sum, made.loops.items.values())) - sum(map(sum, apart.values()))
        units = {
            "world": ("clips", "clip"),
            "sft": ("sft", "row"),
            "questions": ("clips", "clip"),
            "evaluate": ("test", "question"),
        }
        works: list[Work] = []
        if name in units:
            part, unit = units[name]
            works = [Work(round(amounts.full[part]), unit, sum(items) / max(1.0, amounts.small[part]))]
        elif name == "feedback":
            works = self.labelled(items, apart)
        elif name in METHODS or name == "reward":
            works = self.learned(name, made.metrics, items, apart)
        rounds = self.plan.settings.optimize.rounds if name in REPEATED else 1
        return StageTime(name, fixed * rounds, tuple(replace(work, count=work.count * rounds) for work in works))

    def labelled(self, items: Sequence[float], apart: Mapping[str, Sequence[float]]) -> list[Work]:
        """The work of `feedback`: chunks of prompts, some judged without descriptions too, then the dev clips."""
        size, few, full = self.plan.settings.feedback.batch_size, self.amounts.small, self.amounts.full
        chunks = list(items[:-1]) if few["dev"] else list(items)
        rows = [min(size, few["prompts"] - size * number) for number in range(len(chunks))]
        warm = 1 if len(chunks) > 1 and rows[-1] == size else 0
        works = [Work(round(full["prompts"]), "prompt", sum(chunks[warm:]) / max(1.0, sum(rows[warm:])))]
        if few["dev"]:
            works.append(Work(round(full["dev"]), "dev question", items[-1] / few["dev"]))
        if control := apart.get("control"):
            every = control_every(self.plan.settings.feedback, works[0].count)
            count = math.ceil(math.ceil(works[0].count / size) / every)
            works.append(Work(count, "chunk judged without descriptions", sum(control) / len(control)))
        return works

    def learned(
        self, name: str, metrics: Mapping[str, Any], items: Sequence[float], apart: Mapping[str, Sequence[float]]
    ) -> list[Work]:
        """The work of the reward model or of a method: steps, and looks at the dev prompts."""
        cfg = self.plan.settings
        section: Any = getattr(cfg, "distill" if name == "bestofn" else name, cfg.group)
        if name in SAMPLING:
            steps = section.iterations
            works = [Work(steps, "iteration", fmean(items[1:] or items or [0.0]))]
        else:
            more = read_preferences(cfg.data, self.run, cfg.video.max_unreadable) if name in ("reward", "dpo") else []
            few = metrics.get("answers") or metrics.get("pairs") or self.run.metrics("feedback").get("decided") or 1
            count = round(few * self.amounts.scale("prompts")) + len(more)
            steps = max(1, round(section.epochs * count / min(section.batch_size, max(1, count))))
            works = [Work(count, "answer" if metrics.get("answers") else "pair", sum(items) / few)]
        if checks := apart.get("dev"):
            each = sum(checks) / len(checks) * self.amounts.scale("dev")
            works.append(Work(1 + math.ceil(steps / section.dev_every), "look at the dev prompts", each))
        return works

    def export_time(self, options: export.ExportOptions) -> StageTime:
        """The export at the end of the run."""
        n = self.plan.policy.numbers
        if n.linear_weights + n.plain_weights + n.head_weights + n.vision_weights > EXPORTED:
            return StageTime("export", why="not measured for a base of this size, it comes on top")
        started = time.monotonic()
        try:
            with loop_times() as loops, contextlib.redirect_stdout(io.StringIO()):
                export.run(self.small, self.run, replace(options, questions=ANSWERED))
        except UserError as error:
            return StageTime("export", why=f"not measured: {error}")
        answers = [seconds for label, items in loops.items.items() if label.startswith("answer") for seconds in items]
        questions = min(options.questions, round(self.amounts.full["test"]))
        work = Work(questions, "question", sum(answers) / max(1.0, min(ANSWERED, self.amounts.small["test"])))
        return StageTime("export", time.monotonic() - started - sum(answers), (work,))

    def pairs(self) -> tuple[int, int] | None:
        """How many the judge is expected to decide, and how many of them are held out; None: not known."""
        decided = self.times["feedback"].metrics.get("decided") if "feedback" in self.times else None
        if decided is None:
            return None
        pairs = round(decided * self.amounts.scale("prompts"))
        return pairs, round(self.plan.settings.reward.held_out * pairs) if "reward" in self.stages else 0


def _world_rows(world: WorldSection) -> dict[str, float]:
    q, sft = world.questions_per_clip, world.sft_clips + world.sft_short_clips
    clips = sft + world.prompt_clips + world.dev_clips + world.test_clips
    return {
        "prompts": world.prompt_clips * q,
        "dev": world.dev_clips * q,
        "test": world.test_clips * q,
        "sft": sft,
        "clips": clips,
    }


def _file_rows(data: DataSection, sft: bool, max_missing: float, run: Run) -> dict[str, float]:
    rows = dict.fromkeys(PARTS, 0.0)
    for part in PARTS:
        if getattr(data, part) and (part != "sft" or sft):
            rows[part] = len(read_samples(data, run, part, part == "sft", max_missing))
    return rows | ({"clips": len(clip_rows(data))} if data.writes_questions else {})
