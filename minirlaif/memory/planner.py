"""`plan`: the peak memory of every step of a config, before anything runs.

It reads the model's config.json alone. Estimates come from `formulas`; `bench` and `plan --probe` measure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from minirlaif.config import Config, ModelSection, RewardSection, stages_of
from minirlaif.memory import formulas
from minirlaif.memory.formulas import LINES, Batch, Precision
from minirlaif.memory.shapes import Shape, shape_of
from minirlaif.models.loading import critic_model, read_config
from minirlaif.stages.registry import GROUP_METHODS

GIB = 2**30
TEXT = 96  # tokens of a question with the chat's own words
GUIDING = 160  # tokens of the judge's instructions
ANSWER = 256  # tokens of an answer in SFT data
# MiB that a CPU's first step adds for good: code of kernels (those for bfloat16 are made on the spot), their buffers, autograd's
# threads. Measured with models of next to no weights, by bytes per number; with gradients and without.
FIRST_STEP = {True: {4: 31, 2: 55}, False: {4: 17, 2: 30}}
CONTEXT = 0.6 * GIB  # what CUDA and its libraries take of a card beside the allocator
RUNTIME = 0.45 * GIB  # what Python and its libraries take of main memory; `bench` measures it
Known = tuple[int, int]  # tokens of a row's prompt, and of a written answer
Moments = Iterator[dict[str, float]]  # bytes by line at each moment that may be the peak


@dataclass(frozen=True)
class Planned:
    """The settings with the numbers of their models: `critic` is the reward base where there is one, else the policy's."""

    settings: Config
    policy: Shape
    critic: Shape
    gpu: bool
    runtime: float = 0.0  # bytes of the process itself, which count on a CPU
    encodes: bool = True  # clips are encoded for the first time, so the vision tower works, too

    @property
    def precision(self) -> Precision:
        """How the models are held on the device."""
        m = self.settings.model
        low = m.dtype == "bfloat16" or (m.dtype == "auto" and self.gpu)
        moments = 8.0 if m.optimizer == "adamw" else 2.0
        return Precision(m.quantization == "nf4", 2 if low else 4, low and self.gpu, m.gradient_checkpointing, m.lora_r, moments)


def shapes_of(model: ModelSection, reward: RewardSection, folder: str = "") -> tuple[Shape, Shape]:
    """Numbers of the policy's base and of the critic's. folder: where config.json lies when it is not at `model.base`."""
    policy = shape_of(read_config(model, folder), model.lora_targets)
    if not reward.base:
        return policy, policy
    return policy, shape_of(read_config(critic_model(model, reward), setting="reward.base"), model.lora_targets)


def estimate(plan: Planned, tokens: Mapping[str, Known] | None = None, steps: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Bytes of each step (or of these alone) by line (names in formulas.LINES), at its peak.
    tokens: of the longest row per step, where they are known (`bench` knows them); else worked out from the settings."""
    result = {}
    for name in steps or steps_for(stages_of(plan.settings)):
        step = STEPS[name]
        most = max(step.moments(plan, (tokens or {}).get(name)), key=lambda lines: sum(lines.values()))
        first = FIRST_STEP[step.trains][plan.precision.compute] * 2**20
        result[name] = {line: most.get(line, 0.0) for line in LINES} | {"runtime": 0.0 if plan.gpu else plan.runtime + first}
    return result


def _prompt(plan: Planned, shape: Shape, frames: int = 0) -> int:
    v = plan.settings.video
    return shape.prompt_tokens(frames or v.frames, v.frame_pixels, TEXT)


def _visual(plan: Planned, shape: Shape, frames: int = 0) -> int:
    groups, height, width = shape.grid(frames or plan.settings.video.frames, plan.settings.video.frame_pixels)
    return groups * height * width


def _descriptions(plan: Planned) -> int:
    """Tokens of all segment descriptions together."""
    return plan.settings.video.max_segments * (plan.settings.feedback.describe_tokens + 4)


def _base(plan: Planned, shape: Shape, adapters: int, trained: int) -> dict[str, float]:
    # On a GPU the vision modules are offloaded to host memory; on a CPU that is the same memory.
    return formulas.resident(shape.numbers, plan.precision, adapters, trained, vision=not plan.gpu)


def _added(*parts: Mapping[str, float]) -> dict[str, float]:
    return {line: sum(part.get(line, 0.0) for part in parts) for line in LINES}


def _encoding(plan: Planned, shape: Shape, adapters: int, trained: int, frames: int = 0) -> Moments:
    """While the vision tower, which is offloaded otherwise, encodes a clip."""
    if plan.encodes:
        v, p = plan.settings.video, plan.precision
        activations = formulas.encoding(p, *shape.patches(frames or v.frames, v.frame_pixels))
        yield _added(formulas.resident(shape.numbers, p, adapters, trained), {"activations": activations})


def _sft(plan: Planned, known: Known | None) -> Moments:
    s, p = plan.settings.sft, plan.precision
    start, answer = known or (_prompt(plan, plan.policy), ANSWER)
    tokens = min(s.max_length, start + answer)
    rows = min(s.micro_batch_size, s.batch_size)
    batch = Batch(rows, tokens, max(1, tokens - start), _visual(plan, plan.policy))
    yield _added(_base(plan, plan.policy, 1, 1), formulas.training(plan.policy.numbers, p, batch))
    yield from _encoding(plan, plan.policy, 1, 1)


def _describing(plan: Planned, base: Mapping[str, float]) -> dict[str, float]:
    f, s, dense = plan.settings.feedback, plan.policy, plan.settings.video.segment_frames
    part = Batch(f.batch_size, _prompt(plan, s, frames=dense), 0, _visual(plan, s, dense))
    return _added(base, formulas.sampling(s.numbers, plan.precision, part, 1, f.describe_tokens))


def _questions(plan: Planned, known: Known | None) -> Moments:
    base, q, f = _base(plan, plan.policy, 1, 0), plan.settings.questions, plan.settings.feedback
    yield _describing(plan, base)
    if q.written:  # and answered, see `stages.questions`
        notes = Batch(f.batch_size, known[0] if known else TEXT + _descriptions(plan), 0, 0)
        most = max(q.max_new_tokens, f.max_new_tokens)
        yield _added(base, formulas.sampling(plan.policy.numbers, plan.precision, notes, 1, most))
    yield from _encoding(plan, plan.policy, 1, 0, plan.settings.video.segment_frames)


def _feedback(plan: Planned, known: Known | None) -> Moments:
    f, p, n = plan.settings.feedback, plan.precision, plan.policy.numbers
    base = _base(plan, plan.policy, 1, 0)
    yield _describing(plan, base)
    prompt = known[0] if known else _prompt(plan, plan.policy)
    batch = Batch(f.batch_size, prompt, 0, _visual(plan, plan.policy))
    yield _added(base, formulas.sampling(n, p, batch, f.answers, f.max_new_tokens))
    yield _added(base, formulas.scoring(n, p, _judged(plan, prompt)))
    yield from _encoding(plan, plan.policy, 1, 0, max(plan.settings.video.frames, plan.settings.video.segment_frames))


def _judged(plan: Planned, prompt: int) -> Batch:
    """What the judge reads at once. prompt: tokens of a prompt with the frames."""
    f = plan.settings.feedback
    context = _descriptions(plan) if f.context else 0
    # The bare comparison, made for the report, always shows the frames.
    text = context + (2 * f.max_new_tokens + GUIDING if f.readout != "likelihood" else f.max_new_tokens)
    answers = f.max_new_tokens if f.readout != "letter" else 1
    bare = prompt + text - context
    judged = prompt + text if f.judge_frames else max(bare, TEXT + text)
    return Batch(f.batch_size, judged, answers, _visual(plan, plan.policy))


def _reward(plan: Planned, known: Known | None) -> Moments:
    r, p, shape = plan.settings.reward, plan.precision, plan.critic
    context = _descriptions(plan) if r.context else 0
    prompt, answer = known or (_prompt(plan, shape) + context, plan.settings.feedback.max_new_tokens)
    tokens = prompt + answer
    scored = answer if r.likelihood else 0
    rows = 2 * min(r.micro_batch_size, r.batch_size)  # both answers of a pair
    base = _base(plan, shape, 1, 1)
    yield _added(base, formulas.training(shape.numbers, p, Batch(rows, tokens, scored, _visual(plan, shape))))
    yield _added(base, formulas.scoring(shape.numbers, p, Batch(r.batch_size, tokens, scored, _visual(plan, shape))))
    yield from _encoding(plan, shape, 1, 1)


def _ppo(plan: Planned, phase: str, values: bool = True) -> dict[str, float]:
    """Weights in memory while PPO samples, scores with the policy's base, scores with the critic's, or updates. values: whether
    there is a value model."""
    p, c = plan.policy, plan.critic
    own_critic, own_reference = bool(plan.settings.reward.base), plan.settings.reference.kind == "model"
    if not plan.gpu:
        others = [formulas.resident(c.numbers, plan.precision, 1 + values, int(values))] if own_critic else []
        others += [_base(plan, p, 0, 0)] if own_reference else []
        return _added(_base(plan, p, 2 if own_critic else 3 + values, 1 if own_critic else 1 + values), *others)
    phases = {"sample": (1, 0), "score": (1, 0), "critic": (0, 1 + values), "update": (1, int(values))}
    policy_adapters, critic_adapters = phases[phase]
    reference = 1 if plan.settings.reference.rest == "device" else 0
    policy = formulas.resident(p.numbers, plan.precision, policy_adapters + reference, 1, vision=False)
    critic = formulas.resident(c.numbers, plan.precision, critic_adapters, int(values), vision=False)
    present = critic_adapters or plan.settings.reward.rest == "device"
    if not (own_critic and present):
        critic["weights"] = 0.0
    second = {}
    if own_reference and (phase == "score" or plan.settings.reference.rest == "device"):
        second = {"weights": policy["weights"]}
    return _added(policy, critic, second)


def _more(plan: Planned) -> int:
    """Tokens that a prompt of the reward and value model has more than one of the policy."""
    longer = _prompt(plan, plan.critic) - _prompt(plan, plan.policy)
    return longer + (_descriptions(plan) if plan.settings.reward.context else 0)


def _collect(plan: Planned, known: Known | None, values: bool = True) -> Moments:
    r, p = plan.settings.rollout, plan.precision
    rows, each = min(r.batch_size, r.rollouts), r.samples_per_prompt
    start, visual = known[0] if known else _prompt(plan, plan.policy), _visual(plan, plan.policy)
    sampled = formulas.sampling(plan.policy.numbers, p, Batch(max(1, rows // each), start, 0, visual), each, r.max_new_tokens)
    yield _added(_ppo(plan, "sample", values), sampled)
    scored = formulas.scoring(plan.policy.numbers, p, Batch(rows, start + r.max_new_tokens, r.max_new_tokens, visual))
    yield _added(_ppo(plan, "score", values), scored)
    longer = start + r.max_new_tokens + _more(plan)
    answers = r.max_new_tokens if plan.settings.reward.likelihood else 0
    if plan.settings.optimize.reward == "model" or values:
        judged = formulas.scoring(plan.critic.numbers, p, Batch(rows, longer, answers, _visual(plan, plan.critic)))
        yield _added(_ppo(plan, "critic", values), judged)
    if plan.settings.optimize.reward in ("judge", "rank"):
        yield _added(_ppo(plan, "score", values), formulas.scoring(plan.policy.numbers, p, _judged(plan, start)))
    if known is None and plan.settings.data.has("dev"):  # a judge chooses the checkpoint; `bench` has none
        batch = Batch(plan.settings.feedback.batch_size, start, 0, visual)
        yield _added(_ppo(plan, "sample", values), formulas.sampling(plan.policy.numbers, p, batch, 1, r.max_new_tokens))
        yield _added(_ppo(plan, "score", values), formulas.scoring(plan.policy.numbers, p, _judged(plan, start)))


def _update(plan: Planned, known: Known | None, values: bool = True) -> Moments:
    r, p, section = plan.settings.rollout, plan.precision, plan.settings.ppo if values else plan.settings.group
    rows = min(section.micro_batch_size, section.minibatch_size, r.rollouts)
    tokens = (known[0] if known else _prompt(plan, plan.policy)) + r.max_new_tokens
    base, visual = _ppo(plan, "update", values), _visual(plan, plan.policy)
    yield _added(base, formulas.training(plan.policy.numbers, p, Batch(rows, tokens, r.max_new_tokens, visual)))
    if values:
        longer = tokens + _more(plan)
        yield _added(base, formulas.training(plan.critic.numbers, p, Batch(rows, longer, 0, _visual(plan, plan.critic))))


def _dpo(plan: Planned, known: Known | None) -> Moments:
    d, p, shape = plan.settings.dpo, plan.precision, plan.policy
    start, answer = known or (_prompt(plan, shape), plan.settings.feedback.max_new_tokens)
    base = _base(plan, shape, 1 if plan.gpu else 2, 1)  # on a GPU the reference is offloaded while the policy trains
    rows = 2 * min(d.micro_batch_size, d.batch_size)  # both answers of a pair
    batch = Batch(rows, start + answer, answer, _visual(plan, shape))
    yield _added(base, formulas.training(shape.numbers, p, batch))
    yield _added(_base(plan, shape, 2, 1), formulas.scoring(shape.numbers, p, batch))
    yield from _dev_judge(plan, base, start, answer, known)


def _distill(plan: Planned, known: Known | None) -> Moments:
    d, p, shape = plan.settings.distill, plan.precision, plan.policy
    start, answer = known or (_prompt(plan, shape), plan.settings.feedback.max_new_tokens)
    base = _base(plan, shape, 1 if plan.gpu else 2, 1)  # on a GPU the reference is offloaded
    rows = min(d.micro_batch_size, d.batch_size)
    yield _added(base, formulas.training(shape.numbers, p, Batch(rows, start + answer, answer, _visual(plan, shape))))
    yield from _dev_judge(plan, base, start, answer, known)


def _dev_judge(plan: Planned, base: Mapping[str, float], start: int, answer: int, known: Known | None) -> Moments:
    """While a judge chooses the checkpoint on dev prompts; `bench`, which knows the tokens of its row, has none."""
    if known is None and plan.settings.data.has("dev"):
        size, visual, n = plan.settings.feedback.batch_size, _visual(plan, plan.policy), plan.policy.numbers
        yield _added(base, formulas.sampling(n, plan.precision, Batch(size, start, 0, visual), 1, answer))
        yield _added(base, formulas.scoring(n, plan.precision, _judged(plan, start)))


def _evaluate(plan: Planned, known: Known | None) -> Moments:
    e, p = plan.settings.evaluate, plan.precision
    start = known[0] if known else _prompt(plan, plan.policy)
    batch = Batch(e.batch_size, start, 0, _visual(plan, plan.policy))
    yield _added(_base(plan, plan.policy, 2, 0), formulas.sampling(plan.policy.numbers, p, batch, 1, e.max_new_tokens))
    yield from _encoding(plan, plan.policy, 2, 0)


@dataclass(frozen=True)
class Step:
    """What is planned and measured apart: a stage, or a part of one. trains: whether it has gradients."""

    stage: str
    title: str
    trains: bool
    moments: Callable[[Planned, Known | None], Moments]


STEPS = {
    "sft": Step("sft", "sft", True, _sft),
    "questions": Step("questions", "questions", False, _questions),
    "feedback": Step("feedback", "feedback", False, _feedback),
    "reward": Step("reward", "reward", True, _reward),
    "distill": Step("distill", "distill", True, _distill),
    "bestofn": Step("bestofn", "bestofn", True, _distill),
    "dpo": Step("dpo", "dpo", True, _dpo),
    "collect": Step("ppo", "ppo collect", False, _collect),
    "update": Step("ppo", "ppo update", True, _update),
    **{f"{name}_collect": Step(name, f"{name} collect", False, partial(_collect, values=False)) for name in GROUP_METHODS},
    **{f"{name}_update": Step(name, f"{name} update", True, partial(_update, values=False)) for name in GROUP_METHODS},
    "evaluate": Step("evaluate", "evaluate", False, _evaluate),
}


def steps_of(stage: str) -> list[str]:
    """Names of a stage's steps; none for a stage that needs no planning."""
    return [name for name, step in STEPS.items() if step.stage == stage]


def steps_for(stages: Sequence[str]) -> list[str]:
    """Names of the steps of a run with these stages."""
    return [name for name, step in STEPS.items() if step.stage in stages]


def peak(plan: Planned) -> tuple[str, float]:
    """The step with the highest peak, and its bytes."""
    return max(((name, sum(lines.values())) for name, lines in estimate(plan).items()), key=itemgetter(1))
