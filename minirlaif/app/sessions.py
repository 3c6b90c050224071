"""What each open page of the app has: its clip, its conversation, its comparison. No torch, no page."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from minirlaif.errors import UserError
from minirlaif.inference.engine import JudgeVerdict, LoadedClip
from minirlaif.stages.registry import ADAPTERS

PAIR = ADAPTERS[:2]  # the models that are compared


@dataclass
class Answer:
    """A question with what became of its answer. state: "waiting", "speaking", "done"; note: why it ended early, "" otherwise."""

    question: str
    model: str
    seed: int = 0
    text: str = ""
    state: str = "waiting"
    note: str = ""
    score: float | None = None


@dataclass
class SideBySide:
    """Both models' answers to one question, in the order in which they stand on the page. vote: a key of votes.CHOICES or "";
    ready: both answers are there and everything that a vote keeps is known; unjudged: the judge was asked and failed."""

    answers: tuple[Answer, Answer]
    judged: JudgeVerdict | None = None
    vote: str = ""
    ready: bool = False
    unjudged: bool = False
    note: str = ""

    @property
    def alike(self) -> bool:
        """There is nothing to choose between."""
        return self.answers[0].text.strip() == self.answers[1].text.strip()


@dataclass(eq=False)
class Job:
    """A question that a page waits for, of a conversation or of a comparison. running: its turn has come; stop: it should end;
    ended: it has. A job that was stopped may go on for a while, beside the next one of the same page."""

    answers: tuple[Answer, ...]
    running: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class Session:
    """One open page."""

    clip: Path | None = None
    loaded: LoadedClip | None = None
    notice: str = ""  # what is wrong with the clip or the question, for its owner
    turns: list[Answer] = field(default_factory=list)
    duel: SideBySide | None = None
    asked: int = 0  # questions so far: each has a seed of its own, so that asking again may answer anew
    job: Job | None = None
    cut: int = 0  # jobs that were stopped and had not ended when the page went on; each may still be reported as failed
    coming: Path | None = None  # the clip that is on its way
    read: threading.Event = field(default_factory=threading.Event)  # none is

    @property
    def busy(self) -> bool:
        """Whether a question is in progress."""
        return self.job is not None


def told(error: Exception) -> str:
    """An error for a page: what its owner can put right in words, anything else by name (the rest goes to the terminal)."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    if "OutOfMemory" in type(error).__name__ or "out of memory" in str(error):
        return "The model ran out of memory; show fewer frames or ask for a shorter answer."
    return f"The model failed ({type(error).__name__}); the terminal says more. The page works on."
