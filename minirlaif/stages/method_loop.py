"""The loop that all methods share: rows and roles at the start, then steps, checkpoints, the choice by the judge on dev prompts.

A method brings a step and what it saves; what it learns from is its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.config import DataSection, DistillSection, DpoSection, FeedbackSection, GroupSection, PpoSection
from minirlaif.config.seeds import seed_of
from minirlaif.data.preflight import read_dev
from minirlaif.errors import UserError
from minirlaif.feedback.counts import CUT_SHARE
from minirlaif.feedback.readout import known_readout
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.feedback.win_rate import WinRateEvaluator
from minirlaif.judges.config import REPLIES, feedback_judge, open_judge
from minirlaif.reports import adapter_card
from minirlaif.runs.progress import progress, timed_apart
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, PPOModels
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.training.optim import AdapterTrainer, Section, make_accelerator
from minirlaif.types import Sample


@dataclass(frozen=True)
class Questions:
    """What a method works on. prompts: to answer, or none where it learns from answers that exist; contexts: by clip."""

    prompts: Sequence[Sample]
    dev: Sequence[Sample]
    contexts: Mapping[str, str]

    def readable(self, session: ModelSession, run: Run, out: StageDir, stage: str) -> "Questions":
        """Those whose clips can be read and were described; the clips are recorded. UserError: prompts were given, and none is
        left."""
        described = [
            [row for row in session.readable(rows) if row.video in self.contexts] if rows else []
            for rows in (self.prompts, self.dev)
        ]
        prompts, dev = described
        session.record_clips(run, out, [*prompts, *dev])
        if self.prompts and not prompts:
            again = run.remake("feedback")
            raise UserError(f"{stage}: no prompt is left whose clip `feedback` has described; make it again: `{again}`")
        return replace(self, prompts=prompts, dev=dev)


# The judge of `feedback` while a method learns: a role of the reference's session, and the one that reads text in its place.
MethodJudge = tuple[str, TextJudge | None]
Checks = DistillSection | DpoSection | PpoSection | GroupSection  # how often a policy is judged and saved stands in them


@dataclass(frozen=True)
class Loop:
    """What a method does in the loop.

    total: steps at most; step: one step's update, by its number from 0; returns its statistics, which are checked to be finite by
    the method; save: writes what a resumed run needs; stop: why to end after a step with these statistics, for people, or "".
    """

    name: str
    total: int
    checks: Checks
    step: Callable[[int], dict[str, float]]
    save: Callable[[Path], object]
    state: MethodProgress
    accelerator: Any
    stop: Callable[[Mapping[str, float]], str] = lambda stats: ""


def read_questions(data: DataSection, run: Run, prompts: Sequence[Sample], max_missing: float) -> Questions:
    """Prompts, dev prompts, and the descriptions that `feedback` made of their clips."""
    run.require("feedback")
    rows = run.rows("feedback", "contexts.jsonl", "video", "context")
    contexts = {run.located(row["video"]): row["context"] for row in rows}
    return Questions(prompts, read_dev(data, run, max_missing), contexts)


def check_ids(session: ModelSession, run: Run, answers: Iterable[Sequence[int]]) -> None:
    """UserError for token ids in answers.jsonl that the model's vocabulary does not have, as after a change of the base."""
    size = session.backbone.vocabulary
    if any(not 0 <= token < size for ids in answers for token in ids):
        path, again = run.dir("feedback") / "answers.jsonl", run.remake("feedback")
        raise UserError(f"{path}: has token ids that this base does not know; make the stage again: `{again}`")


def add_policy(models: PPOModels, seed: int, start: Path | None, state: Path | None) -> None:
    """The roles "policy", from where it was interrupted or from the start, and "reference", a frozen copy of the start. Without a
    start both are fresh adapters, which change nothing yet: the base."""
    models.policy.adapters.add("policy", seed_of(seed, "policy") if start is None else 0, state / "policy" if state else start)
    models.reference.adapters.add("reference", 0, start)


def policy_trainer(session: ModelSession, section: Section, start: Start) -> AdapterTrainer[Section]:
    """The roles "policy" and "reference" of a method without a reward model, copies of the adapter "start" or fresh ones, and the
    policy's optimiser."""
    add_policy(PPOModels(session, session, session), start.seed, start.adapters.get("start"), start.state)
    accelerator = make_accelerator(session.model, start.report_to, start.folder)
    trainer = AdapterTrainer(session, "policy", section, accelerator, start.state)
    session.adapters.enable_offload("reference")
    return trainer


def evaluator(
    section: FeedbackSection,
    run: Run,
    stage: str,
    models: PPOModels,
    questions: Questions,
    limit: int,
    judge: MethodJudge | None = None,
) -> WinRateEvaluator:
    """The judge of `feedback` on dev prompts; opened here where it is not given."""
    judge, section = judge or open_method_judge(section, run, stage, models), known_readout(section, run)
    return WinRateEvaluator(models, questions.dev, questions.contexts, section, limit, *judge)


def open_method_judge(section: FeedbackSection, run: Run, stage: str, models: PPOModels) -> MethodJudge:
    """The judge of `feedback` for a method. The run's start model is the reference of the first method; for later ones a role of
    its own is added."""
    named, adapters = feedback_judge(section), models.reference.adapters
    if named is not None:
        return "reference", open_judge(named, run.root.parent / REPLIES)
    if section.judge == "base":
        return "base", None
    if run.start(stage) == run.start_model:
        return "reference", None
    if not (adapter := run.start_adapter()):
        return "base", None
    adapters.add("judge", 0, adapter)
    if models.offload_reference:
        adapters.enable_offload("judge")
    return "judge", None


def train(out: StageDir, models: PPOModels, loop: Loop, dev: WinRateEvaluator | None, first: int) -> None:
    """Steps from `first` on; then the chosen policy as adapter/: the best on dev prompts, or without any the last one."""
    best, done, warned = loop.state, first, False
    for number in progress(range(first, loop.total), loop.total, loop.name, initial=first):
        if number == 0 and dev:
            _keep_best(out, models, best, dev, 0)
        stats = loop.step(number)
        done = number + 1
        if not warned and (cut := 1.0 - stats.get("stopped", 1.0)) > CUT_SHARE:
            warned = True
            print(
                f"{loop.name}: {cut:.0%} of the answers were cut at the limit of tokens; raise rollout.max_new_tokens", flush=True
            )
        why, checks = loop.stop(stats), loop.checks
        if dev and (done % checks.dev_every == 0 or done == loop.total or why):
            stats["dev_win_rate"] = _keep_best(out, models, best, dev, done)
            if not why and 0 < checks.patience <= (done - best.best["iteration"]) // checks.dev_every and done < loop.total:
                why = f"{checks.patience} looks at the dev prompts in a row found none to keep (patience)"
        out.log(done, **stats)
        loop.accelerator.log({f"{loop.name}/{k}": v for k, v in stats.items()}, step=number)
        if why:
            print(f"{loop.name}: stopped at iteration {done}, {why}", flush=True)
            break
        if out.due(done, checks.save_every):
            models.add_counters(out)
            out.commit_state(done, loop.save, kept=_folder_name(best))
    if dev:
        out.publish_kept(_folder_name(best), "adapter")
    else:
        models.policy.adapters.save("policy", out.path / "adapter")
        best.best = {"iteration": done}
    models.add_counters(out)
    out.summary.update({"chosen_iteration": best.best["iteration"], "dev_win_rate": best.best.get("win_rate")})
    out.summary["dev_questions"] = len(dev.questions) if dev else 0
    adapter_card.write_adapter(out, models.policy.adapters)


def _keep_best(out: StageDir, models: PPOModels, progress: MethodProgress, dev: WinRateEvaluator, iteration: int) -> float:
    """Judge the policy on dev prompts. Its adapter is kept when it is the best so far, and better than the start by more than
    the standard error of the win rate: of several looks at equally good models one is always a little above a half."""
    with timed_apart("dev"):
        won = distributed.from_leader(dev.win_rate)  # one judge: every process keeps the same checkpoint
    if not progress.best or (won.beyond_error and won.rate > progress.best["win_rate"]):
        progress.best = {"iteration": iteration, "win_rate": won.rate}
        models.policy.adapters.save("policy", out.kept(_folder_name(progress)))
    return won.rate


def _folder_name(progress: MethodProgress) -> str:
    """Of the best policy so far: the state names its iteration, so that policy and record change together."""
    return f"iteration-{progress.best['iteration']}" if progress.best else ""
