"""Stages `ppo` (paper section 3.3), `rloo`, `grpo` and `dr_grpo`: the policy learns from scores of answers that it samples, given
by the reward model or by what `optimize.reward` names. `ppo` has a value model; the others compare the answers to one prompt
(algorithms/group.py) and have none.

Roles: policy (starts as the SFT adapter, or that of the method before), reference (a frozen copy of it; `reference.kind` gives
it base weights of its own), reward (frozen), value (starts as the reward adapter with a head of zeros, as in the paper). All
share one base unless `reward.base` names another for reward and value. Each is offloaded to host memory while a phase does not
need it. The checkpoint that is kept is chosen by the judge on dev prompts; without dev prompts it is the last one. Truth
is not read.
Out: adapter/ (role "policy"), samples.jsonl.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from minirlaif import distributed
from minirlaif.algorithms.group import METHODS
from minirlaif.algorithms.ppo import GroupLearner, Learner, PolicyLearner
from minirlaif.algorithms.reward_file import ENDING, RewardFile
from minirlaif.algorithms.rewards import AnswerReward, FileReward, JudgeReward
from minirlaif.algorithms.rollout import Rollout, RolloutCollector
from minirlaif.config import Config, FeedbackSection, GroupSection, PpoSection, RewardSection, RolloutSection
from minirlaif.data.preflight import Preflight, check_column, read_samples
from minirlaif.errors import UserError
from minirlaif.feedback.judge import comparison_tokens
from minirlaif.feedback.readout import known_readout
from minirlaif.judges.grade import ChatJudge
from minirlaif.models.loading import base_hash, critic_model
from minirlaif.runs.io import read_jsonl, sha256
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import PPOModels, open_ppo_models, settings_of
from minirlaif.stages import method_loop
from minirlaif.stages.registry import STAGES
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.training.epoch_sampler import epoch_batch
from minirlaif.training.optim import AdapterTrainer, check_finite, make_accelerator

JUDGED = ("judge", "rank")  # values of optimize.reward with which the judge scores
SAMPLE_EVERY = 5  # of so many iterations one answer stands in samples.jsonl
POOR_CRITIC, FEWEST_ITERATIONS = 0.05, 10  # explained variance; and from how many iterations on it says something


def run(cfg: Config, run: Run, redo: bool = False, name: str = "ppo") -> None:
    """1. prompts 2. roles and optimisers 3. iterations: collect, update, log, sometimes judge; then the chosen policy."""
    stage, group = STAGES[name], METHODS.get(name)
    settings = settings_of(cfg.seed, cfg.data, stage.reads, **cfg.sections(*stage.sections))
    settings["context"] = cfg.reward.context
    settings["reward_base"] = base_hash(critic_model(cfg.model, cfg.reward)) if cfg.reward.base else ""
    if (scored_by := cfg.optimize.reward) != "model":
        settings["scored_by"] = sha256(Path(scored_by)) if scored_by.endswith(ENDING) else scored_by
    with run.stage(name, settings, inputs=run.inputs(name), redo=redo) as out:
        if out is None:
            return
        if scored_by == "model":
            _refuse_poor_reward(cfg.reward, run, name)
        # 1. prompts
        prompts = read_samples(cfg.data, run, "prompts", need_answers=False, max_missing=cfg.video.max_unreadable)
        questions = method_loop.read_questions(cfg.data, run, prompts, cfg.video.max_unreadable)
        checks = Preflight(cfg.data, cfg.sft, cfg.reward)
        with open_ppo_models(run, cfg.model, cfg.video, checks, cfg.reference, cfg.reward) as models:
            questions = questions.readable(models.policy, run, out, name)
            check_column(cfg.rollout.normalize_by, questions.prompts)
            # 2. roles and optimisers
            first, state = out.resume() or (0, None)
            adapters = {"start": start} if (start := run.start_adapter(name)) else {}
            adapters |= {"reward": run.adapter("reward")} if scored_by == "model" else {}
            begin, r = Start(cfg.seed, run.folder, cfg.report_to, adapters, state=state), cfg.rollout
            learner: PolicyLearner[Any] = (
                build_group(models, cfg.group, begin, name, r, scored_by == "model")
                if group
                else build(models, cfg.ppo, begin, scored_by == "model")
            )
            bias = float(run.metrics("reward", "bias")["bias"]) if scored_by == "model" else 0.0
            read = questions.contexts if cfg.reward.context else None
            judge = (
                method_loop.open_method_judge(cfg.feedback, run, name, models) if questions.dev or scored_by in JUDGED else None
            )
            reward = _reward(scored_by, models, known_readout(cfg.feedback, run), questions, judge)
            if isinstance(reward, JudgeReward):
                _forecast(reward, r, learner.section, cfg.video.max_segments, len(questions.dev))
            collector = RolloutCollector(models, r, cfg.seed, read, bias, learner.progress, name, group, reward)
            dev = None
            if questions.dev:
                dev = method_loop.evaluator(cfg.feedback, run, name, models, questions, r.max_new_tokens, judge)

            # 3. iterations
            def iterate(number: int) -> dict[str, float]:
                batch = epoch_batch(questions.prompts, r.rollouts // r.samples_per_prompt, number, cfg.seed, name)
                rollout, stats = collector.collect(batch, number)
                if number % SAMPLE_EVERY == 0:
                    answer = models.policy.backbone.renderer.decode(rollout.rows[0].answer)
                    question = {"video": run.stored(batch[0].video), "question": batch[0].turns[0].question}
                    out.sample({"iteration": number, **question, "answer": answer, "mean_score": stats["score"]})
                stats |= step(learner, rollout, number)
                losses = {loss: stats[f"{loss}_loss"] for loss in learner.trainers}
                check_finite(name, number + 1, {f"{loss} loss": value for loss, value in losses.items()}, learner.settings_name)
                out.summary.update({"kl": stats["kl"], "score": stats["score"]})
                return stats

            def stop(stats: Mapping[str, float]) -> str:
                over = bool(p.max_kl) and stats["kl"] > p.max_kl
                return f"KL {stats['kl']:.2f} nats is over {learner.settings_name}.max_kl" if over else ""

            p, save = learner.section, partial(_save, learner)
            accelerator, state_of = learner.accelerator, learner.progress
            loop = method_loop.Loop(name, p.iterations, p, iterate, save, state_of, accelerator, stop)
            method_loop.train(out, models, loop, dev, first)
            _count_equal(out, learner.progress, name)
            if not group:
                _note_critic(out, r, cfg.ppo.vf_coef)


def build(models: PPOModels, section: PpoSection, start: Start, reward: bool = True) -> Learner:
    """The four roles with their optimisers, or three without a reward model. Adapters of `start`: "start" for policy and
    reference, "reward" for reward and value; fresh ones where they are not named. Without a reward model the value model begins
    as the policy does."""
    critic, state = models.critic.adapters, start.state
    _add_frozen(models, start, reward)
    critic.add("value", 0, state / "value" if state else start.adapters.get("reward" if reward else "start"))
    if state:
        critic.load_head("value", state / "value")
    else:
        critic.add_head("value", 0)
    accelerator = make_accelerator(models.policy.model, start.report_to, start.folder)
    owners = {"policy": models.policy, "value": models.critic}
    trainers = {role: AdapterTrainer(owner, role, section, accelerator, state) for role, owner in owners.items()}
    models.enable_offload()
    return Learner(models, section, start.seed, accelerator, trainers, MethodProgress.read(state) if state else MethodProgress())


def build_group(
    models: PPOModels, section: GroupSection, start: Start, name: str, rollout: RolloutSection, reward: bool = True
) -> GroupLearner:
    """As `build` without the role "value", for the method `name`."""
    _add_frozen(models, start, reward)
    accelerator = make_accelerator(models.policy.model, start.report_to, start.folder)
    trainers = {"policy": AdapterTrainer(models.policy, "policy", section, accelerator, start.state)}
    models.enable_offload()
    progress = MethodProgress.read(start.state) if start.state else MethodProgress()
    method = METHODS[name]
    return GroupLearner(models, section, start.seed, accelerator, trainers, progress, name, method=method, rollout=rollout)


def _add_frozen(models: PPOModels, start: Start, with_reward: bool) -> None:
    """The roles "policy", which alone of them learns, "reference", and where there is a reward model "reward"."""
    critic, reward = models.critic.adapters, start.adapters.get("reward")
    method_loop.add_policy(models, start.seed, start.adapters.get("start"), start.state)
    if not with_reward:
        return
    critic.add("reward", 0, reward)
    if reward:
        critic.load_head("reward", reward)
    else:
        critic.add_head("reward", 0, start=0.01, beta=start.beta)


def _reward(
    scored_by: str,
    models: PPOModels,
    section: FeedbackSection,
    questions: method_loop.Questions,
    judge: method_loop.MethodJudge | None,
) -> AnswerReward | None:
    """What scores answers in place of the reward model, by optimize.reward; None: the reward model does."""
    if scored_by.endswith(ENDING):
        return FileReward(RewardFile(scored_by), models.policy)
    if judge is None or scored_by not in JUDGED:
        return None
    role, text_judge = judge
    return JudgeReward(models.reference, role, section, questions.contexts, text_judge, ranked=scored_by == "rank")


def _forecast(reward: JudgeReward, rollout: RolloutSection, section: PpoSection | GroupSection, segments: int, dev: int) -> None:
    """Print what a chat model that scores answers may cost, with what it judges of dev prompts. UserError when that is above its
    max_cost. dev: how many dev prompts."""
    if isinstance(reward.text_judge, ChatJudge) and distributed.leads():
        n, iterations = rollout.samples_per_prompt, section.iterations
        comparisons = iterations * (rollout.rollouts // n) * n * (n - 1)  # each pair in both orders
        comparisons += 2 * dev * (1 + math.ceil(iterations / section.dev_every))
        each = comparison_tokens(reward.section, segments, rollout.max_new_tokens)
        less = "or compare less often: iterations, rollout.rollouts, rollout.samples_per_prompt"
        print(reward.text_judge.forecast(comparisons, each, less=less), flush=True)


def step(learner: PolicyLearner[Any], batch: Rollout, number: int) -> dict[str, float]:
    """One iteration's update of policy and value model; returns its statistics. number: of the iteration, from 0."""
    return learner.update(batch, number)


def _save(learner: PolicyLearner[Any], folder: Path) -> None:
    for trainer in learner.trainers.values():
        trainer.save(folder)
    learner.progress.write(folder)


def _count_equal(out: StageDir, progress: MethodProgress, name: str) -> None:
    """Record the share of prompts whose answers all had one reward, and say so when that was most of them."""
    equal, groups = progress.equal_groups, progress.groups
    if not groups:
        return
    out.summary["equal_groups"] = equal / groups
    if equal > groups / 2 and distributed.leads():
        print(
            f"{name}: for {equal} of {groups} prompts all answers had the same reward, and nothing was learned from them: raise"
            " rollout.temperature or rollout.samples_per_prompt",
            flush=True,
        )


def _note_critic(out: StageDir, rollout: RolloutSection, vf_coef: float) -> None:
    """Record how much of the returns' variance the values explained over the second half; a warning where that is next to
    nothing."""
    shares = [row["explained_variance"] for row in read_jsonl(out.path / "metrics.jsonl")]
    mean = fmean(shares[len(shares) // 2 :])
    out.summary["explained_variance"] = mean
    if len(shares) >= FEWEST_ITERATIONS and mean < POOR_CRITIC and distributed.leads():
        cures = ["rollout.normalize_score=true"] * (not rollout.normalize_score)
        cures += ["rollout.reward_scale=1"] * (rollout.reward_scale > 1) + ["ppo.vf_coef=0.5"] * (vf_coef < 0.5)
        other = "a method without a value model (optimize.methods=[rloo])"
        text = f"the value model explains {mean:.1%} of the returns' variance, so advantages are noisy"
        print(f"warning: ppo: {text}; try " + (f"--set {' '.join(cures)}, or " if cures else "") + other, flush=True)


def _refuse_poor_reward(section: RewardSection, run: Run, name: str) -> None:
    metrics = run.metrics("reward")
    accuracy = float(metrics.get("accuracy") or 0.0)
    if section.min_accuracy and not metrics.get("held_out_pairs"):
        raise UserError(
            f"{name}: no pair was held out to test the reward model: raise reward.held_out, or set reward.min_accuracy=0"
        )
    if accuracy < section.min_accuracy:
        raise UserError(
            f"{name}: the reward model's accuracy on held-out pairs is {accuracy:.2f}, below reward.min_accuracy"
            f" {section.min_accuracy}: label more prompts, or lower it with --set reward.min_accuracy={accuracy:.2f}"
        )
