"""What every stage works with: an open backbone, its roles, the clips' features, prompts made of them, and rows of data."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from minirlaif import distributed
from minirlaif.config import Config, recorded
from minirlaif.data.dataset import fingerprint, load_preferences, load_samples
from minirlaif.errors import UserError
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.feature_cache import VisionFeatureCache, offloaded_vision
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import open_backbone
from minirlaif.models.logprobs import EncodedPair
from minirlaif.models.model_config import base_folder, base_hash, model_type
from minirlaif.models.pretrained import load_tokenizer
from minirlaif.models.renderer import FrameLayout
from minirlaif.runs.io import disk_is_full
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.stages.registry import STAGES
from minirlaif.types import Preference, Sample
from minirlaif.video.frame_sampling import FramePlan, FrameSize, segment_spans, uniform_plan
from minirlaif.video.reader import ClipInfo, ClipReader, check_clips

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import VisionLanguageModel

Record = TypeVar("Record", Sample, Preference)


@dataclass(frozen=True)
class VideoInput:
    """What the model sees of a clip: frame times, the clip's length in seconds, the frames' pixels, and features_GHWE."""

    times: tuple[float, ...]
    seconds: float
    size: FrameSize
    features: Tensor

    @property
    def shown(self) -> FrameLayout:
        """The part of it that prompts are rendered from."""
        return FrameLayout(self.times, self.seconds, self.features.shape[1] * self.features.shape[2])


class ModelSession:
    """An open backbone with roles and features. Built by `open_session`.

    reference and critic are the benches of PPO's reference and of its reward and value models: this one, unless
    `open_session` was asked for those that have a base of their own.
    """

    def __init__(self, cfg: Config, backbone: VisionLanguageModel, store: VisionFeatureCache, reader: ClipReader) -> None:
        self.cfg, self.backbone, self.feature_cache, self.reader = cfg, backbone, store, reader
        self.adapters = AdapterSet(backbone, cfg.model)
        self.counters: dict[str, int] = {"prefilled_tokens": 0}
        self.reference = self.critic = self

    def video_input(self, video: str) -> VideoInput:
        """The clip as the policy sees it: frames spread over its whole length."""
        ((plan, features),) = self.feature_cache.get(video, lambda info: [self.video_plan(info)])
        info = self.feature_cache.info(video)
        return VideoInput(plan.times, info.seconds, self.feature_cache.size(info), features)

    def segment_inputs(self, video: str) -> list[tuple[tuple[float, float], VideoInput]]:
        """The clip cut into segments, each with frames of its own (dense), for describing."""
        info = self.feature_cache.info(video)
        spans = segment_spans(info.seconds, self.cfg.video.segment_seconds, self.cfg.video.max_segments)
        parts = self.feature_cache.get(video, self._all_plans)[1:]
        return [
            (span, VideoInput(plan.times, span[1] - span[0], self.feature_cache.size(info), features))
            for span, (plan, features) in zip(spans, parts, strict=True)
        ]

    def encode_all(self, video: str) -> None:
        """Decode and encode everything that will be asked of a clip, in one pass over the file."""
        self.feature_cache.get(video, self._all_plans)

    def encode_shared(self, videos: Iterable[str]) -> None:
        """Before several processes need the same clips: each encodes a share of them for all."""
        if distributed.count() > 1:
            for video in distributed.share(list(dict.fromkeys(videos))):
                self.video_input(video)
            distributed.wait()

    def strip(self, video: str) -> bytes:
        """JPEG of the whole-clip frames side by side."""
        return self.feature_cache.strip(video, self.video_plan(self.feature_cache.info(video)))

    def prompt(self, view: VideoInput | None, question: str, context: str = "") -> tuple[int, ...]:
        """Ids of a prompt about a view (None: text only)."""
        return self.backbone.renderer.prompt(view.shown if view else None, question, context)

    def encode_prompt(self, view: VideoInput | None, question: str, context: str = "") -> EncodedPrompt:
        """A prompt for the sampler."""
        ids = self.prompt(view, question, context)
        self.counters["prefilled_tokens"] += len(ids)
        return EncodedPrompt(ids, view.features if view else None)

    def encode_pair(self, view: VideoInput | None, question: str, answer: Sequence[int], context: str = "") -> EncodedPair:
        """A prompt with an answer, for the scorer."""
        return EncodedPair(self.prompt(view, question, context), tuple(answer), view.features if view else None)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with its end."""
        return self.backbone.renderer.answer(text)

    def counted(self, out: StageDir) -> None:
        """Put everyone's looks so far into the stage's counters (called before a state is committed, and at the end)."""
        sessions = (self, self.reference, self.critic)
        for counters in {id(c): c for session in sessions for c in (session.feature_cache.counters, session.counters)}.values():
            for name, value in distributed.total(counters).items():
                out.counters[name] = out.counters.get(name, 0) + value
                counters[name] = 0

    def video_plan(self, info: ClipInfo) -> FramePlan:
        """Which frames `whole` shows of a clip."""
        return uniform_plan(info.seconds, self.cfg.video.frames)

    def _all_plans(self, info: ClipInfo) -> list[FramePlan]:
        spans = segment_spans(info.seconds, self.cfg.video.segment_seconds, self.cfg.video.max_segments)
        dense = [uniform_plan(info.seconds, self.cfg.video.segment_frames, *span) for span in spans]
        return [self.video_plan(info), *dense]


def critic_config(cfg: Config) -> Config:
    """The config as reward and value model see it: on the base that is theirs."""
    if not cfg.reward.base:
        return cfg
    return replace(cfg, model=replace(cfg.model, base=cfg.reward.base, revision="main"))


def settings_of(cfg: Config, *names: str, sources: Sequence[str] = ()) -> dict[str, Any]:
    """What a stage's result depends on, for its manifest: whole sections, the seed, the base by hash (so that one trained again
    under the same name is noticed), and the parts of the data that it reads, each local file by hash."""
    settings: dict[str, Any] = {"seed": cfg.seed} | {name: recorded(cfg, name) for name in names}
    settings["model"]["files"] = base_hash(cfg.model)
    if "reward" in names and cfg.reward.base:
        settings["reward"]["files"] = base_hash(critic_config(cfg).model)
    data = recorded(cfg, "data")
    named = {part: data[part] for part in sources}
    hashes = {source: fingerprint(source, cfg.data.videos) for part in sources for source in data[part]}
    settings["data"] = {"world": data["world"], "videos": data["videos"], **named, "sha256": hashes}
    if "preferences" in sources and "preference_limit" in data:
        settings["data"]["preference_limit"] = data["preference_limit"]
    return settings


def read_samples(cfg: Config, run: Run, part: str, need_answers: bool) -> list[Sample]:
    """The rows of a part of the data: "sft", "prompts", "dev" or "test"; from the tiny world where the config asks for it."""
    if cfg.data.world:
        return _whole_paths(load_samples(str(run.require("world") / f"{part}.jsonl"), need_answers=need_answers))
    sources = {"sft": cfg.data.sft, "prompts": cfg.data.prompts, "dev": cfg.data.dev, "test": cfg.data.test}[part]
    if not sources:
        raise UserError(f"data.{part}: names no file; set it to the files to read (or data.world to tiny)")
    taken: set[str] = set()
    rows: list[Sample] = []
    for number, source in enumerate(sources, start=1):  # two files may both count their rows from 1
        file = load_samples(source, cfg.data.videos, need_answers)
        rows += [replace(sample, id=f"{sample.id}@{number}") if sample.id in taken else sample for sample in file]
        taken |= {sample.id for sample in rows}
    return _whole_paths(rows)


def read_preferences(source: str, videos: str = "") -> list[Preference]:
    """Rows of a preference file, with whole clip paths."""
    return [replace(row, video=os.path.abspath(row.video)) for row in load_preferences(source, videos)]


def stored(run: Run, video: str) -> str:
    """How a stage's files name a clip: seen from the stage's folder when it lies in the run, which can then be moved."""
    root, path = Path(os.path.abspath(run.root)), Path(os.path.abspath(video))
    return Path("..", path.relative_to(root)).as_posix() if path.is_relative_to(root) else str(path)


def located(run: Run, name: str) -> str:
    """The whole path behind `stored`."""
    return os.path.abspath(run.root / "stage" / name)


def _whole_paths(samples: Sequence[Sample]) -> list[Sample]:
    """A clip has one name everywhere in the process, whatever folder the command was started in."""
    return [replace(sample, video=os.path.abspath(sample.video)) for sample in samples]


def readable(session: ModelSession, samples: Sequence[Record]) -> list[Record]:
    """Rows whose clips can be read; refuses when too many cannot (video.max_unreadable)."""
    known = sorted({sample.video for sample in samples})
    if distributed.count() > 1:  # everyone looks at a share first; the cache then tells all of it to everyone
        check_clips(distributed.share(known), session.feature_cache, 1.0)
        distributed.wait()
    infos, bad = check_clips(known, session.feature_cache, session.cfg.video.max_unreadable)
    for clip in bad:
        print(f"left out: {clip}", flush=True)
    good = {info.path for info in infos}
    return [sample for sample in samples if sample.video in good]


@contextmanager
def open_session(cfg: Config, run: Run, for_ppo: bool = False) -> Iterator[ModelSession]:
    """Load the backbone and open the run's feature cache; closes the cache and the reader.

    The first one that a command opens looks at everything that this stage and the ones after it will read. UserError for
    whatever is wrong with it.

    for_ppo: the reference and the reward base as well, where the config gives them weights of their own.
    """
    check_tokenizers(cfg)
    ahead = {} if run.checked else _rows_ahead(cfg, run)  # rows before weights: a typing error is found at once
    cache = run.root / "cache" / "features.sqlite"
    with ExitStack() as stack:
        reader = stack.enter_context(ClipReader(cfg.video.timeout_seconds))
        stack.enter_context(_readable_cache(cache))
        if torch.cuda.is_available():
            stack.callback(torch.cuda.empty_cache)

        def opened(own: Config) -> ModelSession:
            backbone = open_backbone(own.model)
            store = VisionFeatureCache(cache, backbone, reader, own.video)
            stack.callback(store.close)
            return ModelSession(own, backbone, store, reader)

        session = opened(cfg)
        _check(session, ahead)
        run.checked = True
        if for_ppo and cfg.reference.kind == "model":
            session.reference = _reference_bench(session)
        if for_ppo and cfg.reward.base:
            session.critic = opened(critic_config(cfg))
            if cfg.reward.rest == "cpu":
                session.critic.adapters.enable_offload("base")
        yield session


@contextmanager
def _readable_cache(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Its subclasses are about the disk, locks and our own statements; the class itself is about the file's content.
        if type(error) is not sqlite3.DatabaseError or disk_is_full(error, path.parent):
            raise
        raise UserError(f"{path}: not a feature cache ({error}); delete it, it is made again from the clips") from None


def _reference_bench(session: ModelSession) -> ModelSession:
    """The same base loaded a second time. It sees what the first one sees, so its own eyes never leave host memory."""
    backbone = open_backbone(session.cfg.model)
    offloaded_vision(backbone)
    reference = ModelSession(session.cfg, backbone, session.feature_cache, session.reader)
    if session.cfg.reference.rest == "cpu":
        reference.adapters.enable_offload("base")
    return reference


def check_tokenizers(cfg: Config) -> None:
    """The value model stands beside the policy token by token, and the reward model reads the policy's ids.

    Raises:
        UserError: model.base and reward.base number their tokens differently, or reward.base is no base at all.
    """
    if not cfg.reward.base:
        return
    sections = [cfg.model, critic_config(cfg).model]
    try:
        model_type(sections[1])
    except UserError as error:
        raise UserError(str(error).replace("model.base", "reward.base", 1)) from None
    policy, critic = (load_tokenizer(base_folder(section), section.revision) for section in sections)
    if policy.get_vocab() != critic.get_vocab():
        raise UserError(
            f"reward.base {cfg.reward.base}: its tokenizer has other tokens than that of model.base {cfg.model.base}; name a"
            " reward base of the same family, or leave reward.base empty"
        )


def _rows_ahead(cfg: Config, run: Run) -> dict[str, list[Any]]:
    """The rows that the first unfinished stage and all later ones read, by part of the data; of the tiny world only those with a
    limit. A part that names no source is left out: whether a stage can do without it is the stage's to say."""
    stages = [stage for stage in STAGES.values() if stage.reads]
    first = next((i for i, stage in enumerate(stages) if run.manifest(stage.name) is None), len(stages))
    found: dict[str, list[Any]] = {}
    for part in dict.fromkeys(part for stage in stages[first:] for part in stage.reads):
        if part == "preferences":
            found[part] = [row for source in cfg.data.preferences for row in read_preferences(source, cfg.data.videos)]
        elif getattr(cfg.data, part) or (cfg.data.world and part == "sft"):
            found[part] = read_samples(cfg, run, part, need_answers=part == "sft")
    return found


def _check(session: ModelSession, ahead: Mapping[str, list[Any]]) -> None:
    """Open the clips of rows and measure what has a limit. Test clips stay closed until `evaluate`."""
    for part, rows in ahead.items():
        if part != "test" and rows:
            good = readable(session, rows)
            if part == "sft":
                _check_lengths(session, good)


def _check_lengths(session: ModelSession, samples: Sequence[Sample]) -> None:
    """UserError naming the first conversation that is longer than sft.max_length."""
    vectors: dict[FrameSize, int] = {}  # per frame: one clip of each size tells it for all
    problems = []
    for sample in samples:
        info = session.feature_cache.info(sample.video)
        size = session.feature_cache.size(info)
        if size not in vectors:
            session.encode_shared([sample.video])
            vectors[size] = session.video_input(sample.video).shown.vectors
        shown = FrameLayout(session.video_plan(info).times, info.seconds, vectors[size])
        try:
            session.backbone.renderer.conversation(shown, sample.turns, "", session.cfg.sft.max_length)
        except UserError as error:
            problems.append(f"{sample.where}: {error}")
    if problems:
        more = f" ({len(problems) - 1} more rows are too long)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
