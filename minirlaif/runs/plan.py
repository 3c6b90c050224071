"""Which stages a run has, in which order, and which stage makes which model. No torch."""

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from minirlaif.config.loader import parse_yaml
from minirlaif.errors import UserError
from minirlaif.runs.io import read_text
from minirlaif.stages.registry import ADAPTERS, DEFAULT_METHODS, METHODS, STAGES, pipeline, producers


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
            values = parse_yaml(read_text(self.root / "config.yaml"), "")
            methods = [name for name in values["optimize"]["methods"] if name in METHODS]
            return pipeline(list(dict.fromkeys(methods)) or DEFAULT_METHODS, values["sft"]["enabled"] is not False)
        return pipeline()

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
        """The stage of this run that made a model: the last finished one of those that make it, else the first. Another stage
        is itself."""
        names = [name for name in self.stages if name in [stage.name for stage in producers(model)]]
        return next((name for name in reversed(names) if self.manifest(name) is not None), names[0] if names else model)

    def adapters(self) -> tuple[str, ...]:
        """The models with an adapter that this run makes, the best first: without SFT there is no "sft"."""
        return tuple(model for model in ADAPTERS if self.producer(model) in self.stages)

    def inputs(self, stage: str) -> list[str]:
        """The stages that a stage is made from, for a model the one that made it here; a method's start is one of them."""
        start = [self.start(stage)] if stage in METHODS else []
        names = [self.producer(name) for name in STAGES[stage].inputs] + start
        return [name for name in dict.fromkeys(names) if name in self.stages]

    def models(self) -> tuple[str, ...]:
        """The models that this run can answer with, the best first."""
        return (*(model for model in self.adapters() if self.manifest(self.producer(model)) is not None), "base")
