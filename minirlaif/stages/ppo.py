"""Stage `ppo`: the policy learns from the reward model's scores (paper section 3.3).

Roles: policy (starts as the SFT adapter, or that of the method before), reference (a frozen copy of it; `reference.kind` gives
it base weights of its own), reward (frozen), value (starts as the reward adapter with a head of zeros, as in the paper). All
share one base unless `reward.base` names another for reward and value. Each is offloaded to host memory while a phase does not
need it. The checkpoint that is kept is chosen by the judge on dev prompts; without dev prompts it is the last one. Truth
is not read.
Out: adapter/ (role "policy"), samples.jsonl.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean

from minirlaif import distributed
from minirlaif.algorithms.ppo import Learner
from minirlaif.algorithms.rollout import Rollout, RolloutCollector
from minirlaif.config import Config, PpoSection, RewardSection, RolloutSection
from minirlaif.data.preflight import Preflight, read_samples
from minirlaif.errors import UserError
from minirlaif.models.loading import base_hash, critic_model
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import PPOModels, open_ppo_models, settings_of
from minirlaif.stages import method_loop
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.training.epoch_sampler import epoch_batch
from minirlaif.training.optim import AdapterTrainer, check_finite, make_accelerator

SAMPLE_EVERY = 5  # of so many iterations one answer stands in samples.jsonl
POOR_CRITIC, FEWEST_ITERATIONS = 0.05, 10  # explained variance; and from how many iterations on it says something


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. prompts 2. roles and optimisers 3. iterations: collect, update, log, sometimes judge; then the chosen policy."""
    settings = settings_of(cfg.seed, cfg.data, STAGES["ppo"].reads, **cfg.sections(*STAGES["ppo"].sections))
    settings["context"] = cfg.reward.context
    settings["reward_base"] = base_hash(critic_model(cfg.model, cfg.reward)) if cfg.reward.base else ""
    with run.stage("ppo", settings, inputs=run.inputs("ppo"), redo=redo) as out:
        if out is None:
            return
        _refuse_poor_reward(cfg.reward, run)
        # 1. prompts
        prompts = read_samples(cfg.data, run, "prompts", need_answers=False, max_missing=cfg.video.max_unreadable)
        questions = method_loop.read_questions(cfg.data, run, prompts, cfg.video.max_unreadable)
        checks = Preflight(cfg.data, cfg.sft, cfg.reward)
        with open_ppo_models(run, cfg.model, cfg.video, checks, cfg.reference, cfg.reward) as models:
            questions = questions.readable(models.policy, run, out, "ppo")
            # 2. roles and optimisers
            first, state = out.resume() or (0, None)
            start, reward = run.start_adapter("ppo"), run.adapter("reward")
            adapters = {"reward": reward} | ({"start": start} if start else {})
            learner = build(models, cfg.ppo, Start(cfg.seed, run.folder, cfg.report_to, adapters, state=state))
            bias = float(run.metrics("reward", "bias")["bias"])
            read = questions.contexts if cfg.reward.context else None
            collector = RolloutCollector(models, cfg.rollout, cfg.seed, read, bias, learner.progress)
            dev = (
                method_loop.evaluator(cfg.feedback, run, "ppo", models, questions, cfg.rollout.max_new_tokens)
                if questions.dev
                else None
            )

            # 3. iterations
            def iterate(number: int) -> dict[str, float]:
                batch = epoch_batch(questions.prompts, cfg.rollout.rollouts, number, cfg.seed, "ppo")
                rollout, stats = collector.collect(batch, number)
                if number % SAMPLE_EVERY == 0:
                    answer = models.policy.backbone.renderer.decode(rollout.rows[0].answer)
                    question = {"video": run.stored(batch[0].video), "question": batch[0].turns[0].question}
                    out.sample({"iteration": number, **question, "answer": answer, "mean_score": stats["score"]})
                stats |= step(learner, rollout, number)
                check_finite("ppo", number + 1, {"policy loss": stats["policy_loss"], "value loss": stats["value_loss"]})
                out.summary.update({"kl": stats["kl"], "score": stats["score"]})
                return stats

            def stop(stats: Mapping[str, float]) -> str:
                over = bool(cfg.ppo.max_kl) and stats["kl"] > cfg.ppo.max_kl
                return f"KL {stats['kl']:.2f} nats is over ppo.max_kl" if over else ""

            p, save = cfg.ppo, partial(_save, learner)
            accelerator, state_of = learner.accelerator, learner.progress
            loop = method_loop.Loop("ppo", p.iterations, p.dev_every, p.save_every, iterate, save, state_of, accelerator, stop)
            method_loop.train(out, models, loop, dev, first)
            _note_critic(out, cfg.rollout, cfg.ppo.vf_coef)


def build(models: PPOModels, section: PpoSection, start: Start) -> Learner:
    """The four roles with their optimisers. Adapters of `start`: "start" for policy and reference, "reward" for reward and value;
    fresh ones where they are not named."""
    critic, state = models.critic.adapters, start.state
    reward = start.adapters.get("reward")
    method_loop.add_policy(models, start.seed, start.adapters.get("start"), state)
    critic.add("reward", 0, reward)
    if reward:
        critic.load_head("reward", reward)
    else:
        critic.add_head("reward", 0, start=0.01, beta=start.beta)
    critic.add("value", 0, state / "value" if state else reward)
    if state:
        critic.load_head("value", state / "value")
    else:
        critic.add_head("value", 0)
    accelerator = make_accelerator(models.policy.model, start.report_to, start.folder)
    owners = {"policy": models.policy, "value": models.critic}
    trainers = {role: AdapterTrainer(owner, role, section, accelerator, state) for role, owner in owners.items()}
    models.enable_offload()
    return Learner(models, section, start.seed, accelerator, trainers, MethodProgress.read(state) if state else MethodProgress())


def step(learner: Learner, batch: Rollout, number: int) -> dict[str, float]:
    """One iteration's update of policy and value; returns its statistics. number: of the iteration, from 0."""
    return learner.update(batch, number)


def _save(learner: Learner, folder: Path) -> None:
    for trainer in learner.trainers.values():
        trainer.save(folder)
    learner.progress.write(folder)


def _note_critic(out: StageDir, rollout: RolloutSection, vf_coef: float) -> None:
    """Record how much of the returns' variance the values explained over the second half; a warning where that is next to
    nothing."""
    shares = [row["explained_variance"] for row in read_jsonl(out.path / "metrics.jsonl")]
    mean = fmean(shares[len(shares) // 2 :])
    out.summary["explained_variance"] = mean
    if len(shares) >= FEWEST_ITERATIONS and mean < POOR_CRITIC and distributed.leads():
        cures = ["rollout.normalize_score=true"] * (not rollout.normalize_score)
        cures += ["rollout.reward_scale=1"] * (rollout.reward_scale > 1) + ["ppo.vf_coef=0.5"] * (vf_coef < 0.5)
        text = f"the value model explains {mean:.1%} of the returns' variance, so advantages are noisy"
        print(f"warning: ppo: {text}" + (f"; try --set {' '.join(cures)}" if cures else ""), flush=True)


def _refuse_poor_reward(section: RewardSection, run: Run) -> None:
    metrics = run.metrics("reward")
    accuracy = float(metrics.get("accuracy") or 0.0)
    if section.min_accuracy and not metrics.get("held_out_pairs"):
        raise UserError("ppo: no pair was held out to test the reward model: raise reward.held_out, or set reward.min_accuracy=0")
    if accuracy < section.min_accuracy:
        raise UserError(
            f"ppo: the reward model's accuracy on held-out pairs is {accuracy:.2f}, below reward.min_accuracy"
            f" {section.min_accuracy}: label more prompts, or lower it with --set reward.min_accuracy={accuracy:.2f}"
        )
