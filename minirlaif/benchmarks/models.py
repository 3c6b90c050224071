"""Models that a benchmark can evaluate: those of a run, an adapter folder, a folder or hub id of transformers, a GGUF file.

Whatever a model is, it answers (clip, question) pairs with its most likely tokens. Models on a session answer in batches and give
likelihoods of texts; a chat engine (inference/engine.py) answers one question at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minirlaif import config
from minirlaif.config import Config
from minirlaif.config.schema import EvaluateSection, ModelSection, VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.inference.engine import ChatEngine, LoadedClip, SamplingParams
from minirlaif.runs.io import sha256
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.stages.registry import ADAPTERS, MODELS
from minirlaif.video.reader import ClipReader, check_clips

if TYPE_CHECKING:
    from minirlaif.session import ModelSession

SEARCHED = 4  # folders above an adapter that may be its run
# What lies beside the models' folders: a model of such a name would overwrite it, or be overwritten.
TAKEN = (*MODELS, "scores", "table.json", "table.md", "table.html", "radar.svg", "bars.svg")


@dataclass(frozen=True)
class ModelSpec:
    """A model before it is loaded. title: for tables and folders; kind: run, adapter, folder or gguf; path: of what is loaded
    (unused for a run's own); config: how it decodes clips and answers; settings and inputs: what its answers depend on, for the
    manifest; which: of a run's models, or of an export that holds several ("": its best one); frames: per clip, of an engine
    alone (0: as many as it was exported for)."""

    title: str
    kind: str
    path: str
    config: Config
    settings: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    which: str = ""
    frames: int = 0


class BenchmarkModel(Protocol):
    """A loaded model."""

    batch_size: int

    def unreadable(self, videos: Sequence[str]) -> dict[str, str]:
        """Clips that cannot be read, with reasons. UserError when they are more than video.max_unreadable allows."""
        ...

    def answers(self, prompts: Sequence[tuple[str, str]]) -> list[str]:
        """The most likely answer to each (clip, question)."""
        ...

    def likelihoods(self, candidates: Sequence[tuple[str, str, str]]) -> list[float]:
        """Mean log-probability per token of each (clip, question, text), in nats. UserError for models that give none."""
        ...

    def add_counters(self, out: StageDir) -> None:
        """Add decodes, encodes and prefilled tokens since the last call to the stage's counters."""
        ...


def title_of(name: str) -> str:
    """A name as a folder beside other models' folders; "" for one that cannot be, or that is taken by something else."""
    title = re.sub(r"[^\w.-]+", "-", name).strip("-.").lower()
    return "" if title in TAKEN or title.endswith((".partial", ".old")) else title


def resolve_model(name: str, run: Run, config_file: str | None, changes: Sequence[str]) -> ModelSpec:
    """The model that `--model NAME` stands for.

    config_file: `--config`, or None: the config of the run that the model belongs to, or else the defaults; changes: `--set`.
    UserError when there is no such model.
    """
    from minirlaif.session import settings_of

    if name in MODELS and not (run.root / "config.yaml").is_file():
        raise UserError(f"{run.root}: no such run; name another --run, or with --model a folder, an adapter or a .gguf file")
    path, which = Path(name).expanduser(), ""
    file, colon, model = name.rpartition(":")
    if name not in MODELS and colon and _is_gguf(Path(file)):
        path, which = Path(file), model
    nearest = run.root / "config.yaml" if name in MODELS else _config_near(path, run)
    cfg = config.load(config_file or nearest, changes)
    if name not in MODELS and _is_gguf(path):
        sets_frames = config_file is not None or any(change.startswith("video.frames=") for change in changes)
        hashes, frames = _exported(name, path, cfg.video.frames if sets_frames else 0)
        settings = {"model": {"files": hashes, "which": which}, "frames": frames, "max_new_tokens": cfg.evaluate.max_new_tokens}
        title = f"{path.resolve().name}-{which}" if which else path.resolve().name
        return ModelSpec(_own_title(title), "gguf", str(path), cfg, settings, which=which, frames=frames)
    inputs: tuple[str, ...] = ()
    weights: dict[str, Any] = {}
    if name in MODELS:
        title, kind, which, inputs = name, "run", name, (run.producer(name),) if name in ADAPTERS else ()
        for stage in inputs:
            run.require(stage)
    elif path.is_file():
        raise UserError(f"--model {name}: a file that is no .gguf; name one, or a folder")
    elif (path / "adapter_config.json").is_file():
        cfg = replace(cfg, model=_adapter_section(path, cfg.model))
        weights = {"adapter": {each.name: sha256(each) for each in sorted(path.glob("*.safetensors"))}}
        title, kind = _own_title(f"{path.resolve().parent.name}-{path.resolve().name}"), "adapter"
    elif path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        cfg = replace(cfg, model=replace(cfg.model, base=name, revision=cfg.model.revision if path.is_dir() else "main"))
        title, kind = _own_title(path.resolve().name), "folder"
    else:
        known = ", ".join(reversed(MODELS))
        raise UserError(
            f"--model {name}: no such file or folder, and none of {known}; name a run's model, an adapter, a folder or a .gguf"
        )
    settings = {"model": settings_of(cfg.seed, cfg.data, model=cfg.model)["model"], "video": config.plain(cfg.video)}
    settings |= {"max_new_tokens": cfg.evaluate.max_new_tokens, **weights}
    return ModelSpec(title, kind, str(path), cfg, settings, inputs, which)


@contextmanager
def load_model(spec: ModelSpec, run: Run) -> Iterator[BenchmarkModel]:
    """Load a model; it is freed at the end of the block."""
    video, evaluate = spec.config.video, spec.config.evaluate
    if spec.kind == "gguf":
        engine = _gguf_engine(spec)
        try:
            yield EngineModel(engine, video, evaluate.max_new_tokens, spec.which, spec.frames)
        finally:
            engine.close()
        return
    from minirlaif.session import open_session

    with open_session(run, spec.config.model, video) as session:
        role = "base"
        if spec.kind == "run" and spec.inputs:
            role = spec.which
            session.adapters.add(role, 0, run.require(spec.inputs[0]) / "adapter")
        elif spec.kind == "adapter":
            role = "policy"
            session.adapters.add(role, 0, Path(spec.path))
        yield SessionModel(session, role, evaluate, video.max_unreadable)


class SessionModel:
    """A role of a session: batches, and likelihoods. Its clips go through the run's feature cache."""

    def __init__(self, session: ModelSession, role: str, evaluate: EvaluateSection, max_unreadable: float) -> None:
        self._session, self._role, self._max_unreadable = session, role, max_unreadable
        self.batch_size, self._max_new_tokens = evaluate.batch_size, evaluate.max_new_tokens

    def unreadable(self, videos: Sequence[str]) -> dict[str, str]:
        _, bad = check_clips(videos, self._session.feature_cache, self._max_unreadable)
        return {clip.path: clip.reason for clip in bad}

    def answers(self, prompts: Sequence[tuple[str, str]]) -> list[str]:
        questions = ((self._session.video_input(video), text) for video, text in prompts)
        with self._session.adapters.inference_as(self._role):
            return self._session.greedy_answers(questions, self._max_new_tokens, self.batch_size)

    def likelihoods(self, candidates: Sequence[tuple[str, str, str]]) -> list[float]:
        from minirlaif.feedback.judge import mean_logprobs

        session = self._session
        with session.adapters.inference_as(self._role):
            pairs = [
                session.encode_pair(session.video_input(video), question, session.answer_ids(text))
                for video, question, text in candidates
            ]
            return mean_logprobs(session, pairs, self.batch_size)

    def add_counters(self, out: StageDir) -> None:
        self._session.add_counters(out)


class EngineModel:
    """A chat engine. Questions about one clip that follow one another share its encoding."""

    batch_size = 1

    def __init__(self, engine: ChatEngine, video: VideoSection, max_new_tokens: int, which: str, frames: int) -> None:
        if which and which not in engine.models:
            raise UserError(f"{engine.title}: holds no model {which}; it has {', '.join(engine.models)}")
        self._engine, self._video, self._which, self._frames = engine, video, which, frames
        self._params = SamplingParams(max_new_tokens=max_new_tokens)
        self._clip: LoadedClip | None = None
        self._counters: Mapping[str, int] = {}

    def unreadable(self, videos: Sequence[str]) -> dict[str, str]:
        with ClipReader(self._video.timeout_seconds) as reader:
            _, bad = check_clips(videos, reader, self._video.max_unreadable)
        return {clip.path: clip.reason for clip in bad}

    def answers(self, prompts: Sequence[tuple[str, str]]) -> list[str]:
        texts = []
        for video, question in prompts:
            if self._clip is None or self._clip.video != video:
                self._clip = self._engine.load_clip(video, self._frames)
            texts.append("".join(self._engine.stream(self._clip, (), question, self._params, self._which)).strip())
        return texts

    def likelihoods(self, candidates: Sequence[tuple[str, str, str]]) -> list[float]:
        """Engines have none."""
        raise UserError(
            f"{self._engine.title}: this engine gives no likelihoods of candidates; evaluate the run or the folder that it was"
            " exported from, or for multiple choice use --readout letter"
        )

    def add_counters(self, out: StageDir) -> None:
        now = dict(self._engine.counters)
        for name, value in now.items():
            out.counters[name] = out.counters.get(name, 0) + value - self._counters.get(name, 0)
        self._counters = now


def _exported(name: str, path: Path, frames: int) -> tuple[dict[str, str], int]:
    """Hashes of an exported file, or of the folder of an export, and its frames. frames: 0 for as many as it was exported for."""
    folder = path if path.is_dir() else path.parent
    known = export_info.read(folder) if (folder / export_info.FILE).is_file() else None
    if known and path.name in (known.mmproj, *known.adapters.values()):
        text = next(iter(known.text.values()))
        raise UserError(f"--model {name}: is a part of a model; name the text model: --model {folder / text}")
    files = sorted(path.iterdir()) if path.is_dir() else [path, *path.parent.glob("*mmproj*"), path.parent / export_info.FILE]
    if known and path.is_file():
        files += [folder / file for file in (known.mmproj, *known.adapters.values())]
    hashes = {file.name: sha256(file) for file in files if file.suffix in (".gguf", ".json") and file.is_file()}
    return hashes, frames or (known.frames if known else 0)


def _own_title(name: str) -> str:
    """A title for a model without a given name, from its file's or folder's."""
    return title_of(name) or title_of(f"{name}-model".lstrip("-."))


def _config_near(path: Path, run: Run) -> Path | None:
    """The settings of the run that a model lies in, else of the run that its results go to, else none: the defaults."""
    folders = [*path.resolve().parents[:SEARCHED], run.root]
    return next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)


def _adapter_section(path: Path, section: ModelSection) -> ModelSection:
    """The model section with the base and the LoRA shape of an adapter folder. UserError when it is no plain LoRA adapter."""
    try:
        settings = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base, rank, alpha, targets = (settings[k] for k in ("base_model_name_or_path", "r", "lora_alpha", "target_modules"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}/adapter_config.json: cannot be read as a LoRA adapter ({error!r:.80})") from None
    if settings.get("use_dora") or settings.get("use_rslora") or settings.get("bias", "none") != "none":
        raise UserError(f"{path}: only plain LoRA adapters are opened (no DoRA, no rsLoRA, no biases)")
    if isinstance(targets, str):  # a pattern, as models/adapters.py writes it
        match = re.search(r"\(([\w|]+)\)$", targets)
        names = match[1].split("|") if match else [targets.rsplit(".", 1)[-1]]
    else:
        names = sorted({str(each).rsplit(".", 1)[-1] for each in targets})
    return replace(section, base=str(base), lora_r=int(rank), lora_alpha=int(alpha), lora_targets=tuple(names))


def _is_gguf(path: Path) -> bool:
    """A .gguf file, or the folder of an export."""
    return (path.suffix == ".gguf" and path.is_file()) or (path / export_info.FILE).is_file()


def _gguf_engine(spec: ModelSpec) -> ChatEngine:
    from minirlaif.gguf.runtime.engine import GgufEngine

    return GgufEngine(Path(spec.path), threads=os.cpu_count() or 1)
