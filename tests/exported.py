"""Runs to export, made by hand: a small base with random adapters, clips, and what the model in transformers says about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import talking
import tiny
from clips import write_clip

from minirlaif.cli import main
from minirlaif.inference.engine import Options
from minirlaif.inference.hf_engine import HfEngine
from minirlaif.runs.run import Run

QUESTIONS = ("what happens first?", "how many things happen?", "what happens then?", "describe the video.")
CLIPS = 2
ROWS = CLIPS * len(QUESTIONS)
TOKENS = 8  # longest answer
FALSE = "something else"  # the truth of every second question, which no model says


def coloured_clip(path: Path, seed: int) -> Path:
    """Four pictures of coarse coloured squares, one a second."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 4, 3), np.uint8)
    images = [np.kron(image, np.ones((24, 24, 1), np.uint8)) for image in squares]
    return write_clip(path, [0.0, 1.0, 2.0, 3.0], 96, 96, images=images, last_seconds=1.0)


def world_clip(path: Path, seed: int) -> Path:
    """A clip of the tiny world."""
    return talking.world_clip(path, seed=seed)


def trained(folder: Path, base: Path | str = "tiny", clip: Callable[[Path, int], Path] = coloured_clip) -> Run:
    """A run with sft, ppo and evaluate. Of its test questions every second one was answered right."""
    settings = ("video.frames=4", f"model.base={base}", f"evaluate.max_new_tokens={TOKENS}")
    run = talking.run_of(folder, *settings, reward=False)
    paths = [clip(folder / f"clip{seed}.mp4", seed) for seed in range(CLIPS)]
    with closing(HfEngine(run)) as engine:
        rows = [_row(engine, path, question) for path in paths for question in QUESTIONS]
    for number, row in enumerate(rows):
        row["truth"] = FALSE if number % 2 else row["rlaif"]
    tiny.finished(run, "evaluate", lambda path: tiny.write_lines(path / "answers.jsonl", rows))
    return run


def _row(engine: HfEngine, path: Path, question: str) -> dict[str, Any]:
    look, options = engine.look(str(path)), Options(max_new_tokens=TOKENS)
    said = {model: "".join(engine.stream(look, (), question, options, model)) for model in engine.models}
    return {"video": f"../{path.name}", "question": question, **said, "rlaif_blind": ""}


def export(run: Run, *words: str) -> int:
    """Exit code of the command."""
    return main.main(["export", "--run", run.root.name, "--runs-dir", str(run.root.parent), *words])


def manifest(run: Run) -> dict[str, Any]:
    """The export's manifest."""
    content: dict[str, Any] = json.loads((run.dir("export") / "manifest.json").read_text())
    return content


def check_parity(run: Run) -> None:
    """The bounds that every family has to hold in float32."""
    parity = manifest(run)["parity"]
    assert parity["text_f32"] < 1e-4, parity  # other order of additions
    assert parity["frames_f32"] < 5e-3, parity  # llama.cpp's activations come from a table
    assert parity["control"] >= 5e-2, parity
    assert parity["types"] and all(found["wrong_ids"] == [] for found in parity["types"].values())
