"""What the page may ask of its functions: calls in JSON that it does not send are refused in one line. No torch.

Gradio gives wrong values to the functions, whose tracebacks then fill the log, and NaN to whoever computes with it.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MOST_DIGITS, MOST_LEVELS = 15, 8  # of a whole number, and of lists and objects within one another
SHOWN = "/uploads"  # stands for the folder of uploads, whose place only this machine knows


class UploadFolder:
    """The only folder whose files clients may name; they know it as SHOWN. names: what stands in replies for other folders."""

    def __init__(self, folder: Path, names: Mapping[Path, str]) -> None:
        self.folder = folder.resolve()
        self._names = {str(path).encode(): name.encode() for path, name in {self.folder: SHOWN, **names}.items()}

    def requested(self, path: str) -> str:
        """The path of a request, with the place of the file that it names."""
        return re.sub(rf"^(/gradio_api/file=){SHOWN}/", lambda match: f"{match[1]}{self.folder}/", path)

    def located(self, value: dict[str, Any]) -> dict[str, Any]:
        """An object with the place of the file that it names."""
        path = value.get("path")
        if isinstance(path, str) and path.startswith(f"{SHOWN}/"):
            return {**value, "path": f"{self.folder}{path.removeprefix(SHOWN)}"}
        return value

    def shown(self, body: bytes) -> bytes:
        """A part of a reply without the places of folders."""
        for path, name in self._names.items():
            body = body.replace(path, name)
        return body

    def has(self, name: Any) -> bool:
        """Whether this is a file below the folder, after resolving symbolic links."""
        return self.spans(name) and os.path.isfile(name)

    def spans(self, name: Any) -> bool:
        """Whether this path leads below the folder."""
        if not isinstance(name, str) or "\0" in name or "\\" in name or not name.startswith("/"):
            return False
        try:
            return Path(name).resolve().is_relative_to(self.folder)
        except (OSError, RuntimeError, ValueError):
            return False


def parsed(body: bytes, of_object: Callable[[dict[str, Any]], Any]) -> Any:
    """JSON without NaN, infinities, long whole numbers and deep nesting. of_object: is given each object, returns what replaces
    it. ValueError, RecursionError: something else."""

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:20]} is not a finite number")
        return value

    def integer(text: str) -> int:
        if len(text) > MOST_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)

    def check(value: Any, level: int = 0) -> None:
        if level > MOST_LEVELS:
            raise ValueError("too deeply nested")
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(each, level + 1)

    value = json.loads(body, object_hook=of_object, parse_float=number, parse_int=integer, parse_constant=number)
    check(value)
    return value


def call_error(call: Mapping[str, Any], functions: Mapping[int, Any], in_queue: bool) -> str:
    """What is wrong with a call of one of the page's functions, in one line; "" for one that the page could send."""
    number, data = call.get("fn_index"), call.get("data")
    function = functions.get(number) if type(number) is int else None
    if function is None or function.fn is None or function.queue is not in_queue:
        return "fn_index: there is no such function"
    if type(call.get("trigger_id")) not in (int, type(None)) or call.get("batched") or call.get("simple_format"):
        return "trigger_id, batched or simple_format: not as the page sends it"
    if not isinstance(call.get("event_id"), str | None) or not isinstance(call.get("oauth_token"), str | None):
        return "event_id or oauth_token: not a text"
    if not isinstance(data, list) or len(data) != len(function.inputs):
        return f"data: not a list of {len(function.inputs)} values"
    for place, (component, value) in enumerate(zip(function.inputs, data, strict=True)):
        if wrong := value_error(component, value, function.preprocess):
            return f"data[{place}]: {wrong}"
    return ""


def value_error(component: Any, value: Any, is_strict: bool) -> str:
    """What is wrong with a value of one of Gradio's components. is_strict: limits count, and an emptied slider is refused."""
    kind = type(component).__name__
    if kind in ("Slider", "Number"):
        low, high = component.minimum, component.maximum
        if value is None:
            return "a number is missing" if is_strict and kind == "Slider" else ""
        if type(value) not in (int, float):
            return "not a number"
        low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
        return f"not between {low:g} and {high:g}" if is_strict and not low <= value <= high else ""
    if kind in ("Dropdown", "Radio"):
        choices = [each for _, each in component.choices]
        return "" if value in choices or (value is None and component.value is None) else "not one of the choices"
    if kind == "Checkbox":
        return "" if type(value) is bool else "not true or false"
    if kind == "Video":
        return "" if value is None or (isinstance(value, dict) and isinstance(value.get("path"), str)) else "not a clip"
    return "" if isinstance(value, str) else "not a text"
