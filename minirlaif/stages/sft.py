"""Stage `sft`: supervised fine-tuning in two stages, short answers first, then long ones (paper section 3.1).

Out: adapter/ (role "sft"), which every later stage starts from. The second stage continues with the adapter of the first.
"""

from collections.abc import Sequence

import torch

from minirlaif import distributed
from minirlaif.algorithms.losses import sft_loss
from minirlaif.config import Config, SftSection
from minirlaif.config.seeds import seed_of
from minirlaif.data.preflight import Preflight, read_samples
from minirlaif.errors import UserError
from minirlaif.models.logprobs import logprobs_of, micro_batches
from minirlaif.models.tokens import pad_stack
from minirlaif.reports import adapter_card
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, open_session, settings_of
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import Start
from minirlaif.training.epoch_sampler import capped_batch_size, epoch_batch
from minirlaif.training.optim import AdapterTrainer, check_finite, make_accelerator
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Sample

SHOWN, SHOWN_TOKENS = 4, 64  # rows of each stage that samples.jsonl shows, and the longest answer there


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. rows by answer length 2. role and optimiser 3. both stages, one after the other 4. the adapter."""
    s = cfg.sft
    settings = settings_of(cfg.seed, cfg.data, STAGES["sft"].reads, **cfg.sections(*STAGES["sft"].sections))
    with run.stage("sft", settings, inputs=run.inputs("sft") if cfg.data.world else [], redo=redo) as out:
        if out is None:
            return
        samples = read_samples(cfg.data, run, "sft", need_answers=True, max_missing=cfg.video.max_unreadable)
        with open_session(run, cfg.model, cfg.video, Preflight(cfg.data, s, cfg.reward, cfg.rollout.normalize_by)) as session:
            # 1. rows by answer length
            samples = session.readable(samples)
            session.record_clips(run, out, samples)
            stages = by_length(samples, s.short_words)
            if not s.curriculum:
                stages = {"mixed": [*stages["short"], *stages["long"]]}
            plan = [(name, rows) for name, rows in stages.items() if rows]
            size = capped_batch_size(s.batch_size, len(samples), "sft.batch_size", "rows")
            per_stage = [max(1, round(s.epochs * len(rows) / size)) for _, rows in plan]
            # 2. role and optimiser
            first, state = out.resume() or (0, None)
            trainer = build(session, s, Start(cfg.seed, run.root, cfg.report_to, state=state))
            # 3. both stages
            total = sum(per_stage)
            for number in progress(range(first, total), total, "sft", initial=first):
                stage = 0 if number < per_stage[0] else 1
                name, rows = plan[stage]
                inner = number - sum(per_stage[:stage])
                warmup = int(s.warmup_ratio * per_stage[stage])
                rate = learning_rate(inner, per_stage[stage], s.learning_rate, warmup, s.schedule)
                stats = step(trainer, epoch_batch(rows, size, inner, cfg.seed, "sft", name), rate)
                done = number + 1
                check_finite("sft", done, {"loss": stats["loss"], "gradient norm": stats["grad_norm"]})
                out.summary["loss"] = stats["loss"]
                out.log(done, stage=name, **stats, learning_rate=rate)
                trainer.accelerator.log({f"sft/{key}": value for key, value in stats.items()}, step=number)
                if out.due(done, s.save_steps):
                    session.add_counters(out)
                    out.commit_state(done, trainer.save)
            # 4. the adapter
            session.adapters.save("sft", out.path / "adapter")
            for name, rows in plan:
                _log_samples(session, run, out, name, rows)
            session.add_counters(out)
            out.summary["steps"] = total
            adapter_card.write_adapter(out, session.adapters)
            out.summary.update({f"{name}_rows": len(rows) for name, rows in plan})


def build(session: ModelSession, section: SftSection, start: Start) -> AdapterTrainer[SftSection]:
    """The role "sft" on a fresh adapter, or as an interrupted run left it, with its optimiser."""
    session.adapters.add("sft", seed_of(start.seed, "sft"), start.state / "sft" if start.state else None)
    accelerator = make_accelerator(session.model, start.report_to, start.folder)
    return AdapterTrainer(session, "sft", section, accelerator, start.state)


def step(trainer: AdapterTrainer[SftSection], batch: Sequence[Sample], rate: float) -> dict[str, float]:
    """One optimiser step at a learning rate. Returns loss (nats per answer token) and gradient norm."""
    loss = backward(trainer, batch)
    return {"loss": loss, "grad_norm": trainer.step(rate)}


def by_length(samples: Sequence[Sample], short_words: int) -> dict[str, list[Sample]]:
    """Rows whose longest answer to learn has at most `short_words` words, and the others."""
    stages: dict[str, list[Sample]] = {"short": [], "long": []}
    for row in samples:
        words = max(len((turn.answer or "").split()) for turn in row.turns if turn.learn)
        stages["short" if words <= short_words else "long"].append(row)
    if not samples:
        raise UserError("data.sft: no row is left to train on; see the clips left out above")
    return stages


def backward(trainer: AdapterTrainer[SftSection], batch: Sequence[Sample]) -> float:
    """Loss per answer token of the whole batch, its gradient summed over micro-batches."""
    session, section, accelerator = trainer.session, trainer.section, trainer.accelerator
    backbone = session.backbone
    session.encode_shared(row.video for row in batch)
    views = [session.video_input(row.video) for row in batch]
    rendered = [
        backbone.renderer.conversation(view.frame_layout, row.turns, "", section.max_length)
        for view, row in zip(views, batch, strict=True)
    ]
    denominator = sum(sum(r.answer) for r in rendered)
    total = 0.0
    groups = list(micro_batches([len(r) for r in rendered], section.micro_batch_size))
    for index in distributed.share(groups):
        session.counters["prefilled_tokens"] += sum(len(rendered[i]) for i in index)
        ids_BT, mask_BT = pad_stack([torch.tensor(rendered[i].ids) for i in index], backbone.pad_id, "right")
        learned_BT, _ = pad_stack([torch.tensor(rendered[i].answer) for i in index], False, "right")
        ids_BT, mask_BT, learned_BT = (x.to(backbone.device) for x in (ids_BT, mask_BT, learned_BT))
        features = [views[i].features.to(backbone.device) for i in index]
        with session.adapters.training_as("sft"), accelerator.autocast():
            positions = backbone.positions(ids_BT, mask_BT, features)
            hidden_BTD = backbone.hidden(backbone.embed(ids_BT, features), mask_BT, positions)
            counted_BT = learned_BT[:, 1:]
            logprobs_BT, _ = logprobs_of(backbone, hidden_BTD[:, :-1], ids_BT[:, 1:], counted_BT, 1.0, False)
            loss = sft_loss(logprobs_BT, counted_BT, denominator)
            accelerator.backward(loss)
        total += float(loss.detach())
    distributed.sum_gradients(trainer.parameters)
    return distributed.total({"loss": total})["loss"]


def _log_samples(session: ModelSession, run: Run, out: StageDir, name: str, rows: Sequence[Sample]) -> None:
    """Some rows of a stage with the answers that the trained model gives, for a person to read."""
    chosen = list(rows[:: max(1, len(rows) // SHOWN)])[:SHOWN]
    with session.adapters.inference_as("sft"):
        questions = ((session.video_input(row.video), row.turns[0].question) for row in chosen)
        answers = session.greedy_answers(questions, SHOWN_TOKENS, SHOWN)
    for row, answer in zip(chosen, answers, strict=True):
        turn = row.turns[0]
        out.sample(
            {"stage": name, "video": run.stored(row.video), "question": turn.question, "written": turn.answer, "said": answer}
        )
