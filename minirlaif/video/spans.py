"""Names of clips and of their parts: `a.mp4#t=10,20` names seconds 10 to 20 of a file, as a temporal fragment does (W3C Media
Fragments 4.2.1).

A row's clip is named so from the row to the frames: everything that knows a clip by its name (contexts, held-out clips) tells two
parts of one file apart. A part is read as if it had been cut into a file of its own: its time 0 is its start.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import unquote

_CLOCK = r"(?:(?:\d+:)?\d{1,2}:)?\d+(?:\.\d+)?"  # H:MM:SS.s, MM:SS or seconds
_FRAGMENT = re.compile(rf"#t=(?:npt:)?(?P<start>{_CLOCK})?(?:,(?P<end>{_CLOCK}))?$")
_URL = re.compile(r"file://(?:localhost(?=/))?", re.IGNORECASE)
_DRIVE = re.compile(r"/[A-Za-z]:[/\\]")
LATE = 1.0  # seconds that an end may lie behind the clip's: published ends are often rounded up


class Span(NamedTuple):
    """A file and the part of it that is meant, in seconds; end None: to the end of the file."""

    file: str
    start: float
    end: float | None

    @property
    def is_part(self) -> bool:
        """Whether it is less than the file."""
        return self.start > 0 or self.end is not None


def span_of(video: str) -> Span:
    """The span that the path of a clip means. A file that is itself called so is a file."""
    return Span(video, 0.0, None) if os.path.exists(video) else named_span(video)


def named_span(video: str) -> Span:
    """The span in the name of a clip, wherever the clip lies."""
    match = _FRAGMENT.search(video)
    if match is None or match[0] == "#t=":
        return Span(video, 0.0, None)
    end = match["end"]
    return Span(video[: match.start()], clock_seconds(match["start"] or "0") or 0.0, None if end is None else clock_seconds(end))


def clock_seconds(text: str) -> float | None:
    """The seconds of 12.5, 01:30 or 0:01:30.5; None for any other text."""
    if not re.fullmatch(_CLOCK, text):
        return None
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def file_of(video: str) -> str:
    """The file that a clip is, or is a part of."""
    return span_of(video).file


def name_of(file: str, start: float, end: float | None) -> str:
    """The name of a part of a file (to a millisecond); the file's own name for all of it."""
    if start <= 0 and end is None:
        return file
    return f"{file}#t={_number(start) if start > 0 else ''}{'' if end is None else f',{_number(end)}'}"


def spellings(file: str) -> list[str]:
    """The paths that the name of a file (without its part) may mean, the likeliest first: itself, or what follows file:// (its
    percent signs may be the URL's codes or the name's own), each also with slashes for Windows' backslashes."""
    if url := _URL.match(file):
        path = file[url.end() :]
        path = path[1:] if _DRIVE.match(path) else path
        paths = [unquote(path), path]
    else:
        paths = [file]
    return list(dict.fromkeys(each for path in paths for each in (path, path.replace("\\", "/"))))


def local_path(video: str) -> str:
    """The name of a clip, with its part, as a path: of the spellings, the first that is a file here."""
    file = file_of(video)
    paths = spellings(file)
    path = next((path for path in paths if os.path.exists(path)), paths[0]) if len(paths) > 1 else paths[0]
    return path + video[len(file) :]


def length_of(span: Span, seconds: float) -> float:
    """Seconds that a span lasts in a file of so many seconds. ValueError, with the reason, when the file does not have it."""
    if span.end is not None and span.end <= span.start:
        raise ValueError(f"the part ends at {_number(span.end)} s and starts at {_number(span.start)} s")
    if span.start >= seconds:
        raise ValueError(
            f"the part from {_number(span.start)} s lies behind the end of the clip at {_number(seconds)} s; name times within it"
        )
    if span.end is None:
        return seconds - span.start
    if span.end > seconds + LATE:
        raise ValueError(f"the part ends at {_number(span.end)} s, the clip at {_number(seconds)} s; name times within it")
    return min(span.end, seconds) - span.start


def _number(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
