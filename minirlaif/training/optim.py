"""Optimising a role: accelerate's device, precision and trackers, the optimiser, one step of it, and state on disk. No class of
ours holds a training loop; a stage writes its own.

State on disk is safetensors: adapter weights and the optimiser's moments. Randomness needs none, because every step derives its
generator from (seed, stage, step).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minirlaif.config import Config
from minirlaif.errors import StageStopped, UserError
from minirlaif.models.adapters import AdapterSet


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


def make_optimizer(
    accelerator: Any, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float, kind: str = "adamw"
) -> Any:
    """AdamW over adapter weights, prepared by accelerate. kind: `model.optimizer`; "adamw" has float32 moments,
    "paged_adamw_8bit" has 8-bit ones that the GPU's driver moves to host memory when the device is full."""
    if any(type(p).__name__ == "Params4bit" for p in parameters):
        raise ValueError("quantised weights cannot be trained: pass adapter weights only")
    made: type = torch.optim.AdamW
    if kind == "paged_adamw_8bit":
        from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

        made = PagedAdamW8bit if accelerator.device.type == "cuda" else AdamW8bit  # a CPU has nothing to page out
    return accelerator.prepare(made(parameters, lr=learning_rate, weight_decay=weight_decay))


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
                " and start the stage again",
                again=(f"{stage}.learning_rate=…",),
            )


def write_state(folder: Path, owners: Mapping[str, AdapterSet], optimizers: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Adapters and heads of roles (by name: who holds them), optimiser moments and a few plain values, as safetensors and
    json."""
    from safetensors.torch import save_file

    for name, roles in owners.items():
        roles.save(name, folder / name)
    for name, optimizer in optimizers.items():
        tensors = {
            f"{i}.{field}": torch.as_tensor(value).to("cpu", copy=True).contiguous()  # 8-bit states share their code tables
            for i, parameter in enumerate(_trained(optimizer))
            for field, value in optimizer.state.get(parameter, {}).items()
        }
        save_file(tensors, folder / f"{name}.optimizer.safetensors")
    (folder / "extra.json").write_text(json.dumps(dict(extra)))


def read_optimizer(folder: Path, name: str, optimizer: Any) -> None:
    """Put the moments back.

    Raises:
        UserError: they are those of the other `model.optimizer`.
    """
    from safetensors.torch import load_file

    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / f"{name}.optimizer.safetensors").items():
        index, field = key.split(".")
        state.setdefault(int(index), {})[field] = tensor
    inner = optimizer.optimizer  # accelerate's wrapper
    eight_bits = hasattr(inner, "init_state")
    if state and eight_bits == any("exp_avg" in fields for fields in state.values()):
        raise UserError(f"{folder}: kept by the other model.optimizer; set that one, or start the stage again", again=())
    if eight_bits:  # paged memory is allocated by the optimiser itself, so its buffers are filled rather than replaced
        weights = _trained(optimizer)
        for place, tensors in state.items():
            inner.init_state(inner.param_groups[0], weights[place], 0, place)
            mine = inner.state[weights[place]]
            mine["step"] = int(tensors.pop("step"))
            for field, tensor in tensors.items():
                mine[field].copy_(tensor)
        return
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _trained(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def read_extra(folder: Path) -> dict[str, Any]:
    """The plain values of `write_state`."""
    result: dict[str, Any] = json.loads((folder / "extra.json").read_text())
    return result


def shuffled(count: int, seed: int, *place: Any) -> list[int]:
    """0 .. count-1 in an order that the seed and the place decide."""
    return torch.randperm(count, generator=generator(seed, *place)).tolist()
