"""Who describes the clips of a run: its own model, or another one that `feedback.describer` names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minirlaif.config import FeedbackSection, ModelSection, VideoSection
from minirlaif.feedback.describe import Describer, FolderDescriber
from minirlaif.gguf.runtime.describer import GgufDescriber
from minirlaif.judges.config import REPLIES, feedback_describer
from minirlaif.judges.describer import EndpointDescriber
from minirlaif.runs.run import Run


def other_describer(model: ModelSection, video: VideoSection, f: FeedbackSection, run: Run) -> Describer | None:
    """The model of `feedback.describer`, where it is none of the run's own. UserError: it cannot be used."""
    named = feedback_describer(f)
    if named is None:
        return None
    if named.kind == "hf":
        device = model.device if named.device == "auto" else named.device
        other = replace(model, base=named.name, revision="main", device=device)
        return FolderDescriber(run, replace(other, dtype=named.dtype, quantization=named.quantization), video)
    if named.kind == "gguf":
        return GgufDescriber(Path(named.name), video, named.threads)
    return EndpointDescriber(named, f, video, run.root.parent / REPLIES)


def known_descriptions(run: Run) -> dict[str, dict[str, Any]]:
    """The descriptions that the stage `questions` of the run's first round made, by clip; none in a further round, whose model
    is another one."""
    if "questions" not in run.stages or run.full_run is not run:
        return {}
    return {run.located(row["video"]): row for row in run.rows("questions", "contexts.jsonl", "video", "context", "spans")}
