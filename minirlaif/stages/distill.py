"""Stages `distill` and `bestofn`: fine-tuning of the policy on answers of its own start model.

distill: without the descriptions it learns the answers that were given with them (Askell et al. 2021, context distillation),
those of `feedback.context_answers`. bestofn: it learns the answer to each prompt that the judge found best (rejection sampling,
then SFT). Answers are learned by the token ids that were sampled; those that were cut at the limit of tokens, and empty ones, are
left out and counted. The checkpoint that is kept is chosen by the judge on dev prompts. Truth is not read.
Out: adapter/ (role "policy"), samples.jsonl.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minirlaif.algorithms.finetune import finetune_step
from minirlaif.config import Config, DistillSection
from minirlaif.data.preflight import Preflight
from minirlaif.errors import UserError
from minirlaif.models.logprobs import EncodedPair
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, PPOModels, open_session, settings_of
from minirlaif.stages import method_loop
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.training.epoch_sampler import capped_batch_size, epoch_batch
from minirlaif.training.optim import AdapterTrainer, check_finite
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Sample, Turn

SAMPLE_EVERY = 50  # of so many steps one answer stands in samples.jsonl


@dataclass(frozen=True)
class Target:
    """An answer to learn: token ids with the end token."""

    row: Sample
    answer: tuple[int, ...]


def run(cfg: Config, run: Run, redo: bool = False, name: str = "distill") -> None:
    """1. answers to learn 2. role and optimiser 3. steps; then the chosen policy."""
    d = cfg.distill
    settings = settings_of(cfg.seed, cfg.data, STAGES[name].reads, **cfg.sections(*STAGES[name].sections))
    with run.stage(name, settings, inputs=run.inputs(name), redo=redo) as out:
        if out is None:
            return
        # 1. answers to learn
        targets, left_out = read_targets(run) if name == "distill" else read_best(run)
        questions = method_loop.read_questions(cfg.data, run, [target.row for target in targets], cfg.video.max_unreadable)
        with open_session(run, cfg.model, cfg.video, Preflight(cfg.data, cfg.sft, cfg.reward)) as session:
            models = PPOModels(session, session, session)
            method_loop.check_ids(session, run, [target.answer for target in targets])
            questions = questions.readable(session, run, out, name)
            ids = {row.id for row in questions.prompts}
            targets = [target for target in targets if target.row.id in ids]
            # 2. role and optimiser
            first, state = out.resume() or (0, None)
            start = run.start_adapter(name)
            trainer = build(
                session, d, Start(cfg.seed, run.folder, cfg.report_to, {"start": start} if start else {}, state=state)
            )
            made = MethodProgress.read(state) if state else MethodProgress()
            limit = cfg.feedback.max_new_tokens
            dev = method_loop.evaluator(cfg.feedback, run, name, models, questions, limit) if questions.dev else None
            # 3. steps
            size = capped_batch_size(d.batch_size, len(targets), "distill.batch_size", "answers")
            total = max(1, round(d.epochs * len(targets) / size))

            def iterate(number: int) -> dict[str, float]:
                batch = epoch_batch(targets, size, number, cfg.seed, name)
                if number % SAMPLE_EVERY == 0:
                    row, answer = batch[0].row, session.backbone.renderer.decode(batch[0].answer)
                    out.sample(
                        {"iteration": number, "video": run.stored(row.video), "question": row.turns[0].question, "answer": answer}
                    )
                rate = learning_rate(number, total, d.learning_rate, int(d.warmup_ratio * total), d.schedule)
                stats = step(trainer, batch, rate)
                losses = {"loss": stats["loss"], "gradient norm": stats["grad_norm"]}
                check_finite(name, number + 1, losses, "distill")
                out.summary.update({"loss": stats["loss"], "answers": len(targets), "left_out": left_out})
                return stats | {"learning_rate": rate}

            save, accelerator = partial(_save, trainer, made), trainer.accelerator
            loop = method_loop.Loop(name, total, d, iterate, save, made, accelerator)
            method_loop.train(out, models, loop, dev, first)


def read_targets(run: Run) -> tuple[list[Target], int]:
    """The finished context answers of `feedback`, and how many were left out: cut at the limit of tokens, or empty.
    UserError: none is left, or `feedback` gave none."""
    path = run.require("feedback") / "answers.jsonl"
    targets: list[Target] = []
    left_out = 0
    for record in run.rows("feedback", path.name, "id", "video", "question", "answers"):
        row = Sample(record["id"], run.located(record["video"]), (Turn(record["question"]),))
        columns = (record.get(name) or () for name in ("answers", "ids", "stopped", "with_context"))
        answers = zip(*columns, strict=False)
        for text, ids, stopped, with_context in answers:
            if with_context and stopped and text.strip():
                targets.append(Target(row, tuple(ids)))
            elif with_context:
                left_out += 1
    if targets:
        return targets, left_out
    if left_out:
        why = f"all {left_out} context answers were cut at the limit of tokens; raise feedback.max_new_tokens"
        raise UserError(f"distill: {why}: `{run.remake('feedback', 'feedback.max_new_tokens=…')}`")
    again = run.remake("feedback", "feedback.context_answers=1")
    raise UserError(f"{path}: has no answer that was given with the descriptions; make it again: `{again}`")


def read_best(run: Run) -> tuple[list[Target], int]:
    """The best answer to each prompt, which won most pairs, or is the only one that ended; and how many prompts were left out:
    the judge decided no pair of theirs, or no answer ended. UserError: the judge decided no pair at all."""
    wins: dict[str, Counter[str]] = {}
    for record in run.rows("feedback", "preferences.jsonl", "id", "chosen", "rejected"):
        of_prompt = wins.setdefault(record["id"].rpartition("#")[0], Counter())
        of_prompt[record["chosen"]] += 1
        of_prompt[record["rejected"]] -= 1
    # Of equal ones the first: where the judge ranks answers, the pair that lies furthest apart comes first.
    chosen = {prompt: max(of_prompt, key=lambda text: of_prompt[text]) for prompt, of_prompt in wins.items()}
    if not chosen:
        again = run.remake("feedback", "feedback.answers=8")
        raise UserError(f"bestofn: the judge decided no pair, so no answer is the best; draw more answers: `{again}`")
    best, left_out = [], 0
    for record in run.rows("feedback", "answers.jsonl", "id", "video", "question", "answers"):
        ids: dict[str, Sequence[int]] = {}
        for text, of_text, ended in zip(*(record.get(name) or () for name in ("answers", "ids", "stopped")), strict=False):
            if ended and text.strip():
                ids.setdefault(text, of_text)
        answer = chosen.get(record["id"]) or (next(iter(ids)) if len(ids) == 1 else "")
        if ids.get(answer):
            row = Sample(record["id"], run.located(record["video"]), (Turn(record["question"]),))
            best.append(Target(row, tuple(ids[answer])))
        else:
            left_out += 1
    return best, left_out


def build(session: ModelSession, section: DistillSection, start: Start) -> AdapterTrainer[DistillSection]:
    """The roles "policy" and "reference", copies of the adapter "start" of `start` or fresh ones, and the policy's optimiser."""
    return method_loop.policy_trainer(session, section, start)


def step(trainer: AdapterTrainer[DistillSection], batch: Sequence[Target], rate: float) -> dict[str, float]:
    """One optimiser step at a learning rate. Returns loss (nats per answer token) and gradient norm."""
    session = trainer.session
    session.encode_shared(target.row.video for target in batch)
    rows = [_encoded(session, target) for target in batch]
    session.counters["prefilled_tokens"] += sum(len(row) for row in rows)
    return finetune_step(trainer, rows, rate)


def _encoded(session: ModelSession, target: Target) -> EncodedPair:
    return session.encode_pair(session.video_input(target.row.video), target.row.turns[0].question, target.answer)


def _save(trainer: AdapterTrainer[DistillSection], progress: MethodProgress, folder: Path) -> None:
    trainer.save(folder)
    progress.write(folder)
