"""What every stage works with: one open backbone, its roles, the clips' features, and prompts made of them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from minirlaif import parallel
from minirlaif.artifacts import Run
from minirlaif.backbone import base_hash, open_backbone
from minirlaif.chat import Shown
from minirlaif.config import Config, section
from minirlaif.data import fingerprint, load_preferences, load_samples
from minirlaif.disk import disk_is_full
from minirlaif.features import FeatureStore
from minirlaif.frames import FramePlan, FrameSize, segment_spans, uniform_plan
from minirlaif.records import Preference, Sample, UserError
from minirlaif.roles import Roles
from minirlaif.sampling import Asked
from minirlaif.scoring import Row
from minirlaif.stagedir import StageDir
from minirlaif.video import ClipInfo, ClipReader, check_clips

if TYPE_CHECKING:
    from minirlaif.families.common import Backbone

Record = TypeVar("Record", Sample, Preference)
READS = {  # parts of the data, by stage
    "sft": ("sft",),
    "feedback": ("prompts", "dev"),
    "reward": ("preferences",),
    "ppo": ("prompts", "dev"),
    "evaluate": ("test",),
}


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
        if parallel.count() > 1:
            for video in parallel.share(list(dict.fromkeys(videos))):
                self.whole(video)
            parallel.wait()

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
        return Asked(ids, self._placed(view))

    def row(self, view: View | None, question: str, answer: Sequence[int], context: str = "") -> Row:
        """A prompt with an answer, for the scorer."""
        return Row(self.prompt(view, question, context), tuple(answer), self._placed(view))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with its end."""
        return self.backbone.renderer.answer(text)

    def counted(self, out: StageDir) -> None:
        """Put everyone's looks so far into the stage's counters (called before a state is committed, and at the end)."""
        for name, value in parallel.total({**self.store.counters, **self.counters}).items():
            out.counters[name] = out.counters.get(name, 0) + value
        self.store.counters = dict.fromkeys(self.store.counters, 0)
        self.counters = dict.fromkeys(self.counters, 0)

    def _placed(self, view: View | None) -> Tensor | None:
        return None if view is None else view.features.to(self.backbone.device)

    def whole_plan(self, info: ClipInfo) -> FramePlan:
        """Which frames `whole` shows of a clip."""
        return uniform_plan(info.seconds, self.cfg.video.frames)

    def _all_plans(self, info: ClipInfo) -> list[FramePlan]:
        spans = segment_spans(info.seconds, self.cfg.video.segment_seconds, self.cfg.video.max_segments)
        dense = [uniform_plan(info.seconds, self.cfg.video.segment_frames, *span) for span in spans]
        return [self.whole_plan(info), *dense]


@contextmanager
def open_workbench(cfg: Config, run: Run) -> Iterator[Workbench]:
    """Load the backbone and open the run's feature cache; closes the cache and the reader.

    The first one that a command opens looks at everything that this stage and the ones after it will read. UserError for
    whatever is wrong with it.
    """
    ahead = {} if run.checked else _rows_ahead(cfg, run)  # rows before weights: a typing error is found at once
    backbone = open_backbone(cfg.model)
    cache = run.root / "cache" / "features.sqlite"
    with ClipReader(cfg.video.timeout_seconds) as reader, _readable_cache(cache):
        store = FeatureStore(cache, backbone, reader, cfg.video)
        try:
            bench = Workbench(cfg, backbone, store, reader)
            _check(bench, ahead)
            run.checked = True
            yield bench
        finally:
            store.close()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@contextmanager
def _readable_cache(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Its subclasses are about the disk, locks and our own statements; the class itself is about the file's content.
        if type(error) is not sqlite3.DatabaseError or disk_is_full(error, path.parent):
            raise
        raise UserError(f"{path}: not a feature cache ({error}); delete it, it is made again from the clips") from None


def settings_of(cfg: Config, *names: str, sources: Sequence[str] = ()) -> dict[str, Any]:
    """What a stage's result depends on, for its manifest: whole sections, the seed, the base by hash (so that one trained again
    under the same name is noticed), and the parts of the data that it reads, each local file by hash."""
    settings: dict[str, Any] = {"seed": cfg.seed} | {name: section(cfg, name) for name in names}
    settings["model"]["files"] = base_hash(cfg.model)
    data = section(cfg, "data")
    named = {part: data[part] for part in sources}
    hashes = {source: fingerprint(source, cfg.data.videos) for part in sources for source in data[part]}
    settings["data"] = {"world": data["world"], "videos": data["videos"], **named, "sha256": hashes}
    return settings


def _rows_ahead(cfg: Config, run: Run) -> dict[str, list[Any]]:
    """The rows that the first unfinished stage and all later ones read, by part of the data; of the tiny world only those with a
    limit. A part that names no source is left out: whether a stage can do without it is the stage's to say."""
    names = list(READS)
    first = next((i for i, name in enumerate(names) if run.manifest(name) is None), len(names))
    found: dict[str, list[Any]] = {}
    for part in dict.fromkeys(part for name in names[first:] for part in READS[name]):
        if part == "preferences":
            found[part] = [row for source in cfg.data.preferences for row in read_preferences(source, cfg.data.videos)]
        elif getattr(cfg.data, part) or (cfg.data.world and part == "sft"):
            found[part] = read_samples(cfg, run, part, need_answers=part == "sft")
    return found


def _check(bench: Workbench, ahead: Mapping[str, list[Any]]) -> None:
    """Open the clips of rows and measure what has a limit. Test clips stay closed until `evaluate`."""
    for part, rows in ahead.items():
        if part != "test" and rows:
            good = readable(bench, rows)
            if part == "sft":
                _check_lengths(bench, good)


def _check_lengths(bench: Workbench, samples: Sequence[Sample]) -> None:
    """UserError naming the first conversation that is longer than sft.max_length."""
    vectors: dict[FrameSize, int] = {}  # per frame: one clip of each size tells it for all
    problems = []
    for sample in samples:
        info = bench.store.info(sample.video)
        size = bench.store.size(info)
        if size not in vectors:
            bench.look([sample.video])
            vectors[size] = bench.whole(sample.video).shown.vectors
        shown = Shown(bench.whole_plan(info).times, info.seconds, vectors[size])
        try:
            bench.backbone.renderer.conversation(shown, sample.turns, "", bench.cfg.sft.max_length)
        except UserError as error:
            problems.append(f"{sample.where}: {error}")
    if problems:
        more = f" ({len(problems) - 1} more rows are too long)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)


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
    if parallel.count() > 1:  # everyone looks at a share first; the cache then tells all of it to everyone
        check_clips(parallel.share(known), bench.store, 1.0)
        parallel.wait()
    infos, bad = check_clips(known, bench.store, bench.cfg.video.max_unreadable)
    for clip in bad:
        print(f"left out: {clip}", flush=True)
    good = {info.path for info in infos}
    return [sample for sample in samples if sample.video in good]
