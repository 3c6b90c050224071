"""Descriptions of clips by a model behind an OpenAI-compatible address that takes pictures."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from minirlaif.config import FeedbackSection, VideoSection
from minirlaif.feedback.describe import Descriptions, Segment
from minirlaif.feedback.text_judge import Message
from minirlaif.judges.config import JudgeSettings
from minirlaif.judges.grade import Question
from minirlaif.judges.openai import EndpointJudge
from minirlaif.judges.rubric import Unreadable
from minirlaif.video.frame_sampling import Sizing, segment_spans, uniform_plan
from minirlaif.video.reader import ClipReader

TILE, TILE_TOKENS, PICTURE_TOKENS = (
    512,
    170,
    90,
)  # about what endpoints count at most: for each square of a picture, and for itself
EVEN = Sizing(unit=2)  # whole pixels of colour
QUALITY = 90  # of the JPEGs


class EndpointDescriber:
    """Sends the frames of each segment as JPEGs, with the describing prompt below them. Replies are kept, counted and paid for as
    those of a judge. section: its settings decide the longest reply; video: which frames."""

    def __init__(self, settings: JudgeSettings, section: FeedbackSection, video: VideoSection, replies: Path | None) -> None:
        self._client = EndpointJudge(replace(settings, max_tokens=section.describe_tokens), replies)
        self._reader, self._video = ClipReader.of(video), video
        self.signature = {**self._client.signature, "frame_pixels": video.frame_pixels, "jpeg": QUALITY}

    def forecast(self, clips: int, section: FeedbackSection) -> str:
        """What describing so many clips may cost, for the screen. UserError when it is above `max_cost`."""
        # Of the longest shape that so many pixels can have within reason, four to one.
        wide, high = 2 * math.sqrt(self._video.frame_pixels), math.sqrt(self._video.frame_pixels) / 2
        tiles = math.ceil(wide / TILE) * math.ceil(high / TILE)
        tokens = self._video.segment_frames * (PICTURE_TOKENS + TILE_TOKENS * tiles) + len(section.describe_prompt)
        return self._client.forecast(clips * self._video.max_segments, tokens, "descriptions")

    def describe(self, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
        """See `Describer.describe`. A refused segment has an empty description and counts as missing."""
        parts = [(video, span, jpegs) for video in videos for span, jpegs in self._segments(video)]
        questions = [Question([_message(jpegs, section.describe_prompt)], _text, "a description") for *_, jpegs in parts]
        results, _ = self._client.ask_all(questions, report=False)
        segments: dict[str, list[Segment]] = {video: [] for video in videos}
        cut, missing = dict.fromkeys(videos, 0), dict.fromkeys(videos, 0)
        for (video, span, _), result in zip(parts, results, strict=True):
            segments[video].append((span, result.value or ""))
            cut[video] += result.cut
            missing[video] += result.value is None
        return {video: Descriptions(segments[video], cut[video], missing[video]) for video in videos}

    def close(self) -> None:
        """Close the clip reader and the file of replies."""
        self._reader.close()
        self._client.close()

    def _segments(self, video: str) -> list[tuple[tuple[float, float], list[bytes]]]:
        v, info = self._video, self._reader.info(video)
        spans = segment_spans(info.seconds, v.segment_seconds, v.max_segments, v.min_segments)
        plans = [uniform_plan(info.seconds, v.segment_frames, *span) for span in spans]
        frames = self._reader.frames(video, plans, EVEN.size(info.width, info.height, v.frame_pixels))
        return [(span, list(map(_jpeg, pixels_FHW3))) for span, pixels_FHW3 in zip(spans, frames, strict=True)]


def _jpeg(pixels_HW3: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _message(jpegs: Sequence[bytes], prompt: str) -> Message:
    urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in jpegs]
    return {
        "role": "user",
        "content": [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": prompt}],
    }


def _text(reply: str) -> str:
    """The reply as it stands. Unreadable: it is empty."""
    if not (text := reply.strip()):
        raise Unreadable("it is empty")
    return text
