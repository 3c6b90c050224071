"""Descriptions of a clip, segment by segment, and the context that a judge reads."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from minirlaif.config import FeedbackSection, ModelSection, VideoSection
from minirlaif.errors import UserError
from minirlaif.models.loading import base_hash
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, open_session

Segment = tuple[tuple[float, float], str]  # (start and end in seconds, description)


@dataclass(frozen=True)
class Descriptions:
    """The described segments of a clip, in order. cut: how many descriptions ended at the limit of tokens; missing: how many a
    describer refused to give."""

    segments: list[Segment]
    cut: int
    missing: int = 0


class Describer(Protocol):
    """What describes clips."""

    @property
    def signature(self) -> Mapping[str, Any]:
        """Everything that a description depends on beside the clip and the settings."""

    def describe(self, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
        """The descriptions of each clip. UserError: the describer cannot be reached, or cannot read a clip."""

    def close(self) -> None:
        """Free what was opened."""


@dataclass(frozen=True)
class SessionDescriber:
    """An open model. role: of its adapter, "": the active one; signature: as `Describer` has it."""

    session: ModelSession
    role: str = ""
    signature: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
        """See `Describer.describe`."""
        adapters = self.session.adapters
        with adapters.on_device(self.role) if self.role else nullcontext():
            with adapters.inference_as(self.role) if self.role else nullcontext():
                return describe_segments(self.session, videos, section)

    def close(self) -> None:
        """The session is closed by whoever opened it."""


class FolderDescriber:
    """Another vision-language model, from a folder or of the hub: opened when the first clip is described, in host memory between
    clips. model: its section, with `base` set."""

    def __init__(self, run: Run, model: ModelSection, video: VideoSection) -> None:
        self._run, self._model, self._video = run, model, video
        self._session: ModelSession | None = None
        self._stack = ExitStack()
        try:
            self.signature = {"kind": "hf", "files": base_hash(model), "quantization": model.quantization, "dtype": model.dtype}
        except UserError as error:
            raise self._named(error) from None

    def describe(self, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
        """See `Describer.describe`."""
        if self._session is None:
            try:
                self._session = self._stack.enter_context(open_session(self._run, self._model, self._video))
            except UserError as error:
                raise self._named(error) from None
            self._session.adapters.enable_offload("base")
        return SessionDescriber(self._session, "base").describe(videos, section)

    def close(self) -> None:
        """Close the model and its feature cache."""
        self._stack.close()

    def _named(self, error: UserError) -> UserError:
        return UserError(str(error).replace("model.base", "feedback.describer", 1))


class KnownDescriber:
    """Descriptions that an earlier stage of the run made; those of other clips by `other`. rows: of contexts.jsonl, with `spans`,
    by clip; signature: that of `other`."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], other: Describer) -> None:
        self._rows, self._other, self.signature = rows, other, other.signature

    def describe(self, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
        """See `Describer.describe`."""
        new = [video for video in videos if video not in self._rows]
        made = self._other.describe(new, section) if new else {}
        for video in videos:
            if row := self._rows.get(video):
                spans = [(float(start), float(end)) for start, end in row["spans"]]
                segments = list(zip(spans, row["segments"], strict=True))
                made[video] = Descriptions(segments, row["cut"], row.get("missing", 0))
        return {video: made[video] for video in videos}

    def close(self) -> None:
        """Close the other one."""
        self._other.close()


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
