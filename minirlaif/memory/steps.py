"""One step of every stage, by the stages' own `build` and `step`: what `bench` times and `plan --probe` tries.

A stage's step here is two micro-batches (or one batch of rollouts): with two of them gradients have piled up, as in a run,
and more change nothing about memory. `Done.share` says which part of a real step that was.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from minirlaif.algorithms.group import METHODS
from minirlaif.algorithms.ppo import PolicyLearner
from minirlaif.algorithms.rollout import RolloutCollector
from minirlaif.config import Config, FeedbackSection
from minirlaif.data.preflight import Preflight
from minirlaif.feedback import questions
from minirlaif.feedback.describe import describe_segments
from minirlaif.feedback.label import draw_answers, judge_pairs
from minirlaif.feedback.readout import AUTO
from minirlaif.memory import policy_steps
from minirlaif.memory.planner import STEPS
from minirlaif.memory.random_model import random_models
from minirlaif.models.loading import critic_model, read_config
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, PPOModels, open_ppo_models
from minirlaif.stages import distill, dpo, evaluate, ppo, reward, sft
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.types import Comparison, Preference, Sample, Turn

INSTRUCTION = questions.INSTRUCTION.format(count=9, kinds=", ".join(questions.KINDS))
QUESTION, ANSWER = 40, 254  # tokens of a made-up question and of its SFT answer, less its end


@dataclass(frozen=True)
class Worst:
    """The longest texts of each kind: a question, a conversation of SFT, an answer to compare, and the segment descriptions."""

    video: str
    question: str
    turns: tuple[Turn, ...]
    sampled: str  # as long as a sampled answer may get
    context: str


@dataclass(frozen=True)
class Done:
    """What a step did: how many samples went through, sampled tokens, and which share of a real step it was."""

    samples: int
    tokens: int
    share: float


@dataclass(frozen=True)
class StageProbe:
    """A stage (one of planner.STEPS) of a config, ready to be opened and to take steps. folder: for what the stage writes."""

    full: Config
    stage: str
    folder: Path

    @cached_property
    def small(self) -> Config:
        """The settings with steps of two micro-batches; everything that memory depends on stays."""
        cfg = self.full
        size, pairs, rows = cfg.sft.micro_batch_size, cfg.reward.micro_batch_size, cfg.ppo.micro_batch_size
        each, compared = cfg.rollout.samples_per_prompt, cfg.group.micro_batch_size
        together = max(1, min(cfg.rollout.batch_size, cfg.rollout.rollouts) // each) * each
        return replace(
            cfg,
            report_to="none",
            sft=replace(cfg.sft, batch_size=min(cfg.sft.batch_size, 2 * size)),
            reward=replace(cfg.reward, batch_size=min(cfg.reward.batch_size, 2 * pairs)),
            rollout=replace(cfg.rollout, rollouts=together),
            distill=replace(cfg.distill, batch_size=min(cfg.distill.batch_size, 2 * cfg.distill.micro_batch_size)),
            dpo=replace(cfg.dpo, batch_size=min(cfg.dpo.batch_size, 2 * cfg.dpo.micro_batch_size)),
            group=replace(cfg.group, epochs=1, minibatch_size=min(cfg.group.minibatch_size, 2 * compared, cfg.rollout.rollouts)),
            ppo=replace(cfg.ppo, epochs=1, minibatch_size=min(cfg.ppo.minibatch_size, 2 * rows, cfg.rollout.rollouts)),
        )

    @contextmanager
    def open(self, rows: Mapping[str, Any] | None) -> Iterator[tuple[PPOModels, Worst]]:
        """The stage's models and its longest row: random weights and made-up texts (None), or the real model with a row that
        `longest` gave."""
        cfg = self.small
        sampled = "a" * (cfg.feedback.max_new_tokens - 1)  # with the end token
        model, reward_section, reference = cfg.model, cfg.reward, cfg.reference
        if self.stage == "reward":
            model = critic_model(model, reward_section)
        if self._part not in ("collect", "update"):  # one base is enough
            reward_section, reference = replace(reward_section, base=""), replace(reference, kind="adapter")
        if rows is None:
            context = "c" * (cfg.video.max_segments * (cfg.feedback.describe_tokens + 4))
            turns: tuple[Turn, ...] = (Turn("q" * QUESTION, "a" * ANSWER),)
            models = random_models(model, cfg.video, read_config(model), reference, reward_section)
            yield models, Worst("clip", turns[0].question, turns, sampled, context + "\n")
            return
        checks = Preflight(cfg.data, cfg.sft, reward_section)
        with open_ppo_models(Run(Path(rows["run"])), model, cfg.video, checks, reference, reward_section) as models:
            context = "word " * (cfg.video.max_segments * cfg.feedback.describe_tokens)
            filled = ("word " * cfg.feedback.max_new_tokens)[:-1]
            if self.stage == "reward":  # which reads written answers, too
                filled = max(filled, rows["answer"], key=len)
            turns = tuple(Turn(*turn) for turn in rows["turns"])
            yield models, Worst(rows["video"], rows["question"], turns, filled, context + "\n")

    def prepare(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        """Roles, heads and optimisers of the stage; the result does one step each time it is called."""
        make: Callable[[PPOModels, Worst], Callable[[], Done]] = getattr(self, f"_{self._part}")
        return make(models, worst)

    def size(self, session: ModelSession, worst: Worst) -> tuple[int, int]:
        """Tokens of the prompt and of the written answer of the longest row."""
        video_input = session.video_input(worst.video)
        if self.stage == "questions":
            return len(session.encode_prompt(None, INSTRUCTION, worst.context).ids), self.full.questions.max_new_tokens
        if self.stage == "sft":
            row = session.backbone.renderer.conversation(video_input.frame_layout, worst.turns)
            return len(row) - sum(row.answer), sum(row.answer)
        context = worst.context if self.stage == "reward" and self.full.reward.context else ""
        return len(session.prompt(video_input, worst.question, context)), len(session.answer_ids(worst.sampled))

    @property
    def _method(self) -> str:
        """The stage that this is a step of."""
        return STEPS[self.stage].stage

    @property
    def _part(self) -> str:
        """Which step of its stage: methods that sample have two."""
        return self.stage.removeprefix(f"{self._method}_")

    @property
    def _start(self) -> Start:
        return Start(self.full.seed, self.folder, beta=reward.START_BETA if self.full.reward.likelihood else None)

    @property
    def _judges(self) -> list[FeedbackSection]:
        """The section of the feedback, once for each read-out that may be used."""
        f = self.full.feedback
        return [replace(f, readout=name) for name in (("letter", "likelihood") if f.readout == AUTO else (f.readout,))]

    def _sft(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section = self.small.sft
        trainer = sft.build(models.policy, section, self._start)
        batch = _samples(worst, section.batch_size, worst.turns)
        return _train(lambda: sft.step(trainer, batch, section.learning_rate), len(batch), self.full.sft.batch_size)

    def _reward(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section = self.small.reward
        trainer = reward.build(models.policy, section, self._start)
        batch = _preferences(worst, section.batch_size)
        return _train(lambda: reward.step(trainer, batch, section.learning_rate), len(batch), self.full.reward.batch_size)

    def _distill(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section, session = self.small.distill, models.policy
        trainer = distill.build(session, section, self._start)
        answer = session.answer_ids(worst.sampled)
        batch = [distill.Target(row, answer) for row in _samples(worst, section.batch_size)]
        return _train(lambda: distill.step(trainer, batch, section.learning_rate), len(batch), self.full.distill.batch_size)

    _bestofn = _distill  # other answers, the same step

    def _dpo(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section, session = self.small.dpo, models.policy
        learner = dpo.build(session, section, self._start)
        answer = session.answer_ids(worst.sampled)
        batch = [dpo.JudgedPair(row.id, replace(row, chosen_ids=answer)) for row in _preferences(worst, section.batch_size)]

        def step() -> None:
            learner.reference.clear()  # every pair is new in the first epoch
            dpo.step(learner, batch, section.learning_rate)

        return _train(step, len(batch), self.full.dpo.batch_size)

    def _feedback(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section, session = self.small.feedback, models.policy
        session.adapters.add("sft", 0)
        rows = _samples(worst, section.batch_size)
        context = worst.context if section.context else ""
        pairs = [Comparison(r.id, r.video, worst.question, worst.sampled, worst.sampled[:-1], context) for r in rows]

        def step() -> Done:
            with session.adapters.inference_as("sft"):
                segments = describe_segments(session, [row.video for row in rows], section)  # as if each had a clip of its own
                drawn = draw_answers(session, section, rows, 0, 0)
                for judge in self._judges:
                    judge_pairs(session, judge, pairs)
            texts = [text for described in segments.values() for _, text in described.segments]
            tokens = _tokens(session, texts, section.describe_tokens)
            return Done(len(rows), tokens + sum(len(c.ids) for answers in drawn for c in answers), 1.0)

        return step

    def _questions(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section, written, session = self.small.feedback, self.small.questions, models.policy
        longest = max(written.max_new_tokens, section.max_new_tokens)  # questions, and answers to them
        session.adapters.add("sft", 0)
        rows = _samples(worst, section.batch_size)

        def step() -> Done:
            with session.adapters.inference_as("sft"):
                segments = describe_segments(session, [row.video for row in rows], section)
                notes = [session.encode_prompt(None, INSTRUCTION, worst.context) for _ in rows if written.written]
                texts = session.greedy_texts(notes, longest, section.batch_size)
            described = [text for each in segments.values() for _, text in each.segments]
            tokens = _tokens(session, described, section.describe_tokens) + _tokens(session, texts, longest)
            return Done(len(rows), tokens, 1.0)

        return step

    def _evaluate(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section, session = self.small.evaluate, models.policy
        session.adapters.add("sft", 0)
        session.adapters.add("policy", 0)
        rows = _samples(worst, section.batch_size)

        def step() -> Done:
            texts = evaluate.greedy_answers(session, section, "policy", rows)
            return Done(len(rows), _tokens(session, texts, section.max_new_tokens), 1.0)

        return step

    def _learner(self, models: PPOModels) -> PolicyLearner[Any]:
        small = self.small
        scored = small.optimize.reward == "model"
        return policy_steps.open_learner(models, self._method, small.ppo, small.group, small.rollout, self._start, scored)

    def _collect(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        section = self.small.rollout
        self._learner(models)
        contexts = {worst.video: worst.context} if self.full.reward.context else None
        group = METHODS.get(self._method)
        reward, read = self.full.optimize.reward, {worst.video: worst.context}
        scored = policy_steps.answer_reward(reward, self._judges[0], models, read)
        collector = RolloutCollector(models, section, 0, contexts, 0.0, MethodProgress(), self._method, group, scored)
        prompts = _samples(worst, section.rollouts // section.samples_per_prompt)

        def step() -> Done:
            rollout, _ = collector.collect(prompts, 0)
            return Done(section.rollouts, int(rollout.mask_BR.sum()), section.rollouts / self.full.rollout.rollouts)

        return step

    def _update(self, models: PPOModels, worst: Worst) -> Callable[[], Done]:
        learner = self._learner(models)
        count, epochs = learner.section.minibatch_size, (self.full.group if self._method in METHODS else self.full.ppo).epochs
        rows = _samples(worst, count)
        context = worst.context if self.full.reward.context else ""
        made = policy_steps.full_rollouts(models, self.small.rollout, rows, context, values="value" in learner.trainers)

        def step() -> Done:
            ppo.step(learner, made(), 0)
            return Done(count, 0, count / (self.full.rollout.rollouts * epochs))

        return step


def _train(step: Callable[[], object], samples: int, batch_size: int) -> Callable[[], Done]:
    def train() -> Done:
        step()
        return Done(samples, 0, samples / batch_size)

    return train


def _samples(worst: Worst, count: int, turns: tuple[Turn, ...] = ()) -> list[Sample]:
    """Rows of the longest conversation, or question. One is a little shorter: real rows differ in length, and padding brings a
    mask, which costs memory."""
    first, *others = turns or (Turn(worst.question),)
    shorter = replace(first, question=first.question[:-1])
    return [Sample(str(i), worst.video, (first if i else shorter, *others)) for i in range(count)]


def _preferences(worst: Worst, count: int) -> list[Preference]:
    """Pairs of the longest answers."""
    answers = worst.sampled, worst.sampled[:-1]
    return [Preference(str(i), worst.video, worst.question, *answers, worst.context) for i in range(count)]


def _tokens(session: ModelSession, texts: Sequence[str], most: int) -> int:
    """Tokens that texts took to generate, at most `most` each."""
    return sum(min(most, len(session.answer_ids(text))) for text in texts)


def timed(step: Callable[[], Done]) -> tuple[Done, float]:
    """A step and its seconds."""
    started = time.perf_counter()
    done = step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done, time.perf_counter() - started
