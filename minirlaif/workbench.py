"""What every stage works with: one open backbone, its roles, the clips' features, and prompts made of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minirlaif.artifacts import Run, StageDir
from minirlaif.backbone import base_hash, open_backbone
from minirlaif.chat import Shown
from minirlaif.config import Config, section
from minirlaif.data import load_preferences, load_samples
from minirlaif.features import FeatureStore
from minirlaif.frames import FramePlan, FrameSize, segment_spans, uniform_plan
from minirlaif.records import Preference, Sample, UserError
from minirlaif.roles import Roles
from minirlaif.sampling import Asked
from minirlaif.scoring import Row
from minirlaif.video import ClipInfo, ClipReader, check_clips

if TYPE_CHECKING:
    from minirlaif.families.common import Backbone


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
    """An open backbone with roles and features. Built by `open_workbench`."""

    def __init__(self, cfg: Config, backbone: Backbone, store: FeatureStore, reader: ClipReader) -> None:
        self.cfg, self.backbone, self.store, self.reader = cfg, backbone, store, reader
        self.roles = Roles(backbone, cfg.model)
        self.counters: dict[str, int] = {"prefilled_tokens": 0}

    def whole(self, video: str) -> View:
        """The clip as the policy sees it: frames spread over its whole length."""
        ((plan, features),) = self.store.get(video, self._whole_plan)
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

    def strip(self, video: str) -> bytes:
        """JPEG of the whole-clip frames side by side."""
        return self.store.strip(video, self._whole_plan(self.store.info(video))[0])

    def prompt(self, view: View | None, question: str, context: str = "") -> tuple[int, ...]:
        """Ids of a prompt about a view (None: text only)."""
        return self.backbone.renderer.prompt(view.shown if view else None, question, context)

    def asked(self, view: View | None, question: str, context: str = "") -> Asked:
        """A prompt for the sampler."""
        ids = self.prompt(view, question, context)
        self.counters["prefilled_tokens"] += len(ids)
        return Asked(ids, _features(view))

    def row(self, view: View | None, question: str, answer: Sequence[int], context: str = "") -> Row:
        """A prompt with an answer, for the scorer."""
        return Row(self.prompt(view, question, context), tuple(answer), _features(view))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with its end."""
        return self.backbone.renderer.answer(text)

    def counted(self, out: StageDir) -> None:
        """Put the looks counted so far into the stage's counters (called before a state is committed, and at the end)."""
        for name, value in {**self.store.counters, **self.counters}.items():
            out.counters[name] = out.counters.get(name, 0) + value
        self.store.counters = dict.fromkeys(self.store.counters, 0)
        self.counters = dict.fromkeys(self.counters, 0)

    def _whole_plan(self, info: ClipInfo) -> list[FramePlan]:
        return [uniform_plan(info.seconds, self.cfg.video.frames)]

    def _all_plans(self, info: ClipInfo) -> list[FramePlan]:
        spans = segment_spans(info.seconds, self.cfg.video.segment_seconds, self.cfg.video.max_segments)
        dense = [uniform_plan(info.seconds, self.cfg.video.segment_frames, *span) for span in spans]
        return [*self._whole_plan(info), *dense]


def _features(view: View | None) -> Tensor | None:
    """They stay in host memory until the rows of a micro-batch are embedded: a whole iteration's would fill a GPU."""
    return None if view is None else view.features


@contextmanager
def open_workbench(cfg: Config, run: Run) -> Iterator[Workbench]:
    """Load the backbone and open the run's feature cache; closes the cache and the reader."""
    backbone = open_backbone(cfg.model)
    with ClipReader(cfg.video.timeout_seconds) as reader:
        store = FeatureStore(run.root / "cache" / "features.sqlite", backbone, reader, cfg.video)
        try:
            yield Workbench(cfg, backbone, store, reader)
        finally:
            store.close()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def settings_of(cfg: Config, *names: str) -> dict[str, Any]:
    """What a stage's result depends on, for its manifest: whole sections, the seed, and the base's weights by hash, so that a
    base trained again under the same name is noticed."""
    settings: dict[str, Any] = {"seed": cfg.seed} | {name: section(cfg, name) for name in names}
    settings["model"]["weights"] = base_hash(cfg.model)
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


def check_data(bench: Workbench) -> None:
    """Look at the user's own rows and clips that later stages read, so that a bad one is named before anything trains."""
    data = bench.cfg.data
    if data.world:
        return
    for source in (*data.prompts, *data.dev, *data.test):
        readable(bench, _whole_paths(load_samples(source, data.videos, need_answers=False)))
    for source in data.preferences:
        read_preferences(source, data.videos)


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


def readable(bench: Workbench, samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose clips can be read; refuses when too many cannot (video.max_unreadable)."""
    known = sorted({sample.video for sample in samples})
    infos, bad = check_clips(known, bench.store, bench.cfg.video.max_unreadable)
    for clip in bad:
        print(f"left out: {clip}", flush=True)
    good = {info.path for info in infos}
    return [sample for sample in samples if sample.video in good]
