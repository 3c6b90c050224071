"""Token ids and next-token logits of transformers in float32 for a few prompts, to compare exported files with.

Letters: T tokens, V vocabulary, F frames.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from minirlaif.config import DataSection, ModelSection, VideoSection
from minirlaif.data.preflight import read_samples
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.loading import open_backbone
from minirlaif.models.renderer import FrameLayout, Layout
from minirlaif.runs.run import Run
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


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question of `evaluate`. truth: None where it is unknown; answer: the model's answer in transformers."""

    video: str
    question: str
    truth: str | None
    answer: str


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
    probes, logits = probes_of(backbone, video, questions, rows), {}
    for name, role in adapters.items():
        with role:
            logits[name] = logits_of(backbone, probes)
    added = backbone.tokenizer.added_tokens_decoder.values()
    control, spelled = tuple(token.content for token in added if token.special), [token.content for token in added]
    chosen = dict.fromkeys([*TEXTS, *questions, " ".join(spelled), "".join(spelled)])
    texts = tuple((text, list(backbone.renderer.text_ids(text))) for text in chosen)
    return Reference(backbone.renderer.layout, backbone.sizing, control, texts, probes, logits)


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
    for name in run.adapters():
        adapters.add(name, 0, run.adapter(name))
    return reference_of(backbone, rows, video, {name: adapters.inference_as(name) for name in (*run.adapters(), "base")})


def evaluated_questions(run: Run, most: int, model: str = "rlaif") -> list[AnsweredQuestion]:
    """The first `most` questions of a finished `evaluate`, with the answers of one of its models; none when it has not run."""
    if run.manifest("evaluate") is None:
        return []
    rows, folder = run.rows("evaluate", "answers.jsonl", "video", "question", model)[:most], os.path.abspath(run.dir("evaluate"))
    return [AnsweredQuestion(os.path.normpath(Path(folder, r["video"])), r["question"], r["truth"], r[model]) for r in rows]


def clip_questions(run: Run, data: DataSection) -> list[tuple[str, str]]:
    """(clip, question) of two clips: those of `evaluate` where it has run, else of the training prompts."""
    rows = [(row.video, row.question) for row in evaluated_questions(run, ROWS)]
    rows = rows or [
        (row.video, row.turns[0].question) for row in read_samples(data, run, "prompts", need_answers=False, max_missing=1.0)
    ]
    clips = list(dict.fromkeys(clip for clip, _ in rows))[:CLIPS]
    return [(clip, question) for clip in clips for _, question in [row for row in rows if row[0] == clip][:EACH]]


def probes_of(
    backbone: VisionLanguageModel, video: VideoSection, questions: Sequence[str], rows: Sequence[tuple[str, str]]
) -> tuple[Probe, ...]:
    """Prompts without a clip: questions, and each with an answer after it, so that later positions are compared too. Then prompts
    about clips, with as many frames as in training. rows: (clip, question). UnreadableClip."""
    prompt, probes = backbone.renderer.prompt, []
    for number, question in enumerate(questions):
        answer = TEXTS[number % len(TEXTS)]
        with_answer = backbone.renderer.conversation(None, [Turn(question, answer)]).ids
        probes += [Probe(prompt(None, question), question), Probe(with_answer, question, answer)]
    with ClipReader.of(video) as reader:
        for path, question in rows:
            info = reader.info(path)
            plan = uniform_plan(info.seconds, video.frames)
            size = backbone.frame_size(info.width, info.height, video.frame_pixels)
            (pixels_FHW3,) = reader.frames(path, [plan], size)
            layout = FrameLayout(plan.times, info.seconds, backbone.sizing.vectors(size))
            probes.append(Probe(prompt(layout, question), question, "", layout, pixels_FHW3))
    return tuple(probes)


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
