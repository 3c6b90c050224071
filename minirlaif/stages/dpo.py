"""Stage `dpo`: the policy learns from the judge's preferences themselves, without a reward model and without sampling.

The pairs are those of `feedback`, by the token ids that were sampled, and those of `data.preferences`. The reference's
log-probabilities of a pair are computed once. The checkpoint that is kept is chosen by the judge on dev prompts. Truth is not
read.
Out: adapter/ (role "policy"), samples.jsonl.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minirlaif.algorithms.dpo import DPOLearner
from minirlaif.config import Config, DpoSection
from minirlaif.data.preflight import Preflight, read_judged, read_preferences
from minirlaif.errors import UserError
from minirlaif.models.logprobs import EncodedPair
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, PPOModels, open_session, settings_of
from minirlaif.stages import method_loop
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.training.epoch_sampler import capped_batch_size, epoch_batch
from minirlaif.training.optim import check_finite
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Preference

SAMPLE_EVERY = 50  # of so many steps one pair stands in samples.jsonl
FEWEST = 2  # pairs without which there is nothing to learn from
REFERENCE = "reference.json"  # in the state: the reference's log-probabilities so far


@dataclass(frozen=True)
class JudgedPair:
    """A preference. key: its place among all pairs."""

    key: str
    row: Preference


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. pairs 2. roles and optimiser 3. steps; then the chosen policy."""
    d = cfg.dpo
    settings = settings_of(cfg.seed, cfg.data, STAGES["dpo"].reads, **cfg.sections(*STAGES["dpo"].sections))
    with run.stage("dpo", settings, inputs=run.inputs("dpo"), redo=redo) as out:
        if out is None:
            return
        # 1. pairs
        written = read_preferences(cfg.data, run, cfg.video.max_unreadable)
        pairs = [JudgedPair(f"judged-{place}", row) for place, row in enumerate(read_judged(run))]
        pairs += [JudgedPair(f"written-{place}", row) for place, row in enumerate(written)]
        questions = method_loop.read_questions(cfg.data, run, [], cfg.video.max_unreadable)
        with open_session(run, cfg.model, cfg.video, Preflight(cfg.data, cfg.sft, cfg.reward)) as session:
            models = PPOModels(session, session, session)
            method_loop.check_ids(session, run, [ids for pair in pairs for ids in (pair.row.chosen_ids, pair.row.rejected_ids)])
            clips = {row.video for row in session.readable([pair.row for pair in pairs])}
            pairs = [pair for pair in pairs if pair.row.video in clips]
            session.record_clips(run, out, [*(pair.row for pair in pairs), *questions.dev])
            questions = questions.readable(session, run, out, "dpo")
            if len(pairs) < FEWEST:
                again, few = run.remake("feedback", "feedback.limit=0"), "1 pair is" if pairs else "no pairs are"
                raise UserError(f"dpo: {few} too few to learn from; label more prompts: `{again}`")
            # 2. roles and optimiser
            first, state = out.resume() or (0, None)
            start = run.start_adapter("dpo")
            learner = build(
                session, d, Start(cfg.seed, run.folder, cfg.report_to, {"start": start} if start else {}, state=state)
            )
            made = MethodProgress.read(state) if state else MethodProgress()
            limit = cfg.feedback.max_new_tokens
            dev = method_loop.evaluator(cfg.feedback, run, "dpo", models, questions, limit) if questions.dev else None
            # 3. steps
            size = capped_batch_size(d.batch_size, len(pairs), "dpo.batch_size", "pairs")
            total = max(1, round(d.epochs * len(pairs) / size))

            def iterate(number: int) -> dict[str, float]:
                batch = epoch_batch(pairs, size, number, cfg.seed, "dpo")
                rate = learning_rate(number, total, d.learning_rate, int(d.warmup_ratio * total), d.schedule)
                stats = step(learner, batch, rate)
                if number % SAMPLE_EVERY == 0:
                    row = batch[0].row
                    answers = {"chosen": row.chosen, "rejected": row.rejected}
                    out.sample({"iteration": number, "video": run.stored(row.video), "question": row.question, **answers})
                check_finite("dpo", number + 1, {"loss": stats["loss"], "gradient norm": stats["grad_norm"]})
                out.summary.update({"accuracy": stats["accuracy"], "margin": stats["margin"], "pairs": len(pairs)})
                return stats | {"learning_rate": rate}

            save, accelerator = partial(_save, learner, made), learner.trainer.accelerator
            loop = method_loop.Loop("dpo", total, d, iterate, save, made, accelerator)
            method_loop.train(out, models, loop, dev, first)


def build(session: ModelSession, section: DpoSection, start: Start) -> DPOLearner:
    """The roles "policy" and "reference", copies of the adapter "start" of `start` or fresh ones, and the policy's optimiser."""
    trainer = method_loop.policy_trainer(session, section, start)
    models = PPOModels(session, session, session)
    known: Mapping[str, Sequence[float]] = json.loads((start.state / REFERENCE).read_text()) if start.state else {}
    return DPOLearner(models, trainer, {name: (values[0], values[1]) for name, values in known.items()})


def step(learner: DPOLearner, batch: Sequence[JudgedPair], rate: float) -> dict[str, float]:
    """One optimiser step at a learning rate. Returns loss, accuracy, margin, implicit rewards (`dpo_loss`) and gradient norm."""
    session = learner.trainer.session
    session.encode_shared(pair.row.video for pair in batch)
    return learner.update({pair.key: _encoded(session, pair) for pair in batch}, rate)


def _encoded(session: ModelSession, pair: JudgedPair) -> tuple[EncodedPair, EncodedPair]:
    view, row = session.video_input(pair.row.video), pair.row
    answers = (row.chosen_ids or session.answer_ids(row.chosen), row.rejected_ids or session.answer_ids(row.rejected))
    chosen, rejected = (session.encode_pair(view, row.question, answer) for answer in answers)
    return chosen, rejected


def _save(learner: DPOLearner, progress: MethodProgress, folder: Path) -> None:
    learner.trainer.save(folder)
    progress.write(folder)
    (folder / REFERENCE).write_text(json.dumps(learner.reference))
