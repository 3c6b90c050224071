"""The longest row of a config's data, which `plan --probe` and the start of a run send through every stage."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from minirlaif.config import DataSection, VideoSection
from minirlaif.data.preflight import read_preferences, read_samples
from minirlaif.errors import UserError
from minirlaif.feedback.questions import LONGEST
from minirlaif.runs.run import Run
from minirlaif.stages.questions import clip_rows
from minirlaif.types import Turn
from minirlaif.video.reader import ClipReader, check_clips


def longest(data: DataSection, video: VideoSection, folder: Path) -> dict[str, Any]:
    """The longest of the config's data, found without the model: "video", "question", "turns" of a conversation (pairs of
    question and answer), "answer" among written preferences; and "run", the folder.
    UserError: there is no data to read before the run."""
    if data.world:
        raise UserError("data.world: the tiny world is made by the run itself, so there is no row to probe; use `bench`")
    run = Run(folder)
    parts = [part for part in ("sft", "prompts", "dev", "test") if getattr(data, part)]
    most = video.max_unreadable
    rows = {part: read_samples(data, run, part, need_answers=part == "sft", max_missing=most) for part in parts}
    if data.writes_questions:
        rows["prompts"] = [replace(row, turns=(Turn("word " * (LONGEST // 5)),)) for row in clip_rows(data)]
    written = read_preferences(data, run, most)
    questions = [row.turns[0].question for samples in rows.values() for row in samples] + [row.question for row in written]
    if not questions:
        raise UserError("data: names no file, so there is no row to probe; set data.clips, or data.sft and data.prompts")
    question = max(questions, key=len)
    conversations = [[(turn.question, turn.answer or "") for turn in row.turns] for row in rows.get("sft", ())]
    turns = max(conversations, key=lambda turns: sum(map(len, chain(*turns))), default=[(question, "")])
    answer = max((text for row in written for text in (row.chosen, row.rejected)), key=len, default="")
    # Test clips stay closed until `evaluate`, unless they are all there is.
    videos = {row.video for part in rows if part != "test" for row in rows[part]} | {row.video for row in written}
    with ClipReader.of(video) as reader:
        paths = sorted(videos or {row.video for row in rows["test"]})
        infos, _ = check_clips(paths, reader, video.max_unreadable)  # bad ones count against video.max_unreadable
    # Frames of any shape are brought to the same number of pixels; the one closest to a square wastes least of it.
    chosen = max(infos, key=lambda info: (min(info.width, info.height) / max(info.width, info.height), info.path)).path
    return {"video": chosen, "question": question, "turns": turns, "answer": answer, "run": str(folder)}
