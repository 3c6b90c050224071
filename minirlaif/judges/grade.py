"""Judges that match an answer with the reference, and grades and comparisons from a chat model's replies.

Kept replies are read from disk, the others are asked for, all are counted. A killed run has lost no reply that had arrived, and
asks only for what is missing. A reply that cannot be read is asked for again with the reason; when no attempt is left, the row
has no grade and says why.
"""

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import Grade, GradeRequest, GradeResult, Grading, JudgeName, Message, Result
from minirlaif.judges import rubric
from minirlaif.judges.cache import Refused, Replies, Reply
from minirlaif.judges.config import JudgeSettings, judge_prompts
from minirlaif.runs.progress import progress
from minirlaif.stats import normalised
from minirlaif.types import Choice, Comparison

LETTERS_PER_TOKEN = 4  # of English text, for the estimate
OVERHEAD = 16  # tokens of a chat layout
REPLY_TOKENS = 16  # of {"score": 3} and the like
COMPLAINT_TOKENS = 64  # of what is sent after a reply that cannot be read
FEWER_PROMPTS = "or label fewer prompts with feedback.limit"  # lowers the cost of feedback
MAX_REFUSALS = 5  # before any reply: the settings are wrong, not the questions
MATCH_NAMES = {kind: JudgeName(kind, f"{kind} match", "1", "") for kind in ("exact", "normalised")}  # 1: version of the rule

T = TypeVar("T")


def _form(request: GradeRequest) -> tuple[Callable[[str], Grade], str, str]:
    """How a reply is parsed, what it must be, and as a grammar."""
    if request.metric == rubric.CAPTIONING:
        parse = partial(rubric.parse_option, question=request.questions[0], right=request.reference)
        return parse, rubric.OPTION, rubric.OPTION_GRAMMAR
    is_qa = request.metric == "qa"
    return partial(rubric.parse_grade, with_pred=is_qa), rubric.OBJECT, rubric.GRADE_GRAMMAR if is_qa else rubric.SCORE_GRAMMAR


class MatchJudge:
    """kind exact: equal up to case, spaces and one final full stop; normalised: also up to punctuation, articles and small
    numbers. Of two answers (consistency) both must match."""

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        self.kind, self.name = settings.kind, MATCH_NAMES[settings.kind].name
        self.signature: dict[str, Any] = {"kind": self.kind}

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        """The best grade, or the worst."""
        form = normalised if self.kind == "exact" else rubric.plain_answer
        right = [all(form(answer) == form(request.reference) for answer in request.answers) for request in requests]
        return Grading(MATCH_NAMES[self.kind], [GradeResult(Grade(rubric.HIGHEST if each else 0, each)) for each in right])

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        """Not possible: feedback has no reference answers."""
        raise UserError(f"judge {self.kind}: compares with a reference answer, and feedback has none; use hf, gguf or openai")

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """One question to a model. parse: reads its reply or raises Unreadable; wanted: what a reply must be, in words; grammar: the
    same for models that can be kept to one, "" for any text."""

    messages: Sequence[Message]
    parse: Callable[[str], T]
    wanted: str = rubric.OBJECT
    grammar: str = ""


@dataclass
class Counts:
    """requested: replies that the model was asked for; kept: replies read from disk; unreadable: replies without a value;
    refused: questions that the model would not take. Several threads count: hold the lock."""

    requested: int = 0
    kept: int = 0
    unreadable: int = 0
    refused: int = 0
    tokens_in: int = 0  # of the requests, as the model counted them
    tokens_out: int = 0
    versions: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def text(self, name: str) -> str:
        """One line for the screen."""
        tokens = f" ({self.tokens_in:,} tokens in, {self.tokens_out:,} out)" if self.tokens_in else ""
        unreadable = f", {self.unreadable} could not be read" if self.unreadable else ""
        refused = f", {self.refused} refused" if self.refused else ""
        return f"judge {name}: {self.requested} replies requested{tokens}, {self.kept} kept from before{unreadable}{refused}"


class ChatJudge(ABC):
    """A TextJudge over a chat model. Subclasses set `kind`, `name` and `signature` (everything that a reply depends on beside the
    messages) and implement `ask` and `stop`. `parallel` threads may call `ask` at once. replies: file of kept replies; None: they
    are kept in memory."""

    kind: str
    name: str
    signature: Mapping[str, Any]
    parallel: int = 1

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        self.settings, self.replies = settings, Replies(replies)

    @abstractmethod
    def ask(self, messages: Sequence[Message], grammar: str) -> Reply:
        """One reply, within a grammar where the model can be kept to one. Refused for this question alone; UserError when the
        model cannot be reached (no earlier reply is lost)."""

    @abstractmethod
    def stop(self) -> None:
        """Free the model; calls of `ask` that still wait raise."""

    def close(self) -> None:
        """Free the model and close the file of replies."""
        self.stop()
        self.replies.close()

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        """Grades, after the number and cost of the questions was printed. UserError when the replies are of several versions."""
        prompts = judge_prompts(self.settings)
        if version := self.settings.drop_version:
            print(f"judge {self.name}: {self.replies.drop(version)} replies of {version} deleted", flush=True)
        questions = []
        for each in requests:
            texts = rubric.messages(prompts[each.metric], each.questions, each.reference, each.answers)
            questions.append(Question(texts, *_form(each)))
        print(self.estimate(questions), flush=True)
        results, counts = self.ask_all(questions)
        name = self.judge_name(rubric.prompt_hash({metric: prompts[metric] for metric in metrics}), counts)
        print(counts.text(self.name), flush=True)
        totals = {"asked": counts.requested} | {n: getattr(counts, n) for n in ("kept", "unreadable", "refused")}
        return Grading(name, results, totals)

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        """The letter of each reply; "invalid" where it cannot be read after all attempts, or was refused."""
        questions = []
        for pair in pairs:
            parse = partial(rubric.parse_choice, answers=(pair.answer_a, pair.answer_b))
            questions.append(Question(rubric.comparison_messages(pair), parse, rubric.LETTER, rubric.LETTER_GRAMMAR))
        results, _ = self.ask_all(questions, report=False)
        return ["invalid" if result.value is None else result.value for result in results]

    def estimate(self, questions: Sequence[Question[Any]]) -> str:
        """How much is still to ask, for the screen. UserError when that costs more than `max_cost`."""
        s, distinct = self.settings, {self._key(q.messages): q for q in questions}
        missing = [question for key, question in distinct.items() if self.replies.get(key) is None]
        letters = sum(len(message["content"]) for question in missing for message in question.messages)
        tokens_in, tokens_out = letters // LETTERS_PER_TOKEN + OVERHEAD * len(missing), REPLY_TOKENS * len(missing)
        cost = self._cost(tokens_in, tokens_out)
        if s.max_cost and cost > s.max_cost:
            raise UserError(
                f"judge {self.name}: {len(missing)} questions would cost about {cost:.2f}, max_cost is {s.max_cost:g}; raise it,"
                " or ask about fewer rows with --limit"
            )
        most = self.most_cost(len(missing), tokens_in)
        price = f", about {cost:.2f} at the given prices, at most {most:.2f}" if s.price_in or s.price_out else ""
        more = "once more" if s.attempts == 2 else f"up to {s.attempts - 1} times more"
        again = f"; a reply that cannot be read is asked for {more}" if missing and s.attempts > 1 else ""
        return (
            f"judge {self.name}: {len(distinct)} questions, {len(distinct) - len(missing)} replies kept, {len(missing)} to ask"
            f" (about {tokens_in:,} tokens in and {tokens_out:,} out{price}){again}"
        )

    def forecast(self, questions: int, tokens_each: int, noun: str = "comparisons", less: str = FEWER_PROMPTS) -> str:
        """What so many questions of at most so many tokens may cost, for the screen. less: what lowers that. UserError when it is
        above `max_cost`."""
        s, most = self.settings, self.most_cost(questions, questions * tokens_each)
        if s.max_cost and most > s.max_cost:
            text = f"{questions:,} {noun} would cost up to {most:.2f}, max_cost is {s.max_cost:g}"
            raise UserError(f"judge {self.name}: {text}; raise it, {less}")
        price = f", at most {most:.2f} at the given prices" if s.price_in or s.price_out else ""
        return f"judge {self.name}: up to {questions:,} {noun} of up to {tokens_each:,} tokens{price}"

    def most_cost(self, questions: int, tokens_in: int) -> float:
        """What questions with so many tokens together cost when each is asked as often as allowed, with the longest replies."""
        s = self.settings
        again = s.attempts * (s.attempts - 1) // 2 * (s.max_tokens + COMPLAINT_TOKENS)  # earlier replies are sent as well
        return self._cost(s.attempts * tokens_in + questions * again, questions * s.attempts * s.max_tokens)

    def _cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.settings.price_in + tokens_out * self.settings.price_out) / 1e6

    def ask_all(self, questions: Sequence[Question[T]], report: bool = True) -> tuple[list[Result[T]], Counts]:
        """A value, or a reason why not, for each question; equal questions are asked once. report: show the progress. UserError
        when the model cannot be reached; replies that had arrived are kept."""
        counts = Counts()
        errors: list[BaseException] = []  # after the first one no further question is sent
        distinct = {self._key(q.messages): q for q in questions}
        results: dict[str, Result[T]] = {}

        def work(question: Question[T]) -> Result[T]:
            if errors:
                raise errors[0]
            try:
                return self._result(question, counts)
            except BaseException as error:
                errors.append(error)
                raise

        pool = ThreadPoolExecutor(max_workers=self.parallel)
        try:
            futures = {pool.submit(work, question): key for key, question in distinct.items()}
            done = as_completed(futures)
            for future in progress(done, len(futures), f"judge {self.name}") if report else done:
                if future.exception() is not None:
                    raise errors[0]
                results[futures[future]] = future.result()
        except BaseException as error:
            errors.append(error)
            self.stop()  # the other threads need not pause and try again
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [results[self._key(q.messages)] for q in questions], counts

    def judge_name(self, prompt: str, counts: Counts) -> JudgeName:
        """Who gave the grades. UserError when the replies are of several versions of the model."""
        if len(counts.versions) > 1:
            raise UserError(
                f"judge {self.name}: its replies come from several versions ({', '.join(sorted(counts.versions))}), whose grades"
                " must not be mixed; name one version as the model, or delete the replies of one with --judge-set"
                " drop_version=NAME and repeat the command"
            )
        dates = (min(counts.dates), max(counts.dates)) if counts.dates else ()
        return JudgeName(self.kind, self.name, next(iter(counts.versions), ""), prompt, dates, self.signature)

    def _key(self, messages: Sequence[Message]) -> str:
        """Hash of everything that a reply depends on."""
        return hashlib.sha256(json.dumps([dict(self.signature), list(messages)], sort_keys=True).encode()).hexdigest()

    def _result(self, question: Question[T], counts: Counts) -> Result[T]:
        conversation = list(question.messages)
        text, why = "", ""
        for _ in range(self.settings.attempts):
            try:
                reply = self._reply(conversation, question.grammar, counts)
                text = reply.text
            except Refused as error:
                with counts.lock:
                    counts.refused += 1
                    if counts.refused >= MAX_REFUSALS and not counts.requested + counts.kept:
                        raise UserError(f"judge {self.name}: refuses every question ({error}); check its settings") from None
                return Result(None, f"refused: {error}", text)
            try:
                return Result(question.parse(text), reply=text, cut=reply.cut)
            except rubric.Unreadable as error:
                why = f"unreadable: {error}"
                with counts.lock:
                    counts.unreadable += 1
                again = rubric.complaint(str(error), question.wanted)
                conversation += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
        return Result(None, why, text)

    def _reply(self, messages: Sequence[Message], grammar: str, counts: Counts) -> Reply:
        key = self._key(messages)
        kept = self.replies.get(key)
        reply = kept or self.ask(messages, grammar)
        if not kept:
            self.replies.put(key, reply)
        with counts.lock:
            counts.versions.add(reply.version)
            counts.dates.add(reply.date)
            if kept:
                counts.kept += 1
            else:
                counts.requested += 1
                counts.tokens_in += reply.tokens_in
                counts.tokens_out += reply.tokens_out
        return reply


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
