"""Stage `sft`: supervised fine-tuning in two stages, short answers first, then long ones (paper section 3.1).

Out: adapter/ (role "sft"), which every later stage starts from. The second stage goes on with the adapter of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlaif import distributed
from minirlaif.algorithms.losses import sft_loss
from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.models.generation import sample
from minirlaif.models.logprobs import logprobs_of, micro_batches
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, open_session, read_samples, readable, settings_of, stored
from minirlaif.stages.registry import STAGES
from minirlaif.training.optim import (
    check_finite,
    make_accelerator,
    make_optimizer,
    optimizer_step,
    read_optimizer,
    seed_of,
    shuffled,
    write_state,
)
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Sample

SHOWN, SHOWN_TOKENS = 4, 64  # rows of each stage that samples.jsonl shows, and the longest answer there


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. rows by answer length 2. role and optimiser 3. both stages, one after the other 4. the adapter."""
    settings = settings_of(cfg, *STAGES["sft"].sections, sources=STAGES["sft"].reads)
    with run.stage("sft", settings, inputs=run.inputs("sft") if cfg.data.world else [], redo=redo) as out:
        if out is None:
            return
        samples = read_samples(cfg, run, "sft", need_answers=True)
        with open_session(cfg, run) as session:
            # 1. rows by answer length
            stages = by_length(readable(session, samples), cfg.sft.short_words)
            if not cfg.sft.curriculum:
                stages = {"mixed": [*stages["short"], *stages["long"]]}
            plan = [(name, rows) for name, rows in stages.items() if rows]
            per_stage = [max(1, round(cfg.sft.epochs * len(rows) / cfg.sft.batch_size)) for _, rows in plan]
            # 2. role and optimiser
            begun = out.resume()
            session.adapters.add("sft", seed_of(cfg.seed, "sft"), begun[1] / "sft" if begun else None)
            accelerator = make_accelerator(cfg, run.root)
            parameters, kind = session.adapters.parameters("sft"), cfg.model.optimizer
            optimizer = make_optimizer(accelerator, parameters, cfg.sft.learning_rate, cfg.sft.weight_decay, kind)
            if begun:
                read_optimizer(begun[1], "sft", optimizer)
            first = begun[0] if begun else 0
            # 3. both stages
            total = sum(per_stage)
            for step in progress(range(first, total), total, "sft", initial=first):
                number = 0 if step < per_stage[0] else 1
                name, rows = plan[number]
                inner = step - sum(per_stage[:number])
                warmup = int(cfg.sft.warmup_ratio * per_stage[number])
                rate = learning_rate(inner, per_stage[number], cfg.sft.learning_rate, warmup, cfg.sft.schedule)
                batch = _batch(rows, cfg, name, inner)
                loss = backward(session, accelerator, batch)
                norm = optimizer_step(accelerator, optimizer, parameters, rate, cfg.sft.max_grad_norm)
                check_finite("sft", step + 1, {"loss": loss, "gradient norm": norm})
                out.summary["loss"] = loss
                out.log(step + 1, stage=name, loss=loss, grad_norm=norm, learning_rate=rate)
                accelerator.log({"sft/loss": loss, "sft/grad_norm": norm}, step=step)
                if out.due(step + 1, cfg.sft.save_steps):
                    session.counted(out)
                    out.commit_state(
                        step + 1, lambda folder: write_state(folder, {"sft": session.adapters}, {"sft": optimizer}, {})
                    )
            # 4. the adapter
            session.adapters.save("sft", out.path / "adapter")
            for name, rows in plan:
                _show(session, run, out, name, rows)
            session.counted(out)
            out.summary["steps"] = total
            out.summary.update({f"{name}_rows": len(rows) for name, rows in plan})


def by_length(samples: Sequence[Sample], short_words: int) -> dict[str, list[Sample]]:
    """Rows whose longest answer has at most `short_words` words, and the others."""
    stages: dict[str, list[Sample]] = {"short": [], "long": []}
    for row in samples:
        words = max(len((turn.answer or "").split()) for turn in row.turns)
        stages["short" if words <= short_words else "long"].append(row)
    if not samples:
        raise UserError("data.sft: no row is left to train on; see the clips left out above")
    return stages


def _batch(rows: Sequence[Sample], cfg: Config, name: str, step: int) -> list[Sample]:
    """The rows of an optimiser step: epochs are shuffled anew, each from its own seed."""
    chosen = []
    for place in range(step * cfg.sft.batch_size, (step + 1) * cfg.sft.batch_size):
        epoch, index = divmod(place, len(rows))
        chosen.append((epoch, index))
    orders = {epoch: shuffled(len(rows), cfg.seed, "sft", name, epoch) for epoch in {epoch for epoch, _ in chosen}}
    return [rows[orders[epoch][index]] for epoch, index in chosen]


def backward(session: ModelSession, accelerator: Any, batch: Sequence[Sample]) -> float:
    """Loss per answer token of the whole batch, its gradient summed over micro-batches."""
    import torch

    from minirlaif.models.tokens import pad_stack

    cfg, backbone = session.cfg, session.backbone
    session.encode_shared(row.video for row in batch)
    views = [session.video_input(row.video) for row in batch]
    rendered = [
        backbone.renderer.conversation(view.shown, row.turns, "", cfg.sft.max_length)
        for view, row in zip(views, batch, strict=True)
    ]
    denominator = sum(sum(r.answer) for r in rendered)
    total = 0.0
    groups = list(micro_batches([len(r) for r in rendered], cfg.sft.micro_batch_size))
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
    distributed.sum_gradients(session.adapters.parameters("sft"))
    return distributed.total({"loss": total})["loss"]


def _show(session: ModelSession, run: Run, out: StageDir, name: str, rows: Sequence[Sample]) -> None:
    """A few rows of a stage with what the trained model now says, for a person to read."""
    some = list(rows[:: max(1, len(rows) // SHOWN)])[:SHOWN]
    with session.adapters.inference_as("sft"):
        asked = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in some]
        said = sample(session.backbone, asked, temperature=0, max_new_tokens=SHOWN_TOKENS)
    for row, (answer,) in zip(some, said, strict=True):
        told = {"video": stored(run, row.video), "question": row.turns[0].question, "written": row.turns[0].answer}
        out.sample({"stage": name, **told, "said": session.backbone.renderer.decode(answer.ids)})
