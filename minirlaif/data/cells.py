"""Values of a row's columns: texts, answers, clip names, times. Pure functions; a value that cannot be read is a BadRow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.video.spans import clock_seconds

CLIP_SUFFIXES = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .mts .m2ts .vob .wmv .asf .flv .3gp .ogv .gif".split())
PLACEHOLDER = "<video>"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# Chat and media tokens of SmolVLM2, Qwen-VL, Gemma and LLaVA; <|…|> is ChatML and Qwen's, <|turn> and <turn|> Gemma 4.
_SPECIAL = re.compile(
    r"<\|[\w/:.-]+\|?>|<[\w/:.-]+\|>|</?s>|<[se]\d+>|</?(?:bos|eos|pad|unk|image|video|audio|im_start|im_end|im_patch|vid_start|vid_end"
    r"|fake_token_around_image|global-img|row_\d+_col_\d+|end_of_utterance"
    r"|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token)>"
)
_UNIT = re.compile(r"(?<=\d)\s*(?:s|secs?|seconds?)$", re.IGNORECASE)


class BadRow(Exception):
    """What is wrong with one row and how to put it right; the reader adds file and row number."""


def known_columns(row: Any, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a row that hold something, without those to pass over."""
    if not isinstance(row, Mapping):
        raise BadRow(f"a row must be an object with named columns, this is {kind(row)}")
    return {str(name): value for name, value in row.items() if value is not None and str(name) not in ignore}


def holds(value: Any) -> bool:
    """Whether a cell holds anything: not what tables fill up with, such as NaN, blanks, or a list of nothing."""
    if isinstance(value, float) and math.isnan(value):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(holds(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(holds(each) for each in value)
    return value is not None


def first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these columns that a row has, or ""."""
    return next((name for name in names if name in row), "")


def only(row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    """The one of these columns that a row has, or ""; BadRow for two."""
    present = [name for name in names if name in row]
    present = [name for name in present if holds(row[name])] or present[:1]
    if len(present) > 1:
        raise BadRow(
            f"two columns may be the {what}, `{present[0]}` and `{present[1]}`: take one out, or name it in data.ignore_columns"
        )
    return present[0] if present else ""


def names_of(row: Mapping[str, Any]) -> str:
    """Some of a row's columns, for a message."""
    return ", ".join(f"`{name}`" for name in list(row)[:12]) or "no columns"


def kind(value: Any) -> str:
    """The type of a value, for a message."""
    kinds = {
        str: "text",
        dict: "an object",
        list: "a list",
        int: "a number",
        float: "a number",
        bytes: "raw bytes",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def plain_text(value: Any) -> str | None:
    """A text or number as text: 3 and 3.0 are "3", True is "yes" (the answer to a yes/no question). None: it is neither."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value) if isinstance(value, str | int) else None


def clean(text: str, what: str) -> str:
    """Stripped text that is not empty and has no chat or media token."""
    if not (text := text.strip()):
        raise BadRow(f"{what} is empty: fill it in, or remove the row")
    if token := _SPECIAL.search(text):
        remedy = "the clip's place is the start or end of the first question" if token[0] == PLACEHOLDER else "take it out"
        raise BadRow(f"{what} contains the token {token[0]}: {remedy}")
    if half_letters(text):
        raise BadRow(f"{what} contains an unpaired surrogate (broken emoji): remove it")
    return text


def half_letters(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def clip_name(value: Any, column: str) -> str:
    """The clip that a text or a number names. file:// addresses stay as they are."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"`{column}` must name a clip, this is {'empty' if isinstance(value, str) else kind(value)}")
    if "://" in value and not value.strip().lower().startswith("file://"):
        raise BadRow(f"{value} is an address; download the clip and name the file")
    if value.lower().endswith(_IMAGE_SUFFIXES):
        raise BadRow(f"`{column}` holds frame pictures ({value}); frame folders are not read, name the clip file in `video`")
    return value.strip()


def seconds(value: Any, column: str) -> float:
    """A time in a clip: a number of seconds, or text such as 12.5, 3s, 01:30 or 0:01:30.5; also a list of one of these."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and (seconds := clock_seconds(_UNIT.sub("", value.strip()))) is not None:
        value = seconds
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadRow(f"`{column}` must be a time in seconds from 0, this is {str(value)[:40]!r}")
    return float(value)
