"""Columns that change what a row is about: the times of its part of the clip, and those that no kind may leave unread."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds.base import BenchmarkKind
from minirlaif.benchmarks.kinds.options import ONE_OPTION, OPTION_COLUMNS
from minirlaif.data.columns import MEANING
from minirlaif.data.formats import BadRow

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
_LENGTHS_AND_MASKS = "duration loss loss_mask loss_scale weight weights sample_weight kto_tag objects images"
_STOP = MEANING - set(_LENGTHS_AND_MASKS.split())


def check_columns(row: Mapping[str, Any], kind: BenchmarkKind) -> None:
    """BadRow for a column that changes what the row means and that the kind does not read."""
    names = [name for name in row if (name in MEANINGFUL or name.lower() in _STOP) and row[name] not in (None, "", [], {})]
    # A length, or a class of lengths, is only said of the clip; behind a start alone it may be the part's.
    has_start_alone = any(start in names and end not in names for start, end in SPANS)
    if isinstance(row.get("duration"), list | tuple) or ("duration" in row and has_start_alone):
        names.append("duration")
    if not set(OPTION_COLUMNS) <= set(kind.uses):
        names += [name for name in row if ONE_OPTION.fullmatch(name)]
    read = {*kind.uses, *(("bound", *itertools.chain(*SPANS)) if kind.has_spans else ())}
    unread = [name for name in names if name not in read]
    if unread:
        raise BadRow(
            f"`{unread[0]}` changes what a row is about, and {kind.name} does not read it; remove it if it does not matter"
        )


def span_of(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """The part of the clip that a row is about: its start and end in seconds, (0, None) for the whole clip. BadRow for a part
    that cannot be, and for a row that has two."""
    if not isinstance(row.get("bound", True), bool):
        raise BadRow("`bound` must be true or false: whether `start` and `end` restrict the clip")
    pairs = [pair for pair in SPANS if any(row.get(name) not in (None, "") for name in pair)]
    if not pairs or not row.get("bound", True):
        return 0.0, None
    if len(pairs) > 1:
        raise BadRow(f"has `{pairs[0][0]}` and `{pairs[1][0]}`: which part of the clip is meant?")
    first, last = pairs[0]
    start, end = seconds_cell(row, first, 0.0), seconds_cell(row, last, None)
    if start is None or start < 0 or (end is not None and end <= start):
        raise BadRow(f"`{first}` {row.get(first)!r} and `{last}` {row.get(last)!r} are no part of a clip")
    return start, end


def seconds_cell(row: Mapping[str, Any], column: str, default: float | None) -> float | None:
    """A time in seconds; the default where the cell is empty. BadRow for anything that is no number."""
    value = row.get(column)
    if value in (None, ""):
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"`{column}` {str(value)[:40]!r} is no number of seconds")
    return number
