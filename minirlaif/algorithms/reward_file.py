"""Rewards that a person's own file gives: a Python file with one function, `reward`. No torch.

    def reward(prompt: str, answer: str, tags: dict[str, str]) -> float:
        return float(tags["colour"] in answer)

prompt: the question; tags: the further columns of the prompt's row as text, with its "id" and its "video". The file is run as the
user that runs the command, and may import what lies beside it; a stage remembers the content of the file alone.
"""

import importlib.util
import math
import sys
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minirlaif.config.rules import LARGEST_FLOAT
from minirlaif.errors import StageStopped, UserError

ENDING = ".py"
EXAMPLE = "def reward(prompt, answer, tags): return float('red' in answer)"
LONGEST = 60  # letters of an answer in a message


class RewardFile:
    """The function `reward` of a file. UserError: the file cannot be read or run, or has no such function."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file():
            raise UserError(f"optimize.reward {path}: no such file; write one with a function such as `{EXAMPLE}`")
        spec = importlib.util.spec_from_file_location("reward_file", path)
        if spec is None or spec.loader is None:
            raise UserError(f"optimize.reward {path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        if (folder := str(Path(path).resolve().parent)) not in sys.path:  # as for a file that python runs
            sys.path.insert(0, folder)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise UserError(f"optimize.reward {path}: cannot be run, {_named(error)}; mend it, then try it with python") from None
        self._function: Callable[..., Any] | None = getattr(module, "reward", None)
        if not callable(self._function):
            raise UserError(f"optimize.reward {path}: has no function `reward`; write one such as `{EXAMPLE}`")

    def score(self, prompt: str, answer: str, tags: Mapping[str, str]) -> float:
        """The reward of one answer. StageStopped: the function raised, so what it needs may be missing for now. UserError: it
        gave something else than one finite number."""
        where = f"{self.path}: reward for the answer {answer[:LONGEST]!r} to {prompt[:LONGEST]!r}"
        assert self._function is not None
        try:
            given = self._function(prompt, answer, dict(tags))
        except (Exception, SystemExit, CancelledError) as error:
            again = "correct what it needs and run the command again to resume; a changed file starts the stage again"
            raise StageStopped(f"{where} raised {_named(error)}; {again}") from None
        try:
            score = math.nan if isinstance(given, str | bytes) else float(given)
        except Exception:  # of an object of any kind
            raise UserError(f"{where} gave {_shown(given)}; return one number, and make the stage again", again=()) from None
        if not abs(score) <= LARGEST_FLOAT:  # not a number, too
            raise UserError(f"{where} gave {_shown(given)}; return a finite number, and make the stage again", again=())
        return score


def _shown(given: Any) -> str:
    """What a function gave, for a message; an object may fail at that, too."""
    try:
        return f"{given!r:.40}" if isinstance(given, str | bytes) or not hasattr(given, "__len__") else f"{len(given)} values"
    except Exception:
        return f"an object of type {type(given).__name__}"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
