"""`plan`: what every stage of a config takes, for the card found or named, before anything runs; and what to shrink first.

It reads the model's config.json alone. Estimates come from `memory`; `bench` and `plan --probe` measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.memory import formulas
from minirlaif.memory.formulas import LINES, Batch, Precision
from minirlaif.memory.shapes import Shape, shape_of
from minirlaif.models.model_config import read_config
from minirlaif.session import critic_config

GIB = 2**30
TEXT = 96  # tokens of a question with the chat's own words
GUIDING = 160  # tokens of the judge's instructions
ANSWER = 256  # tokens of an answer in SFT data
# MiB that a CPU's first step adds for good: code of kernels (those for bfloat16 are made on the spot), their buffers, autograd's
# threads. Measured with models of next to no weights, by bytes per number; with gradients and without.
FIRST_STEP = {True: {4: 31, 2: 55}, False: {4: 17, 2: 30}}
TRAIN = ("sft", "reward", "update")
CONTEXT = 0.6 * GIB  # what CUDA and its libraries take of a card beside the allocator
RUNTIME = 0.45 * GIB  # what Python and its libraries take of main memory; `bench` measures it
Known = tuple[int, int]  # tokens of a row's prompt, and of a written answer
STEPS = ("sft", "feedback", "reward", "collect", "update", "evaluate")
TITLES = {"collect": "ppo collect", "update": "ppo update"}


@dataclass(frozen=True)
class Planned:
    """A config with the numbers of its models: `critic` is the reward base where there is one, else the same."""

    cfg: Config
    policy: Shape
    critic: Shape
    gpu: bool
    runtime: float = 0.0  # bytes of the process itself, which count on a CPU
    looks: bool = True  # clips are seen for the first time, so the vision tower works, too

    @property
    def own_critic(self) -> bool:
        """Whether reward and value model have a base of their own."""
        return bool(self.cfg.reward.base)


def planned(cfg: Config, gpu: bool, folder: str = "", runtime: float = 0.0) -> Planned:
    """Read the model's numbers. folder: where config.json lies when it is not at `model.base`."""
    policy = shape_of(read_config(cfg.model, folder), cfg.model.lora_targets)
    critic = policy
    if cfg.reward.base:
        section = critic_config(cfg).model
        try:
            critic = shape_of(read_config(section), section.lora_targets)
        except UserError as error:
            raise UserError(str(error).replace("model.base", "reward.base", 1)) from None
    return Planned(cfg, policy, critic, gpu, runtime)


def precision(cfg: Config, gpu: bool) -> Precision:
    """How the config's models are held on such a device."""
    m = cfg.model
    low = m.dtype == "bfloat16" or (m.dtype == "auto" and gpu)
    moments = 8.0 if m.optimizer == "adamw" else 2.0
    return Precision(m.quantization == "nf4", 2 if low else 4, low and gpu, m.gradient_checkpointing, m.lora_r, moments)


def estimate(plan: Planned, tokens: Mapping[str, Known] | None = None) -> dict[str, dict[str, float]]:
    """Bytes of each stage by line (names in memory.LINES), at the moment when most is taken.

    tokens: of the longest row per stage, where they are known (a bench knows them); else worked out from the settings.
    """
    known = tokens or {}
    makers = {
        "sft": _sft,
        "feedback": _feedback,
        "reward": _reward,
        "collect": _collect,
        "update": _update,
        "evaluate": _evaluate,
    }
    result = {}
    for name, maker in makers.items():
        moments = list(maker(plan, known.get(name)))
        most = max(moments, key=lambda lines: sum(lines.values()))
        first = FIRST_STEP[name in TRAIN][precision(plan.cfg, plan.gpu).compute] * 2**20
        runtime = 0.0 if plan.gpu else plan.runtime + first
        result[name] = {line: most.get(line, 0.0) for line in LINES} | {"runtime": runtime}
    return result


def _prompt(plan: Planned, shape: Shape, text: int = TEXT, frames: int = 0) -> int:
    v = plan.cfg.video
    return shape.prompt_tokens(frames or v.frames, v.frame_pixels, text)


def _visual(plan: Planned, shape: Shape, frames: int = 0) -> int:
    groups, height, width = shape.grid(frames or plan.cfg.video.frames, plan.cfg.video.frame_pixels)
    return groups * height * width


def _told(plan: Planned) -> int:
    """Tokens of all segment descriptions together."""
    return plan.cfg.video.max_segments * (plan.cfg.feedback.describe_tokens + 4)


def _base(plan: Planned, shape: Shape, adapters: int, trained: int) -> dict[str, float]:
    # On a GPU the eyes rest in host memory; on a CPU resting means staying.
    return formulas.standing(shape.numbers, precision(plan.cfg, plan.gpu), adapters, trained, vision=not plan.gpu)


def _added(*parts: Mapping[str, float]) -> dict[str, float]:
    return {line: sum(part.get(line, 0.0) for part in parts) for line in LINES}


def _looking(plan: Planned, shape: Shape, adapters: int, trained: int, frames: int = 0) -> Iterator[dict[str, float]]:
    """While the vision tower, which rests otherwise, sees a clip."""
    if plan.looks:
        v, p = plan.cfg.video, precision(plan.cfg, plan.gpu)
        seen = formulas.looking(p, *shape.patches(frames or v.frames, v.frame_pixels))
        yield _added(formulas.standing(shape.numbers, p, adapters, trained), {"activations": seen})


def _sft(plan: Planned, known: Known | None) -> Iterator[dict[str, float]]:
    s, p = plan.cfg.sft, precision(plan.cfg, plan.gpu)
    start, answer = known or (_prompt(plan, plan.policy), ANSWER)
    tokens = min(s.max_length, start + answer)
    rows = min(s.micro_batch_size, s.batch_size)
    batch = Batch(rows, tokens, max(1, tokens - start), _visual(plan, plan.policy))
    yield _added(_base(plan, plan.policy, 1, 1), formulas.training(plan.policy.numbers, p, batch))
    yield from _looking(plan, plan.policy, 1, 1)


def _feedback(plan: Planned, known: Known | None) -> Iterator[dict[str, float]]:
    f, p, n = plan.cfg.feedback, precision(plan.cfg, plan.gpu), plan.policy.numbers
    base = _base(plan, plan.policy, 1, 0)
    dense, seen = plan.cfg.video.segment_frames, _visual(plan, plan.policy)
    part = Batch(f.batch_size, _prompt(plan, plan.policy, frames=dense), 0, _visual(plan, plan.policy, dense))
    yield _added(base, formulas.sampling(n, p, part, 1, f.describe_tokens))
    whole = known[0] if known else _prompt(plan, plan.policy)
    yield _added(base, formulas.sampling(n, p, Batch(f.batch_size, whole, 0, seen), f.answers, f.max_new_tokens))
    yield _added(base, formulas.scoring(n, p, _judged(plan, whole)))
    yield from _looking(plan, plan.policy, 1, 0, max(plan.cfg.video.frames, dense))


def _judged(plan: Planned, whole: int) -> Batch:
    """What the judge reads at once. whole: tokens of a prompt with the frames."""
    f = plan.cfg.feedback
    context = _told(plan) if f.context else 0
    # The bare comparison, made for the report, always shows the frames.
    text = context + (2 * f.max_new_tokens + GUIDING if f.readout == "letter" else f.max_new_tokens)
    answers = f.max_new_tokens if f.readout == "likelihood" else 1
    bare = whole + text - context
    judged = whole + text if f.judge_frames else max(bare, TEXT + text)
    return Batch(f.batch_size, judged, answers, _visual(plan, plan.policy))


def _reward(plan: Planned, known: Known | None) -> Iterator[dict[str, float]]:
    r, p, shape = plan.cfg.reward, precision(plan.cfg, plan.gpu), plan.critic
    prompt, answer = known or (_prompt(plan, shape) + (_told(plan) if r.context else 0), plan.cfg.feedback.max_new_tokens)
    tokens = prompt + answer
    scored = answer if r.likelihood else 0
    rows = 2 * min(r.micro_batch_size, r.batch_size)  # both answers of a pair
    base = _base(plan, shape, 1, 1)
    yield _added(base, formulas.training(shape.numbers, p, Batch(rows, tokens, scored, _visual(plan, shape))))
    yield _added(base, formulas.scoring(shape.numbers, p, Batch(r.batch_size, tokens, scored, _visual(plan, shape))))
    yield from _looking(plan, shape, 1, 1)


def _ppo(plan: Planned, phase: str) -> dict[str, float]:
    """What stands while PPO samples, scores with the policy's base, scores with the critic's, or updates."""
    p, c = plan.policy, plan.critic
    own_reference = plan.cfg.reference.kind == "model"
    if not plan.gpu:
        others = [formulas.standing(c.numbers, precision(plan.cfg, False), 2, 1)] if plan.own_critic else []
        others += [_base(plan, p, 0, 0)] if own_reference else []
        return _added(_base(plan, p, 2 if plan.own_critic else 4, 1 if plan.own_critic else 2), *others)
    on = {"sample": (1, 0), "score": (1, 0), "criticise": (0, 2), "update": (1, 1)}[phase]
    kept = 1 if plan.cfg.reference.rest == "device" else 0
    held = precision(plan.cfg, True)
    policy = formulas.standing(p.numbers, held, on[0] + kept, 1, vision=False)
    critic = formulas.standing(c.numbers, held, on[1], 1, vision=False)
    there = phase in ("criticise", "update") or plan.cfg.reward.rest == "device"
    if not (plan.own_critic and there):
        critic["weights"] = 0.0
    twice = {}
    if own_reference and (phase == "score" or plan.cfg.reference.rest == "device"):
        twice = {"weights": policy["weights"]}
    return _added(policy, critic, twice)


def _more(plan: Planned) -> int:
    """Tokens that a prompt of the reward and value model has more than one of the policy."""
    seen = _prompt(plan, plan.critic) - _prompt(plan, plan.policy)
    return seen + (_told(plan) if plan.cfg.reward.context else 0)


def _collect(plan: Planned, known: Known | None) -> Iterator[dict[str, float]]:
    r, p = plan.cfg.rollout, precision(plan.cfg, plan.gpu)
    rows = min(r.batch_size, r.rollouts)
    start, seen = known[0] if known else _prompt(plan, plan.policy), _visual(plan, plan.policy)
    sampled = formulas.sampling(plan.policy.numbers, p, Batch(rows, start, 0, seen), 1, r.max_new_tokens)
    yield _added(_ppo(plan, "sample"), sampled)
    scored = formulas.scoring(plan.policy.numbers, p, Batch(rows, start + r.max_new_tokens, r.max_new_tokens, seen))
    yield _added(_ppo(plan, "score"), scored)
    longer = start + r.max_new_tokens + _more(plan)
    answers = r.max_new_tokens if plan.cfg.reward.likelihood else 0
    judged = formulas.scoring(plan.critic.numbers, p, Batch(rows, longer, answers, _visual(plan, plan.critic)))
    yield _added(_ppo(plan, "criticise"), judged)
    if known is None and (plan.cfg.data.dev or plan.cfg.data.world):  # a judge chooses the checkpoint; a bench has none
        batch = Batch(plan.cfg.feedback.batch_size, start, 0, seen)
        yield _added(_ppo(plan, "sample"), formulas.sampling(plan.policy.numbers, p, batch, 1, r.max_new_tokens))
        yield _added(_ppo(plan, "score"), formulas.scoring(plan.policy.numbers, p, _judged(plan, start)))


def _update(plan: Planned, known: Known | None) -> Iterator[dict[str, float]]:
    r, p = plan.cfg.rollout, precision(plan.cfg, plan.gpu)
    rows = min(plan.cfg.ppo.micro_batch_size, plan.cfg.ppo.minibatch_size, r.rollouts)
    tokens = (known[0] if known else _prompt(plan, plan.policy)) + r.max_new_tokens
    base, seen = _ppo(plan, "update"), _visual(plan, plan.policy)
    yield _added(base, formulas.training(plan.policy.numbers, p, Batch(rows, tokens, r.max_new_tokens, seen)))
    longer = tokens + _more(plan)
    yield _added(base, formulas.training(plan.critic.numbers, p, Batch(rows, longer, 0, _visual(plan, plan.critic))))


def _evaluate(plan: Planned, known: Known | None) -> Iterator[dict[str, float]]:
    e, p = plan.cfg.evaluate, precision(plan.cfg, plan.gpu)
    start = known[0] if known else _prompt(plan, plan.policy)
    batch = Batch(e.batch_size, start, 0, _visual(plan, plan.policy))
    yield _added(_base(plan, plan.policy, 2, 0), formulas.sampling(plan.policy.numbers, p, batch, 1, e.max_new_tokens))
    yield from _looking(plan, plan.policy, 2, 0)


def peak(plan: Planned) -> tuple[str, float]:
    """The stage that takes most, and its bytes."""
    sums = {name: sum(lines.values()) for name, lines in estimate(plan).items()}
    most = max(sums, key=lambda name: sums[name])
    return most, sums[most]


def table(stages: Mapping[str, Mapping[str, float]]) -> str:
    """MiB by stage and line."""
    lines = [line for line in LINES if any(values[line] for values in stages.values())]
    rows = [["MiB", *lines, "peak"]]
    for name, values in stages.items():
        cells = [values[line] for line in lines] + [sum(values.values())]
        rows.append([TITLES.get(name, name), *(f"{cell / 2**20:,.0f}" for cell in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
