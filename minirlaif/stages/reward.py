"""Stage `reward`: a reward model on the judge's preferences (paper section 3.3).

Role "reward" starts from the SFT adapter and gets a scalar head; pairwise logistic loss plus 0.001 x |mean score|. With
`reward.base` it stands on a base of its own, where only a fresh adapter or `reward.adapter` can start it.
Two switches depart from the paper: `reward.context` shows the model the segment descriptions (the paper's code leaves them
out), `reward.likelihood` adds beta x mean log-likelihood of the answer to its score. The paper's code asks for a score by a
prompt behind the answer; here it is read at the answer's last token.
Out: adapter/ with head.safetensors, held_out.jsonl (scores of preferences kept back).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.algorithms.losses import bradley_terry_loss, centering_penalty
from minirlaif.config import Config
from minirlaif.errors import StageStopped, UserError
from minirlaif.models.logprobs import EncodedPair, micro_batches, reward_scores
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import (
    ModelSession,
    check_tokenizers,
    critic_config,
    open_session,
    read_preferences,
    readable,
    settings_of,
    stored,
)
from minirlaif.stages.registry import STAGES
from minirlaif.training.optim import (
    check_finite,
    make_accelerator,
    make_optimizer,
    optimizer_step,
    read_extra,
    read_optimizer,
    seed_of,
    shuffled,
    write_state,
)
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Preference

START_BETA = 3.0
PADDING_TOLERANCE = 1e-3


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. preferences, some kept back 2. role, head, optimiser 3. train 4. held-out scores, bias and padding check."""
    settings = settings_of(cfg, *STAGES["reward"].sections, sources=STAGES["reward"].reads)
    with run.stage("reward", settings, inputs=run.inputs("reward"), redo=redo) as out:
        if out is None:
            return
        check_tokenizers(cfg)
        with open_session(critic_config(cfg), run) as session:
            # 1. preferences
            train, kept = _split(readable(session, _preferences(cfg, run)), cfg.reward.held_out)
            if cfg.data.preference_limit:
                train = [train[i] for i in shuffled(len(train), cfg.seed, "reward-pairs")[: cfg.data.preference_limit]]
            # 2. role, head, optimiser
            begun = out.resume()
            start = begun[1] / "reward" if begun else _start(cfg, run)
            session.adapters.add("reward", seed_of(cfg.seed, "reward-adapter"), start)
            if begun:
                session.adapters.load_head("reward", begun[1] / "reward")
            else:
                beta = START_BETA if cfg.reward.likelihood else None
                session.adapters.add_head("reward", seed_of(cfg.seed, "reward"), start=0.01, beta=beta)
            accelerator = make_accelerator(cfg, run.root)
            parameters, kind = session.adapters.parameters("reward"), cfg.model.optimizer
            optimizer = make_optimizer(accelerator, parameters, cfg.reward.learning_rate, cfg.reward.weight_decay, kind)
            if begun:
                read_optimizer(begun[1], "reward", optimizer)
                read_extra(begun[1])
            first = begun[0] if begun else 0
            # 3. train
            size = cfg.reward.batch_size
            total = max(1, round(cfg.reward.epochs * len(train) / size))
            for step in progress(range(first, total), total, "reward", initial=first):
                places = [divmod(place, len(train)) for place in range(step * size, (step + 1) * size)]
                orders = {e: shuffled(len(train), cfg.seed, "reward", e) for e in {e for e, _ in places}}
                batch = [train[orders[e][i]] for e, i in places]
                stats = backward(session, accelerator, batch)
                warmup = int(cfg.reward.warmup_ratio * total)
                rate = learning_rate(step, total, cfg.reward.learning_rate, warmup, cfg.reward.schedule)
                norm = optimizer_step(accelerator, optimizer, parameters, rate, cfg.reward.max_grad_norm)
                check_finite("reward", step + 1, {"loss": stats["loss"], "gradient norm": norm})
                out.log(step + 1, **stats, grad_norm=norm, learning_rate=rate)
                accelerator.log({f"reward/{k}": v for k, v in stats.items()}, step=step)
                if out.due(step + 1, cfg.reward.save_steps):
                    session.counted(out)
                    out.commit_state(
                        step + 1, lambda folder: write_state(folder, {"reward": session.adapters}, {"reward": optimizer}, {})
                    )
            # 4. held-out scores
            session.adapters.save("reward", out.path / "adapter")
            _examine(session, run, out, kept)
            session.counted(out)


def _start(cfg: Config, run: Run) -> Path | None:
    """The adapter that training starts from; None: a fresh one."""
    if cfg.reward.adapter:
        folder = Path(cfg.reward.adapter)
        if not (folder / "adapter_model.safetensors").is_file():
            raise UserError(f"reward.adapter {folder}: holds no adapter_model.safetensors; name a PEFT folder, or leave it empty")
        return folder
    return None if cfg.reward.base else run.adapter("sft")


def _preferences(cfg: Config, run: Run) -> list[Preference]:
    rows = read_preferences(str(run.require("feedback") / "preferences.jsonl"))
    for source in cfg.data.preferences:
        rows += read_preferences(source, cfg.data.videos)
    return rows


def _split(rows: Sequence[Preference], share: float) -> tuple[list[Preference], list[Preference]]:
    """Training rows and held-out rows, clip by clip: two questions about one clip never stand on both sides."""
    clips = sorted({row.video for row in rows}, key=lambda clip: seed_of(0, "held-out", clip.rsplit("/", 1)[-1]))
    kept = set(clips[: round(share * len(clips))])
    train = [row for row in rows if row.video not in kept]
    if not train:
        raise UserError(f"reward: {len(rows)} preferences leave none to train on; lower reward.held_out or label more prompts")
    return train, [row for row in rows if row.video in kept]


def _rows(session: ModelSession, preferences: Sequence[Preference]) -> list[EncodedPair]:
    """Chosen and rejected in turn."""
    rows = []
    session.encode_shared(p.video for p in preferences)
    for p in preferences:
        view, context = session.video_input(p.video), p.context if session.cfg.reward.context else ""
        rows += [session.encode_pair(view, p.question, session.answer_ids(text), context) for text in (p.chosen, p.rejected)]
    return rows


def backward(session: ModelSession, accelerator: Any, batch: Sequence[Preference]) -> dict[str, float]:
    import torch

    cfg, head = session.cfg.reward, session.adapters.heads["reward"]
    rows = _rows(session, batch)
    lengths = [max(len(rows[2 * i]), len(rows[2 * i + 1])) for i in range(len(batch))]
    groups = list(micro_batches(lengths, cfg.micro_batch_size))
    batch_sum = None
    if len(groups) > 1:  # the centring term needs the sign of the whole batch's sum before any part of it goes backward
        with session.adapters.inference_as("reward"):
            batch_sum = sum(
                distributed.mapped(
                    lambda g: float(reward_scores(session.backbone, head, [rows[2 * i + s] for i in g for s in (0, 1)]).sum()),
                    groups,
                )
            )
    stats = {"loss": 0.0, "accuracy": 0.0, "mean_score": 0.0, "margin": 0.0}
    for group in distributed.share(groups):
        with session.adapters.training_as("reward"), accelerator.autocast():
            scores = reward_scores(session.backbone, head, [rows[2 * i + s] for i in group for s in (0, 1)])
            chosen_B, rejected_B = scores[0::2], scores[1::2]
            loss = bradley_terry_loss(chosen_B, rejected_B, len(batch))
            if batch_sum is None:
                loss = loss + cfg.centering * centering_penalty(chosen_B, rejected_B)
            else:
                loss = loss + cfg.centering * centering_penalty(chosen_B, rejected_B, batch_sum, len(batch))
            accelerator.backward(loss)
        ahead_B = torch.sub(chosen_B, rejected_B).detach()
        stats["loss"] += float(loss.detach())
        stats["accuracy"] += float((ahead_B > 0).float().sum()) / len(batch)
        stats["margin"] += float(ahead_B.sum()) / len(batch)
        stats["mean_score"] += float(scores.detach().mean()) * len(group) / len(batch)
    distributed.sum_gradients(session.adapters.parameters("reward"))
    return distributed.total(stats)


def _examine(session: ModelSession, run: Run, out: StageDir, kept: Sequence[Preference]) -> None:
    """Scores of held-out pairs, accuracy by question type, the mean score (bias) and whether padding moves a score."""
    head, size = session.adapters.heads["reward"], session.cfg.reward.batch_size
    rows = _rows(session, kept)
    scores = [0.0] * len(rows)
    with session.adapters.inference_as("reward"):
        for index in micro_batches([len(row) for row in rows], size):
            for place, score in zip(index, reward_scores(session.backbone, head, [rows[i] for i in index]).tolist(), strict=True):
                scores[place] = score
        # The shortest and the longest row together make the most padding there is.
        gap = 0.0
        if rows:
            ordered = sorted(rows, key=len)
            pair = [ordered[0], ordered[-1]]
            alone = [float(reward_scores(session.backbone, head, [row])) for row in pair]
            gap = max(abs(a - b) for a, b in zip(alone, reward_scores(session.backbone, head, pair).tolist(), strict=True))
    if gap > PADDING_TOLERANCE and session.backbone.device.type == "cpu":
        raise StageStopped(f"reward: padding moves a score by {gap:.2g}; the attention mask of this backbone is not respected")
    hits: dict[str, list[float]] = {}
    with (out.path / "held_out.jsonl").open("w", encoding="utf-8") as file:
        for number, p in enumerate(kept):
            chosen, rejected = scores[2 * number], scores[2 * number + 1]
            hits.setdefault(str(p.tags.get("type", "all")), []).append(float(chosen > rejected))
            record = {
                "id": p.id,
                "type": p.tags.get("type", ""),
                "chosen": p.chosen,
                "rejected": p.rejected,
                "score_chosen": chosen,
                "score_rejected": rejected,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            if number % 25 == 0:
                out.sample({"video": stored(run, p.video), "question": p.question, **record})
    flat = [hit for values in hits.values() for hit in values]
    mean = sum(scores) / max(1, len(scores))
    out.summary.update(
        {
            "accuracy": round(sum(flat) / max(1, len(flat)), 4),
            "held_out_pairs": len(flat),
            "bias": mean,
            "deviation": (sum((s - mean) ** 2 for s in scores) / max(1, len(scores))) ** 0.5,
            "padding_gap": gap,
            "accuracy_by_type": {k: round(sum(v) / len(v), 4) for k, v in sorted(hits.items())},
        }
    )
    if head.beta is not None:
        out.summary["beta"] = float(head.beta.detach())
