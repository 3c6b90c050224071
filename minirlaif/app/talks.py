"""Conversations and comparisons about clips: what each open page has, and what may happen to it. No torch, no page.

A method that waits for the model is a generator: after each step the page is drawn anew from the session.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from minirlaif.app.clips import Desk
from minirlaif.app.votes import CHOICES, Ballot, Vote
from minirlaif.app.worker import Worker
from minirlaif.records import Turn, UserError
from minirlaif.talk import Engine, Judged, Judging, Look, Options

LONGEST = 4000  # letters of a question
PAIR = ("rlaif", "sft")  # the models that are compared


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
class Duel:
    """Both models' answers to one question, in the order in which they stand on the page. vote: a key of votes.CHOICES or "";
    ready: both answers are there and everything that a vote keeps is known."""

    answers: tuple[Answer, Answer]
    judged: Judged | None = None
    vote: str = ""
    ready: bool = False
    note: str = ""

    @property
    def alike(self) -> bool:
        """There is nothing to choose between."""
        return self.answers[0].text.strip() == self.answers[1].text.strip()


@dataclass
class Session:
    """One open page."""

    clip: Path | None = None
    look: Look | None = None
    notice: str = ""  # what is wrong with the clip or the question, for its owner
    turns: list[Answer] = field(default_factory=list)
    duel: Duel | None = None
    asked: int = 0  # questions so far: each has a seed of its own, so that asking again may answer anew
    busy: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)


class Talks:
    """All open pages over one engine.

    Args:
        worker: the engine's thread.
        desk: looks at clips before the engine does.
        ballot: where votes go; None: nobody can vote.
    """

    def __init__(self, worker: Worker, desk: Desk, ballot: Ballot | None) -> None:
        self.worker, self.desk, self.ballot = worker, desk, ballot
        self.engine = worker.engine
        self._sessions: dict[str, Session] = {}

    @property
    def compares(self) -> bool:
        """Whether the engine has both models."""
        return set(PAIR) <= set(self.engine.models)

    def session(self, name: str) -> Session:
        """The page of this name, opened at its first call."""
        return self._sessions.setdefault(name, Session())

    def leave(self, name: str) -> None:
        """A page was closed: stop what it waits for and delete its clip."""
        gone = self._sessions.pop(name, None)
        if gone is not None:
            self._forget(gone)

    def sweep(self, older: float = 3600.0) -> None:
        """Delete uploads that no page shows and that came more than so many seconds ago."""
        self.desk.sweep([session.clip for session in self._sessions.values() if session.clip], older)

    def open(self, session: Session, path: str | None, frames: int) -> None:
        """Show a clip to the engine; a new one starts a new conversation. What is wrong with it stands in `session.notice`."""
        if path is None and session.clip is None:  # the player is empty again after a refusal, whose reason stays
            return
        session.notice = ""
        known = session.clip is not None and path is not None and Path(path) == session.clip
        if not known:
            self._forget(session)
        if path is None:
            return
        try:
            self.desk.examine(path)
            session.look = self.worker.call(lambda engine: engine.look(path, frames))
            session.clip = Path(path)
        except Exception as error:
            session.notice = f"This clip was not taken: {error}" if isinstance(error, UserError) else _told(error)
            if not known:
                self._drop(Path(path))

    def _forget(self, session: Session) -> None:
        session.stop.set()
        clip, session.clip, session.look, session.turns, session.duel = session.clip, None, None, [], None
        if clip is not None:
            self._drop(clip)
        self.sweep()

    def _drop(self, clip: Path) -> None:
        if all(session.clip != clip for session in self._sessions.values()):
            self.desk.drop(clip)

    def begin(self, session: Session, question: str) -> bool:
        """Take a question, so that it stands on the page before the model is free. False, with a notice, when it cannot be."""
        if session.busy or not self._can_ask(session, question):
            return False
        session.turns.append(Answer(question.strip(), "", self._seed(session)))
        self._start(session)
        return True

    def answer(self, session: Session, options: Options, model: str) -> Iterator[None]:
        """Let a model answer the last question, piece by piece; then the reward model."""
        if not session.turns or session.turns[-1].state != "waiting" or session.look is None:
            return
        last, look = session.turns[-1], session.look
        last.model = model
        before = [Turn(turn.question, turn.text) for turn in session.turns[:-1] if turn.text]
        try:
            yield from self._speak(session, look, before, last, options)
            if last.text and not last.note:
                yield
                last.score = self.worker.call(lambda engine: engine.score(look, last.question, last.text))
        except Exception as error:
            last.note = _told(error)
        finally:
            self._end(session)
        yield

    def halt(self, session: Session) -> None:
        """Stop what this page waits for. What was said stays."""
        session.stop.set()
        if any(answer.state == "speaking" for answer in _current(session)):
            session.idle.wait(2.0)
        for answer in _current(session):
            if answer.state != "done":
                answer.state, answer.note = "done", "stopped"
        if session.duel is not None and not session.duel.ready:
            session.duel.note = "Stopped: there is nothing to vote on."
        session.busy = False

    def again(self, session: Session) -> bool:
        """Ask the last question once more, in place of its answer."""
        if session.busy or not session.turns:
            return False
        return self.begin(session, session.turns.pop().question)

    def clear(self, session: Session) -> None:
        """Forget the conversation; the clip stays."""
        session.stop.set()
        session.turns, session.notice = [], ""

    def begin_duel(self, session: Session, question: str) -> bool:
        """Take a question for both models; which one is A is drawn."""
        if session.busy or not self._can_ask(session, question):
            return False
        seed, names = self._seed(session), random.sample(PAIR, 2)
        session.duel = Duel((Answer(question.strip(), names[0], seed), Answer(question.strip(), names[1], seed)))
        self._start(session)
        return True

    def fight(self, session: Session, options: Options) -> Iterator[None]:
        """Both answers, piece by piece; then what the reward model and the judge make of them, which shows after the vote."""
        duel, look = session.duel, session.look
        if duel is None or look is None or duel.answers[0].state != "waiting":
            return
        try:
            for answer in duel.answers:
                yield from self._speak(session, look, [], answer, options)
                if answer.note:
                    duel.note = "Stopped: there is nothing to vote on." if answer.note == "stopped" else answer.note
                    return
            yield
            self.worker.call(lambda engine: _examine(engine, look, duel))
        except Exception as error:  # a vote can do without a judge
            duel.note = _told(error)
        finally:
            duel.ready = all(answer.state == "done" and not answer.note for answer in duel.answers)
            self._end(session)
        yield

    def vote(self, session: Session, choice: str, options: Options) -> None:
        """Keep a vote; only the first one on a pair counts."""
        duel = session.duel
        if duel is None or not duel.ready or duel.vote or duel.alike or choice not in CHOICES:
            return
        duel.vote, (a, b) = choice, duel.answers
        if self.ballot is None or session.clip is None or session.look is None:
            return
        facts = {"reward_1": a.score, "reward_2": b.score, "frames": len(session.look.times), "temperature": options.temperature}
        judged = duel.judged
        facts |= {"top_p": options.top_p, "seed": a.seed} | ({"judge_margin": round(judged.margin, 5)} if judged else {})
        said, context = (judged.choice, judged.context) if judged else ("", "")
        known = {name: value for name, value in facts.items() if value is not None}
        vote = Vote(session.clip, a.question, (a.text, b.text), (a.model, b.model), choice, said, context, known)
        try:
            self.ballot.add(vote)
            duel.note = ""
        except (UserError, OSError) as error:
            duel.note = f"Not kept: {error}" if isinstance(error, UserError) else f"Not kept: {error.strerror}"

    def export(self, session: Session) -> str:
        """The conversation as a row in the messages format that `data.sft` takes, with what else is known; "" without one."""
        told = [turn for turn in session.turns if turn.text]
        if not told or session.look is None:
            return ""
        messages = []
        for number, turn in enumerate(told):
            tag = "" if number else "<video>\n"
            messages += [{"role": "user", "content": tag + turn.question}, {"role": "assistant", "content": turn.text}]
        known = [{"model": turn.model, "seed": turn.seed, "reward": turn.score, "ended": turn.note or "whole"} for turn in told]
        times = [round(time, 3) for time in session.look.times]
        row = {"videos": [session.clip.name if session.clip else ""], "messages": messages, "frames": times, "answers": known}
        return json.dumps(row, ensure_ascii=False, indent=1)

    def _can_ask(self, session: Session, question: str) -> bool:
        if session.look is None:
            session.notice = "Choose a clip first: drop one, record one, or take an example."
        elif not question.strip():
            session.notice = "Type a question first."
        elif len(question) > LONGEST:
            session.notice = f"The question has {len(question)} letters, {LONGEST} are allowed."
        else:
            session.notice = ""
        return not session.notice

    def _seed(self, session: Session) -> int:
        session.asked += 1
        return self.engine.options.seed + session.asked - 1

    def _start(self, session: Session) -> None:
        session.stop, session.idle, session.busy = threading.Event(), threading.Event(), True

    def _end(self, session: Session) -> None:
        for answer in _current(session):
            if answer.state == "speaking":
                answer.state, answer.note = "done", answer.note or "stopped"
        session.busy = False
        session.idle.set()

    def _speak(self, session: Session, look: Look, before: Sequence[Turn], answer: Answer, options: Options) -> Iterator[None]:
        """Stream one answer into `answer`. Errors of the model end it with a note."""
        if session.stop.is_set():
            answer.state, answer.note = "done", "stopped"
            return
        answer.state, stop = "speaking", session.stop
        chosen = replace(options, seed=answer.seed)
        try:
            pieces = self.worker.stream(lambda e: e.stream(look, before, answer.question, chosen, answer.model), stop)
            with closing(pieces):  # type: ignore[type-var]
                yield
                for piece in pieces:
                    answer.text += piece
                    yield
                if stop.is_set():
                    answer.note = "stopped"
        except Exception as error:
            answer.note = _told(error)
        answer.state = "done"


def _current(session: Session) -> list[Answer]:
    """Answers that may be in progress."""
    return session.turns[-1:] + list(session.duel.answers if session.duel else ())


def _examine(engine: Engine, look: Look, duel: Duel) -> None:
    for answer in duel.answers:
        if answer.text:
            answer.score = engine.score(look, answer.question, answer.text)
    if isinstance(engine, Judging) and all(answer.text for answer in duel.answers):
        duel.judged = engine.judge(look, *(duel.answers[0].question, *(answer.text for answer in duel.answers)))


def _told(error: Exception) -> str:
    """An error for a page: what its owner can put right in words, anything else by name (the rest goes to the terminal)."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    if "OutOfMemory" in type(error).__name__ or "out of memory" in str(error):
        return "The model ran out of memory; show fewer frames or ask for a shorter answer."
    return f"The model failed ({type(error).__name__}); the terminal says more. The page works on."
