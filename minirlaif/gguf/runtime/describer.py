"""Descriptions of clips by exported GGUF files. No torch."""

from collections.abc import Sequence
from pathlib import Path

from minirlaif.config import FeedbackSection, VideoSection
from minirlaif.feedback.describe import Descriptions, Segment
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.inference.engine import SamplingParams
from minirlaif.runs.io import sha256
from minirlaif.video.frame_sampling import segment_spans
from minirlaif.video.reader import ClipReader


class GgufDescriber:
    """The best model of an export, run by llama.cpp in a child process, greedily. where: the export's folder, or a text model in
    it; threads: as for `GgufEngine`."""

    def __init__(self, where: Path, video: VideoSection, threads: int = 0) -> None:
        self._engine, self._video, self._reader = GgufEngine(where, threads=threads), video, ClipReader.of(video)
        files = {path.name: sha256(path)[:16] for path in self._engine.files}
        self.signature = {"kind": "gguf", "model": self._engine.models[0], "files": files}

    def describe(self, videos: Sequence[str], section: FeedbackSection) -> dict[str, Descriptions]:
        """See `Describer.describe`."""
        v, engine = self._video, self._engine
        sampling = SamplingParams(temperature=0.0, max_new_tokens=section.describe_tokens)
        result = {}
        for video in videos:
            segments, cut = list[Segment](), 0
            for span in segment_spans(self._reader.info(video).seconds, v.segment_seconds, v.max_segments, v.min_segments):
                clip = engine.load_clip(video, v.segment_frames, span)
                segments.append((span, "".join(engine.stream(clip, [], section.describe_prompt, sampling))))
                cut += engine.cut
            result[video] = Descriptions(segments, cut)
        return result

    def close(self) -> None:
        """End the child processes."""
        self._reader.close()
        self._engine.close()
