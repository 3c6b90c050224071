"""Who scores the answers that a method samples, where it is not the reward model (`optimize.reward`): the judge of `feedback`, or
a file of the user.

Letters: B answers, those to one prompt beside each other · n answers to a prompt.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from minirlaif.algorithms.reward_file import RewardFile
from minirlaif.config import FeedbackSection
from minirlaif.feedback.judge import judge, judge_texts, mean_logprobs
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.feedback.verdicts import points
from minirlaif.models.generation import Completion
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Sample


class AnswerReward(Protocol):
    """Scores answers while a method learns."""

    def scores(self, prompts: Sequence[Sample], drawn: Sequence[Sequence[Completion]]) -> list[float]:
        """One finite score per answer [B]. drawn: the answers to each prompt. UserError: it cannot score them."""


@dataclass(frozen=True)
class FileReward:
    """The user's function. session: decodes answers."""

    file: RewardFile
    session: ModelSession

    def scores(self, prompts: Sequence[Sample], drawn: Sequence[Sequence[Completion]]) -> list[float]:
        """See `AnswerReward`."""
        decode = self.session.backbone.renderer.decode
        return [
            self.file.score(row.turns[0].question, decode(c.ids), {**row.tags, "id": row.id, "video": row.video})
            for row, group in zip(prompts, drawn, strict=True)
            for c in group
        ]


@dataclass(frozen=True)
class JudgeReward:
    """The judge of `feedback`, with the descriptions.

    With the read-out "likelihood" a score is the answer's mean log-likelihood, in nats per token; judges that compare two answers
    (letters, text_judge) compare each answer with the others to its prompt, and its score is the share that it won, ties half.
    ranked: the scores of a prompt's answers become ranks, see `ranks`. role: of the adapter that judges; contexts: by clip.
    """

    session: ModelSession
    role: str
    section: FeedbackSection
    contexts: Mapping[str, str]
    text_judge: TextJudge | None = None
    ranked: bool = False

    def scores(self, prompts: Sequence[Sample], drawn: Sequence[Sequence[Completion]]) -> list[float]:
        """See `AnswerReward`."""
        by_likelihood = self.section.readout == "likelihood" and self.text_judge is None
        scores = self._likelihoods(prompts, drawn) if by_likelihood else self._shares_won(prompts, drawn)
        # An answer that was drawn twice has one score: in another batch it would differ by rounding, and have another rank.
        places = [{c.ids: place for place, c in reversed(list(enumerate(group)))} for group in drawn]
        scores = [[of[first[c.ids]] for c in group] for of, first, group in zip(scores, places, drawn, strict=True)]
        return [score for group in scores for score in (ranks(group) if self.ranked else group)]

    def _likelihoods(self, prompts: Sequence[Sample], drawn: Sequence[Sequence[Completion]]) -> list[list[float]]:
        session, f = self.session, self.section
        rows = [
            session.encode_pair(
                session.video_input(row.video) if f.judge_frames else None, row.turns[0].question, c.ids, self._context(row)
            )
            for row, group in zip(prompts, drawn, strict=True)
            for c in group
        ]
        with session.adapters.on_device(self.role), session.adapters.inference_as(self.role):
            means = iter(mean_logprobs(session, rows, f.batch_size))
        return [[next(means) for _ in group] for group in drawn]

    def _shares_won(self, prompts: Sequence[Sample], drawn: Sequence[Sequence[Completion]]) -> list[list[float]]:
        session, f, decode = self.session, self.section, self.session.backbone.renderer.decode
        pairs, places = [], []
        for number, (row, group) in enumerate(zip(prompts, drawn, strict=True)):
            texts = [decode(c.ids).strip() for c in group]
            for i, j in itertools.combinations(range(len(texts)), 2):
                if texts[i] != texts[j]:
                    places.append((number, i, j))
                    named = f"{row.id}#{i}-{j}"
                    pairs.append(Comparison(named, row.video, row.turns[0].question, texts[i], texts[j], self._context(row)))
        if self.text_judge is not None:
            verdicts = judge_texts(self.text_judge, pairs, f.disagreement)
        else:
            views = {row.video: session.video_input(row.video) if f.judge_frames else None for row in prompts}
            with session.adapters.on_device(self.role), session.adapters.inference_as(self.role):
                verdicts = judge(session, pairs, views, f.readout, f.margin, f.disagreement, f.batch_size)
        won = [[0.5 * (len(group) - 1) for _ in group] for group in drawn]
        for (number, i, j), verdict in zip(places, verdicts, strict=True):
            won[number][i] += points(verdict.choice) - 0.5
            won[number][j] -= points(verdict.choice) - 0.5
        return [[each / (len(group) - 1) for each in group] for group in won]

    def _context(self, row: Sample) -> str:
        return self.contexts[row.video] if self.section.context else ""


def ranks(scores: Sequence[float]) -> list[float]:
    """The rank of each of n scores: how many of the others it is above, less how many it is below, over n - 1. From -1 to 1;
    equal scores have equal ranks. ValueError for a single score."""
    if len(scores) < 2:
        raise ValueError("a single answer has no rank")
    return [sum((one > other) - (one < other) for other in scores) / (len(scores) - 1) for one in scores]
