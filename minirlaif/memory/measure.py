"""`bench`: peak memory and speed of every stage on this machine, with random weights of a named config. `plan --probe` uses the
same children with the real model and the longest row of the data.

Each stage runs in a process of its own, so that one stage's memory is not another's, and so that running out of it ends one
stage and not the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif import config
from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.memory.planner import CONTEXT, GIB, STEPS, Planned, estimate, shapes_of, steps_of
from minirlaif.memory.tables import aligned

if TYPE_CHECKING:
    from minirlaif.memory.steps import StageProbe

# Big blocks of glibc's heap come from the system one by one and go back at once: resident memory is then what is alive.
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
# An `accelerate launch` tells its processes with these that there are others; a child works alone.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
COLUMNS = ("stage", "peak MiB", "planned MiB", "s/step", "tokens/s", "samples/s")


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """Steps named in a list such as "sft,ppo"; "ppo" means collecting and updating. known: the steps of the config, which an
    empty list means. UserError for others."""
    names: list[str] = []
    for name in filter(None, text.split(",")):
        steps = steps_of(name) or [name]
        if not set(steps) <= set(known):
            stages = ", ".join(dict.fromkeys(STEPS[step].stage for step in known))
            raise UserError(f"--stages {name}: no such stage in this config; choose from {stages}")
        names += steps
    return names or list(known)


def measure(settings: str, stage: str, gpu_gib: float | None, rows: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One stage in a child process: a dictionary of numbers, or one with "error".
    settings: the config as YAML; rows: for a probe, what `longest_row.longest` found in the data; None: made-up texts."""
    job = {"config": settings, "stage": stage, "gpu_gib": gpu_gib, "rows": dict(rows) if rows else None}
    code = "from minirlaif.memory.measure import child; child()"
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment = {**inherited, **STEADY, "TOKENIZERS_PARALLELISM": "false"}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input=json.dumps(job), capture_output=True, text=True, env=environment
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    errors = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return {"stage": stage, "error": errors[-1].strip() if errors else f"ended with code {done.returncode}"}


def child() -> None:
    """Run in the child: read the job from stdin, print the result as the last line."""
    from minirlaif.memory.steps import StageProbe

    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(job["config"], encoding="utf-8")
        try:
            result = measure_step(StageProbe(config.load(path), job["stage"], Path(folder)), job["gpu_gib"], job["rows"])
        except UserError as error:
            sys.exit(str(error))
    print(json.dumps(result))


def measure_step(stage: StageProbe, gpu_gib: float | None, rows: Mapping[str, Any] | None) -> dict[str, Any]:
    """One step of a stage in this process, after one that warms up: peak, plan and speed. rows: see `measure`."""
    import torch

    from minirlaif.memory import steps
    from minirlaif.models.loading import pick_device

    model = stage.full.model
    gpu = pick_device(model.device).type == "cuda"
    if gpu and gpu_gib:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(allowed(gpu_gib, total))
    runtime = libraries(model)
    plan = Planned(stage.full, *shapes_of(model, stage.full.reward), gpu, runtime)
    with stage.open(rows) as (models, worst):
        session = models.policy
        step = stage.prepare(models, worst)
        before = session.feature_cache.counters.get("encodes", 0)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # else it is that of the whole process, which building the model may have set
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark starts anew
        steps.timed(step)  # the first one warms up, and gives the optimisers their moments
        done, seconds = steps.timed(step)
        encoded = session.feature_cache.counters.get("encodes", 0) > before  # made-up clips never are
        prompt, answer = stage.size(session, worst)
        planned = estimate(replace(plan, encodes=encoded), {stage.stage: (prompt, answer)}, [stage.stage])[stage.stage]
        return {
            "stage": stage.stage,
            "peak": float(torch.cuda.max_memory_allocated()) if gpu else _status("VmHWM"),
            "reserved": torch.cuda.max_memory_reserved() if gpu else None,
            "planned": sum(planned.values()),
            "planned_lines": planned,
            "runtime": runtime,
            "prompt_tokens": prompt,
            "seconds_per_step": seconds / done.share,
            "share": done.share,
            "tokens_per_second": done.tokens / seconds,
            "samples_per_second": done.samples / seconds,
            "device": torch.cuda.get_device_name() if gpu else "cpu",
        }


def allowed(gib: float, total: float) -> float:
    """Share of a card of `total` bytes that the allocator may take to be like one of `gib`, which has the libraries beside it."""
    return min(1.0, max(0.0, gib * GIB - CONTEXT) / total)


def libraries(model: ModelSection) -> float:
    """Resident bytes of this process once everything that a stage imports is in it; 0 where that cannot be read."""
    import accelerate  # noqa: F401

    from minirlaif.memory import steps  # noqa: F401
    from minirlaif.models import adapters

    adapters.import_peft()
    if model.quantization == "nf4" or model.optimizer != "adamw":
        import bitsandbytes  # noqa: F401
    from minirlaif.models.loading import empty_model, read_config

    empty_model(read_config(model))  # the model's own module
    return _status("VmRSS")


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(name)), 0.0)


def versions() -> dict[str, str]:
    """Versions of the packages that change the numbers, and the day."""
    import time
    from importlib import metadata

    packages = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
    return {name: metadata.version(name) for name in packages} | {"date": time.strftime("%Y-%m-%d")}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row per stage. s/step is for a whole step of the config; tokens are sampled ones."""
    rows = [COLUMNS]
    for r in results:
        cells = ("failed", "", "", "", "")
        if "error" not in r:
            tokens = f"{r['tokens_per_second']:.1f}" if r["tokens_per_second"] else "-"
            peaks = f"{r['peak'] / 2**20:,.0f}", f"{r['planned'] / 2**20:,.0f}"
            cells = (*peaks, f"{r['seconds_per_step']:.2f}", tokens, f"{r['samples_per_second']:.2f}")
        rows.append((STEPS[r["stage"]].title, *cells))
    return aligned(rows)
