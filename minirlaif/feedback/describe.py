"""Descriptions of a clip, segment by segment, and the context that a judge reads."""

from collections.abc import Sequence

from minirlaif.config import FeedbackSection
from minirlaif.session import ModelSession

Segment = tuple[tuple[float, float], str]  # (start and end in seconds, description)


def describe_segments(session: ModelSession, videos: Sequence[str], section: FeedbackSection) -> dict[str, list[Segment]]:
    """Greedy descriptions of the segments of each clip, from the segments' own (dense) frames, by the active adapter."""
    inputs = [(video, span, view) for video in videos for span, view in session.segment_inputs(video)]
    segments: dict[str, list[Segment]] = {video: [] for video in videos}
    questions = ((view, section.describe_prompt) for _, _, view in inputs)
    texts = session.greedy_answers(questions, section.describe_tokens, section.batch_size)
    for (video, span, _), text in zip(inputs, texts, strict=True):
        segments[video].append((span, text))
    return segments


def context_text(segments: Sequence[Segment]) -> str:
    """The context that a judge reads beside the answers: one line "12s: description" per segment, in the order given."""
    return "".join(f"{start:.0f}s: {' '.join(text.split())}\n" for (start, _), text in segments)
