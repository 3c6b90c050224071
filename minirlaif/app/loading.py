"""A finished run or an export as one object, for notebooks and scripts: `minirlaif.load(FOLDER).ask(CLIP, QUESTION)`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import TracebackType

from minirlaif.errors import UserError
from minirlaif.inference.engine import ChatEngine, SamplingParams
from minirlaif.runs.run import Run
from minirlaif.video.spans import file_of, local_path


class VideoModel:
    """A loaded model that answers questions about clips. Use it from one thread; `close` it, or use it in a `with` block.

    models: names that `ask` takes, best first, such as ("rlaif", "sft", "base"); an export has one.
    """

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine
        self.models = engine.models

    def ask(
        self,
        clip: str | Path,
        question: str,
        *,
        model: str = "",
        frames: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 0,
        seed: int = 0,
    ) -> str:
        """The answer to a question about a clip, or about a part of it ("a.mp4#t=10,20"; seconds).

        model: one of `models` (default: the first); frames: of the clip that the model sees (0: as in training); temperature: 0:
        always the most likely token; max_new_tokens: longest answer (0: as in training).

        Raises:
            UserError: the clip cannot be read, no model has this name, or the question does not fit the context.
        """
        video = local_path(str(clip))
        if not Path(file_of(video)).is_file():
            raise UserError(f"{clip}: no such file")
        if model and model not in self.models:
            raise UserError(f"model {model}: not available; choose one of {', '.join(self.models)}")
        sampling = SamplingParams(temperature, top_p, max_new_tokens or self._engine.sampling.max_new_tokens, seed)
        loaded = self._engine.load_clip(video, frames)
        with closing(self._engine.stream(loaded, (), question, sampling, model)) as pieces:  # type: ignore[type-var]
            return "".join(pieces)

    def close(self) -> None:
        """Free the model and stop reading clips."""
        self._engine.close()

    def __enter__(self) -> VideoModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(folder: str | Path) -> VideoModel:
    """Open a run's folder (runs/NAME; needs torch) or an exported one (runs/NAME/export; llama.cpp, without torch).

    Raises:
        UserError: the folder is neither, or a stage of the run is not finished.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{folder}: no such folder; name a run, such as runs/tiny, or its export")
    if any(path.glob("*.gguf")):
        from minirlaif.gguf.runtime.engine import GgufEngine

        return VideoModel(GgufEngine(path))
    if not (path / "config.yaml").is_file():
        raise UserError(f"{folder}: holds neither a run (config.yaml) nor an export (.gguf)")
    try:
        from minirlaif.feedback.readout import judge_of_run
        from minirlaif.inference.hf_engine import HfEngine
    except ModuleNotFoundError as error:
        raise UserError(
            f"{folder}: a run needs {error.name}, which is not installed; `pip install -r requirements.txt`, or load its export"
        ) from None

    return VideoModel(HfEngine(Run(path), judge_of_run))
