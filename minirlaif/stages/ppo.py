"""Stage `ppo`: the policy learns from the reward model's scores (paper section 3.3).

Roles: policy (starts as the SFT adapter), reference (a frozen copy of it; `reference.kind` gives it base weights of its own),
reward (frozen), value (starts as the reward adapter with a head of zeros, as in the paper). All share one base unless
`reward.base` names another for reward and value. Each rests in host memory while a phase does not need it.
Left out against the paper's code, on purpose: its clamp of negative KL terms, its unmasked means, its rule on question marks.
The checkpoint that is kept is chosen by the judge on dev prompts; without dev prompts it is the last one. Truth is not read.
Out: adapter/ (role "policy"), samples.jsonl.

Letters: B rollouts, R answer tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from minirlaif import distributed
from minirlaif.algorithms.losses import ppo_policy_loss, total_stats, value_loss
from minirlaif.algorithms.rollout import Rollout, collect
from minirlaif.config import Config
from minirlaif.errors import StageStopped, UserError
from minirlaif.feedback.win_rate import WinRateEvaluator
from minirlaif.models.logprobs import micro_batches, token_logprobs, token_values
from minirlaif.models.model_config import base_hash
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, critic_config, located, open_session, read_samples, readable, settings_of, stored
from minirlaif.stages.registry import STAGES
from minirlaif.training.optim import (
    check_finite,
    make_accelerator,
    make_optimizer,
    optimizer_step,
    read_extra,
    read_optimizer,
    shuffled,
    write_state,
)
from minirlaif.training.schedules import learning_rate
from minirlaif.types import Sample

RATIO_TOLERANCE = 0.02  # of the first ratio from 1; low precision and other batch shapes move it a little


@dataclass
class Learner:
    """What an update changes: weights by role, optimisers, and a few plain values that a resumed run needs."""

    accelerator: Any
    parameters: dict[str, list[Any]]
    optimizers: dict[str, Any]
    extra: dict[str, Any]


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. prompts 2. roles and optimisers 3. iterations: collect, update, log, sometimes judge 4. the chosen policy."""
    settings = settings_of(cfg, *STAGES["ppo"].sections, sources=STAGES["ppo"].reads)
    settings["context"] = cfg.reward.context
    settings["reward_base"] = base_hash(critic_config(cfg).model) if cfg.reward.base else ""
    with run.stage("ppo", settings, inputs=run.inputs("ppo"), redo=redo) as out:
        if out is None:
            return
        _refuse_poor_reward(cfg, run)
        # 1. prompts
        prompts = read_samples(cfg, run, "prompts", need_answers=False)
        dev = read_samples(cfg, run, "dev", need_answers=False) if cfg.data.world or cfg.data.dev else []
        contexts = _contexts(run)
        with open_session(cfg, run, for_ppo=True) as session:
            prompts = [row for row in readable(session, prompts) if row.video in contexts]
            dev = [row for row in readable(session, dev) if row.video in contexts] if dev else []
            if not prompts:
                again = run.remake("feedback")
                raise UserError(f"ppo: no prompt is left whose clip `feedback` has described; make it again: `{again}`")
            # 2. roles and optimisers
            begun = out.resume()
            learner = _open(session, run, begun[1] if begun else None)
            bias = float((run.manifest("reward") or {})["metrics"]["bias"])
            first = begun[0] if begun else 0
            judged = WinRateEvaluator(session, dev, contexts)
            # 3. iterations
            total = cfg.ppo.iterations
            for step in progress(range(first, total), total, "ppo", initial=first):
                if step == 0 and dev:
                    _keep_best(session, out, learner, judged, 0)
                rows = _next_prompts(prompts, cfg, step)
                rollout, stats = collect(session, rows, contexts, learner.extra, bias, step)
                if step % 5 == 0:
                    told = session.backbone.renderer.decode(rollout.rows[0].answer)
                    asked = {"video": stored(run, rows[0].video), "question": rows[0].turns[0].question}
                    out.sample({"iteration": step, **asked, "answer": told, "mean_score": stats["score"]})
                stats |= update(session, rollout, learner, step)
                check_finite("ppo", step + 1, {"policy loss": stats["policy_loss"], "value loss": stats["value_loss"]})
                done = step + 1
                out.summary.update({"kl": stats["kl"], "score": stats["score"]})
                stopped = bool(cfg.ppo.max_kl) and stats["kl"] > cfg.ppo.max_kl
                if dev and (done % cfg.ppo.dev_every == 0 or done == total or stopped):
                    stats["dev_win_rate"] = _keep_best(session, out, learner, judged, done)
                out.log(done, **stats)
                learner.accelerator.log({f"ppo/{k}": v for k, v in stats.items()}, step=step)
                if stopped:
                    print(f"ppo: stopped at iteration {done}, KL {stats['kl']:.2f} nats is over ppo.max_kl", flush=True)
                    break
                if out.due(done, cfg.ppo.save_every):
                    session.counted(out)
                    out.commit_state(done, lambda folder: _write_state(folder, session, learner))
            # 4. the chosen policy
            if not dev:
                session.adapters.save("policy", out.path / "adapter")
                learner.extra["best"] = {"iteration": total}
            session.counted(out)
            best = learner.extra["best"]
            out.summary.update({"chosen_iteration": best["iteration"], "dev_win_rate": best.get("win_rate")})
            out.summary["dev_questions"] = len(dev)


def _refuse_poor_reward(cfg: Config, run: Run) -> None:
    metrics = (run.manifest("reward") or {"metrics": {}})["metrics"]
    accuracy = float(metrics.get("accuracy", 0.0))
    if cfg.reward.min_accuracy and not metrics.get("held_out_pairs"):
        raise UserError(
            "ppo: no pair was held out to examine the reward model on: raise reward.held_out, or set reward.min_accuracy=0"
        )
    if accuracy < cfg.reward.min_accuracy:
        raise UserError(
            f"ppo: the reward model is right on {accuracy:.2f} of held-out pairs, reward.min_accuracy asks for"
            f" {cfg.reward.min_accuracy}: label more prompts, or lower it with --set reward.min_accuracy={accuracy:.2f}"
        )


def _contexts(run: Run) -> dict[str, str]:
    rows = read_jsonl(run.require("feedback") / "contexts.jsonl")
    return {located(run, row["video"]): row["context"] for row in rows}


def _open(session: ModelSession, run: Run, state: Path | None) -> Learner:
    cfg, critic = session.cfg, session.critic.adapters
    sft, reward = run.adapter("sft"), run.adapter("reward")
    session.adapters.add("policy", 0, state / "policy" if state else sft)
    session.reference.adapters.add("reference", 0, sft)
    critic.add("reward", 0, reward)
    critic.load_head("reward", reward)
    critic.add("value", 0, state / "value" if state else reward)
    if state:
        critic.load_head("value", state / "value")
    else:
        critic.add_head("value", 0)
    accelerator = make_accelerator(cfg, run.root)
    parameters = {"policy": session.adapters.parameters("policy"), "value": critic.parameters("value")}
    optimizers = {
        role: make_optimizer(accelerator, weights, cfg.ppo.learning_rate, cfg.ppo.weight_decay, cfg.model.optimizer)
        for role, weights in parameters.items()
    }
    extra: dict[str, Any] = {"updates": 0, "score_mean": None, "score_deviation": None, "best": {}}
    if state:
        extra = read_extra(state)
        for role, optimizer in optimizers.items():
            if (state / f"{role}.optimizer.safetensors").is_file():
                read_optimizer(state, role, optimizer)
    enable_offload(session)
    return Learner(accelerator, parameters, optimizers, extra)


def enable_offload(session: ModelSession) -> None:
    """From now on every role is on the device only while a phase asks for it, but for what `reference.rest` and
    `reward.rest` keep there."""
    session.adapters.enable_offload("policy")
    if session.cfg.reference.rest == "cpu":
        session.reference.adapters.enable_offload("reference")
    for role in ("reward", "value"):
        session.critic.adapters.enable_offload(role)


def _write_state(folder: Path, session: ModelSession, learner: Learner) -> None:
    owners = {"policy": session.adapters, "value": session.critic.adapters}
    write_state(folder, owners, learner.optimizers, learner.extra)


def _next_prompts(prompts: Sequence[Sample], cfg: Config, step: int) -> list[Sample]:
    """The prompts of an iteration: epochs over all of them, each in an order of its own."""
    places = [divmod(p, len(prompts)) for p in range(step * cfg.rollout.rollouts, (step + 1) * cfg.rollout.rollouts)]
    orders = {e: shuffled(len(prompts), cfg.seed, "ppo", e) for e in {e for e, _ in places}}
    return [prompts[orders[e][i]] for e, i in places]


def update(session: ModelSession, rollout: Rollout, learner: Learner, step: int) -> dict[str, float]:
    """Some epochs of clipped policy and value steps over one batch of rollouts. StageStopped if the first ratio is not 1."""
    cfg, p = session.cfg, session.cfg.ppo
    count = len(rollout.rows)
    sizes = [len(row) for row in rollout.rows]
    rate = learning_rate(step, p.iterations, p.learning_rate, p.warmup_steps, p.schedule)
    all_stats: list[dict[str, float]] = []
    with session.adapters.on_device("policy"), session.critic.adapters.on_device("value"):
        for epoch in range(p.epochs):
            order = shuffled(count, cfg.seed, "ppo-order", step, epoch)
            for start in range(0, count, p.minibatch_size):
                chosen = order[start : start + p.minibatch_size]
                counted = int(rollout.mask_BR[chosen].sum())
                groups = [[chosen[i] for i in group] for group in micro_batches([sizes[i] for i in chosen], p.micro_batch_size)]
                stats = total_stats(distributed.mapped(partial(_micro, session, rollout, learner, counted), groups))
                if not all_stats and stats["ratio_gap"] > RATIO_TOLERANCE and session.backbone.device.type == "cpu":
                    raise StageStopped(f"ppo: the first ratio is off 1 by {stats['ratio_gap']:.3g}: rollout and update disagree")
                for role in ("policy", "value"):
                    distributed.sum_gradients(learner.parameters[role])
                    norm = optimizer_step(
                        learner.accelerator, learner.optimizers[role], learner.parameters[role], rate, p.max_grad_norm
                    )
                    stats[f"{role}_grad_norm"] = norm
                    check_finite("ppo", step + 1, {f"{role} gradient norm": norm})
                learner.extra["updates"] += 1
                all_stats.append(stats)
    mean = {name: sum(s[name] for s in all_stats) / len(all_stats) for name in all_stats[0]}
    return mean | {"first_ratio_gap": all_stats[0]["ratio_gap"], "learning_rate": rate}


def _micro(session: ModelSession, rollout: Rollout, learner: Learner, counted: int, index: list[int]) -> dict[str, float]:
    """Gradients of policy and value for some rows; `counted` answer tokens of the whole minibatch are the denominator."""
    p, backbone, critic, device = session.cfg.ppo, session.backbone, session.critic, session.backbone.device
    width = int(rollout.mask_BR[index].sum(1).max())

    def part(x_BR: Tensor) -> Tensor:
        return x_BR[index, :width].to(device)

    mask_BR = part(rollout.mask_BR)
    with session.adapters.training_as("policy"), learner.accelerator.autocast():
        new_BR, _, _ = token_logprobs(backbone, [rollout.rows[i] for i in index], session.cfg.rollout.temperature)
        loss, stats = ppo_policy_loss(new_BR, part(rollout.logprobs_BR), part(rollout.advantages_BR), mask_BR, p.clip, counted)
        learner.accelerator.backward(loss)
    with critic.adapters.training_as("value"), learner.accelerator.autocast():
        values_BR, _ = token_values(critic.backbone, critic.adapters.heads["value"], [rollout.critic_rows[i] for i in index])
        v_loss, v_stats = value_loss(values_BR, part(rollout.values_BR), part(rollout.returns_BR), mask_BR, p.value_clip, counted)
        learner.accelerator.backward(p.vf_coef * v_loss)
    found = {f"value_{name.removeprefix('value_')}": value for name, value in v_stats.items()}
    return stats | found | {"policy_loss": float(loss.detach()), "value_loss": float(v_loss.detach())}


def _keep_best(session: ModelSession, out: StageDir, learner: Learner, judged: WinRateEvaluator, iteration: int) -> float:
    """Judge the policy on dev prompts; its adapter is kept when it is the best so far."""
    rate = distributed.from_leader(judged.win_rate)  # one judge: everyone keeps the same checkpoint
    if rate > learner.extra["best"].get("win_rate", -1.0):
        learner.extra["best"] = {"iteration": iteration, "win_rate": rate}
        shutil.rmtree(out.path / "adapter", ignore_errors=True)
        session.adapters.save("policy", out.path / "adapter")
    return rate
