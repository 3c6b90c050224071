"""The one place that renders prompts: frames, context, question and answer to token ids. Nothing is sampled or scored here.

Text of users and of models is encoded with special tokens switched off, so it can never turn into an image or chat token.
Training, sampling, judging and the exported model all go through these functions and therefore see the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minirlaif.records import Turn, UserError


@dataclass(frozen=True)
class Layout:
    """How a model family writes a conversation. The defaults are those of SmolVLM2; `image` is replaced per frame."""

    start: str = "<|im_start|>"
    user: str = "User: "
    assistant: str = "Assistant:"
    answer: str = " "  # between `assistant` and the answer
    end: str = "<end_of_utterance>"  # ends a turn; the answer is trained to say it
    after_end: str = "\n"
    intro: str = "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
    frame: str = "\nFrame from {time}:<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    outro: str = "\n\n"
    image: str = "<image>"

    def as_dict(self) -> dict[str, str]:
        """Plain form, stored beside a model that has a layout of its own."""
        return asdict(self)


@dataclass(frozen=True)
class Rendered:
    """Token ids of one sequence with the positions that are learned from.

    ids: T token ids, image placeholders included; answer: T flags, True where the token belongs to an answer or its end.
    """

    ids: tuple[int, ...]
    answer: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Renderer:
    """Renders conversations for one tokenizer and layout.

    Args:
        tokenizer: a fast tokenizer.
        layout: the family's conversation layout.
        tokens_per_frame: image placeholders that stand for one frame (K).
    """

    def __init__(self, tokenizer: Any, layout: Layout, tokens_per_frame: int) -> None:
        self.layout, self.tokens_per_frame = layout, tokens_per_frame
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}
        (self.image_id,) = self._encode(layout.image, special=True)
        (self.end_id,) = self._encode(layout.end, special=True)

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        key = (text, special)
        if key not in self._known:
            if len(self._known) > 50_000:  # a long run meets ever new answers
                self._known.clear()
            engine = self._tokenizer.backend_tokenizer
            engine.encode_special_tokens = not special
            try:
                self._known[key] = tuple(engine.encode(text, add_special_tokens=False).ids)
            finally:
                engine.encode_special_tokens = False
        return self._known[key]

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; special tokens written in it stay letters."""
        return self._encode(text, special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer: special tokens dropped, outer spaces stripped."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def prompt(self, times: Sequence[float], question: str, context: str = "", seconds: float = 0.0) -> tuple[int, ...]:
        """Ids of a user turn up to the place where the answer starts.

        Args:
            times: seconds of the frames shown, one per frame; empty for a prompt without video.
            question: what is asked.
            context: text between the frames and the question; must end with a line break when not empty.
            seconds: length of the clip, for layouts that write it.
        """
        return self.opening(times, seconds) + self._question(context, question)

    def conversation(
        self, times: Sequence[float], turns: Sequence[Turn], context: str = "", seconds: float = 0.0, limit: int = 0
    ) -> Rendered:
        """A whole conversation with answers; the video stands in its first user turn.

        Raises:
            UserError: longer than `limit` tokens (0: no limit).
        """
        ids: list[int] = list(self.opening(times, seconds))
        learned = [False] * len(ids)
        for number, turn in enumerate(turns):
            again = self._encode(self.layout.user.rstrip() + " ", special=True) if number else ()
            question = again + self._question(context if number == 0 else "", turn.question)
            answer = self.answer(turn.answer or "")
            after = self._encode(self.layout.after_end, special=True)
            ids += [*question, *answer, *after]
            learned += [False] * len(question) + [True] * len(answer) + [False] * len(after)
        if limit and len(ids) > limit:
            raise UserError(f"a conversation has {len(ids)} tokens, sft.max_length allows {limit}: raise it or shorten the row")
        return Rendered(tuple(ids), tuple(learned))

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer with the token that ends it."""
        return self.text_ids(self.layout.answer + text) + (self.end_id,)

    def opening(self, times: Sequence[float], seconds: float = 0.0) -> tuple[int, ...]:
        """Ids of everything before context and question: the start and the frames, with an outro after them."""
        layout = self.layout
        ids = self._encode(layout.start + layout.user, special=True)
        if not times:
            return ids
        ids += self._encode(layout.intro.format(count=len(times), duration=_clock(seconds, hours=True)), special=True)
        for time in times:
            before, after = layout.frame.format(time=_clock(time), image="\0").split("\0")
            ids += self._encode(before, special=True) if before else ()
            ids += (self.image_id,) * self.tokens_per_frame
            ids += self._encode(after, special=True) if after else ()
        return ids + self._encode(layout.outro, special=True)

    def _question(self, context: str, question: str) -> tuple[int, ...]:
        layout = self.layout
        turn = self.text_ids(context) if context else ()
        turn += self.text_ids(question)
        return turn + self._encode(layout.end + layout.after_end + layout.assistant, special=True)


def _clock(seconds: float, hours: bool = False) -> str:
    """Times as layouts write them: MM:SS, or H:MM:SS."""
    whole = int(seconds)
    if hours:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60:02d}:{whole % 60:02d}"
