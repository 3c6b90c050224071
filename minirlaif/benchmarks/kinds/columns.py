"""Columns that change what a row is about: the times of its part of the clip, and those that no kind may leave unread."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirlaif.benchmarks.kinds.base import BenchmarkKind
from minirlaif.benchmarks.kinds.options import OPTION_COLUMNS
from minirlaif.data.columns import FILES, MEANING, ONE_OPTION, clip_names, take_part
from minirlaif.data.formats import BadRow
from minirlaif.video.spans import named_span

# The times of a clip's part, in seconds. MSR-VTT's "start time" and "end time" are none: they are of the film that its clips,
# which are cut already, come from.
SPANS = (("start", "end"), ("video_start", "video_end"))
MEANINGFUL = (
    *(name for pair in SPANS for name in pair),
    "bound",  # whether MVBench's start and end restrict the clip
    *"start_time end_time time_start time_end start_sec end_sec segment timestamp timestamps time_stamp time times".split(),
    *OPTION_COLUMNS,
    *"counterfactual negative negatives negative_caption neg_caption subtitle subtitles subtitle_path sub_text system".split(),
)
# Of the columns that stop a row of data, those that are also about what a benchmark asks. A length is looked at below.
_LENGTHS_AND_MASKS = (
    "duration loss loss_mask loss_scale weight weights sample_weight kto_tag train trainable objects images answers"
)
_STOP = MEANING - set(_LENGTHS_AND_MASKS.split())
_TIME = re.compile(
    r"(?:(?:video|clip|segment|moment|part|time)_)?(?:start|end|begin)_?(?:s|secs?|seconds?|times?|timestamp)?"
)  # video_start_sec, clip_end
_FILM = ("start time", "end time")  # MSR-VTT's


def check_columns(row: Mapping[str, Any], kind: BenchmarkKind) -> None:
    """BadRow for a column that changes what the row means and that the kind does not read."""
    filled = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in row if row[name] not in (None, "", [], {})}
    names = [
        name
        for name, lower in filled.items()
        if name in MEANINGFUL or lower in _STOP or (_TIME.fullmatch(lower) and name not in _FILM)
    ]
    # A length, or a class of lengths, is only said of the clip; behind a start alone it may be the part's.
    has_start_alone = any(start in names and end not in names for start, end in SPANS)
    if isinstance(row.get("duration"), list | tuple) or ("duration" in row and has_start_alone):
        names.append("duration")
    if not set(OPTION_COLUMNS) <= set(kind.uses):
        names += [name for name in filled if ONE_OPTION.fullmatch(name)]
    read = {*kind.uses, *(("bound", *itertools.chain(*SPANS)) if kind.has_spans else ())}
    unread = [name for name in names if name not in read]
    if unread:
        raise BadRow(
            f"`{unread[0]}` changes what a row is about, and {kind.name} does not read it; remove it if it does not matter"
        )
    files = {name: [Path(clip).stem for clip in clip_names(row[name], name)] for name in FILES if name in filled}
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
