"""The read-out of a judge that is the run's own model, where `feedback.readout` is auto.

A letter is what the paper reads. A model that is too small for it says the same letter in both orders. So both read-outs are
tried before the long work, on pairs whose better answer is known without a label: two answers to one question about a clip, one
given with the descriptions of this clip and one with those of another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from minirlaif.config import FeedbackSection
from minirlaif.feedback.judge import SessionJudge, judge
from minirlaif.feedback.verdicts import is_order_consistent, points
from minirlaif.models.generation import greedy
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Sample

PROBE_PAIRS = 20
ENOUGH_PAIRS = 5  # below this, letters are not trusted
LETTERS_FROM = 0.75  # share of pairs, an undecided one as half, from which letters are used; a judge that guesses has 0.5
AUTO = "auto"


@dataclass(frozen=True)
class ReadoutProbe:
    """Pairs compared; of them the share in which each read-out prefers the answer about the clip, an undecided one as half; and
    how often both orders of the letters agree."""

    pairs: int
    letter: float
    likelihood: float
    consistent: int

    @property
    def readout(self) -> Literal["letter", "likelihood"]:
        """The one to use. Likelihood names the same answer in both orders whatever the model is, so it is the fallback."""
        return "letter" if self.pairs >= ENOUGH_PAIRS and self.letter >= LETTERS_FROM else "likelihood"

    def __str__(self) -> str:
        return (
            f"read-out tried on {self.pairs} pairs of an answer about the clip and one about another: letters prefer the first"
            f" in {self.letter:.0%} (both orders agree in {self.consistent}), likelihood in {self.likelihood:.0%}:"
            f" {self.readout} is used"
        )


def probe_rows(rows: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """At most PROBE_PAIRS rows, spread over all, and for each the path of another clip of them; none where there is one clip."""
    count = min(PROBE_PAIRS, len(rows))
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    result = []
    for number, row in enumerate(chosen):
        other = next((each.video for each in chosen[number + 1 :] + chosen[:number] if each.video != row.video), None)
        if other is not None:
            result.append((row, other))
    return result


def probe(
    session: ModelSession,
    section: FeedbackSection,
    rows: Sequence[tuple[Sample, str]],
    contexts: Mapping[str, str],
    answerer: str,
    judge_role: str,
) -> ReadoutProbe:
    """Try both read-outs. rows: of `probe_rows`; contexts: descriptions by clip; answerer, judge_role: the adapters that answer
    and judge. What is shown beside the question, descriptions or frames, is what the judge will be shown."""
    f = section
    videos = dict.fromkeys(video for row, other in rows for video in (row.video, other))
    views = {video: session.video_input(video) if f.judge_frames else None for video in videos}
    shown = {video: contexts[video] if f.context else "" for video in videos}
    prompts = [
        session.encode_prompt(views[video], row.turns[0].question, shown[video])
        for row, other in rows
        for video in (row.video, other)
    ]
    with session.adapters.inference_as(answerer):
        answers = list(greedy(session.backbone, prompts, f.batch_size, f.max_new_tokens))
    pairs = []
    for number, (row, _) in enumerate(rows):
        own, foreign = answers[2 * number], answers[2 * number + 1]
        a, b = session.backbone.decode(own.ids), session.backbone.decode(foreign.ids)
        if a.strip() != b.strip() and own.stopped and foreign.stopped:
            pair = Comparison(f"{row.id}#{number}", row.video, row.turns[0].question, a, b, shown[row.video])
            pairs.append(replace(pair, ids_a=own.ids, ids_b=foreign.ids))
    if not pairs:
        return ReadoutProbe(0, 0.5, 0.5, 0)
    with session.adapters.inference_as(judge_role):
        letters = judge(session, pairs, views, "letter", 0.0, "drop", f.batch_size)
        likelihoods = judge(session, pairs, views, "likelihood", 0.0, "drop", f.batch_size)
    share = [sum(points(verdict.choice) for verdict in each) / len(pairs) for each in (letters, likelihoods)]
    return ReadoutProbe(len(pairs), share[0], share[1], sum(map(is_order_consistent, letters)))


def known_readout(section: FeedbackSection, run: Run) -> FeedbackSection:
    """The section with the read-out that `feedback` has chosen, or was given, for stages behind it and for the app. A judge that
    reads text has none; before `feedback` is finished, the one that works with every model."""
    if section.readout != AUTO:
        return section
    if run.manifest("feedback") is None:
        return replace(section, readout="likelihood")
    given = run.settings("feedback").get("feedback", {}).get("readout", AUTO)
    return replace(section, readout=run.metrics("feedback").get("readout", "letter" if given == AUTO else given))


def judge_of_run(session: ModelSession, section: FeedbackSection, run: Run) -> SessionJudge:
    """The judge that the app shows: the run's own, see `SessionJudge`, with its read-out."""
    return SessionJudge(session, known_readout(section, run), run.start_model)
