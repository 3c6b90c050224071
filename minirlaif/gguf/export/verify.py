"""Compares GGUF files, of an export or of other programs, with the model that a run trained: logits, and answers to questions."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.config import DataSection, ModelSection, VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.export import model_card
from minirlaif.gguf.export.converter import check_installed
from minirlaif.gguf.export.parity import FRAMES_GATE, TEXT_GATE, measure
from minirlaif.gguf.export.quantize import TYPES, listed
from minirlaif.gguf.export.reference import AnsweredQuestion, evaluated_questions, of_run
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.inference.engine import ChatEngine, SamplingParams
from minirlaif.models.loading import model_type
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.stages.registry import ADAPTERS
from minirlaif.stats import exact_match
from minirlaif.video.frame_sampling import BLANK

# Largest allowed difference of a type's accuracy to that of the model in transformers, as a share of the questions.
BOUNDS = {"f32": 0.005, "f16": 0.005, "bf16": 0.005, "q8_0": 0.01, "q6_k": 0.02, "q5_k_m": 0.03, "q4_k_m": 0.05}


@dataclass(frozen=True)
class Score:
    """Of one file: shares of correct answers (None without truth) and of answers equal to those of the model in transformers."""

    accuracy: float | None
    agreement: float


def verify(
    run: Run, model: ModelSection, video: VideoSection, data: DataSection, folder: Path, most: int, max_new_tokens: int
) -> int:
    """Print a table that compares all files of a folder with the run's model; 0, or 1 when a bound is exceeded.

    Args:
        folder: with text GGUFs and an mmproj; most: questions to ask each text file.

    Raises:
        UserError: no such files, or llama.cpp cannot use them.
    """
    check_installed()
    texts, projectors, loras = files_of(folder)
    first_projector = next(iter(projectors.values()))
    saved = run.dir("export") / "hf"
    reference = of_run(run, model, video, data, saved if saved.is_dir() and not loras else None)
    name = next(iter(reference.logits))
    parities, faults = {}, []
    for kind, path in progress(texts.items(), len(texts), "compare"):
        projector, kv = projectors.get(kind, first_projector), "f32" if kind == "f32" else "f16"
        parities[kind] = measure(path, projector, reference, name, kv, loras.get(name))
        unquantized = kind == "f32" and kind in projectors
        faults += [f"{path.name}: {fault}" for fault in (parities[kind].faults() if unquantized else parities[kind].wrong())]
    figures: dict[str, Any] = {"parity": {"types": {kind: asdict(parity) for kind, parity in parities.items()}}}
    figures["sizes"] = {path.name: path.stat().st_size for path in texts.values()}
    rows = evaluated_questions(run, most)
    if rows:
        info = export_info.ExportInfo(
            run=run.root.name,
            family=model_type(model),
            layout=reference.layout,
            sizing=reference.sizing,
            frames=video.frames,
            frame_pixels=video.frame_pixels,
            text={kind: f"{kind}.gguf" for kind in texts},
            mmproj="mmproj.gguf",
            options=SamplingParams(max_new_tokens=max_new_tokens),
            models=(name,),
            adapters={name: "adapter.gguf"} if name in loras else {},
        )
        results = {}
        with tempfile.TemporaryDirectory() as work:  # the runtime reads its settings from a folder, and the files in it
            linked = {info.text[kind]: path for kind, path in texts.items()} | {info.mmproj: first_projector}
            for file, path in (linked | {info.adapters[each]: loras[each] for each in info.adapters}).items():
                Path(work, file).symlink_to(path.resolve())
            export_info.write(Path(work), info)
            for kind in texts:
                with closing(GgufEngine(Path(work), kind=kind)) as engine:
                    replies = answers(engine, rows, max_new_tokens)
                    results[kind] = score(rows, list(progress(replies, len(rows), f"answer {kind}")))
        own = score(rows, [row.answer for row in rows]).accuracy
        figures["accuracy"] = {"hf": own} | {kind: result.accuracy for kind, result in results.items()}
        figures["agreement"] = {kind: result.agreement for kind, result in results.items()}
        faults += [fault for kind, result in results.items() for fault in accuracy_faults(kind, result, own)]
    print(model_card.table(figures))
    print(f"text and frames: largest difference of logits; float32 files must stay below {TEXT_GATE} and {FRAMES_GATE}")
    if "f32" not in parities:
        print(f"{folder}: no text model in float32, so the differences include quantisation; `export --types f32,…` writes one")
    if not rows:
        print(f"{run.dir('evaluate')}: not finished, so no questions were answered; run `{run.command('evaluate')}`")
    for fault in faults:
        print(f"differs: {fault}")
    return 1 if faults else 0


def files_of(folder: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """GGUF files of a folder: text models by type, best first; projectors by type; LoRA files by model. Their metadata decides.
    UserError: no text model or no projector."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; export the run first, or name the folder of the files")
    text: dict[str, Path] = {}
    projectors: dict[str, Path] = {}
    adapters: dict[str, Path] = {}
    for path in sorted(folder.glob("*.gguf")):
        fields = listed(path)["fields"]
        in_name = re.search(r"[-.](i?q\d\w*|bf16|f16|f32)\.gguf$", path.name.lower())
        kind = in_name[1] if in_name else f"type {fields.get('general.file_type', '?')}"
        if fields.get("general.type") == "adapter":
            adapters[next((name for name in ADAPTERS if f"-{name}-" in path.name), "")] = path
        elif fields.get("general.architecture") == "clip":
            projectors[kind] = path
        else:
            text[kind] = path
    if not text or not projectors:
        missing = "mmproj file" if text else "text model"
        raise UserError(f"{folder}: no {missing} among its *.gguf files; export the run again")
    best = [kind for kind in TYPES if kind in text] + [kind for kind in text if kind not in TYPES]
    return {kind: text[kind] for kind in best}, projectors, adapters


def answers(engine: ChatEngine, rows: Sequence[AnsweredQuestion], max_new_tokens: int, blank: bool = False) -> Iterator[str]:
    """Greedy answers, one by one. blank: with dark grey frames instead."""
    options = SamplingParams(max_new_tokens=max_new_tokens)
    for row in rows:
        clip = engine.load_clip(row.video)
        if blank:
            clip = replace(clip, pixels_FHW3=np.full_like(clip.pixels_FHW3, BLANK), key=clip.key + ":blank")
        yield "".join(engine.stream(clip, (), row.question, options)).strip()


def score(rows: Sequence[AnsweredQuestion], texts: Sequence[str]) -> Score:
    """Compare answers with the truth and with those of the model in transformers."""
    known = [(row.truth, text) for row, text in zip(rows, texts, strict=True) if row.truth]
    right = sum(exact_match(text, truth) for truth, text in known) / len(known) if known else None
    same = sum(row.answer == text for row, text in zip(rows, texts, strict=True)) / len(rows)
    return Score(right, same)


def accuracy_faults(kind: str, measured: Score, expected: float | None) -> list[str]:
    """A message when the difference of a type's accuracy to `expected` exceeds BOUNDS."""
    if measured.accuracy is None or expected is None or kind not in BOUNDS:
        return []
    gap = abs(measured.accuracy - expected)
    if gap <= BOUNDS[kind] + 1e-9:
        return []
    allowed = f"allowed is {100 * BOUNDS[kind]:g}"
    return [f"{kind}: its accuracy {measured.accuracy:.3f} is {100 * gap:.1f} points from {expected:.3f}, {allowed}"]
