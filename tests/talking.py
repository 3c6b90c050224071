"""A finished run to talk with, made by hand: the shipped base with adapters of small random weights, and clips of the tiny
world. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from clips import write_clip

from minirlaif import config
from minirlaif.app.votes import Ballot
from minirlaif.artifacts import Run
from minirlaif.backbone import open_backbone
from minirlaif.chat import Shown
from minirlaif.roles import Roles
from minirlaif.tinyworld import FPS, Event, render

CONFIG = Path(__file__).parent.parent / "configs" / "tiny.yaml"
TWO = (Event("red", "circle", "moves left"), Event("blue", "square", "moves up"))
MEAN = -1.5  # of the reward model's held-out scores, as its manifest says


def world_clip(path: Path, events: Sequence[Event] = TWO, seed: int = 0) -> Path:
    """A clip of the tiny world, one second per event."""
    (frames,) = render(np.random.default_rng(seed), [events], 64)
    return write_clip(path, [number / FPS for number in range(len(frames))], images=list(frames))


def run_of(folder: Path, *overrides: str, aligned: bool = True, reward: bool = True) -> Run:
    """A run folder with sft, reward and ppo as a finished run has them."""
    run = Run(folder)
    folder.mkdir(parents=True)
    cfg = config.load(CONFIG, ["model.device=cpu", "model.lora_r=4", "model.lora_alpha=4", *overrides])
    (folder / "config.yaml").write_text(config.dump(cfg))
    roles = Roles(open_backbone(cfg.model), cfg.model)
    for number, role in enumerate(("sft", "reward", "policy")):
        roles.add(role, number)
        tiny.stir(roles, role, number, 0.15)  # little: answers stay near those of the tiny world, and those of SFT differ
    roles.add_head("reward", 0, start=0.3, beta=1.0)

    def made(stage: str, role: str, **metrics: Any) -> None:
        tiny.finished(run, stage, lambda path: roles.save(role, path / "adapter"), **metrics)

    made("sft", "sft", loss=0.1)
    if reward:
        made("reward", "reward", accuracy=0.9, bias=MEAN, deviation=2.0, held_out_pairs=10)
    if aligned:
        made("ppo", "policy", kl=0.5, chosen_iteration=3)
    return run


def shown(features: Any) -> Shown:
    """What a prompt shows of four frames with these features_GHWE, one per second."""
    return Shown((0.5, 1.5, 2.5, 3.5), 4.0, features.shape[1] * features.shape[2])


def ballot(folder: Path) -> Ballot:
    """Where the votes of a test go."""
    return Ballot(folder)


def exported(folder: Path) -> Path:
    """An export of the shipped base: as "rlaif", and as "sft" with an adapter of random weights that changes its answers."""
    import gguf_files

    rng = np.random.default_rng(0)
    layers = {
        f"blk.{number}.attn_{part}": (rng.normal(0, 0.2, (4, 128)), rng.normal(0, 0.2, (128, 4)))
        for number in range(4)
        for part in ("v", "output")
    }
    folder.mkdir(parents=True)
    gguf_files.adapter(folder / "sft.gguf", layers, 4.0)
    return gguf_files.tiny(folder, ("rlaif", "sft"), {"sft": "sft.gguf"})
