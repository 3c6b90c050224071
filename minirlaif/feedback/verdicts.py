"""Words to and from the judge: its question, the narrative it may read, and what its answer means.

A choice is "A", "B", "tie" or "invalid"; two orders that differ give "disagree". Invalid is never folded into tie: a
judge that cannot be read is not a judge that sees no difference. Text only; frames and chat layout are made elsewhere.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

# The four criteria are those of the paper's reward text, in words of our own. The letter is asked for first, so that a
# short reply is enough and the letter's logits can be read at the first position.
GUIDING = (
    "Which of the two answers is better? Weigh, the most important first:\n"
    "1. Accurate: everything it says is supported by the video; nothing is made up, and events keep their order.\n"
    "2. Helpful: it answers what was asked.\n"
    "3. Natural: it reads like plain, fluent language.\n"
    "4. Concise: it says no more than is needed.\n"
    "Neither the order of the answers nor their length should matter. Reply with one letter, A or B."
)

_SWAPPED = {"A": "B", "B": "A"}


def context_text(spans: Sequence[tuple[float, float]], descriptions: Sequence[str]) -> str:
    """The narrative of a clip: a line "12s: description" per segment, in the order given; spans are in seconds."""
    if len(spans) != len(descriptions):
        raise ValueError(f"{len(spans)} spans but {len(descriptions)} descriptions")
    return "".join(f"{start:.0f}s: {_one_line(text)}\n" for (start, _), text in zip(spans, descriptions, strict=True))


def judge_question(question: str, answer_a: str, answer_b: str, context: str = "") -> str:
    """The whole text of one comparison. An empty context leaves its paragraph out.

    Question and answers are put on one line each, so that an answer cannot bring labels of its own.
    """
    narrative = f"What happens in the video, by time:\n{context.strip()}\n\n" if context.strip() else ""
    return (
        f"{narrative}Question: {_one_line(question)}\n"
        f"Answer A: {_one_line(answer_a)}\n"
        f"Answer B: {_one_line(answer_b)}\n\n"
        f"{GUIDING}"
    )


def choice_from_margin(value: float, margin: float = 0.0) -> str:
    """Choice of a numeric read-out: above 0 means A. |value| below the margin, or 0, is a tie; NaN is invalid."""
    if math.isnan(value):
        return "invalid"
    if value == 0 or abs(value) < margin:
        return "tie"
    return "A" if value > 0 else "B"


def swap_choice(choice: str) -> str:
    """A choice made about the swapped pair, in names of the first order."""
    return _SWAPPED.get(choice, choice)


def combine_orders(
    ab: str,
    ba: str,
    values: tuple[float, float] | None = None,
    disagreement: str = "drop",
    margin: float = 0.0,
) -> str:
    """One choice out of both orders, or "disagree". Everything is in names of the first order: see `swap_choice`.

    Invalid in either order is invalid. When the orders differ (also A against tie), "drop" says so; "average" lets the
    mean of `values` decide by `choice_from_margin`, where values are the two read-outs, above 0 for A.
    """
    if disagreement not in ("drop", "average"):
        raise ValueError(f"unknown way to settle a disagreement {disagreement!r}: drop or average")
    if "invalid" in (ab, ba):
        return "invalid"
    if ab == ba:
        return ab
    if disagreement == "drop":
        return "disagree"
    if values is None:
        raise ValueError("averaging two orders that differ needs their values; a parsed text has none: use drop")
    return choice_from_margin((values[0] + values[1]) / 2, margin)


# Reading a free-text verdict. Rules go from explicit to vague, and doubt ends in "invalid": a dropped pair costs little,
# a wrong label costs more. A letter is a capital A or B; a capital A that opens a noun phrase ("A ball") is an article.
_VERB = r"(?:is|was|seems|looks|sounds|appears|would|gives|offers|provides|does|has|matches|fits|describes|answers|wins)"
_AFTER_LETTER = rf"(?:{_VERB}|because|since|as|for|over|due|with|which|than|although|though|while|but|by|in|on)"
_LETTER = (
    r"[(\[]*\b([AB])\b(?!')(?!-\w)(?!\s*(?:/|,|&|(?i:or|and|nor|vs\.?|versus)\b)\s*(?i:answer|response|option)?\s*[AB]\b)"
    rf"(?!\s+(?!{_AFTER_LETTER}\b)[a-z])[)\]]*"
)
_NOUN = r"(?i:answer|response|option|choice|assistant|candidate|caption|one)"
_LABEL = r"(?i:answer|response|verdict|choice|preference|winner|decision|judge?ment|option|one)"
_NAMED = rf"(?:(?i:the\s+)?{_NOUN}\s+)?{_LETTER}"
_FILLER = r"(?:(?!(?:not|no|never|hardly|neither|nor|but|and|or|less|A|B)\b)\w+\s+){0,3}?"
_NOT_DOUBTED = (
    r"(?<!\bnor )(?<!\bnot )(?<!n't )(?<!\bcannot )(?<!\bif )(?<!\bwhether )(?<!n't think )(?<!\bnot think )"
    r"(?<!n't think that )(?<!\bnot think that )(?<!\btrue that )"
    r"(?<!\bnor answer )(?<!\bnor response )(?<!\bnor option )(?<!\bif answer )(?<!\bwhether answer )"
)

_EXPLICIT = re.compile(
    rf"\b{_LABEL}\s*(?:[:=>\-]+|(?i:is|would\s+be)\b\s*:?)\s*(?:(?i:the\s+)?{_NOUN}\s+)?{_LETTER}"
    rf"|\b{_LABEL}\s*[:=>]+\s*(?P<small>[ab])(?=\s*(?:$|[.,;)<\n]))"
    rf"|\b{_LABEL}\s*(?:[:=>]+|(?i:is)\b)\s*(?:(?i:an?)\s+)?(?P<tie>(?i:tie|neither|both|equal|draw))\b"
    r"|\[\[(?P<bracketed>[AB])\]\]|boxed\{(?P<boxed>[AB])\}"
)
_BETTER = re.compile(
    rf"{_NOT_DOUBTED}\b{_NAMED}\s+{_VERB}\s+{_FILLER}(?:better|best|preferable|preferred|superior|stronger|correct|right|"
    r"closer|winner|accurate|more\s+\w+)\b"
    rf"|{_NOT_DOUBTED}\b{_NAMED}\s+wins\b"
    rf"|{_NOT_DOUBTED}\b(?:prefer|choose|pick|select|go\s+with|went\s+with|vote\s+for|favou?r|favou?r\s+of)\s+{_NAMED}"
    r"|\b([AB])\s*>+\s*[AB]\b|\b[AB]\s*<+\s*([AB])\b"
)
_WORSE = re.compile(
    rf"{_NOT_DOUBTED}\b{_NAMED}\s+{_VERB}\s+{_FILLER}(?:worse|worst|inferior|weaker|wrong|incorrect|inaccurate|less\s+\w+)\b"
)
_TIE = re.compile(
    r"\bequally\s+(?:good|bad|well|accurate|correct|right|wrong|helpful|valid|plausible|concise|natural|supported|strong|weak)\b"
    r"|\b(?:is|are|it's|call\s+it|declare|as)\s+(?:a\s+)?(?:tie|tied|draw)\b|^(?:a\s+)?(?:tie|tied|draw|neither|both|equal)\b\W*$"
    r"|\b(?:answers|responses|options|they|both|two)\s+are\s+(?:both\s+)?(?:equal|equivalent|identical|the\s+same|comparable)\b"
    r"|\bneither\s+(?:A\s+nor\s+B|B\s+nor\s+A|answer|response|option|one|is|of)\b"
    r"|\bno\s+(?:clear\s+|real\s+)?(?:difference|winner|preference)\b"
    r"|^both\s+(?:answers\s+|responses\s+|options\s+)?are\s+(?:good|bad|correct|right|wrong|fine|accurate)\b(?!.*\bbut\b)",
    re.IGNORECASE,
)
_LEADING = re.compile(rf"^\W*(?:{_NOUN}\s+)?{_LETTER}\s*(?=$|[.,:;!\n\-]|(?:because|since|as)\b)")
_LONE = re.compile(rf"^\W*(?:(?i:the\s+)?{_NOUN}\W+)?([ABab])\W*$")
_CLOSING = re.compile(rf"{_LETTER}\W*$")
_DENIAL = re.compile(r"\b(?:not|no|never|cannot|neither|nor)\b|n't\b", re.IGNORECASE)


def parse_verdict(text: str) -> str:
    """What a judge's free text chooses: "A", "B", "tie" or "invalid".

    In order: a reply that is only a letter; a labelled verdict ("Answer: B", "the better answer is A"); claims ("A is
    better", "B is worse", "I prefer A") and statements of a tie, where the later kind wins; a letter that opens the
    reply; the letter that ends a short reply and is the only one in it. Contradictions within one kind are invalid.
    """
    text = _plain(text)
    if lone := _LONE.match(text):
        return lone.group(1).upper()
    if explicit := {_found(match) for match in _EXPLICIT.finditer(text)}:
        return explicit.pop() if len(explicit) == 1 else "invalid"
    claims = [(match.start(), _found(match)) for match in _BETTER.finditer(text)]
    claims += [(match.start(), swap_choice(_found(match))) for match in _WORSE.finditer(text)]
    last_tie = max((match.start() for match in _TIE.finditer(text)), default=-1)
    if claims and max(claims)[0] > last_tie:
        chosen = {choice for _, choice in claims}
        return chosen.pop() if len(chosen) == 1 else "invalid"
    if last_tie >= 0:
        return "tie"
    if leading := _LEADING.match(text):
        letter = leading.group(1)
        # "A: it rolls. B: it stays." repeats the answers and chooses none.
        repeats = re.search(rf"(?:^|[\n.;,]\s*)\W?{swap_choice(letter)}\b\s*[.:)\-]", text[leading.end() :])
        return "invalid" if repeats else letter
    closing = _CLOSING.search(text)
    alone = len(set(re.findall(r"\b[AB]\b", text))) == 1
    return closing.group(1) if closing and alone and len(text.split()) <= 6 and not _DENIAL.search(text) else "invalid"


def _found(match: re.Match[str]) -> str:
    if match.groupdict().get("tie"):
        return "tie"
    return next(group for group in match.groups() if group).upper()


def _plain(text: str) -> str:
    # Without emphasis and quotation marks, which models put around the letter.
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'")
    text = re.sub(r"'([ABab])'", r"\1", text)
    return re.sub(r"[*_`#\"\u201c\u201d]+", "", text).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
