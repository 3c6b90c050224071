"""Questions about clips that have none: templates filled with a clip's descriptions, and those that a model wrote.

Pure functions of texts; the stage `questions` describes the clips and asks the model.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirlaif.config.loader import parse_yaml
from minirlaif.errors import UserError
from minirlaif.runs.io import read_text

KINDS = ("what", "first", "then", "before", "after", "how many", "which way", "why", "describe")
INSTRUCTION = (
    "Above is what happens in a video, part by part. Write {count} short questions about the video that can be answered from"
    " these notes, each on a line of its own. Begin each line with the kind of question and a colon. Kinds: {kinds}."
)
CHECK = "Answer in a few words. If the notes above do not say it, answer: not said."
LONGEST = 200  # letters of a question
SHORT = 80  # letters of a description that a template quotes
# What models say in place of a question or an answer that they do not have.
_NONE = re.compile(
    r"\b(?:sorry|i (?:can ?not|can't|don't|am unable)|unable to|as an ai|not (?:said|stated|mentioned|specified|possible|enough"
    r"|clear|provided|known)|no information|(?:can ?not|can't) be (?:answered|determined|said)|unknown|unclear)\b",
    re.IGNORECASE,
)
_LINE = re.compile(r"^[\s\d.)*#-]*(?P<kind>[a-z ]{3,12}?)[*]*\s*:\s*[*]*\s*(?P<text>.+?)[*\s]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question about a clip. kind: one of KINDS for those that a model writes, or the name of a list of templates; names_part:
    whether it names something that a description says."""

    kind: str
    text: str
    names_part: bool = False


@dataclass(frozen=True)
class Templates:
    """Templates by kind. subject: its first group matches what {subject} stands for; None: no template has it."""

    subject: re.Pattern[str] | None
    by_kind: Mapping[str, tuple[str, ...]]


def read_templates(path: Path) -> Templates:
    """A YAML file with `templates`, lists of texts by kind, and perhaps `subject`, a regular expression with a group.

    A text may hold {subject} and {event} (a description without its full stop); it is then filled for each part of a clip, those
    of the kinds before and then not for the first part, those of after not for the last.

    Raises:
        UserError: the file cannot be read, or is not of this form.
    """
    try:
        values: Mapping[Any, Any] = parse_yaml(read_text(path), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a file of templates with questions.templates") from None
    if other := set(values) - {"subject", "templates"}:
        raise UserError(f"{path}: {min(map(str, other))} is neither `subject` nor `templates`: take it out")
    kinds, subject = values.get("templates"), values.get("subject") or ""
    if not isinstance(kinds, Mapping) or not kinds:
        raise UserError(f"{path}: needs `templates:` with a list of questions for each kind")
    by_kind: dict[str, tuple[str, ...]] = {}
    for kind, texts in kinds.items():
        lines = [texts] if isinstance(texts, str) else texts
        if not isinstance(lines, list) or not lines or not all(isinstance(text, str) and text.strip() for text in lines):
            raise UserError(f"{path}: {kind} must have a list of questions (texts)")
        if odd := next(
            (name for text in lines for name in re.findall(r"{(.*?)}", text) if name not in ("subject", "event")), None
        ):
            raise UserError(f"{path}: {kind} has {{{odd}}}; {{subject}} and {{event}} are filled in")
        by_kind[str(kind)] = tuple(lines)
    try:
        pattern = re.compile(subject, re.IGNORECASE) if subject else None
    except (re.error, TypeError):
        raise UserError(f"{path}: subject is no regular expression") from None
    if pattern is not None and pattern.groups < 1:
        raise UserError(f"{path}: subject needs a group, such as ^an? (.+?) moves")
    if pattern is None and any("{subject}" in text for texts in by_kind.values() for text in texts):
        raise UserError(f"{path}: a template has {{subject}}, but `subject:` does not say how it is found")
    return Templates(pattern, by_kind)


def fill(templates: Templates, descriptions: Sequence[str]) -> list[Question]:
    """Every question that the templates make of a clip's descriptions, in order. A part whose subject, or whose description, is
    that of another part too is named by no question: it would have two answers."""
    events = [" ".join(text.split()).rstrip(".") for text in descriptions]
    matches = [templates.subject.search(event) if templates.subject else None for event in events]
    subjects = [match[1] or "" if match else "" for match in matches]
    questions = []
    for kind, texts in templates.by_kind.items():
        for text in texts:
            if "{" not in text:
                questions.append(Question(kind, text))
                continue
            names = [subjects] * ("{subject}" in text) + [events] * ("{event}" in text)
            for place in range(len(events)):
                ends = (kind in ("before", "then") and place == 0) or (kind == "after" and place == len(events) - 1)
                unique = all(of[place] and [*map(str.lower, of)].count(of[place].lower()) == 1 for of in names)
                if not ends and unique and ("{event}" not in text or len(events[place]) <= SHORT):
                    filled = text.replace("{subject}", subjects[place]).replace("{event}", events[place])
                    questions.append(Question(kind, filled, names_part=True))
    return questions


def parse(reply: str, descriptions: Sequence[str]) -> list[Question]:
    """The questions of a model's reply, one per line with its kind; other lines, and lines that are none, are passed over."""
    words = {word for text in descriptions for word in _words(text) if len(word) > 3}
    questions = []
    for line in reply.splitlines():
        match = _LINE.match(line)
        kind = match["kind"].strip().lower() if match else ""
        if match is None or kind not in KINDS:
            continue
        text = " ".join(match["text"].split())
        is_question = text.endswith("?") or (kind == "describe" and text.endswith("."))
        if is_question and 8 <= len(text) <= LONGEST and not _NONE.search(text):
            questions.append(Question(kind, text, bool(words & set(_words(text)))))
    return questions


def is_answer(reply: str) -> bool:
    """Whether a model's reply to a question, given the descriptions, says anything."""
    return bool(reply.strip()) and not _NONE.search(reply)


def choose(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """At most `count` different questions: as many that name a part as others, where there are enough, and of both as many kinds
    as there are."""
    different = list({key(question): question for question in reversed(questions)}.values())[::-1]
    draw = random.Random(seed)
    naming, others = (_by_kind([each for each in different if each.names_part == side], draw) for side in (True, False))
    named = naming[: max((count + 1) // 2, count - len(others))]
    return [*named, *others[: count - len(named)]]


def key(question: Question) -> str:
    """Equal for questions that differ in capitals, spaces and marks alone."""
    return " ".join(_words(question.text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _by_kind(questions: Sequence[Question], draw: random.Random) -> list[Question]:
    """One of each kind, then a second one of each, and so on; kinds and the questions of a kind in a drawn order."""
    kinds: dict[str, list[Question]] = {}
    for question in questions:
        kinds.setdefault(question.kind, []).append(question)
    groups = list(kinds.values())
    draw.shuffle(groups)
    for group in groups:
        draw.shuffle(group)
    return [group[place] for place in range(max(map(len, groups), default=0)) for group in groups if place < len(group)]


def split(clips: Sequence[str], dev_share: float, test_share: float, seed: int) -> tuple[set[str], set[str]]:
    """The clips whose questions are kept for dev, and for test: shares of them, at least one each where the share is above 0.
    ValueError: no clip is left to learn from."""
    order = sorted(clips)
    random.Random(seed).shuffle(order)
    test, dev = (max(1, round(share * len(order))) if share else 0 for share in (test_share, dev_share))
    if test + dev >= len(order):
        raise ValueError(f"{len(order)} clips: {test} for test and {dev} for dev leave none to learn from")
    return set(order[test : test + dev]), set(order[:test])
