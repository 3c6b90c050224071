"""What transformers makes of a few prompts, for comparing exported files with: ids and next-token logits in float32.

Letters: T tokens, V vocabulary, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minirlaif.chat import Shown
from minirlaif.config import VideoSection
from minirlaif.families.common import Backbone
from minirlaif.frames import uniform_plan
from minirlaif.records import Turn
from minirlaif.sampling import Asked
from minirlaif.video import ClipReader

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
    """A prompt: its ids, and the clip it shows (None: text alone) with frames exactly as the model gets them."""

    ids: tuple[int, ...]
    question: str
    answer: str = ""  # what of an answer stands in the prompt already
    shown: Shown | None = None
    pixels_FHW3: np.ndarray | None = None


def ids_of(backbone: Backbone, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """TEXTS, some further texts and every special token spelled out, each with its ids."""
    spelled = [token.content for token in backbone.tokenizer.added_tokens_decoder.values()]
    chosen = dict.fromkeys([*TEXTS, *texts, " ".join(spelled), "".join(spelled)])
    return [(text, list(backbone.renderer.text_ids(text))) for text in chosen]


def text_probes(backbone: Backbone, questions: Sequence[str]) -> list[Probe]:
    """Prompts without a clip: questions, and a question with the start of an answer, so that later places are compared too."""
    made = []
    for number, question in enumerate(questions):
        answer = TEXTS[number % len(TEXTS)] if number % 2 else ""
        ids = backbone.renderer.prompt(None, question)
        if answer:
            ids = backbone.renderer.conversation(None, [Turn(question, answer)]).ids
        made.append(Probe(ids, question, answer))
    return made


def clip_probes(
    backbone: Backbone, reader: ClipReader, video: VideoSection, rows: Sequence[tuple[str, str]], frames: int = 0
) -> list[Probe]:
    """Prompts about clips. rows: (clip, question); frames: how many of each clip (0: as in training). UnreadableClip."""
    made = []
    for path, question in rows:
        info = reader.info(path)
        plan = uniform_plan(info.seconds, frames or video.frames)
        size = backbone.frame_size(info.width, info.height, video.frame_pixels)
        (pixels_FHW3,) = reader.frames(path, [plan], size)
        shown = Shown(plan.times, info.seconds, backbone.sizing.vectors(size))
        made.append(Probe(backbone.renderer.prompt(shown, question), question, "", shown, pixels_FHW3))
    return made


@torch.no_grad()
def logits_of(backbone: Backbone, probes: Sequence[Probe]) -> np.ndarray:
    """Logits [probes, V] of the token that follows each prompt, in the role that is active now."""
    found = []
    for probe in probes:
        features = None if probe.pixels_FHW3 is None else backbone.encode_frames(probe.pixels_FHW3)
        found.append(next_logits(backbone, Asked(probe.ids, features)))
    return np.stack([logits_V.float().cpu().numpy() for logits_V in found])


def next_logits(backbone: Backbone, asked: Asked) -> torch.Tensor:
    """logits_V after one prompt."""
    ids_BT = torch.tensor([asked.ids], device=backbone.device)
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    positions = backbone.positions(ids_BT, mask_BT, [asked.features])
    hidden_BTD = backbone.hidden(backbone.embed(ids_BT, [asked.features]), mask_BT, positions)
    return backbone.logits(hidden_BTD[0, -1])
