"""One step of every stage, by the code of the stages themselves: what `bench` times and `plan --probe` tries.

A stage's step here is two micro-batches (or one batch of rollouts): with two of them gradients have piled up, as in a run,
and more change nothing about memory. `Timed.share` says which part of a real step that was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minirlaif.algorithms.rollout import Rollout, collect
from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.feedback.judge import judge
from minirlaif.memory.random_model import StandIn
from minirlaif.models.generation import sample
from minirlaif.models.logprobs import token_logprobs, token_values
from minirlaif.models.model_config import read_config
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, critic_config, open_session, read_preferences, read_samples
from minirlaif.stages import ppo, reward, sft
from minirlaif.training.optim import generator, make_accelerator, make_optimizer, optimizer_step, seed_of
from minirlaif.types import Comparison, Preference, Sample, Turn
from minirlaif.video.reader import ClipReader, check_clips

QUESTION, ANSWER = 40, 254  # tokens of a stand-in's question and of its SFT answer, less its end


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


def shrunk(cfg: Config) -> Config:
    """The settings with steps of two micro-batches; everything that memory depends on stays."""
    size, pairs, rows = cfg.sft.micro_batch_size, cfg.reward.micro_batch_size, cfg.ppo.micro_batch_size
    together = min(cfg.rollout.batch_size, cfg.rollout.rollouts)
    return replace(
        cfg,
        report_to="none",
        sft=replace(cfg.sft, batch_size=min(cfg.sft.batch_size, 2 * size)),
        reward=replace(cfg.reward, batch_size=min(cfg.reward.batch_size, 2 * pairs)),
        rollout=replace(cfg.rollout, rollouts=together),
        ppo=replace(cfg.ppo, epochs=1, minibatch_size=min(cfg.ppo.minibatch_size, 2 * rows, cfg.rollout.rollouts)),
    )


def prepare(name: str, session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    """Roles, heads and optimisers of a stage; the result does one step each time it is called.

    Args:
        name: one of plan.STEPS; full: the settings before `shrunk`.
    """
    made = {
        "sft": _sft,
        "feedback": _feedback,
        "reward": _reward,
        "collect": _collect,
        "update": _update,
        "evaluate": _evaluate,
    }
    return made[name](session, full, worst, folder)


def _samples(worst: Worst, count: int, turns: tuple[Turn, ...] = ()) -> list[Sample]:
    """Rows of the longest conversation, or question. One is a little shorter: real rows differ in length, and padding brings a
    mask, which costs memory."""
    first, *others = turns or (Turn(worst.question),)
    shorter = replace(first, question=first.question[:-1])
    return [Sample(str(i), worst.video, (first if i else shorter, *others)) for i in range(count)]


def _sft(session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    cfg = session.cfg
    session.adapters.add("sft", seed_of(cfg.seed, "sft"))
    accelerator, parameters = make_accelerator(cfg, folder), session.adapters.parameters("sft")
    optimizer = make_optimizer(accelerator, parameters, cfg.sft.learning_rate, cfg.sft.weight_decay, cfg.model.optimizer)
    rows = _samples(worst, cfg.sft.batch_size, worst.turns)

    def step() -> Done:
        sft.backward(session, accelerator, rows)
        optimizer_step(accelerator, optimizer, parameters, cfg.sft.learning_rate, cfg.sft.max_grad_norm)
        return Done(len(rows), 0, len(rows) / full.sft.batch_size)

    return step


def _reward(session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    cfg = session.cfg
    session.adapters.add("reward", seed_of(cfg.seed, "reward"))
    session.adapters.add_head("reward", 0, start=0.01, beta=reward.START_BETA if cfg.reward.likelihood else None)
    accelerator, parameters = make_accelerator(cfg, folder), session.adapters.parameters("reward")
    optimizer = make_optimizer(accelerator, parameters, cfg.reward.learning_rate, cfg.reward.weight_decay, cfg.model.optimizer)
    pairs = [
        Preference(str(i), worst.video, worst.question, worst.sampled, worst.sampled[:-1], worst.context)
        for i in range(cfg.reward.batch_size)
    ]

    def step() -> Done:
        reward.backward(session, accelerator, pairs)
        optimizer_step(accelerator, optimizer, parameters, cfg.reward.learning_rate, cfg.reward.max_grad_norm)
        return Done(len(pairs), 0, len(pairs) / full.reward.batch_size)

    return step


def _feedback(session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    f = session.cfg.feedback
    session.adapters.add("sft", 0)
    rows = _samples(worst, f.batch_size)

    def step() -> Done:
        with session.adapters.inference_as("sft"):
            drawn = []
            parts = [
                view for row in rows for _, view in session.segment_inputs(row.video)
            ]  # as if every prompt had a clip of its own
            for start in range(0, len(parts), f.batch_size):
                asked = [session.encode_prompt(view, f.describe_prompt) for view in parts[start : start + f.batch_size]]
                drawn += sample(session.backbone, asked, temperature=0, max_new_tokens=f.describe_tokens)
            asked = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in rows]
            drawn += sample(session.backbone, asked, f.answers, f.temperature, f.top_p, f.max_new_tokens, generator(0, "bench"))
            whole = session.video_input(worst.video)
            for context, view in ((worst.context if f.context else "", whole if f.judge_frames else None), ("", whole)):
                pairs = [
                    Comparison(row.id, row.video, worst.question, worst.sampled, worst.sampled[:-1], context) for row in rows
                ]
                judge(session, pairs, {worst.video: view}, f.readout, f.margin, f.disagreement, f.batch_size)
        return Done(len(rows), _tokens(drawn), 1.0)

    return step


def _evaluate(session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    e = session.cfg.evaluate
    session.adapters.add("sft", 0)
    session.adapters.add("policy", 0)
    rows = _samples(worst, e.batch_size)

    def step() -> Done:
        with session.adapters.inference_as("policy"):
            asked = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in rows]
            drawn = sample(session.backbone, asked, temperature=0, max_new_tokens=e.max_new_tokens)
        return Done(len(rows), _tokens(drawn), 1.0)

    return step


def _tokens(drawn: Sequence[Sequence[Any]]) -> int:
    return sum(len(completion.ids) for completions in drawn for completion in completions)


def _learner(session: ModelSession, folder: Path) -> ppo.Learner:
    """The roles of PPO as its stage opens them, without the folders of earlier stages."""
    cfg, critic = session.cfg, session.critic.adapters
    session.adapters.add("policy", 0)
    session.reference.adapters.add("reference", 0)
    critic.add("reward", 0)
    critic.add_head("reward", 0, start=0.01, beta=reward.START_BETA if cfg.reward.likelihood else None)
    critic.add("value", 0)
    critic.add_head("value", 0)
    accelerator = make_accelerator(cfg, folder)
    parameters = {"policy": session.adapters.parameters("policy"), "value": critic.parameters("value")}
    optimizers = {
        role: make_optimizer(accelerator, weights, cfg.ppo.learning_rate, cfg.ppo.weight_decay, cfg.model.optimizer)
        for role, weights in parameters.items()
    }
    learner = ppo.Learner(accelerator, parameters, optimizers, {"updates": 0, "score_mean": None, "score_deviation": None})
    _moments(learner)
    ppo.enable_offload(session)
    return learner


def _moments(learner: ppo.Learner) -> None:
    """Give the optimisers their moments, which a run has from its first step on."""
    import torch

    for role, weights in learner.parameters.items():
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer_step(learner.accelerator, learner.optimizers[role], weights, 0.0, 1.0)


def _collect(session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    cfg, learner = session.cfg, _learner(session, folder)
    rows = _samples(worst, cfg.rollout.rollouts)

    def step() -> Done:
        rollout, _ = collect(session, rows, {worst.video: worst.context}, learner.extra, 0.0, 0)
        return Done(len(rows), int(rollout.mask_BR.sum()), len(rows) / full.rollout.rollouts)

    return step


def _update(session: ModelSession, full: Config, worst: Worst, folder: Path) -> Callable[[], Done]:
    """The update over rollouts with answers of full length, whose old log-probabilities and values come from the scorer."""
    import torch

    cfg, learner, backbone = session.cfg, _learner(session, folder), session.backbone
    count, length = cfg.ppo.minibatch_size, cfg.rollout.max_new_tokens
    letter = backbone.renderer.text_ids("a")
    questions = [row.turns[0].question for row in _samples(worst, count)]
    rows = [session.encode_pair(session.video_input(worst.video), question, letter * length) for question in questions]
    critics = rows
    critic, context = session.critic, worst.context if cfg.reward.context else ""
    if context or critic is not session:
        critics = [
            critic.encode_pair(critic.video_input(worst.video), question, letter * length, context) for question in questions
        ]

    def step() -> Done:
        with session.adapters.on_device("policy"), session.adapters.inference_as("policy"):
            parts = [token_logprobs(backbone, [row], cfg.rollout.temperature) for row in rows]
        with critic.adapters.on_device("value"), critic.adapters.inference_as("value"):
            values = [token_values(critic.backbone, critic.adapters.heads["value"], [row])[0] for row in critics]
        logprobs_BR = torch.cat([part[0] for part in parts]).cpu()
        mask_BR = torch.cat([part[1] for part in parts]).cpu()
        values_BR = torch.cat(values).float().cpu()
        flat = torch.ones_like(logprobs_BR)
        rollout = Rollout(rows, critics, logprobs_BR, values_BR, flat, flat, mask_BR)
        ppo.update(session, rollout, learner, 0)
        return Done(count, 0, count / (full.rollout.rollouts * full.ppo.epochs))

    return step


def size(stage: str, session: ModelSession, worst: Worst) -> tuple[int, int]:
    """Tokens of the prompt and of the written answer of the longest row."""
    view = session.video_input(worst.video)
    if stage == "sft":
        told = session.backbone.renderer.conversation(view.shown, worst.turns)
        return len(told) - sum(told.answer), sum(told.answer)
    context = worst.context if stage == "reward" and session.cfg.reward.context else ""
    return len(session.prompt(view, worst.question, context)), len(session.answer_ids(worst.sampled))


def timed(step: Callable[[], Done]) -> tuple[Done, float]:
    """A step and its seconds."""
    import torch

    started = time.perf_counter()
    done = step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done, time.perf_counter() - started


@contextmanager
def opened(cfg: Config, stage: str, rows: Mapping[str, Any] | None, folder: Path) -> Iterator[tuple[ModelSession, Worst]]:
    """The bench of a stage and its longest row: stand-ins, or the real model with a row that `longest` found."""
    sampled = "a" * (cfg.feedback.max_new_tokens - 1)  # with the end token
    own, for_ppo = critic_config(cfg) if stage == "reward" else cfg, stage in ("collect", "update")
    if rows is None:
        told = "c" * (cfg.video.max_segments * (cfg.feedback.describe_tokens + 4))
        turns: tuple[Turn, ...] = (Turn("q" * QUESTION, "a" * ANSWER),)
        yield StandIn(own, read_config(own.model), for_ppo), Worst("clip", turns[0].question, turns, sampled, told + "\n")
        return
    with open_session(own, Run(Path(rows["run"])), for_ppo) as session:
        told = "word " * (cfg.video.max_segments * cfg.feedback.describe_tokens)
        filled = ("word " * cfg.feedback.max_new_tokens)[:-1]
        if stage == "reward":  # which reads written answers, too
            filled = max(filled, rows["answer"], key=len)
        turns = tuple(Turn(*turn) for turn in rows["turns"])
        yield session, Worst(rows["video"], rows["question"], turns, filled, told + "\n")


def longest(cfg: Config, folder: Path) -> dict[str, Any]:
    """The longest of the config's data, found without the model: "video", "question", "turns" of a conversation (pairs of
    question and answer), "answer" among written preferences; and "run", the folder.

    Raises:
        UserError: there is no data to read before the run.
    """
    if cfg.data.world:
        raise UserError("data.world: the tiny world is made by the run itself, so there is no row to probe; use `bench`")
    run = Run(folder)
    parts = [part for part in ("sft", "prompts", "dev", "test") if getattr(cfg.data, part)]
    rows = {part: read_samples(cfg, run, part, need_answers=part == "sft") for part in parts}
    written = [row for source in cfg.data.preferences for row in read_preferences(source, cfg.data.videos)]
    asked = [row.turns[0].question for some in rows.values() for row in some] + [row.question for row in written]
    if not asked:
        raise UserError("data: names no file, so there is no row to probe; set data.sft and data.prompts")
    question = max(asked, key=len)
    talks = [[(turn.question, turn.answer or "") for turn in row.turns] for row in rows.get("sft", ())]
    turns = max(talks, key=lambda talk: sum(len(text) for turn in talk for text in turn), default=[(question, "")])
    answer = max((text for row in written for text in (row.chosen, row.rejected)), key=len, default="")
    # Test clips stay closed until `evaluate`, unless they are all there is.
    videos = {row.video for part in parts if part != "test" for row in rows[part]} | {row.video for row in written}
    with ClipReader(cfg.video.timeout_seconds) as reader:
        some = sorted(videos or {row.video for row in rows["test"]})
        infos, _ = check_clips(some, reader, cfg.video.max_unreadable)  # bad ones count against video.max_unreadable
    # Frames of any shape are brought to the same number of pixels; the one closest to a square wastes least of it.
    video = max(infos, key=lambda info: (min(info.width, info.height) / max(info.width, info.height), info.path)).path
    return {"video": video, "question": question, "turns": turns, "answer": answer, "run": str(folder)}
