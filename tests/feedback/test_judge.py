"""Descriptions, verdicts of the model and of text judges, both orders combined."""

from __future__ import annotations

import math

import pytest
import torch

from minirlaif.feedback import judge as judging
from minirlaif.feedback.describe import context_text
from minirlaif.feedback.judge import answer_margins, judge, judge_texts, mean_logprobs
from minirlaif.feedback.verdicts import is_order_consistent, judge_question
from minirlaif.models.logprobs import token_logprobs
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Verdict
from tests.fixtures import tiny


def pair(a: str = "a red circle moves left.", b: str = "two things happen.", name: str = "p") -> Comparison:
    return Comparison(name, "clip", "what happens?", a, b, "0s: a red circle moves left.\n")


def test_a_context_has_one_line_per_segment() -> None:
    assert context_text([((0.0, 7.6), "a ball rolls"), ((7.6, 15.0), " it\nstops ")]) == "0s: a ball rolls\n8s: it stops\n"
    assert context_text([]) == ""


@pytest.fixture
def session() -> ModelSession:
    base = tiny.backbone(seed=3)
    return tiny.TinySession(base, {"clip": tiny.view(base, 2, 0)})


def ask(
    session: ModelSession, pairs: list[Comparison], readout: str, margin: float = 0.0, disagreement: str = "drop"
) -> list[Verdict]:
    views = {"clip": session.video_input("clip")}
    with torch.no_grad():
        return judge(session, pairs, views, readout, margin, disagreement, 2)


@pytest.mark.parametrize(
    ("ab", "ba", "margin", "disagreement", "choice", "clear", "orders"),
    [
        (1.0, -2.0, 0.0, "drop", "A", 1.5, ("A", "A")),  # the second order shows B first: -2 speaks for A
        (-1.0, 2.0, 0.0, "drop", "B", 1.5, ("B", "B")),
        (2.0, 2.0, 0.0, "drop", "disagree", 0.0, ("A", "B")),  # always the first letter
        (3.0, 1.0, 0.0, "average", "A", 1.0, ("A", "B")),
        (1.0, 3.0, 0.0, "average", "B", 1.0, ("A", "B")),
        (2.0, 2.0, 0.0, "average", "tie", 0.0, ("A", "B")),
        (0.4, -0.3, 0.5, "drop", "tie", 0.35, ("tie", "tie")),  # under the margin both times
        (0.6, -0.3, 0.5, "drop", "disagree", 0.45, ("A", "tie")),
        (0.6, -0.3, 0.5, "average", "tie", 0.45, ("A", "tie")),
        (math.nan, -1.0, 0.0, "drop", "invalid", math.nan, ("invalid", "A")),
    ],
)
def test_scripted_letters(
    session: ModelSession, monkeypatch: pytest.MonkeyPatch, ab: float, ba: float, margin: float, disagreement: str, choice: str,
    clear: float, orders: tuple[str, str],
) -> None:  # fmt: skip
    example = pair()

    def letters(_: object, pairs: list[Comparison], *rest: object) -> list[float]:
        return [ab if p.answer_a == example.answer_a else ba for p in pairs]

    monkeypatch.setattr(judging, "_letter_values", letters)
    (verdict,) = ask(session, [example], "letter", margin, disagreement)
    assert (verdict.pair, verdict.choice, verdict.orders) == ("p", choice, orders)
    assert verdict.margin == pytest.approx(clear, nan_ok=True)


def test_scripted_likelihoods_give_two_equal_orders(session: ModelSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "answer_margins", lambda session, pairs, views, size: [1.0, -2.0, 0.1, 0.0])
    verdicts = ask(session, [pair(name=str(i)) for i in range(4)], "likelihood", margin=0.2)
    assert [v.choice for v in verdicts] == ["A", "B", "tie", "tie"]
    assert [v.margin for v in verdicts] == pytest.approx([1.0, 2.0, 0.1, 0.0])
    assert [v.orders for v in verdicts] == [("A", "A"), ("B", "B"), ("tie", "tie"), ("tie", "tie")]


@pytest.mark.parametrize("readout", ["letter", "likelihood"])
def test_swapping_the_answers_swaps_the_verdict(session: ModelSession, readout: str) -> None:
    texts = ["a red circle moves left.", "a blue cross.", "two things happen.", "first a green square stays still."]
    pairs = [pair(a, b) for a in texts for b in texts if a != b]
    other = {"A": "B", "B": "A"}
    one = ask(session, pairs, readout, disagreement="average")
    two = ask(session, [p.swap() for p in pairs], readout, disagreement="average")
    assert {v.choice for v in one} == {"A", "B"}
    for first, second in zip(one, two, strict=True):
        assert second.choice == other[first.choice]
        assert second.margin == pytest.approx(first.margin, abs=1e-5)


@pytest.mark.parametrize("readout", ["letter", "likelihood"])
def test_identical_answers_tie_whatever_the_judge_says(
    session: ModelSession, monkeypatch: pytest.MonkeyPatch, readout: str
) -> None:
    monkeypatch.setattr(judging, "_letter_values", lambda session, pairs, *rest: [5.0] * len(pairs))
    monkeypatch.setattr(judging, "answer_margins", lambda session, pairs, *rest: [5.0] * len(pairs))
    (verdict,) = ask(session, [pair("a red circle.", " a red circle. ")], readout)
    assert (verdict.choice, verdict.orders) == ("tie", ("tie", "tie"))


def test_letters_are_read_after_the_judges_question_with_a_above_b_meaning_a(session: ModelSession) -> None:
    pairs = [pair(), pair("x", "a longer answer that says more than the other one.")]
    base, views = session.backbone, {"clip": session.video_input("clip")}
    with torch.no_grad():
        values = judging._letter_values(session, pairs, views, 2)
        for value, p in zip(values, pairs, strict=True):
            ids = session.prompt(views["clip"], judge_question(p))
            logits = base.logits(base.hidden(base.embed(torch.tensor([ids]), [views["clip"].features]), None))[0, -1]
            a, b = (base.renderer.text_ids(f" {letter}")[-1] for letter in "AB")
            assert a != b
            assert value == pytest.approx(float(logits[a] - logits[b]), abs=1e-4)
    assert values[0] != pytest.approx(values[1])


def test_likelihood_is_the_mean_over_the_tokens_of_each_answer_with_frames_and_context(session: ModelSession) -> None:
    pairs = [pair(), pair("a blue cross.", "first a red circle moves left. second a green square stays still.")]
    views = {"clip": session.video_input("clip")}
    with torch.no_grad():
        margins = answer_margins(session, pairs, views, 3)
        for value, p in zip(margins, pairs, strict=True):
            means = []
            for text in (p.answer_a, p.answer_b):
                row = session.encode_pair(views["clip"], p.question, session.answer_ids(text), p.context)
                means.append(float(token_logprobs(session.backbone, [row])[0].mean()))
            assert value == pytest.approx(means[0] - means[1], abs=1e-5)
        without = answer_margins(
            session, [Comparison("p", "clip", "what happens?", p.answer_a, p.answer_b) for p in pairs], views, 3
        )
        blind = answer_margins(session, pairs, {"clip": None}, 3)
    assert margins != pytest.approx(without) and margins != pytest.approx(blind)


def test_means_come_back_in_the_order_of_the_rows(session: ModelSession) -> None:
    rows = tiny.rows(session.backbone)
    with torch.no_grad():
        assert mean_logprobs(session, rows, 2) == pytest.approx([mean_logprobs(session, [row], 1)[0] for row in rows], abs=1e-5)


@pytest.mark.parametrize(
    ("orders", "expected"),
    [(("A", "A"), True), (("B", "B"), True), (("A", "B"), False), (("tie", "tie"), False), (("invalid", "invalid"), False)],
)
def test_orders_are_consistent_when_both_name_one_answer(orders: tuple[str, str], expected: bool) -> None:
    assert is_order_consistent(Verdict("p", "A", 1.0, orders)) is expected


class Scripted:
    """A TextJudge that gives the first list of choices, then the second."""

    kind = name = "scripted"
    signature: dict[str, str] = {}

    def __init__(self, *choices: list[str]) -> None:
        self.choices, self.pairs = list(choices), []

    def compare(self, pairs: list[Comparison]) -> list[str]:
        self.pairs.append(pairs)
        return self.choices.pop(0)


@pytest.mark.parametrize(
    ("first", "second", "drop", "average", "margin", "orders"),
    [
        ("A", "B", "A", "A", 1.0, ("A", "A")),  # the second order shows B first
        ("B", "A", "B", "B", 1.0, ("B", "B")),
        ("A", "A", "disagree", "tie", 0.0, ("A", "B")),
        ("A", "tie", "disagree", "A", 0.5, ("A", "tie")),
        ("tie", "tie", "tie", "tie", 0.0, ("tie", "tie")),
        ("invalid", "B", "invalid", "invalid", 0.5, ("invalid", "A")),
    ],
)
def test_a_text_judge_is_asked_in_both_orders(
    first: str, second: str, drop: str, average: str, margin: float, orders: tuple[str, str]
) -> None:
    for disagreement, choice in (("drop", drop), ("average", average)):
        scripted = Scripted([first, "A"], [second, "A"])
        verdict, equal = judge_texts(scripted, [pair("x", "y"), pair("same", " same ")], disagreement)
        assert (verdict.choice, verdict.margin, verdict.orders) == (choice, margin, orders)
        assert (equal.choice, equal.orders) == ("tie", ("tie", "tie"))
        assert [(p[0].answer_a, p[0].answer_b) for p in scripted.pairs] == [("x", "y"), ("y", "x")]
