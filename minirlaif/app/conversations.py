"""Conversations and comparisons about clips: every action that an open page can request. No torch, no Gradio.

Methods that wait for the model are generators: after each step the page is rendered again from the session.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from minirlaif.app.engine_thread import EngineThread, until
from minirlaif.app.sessions import Answer, Job, Session, SideBySide, compared_models, error_message
from minirlaif.app.uploads import UploadStore
from minirlaif.app.votes import CHOICES, VoteStore
from minirlaif.data.formats import half_letters
from minirlaif.errors import UserError
from minirlaif.inference.engine import ChatEngine, JudgingEngine, LoadedClip, SamplingParams
from minirlaif.types import Turn

MAX_QUESTION_CHARS = 4000
STOP_SECONDS = 2.0  # how long the page waits for a stopped answer to end
CLIP_SECONDS = 30.0  # how long a question waits for the frames of its clip


class ChatService:
    """All open pages over one engine. vote_store: None turns voting off."""

    def __init__(self, engine_thread: EngineThread, upload_store: UploadStore, vote_store: VoteStore | None) -> None:
        self.engine_thread, self.upload_store, self.vote_store = engine_thread, upload_store, vote_store
        self.engine = engine_thread.engine
        self._sessions: dict[str, Session] = {}

    def session(self, name: str) -> Session:
        """The session of this name, created at the first call."""
        if name not in self._sessions:
            self._sessions.setdefault(name, Session()).clip_ready.set()
        return self._sessions[name]

    def close_session(self, name: str) -> None:
        """A page was closed: stop its job and delete its clip."""
        session = self._sessions.pop(name, None)
        if session is not None:
            self._reset(session)

    def sweep(self, min_age: float = 3600.0) -> None:
        """Delete uploads that no page uses and that are older than `min_age` seconds."""
        self.upload_store.sweep(self._clips_in_use(), min_age)

    def expect_upload(self, session: Session, path: str) -> None:
        """An upload has started: questions wait for `open_clip`, and no closed page deletes this clip."""
        session.pending_clip = Path(path)
        session.clip_ready.clear()

    def check_clip(self, path: str, frames: int, client: str) -> None:
        """Let the decoder look at a clip before `open_clip` has the model's turn. client: whose share of the decoder it takes."""
        with suppress(Exception):  # open_clip reports it
            self.upload_store.examine(path, frames, client)

    def open_clip(self, session: Session, path: str | None, frames: int, client: str = "") -> None:
        """Load a clip; a new one starts a new conversation. If it is refused, `session.notice` says why."""
        session.notice, clip = "", Path(path) if path else None
        same_clip = clip is not None and clip == session.clip
        try:
            if not same_clip:
                self._reset(session, clip and clip.parent)
            if path and clip:
                self.upload_store.examine(path, frames, client)
                with self.upload_store.model_time.taken(client):
                    session.loaded = self.engine_thread.call(lambda engine: engine.load_clip(path, frames))
                session.clip = clip
        except Exception as error:
            message = error_message(error)
            session.notice = f"Cannot use this clip: {message}" if isinstance(error, UserError) else message
        finally:
            pending, session.pending_clip = session.pending_clip, None
            if clip and (clip == pending or not same_clip):  # otherwise the number of frames has changed
                self.upload_store.release(clip)
            if clip and clip != session.clip:
                self._drop(clip)
            session.clip_ready.set()

    def _reset(self, session: Session, keep: Path | None = None) -> None:
        if session.job is not None:
            session.job.stop.set()
        clip, session.clip, session.loaded, session.turns, session.side_by_side = session.clip, None, None, [], None
        if clip is not None and clip.parent != keep:
            self._drop(clip)
        self.sweep()

    def _drop(self, clip: Path) -> None:
        """Delete a clip unless another page uses it. Uploads with equal content share a folder, whatever their names."""
        self.upload_store.drop(clip, lambda: all(other.parent != clip.parent for other in self._clips_in_use()))

    def _clips_in_use(self) -> list[Path]:
        sessions = list(self._sessions.values())
        return [clip for session in sessions for clip in (session.clip, session.pending_clip) if clip is not None]

    def begin(self, session: Session, question: str) -> bool:
        """Add a question, so that the page shows it while the model is busy. False, with a notice, if it is refused."""
        if not self._accepts(session, question):
            return False
        session.turns.append(Answer(question.strip(), "", self._next_seed(session)))
        session.job = Job((session.turns[-1],))
        return True

    def answer(self, session: Session, sampling: SamplingParams, model: str) -> Iterator[None]:
        """Stream a model's answer to the last question, then score it with the reward model."""
        job, clip = session.job, session.loaded
        if job is None or clip is None or job.running or job.answers[:1] != tuple(session.turns[-1:]):
            return
        job.running, (last,) = True, job.answers
        last.model = model
        history = [Turn(turn.question, turn.text) for turn in session.turns[:-1] if turn.text]
        try:
            yield from self._generate(job, clip, history, last, sampling)
            if last.text and not last.note:
                yield
                last.score = self.engine_thread.call(lambda engine: engine.score(clip, last.question, last.text))
        except Exception as error:
            last.note = error_message(error)
        finally:
            self._end(session, job)
        yield

    async def stop(self, session: Session) -> None:
        """Stop the job of this page, and wait a moment for its end."""
        if job := session.job:
            job.stop.set()
            await until(lambda: job.ended.is_set() or not job.running, STOP_SECONDS)
        self.stop_job(session)

    async def clip_or_time(self, session: Session) -> None:
        """Wait for the frames of a clip that is on its way, but not for ever."""
        await until(lambda: session.loaded is not None or session.clip_ready.is_set(), CLIP_SECONDS)

    def stop_job(self, session: Session) -> None:
        """Stop the job of this page. Text that was generated stays."""
        job = session.job
        if job is None:
            return
        job.stop.set()
        if job.running and not job.ended.is_set():
            session.stopped_jobs += 1
        for answer in job.answers:
            if answer.state != "done":
                answer.end("stopped")
        pair = session.side_by_side
        if pair is not None and pair.answers is job.answers and not pair.ready:
            pair.note = "Stopped: there is nothing to vote on."
        if session.job is job:
            session.job = None

    def abandon(self, session: Session) -> None:
        """Gradio reported a failed event: if the question never reached the model, end it with a note."""
        if session.stopped_jobs:  # the report is about an earlier job, which was stopped
            session.stopped_jobs -= 1
            return
        job = session.job
        if job is not None and not job.running:
            self.stop_job(session)
            for answer in job.answers:
                answer.note = "not sent: the queue is full or a setting is invalid; ask again"

    def retry(self, session: Session) -> bool:
        """Ask the last question again and replace its answer."""
        if session.busy or not session.turns:
            return False
        return self.begin(session, session.turns.pop().question)

    def clear(self, session: Session) -> None:
        """Delete the conversation; the clip stays."""
        if session.job is not None:
            session.job.stop.set()
        session.turns, session.notice = [], ""

    def begin_side_by_side(self, session: Session, question: str) -> bool:
        """Add a question for both models, in random order. False, with a notice, if it is refused."""
        if not self._accepts(session, question):
            return False
        # Not from the shared generator, which loading a model seeds: the order would be the same after every start.
        seed, names = self._next_seed(session), random.SystemRandom().sample(compared_models(self.engine.models), 2)
        session.side_by_side = SideBySide((Answer(question.strip(), names[0], seed), Answer(question.strip(), names[1], seed)))
        session.job = Job(session.side_by_side.answers)
        return True

    def answer_both(self, session: Session, sampling: SamplingParams) -> Iterator[None]:
        """Generate both answers; then score and judge them. Scores and verdict are shown after the vote."""
        job, pair, clip = session.job, session.side_by_side, session.loaded
        if job is None or pair is None or clip is None or job.running or job.answers is not pair.answers:
            return
        job.running = True
        try:
            # Both answers are shown at once: the time to a first token would reveal which model has this clip in its cache.
            hidden_answers = [replace(answer) for answer in pair.answers]
            for answer in pair.answers:
                answer.state = "generating"
            for answer, hidden in zip(pair.answers, hidden_answers, strict=True):
                for _ in self._generate(job, clip, [], hidden, sampling):
                    yield
                if hidden.note:
                    answer.end(hidden.note)
                    pair.note = "Stopped: there is nothing to vote on." if hidden.note == "stopped" else hidden.note
                    return
            for answer, hidden in zip(pair.answers, hidden_answers, strict=True):
                answer.text, answer.state = hidden.text, "done"
            yield
            self.engine_thread.call(lambda engine: _score_and_judge(engine, clip, pair))
        except Exception as error:  # a vote is possible without a verdict
            pair.note, pair.judge_failed = error_message(error), True
        finally:
            complete = all(answer.state == "done" and not answer.note for answer in pair.answers)
            pair.ready = complete and not job.stop.is_set()
            self._end(session, job)
        yield

    def vote(self, session: Session, choice: str, sampling: SamplingParams) -> None:
        """Store a vote; only the first one on a pair counts."""
        pair, clip = session.side_by_side, session.loaded
        if pair is None or not pair.can_vote or choice not in CHOICES:
            return
        pair.vote, (a, b), verdict = choice, pair.answers, pair.verdict
        if self.vote_store is None or session.clip is None or clip is None:
            return
        judged = {"judge": verdict.choice, "context": verdict.context} if verdict else {}
        extra = {"reward_1": a.score, "reward_2": b.score, "frames": len(clip.times), "temperature": sampling.temperature}
        extra |= {"top_p": sampling.top_p, "seed": a.seed, "judge_margin": round(verdict.margin, 5) if verdict else None}
        columns: dict[str, Any] = judged | {name: value for name, value in extra.items() if value is not None}
        try:
            stored = self.vote_store.add(session.clip, a.question, (a.text, b.text), (a.model, b.model), choice, **columns)
            session.votes.add(stored)
            pair.note = ""
        except (UserError, OSError) as error:
            pair.note = f"Vote not stored: {error if isinstance(error, UserError) else error.strerror}"

    def _accepts(self, session: Session, question: str) -> bool:
        if session.busy:
            return False
        if session.loaded is None and not session.clip_ready.is_set():
            session.notice = "The clip is still loading. Ask again when its frames are shown."
        elif session.loaded is None:
            session.notice = "Choose a clip first: upload or record one, or click an example."
        elif not question.strip():
            session.notice = "Type a question first."
        elif half_letters(question):
            session.notice = "The question contains an unpaired surrogate (broken emoji). Remove it."
        elif len(question) > MAX_QUESTION_CHARS:
            session.notice = f"The question has {len(question)} characters; the limit is {MAX_QUESTION_CHARS}."
        else:
            session.notice = ""
        return not session.notice

    def _next_seed(self, session: Session) -> int:
        session.num_questions += 1
        return self.engine.sampling.seed + session.num_questions - 1

    def _end(self, session: Session, job: Job) -> None:
        for answer in job.answers:
            if answer.state == "generating":
                answer.end(answer.note or "stopped")
        job.ended.set()
        if session.job is job:  # it was not stopped, so no report about an earlier stopped job is outstanding
            session.job, session.stopped_jobs = None, 0

    def _generate(
        self, job: Job, clip: LoadedClip, history: Sequence[Turn], answer: Answer, sampling: SamplingParams
    ) -> Iterator[None]:
        """Stream into `answer`. An error of the model ends it with a note."""
        if job.stop.is_set():
            answer.end("stopped")
            return
        answer.state = "generating"
        seeded = replace(sampling, seed=answer.seed)
        try:
            pieces = self.engine_thread.stream(
                lambda engine: engine.stream(clip, history, answer.question, seeded, answer.model), job.stop
            )
            with closing(pieces):  # type: ignore[type-var]
                yield
                for piece in pieces:
                    if job.stop.is_set():  # the page may already show the next question
                        break
                    answer.text += piece
                    yield
                if job.stop.is_set():
                    answer.note = "stopped"
        except Exception as error:
            answer.note = error_message(error)
        answer.state = "done"


def _score_and_judge(engine: ChatEngine, clip: LoadedClip, pair: SideBySide) -> None:
    a, b = pair.answers
    for answer in (a, b):
        if answer.text:
            answer.score = engine.score(clip, answer.question, answer.text)
    if isinstance(engine, JudgingEngine) and a.text and b.text:
        pair.verdict = engine.judge(clip, a.question, a.text, b.text)
