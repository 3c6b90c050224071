"""The table of `status`: the state of each stage of a run. No torch."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import clock
from minirlaif.runs.run import Run
from minirlaif.stages.registry import PIPELINE


def status_table(run: Run, stages: Sequence[str]) -> str:
    """One line per stage: finished, outdated, partial or missing; time; its first number, or a partial one's last step."""
    rows = [("stage", "state", "time", "result"), *status_rows(run, stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]
    return "\n".join(lines)


def status_rows(run: Run, stages: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Stage, state, time and result of each, as `status_table` shows them."""
    rows = []
    for name in stages:
        manifest = run.manifest(name)
        if name == "report":
            state, page = report_state(run)
            rows.append((name, state, "", page))
        elif manifest is not None:
            older = run.outdated(name)
            state = f"outdated: made from another {older}" if older else "finished"
            rows.append((name, state, clock(manifest["seconds"]), _headline(manifest["metrics"])))
        elif run.partial(name).is_dir():
            rows.append((name, "partial", "", _progress(run.partial(name))))
        elif name in PIPELINE and not (name == "world" and _has_no_world(run)):
            rows.append((name, "missing", "", ""))
    return rows


def report_state(run: Run) -> tuple[str, str]:
    """State and page of the report. It has no folder and no manifest; report.json names the evaluation that it shows."""
    page, data = run.root / "report.html", run.root / "report.json"
    if not (page.is_file() and data.is_file()):
        return "missing", ""
    try:
        shown = json.loads(data.read_text(encoding="utf-8"))["evaluation"]
    except (OSError, ValueError, LookupError, TypeError):
        shown = ""
    same = shown == (run.manifest("evaluate") or {"identity": None})["identity"] and not run.outdated("evaluate")
    return "finished" if same else "outdated: made from another evaluate", str(page)


def _headline(metrics: Mapping[str, Any]) -> str:
    """The first metric of a stage; of an evaluation the RLAIF model's accuracy and its gain over SFT."""
    name, value = next(iter(metrics.items()), ("", None))
    if isinstance(value, Mapping):
        gain = (metrics.get("accuracy_gain") or {}).get("mean")
        return f"rlaif {value['rlaif']:.3f}" + ("" if gain is None else f", {gain:+.3f} over sft")
    return "" if value is None else f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _has_no_world(run: Run) -> bool:
    """Whether the run is known to use clips of the user's own."""
    try:
        return not yaml.safe_load((run.root / "config.yaml").read_text(encoding="utf-8"))["data"]["world"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return False


def _progress(partial: Path) -> str:
    """Last logged step, and the step that a repeated command resumes from."""
    logged, saved = "", 0
    with suppress(LookupError):  # nothing logged yet
        logged = f"last step {read_jsonl(partial / 'metrics.jsonl', missing_ok=True, skip_damaged=True)[-1]['step']}, "
    with suppress(OSError, ValueError, LookupError):
        saved = json.loads((partial / "state" / "position.json").read_text(encoding="utf-8"))["step"]
    return f"{logged}resumes from step {saved}" if saved else f"{logged}restarts"
