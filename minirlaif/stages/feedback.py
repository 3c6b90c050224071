"""Stage `feedback`: the start model answers, describes the clip segment by segment, and judges its answers (paper section 3.2).

The start model is SFT, or the base where SFT is off; in a further round it is the aligned model of the round before.
`feedback.describer` and `feedback.judge` may name others for their parts.

Out: answers.jsonl, contexts.jsonl (also of dev clips, for choosing a PPO checkpoint), verdicts.jsonl, preferences.jsonl.
Each chunk of prompts is committed, so a killed run resumes behind the last one. Truth is not read.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from minirlaif import distributed
from minirlaif.config import Config, FeedbackSection
from minirlaif.data.preflight import Preflight, read_dev, read_samples
from minirlaif.errors import UserError
from minirlaif.feedback.describe import Describer, KnownDescriber, SessionDescriber
from minirlaif.feedback.judge import comparison_tokens, is_order_consistent
from minirlaif.feedback.label import CONTROL_PAIRS, Lines, describe, draw_candidates, label
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.judges.config import REPLIES, feedback_judge, open_judge
from minirlaif.judges.describer import EndpointDescriber
from minirlaif.judges.grade import ChatJudge
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import open_session, settings_of
from minirlaif.stages.describers import known_descriptions, other_describer
from minirlaif.stages.registry import STAGES
from minirlaif.types import Verdict

PAIRED = {"reward", "dpo", "bestofn"}  # stages that learn from pairs: without one a run can do without
CUT_SHARE = 0.05  # of answers or descriptions cut at their limit, above which a warning is printed


def run(cfg: Config, run: Run, redo: bool = False, text_judge: TextJudge | None = None) -> None:
    """1. open the start model 2. per chunk: describe, answer, judge, write 3. describe dev clips 4. count.
    text_judge: judges in place of the one that the settings name; the manifest records its signature."""
    f = cfg.feedback
    settings = settings_of(cfg.seed, cfg.data, STAGES["feedback"].reads, **cfg.sections(*STAGES["feedback"].sections))
    named = feedback_judge(f) if text_judge is None else None
    if named is not None:
        text_judge = open_judge(named, run.root.parent / REPLIES)
    describer = other_describer(cfg.model, cfg.video, f, run)
    settings |= _roles(f, run, text_judge, describer)
    inputs = run.inputs("feedback") or (["world"] if cfg.data.world else [])  # without SFT it is the first one to read the world
    with closing(describer) if describer else nullcontext(), run.stage("feedback", settings, inputs=inputs, redo=redo) as out:
        if out is None:
            return
        missing = cfg.video.max_unreadable
        prompts = read_samples(cfg.data, run, "prompts", need_answers=False, max_missing=missing)[: f.limit or None]
        dev = read_dev(cfg.data, run, missing)
        with open_session(
            run, cfg.model, cfg.video, Preflight(cfg.data, cfg.sft, cfg.reward, cfg.rollout.normalize_by)
        ) as session:
            # 1. the start model
            if adapter := run.start_adapter():
                session.adapters.add(run.start_model, 0, adapter)
            prompts = sorted(session.readable(prompts), key=lambda row: (row.video, row.id))  # one clip's questions together
            dev = session.readable(dev) if dev else []
            session.record_clips(run, out, [*prompts, *dev])
            first, _ = out.resume() or (0, None)
            if isinstance(text_judge, ChatJudge) and distributed.leads():
                print(text_judge.forecast(*_comparisons(f, len(prompts), cfg.video.max_segments)), flush=True)
            if isinstance(describer, EndpointDescriber) and distributed.leads():
                print(describer.forecast(len({row.video for row in [*prompts, *dev]}), f), flush=True)
            described_by: Describer = describer or SessionDescriber(session, "base" if f.describer == "base" else run.start_model)
            if earlier := known_descriptions(run):
                described_by = KnownDescriber(earlier, described_by)
            chunks = [prompts[i : i + f.batch_size] for i in range(0, len(prompts), f.batch_size)]
            every = _control_every(f, len(prompts))
            contexts: dict[str, str] = {
                run.located(row["video"]): row["context"] for row in read_jsonl(out.path / "contexts.jsonl", missing_ok=True)
            }
            # 2. and 3. chunks of prompts, then the dev clips; several processes take neighbouring chunks
            tasks = chunks + ([dev] if dev else [])
            processes = distributed.count()
            rounds = range(first, len(tasks), processes)
            for number in progress(rounds, -(-len(tasks) // processes), "feedback", initial=first // processes):
                chunk = number + distributed.rank()
                lines: Lines = []
                if chunk < len(tasks):
                    described = describe(described_by, f, run, tasks[chunk], contexts)
                    lines += [("contexts.jsonl", record) for record in described.values()]
                    if chunk < len(chunks):
                        known = contexts | {video: record["context"] for video, record in described.items()}
                        with session.adapters.inference_as(run.start_model):
                            drawn = draw_candidates(session, f, tasks[chunk], known, cfg.seed, chunk)
                        with session.adapters.inference_as("base" if f.judge == "base" else run.start_model):
                            lines += label(
                                session, f, run, tasks[chunk], drawn, known, cfg.seed, chunk, text_judge, chunk % every == 0
                            )
                written = _append_all(out, run, lines, contexts)
                session.add_counters(out)
                done = min(number + processes, len(tasks))
                out.log(done, **_decided(written))
                out.commit_state(done, lambda folder: None)
            # 4. count
            out.summary.update(_counts(out.path) | _cut(out.path))
            _warn_of_cut(out.summary, f)
            # A further round without pairs has nothing to learn, and ends.
            if not out.summary["decided"] and run.full_run is run and PAIRED & set(run.stages):
                raise _undecided(out.summary, f)


def _roles(f: FeedbackSection, run: Run, text_judge: TextJudge | None, describer: Describer | None) -> dict[str, Any]:
    """For the manifest: who judges and who describes, where it is not the start model."""
    roles = {}
    if text_judge is not None:
        roles["judge"] = dict(text_judge.signature)
    elif f.judge == "base" != run.start_model:
        roles["judge"] = {"kind": "base"}
    if describer is not None:
        roles["describer"] = dict(describer.signature)
    return roles


def _control_every(f: FeedbackSection, prompts: int) -> int:
    """Of so many chunks of prompts one is judged without context, too: enough for CONTROL_PAIRS, spread over all prompts."""
    return max(1, prompts * f.pairs_per_prompt // CONTROL_PAIRS)


def _comparisons(f: FeedbackSection, prompts: int, segments: int) -> tuple[int, int]:
    """How often a judge that reads text is asked at most (in both orders, some pairs without the descriptions, too), and tokens
    each."""
    chunks = -(-prompts // f.batch_size)
    control = min(prompts, -(-chunks // _control_every(f, prompts)) * f.batch_size)
    return 2 * (prompts + control) * f.pairs_per_prompt, comparison_tokens(f, segments, f.max_new_tokens)


def _counts(folder: Path) -> dict[str, Any]:
    rows = read_jsonl(folder / "verdicts.jsonl", missing_ok=True)
    choices = [row["choice"] for row in rows]
    compared = [row for row in rows if row["answer_a"] != row["answer_b"]]
    decided = sum(choice in ("A", "B") for choice in choices)
    firm = [is_order_consistent(Verdict(row["id"], row["choice"], row["margin"], tuple(row["orders"]))) for row in compared]
    longer = [
        len(row["answer_a"]) > len(row["answer_b"]) if row["choice"] == "A" else len(row["answer_b"]) > len(row["answer_a"])
        for row in compared
        if row["choice"] in ("A", "B") and len(row["answer_a"]) != len(row["answer_b"])
    ]
    return {
        "decided": decided,
        "pairs": len(compared),
        "same_answers": len(rows) - len(compared),
        "decided_share": round(decided / max(1, len(compared)), 4),
        **{name: choices.count(name) for name in ("A", "B", "tie", "invalid", "disagree")},
        "swap_consistency": round(sum(firm) / max(1, sum(row["choice"] != "tie" for row in compared)), 4),
        "longer_wins": round(sum(longer) / max(1, len(longer)), 4),
    }


def _cut(folder: Path) -> dict[str, int]:
    """How many answers and descriptions there are, and how many of them were cut at their limit of tokens."""
    stopped = [each for row in read_jsonl(folder / "answers.jsonl", missing_ok=True) for each in row.get("stopped", ())]
    described = read_jsonl(folder / "contexts.jsonl", missing_ok=True)
    segments, cut = sum(len(row["segments"]) for row in described), sum(row.get("cut", 0) for row in described)
    answers = {"sampled_answers": len(stopped), "cut_answers": stopped.count(False)}
    missing = sum(row.get("missing", 0) for row in described)
    counts = answers | {"descriptions": segments, "cut_descriptions": cut}
    undivided = sum(len(row["segments"]) == 1 for row in described)
    counts |= {"described_clips": len(described), "one_segment_clips": undivided}
    return counts | ({"refused_descriptions": missing} if missing else {})


def _warn_of_cut(counts: Mapping[str, Any], f: FeedbackSection) -> None:
    """Say what to raise where more than a few texts were cut, and how many descriptions are missing."""
    if (missing := counts.get("refused_descriptions", 0)) and distributed.leads():
        print(f"feedback: the describer gave no text for {missing:,} of {counts['descriptions']:,} segments", flush=True)
    undivided, clips = counts["one_segment_clips"], counts["described_clips"]
    if undivided and f.context and distributed.leads():
        print(
            f"feedback: {undivided:,} of {clips:,} clips have one segment, whose description holds hardly more than the model"
            " sees without it: see video.min_segments and video.max_segments (clips of up to a second keep one)",
            flush=True,
        )
    limits = {
        "answers": (counts["cut_answers"], counts["sampled_answers"], f"feedback.max_new_tokens, which is {f.max_new_tokens}"),
        "descriptions": (
            counts["cut_descriptions"],
            counts["descriptions"],
            f"feedback.describe_tokens, which is {f.describe_tokens}",
        ),
    }
    for name, (cut, of, setting) in limits.items():
        if cut > CUT_SHARE * of and distributed.leads():
            kept = "; they are in no pair" if name == "answers" else "; the judge reads what there is of them"
            print(f"feedback: {cut:,} of {of:,} {name} were cut at the limit of tokens{kept}: raise {setting}", flush=True)


def _undecided(counts: Mapping[str, Any], f: FeedbackSection) -> UserError:
    """What became of all pairs when none was decided, and the setting that most likely changes it."""
    became = {
        "disagree": counts["disagree"],
        "tie": counts["tie"] - counts["same_answers"],
        "invalid": counts["invalid"],
        "alike": counts["same_answers"],
    }
    why = max(became, key=lambda name: became[name])
    if counts["cut_answers"] > counts["sampled_answers"] / 2:
        cut = f"{counts['cut_answers']:,} of {counts['sampled_answers']:,} answers were cut at the limit of tokens"
        return UserError(
            f"feedback: the judge decided no pair ({cut}); allow longer answers",
            again=(f"feedback.max_new_tokens={4 * f.max_new_tokens}",),
        )
    if why in ("disagree", "invalid") and f.readout == "letter":
        remedy, setting = "score each answer by itself", "feedback.readout=likelihood"
    elif why == "disagree" and f.disagreement == "drop":
        remedy, setting = "let the mean of both orders decide", "feedback.disagreement=average"
    elif why == "tie" and f.margin > 0:
        remedy, setting = "let less clear verdicts count", f"feedback.margin={f.margin / 10:.2g}"
    else:
        remedy, setting = "draw more answers per question", f"feedback.answers={2 * f.answers}"
    outcomes = ", ".join(f"{name} {count}" for name, count in became.items())
    return UserError(f"feedback: the judge decided no pair ({outcomes}); {remedy}", again=(setting,))


def _append_all(out: StageDir, run: Run, lines: Lines, contexts: dict[str, str]) -> Lines:
    """Write the lines of all processes in the order of the chunks, and remember their contexts. Returns what was written."""
    written = []
    for name, record in (line for part in distributed.collect(lines) for line in part):
        if name == "contexts.jsonl":
            video = run.located(record["video"])
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
