"""Whether a plan fits a card, what to shrink first when it does not, the smaller settings, and the table of all configs."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from minirlaif.config import stages_of
from minirlaif.errors import UserError
from minirlaif.memory.planner import CONTEXT, GIB, STEPS, Planned, peak
from minirlaif.stages.registry import GROUP_METHODS


@dataclass(frozen=True)
class Card:
    """The memory to fit into. bytes: all of it; gpu: a GPU (minus its library context; roles are offloaded to host memory)."""

    name: str
    bytes: float
    gpu: bool

    @property
    def room(self) -> float:
        """Bytes for tensors: 3 % are lost to the allocator's gaps."""
        return (self.bytes - CONTEXT) * 0.97 if self.gpu else self.bytes


def fitted(plan: Planned, card: Card) -> tuple[Planned, list[str]]:
    """The plan with settings shrunk until it fits, and what was changed: frames, then pixels, then micro-batches, then bits.
    UserError: nothing is left to shrink and it still does not fit."""
    changes: list[str] = []
    while peak(plan)[1] > card.room:
        step = _shrunk(plan)
        if step is None:
            name, size = peak(plan)
            raise UserError(
                f"{STEPS[name].title} still takes {size / GIB:.1f} GiB of {card.bytes / GIB:.1f} at the smallest settings;"
                " choose a smaller model.base"
            )
        plan, new = step
        changes = [change for change in changes if change.split(" ")[0] != new.split(" ")[0]] + [new]
    return plan, changes


def _shrunk(plan: Planned) -> tuple[Planned, str] | None:
    """One step smaller in the first setting that can still shrink."""
    cfg, family = plan.settings, plan.policy.family

    def changed(section: str, field: str, value: object, **others: object) -> tuple[Planned, str]:
        new: Any = replace(getattr(cfg, section), **{field: value, **others})
        return replace(plan, settings=replace(cfg, **{section: new})), f"{section}.{field} {str(value).lower()}"

    if cfg.video.frames > 8 and not family.pools_frames:
        frames = max(8, cfg.video.frames * 3 // 4)
        return changed("video", "frames", frames, segment_frames=min(cfg.video.segment_frames, frames))
    if family.any_frame_size and cfg.video.frame_pixels > 16384:
        return changed("video", "frame_pixels", max(16384, cfg.video.frame_pixels * 3 // 4))
    size, section, field = max(
        ((getattr(getattr(cfg, s), f), s, f) for s, f in _batches(stages_of(cfg))),
        key=itemgetter(0),
    )  # the first largest
    if size > 1:
        return changed(section, field, size // 2)
    if not cfg.model.gradient_checkpointing:
        return changed("model", "gradient_checkpointing", True)
    return changed("model", "quantization", "nf4") if cfg.model.quantization == "none" else None


_GROUP_BATCHES = (("group", "micro_batch_size"), ("rollout", "batch_size"))
_BATCHES = (  # of the stage, section and field
    ("sft", "sft", "micro_batch_size"),
    ("reward", "reward", "micro_batch_size"),
    ("distill", "distill", "micro_batch_size"),
    ("bestofn", "distill", "micro_batch_size"),
    ("dpo", "dpo", "micro_batch_size"),
    ("ppo", "ppo", "micro_batch_size"),
    ("ppo", "rollout", "batch_size"),
    *((name, section, field) for name in GROUP_METHODS for section, field in _GROUP_BATCHES),
    ("questions", "feedback", "batch_size"),
    ("feedback", "feedback", "batch_size"),
    ("evaluate", "evaluate", "batch_size"),
)


def _batches(stages: Sequence[str]) -> list[tuple[str, str]]:
    """The settings of how many rows are in memory at once, of stages that a run has."""
    return [(section, field) for stage, section, field in _BATCHES if stage in stages]


def verdict(plan: Planned, card: Card) -> list[str]:
    """Whether it fits, and what to shrink first when it does not."""
    name, size = peak(plan)
    text = f"{STEPS[name].title} takes most: {size / GIB:.2f} of {card.bytes / GIB:.1f} GiB ({card.name})"
    if size <= card.room:
        return [f"fits: {text}"]
    lines = [f"does not fit: {text}"]
    try:
        lines.append("shrink first: " + ", then ".join(fitted(plan, card)[1]))
    except UserError as error:
        lines.append(str(error))
    return lines


def markdown(plans: Sequence[tuple[Path, Planned]], sizes: Sequence[float]) -> str:
    """The table in hardware.md: a row per config with its plan for a GPU, a column per card, and what was measured
    according to the file's header."""
    rows = ["| config | peak | " + " | ".join(f"{size:.0f} GiB" for size in sizes) + " | |"]
    rows.append("| --- " * (len(sizes) + 3) + "|")
    for path, plan in plans:
        stage, size = peak(plan)
        cells = [_cell(plan, Card("", gib * GIB, True)) for gib in sizes]
        row = f"| `{path.name}` | {size / GIB:.1f} GiB ({STEPS[stage].title}) | {' | '.join(cells)} |"
        rows.append(f"{row} {measured(path) or 'planned'} |")
    return "\n".join(rows)


def header(results: Sequence[Mapping[str, Any]], gpu_gib: float | None, versions: Mapping[str, str]) -> str:
    """The header line of a config that `bench` has measured in all stages; `measured` reads it.
    results: as `bench.measure` gives them, none with an error; gpu_gib: the cap; versions: with the "date"."""
    most = max(results, key=lambda result: float(result["peak"]))
    device = str(most["device"])
    card = f"{device}, capped at {gpu_gib:g} GiB" if gpu_gib and device != "cpu" else device
    seconds = ", ".join(f"{STEPS[r['stage']].title} {r['seconds_per_step']:.1f}" for r in results)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "date")
    peak_text = f"{most['peak'] / GIB:.1f} GiB ({STEPS[most['stage']].title})"
    return (
        f"# Card or cap: {card}. Measured peak: {peak_text}. Seconds: {seconds}. Date: {versions['date']}. Versions: {packages}."
    )


def measured(path: Path) -> str | None:
    """What was measured according to a config's header, for the table; None for "not measured".
    UserError: the header line cannot be read."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Card or cap: ")]
    if not lines or _UNMEASURED in lines[0]:
        return None
    match = _MEASURED.match(lines[0])
    if match is None:
        raise UserError(f"{path}: its line `# Card or cap:` cannot be read; paste the one that `bench --config {path}` prints")
    return f"measured {match['peak']} on {match['card']}, {match['date']}"


_UNMEASURED = "Measured peak: not measured."
_MEASURED = re.compile(
    r"# Card or cap: (?P<card>.+?)\. Measured peak: (?P<peak>[\d.]+ GiB \([a-z_ ]+\))\. Seconds: .+\. Date: (?P<date>[\d-]+)\. "
)


def _cell(plan: Planned, card: Card) -> str:
    if peak(plan)[1] <= card.room:
        return "yes"
    try:
        return "with " + ", ".join(fitted(plan, card)[1])
    except UserError:
        return "no"


def find_card(gib: float | None, wanted: Any) -> Card:
    """The card of `gib`, or else the GPU that is there; without one main memory."""
    import torch

    if gib is not None:
        return Card("named with --gpu-gib", gib * GIB, True)
    if wanted != "cpu" and torch.cuda.is_available():
        return Card(torch.cuda.get_device_name(), float(torch.cuda.get_device_properties(0).total_memory), True)
    return Card("main memory, no GPU", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), False)
