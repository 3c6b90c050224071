"""Stage `feedback`: the start model answers, describes the clip segment by segment, and judges its answers (paper section 3.2).

The start model is SFT, or the base where SFT is off; in a further round it is the aligned model of the round before.
`feedback.describer` and `feedback.judge` may name others for their parts.

Out: answers.jsonl, contexts.jsonl (also of dev clips, for choosing a PPO checkpoint), verdicts.jsonl, preferences.jsonl.
Each chunk of prompts is committed, so a killed run resumes behind the last one. Truth is not read.
"""

import json
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

from minirlaif import distributed
from minirlaif.config import Config, FeedbackSection
from minirlaif.data.preflight import Preflight, read_dev, read_samples
from minirlaif.feedback.counts import count_cut, count_step, count_verdicts, undecided, warn
from minirlaif.feedback.describe import Describer, KnownDescriber, SessionDescriber
from minirlaif.feedback.judge import comparison_tokens
from minirlaif.feedback.label import CONTROL_PAIRS, Lines, describe, draw_candidates, label
from minirlaif.feedback.readout import AUTO, probe, probe_rows
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.judges.config import REPLIES, feedback_judge, open_judge
from minirlaif.judges.describer import EndpointDescriber
from minirlaif.judges.grade import ChatJudge
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, open_session, settings_of
from minirlaif.stages.describers import known_descriptions, other_describer
from minirlaif.stages.registry import PAIRED, STAGES
from minirlaif.types import Sample


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
            if f.readout == AUTO and text_judge is None:
                f = _readout(session, f, run, out, prompts, described_by)
            chunks = [prompts[i : i + f.batch_size] for i in range(0, len(prompts), f.batch_size)]
            every = control_every(f, len(prompts))
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
                        with session.adapters.inference_as(_judge_role(f, run)):
                            lines += label(
                                session, f, run, tasks[chunk], drawn, known, cfg.seed, chunk, text_judge, chunk % every == 0
                            )
                written = _append_all(out, run, lines, contexts)
                session.add_counters(out)
                done = min(number + processes, len(tasks))
                out.log(done, **count_step(written))
                out.commit_state(done, lambda folder: None)
            # 4. count
            out.summary = count_verdicts(out.path) | count_cut(out.path) | out.summary
            warn(out.summary, f, text_judge is not None, bool(PAIRED & set(run.stages)))
            # A further round without pairs has nothing to learn, and ends.
            if not out.summary["decided"] and run.full_run is run and PAIRED & set(run.stages):
                raise undecided(out.summary, f, text_judge is not None)


def _judge_role(f: FeedbackSection, run: Run) -> str:
    return "base" if f.judge == "base" else run.start_model


def _readout(
    session: ModelSession, f: FeedbackSection, run: Run, out: StageDir, prompts: Sequence[Sample], describer: Describer
) -> FeedbackSection:
    """The section with the read-out of the two that is better, by the leader, kept in the summary. The descriptions made for it
    are not kept: a run that resumes has none of them, and must describe every clip in the same batch."""
    if "readout" not in out.summary:
        rows = probe_rows(prompts)
        clips = [row for row, _ in rows] + [replace(row, video=other) for row, other in rows]

        def tried() -> dict[str, Any]:
            contexts: dict[str, str] = {}
            for start in range(0, len(clips), f.batch_size):
                records = describe(describer, f, run, clips[start : start + f.batch_size], contexts)
                contexts |= {video: record["context"] for video, record in records.items()}
            result = probe(session, f, rows, contexts, run.start_model, _judge_role(f, run))
            print(f"feedback: {result}", flush=True)
            return {"readout": result.readout, "readout_probe": asdict(result)}

        out.summary |= distributed.from_leader(tried)
    return replace(f, readout=out.summary["readout"])


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


def control_every(f: FeedbackSection, prompts: int) -> int:
    """Of so many chunks of prompts one is judged without context, too: enough for CONTROL_PAIRS, spread over all prompts."""
    return max(1, prompts * f.pairs_per_prompt // CONTROL_PAIRS)


def _comparisons(f: FeedbackSection, prompts: int, segments: int) -> tuple[int, int]:
    """How often a judge that reads text is asked at most (in both orders, some pairs without the descriptions, too), and tokens
    each."""
    chunks = -(-prompts // f.batch_size)
    control = min(prompts, -(-chunks // control_every(f, prompts)) * f.batch_size)
    return 2 * (prompts + control) * f.pairs_per_prompt, comparison_tokens(f, segments, f.max_new_tokens)


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
