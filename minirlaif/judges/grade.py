"""Grades and comparisons from a chat model's replies: kept replies are read from disk, the others are asked for, all are counted.

A killed run has lost no reply that had arrived, and asks only for what is missing. A reply that cannot be read is asked for again
with the reason; when no attempt is left, the row has no grade and says why.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import Choice, GradeRequest, GradeResult, Grading, JudgeName
from minirlaif.judges.base import ChatModel, Message, Refused, Reply
from minirlaif.judges.cache import Replies
from minirlaif.judges.config import JudgeSettings, judge_prompts
from minirlaif.judges.rubric import (
    LETTER,
    OBJECT,
    Unreadable,
    comparison_messages,
    complaint,
    messages,
    parse_choice,
    parse_grade,
    prompt_hash,
)
from minirlaif.runs.progress import progress
from minirlaif.types import Comparison

LETTERS_PER_TOKEN = 4  # of English text, for the estimate
OVERHEAD = 16  # tokens of a chat layout
REPLY_TOKENS = 16  # of {"score": 3} and the like
MAX_REFUSALS = 5  # before any reply: the settings are wrong, not the questions

T = TypeVar("T")


@dataclass(frozen=True)
class Question(Generic[T]):
    """One question to a model. parse: reads its reply or raises Unreadable; wanted: what a reply must be, in words."""

    messages: tuple[Message, ...]
    parse: Callable[[str], T]
    wanted: str = OBJECT


@dataclass(frozen=True)
class Result(Generic[T]):
    """The value of a reply, or why there is none. reply: the last one, "" without."""

    value: T | None
    why: str = ""
    reply: str = ""


@dataclass
class Counts:
    """asked: requests that brought a reply; kept: replies read from disk; unreadable: replies without a value;
    refused: questions that the model would not take."""

    asked: int = 0
    kept: int = 0
    unreadable: int = 0
    refused: int = 0
    tokens_in: int = 0  # of what was asked, as the model counted them
    tokens_out: int = 0
    versions: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)

    def text(self, name: str) -> str:
        """One line for the screen."""
        tokens = f" ({self.tokens_in:,} tokens in, {self.tokens_out:,} out)" if self.tokens_in else ""
        unreadable = f", {self.unreadable} could not be read" if self.unreadable else ""
        refused = f", {self.refused} refused" if self.refused else ""
        return f"judge {name}: {self.asked} replies asked for{tokens}, {self.kept} kept from before{unreadable}{refused}"


@dataclass(frozen=True)
class Estimate:
    """What is still to ask; cost in the currency of the prices."""

    questions: int
    kept: int
    tokens_in: int
    tokens_out: int
    cost: float
    attempts: int = 1  # how often one question may be asked

    def text(self, name: str, priced: bool) -> str:
        """One line for the screen."""
        missing = self.questions - self.kept
        cost = f", about {self.cost:.2f} at the given prices" if priced else ""
        tokens = f"about {self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        more = "once more" if self.attempts == 2 else f"up to {self.attempts - 1} times more"
        again = f"; a reply that cannot be read is asked for {more}" if missing and self.attempts > 1 else ""
        return f"judge {name}: {self.questions} questions, {self.kept} replies kept, {missing} to ask ({tokens}{cost}){again}"


class ChatJudge(ABC):
    """A TextJudge over a chat model. Subclasses set the attributes and implement `ask` and `stop` of ChatModel.

    replies: file of kept replies; None: they are kept in memory.
    """

    kind: str
    name: str
    parallel: int = 1
    signature: Mapping[str, Any]

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        self.settings, self._replies = settings, Replies(replies)

    @abstractmethod
    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply; see ChatModel."""

    @abstractmethod
    def stop(self) -> None:
        """Free the model; see ChatModel."""

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        """Grades, after the number and cost of the questions was printed. UserError when the replies are of several versions."""
        s, prompts = self.settings, judge_prompts(self.settings)
        if s.drop_version:
            print(f"judge {self.name}: {self._replies.drop(s.drop_version)} replies of {s.drop_version} deleted", flush=True)
        questions = [
            Question(
                tuple(messages(prompts[request.metric], request.questions, request.reference, request.answers)),
                partial(parse_grade, with_pred=request.metric == "qa"),
            )
            for request in requests
        ]
        print(estimate(self, s, questions, self._replies).text(self.name, bool(s.price_in or s.price_out)), flush=True)
        results, counts = ask_all(self, s, questions, self._replies)
        name = judge_name(self, prompt_hash({metric: prompts[metric] for metric in metrics}), counts)
        print(counts.text(self.name), flush=True)
        totals = {key: getattr(counts, key) for key in ("asked", "kept", "unreadable", "refused")}
        return Grading(name, [GradeResult(each.value, each.why, each.reply) for each in results], totals)

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        """The letter of each reply; "invalid" where it cannot be read after all attempts, or was refused."""
        questions = [
            Question(tuple(comparison_messages(pair)), partial(parse_choice, answers=(pair.answer_a, pair.answer_b)), LETTER)
            for pair in pairs
        ]
        results, _ = ask_all(self, self.settings, questions, self._replies, report=False)
        return ["invalid" if result.value is None else result.value for result in results]

    def close(self) -> None:
        """Free the model and close the file of replies."""
        self.stop()
        self._replies.close()


def estimate(judge: ChatModel, settings: JudgeSettings, questions: Sequence[Question[Any]], replies: Replies) -> Estimate:
    """How much is still to ask. UserError when that costs more than `max_cost`."""
    distinct = {_key(judge, q.messages): q for q in questions}
    missing = [question for key, question in distinct.items() if replies.get(key) is None]
    letters = sum(len(message["content"]) for question in missing for message in question.messages)
    tokens_in = letters // LETTERS_PER_TOKEN + OVERHEAD * len(missing)
    tokens_out = REPLY_TOKENS * len(missing)
    cost = (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6
    if settings.max_cost and cost > settings.max_cost:
        raise UserError(
            f"judge {judge.name}: {len(missing)} questions would cost about {cost:.2f}, max_cost is {settings.max_cost:g}; raise"
            " it, or ask about fewer rows with --limit"
        )
    return Estimate(len(distinct), len(distinct) - len(missing), tokens_in, tokens_out, cost, settings.attempts)


def ask_all(
    judge: ChatModel, settings: JudgeSettings, questions: Sequence[Question[T]], replies: Replies, report: bool = True
) -> tuple[list[Result[T]], Counts]:
    """A value, or a reason why not, for each question; equal questions are asked once. report: show the progress.

    Raises:
        UserError: the model cannot be reached. Replies that had arrived are kept.
    """
    counts, lock = Counts(), threading.Lock()
    errors: list[BaseException] = []  # after the first one no further question is asked
    distinct = {_key(judge, q.messages): q for q in questions}
    results: dict[str, Result[T]] = {}

    def work(question: Question[T]) -> Result[T]:
        if errors:
            raise errors[0]
        try:
            return _result(judge, settings, question, replies, counts, lock)
        except BaseException as error:
            errors.append(error)
            raise

    pool = ThreadPoolExecutor(max_workers=judge.parallel)
    try:
        futures = {pool.submit(work, question): key for key, question in distinct.items()}
        done = as_completed(futures)
        for future in progress(done, len(futures), f"judge {judge.name}") if report else done:
            if future.exception() is not None:
                raise errors[0]
            results[futures[future]] = future.result()
    except BaseException as error:
        errors.append(error)
        judge.stop()  # the other threads need not pause and try again
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [results[_key(judge, q.messages)] for q in questions], counts


def judge_name(judge: ChatModel, prompt: str, counts: Counts) -> JudgeName:
    """Who gave the grades. UserError when the replies are of several versions of the model."""
    if len(counts.versions) > 1:
        raise UserError(
            f"judge {judge.name}: its replies come from several versions ({', '.join(sorted(counts.versions))}), whose grades"
            " must not be mixed; name one version as the model, or delete the replies of one with --judge-set drop_version=NAME"
            " and repeat the command"
        )
    dates = (min(counts.dates), max(counts.dates)) if counts.dates else ()
    return JudgeName(judge.kind, judge.name, next(iter(counts.versions), ""), prompt, dates, judge.signature)


def nothing_read(name: str, counts: Sequence[Mapping[str, int]], last: str) -> UserError | None:
    """The error about a judge none of whose replies was a grade, or None. counts: `asked`, `kept` and `unreadable` of each model
    that was graded; last: the judge's last reply."""
    replies, unreadable = (sum(each[name] for each in counts for name in names) for names in (("asked", "kept"), ("unreadable",)))
    if not replies or unreadable < replies:
        return None
    shown = " ".join(last.split())
    return UserError(
        f"judge {name}: none of its {replies} replies could be read, the last one was {shown[:80]!r}; name a bigger model, or"
        " other prompts with --judge-set prompts=FILE"
    )


def _key(judge: ChatModel, messages: Sequence[Message]) -> str:
    return Replies.key(judge.signature, messages)


def _result(
    judge: ChatModel, settings: JudgeSettings, question: Question[T], replies: Replies, counts: Counts, lock: threading.Lock
) -> Result[T]:
    conversation = list(question.messages)
    text, why = "", ""
    for _ in range(settings.attempts):
        try:
            text = _reply(judge, conversation, replies, counts, lock).text
        except Refused as error:
            with lock:
                counts.refused += 1
                if counts.refused >= MAX_REFUSALS and not counts.asked + counts.kept:
                    raise UserError(f"judge {judge.name}: refuses every question ({error}); check its settings") from None
            return Result(None, f"refused: {error}", text)
        try:
            return Result(question.parse(text), reply=text)
        except Unreadable as error:
            why = f"unreadable: {error}"
            with lock:
                counts.unreadable += 1
            again = complaint(str(error), question.wanted)
            conversation += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
    return Result(None, why, text)


def _reply(judge: ChatModel, messages: Sequence[Message], replies: Replies, counts: Counts, lock: threading.Lock) -> Reply:
    key = _key(judge, messages)
    kept = replies.get(key)
    if kept is None:
        reply = judge.ask(messages)
        replies.put(key, reply)
    else:
        reply = kept
    with lock:
        counts.versions.add(reply.version)
        counts.dates.add(reply.date)
        if kept is None:
            counts.asked += 1
            counts.tokens_in += reply.tokens_in
            counts.tokens_out += reply.tokens_out
        else:
            counts.kept += 1
    return reply
