"""The state of an interrupted stage on disk: optimiser moments as safetensors, plain values as JSON.

Randomness needs no state: every step derives its generator from (seed, stage, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlaif.errors import UserError


@dataclass(frozen=True)
class Start:
    """Where training starts.

    seed: of fresh weights; folder: of the run, where trackers write; adapters: by role the folder that it is copied from
    (a role that is not named starts fresh); beta: of a fresh reward head, see `ScalarHead`; state: of an interrupted run.
    """

    seed: int
    folder: Path
    report_to: str = "none"
    adapters: Mapping[str, Path] = field(default_factory=dict)
    beta: float | None = None
    state: Path | None = None


class BestCheckpoint(TypedDict, total=False):
    """The policy that is kept: of which iteration, and its win rate on dev prompts."""

    iteration: int
    win_rate: float


@dataclass
class MethodProgress:
    """What a resumed method needs beside weights: optimiser steps, mean and deviation of the first batch's scores (and of each
    value of rollout.normalize_by), the kept checkpoint, how many groups of answers to one prompt there were, and how many with
    equal rewards."""

    updates: int = 0
    score_mean: float | None = None
    score_deviation: float | None = None
    best: BestCheckpoint = field(default_factory=BestCheckpoint)
    groups: int = 0
    equal_groups: int = 0
    scores_by: dict[str, list[float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it beside the weights."""
        (folder / "extra.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> MethodProgress:
        """What `write` left."""
        return cls(**json.loads((folder / "extra.json").read_text()))


def save_optimizer(folder: Path, name: str, optimizer: Any) -> None:
    """Moments of every parameter, by its place."""
    tensors = {
        f"{i}.{key}": torch.as_tensor(value).to("cpu", copy=True).contiguous()  # 8-bit states share their code tables
        for i, parameter in enumerate(parameters_of(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(tensors, folder / f"{name}.optimizer.safetensors")


def load_optimizer(folder: Path, name: str, optimizer: Any) -> None:
    """Put the moments back. UserError: they are those of the other `model.optimizer`, or of an earlier version."""
    path = folder / f"{name}.optimizer.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: not there, this state is of an earlier version; start the stage again with --redo", again=())
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        index, name_of_moment = key.split(".")
        state.setdefault(int(index), {})[name_of_moment] = tensor
    inner = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    eight_bits = hasattr(inner, "init_state")
    if state and eight_bits != any("state1" in moments for moments in state.values()):
        raise UserError(f"{folder}: kept by the other model.optimizer; set that one, or start the stage again", again=())
    if eight_bits:  # paged memory is allocated by the optimiser itself, so its buffers are filled rather than replaced
        weights = parameters_of(optimizer)
        for place, moments in state.items():
            inner.init_state(inner.param_groups[0], weights[place], 0, place)
            buffers = inner.state[weights[place]]
            buffers["step"] = int(moments.pop("step"))
            for key, tensor in moments.items():
                buffers[key].copy_(tensor)
        return
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def parameters_of(optimizer: Any) -> list[nn.Parameter]:
    """In the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
