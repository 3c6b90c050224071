"""An adapter under training: its optimiser and one step of it. No class here holds a training loop; a stage writes its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from minirlaif.config import DistillSection, DpoSection, GroupSection, ModelSection, PpoSection, RewardSection, SftSection
from minirlaif.errors import StageStopped
from minirlaif.session import ModelSession
from minirlaif.training.checkpoint import load_optimizer, save_optimizer

Section = TypeVar("Section", SftSection, RewardSection, PpoSection, GroupSection, DistillSection, DpoSection)


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


def check_finite(stage: str, step: int, numbers: Mapping[str, float], section: str = "") -> None:
    """StageStopped, with the step and the number's name, where a loss or gradient is NaN or infinite; the last state stays.
    section: of the stage's learning rate, where it has another name than the stage."""
    section = section or stage
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise StageStopped(
                f"{stage}: {name} is {value} at step {step}; the state before it is kept: lower {section}.learning_rate"
                " and start the stage again",
                again=(f"{section}.learning_rate=…",),
            )
