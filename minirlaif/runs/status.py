"""The table of `status`: the state of each stage of a run. No torch."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlaif.config.loader import parse_yaml
from minirlaif.errors import UserError
from minirlaif.runs import gains
from minirlaif.runs.io import read_json, read_text
from minirlaif.runs.progress import clock
from minirlaif.runs.records import read_rows
from minirlaif.runs.rounds import held_back
from minirlaif.runs.run import Run

CELL = 200  # characters of a result


def status_table(run: Run, stages: Sequence[str]) -> str:
    """One line per stage: finished, outdated, partial or missing; time; its first number, or a partial one's last step."""
    rows = [("stage", "state", "time", "result"), *status_rows(run, stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)  # files may be a stranger's


def status_rows(run: Run, stages: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Stage, state, time and result of each, as `status_table` shows them; of a damaged one what is wrong, and what helps."""
    rows: list[tuple[str, str, str, str]] = []
    for name in (name for name in run.order() if gains.split_name(name)[1] in stages):
        try:
            rows += _rows(run, name)
        except UserError as error:
            rows.append((name, "damaged", "", str(error)))
    try:
        return [*rows, *_rounds(run)]
    except UserError as error:
        return [*rows, ("rounds", "damaged", "", str(error))]


def _rows(run: Run, name: str) -> list[tuple[str, str, str, str]]:
    """One row, or none: a stage that is no part of a usual run."""
    manifest = run.manifest(name)
    if name == "report":
        state, page = report_state(run)
        return [(name, state, "", page)]
    if manifest is not None:
        older = run.outdated(name)
        state = f"outdated: made from another {older}" if older else "finished"
        return [(name, state, clock(manifest["seconds"]), _headline(manifest["metrics"])[:CELL])]
    if run.partial(name).is_dir():
        return [(name, "partial", "", _progress(run.partial(name)))]
    if held_back(run, name):
        return []
    number, stage = gains.split_name(name)
    is_part = stage in run.stages and number <= run.rounds
    return [(name, "missing", "", "")] if is_part and not (name == "world" and _has_no_world(run)) else []


def _rounds(run: Run) -> list[tuple[str, str, str, str]]:
    """One row about the rounds of a run that has more than one, or is to have them."""
    finished = gains.read(run.root)
    if run.rounds == 1 and len(finished) < 2:
        return []
    how = gains.outcome(finished, run.rounds)
    state = f"{len(finished)} of {run.rounds}"
    return [("rounds", state, "", f"round {gains.counting(finished)} counts" + (f": {how}" if how else ""))]


def report_state(run: Run) -> tuple[str, str]:
    """State and page of the report. It has no folder and no manifest; report.json names the evaluation that it shows."""
    page, data = run.root / "report.html", run.root / "report.json"
    if not (page.is_file() and data.is_file()):
        return "missing", ""
    try:
        shown = read_json(data)["evaluation"]
    except (UserError, LookupError, TypeError):
        shown = ""
    same = shown == (run.manifest("evaluate") or {"identity": None})["identity"] and not run.outdated("evaluate")
    return "finished" if same else "outdated: made from another evaluate", str(page)


def _headline(metrics: Mapping[str, Any]) -> str:
    """The first metric of a stage; of an evaluation the RLAIF model's accuracy and its gain over SFT, or without SFT over the
    base."""
    name, value = next(iter(metrics.items()), ("", None))
    if isinstance(value, Mapping):
        start = "sft" if metrics.get("accuracy_gain") else "base"
        gain = metrics.get("accuracy_gain") or metrics.get("gain_over_base")
        over = gain.get("mean") if isinstance(gain, Mapping) else None
        right = value.get("rlaif")
        if not isinstance(right, int | float):
            return ""
        return f"rlaif {right:.3f}" + (f", {over:+.3f} over {start}" if isinstance(over, int | float) else "")
    return "" if value is None else f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _has_no_world(run: Run) -> bool:
    """Whether the run is known to use clips of the user's own."""
    try:
        return not parse_yaml(read_text(run.root / "config.yaml"), "")["data"]["world"]
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return False


def _progress(partial: Path) -> str:
    """Last logged step, and the step that a repeated command resumes from."""
    rows, saved = read_rows(partial, "", "metrics.jsonl"), 0
    logged = f"last step {rows[-1]['step']}, " if rows else ""
    with suppress(UserError, LookupError, TypeError):
        saved = read_json(partial / "state" / "position.json")["step"]
    return f"{logged}resumes from step {saved}" if saved else f"{logged}restarts"
