"""Prompts: frames, context, question and answer rendered to token ids. Nothing is sampled or scored here.

Text of users and of models is encoded with special tokens switched off, so it can never turn into an image or chat token.
Training, sampling, judging and the exported model all go through these functions and therefore see the same prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from string import Formatter
from typing import Any

from minirlaif.errors import UserError
from minirlaif.types import Turn


@dataclass(frozen=True)
class Layout:
    """How a model family writes a conversation. The defaults are those of SmolVLM2.
    `frame` is written per group of frames, with {image} for its placeholders and {time} (MM:SS) or {at} (seconds) for when."""

    start: str = "<|im_start|>"
    user: str = "User: "
    assistant: str = "Assistant:"
    answer: str = " "  # between `assistant` and the answer
    question_end: str | None = None  # None: the same that ends an answer
    end: str = "<end_of_utterance>"  # ends a turn; answers are trained to end with it
    after_end: str = "\n"
    intro: str = "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
    frame: str = "\nFrame from {time}:<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    outro: str = "\n\n"
    image: str = "<image>"
    group: int = 1  # frames that share placeholders; 0: all frames of the clip do

    def __post_init__(self) -> None:
        texts = [value for name, value in vars(self).items() if name != "group" and (name, value) != ("question_end", None)]
        if type(self.group) is not int or self.group < 0 or not all(isinstance(text, str) for text in texts):
            raise TypeError("group is not a count, or another part not a text")
        for text, names in ((self.intro, ("count", "duration")), (self.frame, ("image", "time", "at"))):
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
            for _, name, form, conversion in parts:
                if name not in names or conversion or (form and not (name == "at" and re.fullmatch(r"\.\df", form))):
                    raise ValueError(f"{{{name:.20}}} is not just one of {', '.join(names)}")
        if [name for _, name, _, _ in parts].count("image") != 1:
            raise ValueError("frame has not one {image}")

    def as_dict(self) -> dict[str, Any]:
        """Plain form, stored beside a model that has a layout of its own. Files call `question_end` "asked"."""
        return {"asked" if name == "question_end" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Layout:
        """The layout behind `as_dict`. TypeError for other names than its own."""
        return cls(**{"question_end" if name == "asked" else name: value for name, value in plain.items()})


@dataclass(frozen=True)
class FrameLayout:
    """A clip's frames in a prompt: their times and the clip's length in seconds, and placeholders per group of frames."""

    times: tuple[float, ...]
    seconds: float
    vectors: int


@dataclass(frozen=True)
class Rendered:
    """Token ids of one sequence with the positions that training learns from.
    ids: T token ids, image placeholders included; answer: T flags, True where the token is of an answer to learn, or ends it."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)


def token_ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    """Token ids of a text. special: whether special tokens written in it are read as such."""
    engine = tokenizer.backend_tokenizer
    engine.encode_special_tokens = not special
    try:
        return list(engine.encode(text, add_special_tokens=False).ids)
    finally:
        engine.encode_special_tokens = False


class Renderer:
    """Renders conversations for one fast tokenizer and a family's layout."""

    def __init__(self, tokenizer: Any, layout: Layout) -> None:
        self.layout = layout
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token.content: number for number, token in added if token.special}
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) + ")")
        missing = [token for token in (layout.image, layout.end) if token not in self._special]
        if missing:
            raise UserError(
                f"the tokenizer of model.base has no special token {' or '.join(missing)}: not one of this model family"
            )
        self.image_id, self.end_id = self._special[layout.image], self._special[layout.end]

    def _template(self, text: str) -> list[str | int]:
        """Special tokens as ids, what is between them as text."""
        return [self._special.get(part, part) for part in self._split.split(text) if part]  # type: ignore[misc]

    def _joined(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        """Ids of pieces in a row. Neighbouring texts become tokens together, as in the whole text: "User: " + "What"
        are "User", ":", " What"."""
        ids: list[int] = []
        for text, group in groupby(pieces, key=lambda piece: isinstance(piece, str)):
            run = list(group)
            ids += self.text_ids("".join(map(str, run))) if text else map(int, run)
        return tuple(ids)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; special tokens written in it stay letters."""
        if text not in self._known:
            if len(self._known) > 50_000:  # a long run brings ever new answers
                self._known.clear()
            self._known[text] = tuple(token_ids(self._tokenizer, text, special=False))
        return self._known[text]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer: special tokens dropped, outer spaces stripped."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def prompt(self, frames: FrameLayout | None, question: str, context: str = "", turns: Sequence[Turn] = ()) -> tuple[int, ...]:
        """Ids of a user turn up to the place where the answer starts.

        frames: the video, None without one. context: text between frames and question, ends with a line break when not empty.
        turns: the conversation so far, with its answers; frames and context stand before its first question.
        """
        questions = self._questions(frames, [*(turn.question for turn in turns), question], context)
        answers = [*(self.answer(turn.answer or "") for turn in turns), ()]
        return tuple(token for ids in zip(questions, answers, strict=True) for part in ids for token in part)

    def conversation(self, frames: FrameLayout | None, turns: Sequence[Turn], context: str = "", limit: int = 0) -> Rendered:
        """A conversation with all its answers, those to learn flagged; the video stands in its first user turn.
        UserError: longer than `limit` tokens (0: no limit)."""
        parts: list[tuple[tuple[int, ...], bool]] = []  # ids, and whether training learns from them
        questions = self._questions(frames, [turn.question for turn in turns], context)
        for turn, question in zip(turns, questions, strict=True):
            parts += [(question, False), (self.answer(turn.answer or ""), turn.learn)]
        parts.append((self._joined(self._template(self.layout.after_end)), False))
        ids = tuple(token for part, _ in parts for token in part)
        if limit and len(ids) > limit:
            raise UserError(f"a conversation has {len(ids)} tokens, sft.max_length allows {limit}: raise it or shorten the row")
        return Rendered(ids, tuple(learned for part, learned in parts for _ in part))

    def _questions(self, frames: FrameLayout | None, questions: Sequence[str], context: str) -> Iterator[tuple[int, ...]]:
        before = self._prefix(frames)
        # A header that ends with a colon stands before frames or, as here, with a space before text ("User: What").
        layout = self.layout
        header = layout.user.rstrip() + " " if layout.user.rstrip().endswith(":") else layout.user
        end = layout.end + layout.after_end if layout.question_end is None else layout.question_end
        for question in questions:
            yield self._joined([*before, context, question, *self._template(end + layout.assistant)])
            before, context = self._template(layout.after_end + header), ""

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer with the token that ends it."""
        return self.text_ids(self.layout.answer + text) + (self.end_id,)

    def prefix(self, frames: FrameLayout | None) -> tuple[int, ...]:
        """Ids of everything before context and question: the start and the frames, with an outro after them."""
        return self._joined(self._prefix(frames))

    def _prefix(self, frames: FrameLayout | None) -> list[str | int]:
        layout = self.layout
        pieces = self._template(layout.start + layout.user)
        if frames is None:
            return pieces
        minutes, seconds = divmod(int(frames.seconds), 60)
        duration = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        pieces += self._template(layout.intro.format(count=_spelled(len(frames.times)), duration=duration))
        for at in group_times(frames.times, layout.group):
            time = f"{int(at) // 60:02d}:{int(at) % 60:02d}"
            before, after = layout.frame.format(time=time, at=at, image="\0").split("\0")
            pieces += [*self._template(before), *[self.image_id] * frames.vectors, *self._template(after)]
        return pieces + self._template(layout.outro)


def pieces(renderer: Renderer, tokens: Iterator[int]) -> Iterator[str]:
    """Text of tokens as it grows: what was yielded never changes. A character of several tokens comes once it is complete."""
    ids: list[int] = []
    text = ""
    for token in chain(tokens, [None]):
        ids += [] if token is None else [token]
        longer = renderer.decode(ids)
        complete = token is None or not longer.endswith("\ufffd")  # at the end also an answer cut in the middle of a character
        if complete and longer.startswith(text) and longer != text:
            yield longer[len(text) :]
            text = longer


def group_times(times: Sequence[float], size: int) -> list[float]:
    """Time of each group of `size` frames (0: all of them): the middle between its first and last one. A last group that is
    short repeats its last frame, as Qwen's processors do."""
    size = size or len(times)
    groups = [times[i : i + size] for i in range(0, len(times), size)]
    return [(group[0] + group[-1]) / 2 for group in groups]


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def _spelled(count: int) -> str:
    """A number below 1000 in words, as SmolVLM2's processor writes the number of frames: "sixteen"."""
    if count < 20:
        return _ONES[count]
    if count < 100:
        return _TENS[count // 10 - 2] + (f"-{_ONES[count % 10]}" if count % 10 else "")
    if count < 1000:
        return f"{_ONES[count // 100]} hundred" + (f" and {_spelled(count % 100)}" if count % 100 else "")
    return str(count)
