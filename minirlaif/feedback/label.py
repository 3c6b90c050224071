"""Labels prompts: the model answers them, its answers form pairs, and a judge decides which one of each pair is better."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from minirlaif.config import FeedbackSection
from minirlaif.feedback.describe import context_text, describe_segments
from minirlaif.feedback.judge import judge, judge_texts
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.models.generation import Completion, sample
from minirlaif.models.seeds import generator, seed_of
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Sample, Verdict

Lines = list[tuple[str, dict[str, Any]]]  # (file, record) of each line to write
LETTER_SHARE = 16  # of so many pairs one is also judged by letters, to compare the read-outs
SAMPLE_EVERY = 4  # of so many chunks one pair stands in samples.jsonl


@dataclass(frozen=True)
class Labels:
    """Verdicts on pairs, on the same pairs without context, and by letters on some of them (by id)."""

    verdicts: list[Verdict]
    without_context: list[Verdict]
    letters: dict[str, Verdict]


def describe(
    session: ModelSession, section: FeedbackSection, run: Run, rows: Sequence[Sample], contexts: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Describe the segments of clips that have no context yet. Clip -> line for contexts.jsonl."""
    videos = [video for video in dict.fromkeys(row.video for row in rows) if video not in contexts]
    return {
        video: {"video": run.stored(video), "context": context_text(segments), "segments": [text for _, text in segments]}
        for video, segments in describe_segments(session, videos, section).items()
    }


def label(
    session: ModelSession,
    section: FeedbackSection,
    run: Run,
    rows: Sequence[Sample],
    contexts: Mapping[str, str],
    seed: int,
    chunk: int,
    text_judge: TextJudge | None = None,
) -> Lines:
    """Answer, pair and judge: the lines of answers, verdicts, preferences and samples. chunk: the number of these rows, which
    decides with the run's seed what is drawn; text_judge: judges in place of the model itself."""
    lines: Lines = []
    pairs: list[Comparison] = []
    for row, completions in zip(rows, draw_answers(session, section, rows, seed, chunk), strict=True):
        texts = [session.backbone.renderer.decode(c.ids) for c in completions]
        question = {"id": row.id, "video": run.stored(row.video), "question": row.turns[0].question}
        lines.append(("answers.jsonl", {**question, "answers": texts}))
        pairs += make_pairs(row, texts, contexts[row.video] if section.context else "", section.pairs_per_prompt, seed)
    labels = judge_pairs(session, section, pairs, text_judge)
    for pair, verdict, bare in zip(pairs, labels.verdicts, labels.without_context, strict=True):
        pair = replace(pair, video=run.stored(pair.video))
        record: dict[str, Any] = {**asdict(pair), **_record(verdict), "without_context": _record(bare)}
        if pair.id in labels.letters:
            record["letter"] = _record(labels.letters[pair.id])
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


def judge_pairs(
    session: ModelSession, section: FeedbackSection, pairs: Sequence[Comparison], text_judge: TextJudge | None = None
) -> Labels:
    """Judge pairs; and, only to be reported, the same pairs without context and some of them by letters."""
    f = section
    frames = {pair.video: session.video_input(pair.video) for pair in pairs}
    views = frames if f.judge_frames else dict.fromkeys(frames)
    bare = [replace(pair, context="") for pair in pairs]
    if text_judge is not None:
        verdicts, without_context = (judge_texts(text_judge, batch, f.disagreement) for batch in (pairs, bare))
        return Labels(verdicts, without_context, {})
    verdicts = judge(session, pairs, views, f.readout, f.margin, f.disagreement, f.batch_size)
    without_context = judge(session, bare, frames, f.readout, f.margin, f.disagreement, f.batch_size)
    by_letter = [pair for number, pair in enumerate(pairs) if number % LETTER_SHARE == 0] if f.readout != "letter" else []
    letters = judge(session, by_letter, views, "letter", 0.0, "drop", f.batch_size) if by_letter else []
    return Labels(verdicts, without_context, {verdict.pair: verdict for verdict in letters})


def make_pairs(row: Sample, texts: Sequence[str], context: str, count: int, seed: int) -> list[Comparison]:
    """At most `count` pairs of different answers; which comes first is drawn, so that the position is no clue."""
    distinct = dict.fromkeys(text for text in texts if text.strip())  # an empty answer is no answer to compare
    combinations = list(itertools.islice(itertools.combinations(distinct, 2), count))
    pairs = []
    # Where all answers are alike, they are kept as a tie, so that the counts are complete.
    for number, (one, two) in enumerate(combinations or [(texts[0], texts[0])]):
        if seed_of(seed, "order", row.id, number) % 2:
            one, two = two, one
        pairs.append(Comparison(f"{row.id}#{number}", row.video, row.turns[0].question, one, two, context, dict(row.tags)))
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
