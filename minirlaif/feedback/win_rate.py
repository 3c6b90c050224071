"""How often the judge prefers the policy's answers to those of the model that it started from."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minirlaif.config import FeedbackSection
from minirlaif.feedback.judge import judge, judge_texts
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.feedback.verdicts import points
from minirlaif.models.generation import Completion
from minirlaif.session import ModelSession, PPOModels
from minirlaif.stats import grouped
from minirlaif.types import Comparison, Sample, Verdict


class WinRate(NamedTuple):
    """Share of questions won, ties as half, and its standard error (questions about one clip count together)."""

    rate: float
    error: float

    @property
    def beyond_error(self) -> bool:
        """Whether more than half is won by more than the standard error: the rule by which the simplest of equally good models
        is kept (Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 7.10), the simplest being the start."""
        return self.rate - 0.5 > self.error


def rate_of(won: Mapping[str, Sequence[float]]) -> WinRate:
    """The win rate of questions by clip: 1, 0, or a half for a tie. Its error is that of a mean of clusters (Liang and Zeger,
    1986); about one clip alone, that of independent questions."""
    each = [list(of_clip) for of_clip in won.values()]
    clusters = each if len(each) > 1 else [[value] for of_clip in each for value in of_clip]
    n, count = sum(map(len, clusters)), len(clusters)
    rate = sum(map(sum, clusters)) / n
    if count < 2:  # one question: nothing is known of its error
        return WinRate(rate, 0.5)
    squares = sum(sum(value - rate for value in cluster) ** 2 for cluster in clusters)
    return WinRate(rate, math.sqrt(squares * count / (count - 1)) / n)


class WinRateEvaluator:
    """How often the judge prefers the policy's greedy answer to that of the reference, on dev prompts (ties count half): how a
    checkpoint is chosen without the truth. judge: the role that judges, the run's start model; text_judge: judges
    in its place."""

    def __init__(
        self,
        models: PPOModels,
        dev: Sequence[Sample],
        contexts: Mapping[str, str],
        section: FeedbackSection,
        max_new_tokens: int,
        judge: str = "reference",
        text_judge: TextJudge | None = None,
    ) -> None:
        self._models, self._dev, self._contexts = models, list(dev), contexts
        self._section, self._max_new_tokens, self._judge, self._text_judge = section, max_new_tokens, judge, text_judge
        self._start: list[Completion] | None = None

    @property
    def questions(self) -> Sequence[Sample]:
        """The dev prompts."""
        return self._dev

    def win_rate(self) -> WinRate:
        """Dev prompts won by the policy as it is now. An answer that was cut at the limit of tokens loses against one
        that ended, and ties with another that was cut."""
        session, reference = self._models.policy, self._models.reference
        policy = self._answers(session, "policy")
        with reference.adapters.on_device("reference", self._judge):
            if self._start is None:
                self._start = self._answers(reference, "reference")
            answers = list(zip(self._dev, policy, self._start, strict=True))
            ended = [each for each in answers if each[1].stopped and each[2].stopped]
            won = [
                (row.video, points(v.choice)) for (row, *_), v in zip(ended, self._verdicts(ended) if ended else (), strict=True)
            ]
        cut = [
            (row.video, 0.5 + 0.5 * (new.stopped - old.stopped)) for row, new, old in answers if not (new.stopped and old.stopped)
        ]
        return rate_of(grouped([*won, *cut]))

    def _verdicts(self, answers: Sequence[tuple[Sample, Completion, Completion]]) -> list[Verdict]:
        session, reference, f = self._models.policy, self._models.reference, self._section
        decode = session.backbone.decode
        pairs = [
            Comparison(
                row.id,
                row.video,
                row.turns[0].question,
                decode(new.ids),
                decode(old.ids),
                self._contexts[row.video] if f.context else "",
                ids_a=new.ids,
                ids_b=old.ids,
            )
            for row, new, old in answers
        ]
        if self._text_judge is not None:
            return judge_texts(self._text_judge, pairs, f.disagreement)
        views = {row.video: session.video_input(row.video) if f.judge_frames else None for row, *_ in answers}
        with reference.adapters.inference_as(self._judge):
            return judge(reference, pairs, views, f.readout, 0.0, f.disagreement, f.batch_size)

    def _answers(self, session: ModelSession, role: str) -> list[Completion]:
        questions = ((session.video_input(row.video), row.turns[0].question) for row in self._dev)
        with session.adapters.on_device(role), session.adapters.inference_as(role):
            return session.greedy_completions(questions, self._max_new_tokens, self._section.batch_size)
