"""Descriptions of a clip, segment by segment, and the context that a judge reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from minirlaif.config import FeedbackSection
from minirlaif.session import ModelSession

Segment = tuple[tuple[float, float], str]  # (start and end in seconds, description)


@dataclass(frozen=True)
class Descriptions:
    """The described segments of a clip, in order. cut: how many descriptions ended at the limit of tokens."""

    segments: list[Segment]
    cut: int


def describe_segments(session: ModelSession, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
    """Greedy descriptions of the segments of each clip, from the segments' own (dense) frames, by the active adapter."""
    inputs = [(video, span, view) for video in videos for span, view in session.segment_inputs(video)]
    segments: dict[str, list[Segment]] = {video: [] for video in videos}
    cut = dict.fromkeys(videos, 0)
    questions = ((view, section.describe_prompt) for _, _, view in inputs)
    answers = session.greedy_completions(questions, section.describe_tokens, section.batch_size)
    for (video, span, _), answer in zip(inputs, answers, strict=True):
        segments[video].append((span, session.backbone.decode(answer.ids)))
        cut[video] += not answer.stopped
    return {video: Descriptions(segments[video], cut[video]) for video in videos}


def context_text(segments: Sequence[Segment]) -> str:
    """The context that a judge reads beside the answers: one line "12s: description" per segment, in the order given."""
    return "".join(f"{start:.0f}s: {' '.join(text.split())}\n" for (start, _), text in segments)
