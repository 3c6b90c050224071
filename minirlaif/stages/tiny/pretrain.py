"""Stage `pretrain`: train the tiny base from nothing on the tiny world. The package ships the result, so `run` leaves it out.

The base learns three things well and one only in part, as a pretrained model would: to describe a one-second clip, to
answer questions about a written narrative, both together - and, from few examples, to answer about a whole clip from its
frames alone. Questions about one clip share its prefix in one sequence and do not see each other: the model is trained on
exactly the single-question prompts that it meets later, at a sixth of the cost.

Letters: B rows, T tokens.
"""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from minirlaif.config import Config, PretrainSection, plain
from minirlaif.config.seeds import seed_of
from minirlaif.feedback.describe import context_text
from minirlaif.models.backbones.smolvlm import LAYOUT_FILE, SmolVLM
from minirlaif.models.renderer import FrameLayout
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.tiny_world import base_model
from minirlaif.tiny_world import clips as tinyworld
from minirlaif.training.checkpoint import load_optimizer, save_optimizer
from minirlaif.training.optim import check_finite
from minirlaif.training.schedules import learning_rate

# Rows per step of each kind. Reading a narrative comes first: looking words up in a text is the skill that takes longest
# to form, and everything else stands on it. Whole clips stay rare on purpose.
FIRST = {"segment": 32, "text": 24}
THEN = {"segment": 8, "text": 16, "whole": 5, "both": 10}
FIRST_SHARE = 0.3
FRAMES, SEGMENT_FRAMES = 12, 6
MUON_RATE = 0.01
SAVE_STEPS = 100


@dataclass(frozen=True)
class Batch:
    """ids_BT, positions_BT, may-attend mask [B, 1, T, T], answer_BT (True where learned), frames and which rows have them."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor
    answer_BT: Tensor
    frames: list[np.ndarray]
    has_video: list[bool]


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. build 2. train 3. save a folder that `model.base` can name."""
    with run.stage("pretrain", {"pretrain": plain(cfg.pretrain), "seed": cfg.seed}, redo=redo) as out:
        if out is None:
            return
        # 1. build
        tokenizer = base_model.make_tokenizer()
        model = base_model.make_model(tokenizer, cfg.seed)
        backbone = SmolVLM(model, tokenizer, base_model.LAYOUT, "tiny")
        optimizers = _optimizers(model, cfg.pretrain.learning_rate)
        first, state = out.resume() or (0, None)
        if state:
            load_model(model, state / "model.safetensors")
            for name, optimizer in optimizers.items():
                load_optimizer(state, name, optimizer)
        # 2. train
        total = cfg.pretrain.steps
        for step in progress(range(first, total), total, "pretrain", initial=first):
            counts = FIRST if step < FIRST_SHARE * total else THEN
            loss = _step(cfg.pretrain, cfg.seed, backbone, optimizers, step, counts)
            check_finite("pretrain", step, {"loss": loss})
            if (step + 1) % SAVE_STEPS == 0:
                out.log(step + 1, loss=loss, **{f"exact_{kind}": value for kind, value in measure(backbone, cfg.seed).items()})
                out.commit_state(step + 1, lambda folder: _save_state(folder, model, optimizers))
        # 3. save
        out.summary.update({f"exact_{kind}": value for kind, value in measure(backbone, cfg.seed).items()})
        save(backbone, out.path / "base")
        print(f"pretrain: to use it, set model.base to {run.dir('pretrain') / 'base'}")


def save(backbone: SmolVLM, folder: Path) -> None:
    """Weights, tokenizer and layout in one folder."""
    backbone.model.save_pretrained(folder, safe_serialization=True)
    backbone.tokenizer.save_pretrained(folder)
    (folder / LAYOUT_FILE).write_text(json.dumps(base_model.LAYOUT.as_dict(), indent=2))


def _optimizers(model: Any, rate: float) -> dict[str, Any]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    embeddings |= {id(p) for n, p in model.named_parameters() if "embed" in n}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return {
        "muon": torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0, momentum=0.95),
        "adamw": torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    }


def _step(
    section: PretrainSection, seed: int, backbone: SmolVLM, optimizers: dict[str, Any], step: int, counts: dict[str, int]
) -> float:
    total, peak = section.steps, section.learning_rate
    # Constant, then down to a fiftieth over the last 40 %.
    share = max(0.02, min(1.0, (1 - step / total) / 0.4)) * learning_rate(step, total, 1.0, 50, "constant")
    for name, top in (("muon", MUON_RATE), ("adamw", peak)):
        for group in optimizers[name].param_groups:
            group["lr"] = top * share
    rng = np.random.default_rng(seed_of(seed, "pretrain", step))
    loss_N, _, _ = _losses(backbone, make_batch(backbone, rng, counts))
    loss = loss_N.mean()
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
    for optimizer in optimizers.values():
        optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def measure(backbone: SmolVLM, seed: int, clips: int = 40) -> dict[str, float]:
    """Share of answers whose every token is the model's first choice, by kind of row, on clips not trained on."""
    result = {}
    for kind in THEN:
        rng = np.random.default_rng(seed_of(seed, "pretrain-measure", kind))
        _, right_N, picked_BT = _losses(backbone, make_batch(backbone, rng, {kind: clips}))
        right_BT = torch.ones(picked_BT.shape, dtype=torch.bool).masked_scatter(picked_BT, right_N)
        answers = wrong = 0
        for picked, right in zip(picked_BT.tolist(), right_BT.tolist(), strict=True):
            for is_answer, places in groupby(range(len(picked)), picked.__getitem__):
                if is_answer:
                    answers += 1
                    wrong += not all(right[i] for i in places)
        result[kind] = round(1 - wrong / answers, 4)
    return result


def _losses(backbone: SmolVLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each learned token, whether it was the first choice, and where they stand [B, T-1]."""
    features: list[Tensor | None] = [None] * len(batch.has_video)
    if batch.frames:
        projected = backbone.project(torch.from_numpy(np.concatenate(batch.frames)))
        parts = iter(torch.split(projected, [len(f) for f in batch.frames]))
        features = [next(parts) if video else None for video in batch.has_video]
    hidden_BTD = backbone.hidden(backbone.embed(batch.ids_BT, features), batch.mask_B1TT, batch.positions_BT)
    picked_BT = batch.answer_BT[:, 1:]
    logits_NV = backbone.logits(hidden_BTD[:, :-1][picked_BT])
    targets_N = batch.ids_BT[:, 1:][picked_BT]
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none"), logits_NV.argmax(-1) == targets_N, picked_BT


def make_batch(backbone: SmolVLM, rng: np.random.Generator, counts: dict[str, int]) -> Batch:
    """Draw clips and questions: `counts` rows of each kind."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    clips = [tinyworld.draw_events(rng, 1 if kind == "segment" else None) for kind in kinds]
    seen = [clip for clip, kind in zip(clips, kinds, strict=True) if kind != "text"]
    wanted = [SEGMENT_FRAMES if kind == "segment" else FRAMES for kind in kinds if kind != "text"]
    drawn = tinyworld.render(rng, seen, backbone.sizing.tile) if seen else []
    frames = [pixels[((np.arange(n) + 0.5) * len(pixels) / n).astype(int)] for pixels, n in zip(drawn, wanted, strict=True)]
    rows = [_row(backbone, rng, kind, clip) for kind, clip in zip(kinds, clips, strict=True)]
    width = max(len(row[0]) for row in rows)
    shape = (len(rows), width)
    ids, positions = torch.full(shape, backbone.pad_id), torch.zeros(shape, dtype=torch.long)
    branch, answer = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        values: Any
        for target, values in zip((ids, answer, branch, positions), row, strict=True):
            target[number, : len(values)] = torch.tensor(values)
    same_BTT = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    mask_BTT = same_BTT & torch.ones(width, width, dtype=torch.bool).tril()
    mask_BTT |= torch.eye(width, dtype=torch.bool)  # a padded position must see something, or it turns into NaN
    return Batch(ids, positions, mask_BTT[:, None], answer, frames, [kind != "text" for kind in kinds])


def _row(
    backbone: SmolVLM, rng: np.random.Generator, kind: str, clip: tuple[tinyworld.Event, ...]
) -> tuple[list[int], list[bool], list[int], list[int]]:
    """ids, learned flags, branch numbers (0: the shared prefix) and positions of one row."""
    renderer = backbone.renderer
    frames = {"segment": SEGMENT_FRAMES, "text": 0}.get(kind, FRAMES)
    shown = FrameLayout((0.0,) * frames, 0.0, backbone.side**2) if frames else None
    context = context_text([((i, i + 1), e.sentence) for i, e in enumerate(clip)]) if kind in ("text", "both") else ""
    if kind == "segment":
        questions = [(tinyworld.SEGMENT_QUESTION, clip[0].sentence)]
    else:
        questions = [(q.text, q.answer) for q in tinyworld.draw_questions(rng, clip, 6)]
    prompts = [renderer.prompt(shown, question, context) for question, _ in questions]
    shared = len(renderer.prefix(shown)) + len(renderer.text_ids(context))
    ids, learned, branch = list(prompts[0][:shared]), [False] * shared, [0] * shared
    positions = list(range(shared))
    for number, (prompt, (_, text)) in enumerate(zip(prompts, questions, strict=True), start=1):
        question, answer = list(prompt[shared:]), list(renderer.answer(text))
        ids += question + answer
        learned += [False] * len(question) + [True] * len(answer)
        branch += [number] * (len(question) + len(answer))
        positions += range(shared, shared + len(question) + len(answer))
    return ids, learned, branch, positions


def _save_state(folder: Path, model: Any, optimizers: dict[str, Any]) -> None:
    save_model(model, str(folder / "model.safetensors"))
    for name, optimizer in optimizers.items():
        save_optimizer(folder, name, optimizer)
