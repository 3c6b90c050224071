"""What goes into a chat model that judges and what comes out, whichever way it is reached."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

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


def today() -> str:
    """The date of a reply."""
    return datetime.now(UTC).date().isoformat()
