"""Row parsers: each known data format, turned into one record. Pure functions on dicts, no disk.

Conversations (`<video>` may mark the clip's place at the start or end of the first question):
  LLaVA               {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>…"}, {"from": "gpt", "value": "…"}]}
                      (LLaVA-Video-178K marks the clip with <image>)
  ShareGPT / OpenAI   {"videos": ["a.mp4"], "messages": [{"role": "user", "content": "<video>…"}, …]}
  parts               content: [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "…"}], also of type video_url
Plain rows:
  ours                {"id", "video", "question", "answer", "type"}
  VideoInstruct100K   {"q", "a", "video_id"}; benchmark files with `video_name` and `Q`, `A` read the same way
  TRL                 {"prompt", "completion", "videos"}, text or messages
  Video-R1            {"problem", "options", "solution": "<answer>A</answer>", "path"}
  ms-swift            {"query", "response", "history", "videos"}; Alpaca {"instruction", "input", "output", "videos"}
  VideoChat2          {"video", "QA": [{"i", "q", "a"}]}
Preferences: TRL {"prompt", "chosen", "rejected", "videos"}, LLaMA-Factory {"conversations", "chosen", "rejected"},
  ms-swift {"messages", "rejected_response" or "rejected_messages"}, VLM-RLAIF {"conversations", "output_1", "output_2",
  "preference": 1 or 2}; the app's votes are rows of the last kind, whose preference may also be one of UNDECIDED.
Options (options.py) go into the question, start and end (columns.py) into the clip's name, further columns pass through as
tags, as strings, unless their name means something (columns.py). System turns are not rendered, since all stages share one
prompt layout: they are kept as the tag "system", and the reader counts them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from minirlaif.data.cells import CLIP_SUFFIXES as CLIP_SUFFIXES
from minirlaif.data.cells import PLACEHOLDER, clean, first, holds, known_columns, names_of, only
from minirlaif.data.cells import BadRow as BadRow
from minirlaif.data.cells import half_letters as half_letters
from minirlaif.data.columns import ANSWERS, PLACES, PREFERRED, QUESTIONS, refuse_unused, take_part, take_videos
from minirlaif.data.messages import Message, answer_text, history_of, messages_of
from minirlaif.data.options import AnswerOptions, take_options
from minirlaif.errors import counted
from minirlaif.types import Preference, Sample, Turn
from minirlaif.video.spans import clock_seconds, named_span

_THOUGHT = re.compile(r"(\s*<think>.*</think>\s*)(\S.*?)(\s*)", re.DOTALL)
_BOXED = re.compile(r"\s*\\boxed\{(.*)\}\s*", re.DOTALL)
_REASONED = re.compile(r"(\s*<think>.*<answer>)(.*)(</answer>\s*)", re.DOTALL)  # Video-R1's answers with their reasoning
_NUMBER = re.compile(r"\d+(?::\d{2})*(?:\.\d+)?")  # also 1:05
_SIDES = (("chosen", "rejected"), ("output_1", "output_2"))
UNDECIDED = ("tie", "both bad")  # votes without a winner: valid rows, but nothing to learn from


def parse_sample(row: Any, need_answers: bool = True, ignore: Sequence[str] = ()) -> Sample:
    """A record from a decoded row of any conversation or question format: `video` as the row names it, the row's own id or "".

    need_answers: refuse questions without an answer; ignore: columns to pass over (data.ignore_columns). Columns that are None
    count as absent. BadRow: what is wrong, in one line.
    """
    row = known_columns(row, ignore)
    columns = names_of(row)
    options = take_options(row)
    column = only(row, QUESTIONS, "question")
    if not column:
        raise BadRow(f"no `messages`, `conversations`, `prompt`, `question` or `q` column (it has {columns})")
    messages = _question(row, column)
    answer = None if messages[-1].role == "assistant" else _take_answer(row, column, options)
    if answer is not None:
        messages.append(Message("assistant", answer))
    video = _take_clip(row, messages)
    _refuse_times_of_answer(video, [message.text for message in messages if message.role == "assistant"])
    messages = _with_options(messages, options, resolve=answer is None)
    if need_answers and (both := next((pair for pair in _SIDES if all(holds(row.get(name)) for name in pair)), None)):
        raise BadRow(f"`{both[0]}` and `{both[1]}` make the row a preference: name its file in data.preferences")
    if not need_answers:  # the questions of preferences are prompts like others
        row = {name: value for name, value in row.items() if name not in PREFERRED}
    refuse_unused(row, ignore, video)
    turns = _turns(messages, need_answers)
    if need_answers and not any(turn.learn for turn in turns):
        raise BadRow("no answer is trained on (`loss` or `weight` masks them all): remove the row")
    return Sample(str(row.get("id", "")).strip(), video, turns, tags=_tags(row, messages))


def parse_preference(row: Any, ignore: Sequence[str] = ()) -> Preference:
    """A record from a decoded row of any preference format, one question per row. BadRow: what is wrong, in one line."""
    row = known_columns(row, ignore)
    columns = names_of(row)
    options = take_options(row)
    column = only(row, QUESTIONS, "question")
    messages = _question(row, column) if column else []
    if masked := next((message for message in messages if not message.learn), None):
        raise BadRow(
            f"the answer {masked.text[:40]!r} is masked (`loss` or `weight`), which a preference does not know: take it out"
        )
    sides = _chosen_and_rejected(row, messages)
    if not messages:
        raise BadRow(f"no `prompt`, `messages`, `conversations` or `question` column (it has {columns})")
    video = _take_clip(row, messages)
    messages = _with_options(messages, options)
    turns = _turns(messages, need_answers=False)
    if len(turns) != 1 or turns[0].answer is not None:
        raise BadRow(f"the prompt of a preference must be one question without an answer; questions here: {len(turns)}")
    chosen, rejected = (
        clean(_chosen_option(options, value, name), f"the {side} answer")
        for side, (name, value) in zip(("chosen", "rejected"), sides, strict=True)
    )
    _refuse_times_of_answer(video, [chosen, rejected])
    if chosen.lower().endswith(CLIP_SUFFIXES) and " " not in chosen:
        raise BadRow("`chosen` and `rejected` name clips; preferences between answers about one clip are read")
    if chosen == rejected:
        raise BadRow("chosen and rejected answer are the same: nothing can be learned from it, remove the row")
    context, margin = row.pop("context", ""), row.pop("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
        raise BadRow("`margin` must be a finite number")
    context = clean(answer_text(context, "context"), "`context`") if context != "" else ""
    refuse_unused(row, ignore, video)
    id_, question = str(row.get("id", "")).strip(), turns[0].question
    return Preference(id_, video, question, chosen, rejected, context, float(margin), tags=_tags(row, messages))


def _question(row: dict[str, Any], column: str) -> list[Message]:
    """The messages up to the question, with the turns before it that stand in a column of their own; taken out of the row."""
    messages = messages_of(row.pop(column), column)
    if column == "instruction" and (text := row.pop("input", "")):
        messages = [Message("user", f"{messages[0].text}\n{answer_text(text, 'input')}")]
    if column in ("query", "instruction") and (earlier := row.pop("history", [])):
        messages = [*history_of(earlier), *messages]
    return messages


def _take_answer(row: dict[str, Any], column: str, options: AnswerOptions | None) -> str | None:
    """The answer to a question that stands in a column of its own, None for none; its columns are taken out of the row. BadRow
    for two that are different."""
    names = [name for name in (*ANSWERS, *(PLACES if options else ())) if name in row]
    if column == "prompt" and "completion" in row:  # TRL's rows; an `answer` beside it is what a reward function compares with
        names = ["completion"]
    texts = {name: text for name in names if (text := _chosen_option(options, row.pop(name), name)).strip()}
    if names and column == "problem" and isinstance(row.get("process"), str):  # Video-R1: what is reasoned before the solution
        texts = {name: f"{row['process']}\n<answer>{text}</answer>" for name, text in texts.items()}
        row.pop("process")
    used = next(iter(texts), "")
    if other := next((name for name in texts if texts[name].strip() != texts[used].strip()), ""):
        raise BadRow(f"two columns may be the answer, `{used}` and `{other}`: take one out, or name it in data.ignore_columns")
    return texts[used] if used else "" if names else None


def _chosen_option(options: AnswerOptions | None, value: Any, column: str) -> str:
    """An answer's text; where there are options, the one that it means."""
    text = answer_text(value, column)
    if options is None or not text.strip():
        return text
    if reasoned := _REASONED.fullmatch(text) or _THOUGHT.fullmatch(text):
        return f"{reasoned[1]}{options.answer(_unboxed(reasoned[2]), column)}{reasoned[3]}"
    text = _unboxed(text)
    return options.answer(value if isinstance(value, int | float) else text, column)


def _unboxed(text: str) -> str:
    match = _BOXED.fullmatch(text)
    return match[1] if match else text


def _refuse_times_of_answer(video: str, answers: Sequence[str]) -> None:
    """BadRow for answers that say when, about a part that was cut by the same times: they would no longer be true."""
    span = named_span(video)
    times = {time for time in (span.start, span.end) if time}
    if span.end is not None and times <= {*map(clock_seconds, _NUMBER.findall(" ".join(answers)))}:
        raise BadRow(f"the answer holds the times of its part of the clip, {video}: take the whole clip (remove the times)")


def _with_options(messages: Sequence[Message], options: AnswerOptions | None, resolve: bool = False) -> list[Message]:
    """The options behind the one question that they can belong to. resolve: its answer may still be a letter or number, unless
    the question spells the options out itself."""
    questions = [place for place, message in enumerate(messages) if message.role == "user"]
    if options is None:
        return list(messages)
    if len(questions) != 1:
        raise BadRow(
            f"the row has options and {len(questions)} questions: write the options into the question that they belong to"
        )
    (place,) = questions
    text = options.question(messages[place].text)
    resolve = resolve and text != messages[place].text
    return [
        replace(message, text=text)
        if message.role == "user"
        else replace(message, text=_chosen_option(options, message.text, "the answer"))
        if message.role == "assistant" and resolve
        else message
        for message in messages
    ]


def _chosen_and_rejected(row: dict[str, Any], messages: list[Message]) -> list[tuple[str, Any]]:
    """The two answers of a preference row, best first, each with the column that it stands in; takes them out of the row and of
    the messages."""
    if "output_1" in row and "output_2" in row:
        outputs = [(name, row.pop(name)) for name in ("output_1", "output_2")]
        choice = str(row.pop("preference", None)).removesuffix(".0")
        if choice not in ("1", "2"):
            raise BadRow(f"`preference` must be 1 or 2, not {choice}")
        if messages and messages[-1].role == "assistant":
            messages.pop()  # the paper's rows keep an answer there, which the outputs replace
        return outputs if choice == "1" else outputs[::-1]
    if column := only(row, ("rejected_response", "rejected_messages"), "rejected answer"):
        if messages and messages[-1].role != "assistant" and (name := first(row, (*ANSWERS, "chosen_response"))):
            messages.append(Message("assistant", answer_text(row.pop(name), name)))
        if not messages or messages[-1].role != "assistant":
            raise BadRow(f"the question must end with the chosen answer, or `response` hold it, where the row has a `{column}`")
        value = row.pop(column)
        if isinstance(value, list) and len(value) > 1:
            return _one_prompt(messages, messages_of(value, column), "messages", column)
        return [("messages", messages.pop().text), (column, value)]
    if "chosen" in row and "rejected" in row:
        sides = [(name, row.pop(name)) for name in ("chosen", "rejected")]
        if all(isinstance(side, list) and len(side) > 1 for _, side in sides):  # TRL: the prompt is inside
            best, worst = (messages_of(side, name) for name, side in sides)
            answers = _one_prompt(best, worst, "chosen", "rejected")
            if messages and [_words(message) for message in messages] != [_words(message) for message in best]:
                raise BadRow("`chosen` and `rejected` begin with another conversation than the prompt column holds: take one out")
            messages[:] = messages or best
            return answers
        return sides
    raise BadRow(
        "not a preference: needs `chosen` and `rejected`, `rejected_response`, or `output_1`, `output_2` and `preference`"
        f" (it has {names_of(row)})"
    )


def _one_prompt(best: list[Message], worst: list[Message], better: str, worse: str) -> list[tuple[str, Any]]:
    """The last answers of two conversations that are the same before them; the answer is taken out of the first."""
    if not all(message.learn for message in (*best, *worst)):
        raise BadRow(
            f"`{better}` or `{worse}` has a masked answer (`loss` or `weight`), which a preference does not know: take it out"
        )
    if best[:-1] != worst[:-1] or any(side[-1].role != "assistant" for side in (best, worst)):
        raise BadRow(f"`{better}` and `{worse}` must be one conversation that ends in two different answers")
    return [(better, best.pop().text), (worse, worst[-1].text)]


def _words(message: Message) -> tuple[str, str]:
    """Role and text without the clip's place."""
    return message.role, message.text.replace(PLACEHOLDER, "").strip()


def _take_clip(row: dict[str, Any], messages: list[Message]) -> str:
    """The one clip of a row, or the part of it that the row means, after tags and files have been counted against each other;
    takes its columns out of the row and its tag out of the messages. Without a tag the clip stands before the first question."""
    inside = [name for message in messages for name in message.files]
    videos, named = take_videos(row)
    files = named if not inside or inside == named else inside + named
    tag = _tag(messages, videos)
    tags = sum(message.text.count(tag) for message in messages if message.role == "user")
    if not files:
        tagged = f"{counted(tags, f'{tag} tag')} but no clip" if tags else "no clip"
        raise BadRow(f"{tagged}: every row needs one in a `video` column")
    if tags and tags != len(files):
        numbers = f"{counted(tags, f'{tag} tag')} but {counted(len(files), 'clip')}"
        raise BadRow(f"{numbers}: write one tag for each clip, or none for one clip")
    if len(files) > 1:
        raise BadRow(f"{len(files)} clips in one row: more than one is not supported; make a row for each, or take the row out")
    place = next((place for place, message in enumerate(messages) if message.role != "system"), None)
    if place is not None and messages[place].role == "user":
        text = messages[place].text.strip()
        text = text.removeprefix(tag) if text.startswith(tag) else text.removesuffix(tag)
        messages[place] = replace(messages[place], text=text)
    return take_part(row, files[0])


def _tag(messages: Sequence[Message], videos: str) -> str:
    """The placeholder of a row. Where no <video> stands, <image> marks the clip: in VLM-RLAIF's files, which name it in `images`,
    and in LLaVA-Video-178K."""
    text = "".join(message.text for message in messages if message.role == "user")
    return "<image>" if videos and PLACEHOLDER not in text and ("<image>" in text or videos == "images") else PLACEHOLDER


def _turns(messages: Sequence[Message], need_answers: bool) -> tuple[Turn, ...]:
    """Questions and answers, without system turns."""
    turns: list[Turn] = []
    for number, message in enumerate(message for message in messages if message.role != "system"):
        if message.role != ("assistant" if number % 2 else "user"):
            raise BadRow(f"turn {number + 1} is by the {message.role}: questions and answers must alternate, a question first")
        place = number // 2 + 1
        if message.role == "user":
            turns.append(Turn(clean(message.text, f"question {place}")))
        elif message.text.strip() or need_answers:
            turns[-1] = Turn(turns[-1].question, clean(message.text, f"answer {place}"), message.learn)
    for place, turn in enumerate(turns, 1):
        if need_answers and turn.answer is None:
            raise BadRow(f"question {place} has no answer (questions without answers belong in data.prompts)")
    if not turns:
        raise BadRow("the conversation has no question")
    return tuple(turns)


def _tags(row: Mapping[str, Any], messages: Sequence[Message]) -> dict[str, str]:
    """The columns that no format has used, and the system turns."""
    tags = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in row.items()
        if name not in ("id", "images") and holds(value)
    }
    system = "\n".join(message.text for message in messages if message.role == "system")
    return tags | ({"system": system} if system else {})
