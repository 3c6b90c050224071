"""The settings of the methods that train the aligned model, and of how answers are sampled for them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from minirlaif.config.rules import Place, PositiveFloat, PositiveInt, Rule, Schedule, Share, Texts, UnrecordedAt


@dataclass(frozen=True)
class OptimizeSection:
    """Which methods train the aligned model from the feedback."""

    # stages of the registry, in order: each starts from the adapter of the one before it, which is also its reference
    methods: Texts = ("ppo",)
    # in each further round the model of the round before describes, answers and judges, and the methods start from it; no round
    # follows one that gained nothing on dev prompts
    rounds: Annotated[PositiveInt, UnrecordedAt(1)] = 1
    # who scores the answers that a method samples. model: the reward model; judge: that of `feedback`, by its read-out; rank: the
    # place among the answers to the prompt that the judge gives it; FILE.py: its function reward(prompt, answer, tags)
    reward: Annotated[str, Rule.NOT_EMPTY, UnrecordedAt("model")] = "model"


@dataclass(frozen=True)
class DistillSection:
    """Fine-tuning on answers that were sampled: given with the descriptions (distill), or found best by the judge (bestofn)."""

    epochs: PositiveFloat = 2.0
    learning_rate: PositiveFloat = 1e-4
    warmup_ratio: Share = 0.03
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: PositiveFloat = 1.0
    batch_size: PositiveInt = 16  # answers per optimiser step, at most all there are
    micro_batch_size: PositiveInt = 4
    dev_every: PositiveInt = 50  # judge the policy on dev prompts every so many steps; the best checkpoint is kept
    # stop when so many looks at the dev prompts in a row found none to keep; 0: never
    patience: Annotated[int, UnrecordedAt(0)] = 0
    save_every: PositiveInt = 50


@dataclass(frozen=True)
class DpoSection:
    """Direct preference optimisation of the policy on the judge's pairs."""

    beta: PositiveFloat = 0.1  # of the log-ratio to the reference; smaller: further from it
    epochs: PositiveFloat = 1.0
    learning_rate: PositiveFloat = 5e-6
    warmup_ratio: Share = 0.1
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: PositiveFloat = 1.0
    batch_size: PositiveInt = 16  # pairs per optimiser step, at most all there are
    micro_batch_size: PositiveInt = 2
    dev_every: PositiveInt = 50  # judge the policy on dev prompts every so many steps; the best checkpoint is kept
    # stop when so many looks at the dev prompts in a row found none to keep; 0: never
    patience: Annotated[int, UnrecordedAt(0)] = 0
    save_every: PositiveInt = 50


@dataclass(frozen=True)
class ReferenceSection:
    """The frozen SFT model from which PPO measures its KL."""

    kind: Literal["adapter", "model"] = "adapter"  # adapter: a copy of the SFT adapter on the shared base; model: own weights
    rest: Place = "cpu"  # where it is while it scores nothing: cpu (host memory) or device


@dataclass(frozen=True)
class RolloutSection:
    """How methods that sample collect and score answers (paper section 3.3)."""

    rollouts: PositiveInt = 64  # answers per iteration
    samples_per_prompt: Annotated[int, Rule.POSITIVE, UnrecordedAt(1)] = 1  # answers to each prompt; so many times fewer prompts
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 256
    kl_coef: float = 0.1
    kl_estimator: Literal["k1", "k3"] = "k1"  # of the KL that ppo takes off the reward. k1: log-ratio; k3: see `kl_per_token`
    missing_eos_penalty: float = 8.0  # taken off the score of an answer that did not end
    length_coef: float = 10.0  # taken off: length_coef x answer tokens / max_new_tokens
    reward_scale: Annotated[float, Rule.ANY_SIGN] = 10.0  # factor of all shaped rewards; below 0 the KL term turns too
    normalize_score: bool = False  # centre and scale scores by the first batch's mean and deviation; clipped at 3
    # column of the prompts' rows, such as type: `normalize_score` then works within each of its values; empty: over all
    normalize_by: Annotated[str, UnrecordedAt("")] = ""
    gamma: Share = 1.0  # this and the next: of advantages with a value model
    lam: Share = 1.0
    batch_size: PositiveInt = 16  # answers in memory at once while sampling and scoring


@dataclass(frozen=True)
class PpoSection:
    """Proximal policy optimisation of the policy and value adapters."""

    iterations: PositiveInt = 100
    epochs: PositiveInt = 2  # passes over each batch of rollouts
    minibatch_size: PositiveInt = 32  # answers per optimiser step
    micro_batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 3e-5
    warmup_steps: int = 5
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: PositiveFloat = 1.0
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    vf_coef: float = 0.1
    entropy_coef: Annotated[float, UnrecordedAt(0.0)] = 0.0  # of the entropy per token, a bonus that keeps answers different
    max_kl: float = 0.0  # stop once the mean KL per answer passes this many nats; 0: never
    dev_every: PositiveInt = 10  # judge the policy on dev prompts every so many iterations; the best checkpoint is kept
    # stop when so many looks at the dev prompts in a row found none to keep; 0: never
    patience: Annotated[int, UnrecordedAt(0)] = 0
    save_every: PositiveInt = 10


@dataclass(frozen=True)
class GroupSection:
    """The update of the methods without a value model, which compare the answers to one prompt: grpo, dr_grpo and rloo."""

    iterations: PositiveInt = 100
    epochs: PositiveInt = 1  # passes over each batch of rollouts; in the papers one
    minibatch_size: PositiveInt = 64  # answers per optimiser step
    micro_batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 3e-5
    warmup_steps: int = 5
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: PositiveFloat = 1.0
    clip: PositiveFloat = 0.2
    entropy_coef: Annotated[float, UnrecordedAt(0.0)] = 0.0  # of the entropy per token, a bonus that keeps answers different
    max_kl: float = 0.0  # stop once the mean KL per answer (log-ratio) passes this many nats; 0: never
    dev_every: PositiveInt = 10  # judge the policy on dev prompts every so many iterations; the best checkpoint is kept
    # stop when so many looks at the dev prompts in a row found none to keep; 0: never
    patience: Annotated[int, UnrecordedAt(0)] = 0
    save_every: PositiveInt = 10
