"""Optimising a role: accelerate's device, precision and trackers, AdamW, one optimiser step, and state on disk. No class of
ours holds a training loop; a stage writes its own.

State on disk is safetensors: adapter weights and AdamW's moments. Randomness needs none, because every step derives its
generator from (seed, stage, step).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minirlaif.config import Config
from minirlaif.records import StageStopped
from minirlaif.roles import Roles


def make_accelerator(cfg: Config, folder: Path) -> Any:
    """accelerate's handle for device, mixed precision and trackers (`report_to`)."""
    from accelerate import Accelerator

    on_cpu = cfg.model.device == "cpu" or not torch.cuda.is_available()
    low = not on_cpu and cfg.model.dtype != "float32"
    trackers = None if cfg.report_to == "none" else cfg.report_to
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision="bf16" if low else "no", log_with=trackers, project_dir=str(folder / "tracker")
    )
    if trackers:
        accelerator.init_trackers("minirlaif")
    return accelerator


def generator(seed: int, *place: Any) -> torch.Generator:
    """A CPU generator that depends on the seed and the place of its use alone."""
    return torch.Generator().manual_seed(seed_of(seed, *place))


def seed_of(seed: int, *place: Any) -> int:
    """A 62-bit seed from the run's seed and a place such as ("ppo", step)."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:8], "big") >> 2


def make_optimizer(accelerator: Any, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> Any:
    """AdamW over adapter weights, prepared by accelerate; the moments are float32."""
    if any(type(p).__name__ == "Params4bit" for p in parameters):
        raise ValueError("quantised weights cannot be trained: pass adapter weights only")
    return accelerator.prepare(torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay))


def optimizer_step(
    accelerator: Any, optimizer: Any, parameters: Sequence[nn.Parameter], learning_rate: float, max_grad_norm: float
) -> float:
    """Clip, step, forget the gradients. Returns the gradient norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm))
    if math.isfinite(norm):  # a step on NaN gradients would spoil the weights before `check_finite` can speak
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def check_finite(stage: str, step: int, numbers: Mapping[str, float]) -> None:
    """Stop a stage whose loss or gradient is no number; the last committed state stays.

    Raises:
        StageStopped: with the step and the name of the number.
    """
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise StageStopped(
                f"{stage}: {name} is {value} at step {step}; the state before it is kept: lower {stage}.learning_rate"
                " and start the stage again with --redo"
            )


def write_state(
    folder: Path, roles: Roles, names: Iterable[str], optimizers: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Adapters, heads, optimiser moments and a few plain values, as safetensors and json."""
    from safetensors.torch import save_file

    for name in names:
        roles.save(name, folder / name)
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()["state"]
        tensors = {f"{i}.{k}": torch.as_tensor(v).to("cpu").contiguous() for i, s in state.items() for k, v in s.items()}
        save_file(tensors, folder / f"{name}.optimizer.safetensors")
    (folder / "extra.json").write_text(json.dumps(dict(extra)))


def read_optimizer(folder: Path, name: str, optimizer: Any) -> None:
    """Put AdamW's moments back."""
    from safetensors.torch import load_file

    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / f"{name}.optimizer.safetensors").items():
        index, field = key.split(".")
        state.setdefault(int(index), {})[field] = tensor
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def read_extra(folder: Path) -> dict[str, Any]:
    """The plain values of `write_state`."""
    result: dict[str, Any] = json.loads((folder / "extra.json").read_text())
    return result


def shuffled(count: int, seed: int, *place: Any) -> list[int]:
    """0 .. count-1 in an order that the seed and the place decide."""
    return torch.randperm(count, generator=generator(seed, *place)).tolist()
