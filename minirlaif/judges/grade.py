"""Marks from a model's replies: what was asked before is read from disk, the rest is asked, everything is counted.

A killed run has lost no reply that had arrived, and asks only for what is missing. A reply that cannot be read is asked for again
with what was wrong with it; when no attempt is left, the row stays without a mark and says why.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from minirlaif.errors import UserError
from minirlaif.judges.base import AskedJudge, JudgeName, Refused, Reply
from minirlaif.judges.cache import Replies
from minirlaif.judges.config import JudgeSettings
from minirlaif.judges.rubric import Grade, Message, Unreadable, complaint, parse_grade
from minirlaif.runs.progress import progress

LETTERS_PER_TOKEN = 4  # of English text, for the estimate
OVERHEAD = 16  # tokens of a chat layout
REPLY_TOKENS = 16  # of {"score": 3} and the like
HOPELESS = 5  # so many refusals before any reply: it is not the questions


@dataclass(frozen=True)
class Question:
    """One thing to ask a judge. with_pred: yes or no beside the score."""

    messages: tuple[Message, ...]
    with_pred: bool


@dataclass(frozen=True)
class Marked:
    """What came of a question: a grade, or why there is none. reply: the last one, "" without."""

    grade: Grade | None
    why: str = ""
    reply: str = ""


@dataclass
class Counts:
    """asked: requests that brought a reply; kept: replies read from disk; unreadable: replies that were no mark;
    refused: questions that the judge would not take."""

    asked: int = 0
    kept: int = 0
    unreadable: int = 0
    refused: int = 0
    tokens_in: int = 0  # of what was asked, as the judge counted them
    tokens_out: int = 0
    versions: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Estimate:
    """What is ahead before anybody is asked; cost in the currency of the prices."""

    questions: int
    kept: int
    tokens_in: int
    tokens_out: int
    cost: float
    attempts: int = 1  # how often one question may be asked

    def told(self, name: str, priced: bool) -> str:
        """For people."""
        ahead = self.questions - self.kept
        cost = f", about {self.cost:.2f} at the given prices" if priced else ""
        tokens = f"about {self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        more = "once more" if self.attempts == 2 else f"up to {self.attempts - 1} times more"
        again = f"; a reply that cannot be read is asked for {more}" if ahead and self.attempts > 1 else ""
        return f"judge {name}: {self.questions} questions, {self.kept} replies kept, {ahead} to ask ({tokens}{cost}){again}"


def estimate(judge: AskedJudge, settings: JudgeSettings, questions: Sequence[Question], replies: Replies) -> Estimate:
    """How much is still to ask. UserError when that costs more than `max_cost`."""
    missing = [q for q in dict.fromkeys(_key(judge, q.messages) for q in questions) if replies.get(q) is None]
    first = {_key(judge, q.messages): q for q in questions}
    letters = sum(len(message["content"]) for key in missing for message in first[key].messages)
    tokens_in = letters // LETTERS_PER_TOKEN + OVERHEAD * len(missing)
    tokens_out = REPLY_TOKENS * len(missing)
    cost = (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6
    if settings.max_cost and cost > settings.max_cost:
        raise UserError(
            f"judge {judge.name}: {len(missing)} questions would cost about {cost:.2f}, max_cost is {settings.max_cost:g}; raise"
            " it, or ask about fewer rows with --limit"
        )
    return Estimate(len(first), len(first) - len(missing), tokens_in, tokens_out, cost, settings.attempts)


def grade_all(
    judge: AskedJudge, settings: JudgeSettings, questions: Sequence[Question], replies: Replies
) -> tuple[list[Marked], Counts]:
    """A mark, or a reason why not, for each question; equal questions are asked once.

    Raises:
        UserError: the judge cannot be asked at all. Replies so far are kept.
    """
    counts, lock = Counts(), threading.Lock()
    stopped: list[BaseException] = []  # the first error, after which nobody is asked any more
    distinct = {_key(judge, q.messages): q for q in questions}
    marks: dict[str, Marked] = {}

    def work(key: str, question: Question) -> Marked:
        if stopped:
            raise stopped[0]
        try:
            return _marked(judge, settings, question, replies, counts, lock)
        except BaseException as error:
            stopped.append(error)
            raise

    pool = ThreadPoolExecutor(max_workers=judge.parallel)
    try:
        futures = {pool.submit(work, key, q): key for key, q in distinct.items()}
        for future in progress(as_completed(futures), len(futures), f"judge {judge.name}"):
            if future.exception() is not None:
                raise stopped[0]
            marks[futures[future]] = future.result()
    except BaseException as error:
        stopped.append(error)
        judge.close()  # the other threads need not pause and try again
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [marks[_key(judge, q.messages)] for q in questions], counts


def judge_name(judge: AskedJudge, prompt: str, counts: Counts) -> JudgeName:
    """By what name the marks stand. UserError when the replies are of several versions of the model."""
    if len(counts.versions) > 1:
        told = ", ".join(sorted(counts.versions))
        raise UserError(
            f"judge {judge.name}: its replies come from several versions ({told}), whose marks must not be mixed; name one"
            " version as the model, or forget the replies of one with --judge-set drop_version=NAME and repeat the command"
        )
    dates = (min(counts.dates), max(counts.dates)) if counts.dates else ()
    return JudgeName(judge.kind, judge.name, next(iter(counts.versions), ""), prompt, dates, judge.signature)


def nothing_read(name: str, counts: Sequence[Mapping[str, int]], last: str) -> UserError | None:
    """The complaint about a judge none of whose replies was a mark, or None. counts: `asked`, `kept` and `unreadable` of each
    model that was marked; last: its last reply."""
    replies, unreadable = (sum(each[name] for each in counts for name in names) for names in (("asked", "kept"), ("unreadable",)))
    if not replies or unreadable < replies:
        return None
    shown = " ".join(last.split())
    return UserError(
        f"judge {name}: none of its {replies} replies could be read, the last one was {shown[:80]!r}; name a bigger model, or"
        " other prompts with --judge-set prompts=FILE"
    )


def _key(judge: AskedJudge, messages: Sequence[Message]) -> str:
    return Replies.key(judge.signature, messages)


def _marked(
    judge: AskedJudge,
    settings: JudgeSettings,
    question: Question,
    replies: Replies,
    counts: Counts,
    lock: threading.Lock,
) -> Marked:
    told = list(question.messages)
    reply, why = "", ""
    for _ in range(settings.attempts):
        try:
            found = _reply(judge, told, replies, counts, lock)
        except Refused as error:
            with lock:
                counts.refused += 1
                if counts.refused >= HOPELESS and not counts.asked + counts.kept:
                    raise UserError(f"judge {judge.name}: refuses every question ({error}); check its settings") from None
            return Marked(None, f"refused: {error}", reply)
        reply = found.text
        try:
            return Marked(parse_grade(reply, question.with_pred), reply=reply)
        except Unreadable as error:
            why = f"unreadable: {error}"
            with lock:
                counts.unreadable += 1
            told += [{"role": "assistant", "content": reply}, {"role": "user", "content": complaint(str(error))}]
    return Marked(None, why, reply)


def _reply(judge: AskedJudge, told: Sequence[Message], replies: Replies, counts: Counts, lock: threading.Lock) -> Reply:
    key = _key(judge, told)
    found = replies.get(key)
    if found is None:
        found = judge.ask(told)
        replies.put(key, found)
        with lock:
            counts.asked += 1
            counts.tokens_in += found.tokens_in
            counts.tokens_out += found.tokens_out
    else:
        with lock:
            counts.kept += 1
    with lock:
        counts.versions.add(found.version)
        counts.dates.add(found.date)
    return found
