"""Which of two answers is better: judged in both orders by the model itself or by a TextJudge.

The model has two read-outs. "letter": the logits of A and B after the judge's question (the paper asks for a letter).
"likelihood": the mean log-likelihood of each answer after frames, context and question; small models manage that one. It shows
one answer at a time, so its two orders agree by construction.
"""

from collections.abc import Mapping, Sequence

from minirlaif.config import FeedbackSection
from minirlaif.feedback.describe import context_text, describe_segments
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.feedback.verdicts import Disagreement, choice_from_margin, combine_orders, judge_question, swap_choice
from minirlaif.models.logprobs import EncodedPair, first_token_logprobs, map_micro_batches, token_logprobs
from minirlaif.session import ModelSession, VideoInput
from minirlaif.types import Choice, Comparison, Verdict

QUESTION_TOKENS = 300  # of a comparison beside answers and descriptions


def comparison_tokens(section: FeedbackSection, segments: int, answer_tokens: int) -> int:
    """The most tokens that a judge which reads text gets for one comparison. segments: of a clip at most; answer_tokens: of an
    answer at most."""
    return segments * section.describe_tokens * section.context + 2 * answer_tokens + QUESTION_TOKENS


def judge(
    session: ModelSession,
    pairs: Sequence[Comparison],
    views: Mapping[str, VideoInput | None],
    readout: str,
    margin: float,
    disagreement: Disagreement,
    batch_size: int,
) -> list[Verdict]:
    """One verdict per pair. views: by clip path what the judge sees, None: text only; readout: letter or likelihood; margin: in
    log-odds of the letters, or nats per token; disagreement: what becomes of a pair whose two orders differ."""
    if readout not in ("letter", "likelihood"):
        raise ValueError(f"{readout!r} is no read-out")
    if readout == "likelihood":
        values = [(value, value) for value in answer_margins(session, pairs, views, batch_size)]
    else:
        first = _letter_values(session, pairs, views, batch_size)
        second = _letter_values(session, [pair.swap() for pair in pairs], views, batch_size)
        values = [(ab, -ba) for ab, ba in zip(first, second, strict=True)]
    return verdicts(pairs, values, margin, disagreement)


def verdicts(
    pairs: Sequence[Comparison], values: Sequence[tuple[float, float]], margin: float, disagreement: Disagreement
) -> list[Verdict]:
    """One verdict per pair from its score differences. values: score of answer A minus that of answer B, in both orders; margin,
    disagreement: as `judge` has them."""
    result = []
    for pair, (ab, ba) in zip(pairs, values, strict=True):
        orders = (choice_from_margin(ab, margin), choice_from_margin(ba, margin))
        result.append(_verdict(pair, orders, (ab, ba), margin, disagreement))
    return result


def judge_texts(text_judge: TextJudge, pairs: Sequence[Comparison], disagreement: Disagreement) -> list[Verdict]:
    """One verdict per pair by a judge that reads question, context and answers. Its margin is 1 where both orders name the same
    answer, 0.5 where only one of them names an answer, else 0."""
    first = text_judge.compare(pairs)
    second = [swap_choice(choice) for choice in text_judge.compare([pair.swap() for pair in pairs])]
    value = {"A": 1.0, "B": -1.0}
    return [
        _verdict(pair, (ab, ba), (value.get(ab, 0.0), value.get(ba, 0.0)), 0.0, disagreement)
        for pair, ab, ba in zip(pairs, first, second, strict=True)
    ]


def _verdict(
    pair: Comparison, orders: tuple[Choice, Choice], values: tuple[float, float], margin: float, disagreement: Disagreement
) -> Verdict:
    """Both orders combined; equal answers tie whatever the judge says."""
    choice = combine_orders(*orders, values=values, disagreement=disagreement, margin=margin)
    if pair.answer_a.strip() == pair.answer_b.strip():
        choice, orders = "tie", ("tie", "tie")
    return Verdict(pair.id, choice, abs(values[0] + values[1]) / 2, orders)


def answer_margins(
    session: ModelSession, pairs: Sequence[Comparison], views: Mapping[str, VideoInput | None], batch_size: int
) -> list[float]:
    """Mean log-likelihood per token of answer A minus that of answer B, in nats; by the ids that were sampled, where a pair has
    them."""
    rows = [
        session.encode_pair(views[pair.video], pair.question, ids or session.answer_ids(text), pair.context)
        for pair in pairs
        for text, ids in ((pair.answer_a, pair.ids_a), (pair.answer_b, pair.ids_b))
    ]
    means = mean_logprobs(session, rows, batch_size)
    return [means[2 * i] - means[2 * i + 1] for i in range(len(pairs))]


def mean_logprobs(session: ModelSession, rows: Sequence[EncodedPair], batch_size: int) -> list[float]:
    """Mean log-probability per answer token of each row."""

    def means(_: int, index: list[int]) -> list[float]:
        logprobs_BR, mask_BR, _entropy = token_logprobs(session.backbone, [rows[i] for i in index])
        return list((logprobs_BR.sum(1) / mask_BR.sum(1)).tolist())

    return map_micro_batches(means, [len(row) for row in rows], batch_size)


def _letter_values(
    session: ModelSession, pairs: Sequence[Comparison], views: Mapping[str, VideoInput | None], batch_size: int
) -> list[float]:
    """log p(A) - log p(B) at the first position of the reply; positive means the first answer is better."""
    renderer = session.backbone.renderer
    letters = [renderer.text_ids(renderer.layout.answer + letter)[-1] for letter in "AB"]
    rows = [session.encode_pair(views[pair.video], judge_question(pair), letters[:1]) for pair in pairs]

    def margins(_: int, index: list[int]) -> list[float]:
        return [a - b for a, b in first_token_logprobs(session.backbone, [rows[i] for i in index], letters).tolist()]

    return map_micro_batches(margins, [len(row) for row in rows], batch_size)


class SessionJudge:
    """Describes and judges for the chat engine as the stage `feedback` does: by the start model of the run, "sft" or "base", or
    by the base where the settings say so. Another describer, and a judge that reads text, are not asked here: the start model
    describes and judges in their place."""

    def __init__(self, session: ModelSession, section: FeedbackSection, role: str = "sft") -> None:
        self._session, self._section = session, section
        self._describer, self._judge = ("base" if name == "base" else role for name in (section.describer, section.judge))

    def context(self, video: str) -> str:
        """Descriptions of the clip's segments."""
        with self._session.adapters.inference_as(self._describer):
            return context_text(describe_segments(self._session, [video], self._section)[video].segments)

    def verdict(self, pair: Comparison, view: VideoInput) -> Verdict:
        """Which answer is better, by the section's read-out."""
        f = self._section
        views = {pair.video: view if f.judge_frames else None}
        with self._session.adapters.inference_as(self._judge):
            return judge(self._session, [pair], views, f.readout, f.margin, f.disagreement, 1)[0]
