"""Token ids and logits of GGUF files, compared with those of transformers for the same prompts. No torch.

llama.cpp runs in a child process, `python -m minirlaif.gguf.export.parity`: it ends the process when it cannot use a file.
Letters: V vocabulary, F frames.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minirlaif.gguf.export.converter import in_child
from minirlaif.gguf.runtime.bindings import group_frames, insert_frames
from minirlaif.gguf.runtime.engine import threads_for
from minirlaif.gguf.runtime.llama import LlamaSession
from minirlaif.models.renderer import FrameLayout, Layout, Renderer
from minirlaif.types import Turn
from minirlaif.video.child_process import serve

if TYPE_CHECKING:
    from minirlaif.gguf.export.reference import Reference

TEXT_GATE = 1e-4  # float32 files with float32 keys and values: only the order of additions differs
FRAMES_GATE = 5e-3  # through the vision tower, whose activation is a table in llama.cpp
CONTROL = 10  # other frames must change the logits by so many times FRAMES_GATE, or the check above could not fail


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences of logits to transformers'; None where there was no such prompt.

    wrong_ids: texts or prompts whose ids differ; control: the smallest difference, over prompts, with other frames;
    same_choice: share of prompts whose most likely token is the same.
    """

    wrong_ids: tuple[str, ...]
    text: float | None
    frames: float | None
    control: float | None
    same_choice: float

    def wrong(self) -> list[str]:
        """Messages about files of any type: other ids, or frames without an effect."""
        problems = [f"{len(self.wrong_ids)} texts have other ids, such as {self.wrong_ids[0]!r:.60}"] if self.wrong_ids else []
        if self.frames is not None and self.control is not None and not self.frames < self.control:
            right, other = f"{self.frames:.2g}", f"{self.control:.2g}"
            problems.append(f"with the right frames its logits differ as much ({right}) as with others ({other})")
        return problems

    def faults(self) -> list[str]:
        """Messages about a float32 export."""
        problems = self.wrong()
        if self.text is None or not self.text < TEXT_GATE:
            problems.append(f"text logits differ by {self.text}, allowed is {TEXT_GATE}")
        if self.frames is None or not self.frames < FRAMES_GATE:
            problems.append(f"logits with frames differ by {self.frames}, allowed is {FRAMES_GATE}")
        if self.control is None or not self.control >= CONTROL * FRAMES_GATE:
            problems.append(f"other frames change the logits by only {self.control}, so the check with frames proves nothing")
        return problems


def measure(text: Path, mmproj: Path, reference: Reference, model: str, kv: str = "f32", adapter: Path | None = None) -> Parity:
    """Compare files with one model of the reference.

    Args:
        kv: number format of keys and values, "f32" or "f16"; adapter: a LoRA file to add to the text model.

    Raises:
        UserError: llama.cpp cannot use the files; with its last output.
    """
    probes = reference.probes
    with tempfile.TemporaryDirectory() as work:
        arrays = {str(number): p.pixels_FHW3 for number, p in enumerate(probes) if p.pixels_FHW3 is not None}
        np.savez(Path(work) / "frames.npz", **arrays)  # type: ignore[arg-type]
        rows = [{"question": p.question, "answer": p.answer, "layout": p.layout and asdict(p.layout)} for p in probes]
        request = {
            "text": str(text),
            "mmproj": str(mmproj),
            "layout": reference.layout.as_dict(),
            "texts": [text for text, _ in reference.texts],
            "probes": rows,
            "folder": work,
            "kv": kv,
            "threads": threads_for(text),
            "adapter": adapter and str(adapter),
        }
        reply = in_child("minirlaif.gguf.export.parity", text, request)
        measured = np.load(Path(work) / "logits.npz")
        right, other, expected = measured["right"], measured["other"], reference.logits[model]
    wrong = [text for (text, ids), actual in zip(reference.texts, reply["texts"], strict=True) if list(ids) != actual]
    wrong += [p.question for p, actual in zip(probes, reply["prompts"], strict=True) if list(p.ids) != actual]
    # A GGUF may have fewer rows than a padded embedding, never more.
    gaps = np.abs(right - expected[:, : right.shape[1]]).max(1)
    controls = np.abs(other - expected[:, : other.shape[1]]).max(1)
    with_frames = np.array([p.layout is not None for p in probes])
    return Parity(
        tuple(wrong),
        float(gaps[~with_frames].max()) if (~with_frames).any() else None,
        float(gaps[with_frames].max()) if with_frames.any() else None,
        float(controls[with_frames].min()) if with_frames.any() else None,
        float((right.argmax(1) == expected.argmax(1)).mean()),
    )


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the child: ids of texts and prompts; logits go into a file in the request's folder."""
    folder = Path(request["folder"])
    frames = np.load(folder / "frames.npz")
    right, other, prompts = [], [], []
    with closing(LlamaSession(Path(request["text"]), Path(request["mmproj"]), 512, request["threads"], request["kv"])) as session:
        renderer = Renderer(session.vocabulary, Layout.from_dict(request["layout"]))
        if request["adapter"]:
            session.adapt({Path(request["adapter"]): 1.0})
        for number, row in enumerate(request["probes"]):
            layout = row["layout"] and FrameLayout(**{**row["layout"], "times": tuple(row["layout"]["times"])})
            ids = renderer.prompt(layout, row["question"])
            if row["answer"]:
                ids = renderer.conversation(layout, [Turn(row["question"], row["answer"])]).ids
            prompts.append(list(ids))
            if len(ids) + 8 > session.n_ctx:
                session.resize(len(ids) + 8)
            pixels_FHW3 = frames[str(number)] if layout else None
            right.append(_logits(session, renderer, ids, pixels_FHW3))
            # Inverted colours: other frames of the same shape, also for a clip whose frames are all equal.
            other.append(right[-1] if pixels_FHW3 is None else _logits(session, renderer, ids, 255 - pixels_FHW3))
        reply = {"texts": [list(renderer.text_ids(text)) for text in request["texts"]], "prompts": prompts}
    np.savez(folder / "logits.npz", right=np.stack(right), other=np.stack(other))
    return reply


def _logits(session: LlamaSession, renderer: Renderer, ids: Sequence[int], pixels_FHW3: np.ndarray | None) -> np.ndarray:
    """logits_V after a prompt about these frames."""
    if pixels_FHW3 is None:
        return session.prefill(ids)
    frames = [session.encode(group) for group in group_frames(pixels_FHW3, renderer.layout.group or len(pixels_FHW3))]
    try:
        return session.prefill(insert_frames(ids, renderer.image_id, frames))
    finally:
        for group in frames:
            session.drop(group)


if __name__ == "__main__":
    serve(_answer)
