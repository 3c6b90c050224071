"""An adapter under training: where it starts, its optimiser, one step of it, and its state on disk. No class here holds a
training loop; a stage writes its own.

An interrupted stage leaves adapters and optimiser moments as safetensors, plain values as JSON. Randomness needs no state: every
step derives its generator from (seed, stage, step).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlaif.config import ModelSection, PpoSection, RewardSection, SftSection
from minirlaif.errors import StageStopped, UserError
from minirlaif.session import ModelSession

Section = TypeVar("Section", SftSection, RewardSection, PpoSection)


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
class PPOProgress:
    """What a resumed PPO needs beside weights: optimiser steps, the first batch's scores, the kept checkpoint."""

    updates: int = 0
    score_mean: float | None = None
    score_deviation: float | None = None
    best: BestCheckpoint = field(default_factory=BestCheckpoint)

    def write(self, folder: Path) -> None:
        """Write it beside the weights."""
        (folder / "extra.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> PPOProgress:
        """What `write` left."""
        return cls(**json.loads((folder / "extra.json").read_text()))


class AdapterTrainer(Generic[Section]):
    """The adapter (and head) of a role with its optimiser. section: the settings of the stage that trains it; state: the folder
    of an interrupted run that the optimiser's moments come from."""

    def __init__(self, session: ModelSession, role: str, section: Section, accelerator: Any, state: Path | None = None) -> None:
        self.session, self.role, self.accelerator = session, role, accelerator
        self.section: Section = section
        self.parameters = session.adapters.parameters(role)
        self.optimizer = make_optimizer(
            accelerator, self.parameters, section.learning_rate, section.weight_decay, session.model.optimizer
        )
        if state:
            load_optimizer(state, role, self.optimizer)

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, step, drop them. Returns the gradient norm before clipping."""
        return optimizer_step(self.accelerator, self.optimizer, self.parameters, learning_rate, self.section.max_grad_norm)

    def save(self, folder: Path) -> None:
        """Write the role's adapter and head, and the moments of its optimiser."""
        self.session.adapters.save(self.role, folder / self.role)
        save_optimizer(folder, self.role, self.optimizer)


def make_accelerator(model: ModelSection, report_to: str, folder: Path) -> Any:
    """accelerate's handle for device, mixed precision and trackers (`report_to`, which write below the folder)."""
    from accelerate import Accelerator

    on_cpu = model.device == "cpu" or not torch.cuda.is_available()
    low = not on_cpu and model.dtype != "float32"
    trackers = None if report_to == "none" else report_to
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision="bf16" if low else "no", log_with=trackers, project_dir=str(folder / "tracker")
    )
    if trackers:
        accelerator.init_trackers("minirlaif")
    return accelerator


def make_optimizer(
    accelerator: Any, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float, kind: str = "adamw"
) -> Any:
    """AdamW over adapter weights, prepared by accelerate. kind: `model.optimizer`; "adamw" has float32 moments,
    "paged_adamw_8bit" has 8-bit ones that the GPU's driver moves to host memory when the device is full."""
    if any(type(p).__name__ == "Params4bit" for p in parameters):
        raise ValueError("quantised weights cannot be trained: pass adapter weights only")
    optimizer: Any = torch.optim.AdamW
    if kind == "paged_adamw_8bit":
        from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

        optimizer = PagedAdamW8bit if accelerator.device.type == "cuda" else AdamW8bit  # a CPU has nothing to page out
    return accelerator.prepare(optimizer(parameters, lr=learning_rate, weight_decay=weight_decay))


def optimizer_step(
    accelerator: Any, optimizer: Any, parameters: Sequence[nn.Parameter], learning_rate: float, max_grad_norm: float
) -> float:
    """Clip, step, drop the gradients. Returns the gradient norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm))
    if math.isfinite(norm):  # a step on NaN gradients would spoil the weights before `check_finite` stops the stage
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def check_finite(stage: str, step: int, numbers: Mapping[str, float]) -> None:
    """StageStopped, with the step and the number's name, where a loss or gradient is NaN or infinite; the last state stays."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise StageStopped(
                f"{stage}: {name} is {value} at step {step}; the state before it is kept: lower {stage}.learning_rate"
                " and start the stage again",
                again=(f"{stage}.learning_rate=…",),
            )


def save_optimizer(folder: Path, name: str, optimizer: Any) -> None:
    """Moments of every parameter, by its place."""
    tensors = {
        f"{i}.{key}": torch.as_tensor(value).to("cpu", copy=True).contiguous()  # 8-bit states share their code tables
        for i, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(tensors, folder / f"{name}.optimizer.safetensors")


def load_optimizer(folder: Path, name: str, optimizer: Any) -> None:
    """Put the moments back. UserError: they are those of the other `model.optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / f"{name}.optimizer.safetensors").items():
        index, name_of_moment = key.split(".")
        state.setdefault(int(index), {})[name_of_moment] = tensor
    inner = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    eight_bits = hasattr(inner, "init_state")
    if state and eight_bits != any("state1" in moments for moments in state.values()):
        raise UserError(f"{folder}: kept by the other model.optimizer; set that one, or start the stage again", again=())
    if eight_bits:  # paged memory is allocated by the optimiser itself, so its buffers are filled rather than replaced
        weights = _parameters(optimizer)
        for place, moments in state.items():
            inner.init_state(inner.param_groups[0], weights[place], 0, place)
            buffers = inner.state[weights[place]]
            buffers["step"] = int(moments.pop("step"))
            for key, tensor in moments.items():
                buffers[key].copy_(tensor)
        return
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
