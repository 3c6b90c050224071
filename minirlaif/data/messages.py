"""Messages of a conversation column: turns in the forms of LLaVA, ShareGPT, OpenAI and ms-swift, and answers in columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minirlaif.data.cells import PLACEHOLDER, BadRow, holds, kind, plain_text
from minirlaif.data.columns import CONVERSATIONS, clip_names, unused

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant"}
_ROLES |= {"system": "system", "developer": "system"}
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("query", "response"))  # a turn as one object of both texts
MASKS = ("loss", "weight", "train", "loss_scale")  # whether an answer is trained on
# Further keys that a turn may have without another meaning.
_HARMLESS = ("id", "index", "turn", "name", "type", "language", "lang", "source", "model", "tokens", "created_at", "markdown")
_FILES = ("video", "path", "url", "video_url")  # of a part of type video
_WRAPPED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)  # Video-R1's solutions


@dataclass(frozen=True)
class Message:
    """One turn. text: parts of type video stand in it as <video>; files: clips that parts name; learn: whether to train on it."""

    role: str  # user, assistant or system
    text: str
    files: tuple[str, ...] = ()
    learn: bool = True


def messages_of(value: Any, column: str) -> list[Message]:
    """Messages of a conversation column; a plain text is one question, or a conversation written as JSON."""
    if isinstance(value, str | int | float):
        turns = _turns_in(value)
        if turns is None and column not in CONVERSATIONS and column != "QA":
            return [Message("user", plain_text(value) or "")]
        if turns is None:
            raise BadRow(f"`{column}` must be a list of turns, this is {kind(value)}")
        value = turns
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        if len({len(cells) for cells in value.values()}) > 1:
            raise BadRow(f"`{column}` has {' and '.join(f'{len(cells)} of `{name}`' for name, cells in value.items())}")
        cells = zip(*value.values(), strict=True)  # a list of objects stored as columns, as in older hub sets
        value = [dict(zip(value, cell, strict=True)) for cell in cells]
    if column == "QA" and isinstance(value, list):
        value = [_pair_of(item, number) for number, item in enumerate(value, 1)]
    if not isinstance(value, list) or not value:
        raise BadRow(f"`{column}` must be a list of turns, this is {'empty' if value == [] else kind(value)}")
    return [message for number, item in enumerate(value, 1) for message in _split(item, column, number)]


def _turns_in(value: Any) -> Any:
    """Turns that a cell of text holds as JSON; None for another text."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", "{")):
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return None
    first = turns[0] if isinstance(turns, list) and turns else turns
    return turns if isinstance(first, Mapping) and {"role", "from", "human", "user", "q"} & {*first} else None


def _pair_of(item: Any, number: int) -> dict[str, Any]:
    """A pair of VideoChat2's `QA` as a turn: instruction, question and answer. Captions have an instruction alone."""
    if not isinstance(item, Mapping) or not all(isinstance(item.get(name, ""), str) for name in "iqa"):
        raise BadRow(f"pair {number} of `QA` must be an object with the texts `q` and `a`, and maybe `i`")
    texts = [text for text in (item.get("i", ""), item.get("q", "")) if text.strip()]
    rest = {name: value for name, value in item.items() if name not in "iqa"}
    return {**rest, "user": "\n".join(texts), "assistant": item.get("a", "")}


def history_of(value: Any) -> list[Message]:
    """Earlier turns of a query: pairs of question and answer."""
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise BadRow("`history` must be a list of [question, answer] pairs")
    return [
        Message(role, answer_text(text, "history"))
        for pair in value
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def answer_text(value: Any, column: str) -> str:
    """An answer given as text, as a number or truth value, as one message or as a list of one message."""
    if (turns := _turns_in(value)) is not None:
        value = turns
    text = plain_text(value)
    if text is not None:
        match = _WRAPPED.fullmatch(text)
        return match[1] if match else text
    if isinstance(value, list) and len(value) == 1:
        return answer_text(value[0], column)
    if isinstance(value, Mapping):
        role = str(value.get("from") or value.get("role") or "assistant").lower()
        if _ROLES.get(role, "assistant") != "assistant":
            raise BadRow(f"`{column}` must be a message of the assistant, this is one of the {role}")
        message = _message({**value, "from": "assistant"}, column, 1)
        if not message.learn:
            raise BadRow(f"`{column}` is masked (`loss` or `weight`), so nothing is learned from it: remove the row")
        return message.text
    raise BadRow(f"`{column}` must be text or one message, this is {kind(value)}")


def _split(item: Any, column: str, number: int) -> list[Message]:
    """The messages of one item; ms-swift's ShareGPT rows have a question and its answer in one."""
    if isinstance(item, Mapping) and not item.get("from") and not item.get("role"):
        for ask, reply in _PAIRS:
            if isinstance(item.get(ask), str) and isinstance(item.get(reply), str):
                where = f"turn {number} of `{column}`"
                if key := next((key for key in item if key not in (ask, reply, *MASKS) and item[key]), ""):
                    raise BadRow(f"{where} has `{key}`, which is not used: take it out of the turn")
                return [Message("user", item[ask]), Message("assistant", item[reply], learn=_learned(item, "assistant", where))]
    return [_message(item, column, number)]


def _message(item: Any, column: str, number: int) -> Message:
    where = f"turn {number} of `{column}`"
    if not isinstance(item, Mapping):
        raise BadRow(f"{where} must have from/value or role/content, this is {kind(item)}")
    name = item.get("from") or item.get("role")
    role = _ROLES.get(str(name).lower())
    if role is None:
        raise BadRow(f"{where} is by {name!r}; known are human/user, gpt/assistant and system")
    if not {"value", "content"} & {*item}:
        raise BadRow(f"{where} has no text in `value` or `content`")
    read = (*MASKS, *_HARMLESS, "from", "role", "value", "content")
    if key := next((key for key, value in item.items() if key not in read and holds(value)), ""):
        raise BadRow(f"{where} has `{key}`, which is not used: take it out of the turn")
    if None not in (item.get("value"), item.get("content")) and item["value"] != item["content"]:
        raise BadRow(f"{where} has a `value` and another `content`: leave one of them out")
    content = item.get("value") if item.get("value") is not None else item.get("content")
    learn = _learned(item, role, where)
    if isinstance(content, str):
        return Message(role, content, learn=learn)
    if not isinstance(content, list):
        raise BadRow(f"{where} has no text in `value` or `content`")
    text, files = "", []
    for part in content:
        of_type = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and of_type is None:  # DashScope: {"video": …}, {"text": …}
            of_type = "text" if "text" in part else "video"
        if of_type == "text" and isinstance(part.get("text"), str):
            text += part["text"]
            if key := next((key for key, value in part.items() if key not in ("type", "text") and holds(value)), ""):
                raise BadRow(f"{where} has a part of text with `{key}`, which is not used: take it out")
        elif of_type in ("video", "video_url"):
            text += PLACEHOLDER
            files += _clip_of(part, where)
        else:
            raise BadRow(f"{where} has a part of type {of_type!r}; known are text and video")
    return Message(role, text, tuple(files), learn)


def _clip_of(part: Mapping[str, Any], where: str) -> list[str]:
    """The clip that a part names, if it does, with its start and end. How many frames it asks for is a setting here."""
    if not any(part.get(name) is not None for name in _FILES):
        if names := unused(part):  # a column of the row names it
            raise BadRow(f"{where}: `{names[0]}` of a video part without a file is not used: name the file in the part")
        return []
    try:
        return clip_names(part, "video part")
    except BadRow as problem:
        raise BadRow(f"{where}: {problem}") from None


def _learned(item: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether a turn is trained on: `loss` (ms-swift), `weight` (OpenAI) and `train` (Axolotl) say so of an answer."""
    given = {name: item[name] for name in MASKS if item.get(name) is not None}
    for name, value in given.items():
        if value not in (0, 1):
            raise BadRow(f"{where}: `{name}` is {value!r}; an answer is trained on (1, true) or not (0, false), nothing between")
        if role != "assistant" and value and name != "loss_scale":
            raise BadRow(f"{where}: `{name}` is {value!r}, but only answers are trained on: take it out")
    return all(given.values())
