"""The stages of a run, one row each, in order: every list of stages, models, inputs or curves is derived from here. No torch.

Another method that trains the aligned model is one more row with `produces="rlaif"`, with its module `stages/<name>.py`.
`optimize.methods` names those of a run, in the order in which they follow each other.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

# Models that answer questions, in the order in which they are made, with their titles. "base" has no adapter.
MODELS = {"base": "Base, before SFT", "sft": "SFT", "rlaif": "RLAIF"}
SHARE = (0.0, 1.0)
OPTIONAL_DATA = ("dev", "preferences")  # parts of the data that a stage can do without


@dataclass(frozen=True)
class Curve:
    """A column of a stage's metrics.jsonl that report and app draw. span: of the vertical axis (None: as the values need)."""

    field: str
    title: str
    note: str = ""
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stage:
    """A stage. Its function is `run` in `minirlaif/stages/<name>.py`, or in that of `module`, which then gets the name unless it
    is the module's own.

    inputs: stages that have to be finished, or models: then the stage that made it, see `Run.inputs`; reads: parts of the data;
    sections: of the config, that its result depends on; produces: the model whose adapter it trains ("base": the base itself);
    distributed: several processes share its work; the leader does the others alone.
    """

    name: str
    help: str
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    produces: str = ""
    distributed: bool = False
    curves: tuple[Curve, ...] = ()
    module: str = ""

    @property
    def tone(self) -> str:
        """The colour of its curves: that of the model which it trains."""
        return self.produces if self.produces in MODELS else "plain"

    @property
    def needs(self) -> tuple[str, ...]:
        """The parts of the data that it cannot do without."""
        return tuple(part for part in self.reads if part not in OPTIONAL_DATA)

    def load(self) -> Callable[..., None]:
        """The stage's `run`, imported now: stages load torch."""
        function: Callable[..., None] = importlib.import_module(f"minirlaif.stages.{self.module or self.name}").run
        return partial(function, name=self.name) if self.module.rpartition(".")[2] not in ("", self.name) else function


def _group_method(name: str, help: str) -> Stage:
    """A method that compares the answers to one prompt: it learns as `ppo` does, without a value model."""
    return Stage(
        name,
        help,
        inputs=("sft", "feedback", "reward"),
        reads=("prompts", "dev"),
        sections=("model", "video", "feedback", "rollout", "group"),  # feedback: how the judge picks the checkpoint
        produces="rlaif",
        distributed=True,
        curves=(
            Curve("score", "Score", "before penalties, mean over a batch"),
            Curve("kl", "KL to the start", "nats per answer"),
            Curve("dev_win_rate", "Dev win rate", "dev answers preferred to the start's; 0.5: no better", span=SHARE),
            Curve("entropy", "Entropy", "nats per token"),
            Curve("length", "Length", "tokens per answer"),
            Curve("equal_groups", "Equal groups", "prompts whose answers all have one reward: nothing to learn", span=SHARE),
        ),
        module="ppo",
    )


_ROWS = (
    Stage(
        "pretrain",
        "train the tiny base model from random weights",
        sections=("pretrain",),
        produces="base",
        module="tiny.pretrain",
    ),
    Stage("world", "generate the tiny world: clips, exact answers and data files", sections=("world",), module="tiny.world"),
    Stage(
        "sft",
        "supervised fine-tuning, short answers first, then long ones",
        inputs=("world",),
        reads=("sft",),
        sections=("model", "video", "sft"),
        produces="sft",
        distributed=True,
        curves=(Curve("loss", "SFT loss"),),
    ),
    Stage(
        "questions",
        "describe clips about which there are no questions, and write some",
        inputs=("sft",),
        sections=("model", "video", "questions"),
    ),
    Stage(
        "feedback",
        "answer the prompts, describe the clips and judge the answers",
        inputs=("sft", "questions"),
        reads=("prompts", "dev"),
        sections=("model", "video", "feedback"),
        distributed=True,
        curves=(Curve("decided", "Pairs decided", "per chunk of prompts"),),
    ),
    Stage(
        "reward",
        "train the reward model on the judge's preferences",
        inputs=("sft", "feedback"),
        reads=("preferences",),
        sections=("model", "video", "reward"),
        produces="reward",
        distributed=True,
        curves=(
            Curve("loss", "Reward model loss"),
            Curve("accuracy", "Reward model accuracy", "on each step's training pairs", span=SHARE),
        ),
    ),
    Stage(
        "distill",
        "train the policy on answers that were given with the descriptions",
        inputs=("sft", "feedback"),
        reads=("dev",),
        sections=("model", "video", "feedback", "distill"),  # feedback: how the judge picks the checkpoint
        produces="rlaif",
        distributed=True,
        curves=(
            Curve("loss", "Distillation loss", "nats per answer token"),
            Curve("dev_win_rate", "Dev win rate", "dev answers preferred to the start's; 0.5: no better", span=SHARE),
        ),
    ),
    Stage(
        "bestofn",
        "train the policy on the answers that the judge found best",
        inputs=("sft", "feedback"),
        reads=("dev",),
        sections=("model", "video", "feedback", "distill"),  # feedback: how the judge picks the checkpoint
        produces="rlaif",
        distributed=True,
        curves=(
            Curve("loss", "Best-of-n loss", "nats per answer token"),
            Curve("dev_win_rate", "Dev win rate", "dev answers preferred to the start's; 0.5: no better", span=SHARE),
        ),
        module="distill",
    ),
    Stage(
        "dpo",
        "train the policy on the judge's preferences, without a reward model",
        inputs=("sft", "feedback"),
        reads=("preferences", "dev"),
        sections=("model", "video", "feedback", "dpo"),  # feedback: how the judge picks the checkpoint
        produces="rlaif",
        distributed=True,
        curves=(
            Curve("loss", "DPO loss"),
            Curve("accuracy", "DPO accuracy", "of the policy's log-ratios, on each step's pairs", span=SHARE),
            Curve("dev_win_rate", "Dev win rate", "dev answers preferred to the start's; 0.5: no better", span=SHARE),
        ),
    ),
    Stage(
        "ppo",
        "train the policy on scores of answers that it samples, with a value model",
        inputs=("sft", "feedback", "reward"),
        reads=("prompts", "dev"),
        sections=("model", "video", "feedback", "rollout", "ppo"),  # feedback: how the judge picks the checkpoint
        produces="rlaif",
        distributed=True,
        curves=(
            Curve("score", "Score", "before penalties, mean over a batch"),
            Curve("kl", "KL to the start", "nats per answer"),
            Curve("dev_win_rate", "Dev win rate", "dev answers preferred to the start's; 0.5: no better", span=SHARE),
            Curve("entropy", "Entropy", "nats per token"),
            Curve("length", "Length", "tokens per answer"),
        ),
    ),
    _group_method("rloo", "train the policy on scores, each less the mean of the other answers to its prompt"),
    _group_method("grpo", "train the policy on scores, normalised over the answers to a prompt"),
    _group_method("dr_grpo", "train the policy on scores, centred over the answers to a prompt"),
    Stage(
        "evaluate",
        "compare the aligned model with those before it on held-out questions",
        inputs=("sft", "feedback", "reward", "rlaif"),
        reads=("test",),
        sections=("model", "video", "evaluate"),
    ),
    Stage("report", "write report.html and report.json", inputs=("sft", "feedback", "reward", "rlaif", "evaluate")),
)
STAGES = {stage.name: stage for stage in _ROWS}
METHODS = tuple(stage.name for stage in _ROWS if stage.produces == "rlaif")
SAMPLING = tuple(stage.name for stage in _ROWS if "rollout" in stage.sections)  # methods that sample and score answers
PAIRED = frozenset({"reward", "dpo", "bestofn"})  # that learn from pairs: without one a run can do without
GROUP_METHODS = tuple(stage.name for stage in _ROWS if "group" in stage.sections)  # that compare answers to one prompt
DEFAULT_METHODS = ("ppo",)
PIPELINE = tuple(stage.name for stage in _ROWS if stage.produces != "base")  # all that `run` knows: it starts from a base
REPEATED = PIPELINE[PIPELINE.index("feedback") : PIPELINE.index(METHODS[-1]) + 1]  # what each further round does again
MOST_ROUNDS = 100  # of a run
ADAPTERS = tuple(model for model in reversed(MODELS) if any(stage.produces == model != "base" for stage in _ROWS))  # best first


def producers(model: str) -> tuple[Stage, ...]:
    """The stages that train a model, in order."""
    return tuple(stage for stage in _ROWS if stage.produces == model)


def pipeline(
    methods: Sequence[str] = DEFAULT_METHODS, sft: bool = True, reward: bool = True, questions: bool = False
) -> tuple[str, ...]:
    """The stages of a run, in order: with these methods alone, without SFT if it is off, with a reward model only where a
    method scores with it, and nothing else (reward) scores in its place, and with questions only where the run writes them."""
    read = {name for method in methods for name in STAGES[method].inputs if reward or name != "reward"}
    wanted = {"sft": sft, "questions": questions, "reward": "reward" in read}
    left_out = {*METHODS, *(name for name, there in wanted.items() if not there)}
    before = [name for name in until(METHODS[0]) if name not in left_out]
    after = [name for name in PIPELINE[len(until(METHODS[-1])) :] if name not in left_out]
    return (*before, *methods, *after)


def until(name: str, stages: Sequence[str] = PIPELINE) -> tuple[str, ...]:
    """The stages of a run up to this one."""
    return tuple(stages[: stages.index(name) + 1])


def first_reader(part: str) -> str:
    """The first stage that reads a part of the data."""
    return next(stage.name for stage in _ROWS if part in stage.reads)
