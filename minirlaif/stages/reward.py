"""Stage `reward`: a reward model on the judge's preferences (paper section 3.3).

Role "reward" starts from the SFT adapter and gets a scalar head; pairwise logistic loss plus 0.001 x |mean score|. With
`reward.base` it stands on a base of its own, where only a fresh adapter or `reward.adapter` can start it.
Two switches depart from the paper: `reward.context` shows the model the segment descriptions (the paper's code leaves them
out), `reward.likelihood` adds beta x mean log-likelihood of the answer to its score. The paper's code asks for a score by a
prompt behind the answer; here it is read at the answer's last token.
Out: adapter/ with head.safetensors, held_out.jsonl (scores of the held-out preferences).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from minirlaif import distributed
from minirlaif.algorithms.losses import bradley_terry_loss, centering_penalty
from minirlaif.algorithms.rollout import score_pairs
from minirlaif.config import Config, RewardSection
from minirlaif.config.seeds import seed_of
from minirlaif.data.preflight import Preflight, read_judged, read_preferences
from minirlaif.errors import StageStopped, UserError
from minirlaif.models.loading import check_tokenizers, critic_model
from minirlaif.models.logprobs import EncodedPair, micro_batches, reward_scores
from minirlaif.models.seeds import shuffled
from minirlaif.reports import adapter_card
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, open_session, settings_of
from minirlaif.stages import method_loop
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import Start
from minirlaif.training.epoch_sampler import capped_batch_size, epoch_batch
from minirlaif.training.optim import AdapterTrainer, check_finite, make_accelerator
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Preference
from minirlaif.video.spans import file_of

START_BETA = 3.0
PADDING_TOLERANCE = 1e-3


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. preferences, some held out 2. role, head, optimiser 3. train 4. held-out scores, bias and padding check."""
    r = cfg.reward
    settings = settings_of(cfg.seed, cfg.data, STAGES["reward"].reads, **cfg.sections(*STAGES["reward"].sections))
    with run.stage("reward", settings, inputs=run.inputs("reward"), redo=redo) as out:
        if out is None:
            return
        check_tokenizers(cfg.model, r)
        with open_session(run, critic_model(cfg.model, r), cfg.video, Preflight(cfg.data, cfg.sft, r)) as session:
            # 1. preferences
            rows = session.readable([*read_judged(run), *read_preferences(cfg.data, run, cfg.video.max_unreadable)])
            session.record_clips(run, out, rows)
            method_loop.check_ids(session, run, [ids for row in rows for ids in (row.chosen_ids, row.rejected_ids)])
            train, held_out = _split(rows, r.held_out)
            if cfg.data.preference_limit:
                train = [train[i] for i in shuffled(len(train), cfg.seed, "reward-pairs")[: cfg.data.preference_limit]]
            # 2. role, head, optimiser
            first, state = out.resume() or (0, None)
            trainer = build(session, r, Start(cfg.seed, run.folder, cfg.report_to, _adapter(r, run), state=state))
            # 3. train
            size = capped_batch_size(r.batch_size, len(train), "reward.batch_size", "pairs")
            total = max(1, round(r.epochs * len(train) / size))
            for number in progress(range(first, total), total, "reward", initial=first):
                batch = epoch_batch(train, size, number, cfg.seed, "reward")
                rate = learning_rate(number, total, r.learning_rate, int(r.warmup_ratio * total), r.schedule)
                stats = step(trainer, batch, rate)
                done = number + 1
                norm = stats.pop("grad_norm")
                check_finite("reward", done, {"loss": stats["loss"], "gradient norm": norm})
                out.log(done, **stats, grad_norm=norm, learning_rate=rate)
                trainer.accelerator.log({f"reward/{k}": v for k, v in stats.items()}, step=number)
                if out.due(done, r.save_steps):
                    session.add_counters(out)
                    out.commit_state(done, trainer.save)
            # 4. held-out scores
            session.adapters.save("reward", out.path / "adapter")
            _evaluate(session, r, run, out, held_out)
            adapter_card.write_adapter(out, session.adapters)
            session.add_counters(out)


def build(session: ModelSession, section: RewardSection, start: Start) -> AdapterTrainer[RewardSection]:
    """The role "reward" with a head and its optimiser: a copy of the adapter "reward" of `start` or a fresh one, with a fresh
    head, or both as an interrupted run left them."""
    state = start.state / "reward" if start.state else None
    adapter = state or start.adapters.get("reward")
    session.adapters.add("reward", seed_of(start.seed, "reward-adapter"), adapter)
    if state:
        session.adapters.load_head("reward", state)
    else:
        beta = START_BETA if section.likelihood else None
        session.adapters.add_head("reward", seed_of(start.seed, "reward"), start=0.01, beta=beta)
    accelerator = make_accelerator(session.model, start.report_to, start.folder)
    return AdapterTrainer(session, "reward", section, accelerator, start.state)


def step(trainer: AdapterTrainer[RewardSection], batch: Sequence[Preference], rate: float) -> dict[str, float]:
    """One optimiser step at a learning rate. Returns what `backward` measured, and the gradient norm."""
    stats = backward(trainer, batch)
    return stats | {"grad_norm": trainer.step(rate)}


def _adapter(section: RewardSection, run: Run) -> dict[str, Path]:
    """The adapter that training starts from: of the start model, unless the settings say otherwise; empty: a fresh one."""
    if section.adapter:
        folder = Path(section.adapter)
        if not (folder / "adapter_model.safetensors").is_file():
            raise UserError(f"reward.adapter {folder}: holds no adapter_model.safetensors; name a PEFT folder, or leave it empty")
        return {"reward": folder}
    start = None if section.base else run.start_adapter()
    return {"reward": start} if start else {}


def _split(rows: Sequence[Preference], share: float) -> tuple[list[Preference], list[Preference]]:
    """Training rows and held-out rows, file by file: two questions about one clip, or about parts of one, never stand on both
    sides."""
    clips = sorted({file_of(row.video) for row in rows}, key=lambda clip: seed_of(0, "held-out", clip.rsplit("/", 1)[-1]))
    held_out = set(clips[: round(share * len(clips))])
    train = [row for row in rows if file_of(row.video) not in held_out]
    if not train:
        raise UserError(f"reward: {len(rows)} preferences leave none to train on; lower reward.held_out or label more prompts")
    return train, [row for row in rows if file_of(row.video) in held_out]


def _rows(session: ModelSession, preferences: Sequence[Preference], with_context: bool) -> list[EncodedPair]:
    """Chosen and rejected in turn."""
    session.encode_shared(p.video for p in preferences)
    rows = []
    for p in preferences:
        video_input, context = session.video_input(p.video), p.context if with_context else ""
        answers = (p.chosen_ids or session.answer_ids(p.chosen), p.rejected_ids or session.answer_ids(p.rejected))
        rows += [session.encode_pair(video_input, p.question, answer, context) for answer in answers]
    return rows


def backward(trainer: AdapterTrainer[RewardSection], batch: Sequence[Preference]) -> dict[str, float]:
    """Pairwise loss with the centring term over a batch, its gradient summed over micro-batches. Returns loss, accuracy (share
    of pairs whose chosen answer scores higher), mean score, and margin (mean of chosen less rejected)."""
    session, section, accelerator = trainer.session, trainer.section, trainer.accelerator
    head = session.adapters.heads["reward"]
    rows = _rows(session, batch, section.context)
    lengths = [max(len(rows[2 * i]), len(rows[2 * i + 1])) for i in range(len(batch))]
    groups = list(micro_batches(lengths, section.micro_batch_size))
    batch_sum: tuple[float, ...] = ()  # with the number of pairs
    if len(groups) > 1:  # the centring term needs the sign of the whole batch's sum before any part of it goes backward
        with session.adapters.inference_as("reward"):
            sums = distributed.mapped(
                lambda g: float(reward_scores(session.backbone, head, [rows[2 * i + s] for i in g for s in (0, 1)]).sum()), groups
            )
            batch_sum = (sum(sums), len(batch))
    stats = {"loss": 0.0, "accuracy": 0.0, "mean_score": 0.0, "margin": 0.0}
    for group in distributed.share(groups):
        with session.adapters.training_as("reward"), accelerator.autocast():
            scores = reward_scores(session.backbone, head, [rows[2 * i + s] for i in group for s in (0, 1)])
            chosen_B, rejected_B = scores[0::2], scores[1::2]
            loss = bradley_terry_loss(chosen_B, rejected_B, len(batch))
            loss = loss + section.centering * centering_penalty(chosen_B, rejected_B, *batch_sum)
            accelerator.backward(loss)
        ahead_B = (chosen_B - rejected_B).detach()
        stats["loss"] += float(loss.detach())
        stats["accuracy"] += float((ahead_B > 0).float().sum()) / len(batch)
        stats["margin"] += float(ahead_B.sum()) / len(batch)
        stats["mean_score"] += float(scores.detach().mean()) * len(group) / len(batch)
    distributed.sum_gradients(trainer.parameters)
    return distributed.total(stats)


def _evaluate(session: ModelSession, section: RewardSection, run: Run, out: StageDir, held_out: Sequence[Preference]) -> None:
    """Scores of held-out pairs, accuracy by question type, the mean score (bias) and whether padding moves a score."""
    head = session.adapters.heads["reward"]
    rows = _rows(session, held_out, section.context)
    with session.adapters.inference_as("reward"):
        scores = score_pairs(session, rows, section.batch_size)
        gap = 0.0
        if rows:
            ordered = sorted(rows, key=len)
            pair = [ordered[0], ordered[-1]]  # together they make the most padding there is
            alone = [float(reward_scores(session.backbone, head, [row])) for row in pair]
            gap = max(abs(a - b) for a, b in zip(alone, reward_scores(session.backbone, head, pair).tolist(), strict=True))
    if gap > PADDING_TOLERANCE and session.backbone.device.type == "cpu":
        raise StageStopped(f"reward: padding changes a score by {gap:.2g}; this backbone ignores the attention mask")
    hits: dict[str, list[float]] = {}
    with (out.path / "held_out.jsonl").open("w", encoding="utf-8") as file:
        for number, p in enumerate(held_out):
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
                out.sample({"video": run.stored(p.video), "question": p.question, **record})
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
