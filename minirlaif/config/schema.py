"""The settings of a run: frozen sections, one YAML, `--set section.field=value`; every problem is reported at once.

Standard library and yaml only: reading a config must not need torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelSection:
    """The backbone that every role shares, and the LoRA adapters on it."""

    base: str = "tiny"  # "tiny" (the base shipped with the package), a folder, or a hub id
    revision: str = "main"  # hub revision of `base`
    dtype: str = "auto"  # auto (bfloat16 on a GPU, float32 on a CPU), float32, bfloat16
    quantization: str = "none"  # none, or nf4 (QLoRA: 4-bit NF4 with double quantisation)
    device: str = "auto"  # auto, cpu, cuda
    lora_r: int = 16  # rank of every adapter
    lora_alpha: int = 16  # LoRA scale = alpha / r
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: slower, less memory
    optimizer: str = "adamw"  # adamw (float32 moments), or paged_adamw_8bit (bitsandbytes: a quarter of their memory)


@dataclass(frozen=True)
class VideoSection:
    """Which frames of a clip the model sees, and how clips are read."""

    frames: int = 16  # frames of the whole clip, uniformly spaced
    segment_frames: int = 8  # frames of one segment when it is described
    segment_seconds: float = 8.0  # length of a segment; the last one may be shorter
    max_segments: int = 8  # a longer clip gets longer segments instead of more
    frame_pixels: int = 65536  # most pixels of a frame, for families that take any size (Qwen); others have their own
    timeout_seconds: float = 60.0  # a reader that takes longer for one clip is killed and the clip reported
    max_unreadable: float = 0.0  # share of clips that may be unreadable (and are skipped) before a run refuses to start
    cache_gib: float = 20.0  # size limit of the feature cache of a run


@dataclass(frozen=True)
class DataSection:
    """Sources of rows: files (json, jsonl, parquet), folders, hub names; from the current folder, or else the config's own."""

    world: str = ""  # "tiny": make the tiny world and use its files; empty: use the sources below
    videos: str = ""  # folder that relative clip paths start from; empty: the data file's own folder
    sft: tuple[str, ...] = ()  # conversations for supervised fine-tuning
    prompts: tuple[str, ...] = ()  # questions without answers, for feedback and PPO
    dev: tuple[str, ...] = ()  # prompts on which the judge picks the checkpoint
    test: tuple[str, ...] = ()  # rows are checked before anything trains; clips are opened by `evaluate` only
    preferences: tuple[str, ...] = ()  # extra preference rows for `reward`
    preference_limit: int = 0  # `reward` trains on so many rows, drawn from those not held out; 0: all


@dataclass(frozen=True)
class WorldSection:
    """Size and faults of the tiny world (counts are clips)."""

    sft_clips: int = 300
    sft_short_clips: int = 300  # single-event clips with sound descriptions
    prompt_clips: int = 1000
    dev_clips: int = 150
    test_clips: int = 250
    questions_per_clip: int = 3
    still_share: float = 0.5  # share of SFT clips whose annotator saw stills: every motion is written as "stays still"
    shuffled_share: float = 0.25  # share of SFT clips whose annotator mixed up the order of the events


@dataclass(frozen=True)
class PretrainSection:
    """Training of the tiny base from nothing; only `pretrain` reads it."""

    steps: int = 6000
    learning_rate: float = 0.002


@dataclass(frozen=True)
class SftSection:
    """Two-stage supervised fine-tuning: short answers first, then long ones (paper section 3)."""

    short_words: int = 12  # answers of at most so many words belong to the first stage
    curriculum: bool = True  # short answers first, then long ones; false: all rows mixed
    epochs: float = 1.0  # per stage
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.03
    schedule: str = "cosine"  # cosine, linear or constant, after the warm-up
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 16  # conversations per optimiser step
    micro_batch_size: int = 4  # conversations in memory at once
    max_length: int = 2048  # tokens; longer rows are refused by name
    save_steps: int = 50


@dataclass(frozen=True)
class FeedbackSection:
    """The model answers, describes and judges (paper section 3.2)."""

    limit: int = 0  # label the first so many prompts only; 0: all
    answers: int = 2  # sampled answers per prompt
    pairs_per_prompt: int = 1  # distinct pairs formed from them
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    describe_prompt: str = "Describe in detail what happens in this part of the video."
    describe_tokens: int = 128  # longest description of one segment
    context: bool = True  # show the judge the joined segment descriptions
    judge_frames: bool = True  # show the judge the frames
    readout: str = "letter"  # letter: logits of A and B; likelihood: mean log-likelihood of each answer
    margin: float = 0.0  # verdicts less clear than this become ties
    disagreement: str = "drop"  # when the two orders differ: drop the pair, or average the two read-outs
    batch_size: int = 16  # prompts in memory at once


@dataclass(frozen=True)
class RewardSection:
    """The reward model: pairwise logistic loss with centring (paper section 3.3)."""

    epochs: float = 1.0
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.03
    schedule: str = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 0.3
    batch_size: int = 16  # pairs per optimiser step
    micro_batch_size: int = 4
    centering: float = 0.001  # weight of |mean score|, which keeps scores around zero
    context: bool = False  # show the reward model the segment descriptions; the paper does not
    likelihood: bool = False  # add beta x mean log-likelihood of the answer to the score; not in the paper
    held_out: float = 0.1  # share of preferences kept for the accuracy figure
    min_accuracy: float = 0.55  # `ppo` refuses a reward model below this on held-out pairs
    save_steps: int = 100
    base: str = ""  # a base of its own for reward and value model, with the tokenizer of model.base; empty: model.base
    adapter: str = ""  # folder of an adapter to start from; empty: the SFT adapter, or a fresh one on a base of its own
    rest: str = "cpu"  # where a base of its own is while the policy samples: cpu (host memory) or device


@dataclass(frozen=True)
class ReferenceSection:
    """The frozen SFT model from which PPO measures its KL."""

    kind: str = "adapter"  # adapter: a copy of the SFT adapter on the shared base; model: with base weights of its own
    rest: str = "cpu"  # where it is while it scores nothing: cpu (host memory) or device


@dataclass(frozen=True)
class RolloutSection:
    """How PPO collects and scores answers (paper section 3.3)."""

    rollouts: int = 64  # answers per iteration
    temperature: float = 1.0
    max_new_tokens: int = 256
    kl_coef: float = 0.1
    kl_estimator: str = "k1"  # k1: log-ratio; k3: its low-variance form
    missing_eos_penalty: float = 8.0  # taken off the score of an answer that did not end
    length_coef: float = 10.0  # taken off: length_coef x answer tokens / max_new_tokens
    reward_scale: float = 10.0  # all shaped rewards are multiplied by this
    normalize_score: bool = False  # centre and scale scores by the first batch's mean and deviation; clipped at 3
    gamma: float = 1.0
    lam: float = 1.0
    batch_size: int = 16  # answers in memory at once while sampling and scoring


@dataclass(frozen=True)
class PpoSection:
    """Proximal policy optimisation of the policy and value adapters."""

    iterations: int = 100
    epochs: int = 2  # passes over each batch of rollouts
    minibatch_size: int = 32  # answers per optimiser step
    micro_batch_size: int = 4
    learning_rate: float = 3e-5
    warmup_steps: int = 5
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clip: float = 0.2
    value_clip: float = 0.2
    vf_coef: float = 0.1
    max_kl: float = 0.0  # stop once the mean KL per answer passes this many nats; 0: never
    dev_every: int = 10  # judge the policy on dev prompts every so many iterations; the best checkpoint is kept
    save_every: int = 10


@dataclass(frozen=True)
class EvaluateSection:
    """Held-out answers, controls and intervals."""

    max_new_tokens: int = 256
    bootstrap: int = 2000  # resamples of test clips for the 95 % intervals
    batch_size: int = 16
    gallery: int = 24  # test clips shown with frames in the report


@dataclass(frozen=True)
class ExportSection:
    """Whether `run` ends with an export; the verb `export` needs no setting."""

    enabled: bool = False


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = 0
    report_to: str = "none"  # none, or a tracker that accelerate knows, such as tensorboard
    model: ModelSection = field(default_factory=ModelSection)
    video: VideoSection = field(default_factory=VideoSection)
    data: DataSection = field(default_factory=DataSection)
    world: WorldSection = field(default_factory=WorldSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)
    sft: SftSection = field(default_factory=SftSection)
    feedback: FeedbackSection = field(default_factory=FeedbackSection)
    reward: RewardSection = field(default_factory=RewardSection)
    reference: ReferenceSection = field(default_factory=ReferenceSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    ppo: PpoSection = field(default_factory=PpoSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    export: ExportSection = field(default_factory=ExportSection)
