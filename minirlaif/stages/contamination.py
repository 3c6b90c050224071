"""Whether the clips of the test were new: compared by content with those that earlier stages read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from minirlaif.data.dataset import fingerprint, load_preferences, load_samples
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession
from minirlaif.stages.registry import first_reader
from minirlaif.types import Sample
from minirlaif.video.reader import UnreadableClip

PARTS = ("sft", "prompts", "dev", "preferences")  # of the data, that stages before the test read


def seen_before(session: ModelSession, run: Run, tests: Sequence[Sample]) -> int | None:
    """How many clips of the test are clips that an earlier stage read, byte for byte: a copy under another name counts too.

    None when that can no longer be known, because a file of rows or a clip is gone, or was changed since.
    """
    try:
        earlier = {video for part in PARTS for video in _clips(run, first_reader(part), part)}
    except UserError:
        return None
    ids = set()
    for video in sorted(earlier):
        try:
            ids.add(session.feature_cache.info(video).id)
        except UnreadableClip:  # so it was left out then (video.max_unreadable)
            continue
    return sum(session.feature_cache.info(video).id in ids for video in {row.video for row in tests})


def _clips(run: Run, stage: str, part: str) -> Iterator[str]:
    """Clips of the rows that a finished stage read, as its manifest names them. UserError when the rows are no longer those."""
    manifest = run.manifest(stage)
    if manifest is None:
        raise UserError(f"{run.dir(stage)}: does not exist")
    data = manifest["config"]["data"]
    if data["world"] and part != "preferences":
        rows = load_samples(str(run.require("world") / f"{part}.jsonl"), need_answers=False)
        yield from (os.path.abspath(row.video) for row in rows)
    for source in data[part]:
        if fingerprint(source, data["videos"]) != data["sha256"][source]:
            raise UserError(f"{source}: has changed since {stage} read it")
        if part == "preferences":
            yield from (os.path.abspath(pair.video) for pair in load_preferences(source, data["videos"]))
        else:
            yield from (os.path.abspath(row.video) for row in load_samples(source, data["videos"], need_answers=False))
