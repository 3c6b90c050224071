"""From two orders to one choice: the text of a comparison, the choice of each order, and their combination, of which judge.py
makes the `Verdict`. Text and numbers only.

A choice is "A", "B", "tie" or "invalid"; two orders that differ give "disagree". "invalid" never counts as "tie": a reply that
cannot be read does not say that the answers are equally good.
"""

import math
from typing import Literal

from minirlaif.types import Choice, Comparison, Verdict

Disagreement = Literal["drop", "average"]

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


def judge_question(pair: Comparison) -> str:
    """The whole text of one comparison. An empty context leaves its paragraph out.
    Question and answers are put on one line each, so that an answer cannot bring labels of its own."""
    events = f"What happens in the video, by time:\n{pair.context.strip()}\n\n" if pair.context.strip() else ""
    question, a, b = (" ".join(text.split()) for text in (pair.question, pair.answer_a, pair.answer_b))
    return f"{events}Question: {question}\nAnswer A: {a}\nAnswer B: {b}\n\n{GUIDING}"


def choice_from_margin(value: float, margin: float = 0.0) -> Choice:
    """Choice of a numeric read-out: above 0 means A. |value| below the margin, or 0, is a tie; NaN is invalid."""
    if math.isnan(value):
        return "invalid"
    if value == 0 or abs(value) < margin:
        return "tie"
    return "A" if value > 0 else "B"


def swap_choice(choice: Choice) -> Choice:
    """A choice made about the swapped pair, in names of the first order."""
    swapped: dict[Choice, Choice] = {"A": "B", "B": "A"}
    return swapped.get(choice, choice)


def combine_orders(
    ab: Choice, ba: Choice, values: tuple[float, float], disagreement: Disagreement = "drop", margin: float = 0.0
) -> Choice | Literal["disagree"]:
    """One choice out of both orders, or "disagree". Everything is in names of the first order: see `swap_choice`.

    Invalid in either order is invalid. When the orders differ (also A against tie), "drop" says so; "average" lets the
    mean of `values` decide by `choice_from_margin`, where values are the two read-outs, above 0 for A.
    """
    if disagreement not in ("drop", "average"):
        raise ValueError(f"disagreement is {disagreement!r}, not drop or average")
    if "invalid" in (ab, ba):
        return "invalid"
    if ab == ba:
        return ab
    if disagreement == "drop":
        return "disagree"
    return choice_from_margin((values[0] + values[1]) / 2, margin)


def points(choice: str) -> float:
    """What answer A gets for a verdict: 1, for B 0, and a half where neither was preferred."""
    return {"A": 1.0, "B": 0.0}.get(choice, 0.5)


def is_order_consistent(verdict: Verdict) -> bool:
    """Whether both orders named the same answer."""
    return verdict.orders[0] == verdict.orders[1] and verdict.orders[0] in ("A", "B")
