"""The protocol of judges that read text: benchmarks take their grades, the stage `feedback` their comparisons. Records only.

Such a judge sees no video: a reference answer, or descriptions of the clip, stand for it.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from minirlaif.types import Choice, Comparison

T = TypeVar("T")
Message = dict[str, Any]  # {"role": "system" | "user" | "assistant", "content": text, or for describers a list of parts}
NOT_SHOWN = ("kind", "name", "model", "url", "file", "files", "max_tokens", "context")  # request settings left out of a title


@dataclass(frozen=True)
class JudgeName:
    """Who gave grades. Grades with different keys never stand in one column.

    kind: exact, normalised, hf, gguf, openai …, or how candidates were chosen (likelihood, letter); version: what exactly
    answered, a file's hash or the name that the endpoint gave itself; prompt: hash of the prompts; dates: first and last reply
    (UTC days).
    """

    kind: str
    name: str
    version: str
    prompt: str
    dates: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)  # request settings: address, temperature and the like

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for grades that may be compared. Ends with a hash of the request settings: the same name at another address, or
        at another temperature, is another judge."""
        settings = json.dumps(dict(self.more), sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12] if self.more else ""
        return self.kind, self.name, self.version, self.prompt, digest

    @property
    def title(self) -> str:
        """For the head of a table."""
        version = "" if self.version in ("", self.name) else f", version {self.version}"
        dates = f", {' to '.join(dict.fromkeys(self.dates))}" if self.dates else ""
        prompt = f", prompt {self.prompt}" if self.prompt else ""
        settings = self._settings()
        host = f" {settings.pop(0)}" if "url" in self.more else ""
        more = "".join(f", {each}" for each in settings)
        return f"{self.name} ({self.kind}{host}){version}{more}{prompt}{dates}"

    @property
    def settings(self) -> str:
        """Request settings in words: the address, a temperature other than 0 and the like; "" where all are the defaults."""
        return ", ".join(self._settings())

    def _settings(self) -> list[str]:
        host = [f"at {urlsplit(str(self.more['url'])).netloc}"] if "url" in self.more else []
        options = [(name, value) for name, value in self.more.items() if name not in NOT_SHOWN and value not in (0, "none")]
        return [*host, *(f"{name} {json.dumps(value, default=str).strip(chr(34))[:20]}" for name, value in options)]


@dataclass(frozen=True)
class Grade:
    """A judge's grade of one answer. score: 0 to 5; yes: whether the answer is right, where that is part of the metric."""

    score: int
    yes: bool | None = None


@dataclass(frozen=True)
class GradeRequest:
    """An answer to grade against a reference by a metric of `judges.rubric`; consistency has two questions and two answers."""

    metric: str
    questions: tuple[str, ...]
    reference: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Result(Generic[T]):
    """What a judge's reply means, or why it has no value. reply: the judge's last one, "" where it has none; cut: whether that
    ended at the limit of tokens."""

    value: T | None
    why: str = ""
    reply: str = ""
    cut: bool = False


GradeResult = Result[Grade]


@dataclass(frozen=True)
class Grading:
    """Results in the order of the requests, and who gave them. counts: replies that were asked for, that were kept from before,
    that were unreadable, and refused questions."""

    judge: JudgeName
    results: Sequence[GradeResult]
    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(("asked", "kept", "unreadable", "refused"), 0))


class TextJudge(Protocol):
    """A judge that reads text. `signature` is everything that its judgement depends on beside the texts that it is given."""

    kind: str
    name: str
    signature: Mapping[str, Any]

    def grade(self, requests: Sequence[GradeRequest], metrics: Collection[str]) -> Grading:
        """Grade answers of a benchmark. metrics: all that the benchmark has, also those without a request.
        UserError: the judge cannot be asked; what it answered before is not lost."""

    def compare(self, pairs: Sequence[Comparison]) -> list[Choice]:
        """Which answer of each pair is better, seen in the given order only: `feedback.judge.judge_texts` asks in both orders.
        UserError: the judge cannot be asked, or cannot compare two answers."""

    def close(self) -> None:
        """Free what was opened."""
