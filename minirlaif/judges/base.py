"""Judges: who marks answers, and by what name their marks stand. Records only; the modules of this package do the work.

match.py     exact and normalised match, no model asked
asking.py    marks from a model's replies: asked, read strictly, kept, counted
endpoint.py  any OpenAI-compatible address
local.py     a model of transformers, a GGUF file through llama.cpp
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from minirlaif.judges.rubric import Message

UNTOLD = ("kind", "name", "model", "url", "file", "files", "max_tokens", "context")  # of `more`: not in a title, or already


@dataclass(frozen=True)
class JudgeName:
    """Whose marks these are. Marks with different keys never stand in one column.

    kind: exact, normalised, hf, gguf, openai, or how candidates were chosen (likelihood, letter); version: what exactly
    answered, a file's hash or the name that the endpoint gave itself; prompt: hash of what is asked; dates: first and last reply
    (UTC days).
    """

    kind: str
    name: str
    version: str
    prompt: str
    dates: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)  # how it is asked: address, temperature and the like

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for marks that may be compared. Ends with a hash of how was asked: the same name at another address, or at
        another temperature, is another judge."""
        asked = json.dumps(dict(self.more), sort_keys=True, default=str)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:12] if self.more else ""
        return self.kind, self.name, self.version, self.prompt, digest

    @property
    def title(self) -> str:
        """For the head of a table."""
        version = "" if self.version in ("", self.name) else f", version {self.version}"
        dates = f", {' to '.join(dict.fromkeys(self.dates))}" if self.dates else ""
        prompt = f", prompt {self.prompt}" if self.prompt else ""
        asked = self._asked()
        host = f" {asked.pop(0)}" if "url" in self.more else ""
        more = "".join(f", {each}" for each in asked)
        return f"{self.name} ({self.kind}{host}){version}{more}{prompt}{dates}"

    @property
    def asked(self) -> str:
        """How, in words: the address, a temperature other than 0 and the like; "" where there is nothing to say."""
        return ", ".join(self._asked())

    def _asked(self) -> list[str]:
        host = [f"at {urlsplit(str(self.more['url'])).netloc}"] if "url" in self.more else []
        told = [(name, value) for name, value in self.more.items() if name not in UNTOLD and value not in (0, "none")]
        return [*host, *(f"{name} {json.dumps(value, default=str).strip(chr(34))[:20]}" for name, value in told)]


@dataclass(frozen=True)
class Reply:
    """What a model answered. version: of whoever answered; date: UTC day; tokens: as counted by the model, 0 where unknown."""

    text: str
    version: str
    date: str
    tokens_in: int = 0
    tokens_out: int = 0


class Refused(Exception):
    """This one question gets no reply, whatever is tried (too long, against a rule of the endpoint); the text says why."""


class AskedJudge(Protocol):
    """A model that can be asked. `signature` is everything that a reply depends on beside the messages; several threads may call
    `ask` at once where `parallel` is above 1."""

    kind: str
    name: str
    parallel: int
    signature: Mapping[str, Any]

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply. Refused for this question alone; UserError when nobody can be asked (nothing is lost)."""
        ...

    def close(self) -> None:
        """Free what was opened; whoever waits in `ask` gives up."""
        ...
