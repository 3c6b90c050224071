"""Which stages a run has, in which order, and which stage makes which model. No torch.

Names of stages are their places in the run's folder: "feedback", and "round-2/feedback" in a further round (see gains.py).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from minirlaif.config.loader import parse_yaml
from minirlaif.errors import UserError
from minirlaif.runs import gains
from minirlaif.runs.io import read_text
from minirlaif.stages.registry import ADAPTERS, DEFAULT_METHODS, METHODS, MOST_ROUNDS, REPEATED, STAGES, pipeline, producers


class StagePlan:
    """The stages of one run. root: its folder."""

    root: Path

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage, or None."""
        return None

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order: by the settings of the command in progress, which sets it, or else by the run's
        config.yaml; of a run without a readable one those of the default settings."""
        with suppress(UserError, OSError, ValueError, LookupError, TypeError):
            values = self._settings_file()
            methods = [name for name in values["optimize"]["methods"] if name in METHODS]
            named, scored = list(dict.fromkeys(methods)) or DEFAULT_METHODS, values["optimize"].get("reward", "model") == "model"
            data = values.get("data") or {}
            own = bool(data.get("clips")) and not data.get("prompts")
            return pipeline(named, values["sft"]["enabled"] is not False, scored, own)
        return pipeline()

    @cached_property
    def rounds(self) -> int:
        """How many rounds are wanted, as for `stages`."""
        with suppress(UserError, OSError, ValueError, LookupError, TypeError):
            return min(max(1, int(self._settings_file()["optimize"]["rounds"])), MOST_ROUNDS)
        return 1

    def _settings_file(self) -> Mapping[Any, Any]:
        return parse_yaml(read_text(self.root / "config.yaml"), "")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that train this run's aligned model, in order."""
        return tuple(name for name in self.stages if name in METHODS)

    @property
    def start_model(self) -> str:
        """The model that answers, describes and judges, and from which the first method starts: "sft", or "base" without SFT."""
        return "sft" if "sft" in self.stages else "base"

    def start(self, method: str) -> str:
        """What a method starts from: the method before it, or the start model."""
        place = self.methods.index(method) if method in self.methods else 0
        return self.methods[place - 1] if place else self.start_model

    def producer(self, model: str) -> str:
        """The stage of this run that made a model: the last finished one of those that make it, else the first; of the aligned
        model that of the round which counts. Another stage is itself."""
        names = [name for name in self.stages if name in [stage.name for stage in producers(model)]]
        if names and names[0] in METHODS and (number := gains.counting(gains.read(self.root))) > 1:
            return gains.name_of(number, names[-1])
        return next((name for name in reversed(names) if self.manifest(name) is not None), names[0] if names else model)

    def adapters(self) -> tuple[str, ...]:
        """The models with an adapter that this run makes, the best first: without SFT there is no "sft"."""
        return tuple(model for model in ADAPTERS if gains.split_name(self.producer(model))[1] in self.stages)

    def scored_rounds(self) -> dict[int, str]:
        """Of a run with further rounds: the last method of each finished round, by its number."""
        rounds = [each for each in gains.read(self.root) if each["methods"]]
        return {each["round"]: gains.name_of(each["round"], [*each["methods"]][-1]) for each in rounds if len(rounds) > 1}

    def inputs(self, stage: str) -> list[str]:
        """The stages that a stage is made from, for a model the one that made it here; a method's start is one of them, and what
        reads the aligned model reads those of all rounds."""
        names = [self.producer(name) for name in STAGES[stage].inputs] + ([self.start(stage)] if stage in METHODS else [])
        if "rlaif" in STAGES[stage].inputs:
            for number, method in self.scored_rounds().items():
                names += [gains.name_of(number, "feedback"), method]
        return [name for name in dict.fromkeys(names) if gains.split_name(name)[1] in self.stages]

    def export_inputs(self) -> list[str]:
        """The stages that an export is made from."""
        return [*map(self.producer, self.adapters()), *(["evaluate"] if self.manifest("evaluate") else [])]

    def models(self) -> tuple[str, ...]:
        """The models that this run can answer with, the best first."""
        return (*(model for model in self.adapters() if self.manifest(self.producer(model)) is not None), "base")

    def order(self) -> list[str]:
        """The names of all stages in the order in which they are made, those of further rounds that are wanted or begun too."""
        there = [gains.split_name(f"{path.name}/")[0] for path in self.root.glob(f"{gains.FOLDER}*")]
        own = with_rounds(("pretrain", *self.stages), max([self.rounds, *there]))
        return list(dict.fromkeys((*own, *STAGES)))


def with_rounds(stages: Sequence[str], rounds: int) -> tuple[str, ...]:
    """Stages in order with those of further rounds, which lie behind the last method."""
    again = [name for name in stages if name in REPEATED]
    place = stages.index(again[-1]) + 1 if again else len(stages)
    further = [gains.name_of(number, name) for number in range(2, rounds + 1) for name in again]
    return (*stages[:place], *further, *stages[place:])
