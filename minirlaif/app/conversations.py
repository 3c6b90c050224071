"""Conversations and comparisons about clips: what each open page has, and what may happen to it. No torch, no page.

A method that waits for the model is a generator: after each step the page is drawn anew from the session.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from minirlaif.app.engine_thread import Worker
from minirlaif.app.sessions import PAIR, Answer, Job, Session, SideBySide, told
from minirlaif.app.uploads import UploadStore
from minirlaif.app.votes import CHOICES, Vote, VoteStore
from minirlaif.data.formats import half_letters
from minirlaif.errors import UserError
from minirlaif.inference.engine import ChatEngine, JudgingEngine, LoadedClip, SamplingParams
from minirlaif.types import Turn

LONGEST = 4000  # letters of a question
HALT_SECONDS = 2.0  # the page waits so long for a stopped answer to end
CLIP_SECONDS = 30.0  # a question waits so long for the frames of its clip


class Talks:
    """All open pages over one engine.

    Args:
        worker: the engine's thread.
        desk: looks at clips before the engine does.
        ballot: where votes go; None: nobody can vote.
    """

    def __init__(self, worker: Worker, desk: UploadStore, ballot: VoteStore | None) -> None:
        self.worker, self.desk, self.ballot = worker, desk, ballot
        self.engine = worker.engine
        self._sessions: dict[str, Session] = {}

    @property
    def compares(self) -> bool:
        """Whether the engine has both models."""
        return set(PAIR) <= set(self.engine.models)

    def session(self, name: str) -> Session:
        """The page of this name, opened at its first call."""
        if name not in self._sessions:
            self._sessions.setdefault(name, Session()).read.set()
        return self._sessions[name]

    def leave(self, name: str) -> None:
        """A page was closed: stop what it waits for and delete its clip."""
        gone = self._sessions.pop(name, None)
        if gone is not None:
            self._forget(gone)

    def sweep(self, older: float = 3600.0) -> None:
        """Delete uploads that no page shows and that came more than so many seconds ago."""
        self.desk.sweep(self._wanted(), older)

    def expect(self, session: Session, path: str) -> None:
        """A clip is on its way: questions wait for `open`, and nobody who leaves takes it along."""
        session.coming = Path(path)
        session.read.clear()

    def open(self, session: Session, path: str | None, frames: int) -> None:
        """Show a clip to the engine; a new one starts a new conversation. What is wrong with it stands in `session.notice`."""
        try:
            self._open(session, path, frames)
        finally:
            session.coming = None
            session.read.set()

    def _open(self, session: Session, path: str | None, frames: int) -> None:
        session.notice = ""
        known = session.clip is not None and path is not None and Path(path) == session.clip
        if not known:
            self._forget(session, Path(path).parent if path else None)
        if path is None:
            return
        try:
            self.desk.examine(path)
            session.loaded = self.worker.call(lambda engine: engine.load_clip(path, frames))
            session.clip = Path(path)
        except Exception as error:
            session.notice = f"This clip was not taken: {error}" if isinstance(error, UserError) else told(error)
            session.coming = None
            if not known:
                self._drop(Path(path))

    def _forget(self, session: Session, keep: Path | None = None) -> None:
        if session.job is not None:
            session.job.stop.set()
        clip, session.clip, session.loaded, session.turns, session.duel = session.clip, None, None, [], None
        if clip is not None and clip.parent != keep:
            self._drop(clip)
        self.sweep()

    def _drop(self, clip: Path) -> None:
        """Files of the same content share a folder, whatever their names."""
        if all(other.parent != clip.parent for other in self._wanted()):
            self.desk.drop(clip)

    def _wanted(self) -> list[Path]:
        """Clips that a page shows or waits for."""
        sessions = list(self._sessions.values())
        return [clip for session in sessions for clip in (session.clip, session.coming) if clip is not None]

    def begin(self, session: Session, question: str) -> bool:
        """Take a question, so that it stands on the page before the model is free. False, with a notice, when it cannot be."""
        if session.busy or not self._can_ask(session, question):
            return False
        session.turns.append(Answer(question.strip(), "", self._seed(session)))
        session.job = Job((session.turns[-1],))
        return True

    def answer(self, session: Session, options: SamplingParams, model: str) -> Iterator[None]:
        """Let a model answer the last question, piece by piece; then the reward model."""
        job, look = session.job, session.loaded
        if job is None or look is None or job.running or job.answers[:1] != tuple(session.turns[-1:]):
            return
        job.running, (last,) = True, job.answers
        last.model = model
        before = [Turn(turn.question, turn.text) for turn in session.turns[:-1] if turn.text]
        try:
            yield from self._speak(job, look, before, last, options)
            if last.text and not last.note:
                yield
                last.score = self.worker.call(lambda engine: engine.score(look, last.question, last.text))
        except Exception as error:
            last.note = told(error)
        finally:
            self._end(session, job)
        yield

    def halt(self, session: Session) -> None:
        """Stop what this page waits for. What was said stays."""
        job = session.job
        if job is None:
            return
        job.stop.set()
        if job.running and not job.ended.wait(HALT_SECONDS):
            session.cut += 1
        for answer in job.answers:
            if answer.state != "done":
                answer.state, answer.note = "done", "stopped"
        if session.duel is not None and session.duel.answers is job.answers and not session.duel.ready:
            session.duel.note = "Stopped: there is nothing to vote on."
        if session.job is job:
            session.job = None

    def give_up(self, session: Session) -> None:
        """Something that this page asked for failed on its way: a question that never came to the model is given back."""
        if session.cut:  # an earlier one, which was stopped
            session.cut -= 1
            return
        job = session.job
        if job is not None and not job.running:
            self.halt(session)
            for answer in job.answers:
                answer.note = "not asked: the queue is full, or a setting was not taken; ask again"

    def again(self, session: Session) -> bool:
        """Ask the last question once more, in place of its answer."""
        if session.busy or not session.turns:
            return False
        return self.begin(session, session.turns.pop().question)

    def clear(self, session: Session) -> None:
        """Forget the conversation; the clip stays."""
        if session.job is not None:
            session.job.stop.set()
        session.turns, session.notice = [], ""

    def begin_duel(self, session: Session, question: str) -> bool:
        """Take a question for both models; which one is A is drawn."""
        if session.busy or not self._can_ask(session, question):
            return False
        # Not from the shared generator, which loading a model seeds: the order would be the same after every start.
        seed, names = self._seed(session), random.SystemRandom().sample(PAIR, 2)
        session.duel = SideBySide((Answer(question.strip(), names[0], seed), Answer(question.strip(), names[1], seed)))
        session.job = Job(session.duel.answers)
        return True

    def fight(self, session: Session, options: SamplingParams) -> Iterator[None]:
        """Both answers, piece by piece; then what the reward model and the judge make of them, which shows after the vote."""
        job, duel, look = session.job, session.duel, session.loaded
        if job is None or duel is None or look is None or job.running or job.answers is not duel.answers:
            return
        job.running = True
        try:
            # Nothing shows before both are there: which of them has read the clip before could be told by its speed.
            behind = [replace(answer) for answer in duel.answers]
            for answer in duel.answers:
                answer.state = "speaking"
            for answer, spoken in zip(duel.answers, behind, strict=True):
                for _ in self._speak(job, look, [], spoken, options):
                    yield
                if spoken.note:
                    answer.state, answer.note = "done", spoken.note
                    duel.note = "Stopped: there is nothing to vote on." if spoken.note == "stopped" else spoken.note
                    return
            for answer, spoken in zip(duel.answers, behind, strict=True):
                answer.text, answer.state = spoken.text, "done"
            yield
            self.worker.call(lambda engine: _examine(engine, look, duel))
        except Exception as error:  # a vote can do without a judge
            duel.note, duel.unjudged = told(error), True
        finally:
            whole = all(answer.state == "done" and not answer.note for answer in duel.answers)
            duel.ready = whole and not job.stop.is_set()
            self._end(session, job)
        yield

    def vote(self, session: Session, choice: str, options: SamplingParams) -> None:
        """Keep a vote; only the first one on a pair counts."""
        duel = session.duel
        if duel is None or not duel.ready or duel.vote or duel.alike or choice not in CHOICES:
            return
        duel.vote, (a, b) = choice, duel.answers
        if self.ballot is None or session.clip is None or session.loaded is None:
            return
        facts = {
            "reward_1": a.score,
            "reward_2": b.score,
            "frames": len(session.loaded.times),
            "temperature": options.temperature,
        }
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
        answered = [turn for turn in session.turns if turn.text]
        if not answered or session.loaded is None:
            return ""
        messages = []
        for number, turn in enumerate(answered):
            tag = "" if number else "<video>\n"
            messages += [{"role": "user", "content": tag + turn.question}, {"role": "assistant", "content": turn.text}]
        known = [
            {"model": turn.model, "seed": turn.seed, "reward": turn.score, "ended": turn.note or "whole"} for turn in answered
        ]
        times = [round(time, 3) for time in session.loaded.times]
        row = {"videos": [session.clip.name if session.clip else ""], "messages": messages, "frames": times, "answers": known}
        return json.dumps(row, ensure_ascii=False, indent=1)

    def _can_ask(self, session: Session, question: str) -> bool:
        if session.loaded is None and not session.read.is_set() and not session.read.wait(CLIP_SECONDS):
            session.notice = "The clip is still being read. Ask again when its frames stand here."
        elif session.loaded is None:
            session.notice = "Choose a clip first: drop one, record one, or take an example."
        elif not question.strip():
            session.notice = "Type a question first."
        elif half_letters(question):
            session.notice = "The question holds half a character, which no model reads. Type it again."
        elif len(question) > LONGEST:
            session.notice = f"The question has {len(question)} letters, {LONGEST} are allowed."
        else:
            session.notice = ""
        return not session.notice

    def _seed(self, session: Session) -> int:
        session.asked += 1
        return self.engine.sampling.seed + session.asked - 1

    def _end(self, session: Session, job: Job) -> None:
        for answer in job.answers:
            if answer.state == "speaking":
                answer.state, answer.note = "done", answer.note or "stopped"
        job.ended.set()
        if session.job is job:  # it was not stopped, and nothing that was stopped before it is still to be reported
            session.job, session.cut = None, 0

    def _speak(
        self, job: Job, look: LoadedClip, before: Sequence[Turn], answer: Answer, options: SamplingParams
    ) -> Iterator[None]:
        """Stream one answer into `answer`. Errors of the model end it with a note."""
        if job.stop.is_set():
            answer.state, answer.note = "done", "stopped"
            return
        answer.state = "speaking"
        chosen = replace(options, seed=answer.seed)
        try:
            pieces = self.worker.stream(lambda e: e.stream(look, before, answer.question, chosen, answer.model), job.stop)
            with closing(pieces):  # type: ignore[type-var]
                yield
                for piece in pieces:
                    if job.stop.is_set():  # the page went on
                        break
                    answer.text += piece
                    yield
                if job.stop.is_set():
                    answer.note = "stopped"
        except Exception as error:
            answer.note = told(error)
        answer.state = "done"


def _examine(engine: ChatEngine, look: LoadedClip, duel: SideBySide) -> None:
    for answer in duel.answers:
        if answer.text:
            answer.score = engine.score(look, answer.question, answer.text)
    if isinstance(engine, JudgingEngine) and all(answer.text for answer in duel.answers):
        duel.judged = engine.judge(look, *(duel.answers[0].question, *(answer.text for answer in duel.answers)))
