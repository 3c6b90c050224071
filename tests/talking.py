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
from minirlaif.models.adapters import Roles
from minirlaif.models.feature_cache import FeatureStore
from minirlaif.models.loading import open_backbone
from minirlaif.models.renderer import Shown
from minirlaif.runs.run import Run
from minirlaif.tiny_world.clips import FPS, Event, render
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader

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


VERDICTS = (  # choice, orders, choice without context, orders of the letters
    ("A", ["A", "A"], "A", None),
    ("disagree", ["A", "B"], "tie", None),
    ("B", ["B", "B"], "A", ["A", "B"]),
    ("tie", ["tie", "tie"], "tie", None),
    ("invalid", ["invalid", "A"], "B", None),
)


def seen_inside(run: Run, clip: Path) -> None:
    """Give a run what its pages show: verdicts, test answers of each kind, curves, and the clip in its cache."""
    (run.root / "world").mkdir()
    (run.root / "world" / "clip.mp4").write_bytes(clip.read_bytes())
    name, said = "../world/clip.mp4", ("a red circle <b>moves</b> left.", "a blue square.")
    verdicts = [
        {
            "id": f"p{number}#0",
            "video": name,
            "question": f"question {number}?",
            "answer_a": said[0],
            "answer_b": said[1],
            "context": "0s: a red circle moves left.\n1s: a blue square moves up.\n",
            "choice": choice,
            "margin": 0.5,
            "orders": orders,
            "without_context": {"choice": bare, "margin": 0.1, "orders": [bare, bare]},
            **({"letter": {"choice": "disagree", "margin": 0.01, "orders": letters}} if letters else {}),
        }
        for number, (choice, orders, bare, letters) in enumerate(VERDICTS)
    ]
    told = [("y", "x"), ("x", "y"), ("y", "z"), ("x", "x")] * 3  # SFT, aligned; the truth is x
    asked = {"video": name, "type": "what", "truth": "x", "base": "x"}
    answers = [
        {**asked, "id": f"t{number}", "question": f"test {number}?", "sft": sft, "rlaif": rlaif}
        for number, (sft, rlaif) in enumerate(told)
    ]
    scores = {"p0#0": (1.0, 2.0), "p2#0": (3.0, 2.0)}  # chosen, rejected
    held = [{"id": id_, "score_chosen": chosen, "score_rejected": rejected} for id_, (chosen, rejected) in scores.items()]
    tiny.finished(run, "feedback", lambda path: tiny.write_lines(path / "verdicts.jsonl", verdicts), decided=2)
    tiny.finished(run, "evaluate", lambda path: tiny.write_lines(path / "answers.jsonl", answers), test_items=12)
    tiny.write_lines(run.dir("reward") / "held_out.jsonl", held)
    tiny.write_lines(run.dir("ppo") / "metrics.jsonl", [{"step": n, "score": n / 10, "kl": n / 20} for n in range(1, 31)])
    cfg = config.load(run.root / "config.yaml")
    with ClipReader(60) as reader:
        store = FeatureStore(run.root / "cache" / "features.sqlite", open_backbone(cfg.model), reader, cfg.video)
        store.get(str(run.root / "world" / "clip.mp4"), lambda info: [uniform_plan(info.seconds, cfg.video.frames)])
        store.close()


def begun(run: Run, steps: int) -> Path:
    """PPO in the making; returns the file that its steps are written to."""
    run.partial("ppo").mkdir(parents=True)
    file = run.partial("ppo") / "metrics.jsonl"
    tiny.write_lines(file, [{"step": n, "score": float(n)} for n in range(1, steps + 1)])
    return file
