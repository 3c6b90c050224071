"""Builders that several test modules share: a small untrained SmolVLM, views of clips that were never decoded, rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minirlaif import config
from minirlaif.models.adapters import Roles
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.logprobs import Row
from minirlaif.runs.run import Run
from minirlaif.session import View, Workbench
from minirlaif.tiny_world.base_model import LAYOUT, make_model, make_tokenizer
from minirlaif.types import Sample
from minirlaif.video.frame_sampling import FrameSize

OVERRIDES = ("model.device=cpu", "model.dtype=float32", "model.lora_r=4", "model.lora_alpha=8")


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The tiny world's tokenizer; rendering leaves no trace in it, so all tests share one."""
    return make_tokenizer()


def backbone(seed: int = 0, layers: int = 2) -> SmolVLM:
    """A frozen, random, two-layer SmolVLM in float32."""
    with torch.random.fork_rng(devices=[]):
        model = make_model(tokenizer(), seed, layers)
    model.requires_grad_(False)
    return SmolVLM(model.eval(), tokenizer(), LAYOUT, "tiny")


def settings(*overrides: str) -> config.Config:
    return config.load(None, [*OVERRIDES, *overrides])


def pixels(frames: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), np.uint8)


def view(base: SmolVLM, frames: int, seed: int) -> View:
    """What a model would see of a clip of noise, one frame per second."""
    times = tuple(i + 0.5 for i in range(frames))
    return View(times, float(frames), FrameSize(32, 32), base.encode_frames(pixels(frames, seed)))


class TinyBench(Workbench):
    """A workbench whose clips are given as views; there is no file, no reader and no cache."""

    def __init__(self, base: SmolVLM, views: Mapping[str, View] | None = None, cfg: config.Config | None = None) -> None:
        nothing: Any = SimpleNamespace(counters={})
        super().__init__(cfg or settings(), base, nothing, nothing)
        self.views = dict(views or {})

    def whole(self, video: str) -> View:
        return self.views[video]


def rows(base: SmolVLM) -> list[Row]:
    """Four rows of different lengths, with two, three, no and one frame."""
    render = base.renderer
    texts = [
        ("what happens first?", "a red circle moves left.", 2),
        ("what happens after the blue square?", "a green cross stays still. third a red circle.", 3),
        ("how many things happen?", "two", 0),
        ("describe the video.", "first a yellow triangle moves up.", 1),
    ]
    made = []
    for seed, (question, answer, frames) in enumerate(texts):
        seen = view(base, frames, seed) if frames else None
        prompt = render.prompt(seen.shown if seen else None, question)
        made.append(Row(prompt, render.answer(answer), seen.features if seen else None))
    return made


def stir(roles: Roles, role: str, seed: int, size: float = 0.15) -> None:
    """Give a role's adapter random weights, so that it differs from the base and from every other role."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in roles.named(role).values():
        parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))


def digest(tensors: Sequence[torch.Tensor]) -> str:
    """Equal exactly when every bit of every tensor is equal."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def base_weights(base: SmolVLM) -> list[torch.Tensor]:
    """All weights that belong to no adapter."""
    return [tensor for name, tensor in base.model.state_dict().items() if "lora_" not in name]


def biased(base: SmolVLM, extra: Mapping[int, float], flat: bool = False) -> None:
    """Add `extra` to the logits of some ids from now on; flat: the model's own logits count for nothing."""
    real = base.logits
    bias_V = torch.zeros(base.vocabulary)
    for token, value in extra.items():
        bias_V[token] = value

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return real(hidden) * (0.0 if flat else 1.0) + bias_V

    base.logits = logits  # type: ignore[method-assign]


def finished(run: Run, stage: str, fill: Callable[[Path], Any] | None = None, **metrics: Any) -> Path:
    """A finished stage whose files `fill` writes and whose manifest has these metrics; returns its folder."""
    with run.stage(stage, {}) as out:
        assert out is not None
        if fill is not None:
            fill(out.path)
        out.summary.update(metrics)
    return run.dir(stage)


@lru_cache(maxsize=1)
def _spare() -> Roles:
    return Roles(backbone(), settings().model)


@cache
def _stirred(seed: int, head: bool) -> str:
    role = f"seed{seed}{'-head' * head}"
    _spare().add(role, seed)
    stir(_spare(), role, seed)
    if head:
        _spare().add_head(role, seed, start=0.3)
    return role


def save_adapter(folder: Path, seed: int, head: bool = False) -> None:
    """An adapter folder of random weights that the seed decides, with a head where asked for."""
    _spare().save(_stirred(seed, head), folder)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def at_bench(patch: pytest.MonkeyPatch, stage: Any, bench: Workbench, **parts: Sequence[Sample]) -> None:
    """From now on a stage module works at this bench, on these rows; all their clips can be read."""

    @contextmanager
    def opened(*arguments: Any, **named: Any) -> Iterator[Workbench]:
        yield bench

    patch.setattr(stage, "open_workbench", opened)
    patch.setattr(stage, "read_samples", lambda cfg, run, part, need_answers: list(parts.get(part, ())), raising=False)
    patch.setattr(stage, "readable", lambda bench, rows: list(rows), raising=False)
