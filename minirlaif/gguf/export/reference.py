"""Token ids and next-token logits of transformers in float32 for a few prompts, to compare exported files with.

Letters: T tokens, V vocabulary, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from minirlaif.config import DataSection, ModelSection, VideoSection
from minirlaif.data.preflight import read_samples
from minirlaif.gguf.export.task_check import evaluated_questions
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.loading import open_backbone
from minirlaif.models.renderer import FrameLayout, Layout
from minirlaif.runs.run import Run
from minirlaif.stages.registry import ADAPTERS
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import Sizing, uniform_plan
from minirlaif.video.reader import ClipReader

ROWS, CLIPS, EACH, QUESTIONS = 200, 2, 2, 4  # rows read; clips, questions about each clip, questions without a clip

# Texts whose ids must be equal: numbers, accents, scripts without spaces, line breaks, contractions, tokens spelled by a user.
TEXTS = (
    "What happens first, and what happens after 3 seconds?",
    "It's 12345.678 kg; they've said I'm, you'll and WE'RE  two  spaces",
    "Crème brûlée à la façon de Zoë, naïve Ærø",
    "他在做什么？これは何ですか。무엇을 하나요?",
    "🙂👩‍👩‍👧 ✓ 50 € ½",
    "one\ntwo\n\nthree\r\nfour\t\tfive \n six",
    "def f(x): return x**2  # <image> <|im_start|> <|im_end|> <end_of_utterance> <think> <|video_pad|>",
    " leading and trailing ",
    "...---!!!???(((a)))[[b]]{{c}}",
    "Привет, мир! مرحبا بالعالم १२३",
)


@dataclass(frozen=True, eq=False)
class Probe:
    """A prompt: its ids, and its clip (None: text only) with frames [F, H, W, 3] exactly as the model gets them."""

    ids: tuple[int, ...]
    question: str
    answer: str = ""  # included in the prompt
    layout: FrameLayout | None = None
    pixels_FHW3: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """Values that files must reproduce: ids of texts, and prompts with the next-token logits [prompts, V] by model.

    layout, sizing: of the model's prompts and frames; control: tokens that text never turns into.
    """

    layout: Layout
    sizing: Sizing
    control: tuple[str, ...]
    texts: tuple[tuple[str, list[int]], ...]
    probes: tuple[Probe, ...]
    logits: Mapping[str, np.ndarray]


def reference_of(
    backbone: VisionLanguageModel,
    rows: Sequence[tuple[str, str]],
    video: VideoSection,
    adapters: Mapping[str, AbstractContextManager[None]],
) -> Reference:
    """Logits of the model in transformers. adapters: by name of a model, the context in which the backbone acts as it."""
    questions = list(dict.fromkeys(question for _, question in rows))[:QUESTIONS]
    with ClipReader(video.timeout_seconds) as reader:
        probes = (*text_probes(backbone, questions), *clip_probes(backbone, reader, video, rows))
    logits = {}
    for name, role in adapters.items():
        with role:
            logits[name] = logits_of(backbone, probes)
    control = tuple(token.content for token in backbone.tokenizer.added_tokens_decoder.values() if token.special)
    return Reference(backbone.renderer.layout, backbone.sizing, control, tuple(ids_of(backbone, questions)), probes, logits)


def plain_section(section: ModelSection, base: str = "") -> ModelSection:
    """The settings of a base for an export: float32 on the CPU without quantisation, whatever it was trained with."""
    plain = replace(section, quantization="none", dtype="float32", device="cpu", gradient_checkpointing=False)
    return replace(plain, base=base) if base else plain


def of_run(run: Run, model: ModelSection, video: VideoSection, data: DataSection, saved: Path | None) -> Reference:
    """The reference of a run: the model saved in transformers' layout, or (None) the base with the run's adapters."""
    rows = clip_questions(run, data)
    if saved is not None:
        return reference_of(open_backbone(plain_section(model, str(saved))), rows, video, {"rlaif": nullcontext()})
    section = plain_section(model)
    backbone = open_backbone(section)
    adapters = AdapterSet(backbone, section)
    for name in ADAPTERS:
        adapters.add(name, 0, run.adapter(name))
    return reference_of(backbone, rows, video, {name: adapters.inference_as(name) for name in (*ADAPTERS, "base")})


def clip_questions(run: Run, data: DataSection) -> list[tuple[str, str]]:
    """(clip, question) of two clips: those of `evaluate` where it has run, else of the training prompts."""
    rows = [(row.video, row.question) for row in evaluated_questions(run, ROWS)]
    rows = rows or [(row.video, row.turns[0].question) for row in read_samples(data, run, "prompts", need_answers=False)]
    clips = list(dict.fromkeys(clip for clip, _ in rows))[:CLIPS]
    return [(clip, question) for clip in clips for _, question in [row for row in rows if row[0] == clip][:EACH]]


def ids_of(backbone: VisionLanguageModel, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """TEXTS, some further texts and every special token spelled out, each with its ids."""
    spelled = [token.content for token in backbone.tokenizer.added_tokens_decoder.values()]
    chosen = dict.fromkeys([*TEXTS, *texts, " ".join(spelled), "".join(spelled)])
    return [(text, list(backbone.renderer.text_ids(text))) for text in chosen]


def text_probes(backbone: VisionLanguageModel, questions: Sequence[str]) -> list[Probe]:
    """Prompts without a clip: questions, and each with an answer after it, so that later positions are compared too."""
    made = []
    for number, question in enumerate(questions):
        made.append(Probe(backbone.renderer.prompt(None, question), question))
        answer = TEXTS[number % len(TEXTS)]
        made.append(Probe(backbone.renderer.conversation(None, [Turn(question, answer)]).ids, question, answer))
    return made


def clip_probes(
    backbone: VisionLanguageModel, reader: ClipReader, video: VideoSection, rows: Sequence[tuple[str, str]]
) -> list[Probe]:
    """Prompts about clips, with as many frames as in training. rows: (clip, question). UnreadableClip."""
    made = []
    for path, question in rows:
        info = reader.info(path)
        plan = uniform_plan(info.seconds, video.frames)
        size = backbone.frame_size(info.width, info.height, video.frame_pixels)
        (pixels_FHW3,) = reader.frames(path, [plan], size)
        layout = FrameLayout(plan.times, info.seconds, backbone.sizing.vectors(size))
        made.append(Probe(backbone.renderer.prompt(layout, question), question, "", layout, pixels_FHW3))
    return made


@torch.no_grad()
def logits_of(backbone: VisionLanguageModel, probes: Sequence[Probe]) -> np.ndarray:
    """Logits [probes, V] of the token that follows each prompt, with the adapter that is active."""
    logits = []
    for probe in probes:
        features = None if probe.pixels_FHW3 is None else backbone.encode_frames(probe.pixels_FHW3)
        ids_BT = torch.tensor([probe.ids], device=backbone.device)
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        positions = backbone.positions(ids_BT, mask_BT, [features])
        hidden_BTD = backbone.hidden(backbone.embed(ids_BT, [features]), mask_BT, positions)
        logits.append(backbone.logits(hidden_BTD[0, -1]).float().cpu().numpy())
    return np.stack(logits)
