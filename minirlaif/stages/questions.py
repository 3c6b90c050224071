"""Stage `questions`: for a folder of clips about which nobody wrote questions (data.clips). The start model describes each clip,
and questions about it are made of the descriptions: by templates, and by the model itself.

Out: contexts.jsonl, which `feedback` reads in place of describing again, questions.jsonl (all), and prompts.jsonl, dev.jsonl and
test.jsonl, each about clips of its own. Copy and edit them, and name the copies in the data section, to change what is asked.
Each chunk of clips is committed, so a killed run resumes behind the last one.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirlaif import tiny_world
from minirlaif.config import Config, DataSection, FeedbackSection, QuestionsSection, recorded
from minirlaif.config.seeds import seed_of
from minirlaif.data.cells import CLIP_SUFFIXES
from minirlaif.data.dataset import fingerprint, load_samples, question_files
from minirlaif.data.left_out import RowRules
from minirlaif.data.preflight import Preflight, spread
from minirlaif.data.tables import clip_files
from minirlaif.errors import UserError, counted
from minirlaif.feedback import questions
from minirlaif.feedback.describe import Describer, SessionDescriber
from minirlaif.feedback.label import describe
from minirlaif.feedback.questions import Question, Templates
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, open_session, settings_of
from minirlaif.stages.describers import other_describer
from minirlaif.stats import grouped
from minirlaif.types import Sample, Turn

TEMPLATES = "questions.yaml"  # beside feedback/, and of the tiny world beside its clips
DESCRIBED_BY = ("describe_prompt", "describe_tokens", "batch_size")  # settings of `feedback` that decide what a description is
FEWEST = 3  # clips: one to learn from, one for dev, one for test


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. list the clips 2. per chunk: describe, write questions 3. split them by clip."""
    if not cfg.data.writes_questions:
        print("questions: data.clips names no folder, or data.prompts has questions already")
        return
    # 1. clips
    f, q = cfg.feedback, cfg.questions
    rows, path = clip_rows(cfg.data), templates_file(cfg.model.base, q)
    own = own_questions(cfg.data)
    sources = Sources(questions.read_templates(path), q, own)
    describer = other_describer(cfg.model, cfg.video, f, run)
    settings = settings_of(cfg.seed, cfg.data, (), **cfg.sections("model", "video", "questions"))
    settings["describe"] = {name: value for name, value in recorded(f).items() if name in DESCRIBED_BY}
    settings["describer"] = dict(describer.signature) if describer else {"kind": f.describer}
    names = [row.id for row in rows]
    settings["clips"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    settings["templates"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if own is not None:
        settings["own"] = fingerprint(cfg.data.clips)
    with (
        closing(describer) if describer else nullcontext(),
        run.stage("questions", settings, inputs=run.inputs("questions"), redo=redo) as out,
    ):
        if out is None:
            return
        with open_session(run, cfg.model, cfg.video, Preflight(cfg.data, cfg.sft, cfg.reward)) as session:
            if adapter := run.start_adapter():
                session.adapters.add(run.start_model, 0, adapter)
            rows = session.readable(rows)
            session.record_clips(run, out, rows)
            first, _ = out.resume() or (0, None)
            described_by = describer or SessionDescriber(session, "base" if f.describer == "base" else run.start_model)
            chunks = [rows[i : i + f.batch_size] for i in range(0, len(rows), f.batch_size)]
            # 2. chunks
            for number in progress(range(first, len(chunks)), len(chunks), "questions", initial=first):
                _write_chunk(out, run, session, described_by, f, sources, chunks[number], cfg.seed)
                session.add_counters(out)
                out.log(number + 1, clips=float(len(chunks[number])))
                out.commit_state(number + 1, lambda folder: None)
        # 3. split
        _split(out, run, cfg.data, q, cfg.seed)


@dataclass(frozen=True)
class Sources:
    """Where questions come from. own: those of a file in the folder of clips, by clip, in place of all others; None: no file."""

    templates: Templates
    section: QuestionsSection
    own: Mapping[str, Sequence[Sample]] | None


def own_questions(data: DataSection) -> dict[str, list[Sample]] | None:
    """The rows of a file of questions in the folder of clips, by clip; None without one. UserError: it cannot be used."""
    folder = Path(os.path.expanduser(data.clips))
    if not question_files(folder):
        return None
    rows = load_samples(str(folder), need_answers=False, rules=RowRules(data.ignore_columns, data.max_bad_rows))
    return grouped((os.path.abspath(row.video), row) for row in rows)


def check(base: str, data: DataSection, section: QuestionsSection) -> None:
    """UserError for what can be known before any stage: too few clips, templates that cannot be used."""
    clip_rows(data)
    own_questions(data)
    questions.read_templates(templates_file(base, section))


def clip_rows(data: DataSection) -> list[Sample]:
    """A row without a question for each clip of the folder. UserError: there are too few."""
    folder = Path(os.path.expanduser(data.clips))
    if not folder.is_dir():
        raise UserError(f"data.clips: {data.clips} is no folder; name the folder of your clips")
    files = spread(clip_files(folder), data.max_rows)
    wanted = 1 + (not data.dev) + (not data.test)
    if len(files) < wanted:
        there = counted(len(files), "clip") if files else f"no clips ({', '.join(CLIP_SUFFIXES[:6])} …)"
        raise UserError(
            f"data.clips: {data.clips} has {there}, and {wanted} are needed at least (to learn from, and to be kept for dev and"
            " test): add clips; about three hundred are a start"
        )
    return [Sample(str(path.relative_to(folder)), os.path.abspath(path), (Turn(""),)) for path in files]


def templates_file(base: str, section: QuestionsSection) -> Path:
    """The file of templates: that of the settings, or the package's own for this base."""
    if section.templates:
        return Path(os.path.expanduser(section.templates))
    return Path(tiny_world.__file__ if base == "tiny" else questions.__file__).with_name(TEMPLATES)


def _write_chunk(
    out: StageDir,
    run: Run,
    session: ModelSession,
    describer: Describer,
    f: FeedbackSection,
    sources: "Sources",
    rows: Sequence[Sample],
    seed: int,
) -> None:
    """Describe clips, and append their descriptions and questions to the files."""
    described, section = describe(describer, f, run, rows, {}, spans=True), sources.section
    made: dict[str, list[Question]] = {}
    if sources.own is None:
        made = {row.video: questions.fill(sources.templates, described[row.video]["segments"]) for row in rows}
        if section.written:
            for video, more in _written_by_model(session, run, f, section, described).items():
                made[video] += more
    for row in rows:
        record = described[row.video]
        _append(out, "contexts.jsonl", record)
        chosen = questions.choose(made.get(row.video, ()), section.per_clip, seed_of(seed, "questions", row.id))
        lines = [{"question": each.text, "type": each.kind, "names_part": each.names_part} for each in chosen]
        for each in (sources.own or {}).get(row.video, ()):
            answer = {"answer": each.turns[0].answer} if each.turns[0].answer else {}
            lines.append({"question": each.turns[0].question, **answer, "type": "own", **each.tags, "names_part": False})
        for number, line in enumerate(lines, 1):
            _append(out, "questions.jsonl", {"id": f"{row.id}#{number}", "video": record["video"], **line})


def _written_by_model(
    session: ModelSession, run: Run, f: FeedbackSection, section: QuestionsSection, described: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Question]]:
    """The questions that the start model writes about what was described, those alone to which it has an answer itself."""
    text = questions.INSTRUCTION.format(count=section.per_clip, kinds=", ".join(questions.KINDS))
    with session.adapters.inference_as(run.start_model):
        prompts = [session.encode_prompt(None, text, record["context"]) for record in described.values()]
        replies = session.greedy_texts(prompts, section.max_new_tokens, f.batch_size)
        written = [
            (video, question)
            for (video, record), reply in zip(described.items(), replies, strict=True)
            for question in questions.parse(reply, record["segments"])
        ]
        checks = [
            session.encode_prompt(None, f"{each.text} {questions.CHECK}", described[video]["context"]) for video, each in written
        ]
        answers = session.greedy_texts(checks, f.max_new_tokens, f.batch_size)
    result: dict[str, list[Question]] = {video: [] for video in described}
    for (video, question), answer in zip(written, answers, strict=True):
        if questions.is_answer(answer):
            result[video].append(question)
    return result


def _split(out: StageDir, run: Run, data: DataSection, section: QuestionsSection, seed: int) -> None:
    """Write the questions of each part of the data, and count them."""
    rows = read_jsonl(out.path / "questions.jsonl", missing_ok=True)
    clips = list(dict.fromkeys(row["video"] for row in rows))
    dev_share, test_share = (0.0 if data.dev else section.dev_share, 0.0 if data.test else section.test_share)
    try:
        dev, test = questions.split(clips, dev_share, test_share, seed_of(seed, "split"))
    except ValueError as error:
        raise UserError(f"questions: there are questions about {error}; add clips to {data.clips}") from None
    parts = {"prompts": {*clips} - dev - test, "dev": dev, "test": test}
    out.summary |= {"questions": len(rows), "clips": len(clips)}
    for part, of_part in parts.items():
        lines = [_line(row, part == "test") for row in rows if row["video"] in of_part]
        if lines:
            (out.path / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        out.summary[f"{part}_questions"] = len(lines)
        out.summary[f"{part}_clips"] = len(of_part)
    kinds = Counter(row["type"] for row in rows)
    out.summary |= {"kinds": dict(sorted(kinds.items())), "naming_a_part": sum(row["names_part"] for row in rows)}
    there = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))
    sizes = ", ".join(f"{out.summary[f'{part}_questions']:,} in {part}" for part in parts)
    print(f"questions: {len(rows):,} about {counted(len(clips), 'clip')} ({there}); {sizes}", flush=True)


def _line(row: Mapping[str, Any], answered: bool) -> str:
    """A row of a part. answered: with the true answer, where there is one: `evaluate` alone reads it."""
    left_out = ("names_part",) if answered else ("names_part", "answer")
    return json.dumps({name: value for name, value in row.items() if name not in left_out}, ensure_ascii=False) + "\n"


def _append(out: StageDir, name: str, record: Mapping[str, Any]) -> None:
    with (out.path / name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
