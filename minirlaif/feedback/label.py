"""Labels prompts: the model answers them, its answers form pairs, and a judge decides which one of each pair is better."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from minirlaif.config import FeedbackSection
from minirlaif.config.seeds import seed_of
from minirlaif.feedback.describe import Describer, context_text
from minirlaif.feedback.judge import judge, judge_texts, mean_logprobs, verdicts
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.models.generation import Completion, sample
from minirlaif.models.seeds import generator
from minirlaif.runs.progress import timed_apart
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Sample, Verdict

Lines = list[tuple[str, dict[str, Any]]]  # (file, record) of each line to write
CONTROL_PAIRS = 1000  # that are also judged without context, to be compared: a standard error of 1.6 points at most
LETTER_SHARE = 16  # of so many pairs one is also judged by letters, to compare the read-outs
SAMPLE_EVERY = 4  # of so many chunks one pair stands in samples.jsonl


@dataclass(frozen=True)
class Candidate:
    """An answer to a prompt. ids: as sampled, with the end token if it `stopped` before the limit of tokens; with_context:
    whether the descriptions were shown as text."""

    text: str
    ids: tuple[int, ...]
    stopped: bool
    with_context: bool = False


@dataclass(frozen=True)
class Labels:
    """Verdicts on pairs, and by id those on the same pairs without context and on some of them by letters."""

    verdicts: list[Verdict]
    without_context: dict[str, Verdict]
    letters: dict[str, Verdict]


def describe(
    describer: Describer,
    section: FeedbackSection,
    run: Run,
    rows: Sequence[Sample],
    contexts: Mapping[str, str],
    spans: bool = False,
) -> dict[str, dict[str, Any]]:
    """Describe the segments of clips that have no context yet. Clip -> line for contexts.jsonl; spans: with the segments' start
    and end in seconds."""
    videos = [video for video in dict.fromkeys(row.video for row in rows) if video not in contexts]
    return {
        video: {
            "video": run.stored(video),
            "context": context_text(described.segments),
            "segments": [text for _, text in described.segments],
            **({"spans": [list(span) for span, _ in described.segments]} if spans else {}),
            "cut": described.cut,
            **({"missing": described.missing} if described.missing else {}),
        }
        for video, described in describer.describe(videos, section).items()
    }


def label(
    session: ModelSession,
    section: FeedbackSection,
    run: Run,
    rows: Sequence[Sample],
    drawn: Sequence[Sequence[Candidate]],
    contexts: Mapping[str, str],
    seed: int,
    chunk: int,
    text_judge: TextJudge | None = None,
    control: bool = True,
) -> Lines:
    """Pair the candidates of each row and judge them by the active adapter: the lines of answers, verdicts, preferences and
    samples. chunk: the number of these rows; text_judge: judges in place of the model itself; control: as in `judge_pairs`."""
    lines: Lines = []
    pairs: list[Comparison] = []
    differences: list[float] = []  # score of answer A minus that of B of each pair, where the answers are ranked
    ranked = section.readout == "likelihood" and text_judge is None  # letters compare two answers, they rank none
    scores = candidate_scores(session, section, rows, drawn, contexts) if ranked else [{} for _ in rows]
    for row, candidates, score in zip(rows, drawn, scores, strict=True):
        question = {"id": row.id, "video": run.stored(row.video), "question": row.turns[0].question}
        lines.append(("answers.jsonl", {**question, **answers_record(candidates)}))
        context = contexts[row.video] if section.context else ""
        made = make_pairs(row, candidates, context, section.pairs_per_prompt, seed, score)
        pairs += made
        differences += [_difference(pair, score) for pair in made] if ranked else []
    labels = judge_pairs(session, section, pairs, text_judge, differences if ranked else None, control)
    for pair, verdict in zip(pairs, labels.verdicts, strict=True):
        pair = replace(pair, video=run.stored(pair.video))
        texts = {name: value for name, value in asdict(pair).items() if name not in ("ids_a", "ids_b")}
        record: dict[str, Any] = {**texts, **_record(verdict)}
        for name, known in (("without_context", labels.without_context), ("letter", labels.letters)):
            if pair.id in known:
                record[name] = _record(known[pair.id])
        lines.append(("verdicts.jsonl", record))
        if verdict.choice in ("A", "B"):
            lines.append(("preferences.jsonl", preference(pair, verdict)))
    if pairs and chunk % SAMPLE_EVERY == 0:
        v = next((verdict for verdict in labels.verdicts if verdict.choice in ("A", "B")), labels.verdicts[0])
        pair = next(pair for pair in pairs if pair.id == v.pair)
        shown = {"video": run.stored(pair.video), "question": pair.question, "context": pair.context}
        judged = {"a": pair.answer_a, "b": pair.answer_b, "choice": v.choice, "margin": v.margin}
        lines.append(("samples.jsonl", {**shown, **judged}))
    return lines


def draw_answers(
    session: ModelSession, section: FeedbackSection, rows: Sequence[Sample], seed: int, chunk: int
) -> list[list[Completion]]:
    """Sampled answers of the active adapter to each row's question."""
    prompts = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in rows]
    source = generator(seed, "feedback", chunk)
    return sample(session.backbone, prompts, section.answers, section.temperature, section.top_p, section.max_new_tokens, source)


def draw_candidates(
    session: ModelSession, section: FeedbackSection, rows: Sequence[Sample], contexts: Mapping[str, str], seed: int, chunk: int
) -> list[list[Candidate]]:
    """Each row's sampled answers, then its answers with the descriptions as text (feedback.context_answers)."""
    decode = session.backbone.renderer.decode
    drawn = [
        [Candidate(decode(c.ids), c.ids, c.stopped) for c in group] for group in draw_answers(session, section, rows, seed, chunk)
    ]
    for group, answers in zip(drawn, _context_answers(session, section, rows, contexts, seed, chunk), strict=True):
        group += [Candidate(decode(c.ids), c.ids, c.stopped, True) for c in answers]
    return drawn


def _context_answers(
    session: ModelSession, section: FeedbackSection, rows: Sequence[Sample], contexts: Mapping[str, str], seed: int, chunk: int
) -> list[list[Completion]]:
    """Answers to prompts with the descriptions: of each row the most likely one first, then sampled ones. The frames are shown
    if the judge sees them."""
    f, answers = section, [list[Completion]() for _ in rows]
    if not f.context_answers:
        return answers
    views = [session.video_input(row.video) if f.judge_frames else None for row in rows]
    prompts = [
        session.encode_prompt(view, row.turns[0].question, contexts[row.video]) for view, row in zip(views, rows, strict=True)
    ]
    for temperature, count in ((0.0, 1), (f.temperature, f.context_answers - 1)):
        if count:
            source = generator(seed, "context-answers", chunk)
            drawn = sample(session.backbone, prompts, count, temperature, f.top_p, f.max_new_tokens, source)
            answers = [[*known, *new] for known, new in zip(answers, drawn, strict=True)]
    return answers


def candidate_scores(
    session: ModelSession,
    section: FeedbackSection,
    rows: Sequence[Sample],
    drawn: Sequence[Sequence[Candidate]],
    contexts: Mapping[str, str],
) -> list[dict[str, float]]:
    """By row the judge's score of each answer that can stand in a pair: its mean log-likelihood, as the judge reads it."""
    views = {row.video: session.video_input(row.video) if section.judge_frames else None for row in rows}
    answers = zip(rows, map(comparable, drawn), strict=True)
    texts = [(row, text, ids) for row, of_row in answers for text, ids in of_row.items()]
    encoded = [
        session.encode_pair(views[row.video], row.turns[0].question, ids, contexts[row.video] if section.context else "")
        for row, _, ids in texts
    ]
    scores: dict[str, dict[str, float]] = {row.id: {} for row in rows}
    for (row, text, _), score in zip(texts, mean_logprobs(session, encoded, section.batch_size), strict=True):
        scores[row.id][text] = score
    return [scores[row.id] for row in rows]


def comparable(candidates: Sequence[Candidate]) -> dict[str, tuple[int, ...]]:
    """Different answers that ended before the limit of tokens, and are not empty, in the order in which they were drawn, with
    the token ids of the first that has the text."""
    answers: dict[str, tuple[int, ...]] = {}
    for c in candidates:
        if c.stopped and c.text.strip():
            answers.setdefault(c.text, c.ids)
    return answers


def answers_record(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The answers of one prompt for answers.jsonl: texts, token ids, whether each ended, whether it was given with context."""
    return {
        "answers": [c.text for c in candidates],
        "ids": [list(c.ids) for c in candidates],
        "stopped": [c.stopped for c in candidates],
        "with_context": [c.with_context for c in candidates],
    }


def judge_pairs(
    session: ModelSession,
    section: FeedbackSection,
    pairs: Sequence[Comparison],
    text_judge: TextJudge | None = None,
    differences: Sequence[float] | None = None,
    control: bool = True,
) -> Labels:
    """Judge pairs; and, only to be reported, the same pairs without context and some of them by letters. differences: the
    score of answer A minus that of B of each pair, where `candidate_scores` has them: the pairs are not scored again; control:
    whether the pairs are judged without context, too."""
    f = section
    clips = list(dict.fromkeys(pair.video for pair in pairs))
    frames = {video: session.video_input(video) for video in clips} if control or f.judge_frames else {}
    views: dict[str, Any] = frames if f.judge_frames else dict.fromkeys(clips)
    bare = [replace(pair, context="") for pair in pairs] if control else []
    if text_judge is not None:
        judged, without_context = (judge_texts(text_judge, batch, f.disagreement) for batch in (pairs, bare))
        return Labels(judged, {verdict.pair: verdict for verdict in without_context}, {})
    if differences is None:
        judged = judge(session, pairs, views, f.readout, f.margin, f.disagreement, f.batch_size)
    else:
        judged = verdicts(pairs, [(value, value) for value in differences], f.margin, f.disagreement)
    with timed_apart("control"):
        without_context = judge(session, bare, frames, f.readout, f.margin, f.disagreement, f.batch_size) if bare else []
    by_letter = [pair for number, pair in enumerate(pairs) if number % LETTER_SHARE == 0] if f.readout != "letter" else []
    letters = judge(session, by_letter, views, "letter", 0.0, "drop", f.batch_size) if by_letter else []
    return Labels(judged, {v.pair: v for v in without_context}, {v.pair: v for v in letters})


def _difference(pair: Comparison, scores: Mapping[str, float]) -> float:
    """The score of answer A minus that of B; of equal answers, of which there may be no score, nothing."""
    return 0.0 if pair.answer_a == pair.answer_b else scores[pair.answer_a] - scores[pair.answer_b]


def make_pairs(
    row: Sample, candidates: Sequence[Candidate], context: str, count: int, seed: int, scores: Mapping[str, float]
) -> list[Comparison]:
    """At most `count` pairs of different answers; which comes first is drawn, so that the position is no clue. scores: of the
    answers by the judge, where it ranks them: then the pairs that lie furthest apart are taken, the best with the worst first;
    else the first ones. Answers that were cut at the limit of tokens, and empty ones, are in no pair; of a prompt without any
    other there is none."""
    finished, ids = [c.text for c in candidates if c.stopped], comparable(candidates)
    combinations = list(itertools.combinations(ids, 2))
    if scores:
        combinations.sort(key=lambda pair: -abs(scores[pair[0]] - scores[pair[1]]))
    combinations = combinations[:count]
    alike = [(finished[0], finished[0])] if finished else []  # kept as a tie, so that the counts are complete
    pairs = []
    for number, (one, two) in enumerate(combinations or alike):
        if seed_of(seed, "order", row.id, number) % 2:
            one, two = two, one
        known = {"ids_a": ids.get(one, ()), "ids_b": ids.get(two, ())}
        named = f"{row.id}#{number}"
        pairs.append(Comparison(named, row.video, row.turns[0].question, one, two, context, dict(row.tags), **known))
    return pairs


def _record(verdict: Verdict) -> dict[str, Any]:
    return {"choice": verdict.choice, "margin": round(verdict.margin, 5), "orders": list(verdict.orders)}


def preference(pair: Comparison, verdict: Verdict) -> dict[str, Any]:
    """The line of preferences.jsonl for a decided pair."""
    chosen, rejected = (pair.answer_a, pair.answer_b) if verdict.choice == "A" else (pair.answer_b, pair.answer_a)
    record: dict[str, Any] = {
        "id": pair.id,
        "videos": [pair.video],
        "prompt": pair.question,
        "chosen": chosen,
        "rejected": rejected,
        "context": pair.context,
        "margin": round(verdict.margin, 5),
    }
    return record | {name: value for name, value in pair.tags.items() if name not in record}  # a tag replaces nothing
