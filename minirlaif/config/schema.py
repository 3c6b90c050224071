"""The settings of a run: frozen sections; a field states its type, default, range, choices and whether it changes a result.

Dataclasses rather than pydantic: pydantic adds 0.12 s to every command and a package to the torch-free installation, and the
messages (all problems at once, the nearest name) would have to be written for each of its error types all the same.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from minirlaif.config.methods import (
    DistillSection,
    DpoSection,
    GroupSection,
    OptimizeSection,
    PpoSection,
    ReferenceSection,
    RolloutSection,
)
from minirlaif.config.rules import Place, PositiveFloat, PositiveInt, RecordedAt, Rule, Schedule, Share, Texts, UnrecordedAt

# Those that accelerate 1.15 knows; it skips others without a word.
Tracker = Literal["none", "tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "aim", "dvclive", "swanlab", "trackio"]


@dataclass(frozen=True)
class ModelSection:
    """The backbone that every role shares, and the LoRA adapters on it."""

    base: Annotated[str, Rule.NOT_EMPTY] = "tiny"  # "tiny" (the base shipped with the package), a folder, or a hub id
    revision: str = "main"  # hub revision of `base`
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    quantization: Literal["none", "nf4"] = "none"  # nf4: QLoRA, 4-bit NF4 with double quantisation
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lora_r: PositiveInt = 16  # rank of every adapter
    lora_alpha: PositiveInt = 16  # LoRA scale = alpha / r
    lora_targets: Texts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: slower, less memory
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"  # float32 moments, or bitsandbytes: a quarter of their memory


@dataclass(frozen=True)
class VideoSection:
    """Which frames of a clip the model sees, and how clips are read."""

    frames: PositiveInt = 16  # frames of the whole clip, uniformly spaced
    segment_frames: PositiveInt = 8  # frames of one segment when it is described
    segment_seconds: PositiveFloat = 8.0  # length of a segment; the last one may be shorter
    max_segments: PositiveInt = 8  # a longer clip gets longer segments instead of more
    # a clip of more than a second gets shorter segments instead of fewer: with one alone the descriptions hold hardly more than
    # the model sees without them
    min_segments: Annotated[int, Rule.POSITIVE, UnrecordedAt(1)] = 2
    frame_pixels: PositiveInt = 65536  # most pixels of a frame, for families that take any size (Qwen); others have their own
    timeout_seconds: PositiveFloat = 60.0  # a reader that takes longer for one clip is killed and the clip reported
    # share of clips, or of the rows about them, that may be missing or unreadable (and are skipped) before a run refuses to start
    max_unreadable: Share = 0.0
    reader: Annotated[Literal["av", "decord"], UnrecordedAt("decord")] = "av"  # what decodes clips; older runs have decord
    max_damaged: Annotated[float, Rule.SHARE, UnrecordedAt(0.05)] = 0.05  # share of a clip's time that may be undecodable
    cache_gib: float = 20.0  # size limit of the feature cache of a run


@dataclass(frozen=True)
class DataSection:
    """Sources of rows: files (json, jsonl, parquet), folders, hub names; from the current folder, or else the config's own."""

    world: Literal["", "tiny"] = ""  # "tiny": make the tiny world and use its files; empty: use the sources below
    videos: str = ""  # folder that relative clip paths start from; empty: the data file's own folder
    # folder of clips about which nobody wrote questions: where prompts is empty, the stage `questions` writes them, and keeps
    # some clips for dev and test, unless those name files of their own
    clips: Annotated[str, UnrecordedAt("")] = ""
    sft: tuple[str, ...] = ()  # conversations for supervised fine-tuning
    prompts: tuple[str, ...] = ()  # questions without answers, for feedback and PPO
    dev: tuple[str, ...] = ()  # prompts on which the judge picks the checkpoint
    test: tuple[str, ...] = ()  # rows are checked before anything trains; clips are opened by `evaluate` only
    preferences: tuple[str, ...] = ()  # extra preference rows for `reward`
    preference_limit: Annotated[int, UnrecordedAt(0)] = (
        0  # `reward` trains on so many rows, drawn from those not held out; 0: all
    )
    # columns to pass over, as if they were not there: a column that changes what a row means stops it otherwise
    ignore_columns: Annotated[tuple[str, ...], UnrecordedAt(())] = ()
    # of each part so many rows or clips, evenly spaced, to try things out; 0: all
    max_rows: Annotated[int, UnrecordedAt(0)] = 0
    # share of a file's rows that may be bad (and are left out, see left_out.jsonl) before a run refuses to start
    max_bad_rows: Annotated[float, Rule.SHARE, Rule.NO_EFFECT] = 0.0

    @property
    def writes_questions(self) -> bool:
        """Whether the run writes questions about clips."""
        return bool(self.clips) and not self.prompts

    def has(self, part: str) -> bool:
        """Whether there are rows of a part: from files, or made by the run."""
        made = bool(self.world) or (self.writes_questions and part in ("prompts", "dev", "test"))
        return made or bool(getattr(self, part))


@dataclass(frozen=True)
class WorldSection:
    """Size and faults of the tiny world (counts are clips)."""

    sft_clips: int = 300
    sft_short_clips: int = 300  # single-event clips with sound descriptions
    prompt_clips: PositiveInt = 1000
    dev_clips: PositiveInt = 150
    test_clips: PositiveInt = 250
    questions_per_clip: PositiveInt = 3
    still_share: Share = 0.5  # share of SFT clips whose annotator saw stills: every motion is written as "stays still"
    shuffled_share: Share = 0.25  # share of SFT clips whose annotator mixed up the order of the events


@dataclass(frozen=True)
class PretrainSection:
    """Training of the tiny base from nothing; only `pretrain` reads it."""

    steps: PositiveInt = 6000
    learning_rate: PositiveFloat = 0.002


@dataclass(frozen=True)
class SftSection:
    """Two-stage supervised fine-tuning: short answers first, then long ones (paper section 3)."""

    # false: no stage sft; the policy starts from the base, which also describes and judges
    enabled: Annotated[bool, UnrecordedAt(True)] = True
    short_words: int = 12  # answers of at most so many words belong to the first stage
    curriculum: Annotated[bool, UnrecordedAt(True)] = True  # short answers first, then long ones; false: all rows mixed
    epochs: PositiveFloat = 1.0  # per stage
    learning_rate: PositiveFloat = 1e-4
    warmup_ratio: Share = 0.03
    schedule: Schedule = "cosine"  # after the warm-up
    weight_decay: float = 0.0
    max_grad_norm: PositiveFloat = 1.0
    batch_size: PositiveInt = 16  # conversations per optimiser step, at most all rows
    micro_batch_size: PositiveInt = 4  # conversations in memory at once
    max_length: PositiveInt = 2048  # tokens; longer rows are refused by name
    save_steps: PositiveInt = 50


@dataclass(frozen=True)
class QuestionsSection:
    """Questions that are written about clips without any (data.clips)."""

    per_clip: Annotated[int, Rule.POSITIVE, UnrecordedAt(6)] = 6  # at most
    # YAML file of templates that are filled with the descriptions; empty: the package's own
    templates: Annotated[str, UnrecordedAt("")] = ""
    written: Annotated[bool, UnrecordedAt(True)] = True  # the model itself writes questions about what it described, too
    max_new_tokens: Annotated[int, Rule.POSITIVE, UnrecordedAt(256)] = 256  # of what it writes about one clip
    # of the clips: their questions are for choosing a checkpoint, unless data.dev names files
    dev_share: Annotated[float, Rule.SHARE, UnrecordedAt(0.1)] = 0.1
    # of the clips: theirs are for `evaluate`, unless data.test names files
    test_share: Annotated[float, Rule.SHARE, UnrecordedAt(0.1)] = 0.1


@dataclass(frozen=True)
class FeedbackSection:
    """The model answers, describes and judges (paper section 3.2)."""

    limit: Annotated[int, UnrecordedAt(0)] = 0  # label the first so many prompts only; 0: all
    # who describes, and who judges, also on dev prompts; manifests record who it is, not where it lies. start: the model that the
    # methods start from; base: without its adapter. A describer may be another model that sees: hf:FOLDER, gguf:FOLDER (an export
    # of this project); a judge one that reads text: hf:FOLDER, gguf:FILE; or a YAML file of settings, such as of an endpoint
    describer: Annotated[str, Rule.NO_EFFECT, RecordedAt("base"), Rule.NOT_EMPTY] = "start"
    judge: Annotated[str, Rule.NO_EFFECT, Rule.NOT_EMPTY] = "start"
    answers: int = 2  # sampled answers per prompt
    # further answers per prompt, given with the descriptions as text: the first is the most likely one, others are sampled
    context_answers: Annotated[int, UnrecordedAt(0)] = 0
    pairs_per_prompt: PositiveInt = 1  # distinct pairs formed from them
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Rule.POSITIVE, Rule.SHARE] = 1.0
    max_new_tokens: PositiveInt = 256
    describe_prompt: str = "Describe in detail what happens in this part of the video."
    describe_tokens: PositiveInt = 128  # longest description of one segment
    context: bool = True  # show the judge the joined segment descriptions
    judge_frames: bool = True  # show the judge the frames
    # letter: logits of A and B; likelihood: mean log-likelihood of each answer; auto: both are tried on a few pairs
    readout: Literal["auto", "letter", "likelihood"] = "letter"
    margin: float = 0.0  # verdicts less clear than this become ties
    disagreement: Literal["drop", "average"] = "drop"  # of the two orders: drop the pair, or average the read-outs
    batch_size: PositiveInt = 16  # prompts in memory at once


@dataclass(frozen=True)
class RewardSection:
    """The reward model: pairwise logistic loss with centring (paper section 3.3)."""

    epochs: PositiveFloat = 1.0
    learning_rate: PositiveFloat = 2e-5
    warmup_ratio: Share = 0.03
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    max_grad_norm: PositiveFloat = 0.3
    batch_size: PositiveInt = 16  # pairs per optimiser step, at most all there are
    micro_batch_size: PositiveInt = 4
    centering: float = 0.001  # weight of |mean score|, which keeps scores around zero
    context: bool = False  # show the reward model the segment descriptions; the paper does not
    likelihood: bool = False  # add beta x mean log-likelihood of the answer to the score; not in the paper
    held_out: Share = 0.1  # share of preferences kept for the accuracy figure
    min_accuracy: Share = 0.55  # `ppo` refuses a reward model below this on held-out pairs
    save_steps: PositiveInt = 100
    base: str = ""  # a base of its own for reward and value model, with the tokenizer of model.base; empty: model.base
    adapter: str = ""  # folder of an adapter to start from; empty: the SFT adapter, or a fresh one on a base of its own
    rest: Place = "cpu"  # where a base of its own is while the policy samples: cpu (host memory) or device


@dataclass(frozen=True)
class EvaluateSection:
    """Held-out answers, controls and intervals."""

    max_new_tokens: PositiveInt = 256
    bootstrap: PositiveInt = 2000  # resamples of test clips for the 95 % intervals
    batch_size: PositiveInt = 16
    gallery: int = 24  # test clips shown with frames in the report


@dataclass(frozen=True)
class ExportSection:
    """Whether `run` ends with an export; the verb `export` needs no setting."""

    enabled: bool = False


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = 0
    report_to: Tracker = "none"
    model: ModelSection = field(default_factory=ModelSection)
    video: VideoSection = field(default_factory=VideoSection)
    data: DataSection = field(default_factory=DataSection)
    world: WorldSection = field(default_factory=WorldSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)
    sft: SftSection = field(default_factory=SftSection)
    questions: QuestionsSection = field(default_factory=QuestionsSection)
    feedback: FeedbackSection = field(default_factory=FeedbackSection)
    reward: RewardSection = field(default_factory=RewardSection)
    optimize: OptimizeSection = field(default_factory=OptimizeSection)
    distill: DistillSection = field(default_factory=DistillSection)
    dpo: DpoSection = field(default_factory=DpoSection)
    reference: ReferenceSection = field(default_factory=ReferenceSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    ppo: PpoSection = field(default_factory=PpoSection)
    group: GroupSection = field(default_factory=GroupSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    export: ExportSection = field(default_factory=ExportSection)

    def sections(self, *names: str) -> dict[str, Any]:
        """Sections by name."""
        return {name: getattr(self, name) for name in names}
