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
from dataclasses import replace
from pathlib import Path
from typing import Any

from minirlaif import config
from minirlaif.config import Config, ModelSection
from minirlaif.errors import UserError
from minirlaif.memory.planner import CONTEXT, GIB, STEPS, Planned, aligned, estimate, shapes_of, steps_of
from minirlaif.runs.run import Run

# Big blocks of glibc's heap come from the system one by one and go back at once: resident memory is then what is alive.
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
# An `accelerate launch` tells its processes with these that there are others; a child works alone.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
COLUMNS = ("stage", "peak MiB", "planned MiB", "s/step", "tokens/s", "samples/s")


def run(cfg: Config, stages: Sequence[str], gpu_gib: float | None, out: Path | None) -> int:
    """Measure stages, print the table and, when all stages were measured, the header line for the config; write json.
    Exit code 1 when a stage failed. UserError when the models' sizes are not known."""
    from minirlaif.memory.fit import header
    from minirlaif.runs.io import write_atomic

    shapes_of(cfg.model, cfg.reward)  # a wrong name is told once, not by every child
    results = [measure(cfg, stage, gpu_gib) for stage in stages]
    print(table(results))
    for result in results:
        if "error" in result:
            print(f"{result['stage']}: {result['error']}", file=sys.stderr)
    failed = any("error" in result for result in results)
    if not failed and set(stages) == set(STEPS):
        print(header(results, gpu_gib, versions()))
    if out is not None:
        write_atomic(out, json.dumps({"versions": versions(), "config": config.dump(cfg), "stages": results}, indent=1))
    return 1 if failed else 0


def chosen(text: str) -> list[str]:
    """Steps named in a list such as "sft,ppo"; "ppo" means collecting and updating. UserError for others."""
    names: list[str] = []
    for name in filter(None, text.split(",")):
        found = steps_of(name) or [name]
        if not set(found) <= set(STEPS):
            raise UserError(f"--stages {name}: no such stage; choose from sft, feedback, reward, ppo, evaluate")
        names += found
    return names or list(STEPS)


def measure(cfg: Config, stage: str, gpu_gib: float | None, rows: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One stage in a child process: a dictionary of numbers, or one with "error".

    rows: for a probe, what `steps.longest` found in the data; None: stand-ins.
    """
    job = {"config": config.dump(cfg), "stage": stage, "gpu_gib": gpu_gib, "rows": dict(rows) if rows else None}
    code = "from minirlaif.memory.measure import child; child()"
    mine = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment = {**mine, **STEADY, "TOKENIZERS_PARALLELISM": "false"}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input=json.dumps(job), capture_output=True, text=True, env=environment
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    told = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return {"stage": stage, "error": told[-1].strip() if told else f"ended with code {done.returncode}"}


def child() -> None:
    """Run in the child: read the job from stdin, print the result as the last line."""
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(job["config"], encoding="utf-8")
        cfg = config.load(path)
        try:
            result = _measured(cfg, job, Path(folder))
        except UserError as error:
            sys.exit(str(error))
    print(json.dumps(result))


def _measured(cfg: Config, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    import torch

    from minirlaif.memory import steps
    from minirlaif.models.loading import pick_device

    gpu = pick_device(cfg.model.device).type == "cuda"
    if gpu and job["gpu_gib"]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(allowed(job["gpu_gib"], total))
    runtime = libraries(cfg.model)
    plan = Planned(cfg, *shapes_of(cfg.model, cfg.reward), gpu, runtime)
    stage = str(job["stage"])
    probe_of = steps.StageProbe(cfg, stage, folder)
    with probe_of.open(job["rows"]) as (models, worst):
        session = models.policy
        step = probe_of.prepare(models, worst)
        before = session.feature_cache.counters.get("encodes", 0)
        _forget_peak(gpu)
        steps.timed(step)  # the first one warms up, and gives the optimisers their moments
        done, seconds = steps.timed(step)
        encoded = session.feature_cache.counters.get("encodes", 0) > before  # made-up clips never are
        prompt, answer = probe_of.size(session, worst)
        guessed = estimate(replace(plan, encodes=encoded), {stage: (prompt, answer)})[stage]
        return {
            "stage": stage,
            "peak": _peak(gpu),
            "reserved": torch.cuda.max_memory_reserved() if gpu else None,
            "planned": sum(guessed.values()),
            "planned_lines": guessed,
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
    from minirlaif.models import adapters  # noqa: F401

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


def _forget_peak(gpu: bool) -> None:
    import torch

    if gpu:
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark starts anew
    except OSError:
        pass  # then it is that of the whole process, which building the model may have set


def _peak(gpu: bool) -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if gpu else _status("VmHWM")


def versions() -> dict[str, str]:
    """Of what moves the numbers, and the day."""
    import time
    from importlib import metadata

    found = {name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate", "bitsandbytes")}
    return found | {"date": time.strftime("%Y-%m-%d")}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row per stage. s/step is for a whole step of the config; tokens are sampled ones."""
    rows = [COLUMNS]
    for r in results:
        title = STEPS[r["stage"]].title
        if "error" in r:
            rows.append((title, "failed", "", "", "", ""))
            continue
        tokens = f"{r['tokens_per_second']:.1f}" if r["tokens_per_second"] else "-"
        rows.append(
            (
                title,
                f"{r['peak'] / 2**20:,.0f}",
                f"{r['planned'] / 2**20:,.0f}",
                f"{r['seconds_per_step']:.2f}",
                tokens,
                f"{r['samples_per_second']:.2f}",
            )
        )
    return aligned(rows)


def probe(cfg: Config, run_folder: Path, gpu_gib: float | None, stages: Sequence[str] = tuple(STEPS)) -> list[dict[str, Any]]:
    """The worst sample of the config's data (the longest row on the biggest frames) through every stage, one step each, with
    the real model; and what was planned.

    Raises:
        UserError: the config names no data that can be read before the run (the tiny world is made by it).
    """
    from minirlaif.memory import steps

    rows = steps.longest(cfg.data, cfg.video, run_folder)
    results = [measure(cfg, stage, gpu_gib, rows) for stage in stages]
    print(table(results))
    return results


def before_run(cfg: Config, run: Run, names: Sequence[str], redo: bool = False) -> None:
    """What `run` does on a GPU before the long work: the probe of those of the stages that are not finished. On a CPU, and for
    the tiny world, nothing.

    Raises:
        UserError: a stage failed on the longest row, most often because it does not fit.
    """
    ahead = [name for name in names if redo or run.manifest(name) is None]
    steps_ahead = [step for name in ahead for step in steps_of(name)]
    if cfg.data.world or not steps_ahead:
        return
    from minirlaif.models.loading import pick_device

    if pick_device(cfg.model.device).type != "cuda":
        return
    print("probe: the longest row through every stage", flush=True)
    for result in probe(cfg, run.root, None, steps_ahead):
        if "error" in result:
            raise UserError(
                f"probe: {result['stage']} fails on the longest row ({result['error']}); `python -m minirlaif plan` says what to"
                " shrink first"
            )
