"""Stage `ppo`: the policy learns from the reward model's scores (paper section 3.3).

Roles: policy (starts as the SFT adapter), reference (a frozen copy of it; `reference.kind` gives it base weights of its own),
reward (frozen), value (starts as the reward adapter with a head of zeros, as in the paper). All share one base unless
`reward.base` names another for reward and value. Each is offloaded to host memory while a phase does not need it.
The checkpoint that is kept is chosen by the judge on dev prompts; without dev prompts it is the last one. Truth is not read.
Out: adapter/ (role "policy"), samples.jsonl.
"""

from pathlib import Path

from minirlaif import distributed
from minirlaif.algorithms.ppo import Learner
from minirlaif.algorithms.rollout import Rollout, RolloutCollector
from minirlaif.config import Config, PpoSection, RewardSection
from minirlaif.data.preflight import Preflight, read_dev, read_samples
from minirlaif.errors import UserError
from minirlaif.feedback.win_rate import WinRateEvaluator
from minirlaif.models.loading import base_hash, critic_model
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import PPOModels, open_ppo_models, settings_of
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import PPOProgress, Start
from minirlaif.training.epoch_sampler import epoch_batch
from minirlaif.training.optim import AdapterTrainer, check_finite, make_accelerator

SAMPLE_EVERY = 5  # of so many iterations one answer stands in samples.jsonl


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. prompts 2. roles and optimisers 3. iterations: collect, update, log, sometimes judge 4. the chosen policy."""
    settings = settings_of(cfg.seed, cfg.data, STAGES["ppo"].reads, **cfg.sections(*STAGES["ppo"].sections))
    settings["context"] = cfg.reward.context
    settings["reward_base"] = base_hash(critic_model(cfg.model, cfg.reward)) if cfg.reward.base else ""
    with run.stage("ppo", settings, inputs=run.inputs("ppo"), redo=redo) as out:
        if out is None:
            return
        _refuse_poor_reward(cfg.reward, run)
        # 1. prompts
        missing = cfg.video.max_unreadable
        prompts = read_samples(cfg.data, run, "prompts", need_answers=False, max_missing=missing)
        dev = read_dev(cfg.data, run, missing)
        run.require("feedback")
        contexts = {
            run.located(row["video"]): row["context"] for row in run.rows("feedback", "contexts.jsonl", "video", "context")
        }
        checks = Preflight(cfg.data, cfg.sft, cfg.reward)
        with open_ppo_models(run, cfg.model, cfg.video, checks, cfg.reference, cfg.reward) as models:
            prompts = [row for row in models.policy.readable(prompts) if row.video in contexts]
            dev = [row for row in models.policy.readable(dev) if row.video in contexts] if dev else []
            models.policy.record_clips(run, out, [*prompts, *dev])
            if not prompts:
                again = run.remake("feedback")
                raise UserError(f"ppo: no prompt is left whose clip `feedback` has described; make it again: `{again}`")
            # 2. roles and optimisers
            first, state = out.resume() or (0, None)
            adapters = {name: run.adapter(name) for name in ("sft", "reward")}
            learner = build(models, cfg.ppo, Start(cfg.seed, run.root, cfg.report_to, adapters, state=state))
            bias = float(run.metrics("reward", "bias")["bias"])
            read = contexts if cfg.reward.context else None
            collector = RolloutCollector(models, cfg.rollout, cfg.seed, read, bias, learner.progress)
            evaluator = WinRateEvaluator(models, dev, contexts, cfg.feedback, cfg.rollout.max_new_tokens)
            # 3. iterations
            total = cfg.ppo.iterations
            for number in progress(range(first, total), total, "ppo", initial=first):
                if number == 0 and dev:
                    _keep_best(out, learner, evaluator, 0)
                batch = epoch_batch(prompts, cfg.rollout.rollouts, number, cfg.seed, "ppo")
                rollout, stats = collector.collect(batch, number)
                if number % SAMPLE_EVERY == 0:
                    answer = models.policy.backbone.renderer.decode(rollout.rows[0].answer)
                    question = {"video": run.stored(batch[0].video), "question": batch[0].turns[0].question}
                    out.sample({"iteration": number, **question, "answer": answer, "mean_score": stats["score"]})
                stats |= step(learner, rollout, number)
                done = number + 1
                check_finite("ppo", done, {"policy loss": stats["policy_loss"], "value loss": stats["value_loss"]})
                out.summary.update({"kl": stats["kl"], "score": stats["score"]})
                stopped = bool(cfg.ppo.max_kl) and stats["kl"] > cfg.ppo.max_kl
                if dev and (done % cfg.ppo.dev_every == 0 or done == total or stopped):
                    stats["dev_win_rate"] = _keep_best(out, learner, evaluator, done)
                out.log(done, **stats)
                learner.accelerator.log({f"ppo/{k}": v for k, v in stats.items()}, step=number)
                if stopped:
                    print(f"ppo: stopped at iteration {done}, KL {stats['kl']:.2f} nats is over ppo.max_kl", flush=True)
                    break
                if out.due(done, cfg.ppo.save_every):
                    models.add_counters(out)
                    out.commit_state(done, lambda folder: _save(folder, learner), kept=_folder_name(learner))
            # 4. the chosen policy
            if dev:
                out.publish_kept(_folder_name(learner), "adapter")
            else:
                models.policy.adapters.save("policy", out.path / "adapter")
                learner.progress.best = {"iteration": total}
            models.add_counters(out)
            best = learner.progress.best
            out.summary.update({"chosen_iteration": best["iteration"], "dev_win_rate": best.get("win_rate")})
            out.summary["dev_questions"] = len(dev)


def build(models: PPOModels, section: PpoSection, start: Start) -> Learner:
    """The four roles with their optimisers. Adapters of `start`: "sft" for policy and reference, "reward" for reward and value;
    fresh ones where they are not named."""
    critic, state = models.critic.adapters, start.state
    sft, reward = start.adapters.get("sft"), start.adapters.get("reward")
    models.policy.adapters.add("policy", 0, state / "policy" if state else sft)
    models.reference.adapters.add("reference", 0, sft)
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
    return Learner(models, section, start.seed, accelerator, trainers, PPOProgress.read(state) if state else PPOProgress())


def step(learner: Learner, batch: Rollout, number: int) -> dict[str, float]:
    """One iteration's update of policy and value; returns its statistics. number: of the iteration, from 0."""
    return learner.update(batch, number)


def _save(folder: Path, learner: Learner) -> None:
    for trainer in learner.trainers.values():
        trainer.save(folder)
    learner.progress.write(folder)


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


def _keep_best(out: StageDir, learner: Learner, evaluator: WinRateEvaluator, iteration: int) -> float:
    """Judge the policy on dev prompts; its adapter is kept when it is the best so far."""
    rate = distributed.from_leader(evaluator.win_rate)  # one judge: every process keeps the same checkpoint
    if rate > learner.progress.best.get("win_rate", -1.0):
        learner.progress.best = {"iteration": iteration, "win_rate": rate}
        learner.models.policy.adapters.save("policy", out.kept(_folder_name(learner)))
    return rate


def _folder_name(learner: Learner) -> str:
    """Of the best policy so far: the state names its iteration, so that policy and record change together."""
    return f"iteration-{learner.progress.best['iteration']}" if learner.progress.best else ""
