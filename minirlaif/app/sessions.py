"""The state of each open page: its clip, its conversation, its comparison. No torch, no Gradio."""

import json
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minirlaif.errors import UserError
from minirlaif.inference.engine import JudgeVerdict, LoadedClip
from minirlaif.stages.registry import MODELS


def compared_models(models: Sequence[str]) -> tuple[str, ...]:
    """The aligned model and the one that it started from (SFT, or the base of a run without SFT), of those that there are; none
    where one of the two is missing. models: the best first, as an engine has them."""
    start = "sft" if "sft" in models else "base"
    return ("rlaif", start) if {"rlaif", start} <= set(models) else ()


@dataclass
class Answer:
    """A question and its answer. state: "waiting", "generating" or "done"; note: why it ended early, "" otherwise."""

    question: str
    model: str
    seed: int = 0
    text: str = ""
    state: str = "waiting"
    note: str = ""
    score: float | None = None

    @property
    def title(self) -> str:
        """The model's name for people; "" while no model has the question."""
        return MODELS.get(self.model, self.model)

    def end(self, note: str = "") -> None:
        """Finish the answer, with a reason if it ended early."""
        self.state, self.note = "done", note or self.note


@dataclass
class SideBySide:
    """Both models' answers to one question, in the order in which the page shows them. vote: a key of votes.CHOICES or "";
    ready: both answers are complete and everything that a vote stores is known; judge_failed: the judge raised an error."""

    answers: tuple[Answer, Answer]
    verdict: JudgeVerdict | None = None
    vote: str = ""
    ready: bool = False
    judge_failed: bool = False
    note: str = ""

    @property
    def identical(self) -> bool:
        """Whether both answers are the same text, so that there is nothing to vote on."""
        return self.answers[0].text.strip() == self.answers[1].text.strip()

    @property
    def can_vote(self) -> bool:
        """Whether a vote is accepted now."""
        return self.ready and not self.vote and not self.identical


@dataclass(eq=False)
class Job:
    """A question in progress, of a conversation or of a comparison. running: the model works on it; stop: a request to end it;
    ended: it has ended. A stopped job may run for a while longer, next to the following job of the same page."""

    answers: tuple[Answer, ...]
    running: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class Session:
    """One open page. clip_ready: no upload is in progress."""

    clip: Path | None = None
    loaded: LoadedClip | None = None
    notice: str = ""  # what is wrong with the clip or the question
    turns: list[Answer] = field(default_factory=list)
    side_by_side: SideBySide | None = None
    num_questions: int = 0  # each question has its own seed, so that a retry may give another answer
    job: Job | None = None
    stopped_jobs: int = 0  # jobs that were still running when they were stopped; Gradio may still report each as failed
    pending_clip: Path | None = None  # the clip that is being uploaded
    votes: set[str] = field(default_factory=set)  # ids
    clip_ready: threading.Event = field(default_factory=threading.Event)

    @property
    def busy(self) -> bool:
        """Whether a question is in progress."""
        return self.job is not None

    def export(self) -> str:
        """The conversation as a row in the messages format that `data.sft` reads, with details in `chat`; "" if it is empty."""
        turns = [turn for turn in self.turns if turn.text]
        if not turns or self.loaded is None:
            return ""
        messages = []
        for number, turn in enumerate(turns):
            tag = "" if number else "<video>\n"
            messages += [{"role": "user", "content": tag + turn.question}, {"role": "assistant", "content": turn.text}]
        answers = [
            {"model": turn.model, "seed": turn.seed, "reward": turn.score, "ended": turn.note or "whole"} for turn in turns
        ]
        times = [round(time, 3) for time in self.loaded.times]
        details = {"frames": times, "answers": answers}
        row = {"videos": [self.clip.name if self.clip else ""], "messages": messages, "chat": details}
        return json.dumps(row, ensure_ascii=False, indent=1)


def error_message(error: Exception) -> str:
    """The text that the page shows for an error. Only a UserError is shown in full; other tracebacks go to the terminal."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    if "OutOfMemory" in type(error).__name__ or "out of memory" in str(error):
        return "The model ran out of memory. Use fewer frames or a shorter answer."
    return f"The model failed ({type(error).__name__}). The terminal shows the traceback. You can go on with another question."
