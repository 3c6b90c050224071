"""What a chat model that judges has in common, whichever way it is reached: messages in, a reply out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Reply:
    """A model's reply. version: of the model that answered; date: UTC day; tokens: as counted by the model, 0 where unknown."""

    text: str
    version: str
    date: str
    tokens_in: int = 0
    tokens_out: int = 0


class Refused(Exception):
    """This one question gets no reply, however often it is sent (too long, against a rule of the endpoint); the text says why."""


class ChatModel(Protocol):
    """A model that replies to messages. `signature` is everything that a reply depends on beside the messages; several threads
    may call `ask` at once where `parallel` is above 1."""

    kind: str
    name: str
    parallel: int
    signature: Mapping[str, Any]

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply. Refused for this question alone; UserError when the model cannot be reached (no earlier reply is lost)."""
        ...

    def stop(self) -> None:
        """Free what was opened; calls of `ask` that still wait raise."""
        ...


def today() -> str:
    """The date of a reply."""
    return datetime.now(UTC).date().isoformat()
