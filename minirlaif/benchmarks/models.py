"""Models that a benchmark can ask: those of a run, an adapter folder, a folder or hub id of transformers, a GGUF file.

Whatever a model is, it answers (clip, question) pairs with its most likely words. What lives on a workbench answers in batches
and can also say how likely given texts are; an engine (talk.py) answers one question at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from minirlaif import config
from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.inference.engine import ChatEngine, SamplingParams
from minirlaif.runs.io import sha256
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir

ROLES = {"rlaif": ("ppo", "policy"), "sft": ("sft", "sft"), "base": ("", "base")}  # model of a run -> its stage, its role
SEARCHED = 4  # folders above an adapter that may be its run
# What lies beside the models' folders: a model of such a name would overwrite it, or be overwritten.
TAKEN = (*ROLES, "scores", "table.json", "table.md", "table.html", "radar.svg", "bars.svg")


@dataclass(frozen=True)
class ModelSpec:
    """A model before it is loaded. title: for tables and folders; kind: run, adapter, folder or gguf; path: of what is loaded
    ("" for a run's own); cfg: how it sees and answers; settings and inputs: what its answers depend on, for the manifest."""

    title: str
    kind: str
    path: str
    cfg: Config
    settings: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    which: str = ""  # of a run's models, or of an export that holds several ("": its best one)
    frames: int = 0  # that an engine looks at, 0: as many as it was made for


class BenchmarkModel(Protocol):
    """A loaded model."""

    batch_size: int

    def unreadable(self, videos: Sequence[str]) -> dict[str, str]:
        """Clips that cannot be read, with reasons. UserError when they are more than video.max_unreadable allows."""
        ...

    def answers(self, asked: Sequence[tuple[str, str]]) -> list[str]:
        """The most likely answer to each (clip, question)."""
        ...

    def likelihoods(self, told: Sequence[tuple[str, str, str]]) -> list[float]:
        """Mean log-probability per token of each (clip, question, text), in nats. UserError where a model cannot say."""
        ...

    def counted(self, out: StageDir) -> None:
        """Put looks and prefills since the last call into the stage's counters."""
        ...


def title_of(name: str) -> str:
    """A name as a folder beside other models' folders; "" for one that cannot be, or that is taken by something else."""
    title = re.sub(r"[^\w.-]+", "-", name).strip("-.").lower()
    return "" if title in TAKEN or title.endswith((".partial", ".old")) else title


def resolve_model(name: str, run: Run, given: str | None, changes: Sequence[str]) -> ModelSpec:
    """What `--model NAME` stands for.

    given: `--config`, or None: the config of the run that the model belongs to, or else the defaults; changes: `--set`.
    UserError when there is no such model.
    """
    if name in ROLES:
        return _of_run(name, run, given, changes)
    path = Path(name).expanduser()
    where, colon, which = name.rpartition(":")
    if colon and _is_gguf(Path(where)):
        path = Path(where)
    title = _own_title(path.resolve().name)
    cfg = config.load(given or _config_near(path, run), changes)
    if _is_gguf(path):
        chosen = any(change.startswith("video.frames=") for change in changes) or given is not None
        return _of_export(name, path, which if colon else "", cfg, cfg.video.frames if chosen else 0)
    if path.is_file():
        raise UserError(f"--model {name}: a file that is no .gguf; name one, or a folder")
    if (path / "adapter_config.json").is_file():
        cfg = replace(cfg, model=_adapter_section(path, cfg))
        weights = {file.name: sha256(file) for file in sorted(path.glob("*.safetensors"))}
        told = {**_told(cfg), "adapter": weights}
        return ModelSpec(_own_title(f"{path.resolve().parent.name}-{path.resolve().name}"), "adapter", str(path), cfg, told)
    if path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        cfg = replace(cfg, model=replace(cfg.model, base=name, revision=cfg.model.revision if path.is_dir() else "main"))
        return ModelSpec(title, "folder", name, cfg, _told(cfg))
    known = ", ".join(ROLES)
    raise UserError(
        f"--model {name}: no such file or folder, and none of {known}; name a run's model, an adapter, a folder or a .gguf"
    )


@contextmanager
def load_model(entry: ModelSpec, run: Run) -> Iterator[BenchmarkModel]:
    """Load a model; it is freed at the end of the block."""
    if entry.kind == "gguf":
        engine = _gguf_engine(entry)
        try:
            yield EngineModel(engine, entry.cfg, entry.which, entry.frames)
        finally:
            engine.close()
        return
    from minirlaif.session import open_session

    run.checked = True  # the data named in the config are not what is read here
    with open_session(entry.cfg, run) as session:
        role = "base"
        if entry.kind == "run" and entry.inputs:
            role = ROLES[entry.which][1]
            session.adapters.add(role, 0, run.require(entry.inputs[0]) / "adapter")
        elif entry.kind == "adapter":
            role = "policy"
            session.adapters.add(role, 0, Path(entry.path))
        yield BenchContestant(session, role)


class BenchContestant:
    """A role on a workbench: batches, and likelihoods. Its clips go through the run's feature cache."""

    def __init__(self, session: Any, role: str) -> None:
        self._session, self._role = session, role
        self.batch_size: int = session.cfg.evaluate.batch_size

    def unreadable(self, videos: Sequence[str]) -> dict[str, str]:
        """See Contestant."""
        from minirlaif.video.reader import check_clips

        _, bad = check_clips(videos, self._session.feature_cache, self._session.cfg.video.max_unreadable)
        return {clip.path: clip.reason for clip in bad}

    def answers(self, asked: Sequence[tuple[str, str]]) -> list[str]:
        """See Contestant."""
        from minirlaif.models.generation import sample

        session, length = self._session, self._session.cfg.evaluate.max_new_tokens
        texts = []
        with session.adapters.inference_as(self._role):
            for start in range(0, len(asked), self.batch_size):
                prompts = [
                    session.encode_prompt(session.video_input(video), text)
                    for video, text in asked[start : start + self.batch_size]
                ]
                for (said,) in sample(session.backbone, prompts, temperature=0, max_new_tokens=length):
                    texts.append(session.backbone.renderer.decode(said.ids))
        return texts

    def likelihoods(self, told: Sequence[tuple[str, str, str]]) -> list[float]:
        """See Contestant."""
        from minirlaif.feedback.judge import mean_logprobs

        session = self._session
        with session.adapters.inference_as(self._role):
            rows = [
                session.encode_pair(session.video_input(video), asked, session.answer_ids(text)) for video, asked, text in told
            ]
            return mean_logprobs(session, rows, self.batch_size)

    def counted(self, out: StageDir) -> None:
        """See Contestant."""
        self._session.counted(out)


class EngineModel:
    """An engine of talk.py. It looks once at a clip whose questions come one after the other."""

    batch_size = 1

    def __init__(self, engine: ChatEngine, cfg: Config, which: str = "", frames: int = 0) -> None:
        if which and which not in engine.models:
            raise UserError(f"{engine.title}: holds no model {which}; it has {', '.join(engine.models)}")
        self._engine, self._cfg, self._which, self._frames = engine, cfg, which, frames
        self._clip: Any = None
        self._counted: Mapping[str, int] = {}

    def unreadable(self, videos: Sequence[str]) -> dict[str, str]:
        """See Contestant."""
        from minirlaif.video.reader import ClipReader, check_clips

        with ClipReader(self._cfg.video.timeout_seconds) as reader:
            _, bad = check_clips(videos, reader, self._cfg.video.max_unreadable)
        return {clip.path: clip.reason for clip in bad}

    def answers(self, asked: Sequence[tuple[str, str]]) -> list[str]:
        """See Contestant."""
        options = SamplingParams(max_new_tokens=self._cfg.evaluate.max_new_tokens)
        texts = []
        for video, question in asked:
            if self._clip is None or self._clip.video != video:
                self._clip = self._engine.load_clip(video, self._frames)
            texts.append("".join(self._engine.stream(self._clip, (), question, options, self._which)).strip())
        return texts

    def likelihoods(self, told: Sequence[tuple[str, str, str]]) -> list[float]:
        """Engines have none."""
        raise UserError(
            f"{self._engine.title}: this engine gives no likelihoods of candidates; evaluate the run or the folder that it was"
            " exported from, or for multiple choice use --readout letter"
        )

    def counted(self, out: StageDir) -> None:
        """See Contestant."""
        now = dict(self._engine.counters)
        for name, value in now.items():
            out.counters[name] = out.counters.get(name, 0) + value - self._counted.get(name, 0)
        self._counted = now


def _of_run(name: str, run: Run, given: str | None, changes: Sequence[str]) -> ModelSpec:
    from minirlaif.session import settings_of

    if not (run.root / "config.yaml").is_file():
        raise UserError(f"{run.root}: no such run; name another --run, or with --model a folder, an adapter or a .gguf file")
    cfg = config.load(given or run.root / "config.yaml", changes)
    stage = ROLES[name][0]
    if stage:
        run.require(stage)
    settings = settings_of(cfg, "model", "video")
    del settings["data"], settings["seed"]
    return ModelSpec(name, "run", "", cfg, {**settings, **_seen(cfg)}, (stage,) if stage else (), name)


def _of_export(name: str, path: Path, which: str, cfg: Config, frames: int) -> ModelSpec:
    """An exported file, or the folder of an export. frames: 0 for as many as it was made for."""
    folder = path if path.is_dir() else path.parent
    known = export_info.read(folder) if (folder / export_info.FILE).is_file() else None
    if known and path.name in (known.mmproj, *known.adapters.values()):
        text = next(iter(known.text.values()))
        raise UserError(f"--model {name}: is a part of a model; name the file that talks: --model {folder / text}")
    frames = frames or (known.frames if known else 0)
    files = sorted(path.iterdir()) if path.is_dir() else [path, *path.parent.glob("*mmproj*"), path.parent / export_info.FILE]
    if known and path.is_file():
        files += [folder / file for file in (known.mmproj, *known.adapters.values())]
    hashes = {file.name: sha256(file) for file in files if file.suffix in (".gguf", ".json") and file.is_file()}
    settings = {"model": {"files": hashes, "which": which}, "frames": frames, "max_new_tokens": cfg.evaluate.max_new_tokens}
    title = f"{path.resolve().name}-{which}" if which else path.resolve().name
    return ModelSpec(_own_title(title), "gguf", str(path), cfg, settings, which=which, frames=frames)


def _own_title(name: str) -> str:
    """A title for a model that nobody named, from what its file or folder is called."""
    return title_of(name) or title_of(f"{name}-model".lstrip("-."))


def _told(cfg: Config) -> dict[str, Any]:
    from minirlaif.session import settings_of

    settings = settings_of(cfg, "model", "video")
    return {"model": settings["model"], **_seen(cfg)}


def _seen(cfg: Config) -> dict[str, Any]:
    """How clips are seen and how long answers may be."""
    return {"video": config.section(cfg, "video"), "max_new_tokens": cfg.evaluate.max_new_tokens}


def _config_near(path: Path, run: Run) -> Path | None:
    """The settings of the run that a model lies in, else of the run that its results go to, else none: the defaults."""
    folders = [*path.resolve().parents[:SEARCHED], run.root]
    return next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)


def _adapter_section(path: Path, cfg: Config) -> Any:
    """The model section that an adapter folder asks for. UserError when it is no plain LoRA adapter."""
    try:
        told = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base, rank, alpha, targets = (told[k] for k in ("base_model_name_or_path", "r", "lora_alpha", "target_modules"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}/adapter_config.json: cannot be read as a LoRA adapter ({error!r:.80})") from None
    if told.get("use_dora") or told.get("use_rslora") or told.get("bias", "none") != "none":
        raise UserError(f"{path}: only plain LoRA adapters are opened (no DoRA, no rsLoRA, no biases)")
    if isinstance(targets, str):  # a pattern, as roles.py writes it
        match = re.search(r"\(([\w|]+)\)$", targets)
        names = match[1].split("|") if match else [targets.rsplit(".", 1)[-1]]
    else:
        names = sorted({str(each).rsplit(".", 1)[-1] for each in targets})
    return replace(cfg.model, base=str(base), lora_r=int(rank), lora_alpha=int(alpha), lora_targets=tuple(names))


def _is_gguf(path: Path) -> bool:
    """A .gguf file, or the folder of an export."""
    return (path.suffix == ".gguf" and path.is_file()) or (path / export_info.FILE).is_file()


def _gguf_engine(entry: ModelSpec) -> ChatEngine:
    try:
        from minirlaif.gguf.runtime.engine import GgufEngine  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UserError(f"{entry.path}: this build has no GGUF runtime") from None
    engine: ChatEngine = GgufEngine(Path(entry.path), threads=os.cpu_count() or 1)
    return engine
