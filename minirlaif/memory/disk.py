"""The disk that a run takes, compared with what is free before the work starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from minirlaif.errors import UserError

if TYPE_CHECKING:
    from minirlaif.memory.hours import Hours
    from minirlaif.memory.planner import Planned

EXPORT_BYTES = 2 + 2 + 1.1 + 0.7  # per weight: hf/ and F16, Q8_0, Q4_K_M
ADAPTERS = 8  # kept, last and best ones of all stages, and states of the optimiser
SPARE = 0.5  # GiB: rows, logs, pictures


def needed(plan: Planned, hours: Hours | None) -> dict[str, float]:
    """GiB by what takes them. hours: an estimate that knows the feature cache; without it that is left out."""
    numbers, settings = plan.policy.numbers, plan.settings
    weights = numbers.linear_weights + numbers.plain_weights + numbers.head_weights + numbers.vision_weights
    parts = {"adapters": ADAPTERS * 4 * numbers.lora_units * settings.model.lora_r / 2**30, "other files": SPARE}
    if settings.export.enabled:
        parts["export"] = EXPORT_BYTES * weights / 2**30
    if hours:
        parts["features"] = min(settings.video.cache_gib, hours.cache_gib)
    return parts


def line(plan: Planned, hours: Hours | None, folder: Path) -> str:
    """For people: what is needed, and free where the run's folder is or will be.

    Raises:
        UserError: less is free.
    """
    parts, free = needed(plan, hours), _free(folder) / 2**30
    named = ", ".join(f"{name} {size:.1f}" for name, size in sorted(parts.items(), key=lambda part: -part[1]))
    text = f"disk: about {sum(parts.values()):.1f} GiB ({named}), {free:.1f} GiB free"
    if sum(parts.values()) > free:
        raise UserError(f"{folder}: too little disk: {text[6:]}; free some, or name a folder on another disk with --runs-dir")
    return text


def _free(folder: Path) -> int:
    """Bytes on the disk of a folder that need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
