"""Opening a workbench: the base (and the bases that PPO's other roles have of their own), the feature cache, and a look at all
data that is going to be read, before anything trains."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from minirlaif.config import Config
from minirlaif.models.backbones.base import load_tokenizer
from minirlaif.models.feature_cache import FeatureStore, resting_eyes
from minirlaif.models.loading import base_folder, model_type, open_backbone
from minirlaif.models.renderer import Shown
from minirlaif.runs.io import disk_is_full
from minirlaif.runs.run import Run
from minirlaif.session import Workbench, critic_config, read_preferences, read_samples, readable
from minirlaif.types import Sample, UserError
from minirlaif.video.frame_sampling import FrameSize
from minirlaif.video.reader import ClipReader

READS = {  # parts of the data, by stage
    "sft": ("sft",),
    "feedback": ("prompts", "dev"),
    "reward": ("preferences",),
    "ppo": ("prompts", "dev"),
    "evaluate": ("test",),
}


@contextmanager
def open_workbench(cfg: Config, run: Run, for_ppo: bool = False) -> Iterator[Workbench]:
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

        def opened(own: Config) -> Workbench:
            backbone = open_backbone(own.model)
            store = FeatureStore(cache, backbone, reader, own.video)
            stack.callback(store.close)
            return Workbench(own, backbone, store, reader)

        bench = opened(cfg)
        _check(bench, ahead)
        run.checked = True
        if for_ppo and cfg.reference.kind == "model":
            bench.reference = _reference_bench(bench)
        if for_ppo and cfg.reward.base:
            bench.critic = opened(critic_config(cfg))
            if cfg.reward.rest == "cpu":
                bench.critic.roles.park("base")
        yield bench


@contextmanager
def _readable_cache(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Its subclasses are about the disk, locks and our own statements; the class itself is about the file's content.
        if type(error) is not sqlite3.DatabaseError or disk_is_full(error, path.parent):
            raise
        raise UserError(f"{path}: not a feature cache ({error}); delete it, it is made again from the clips") from None


def _reference_bench(bench: Workbench) -> Workbench:
    """The same base loaded a second time. It sees what the first one sees, so its own eyes never leave host memory."""
    backbone = open_backbone(bench.cfg.model)
    resting_eyes(backbone)
    reference = Workbench(bench.cfg, backbone, bench.store, bench.reader)
    if bench.cfg.reference.rest == "cpu":
        reference.roles.park("base")
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
