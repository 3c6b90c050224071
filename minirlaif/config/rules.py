"""What a setting may be: the markers at the fields of schema.py, and the check of a value against them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

LARGEST, LARGEST_FLOAT = 10**10, 1e36  # of a whole number, and of any other: float32 holds 3.4e38
LONGEST = 10_000  # letters of a text, items of a list


class Rule(Enum):
    """A marker at a field. A number without one is finite and at least 0."""

    POSITIVE = "above 0"
    SHARE = "0 to 1"
    ANY_SIGN = "negative values too"
    NOT_EMPTY = "at least one character, or one item"
    NO_EFFECT = "changes no result, so it stands in no manifest"


@dataclass(frozen=True)
class UnrecordedAt:
    """A setting younger than some finished runs: at this value it changes nothing and leaves no trace in a manifest, so those
    runs still count as made with the same settings."""

    value: object


@dataclass(frozen=True)
class RecordedAt:
    """With NO_EFFECT: manifests record this value all the same, as they did when it was one of few."""

    value: object


PositiveInt = Annotated[int, Rule.POSITIVE]
PositiveFloat = Annotated[float, Rule.POSITIVE]
Share = Annotated[float, Rule.SHARE]
Schedule = Literal["cosine", "linear", "constant"]
Texts = Annotated[tuple[str, ...], Rule.NOT_EMPTY]
Place = Annotated[Literal["cpu", "device"], Rule.NO_EFFECT]


def parts(hint: Any) -> tuple[Any, tuple[str, ...], Sequence[object]]:
    """A field's annotation as its type, its choices (of a Literal of texts) and its markers."""
    markers = getattr(hint, "__metadata__", ())
    kind = hint.__origin__ if markers else hint
    return (str, get_args(kind), markers) if get_origin(kind) is Literal else (kind, (), markers)


def check(name: str, value: Any, choices: Sequence[str], markers: Sequence[object]) -> None:
    """ValueError, naming the setting, when a value of the right type is not allowed."""
    if choices and value not in choices:
        raise ValueError(f"{name} must be {' or '.join(repr(choice) for choice in choices)}, not {value!r}")
    if Rule.NOT_EMPTY in markers and not value:
        raise ValueError(f"{name} is empty: give it a value or leave the line out")
    texts = [value, *value] if isinstance(value, tuple) else [value] if isinstance(value, str) else [""]
    if (longest := max(map(len, texts))) > LONGEST:
        raise ValueError(f"{name} is too long: {longest:,} letters or items, {LONGEST:,} are allowed")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if abs(value) > (most := LARGEST if isinstance(value, int) else LARGEST_FLOAT) and value not in (math.inf, -math.inf):
        raise ValueError(f"{name} must be at most {most:,}, this has {len(str(abs(int(value))))} digits")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if Rule.POSITIVE in markers and value <= 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    if Rule.SHARE in markers and not 0 <= value <= 1:
        raise ValueError(f"{name} is a share: it must lie between 0 and 1, not {value}")
    if Rule.ANY_SIGN not in markers and value < 0:
        raise ValueError(f"{name} must not be negative, not {value}")
