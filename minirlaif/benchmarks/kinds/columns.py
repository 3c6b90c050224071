"""Columns that change what a row is about: the times of its part of the clip, and those that no kind may leave unread."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.kinds.base import BenchmarkKind
from minirlaif.data.cells import holds
from minirlaif.data.columns import ANSWERS, FILES, ONE_OPTION, PLACES, QUESTIONS, clip_names, take_part, unused
from minirlaif.data.formats import BadRow
from minirlaif.video.spans import named_span

# The times of a clip's part, in seconds. MSR-VTT's "start time" and "end time" are none: they are of the film that its clips,
# which are cut already, come from. Those of MVBench's accurate_start are inside of start and end.
SPANS = (("start", "end"), ("video_start", "video_end"))
_EVIDENCE = ("start time", "end time", "accurate_start", "accurate_end", "time_reference", "time_stamps", "question_time")
# What a benchmark's own tools note of a row, and what is said of the clip alone.
_NOTES = frozenset(
    (
        "duration length dur len loss loss_mask loss_scale weight weights sample_weight kto_tag kto_label train trainable"
        " training objects images answers response output responses preference is_correct hint label"
    ).split()
)


def check_columns(row: Mapping[str, Any], kind: BenchmarkKind) -> None:
    """BadRow for a column that changes what the row means and that the kind does not read."""
    read = {*kind.uses, *ANSWERS, *PLACES, *QUESTIONS, *(("bound", *itertools.chain(*SPANS)) if kind.has_spans else ())}
    names = [name for name in unused(row) if name not in (*read, *_EVIDENCE) and name.lower() not in _NOTES]
    # A length, or a class of lengths, is only said of the clip; behind a start alone it may be the part's.
    has_start_alone = any(holds(row.get(start)) and not holds(row.get(end)) for start, end in SPANS)
    if isinstance(row.get("duration"), list | tuple) or ("duration" in row and has_start_alone):
        names.append("duration")
    if "options" in kind.uses:
        names = [name for name in names if not ONE_OPTION.fullmatch(name)]
    if names:
        raise BadRow(
            f"`{names[0]}` changes what a row is about, and {kind.name} does not read it; remove it if it does not matter"
        )
    files = {name: [Path(clip).stem for clip in clip_names(row[name], name)] for name in FILES if holds(row.get(name))}
    if len({tuple(stems) for stems in files.values()}) > 1:
        raise BadRow(f"two columns may be the clip, `{list(files)[0]}` and `{list(files)[-1]}`: remove one of them")


def span_of(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """The part of the clip that a row is about: its start and end in seconds, (0, None) for the whole clip. BadRow for a part
    that cannot be, and for a row that has two."""
    if not isinstance(row.get("bound", True), bool):
        raise BadRow("`bound` must be true or false: whether `start` and `end` restrict the clip")
    columns = {name: row[name] for pair in SPANS for name in pair if row.get(name) not in (None, "")}
    if not columns or not row.get("bound", True):
        return 0.0, None
    span = named_span(take_part(columns, ""))
    if columns:
        raise BadRow(f"has `{next(iter(columns))}` and another part of the clip: which one is meant?")
    return span.start, span.end
