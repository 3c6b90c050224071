"""What every stage works with: an open backbone, its roles, the clips' features, prompts made of them, and rows of data.

opening.py opens it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from minirlaif import distributed
from minirlaif.config import Config, section
from minirlaif.data.dataset import fingerprint, load_preferences, load_samples
from minirlaif.models.adapters import Roles
from minirlaif.models.feature_cache import FeatureStore
from minirlaif.models.generation import Asked
from minirlaif.models.loading import base_hash
from minirlaif.models.logprobs import Row
from minirlaif.models.renderer import Shown
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.types import Preference, Sample, UserError
from minirlaif.video.frame_sampling import FramePlan, FrameSize, segment_spans, uniform_plan
from minirlaif.video.reader import ClipInfo, ClipReader, check_clips

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import Backbone

Record = TypeVar("Record", Sample, Preference)
# Switches younger than some finished runs: section, field, the value that changes nothing. Off, they leave no trace in a
# manifest, so those runs count as what they are: made with the same settings.
OFF = (("sft", "curriculum", True), ("feedback", "limit", 0))


@dataclass(frozen=True)
class View:
    """What the model sees of a clip: frame times, the clip's length in seconds, the frames' pixels, and features_GHWE."""

    times: tuple[float, ...]
    seconds: float
    size: FrameSize
    features: Tensor

    @property
    def shown(self) -> Shown:
        """The part of it that prompts are rendered from."""
        return Shown(self.times, self.seconds, self.features.shape[1] * self.features.shape[2])


class Workbench:
    """An open backbone with roles and features. Built by `open_workbench`.

    reference and critic are the benches of PPO's reference and of its reward and value models: this one, unless
    `open_workbench` was asked for those that have a base of their own.
    """

    def __init__(self, cfg: Config, backbone: Backbone, store: FeatureStore, reader: ClipReader) -> None:
        self.cfg, self.backbone, self.store, self.reader = cfg, backbone, store, reader
        self.roles = Roles(backbone, cfg.model)
        self.counters: dict[str, int] = {"prefilled_tokens": 0}
        self.reference = self.critic = self

    def whole(self, video: str) -> View:
        """The clip as the policy sees it: frames spread over its whole length."""
        ((plan, features),) = self.store.get(video, lambda info: [self.whole_plan(info)])
        info = self.store.info(video)
        return View(plan.times, info.seconds, self.store.size(info), features)

    def segments(self, video: str) -> list[tuple[tuple[float, float], View]]:
        """The clip cut into segments, each with frames of its own (dense), for describing."""
        info = self.store.info(video)
        spans = segment_spans(info.seconds, self.cfg.video.segment_seconds, self.cfg.video.max_segments)
        parts = self.store.get(video, self._all_plans)[1:]
        return [
            (span, View(plan.times, span[1] - span[0], self.store.size(info), features))
            for span, (plan, features) in zip(spans, parts, strict=True)
        ]

    def prepare(self, video: str) -> None:
        """Decode and encode everything that will be asked of a clip, in one pass over the file."""
        self.store.get(video, self._all_plans)

    def look(self, videos: Iterable[str]) -> None:
        """Before several processes need the same clips: each encodes a share of them for all."""
        if distributed.count() > 1:
            for video in distributed.share(list(dict.fromkeys(videos))):
                self.whole(video)
            distributed.wait()

    def strip(self, video: str) -> bytes:
        """JPEG of the whole-clip frames side by side."""
        return self.store.strip(video, self.whole_plan(self.store.info(video)))

    def prompt(self, view: View | None, question: str, context: str = "") -> tuple[int, ...]:
        """Ids of a prompt about a view (None: text only)."""
        return self.backbone.renderer.prompt(view.shown if view else None, question, context)

    def asked(self, view: View | None, question: str, context: str = "") -> Asked:
        """A prompt for the sampler."""
        ids = self.prompt(view, question, context)
        self.counters["prefilled_tokens"] += len(ids)
        return Asked(ids, view.features if view else None)

    def row(self, view: View | None, question: str, answer: Sequence[int], context: str = "") -> Row:
        """A prompt with an answer, for the scorer."""
        return Row(self.prompt(view, question, context), tuple(answer), view.features if view else None)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with its end."""
        return self.backbone.renderer.answer(text)

    def counted(self, out: StageDir) -> None:
        """Put everyone's looks so far into the stage's counters (called before a state is committed, and at the end)."""
        benches = (self, self.reference, self.critic)
        for counters in {id(c): c for bench in benches for c in (bench.store.counters, bench.counters)}.values():
            for name, value in distributed.total(counters).items():
                out.counters[name] = out.counters.get(name, 0) + value
                counters[name] = 0

    def whole_plan(self, info: ClipInfo) -> FramePlan:
        """Which frames `whole` shows of a clip."""
        return uniform_plan(info.seconds, self.cfg.video.frames)

    def _all_plans(self, info: ClipInfo) -> list[FramePlan]:
        spans = segment_spans(info.seconds, self.cfg.video.segment_seconds, self.cfg.video.max_segments)
        dense = [uniform_plan(info.seconds, self.cfg.video.segment_frames, *span) for span in spans]
        return [self.whole_plan(info), *dense]


def critic_config(cfg: Config) -> Config:
    """The config as reward and value model see it: on the base that is theirs."""
    if not cfg.reward.base:
        return cfg
    return replace(cfg, model=replace(cfg.model, base=cfg.reward.base, revision="main"))


def settings_of(cfg: Config, *names: str, sources: Sequence[str] = ()) -> dict[str, Any]:
    """What a stage's result depends on, for its manifest: whole sections, the seed, the base by hash (so that one trained again
    under the same name is noticed), and the parts of the data that it reads, each local file by hash."""
    settings: dict[str, Any] = {"seed": cfg.seed} | {name: section(cfg, name) for name in names}
    settings["model"]["files"] = base_hash(cfg.model)
    for name, field, off in OFF:
        if name in names and settings[name][field] == off:
            del settings[name][field]
    if "reward" in names:
        del settings["reward"]["rest"]  # where weights rest changes no number
        if cfg.reward.base:
            settings["reward"]["files"] = base_hash(critic_config(cfg).model)
    data = section(cfg, "data")
    named = {part: data[part] for part in sources}
    hashes = {source: fingerprint(source, cfg.data.videos) for part in sources for source in data[part]}
    settings["data"] = {"world": data["world"], "videos": data["videos"], **named, "sha256": hashes}
    if "preferences" in sources and cfg.data.preference_limit:
        settings["data"]["preference_limit"] = cfg.data.preference_limit
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


def readable(bench: Workbench, samples: Sequence[Record]) -> list[Record]:
    """Rows whose clips can be read; refuses when too many cannot (video.max_unreadable)."""
    known = sorted({sample.video for sample in samples})
    if distributed.count() > 1:  # everyone looks at a share first; the cache then tells all of it to everyone
        check_clips(distributed.share(known), bench.store, 1.0)
        distributed.wait()
    infos, bad = check_clips(known, bench.store, bench.cfg.video.max_unreadable)
    for clip in bad:
        print(f"left out: {clip}", flush=True)
    good = {info.path for info in infos}
    return [sample for sample in samples if sample.video in good]
