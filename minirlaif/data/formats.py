"""Row parsers: each known data format, turned into one record. Pure functions on dicts, no disk.

Conversations (the clip's place is marked by `<video>` at the start or end of the first question):
  LLaVA               {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>…"}, {"from": "gpt", "value": "…"}]}
  ShareGPT / OpenAI   {"videos": ["a.mp4"], "messages": [{"role": "user", "content": "<video>…"}, …]}
  parts               content: [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "…"}]
Plain rows (`<video>` may be left out, there is only one place for the clip):
  ours                {"id", "video", "question", "answer", "type"}
  VideoInstruct100K   {"q", "a", "video_id"}; benchmark files with `video_name` and `Q`, `A` read the same way
  TRL                 {"prompt", "completion", "videos"}, text or messages
Preferences: TRL {"prompt", "chosen", "rejected", "videos"}, LLaMA-Factory {"conversations", "chosen", "rejected"},
  ms-swift {"messages", "rejected_response"}, VLM-RLAIF {"conversations", "output_1", "output_2", "preference": 1 or 2}; the app's
  votes are rows of the last kind, whose preference may also be one of UNDECIDED.
System turns are not rendered, since all stages share one prompt layout; they are kept as the tag "system". Columns that no format
uses pass through as tags, as strings.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minirlaif.types import Preference, Sample, Turn
from minirlaif.video.reader import local_path

PLACEHOLDER = "<video>"
UNDECIDED = ("tie", "both bad")  # votes without a winner: valid rows, but nothing to learn from
CLIP_SUFFIXES = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .wmv .flv .3gp .ogv .gif".split())
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CONVERSATIONS = ("messages", "conversations")
_QUESTIONS, _ANSWERS = ("question", "q", "Q"), ("answer", "a", "A")
_VIDEOS = ("video", "videos", "video_id", "video_name", "images")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}

# Chat and media tokens of SmolVLM2, Qwen-VL, Gemma and LLaVA; <|…|> is ChatML and Qwen's, <|turn> and <turn|> Gemma 4.
_SPECIAL = re.compile(
    r"<\|[\w/:.-]+\|?>|<[\w/:.-]+\|>|</?s>|<(?:bos|eos|pad|unk|image|video|audio|im_start|im_end|im_patch|vid_start|vid_end"
    r"|fake_token_around_image|global-img|row_\d+_col_\d+|end_of_utterance"
    r"|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token)>"
)


class BadRow(Exception):
    """What is wrong with one row and how to put it right; the reader adds file and row number."""


@dataclass(frozen=True)
class _Message:
    role: str  # user, assistant or system
    text: str  # parts of type video stand in it as <video>
    files: tuple[str, ...] = ()  # clips named by parts


def parse_sample(row: Any, need_answers: bool = True) -> Sample:
    """A record from a decoded row of any conversation or question format: `video` as the row names it, the row's own id or "".

    need_answers: refuse questions without an answer. Columns that are None count as absent. BadRow: what is wrong, in one line.
    """
    row = _known_columns(row)
    tag, column = _tag(row), _first(row, (*_CONVERSATIONS, "prompt", *_QUESTIONS))
    if not column:
        raise BadRow(f"no `messages`, `conversations`, `prompt`, `question` or `q` column (it has {_names(row)})")
    messages = _messages(row.pop(column), column)
    if answer := _first(row, ("completion",) if column == "prompt" else () if column in _CONVERSATIONS else _ANSWERS):
        messages.append(_Message("assistant", _answer_text(row.pop(answer), answer)))
    video = _take_clip(row, messages, tag, column in _CONVERSATIONS)
    turns = _turns(messages, tag, need_answers)
    return Sample(str(row.get("id", "")).strip(), video, turns, tags=_tags(row, messages))


def parse_preference(row: Any) -> Preference:
    """A record from a decoded row of any preference format, one question per row. BadRow: what is wrong, in one line."""
    row = _known_columns(row)
    columns, tag, column = _names(row), _tag(row), _first(row, (*_CONVERSATIONS, "prompt", *_QUESTIONS))
    messages = _messages(row[column], column) if column else []
    chosen, rejected = _chosen_and_rejected(row, messages)
    if not messages:
        raise BadRow(f"no `prompt`, `messages`, `conversations` or `question` column (it has {columns})")
    row.pop(column, None)  # none where the prompt stands in the answers
    video = _take_clip(row, messages, tag, column in _CONVERSATIONS)
    turns = _turns(messages, tag, need_answers=False)
    if len(turns) != 1 or turns[0].answer is not None:
        raise BadRow(f"the prompt of a preference must be one question without an answer, this has {len(turns)} question(s)")
    chosen, rejected = _clean(chosen, "the chosen answer"), _clean(rejected, "the rejected answer")
    if chosen == rejected:
        raise BadRow("chosen and rejected answer are the same: nothing can be learned from it, remove the row")
    context, margin = row.pop("context", ""), row.pop("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
        raise BadRow("`margin` must be a finite number")
    context = _clean(_answer_text(context, "context"), "`context`") if context != "" else ""
    tags, question = _tags(row, messages), turns[0].question
    return Preference(str(row.get("id", "")).strip(), video, question, chosen, rejected, context, float(margin), tags=tags)


def _chosen_and_rejected(row: dict[str, Any], messages: list[_Message]) -> tuple[str, str]:
    """The two answers of a preference row, best first; takes them out of the row and of the messages."""
    if "output_1" in row and "output_2" in row:
        outputs = [_answer_text(row.pop(name), name) for name in ("output_1", "output_2")]
        choice = str(row.pop("preference", None)).removesuffix(".0")
        if choice not in ("1", "2"):
            raise BadRow(f"`preference` must be 1 or 2, not {choice}")
        if messages and messages[-1].role == "assistant":
            messages.pop()  # the paper's rows keep an answer there, which the outputs replace
        return (outputs[0], outputs[1]) if choice == "1" else (outputs[1], outputs[0])
    if "rejected_response" in row:
        if not messages or messages[-1].role != "assistant":
            raise BadRow("`messages` must end with the chosen answer when the row has a `rejected_response`")
        return messages.pop().text, _answer_text(row.pop("rejected_response"), "rejected_response")
    if "chosen" in row and "rejected" in row:
        sides = [row.pop("chosen"), row.pop("rejected")]
        if not messages and all(isinstance(side, list) and len(side) > 1 for side in sides):  # TRL: the prompt is inside
            best, worst = _messages(sides[0], "chosen"), _messages(sides[1], "rejected")
            if best[:-1] != worst[:-1] or any(side[-1].role != "assistant" for side in (best, worst)):
                raise BadRow("`chosen` and `rejected` must be one conversation that ends in two different answers")
            messages.extend(best[:-1])
            return best[-1].text, worst[-1].text
        return _answer_text(sides[0], "chosen"), _answer_text(sides[1], "rejected")
    raise BadRow(
        "not a preference: needs `chosen` and `rejected`, `rejected_response`, or `output_1`, `output_2` and `preference`"
        f" (it has {_names(row)})"
    )


def _known_columns(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise BadRow(f"a row must be an object with named columns, this is {_kind(row)}")
    return {str(name): value for name, value in row.items() if value is not None}


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in row), "")


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in list(row)[:12]) or "no columns"


def _kind(value: Any) -> str:
    kinds = {str: "text", dict: "an object", list: "a list", int: "a number", float: "a number", bytes: "raw bytes"}
    return kinds.get(type(value), type(value).__name__)


def _messages(value: Any, column: str) -> list[_Message]:
    """Messages of a conversation column; a plain text is one question."""
    if isinstance(value, str):
        return [_Message("user", value)]
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        cells = zip(*value.values(), strict=False)  # a list of objects stored as columns, as in older hub sets
        value = [dict(zip(value, cell, strict=True)) for cell in cells]
    if not isinstance(value, list) or not value:
        raise BadRow(f"`{column}` must be a list of turns, this is {'empty' if value == [] else _kind(value)}")
    return [_message(item, column, number) for number, item in enumerate(value, 1)]


def _message(item: Any, column: str, number: int) -> _Message:
    if not isinstance(item, Mapping):
        raise BadRow(f"turn {number} of `{column}` must have from/value or role/content, this is {_kind(item)}")
    name = item.get("from") or item.get("role")
    role = _ROLES.get(str(name).lower())
    if role is None:
        raise BadRow(f"turn {number} of `{column}` is by {name!r}; known are human/user, gpt/assistant and system")
    content = item.get("value") if item.get("value") is not None else item.get("content")
    if isinstance(content, str):
        return _Message(role, content)
    if not isinstance(content, list):
        raise BadRow(f"turn {number} of `{column}` has no text in `value` or `content`")
    text, files = "", []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind == "video":
            text += PLACEHOLDER
            named = part.get(_first({k: v for k, v in part.items() if v is not None}, ("video", "path", "url")))
            files += [] if named is None else _file_names(named, "video part")
        else:
            raise BadRow(f"turn {number} of `{column}` has a part of type {kind!r}; known are text and video")
    return _Message(role, text, tuple(files))


def _answer_text(value: Any, column: str) -> str:
    """An answer given as text, as a number (counts), as one message or as a list of one message."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and len(value) == 1:
        return _answer_text(value[0], column)
    if isinstance(value, Mapping):
        return _message({"role": "assistant"} | {k: v for k, v in value.items() if k in ("value", "content")}, column, 1).text
    raise BadRow(f"`{column}` must be text or one message, this is {_kind(value)}")


def _file_names(value: Any, column: str) -> list[str]:
    """Clip names of a video column: text, a number, {"path"}, or a list of these."""
    if isinstance(value, list):
        return [name for item in value for name in _file_names(item, column)]
    if isinstance(value, Mapping):
        if not value.get("path") and value.get("bytes"):
            raise BadRow(f"`{column}` holds the clip itself; write it to a file and name that file")
        value = next((value[key] for key in ("path", "video", "url") if value.get(key)), None)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"`{column}` must name a clip, this is {'empty' if isinstance(value, str) else _kind(value)}")
    if "://" in value and not value.lower().startswith("file://"):
        raise BadRow(f"{value} is an address; download the clip and name the file")
    if value.lower().endswith(_IMAGE_SUFFIXES):
        raise BadRow(f"`{column}` holds frame pictures ({value}); frame folders are not read, name the clip file in `video`")
    return [local_path(value.strip())]


def _take_clip(row: dict[str, Any], messages: Sequence[_Message], tag: str, tag_required: bool) -> str:
    """The one clip of a row, after tags and files have been counted against each other; takes its column out of the row."""
    files = [name for message in messages for name in message.files]
    if column := _first(row, _VIDEOS):
        named = _file_names(row.pop(column), column)
        files = named if not files or files == named else files + named
    tags = sum(message.text.count(tag) for message in messages if message.role == "user")
    if not files:
        raise BadRow(f"{f'{tags} {tag} tag(s) but no clip' if tags else 'no clip'}: every row needs one in a `video` column")
    if not tags and tag_required:
        instead = " instead of <image>" if any("<image>" in message.text for message in messages) else ""
        raise BadRow(f"no {tag} tag: put it at the start of the first question{instead}")
    if tags and tags != len(files):
        raise BadRow(f"{tags} {tag} tag(s) but {len(files)} clip(s): there must be one tag for each clip")
    if len(files) > 1:
        raise BadRow(f"{len(files)} clips in one row: more than one is not supported yet")
    return files[0]


def _tag(row: Mapping[str, Any]) -> str:
    """The placeholder of a row: VLM-RLAIF's files mark the clip in `images` with <image>."""
    return "<image>" if _first(row, _VIDEOS) == "images" and PLACEHOLDER not in str(row) else PLACEHOLDER


def _turns(messages: Sequence[_Message], tag: str, need_answers: bool) -> tuple[Turn, ...]:
    """Questions and answers, without system turns and without the placeholder at the start or end of the first question."""
    spoken = [message for message in messages if message.role != "system"]
    if spoken and spoken[0].role == "user":
        text = spoken[0].text.strip()
        spoken[0] = _Message("user", text.removeprefix(tag) if text.startswith(tag) else text.removesuffix(tag))
    turns: list[Turn] = []
    for number, message in enumerate(spoken):
        if message.role != ("assistant" if number % 2 else "user"):
            raise BadRow(f"turn {number + 1} is by the {message.role}: questions and answers must alternate, a question first")
        place = number // 2 + 1
        if message.role == "user":
            turns.append(Turn(_clean(message.text, f"question {place}")))
        elif message.text.strip() or need_answers:
            turns[-1] = Turn(turns[-1].question, _clean(message.text, f"answer {place}"))
    for place, turn in enumerate(turns, 1):
        if need_answers and turn.answer is None:
            raise BadRow(f"question {place} has no answer (questions without answers belong in data.prompts)")
    if not turns:
        raise BadRow("the conversation has no question")
    return tuple(turns)


def _clean(text: str, what: str) -> str:
    """Stripped text that is not empty and has no chat or media token."""
    if not (text := text.strip()):
        raise BadRow(f"{what} is empty")
    if token := _SPECIAL.search(text):
        remedy = "the clip's place is the start or end of the first question" if token[0] == PLACEHOLDER else "take it out"
        raise BadRow(f"{what} contains the token {token[0]}: {remedy}")
    if half_letters(text):
        raise BadRow(f"{what} contains an unpaired surrogate (broken emoji): remove it")
    return text


def half_letters(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _tags(row: Mapping[str, Any], messages: Sequence[_Message]) -> dict[str, str]:
    """The columns that no format has used, and the system turns."""
    tags = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in row.items()
        if name not in ("id", "images")
    }
    system = "\n".join(message.text for message in messages if message.role == "system")
    return tags | ({"system": system} if system else {})
