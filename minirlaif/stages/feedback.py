"""Stage `feedback`: the SFT model answers, describes the clip segment by segment, and judges its answers (paper section 3.2).

Out: answers.jsonl, contexts.jsonl (also of dev clips, for choosing a PPO checkpoint), verdicts.jsonl, preferences.jsonl.
Each chunk of prompts is committed, so a killed run goes on where it was. Truth is not read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.feedback.describe import context_text, describe_segments
from minirlaif.feedback.judge import is_order_consistent, judge, judge_texts
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.models.generation import sample
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, VideoInput, located, open_session, read_samples, readable, settings_of, stored
from minirlaif.stages.registry import STAGES
from minirlaif.training.optim import generator, seed_of
from minirlaif.types import Comparison, Sample, Verdict

Lines = list[tuple[str, dict[str, Any]]]  # (file, record) of each line to write
LETTER_SHARE = 16  # of so many pairs one is also judged by letters, to compare the read-outs


def run(cfg: Config, run: Run, redo: bool = False, text_judge: TextJudge | None = None) -> None:
    """1. open the SFT model 2. per chunk: describe, answer, judge, write 3. describe dev clips 4. count.

    text_judge: judges in place of the SFT model; the manifest then records its signature.
    """
    settings = settings_of(cfg, *STAGES["feedback"].sections, sources=STAGES["feedback"].reads)
    if text_judge is not None:
        settings["judge"] = dict(text_judge.signature)
    with run.stage("feedback", settings, inputs=run.inputs("feedback"), redo=redo) as out:
        if out is None:
            return
        prompts = read_samples(cfg, run, "prompts", need_answers=False)[: cfg.feedback.limit or None]
        dev = read_samples(cfg, run, "dev", need_answers=False) if cfg.data.world or cfg.data.dev else []
        with open_session(cfg, run) as session:
            # 1. the SFT model
            session.adapters.add("sft", 0, run.adapter("sft"))
            prompts = sorted(readable(session, prompts), key=lambda row: (row.video, row.id))  # one clip's questions together
            begun = out.resume()
            first = begun[0] if begun else 0
            size = cfg.feedback.batch_size
            chunks = [prompts[i : i + size] for i in range(0, len(prompts), size)]
            contexts: dict[str, str] = {
                located(run, row["video"]): row["context"] for row in read_jsonl(out.path / "contexts.jsonl", missing_ok=True)
            }
            tail = [readable(session, dev)] if dev else []
            # 2. and 3. chunks of prompts, then the dev clips; several processes take neighbouring chunks
            tasks = chunks + tail
            several = distributed.count()
            rounds = range(first, len(tasks), several)
            for number in progress(rounds, -(-len(tasks) // several), "feedback", initial=first // several):
                mine = number + distributed.rank()
                found: Lines = []
                if mine < len(tasks):
                    with session.adapters.inference_as("sft"):
                        told = describe(session, run, tasks[mine], contexts)
                        found += [("contexts.jsonl", record) for record in told.values()]
                        if mine < len(chunks):
                            known = contexts | {video: record["context"] for video, record in told.items()}
                            found += _label(session, run, tasks[mine], known, mine, text_judge)
                written = _append_all(out, run, found, contexts)
                session.counted(out)
                done = min(number + several, len(tasks))
                out.log(done, **_decided(written))
                out.commit_state(done, lambda folder: None)
            # 4. count
            out.summary.update(_counts(out.path))
            if not out.summary["decided"]:
                raise _undecided(out.summary, cfg)


def describe(session: ModelSession, run: Run, rows: Sequence[Sample], contexts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Describe the segments of clips that have no context yet. Clip -> line for contexts.jsonl."""
    videos = [video for video in dict.fromkeys(row.video for row in rows) if video not in contexts]
    described = describe_segments(session, videos, session.cfg.feedback)
    return {
        video: {
            "video": stored(run, video),
            "context": context_text(segments),
            "segments": [text for _, text in segments],
        }
        for video, segments in described.items()
    }


def _label(
    session: ModelSession,
    run: Run,
    rows: Sequence[Sample],
    contexts: Mapping[str, str],
    chunk: int,
    text_judge: TextJudge | None = None,
) -> Lines:
    """Answer, pair and judge."""
    f, seed = session.cfg.feedback, session.cfg.seed

    def verdicts_of(pairs: Sequence[Comparison], views: Mapping[str, VideoInput | None]) -> list[Verdict]:
        if text_judge is not None:
            return judge_texts(text_judge, pairs, f.disagreement)
        return judge(session, pairs, views, f.readout, f.margin, f.disagreement, f.batch_size)

    lines: Lines = []
    asked = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in rows]
    drawn = sample(
        session.backbone, asked, f.answers, f.temperature, f.top_p, f.max_new_tokens, generator(seed, "feedback", chunk)
    )
    pairs: list[Comparison] = []
    for row, completions in zip(rows, drawn, strict=True):
        texts = [session.backbone.renderer.decode(c.ids) for c in completions]
        asked_of = {"id": row.id, "video": stored(run, row.video), "question": row.turns[0].question}
        lines.append(("answers.jsonl", {**asked_of, "answers": texts}))
        pairs += _pairs(row, texts, contexts[row.video] if f.context else "", f.pairs_per_prompt, seed)
    views = {row.video: session.video_input(row.video) if f.judge_frames else None for row in rows}
    verdicts = verdicts_of(pairs, views)
    # The same pairs without context, and some by letters: measured, never trained on.
    seen = {row.video: session.video_input(row.video) for row in rows}
    bare = [Comparison(**{**asdict(pair), "context": ""}) for pair in pairs]
    without = verdicts_of(bare, seen)
    by_letter = f.readout != "letter" and text_judge is None
    some = [pair for number, pair in enumerate(pairs) if number % LETTER_SHARE == 0] if by_letter else []
    letters = {v.pair: v for v in judge(session, some, views, "letter", 0.0, "drop", f.batch_size)} if some else {}
    for pair, verdict, other in zip(pairs, verdicts, without, strict=True):
        pair = replace(pair, video=stored(run, pair.video))
        record: dict[str, Any] = {**asdict(pair), **_said(verdict), "without_context": _said(other)}
        if pair.id in letters:
            record["letter"] = _said(letters[pair.id])
        lines.append(("verdicts.jsonl", record))
        if verdict.choice in ("A", "B"):
            lines.append(("preferences.jsonl", _preference(pair, verdict)))
    if pairs and chunk % 4 == 0:
        v = next((verdict for verdict in verdicts if verdict.choice in ("A", "B")), verdicts[0])
        pair = next(pair for pair in pairs if pair.id == v.pair)
        shown = {"video": stored(run, pair.video), "question": pair.question, "context": pair.context}
        said = {"a": pair.answer_a, "b": pair.answer_b, "choice": v.choice, "margin": v.margin}
        lines.append(("samples.jsonl", {**shown, **said}))
    return lines


def _pairs(row: Sample, texts: Sequence[str], context: str, wanted: int, seed: int) -> list[Comparison]:
    """Pairs of different answers; which comes first is drawn, so that position says nothing."""
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))  # an empty answer is no answer to compare
    pairs = []
    for number, (one, two) in enumerate(itertools.islice(itertools.combinations(distinct, 2), wanted)):
        if seed_of(seed, "order", row.id, number) % 2:
            one, two = two, one
        pairs.append(Comparison(f"{row.id}#{number}", row.video, row.turns[0].question, one, two, context, dict(row.tags)))
    if not pairs:  # all answers alike: kept as a tie, so that the counts are complete
        pairs.append(Comparison(f"{row.id}#0", row.video, row.turns[0].question, texts[0], texts[0], context, dict(row.tags)))
    return pairs


def _said(verdict: Verdict) -> dict[str, Any]:
    return {"choice": verdict.choice, "margin": round(verdict.margin, 5), "orders": list(verdict.orders)}


def _preference(pair: Comparison, verdict: Verdict) -> dict[str, Any]:
    chosen, rejected = (pair.answer_a, pair.answer_b) if verdict.choice == "A" else (pair.answer_b, pair.answer_a)
    return {
        "id": pair.id,
        "videos": [pair.video],
        "prompt": pair.question,
        "chosen": chosen,
        "rejected": rejected,
        "context": pair.context,
        "margin": round(verdict.margin, 5),
        **dict(pair.tags),
    }


def _counts(folder: Path) -> dict[str, Any]:
    rows = read_jsonl(folder / "verdicts.jsonl", missing_ok=True)
    choices = [row["choice"] for row in rows]
    asked = [row for row in rows if row["answer_a"] != row["answer_b"]]
    decided = sum(choice in ("A", "B") for choice in choices)
    firm = [is_order_consistent(Verdict(row["id"], row["choice"], row["margin"], tuple(row["orders"]))) for row in asked]
    longer = [
        len(row["answer_a"]) > len(row["answer_b"]) if row["choice"] == "A" else len(row["answer_b"]) > len(row["answer_a"])
        for row in asked
        if row["choice"] in ("A", "B") and len(row["answer_a"]) != len(row["answer_b"])
    ]
    return {
        "decided": decided,
        "pairs": len(asked),
        "same_answers": len(rows) - len(asked),
        "decided_share": round(decided / max(1, len(asked)), 4),
        **{name: choices.count(name) for name in ("A", "B", "tie", "invalid", "disagree")},
        "swap_consistency": round(sum(firm) / max(1, sum(row["choice"] != "tie" for row in asked)), 4),
        "longer_wins": round(sum(longer) / max(1, len(longer)), 4),
    }


def _undecided(counts: Mapping[str, Any], cfg: Config) -> UserError:
    """What became of all pairs when none was decided, and the setting that most likely changes it."""
    f = cfg.feedback
    became = {
        "disagree": counts["disagree"],
        "tie": counts["tie"] - counts["same_answers"],
        "invalid": counts["invalid"],
        "alike": counts["same_answers"],
    }
    why = max(became, key=lambda name: became[name])
    if why in ("disagree", "invalid") and f.readout == "letter":
        remedy, setting = "score each answer by itself", "feedback.readout=likelihood"
    elif why == "disagree" and f.disagreement == "drop":
        remedy, setting = "let the mean of both orders decide", "feedback.disagreement=average"
    elif why == "tie" and f.margin > 0:
        remedy, setting = "let less clear verdicts count", f"feedback.margin={f.margin / 10:.2g}"
    else:
        remedy, setting = "draw more answers per question", f"feedback.answers={2 * f.answers}"
    told = ", ".join(f"{name} {count}" for name, count in became.items())
    return UserError(f"feedback: the judge decided no pair ({told}); {remedy}", again=(setting,))


def _append_all(out: StageDir, run: Run, found: Lines, contexts: dict[str, str]) -> Lines:
    """Write everyone's lines in the order of the chunks, and remember the contexts among them. Returns what was written."""
    written = []
    for name, record in (line for part in distributed.collect(found) for line in part):
        if name == "contexts.jsonl":
            video = located(run, record["video"])
            if video in contexts:  # its questions lie in two chunks, and two processes described it
                continue
            contexts[video] = record["context"]
        with (out.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        written.append((name, record))
    return written


def _decided(written: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """What the judge made of the pairs of one step, for metrics.jsonl."""
    rows = [record for name, record in written if name == "verdicts.jsonl"]
    choices = [row["choice"] for row in rows]
    counts = {name: float(choices.count(name)) for name in ("tie", "invalid", "disagree")}
    mean = sum(row["margin"] for row in rows) / len(rows) if rows else 0.0
    described = sum(name == "contexts.jsonl" for name, _ in written)
    decided = float(sum(choice in ("A", "B") for choice in choices))
    return {"clips_described": float(described), "pairs": float(len(rows)), "decided": decided, **counts, "margin": mean}
