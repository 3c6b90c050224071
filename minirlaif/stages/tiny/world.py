"""Stage `world`: write the tiny world as mp4 files with data files in the formats that users bring.

sft.jsonl        conversations (LLaVA form), poor about time on purpose; card.md says how
prompts.jsonl    questions without answers, for feedback and PPO
dev.jsonl        the same, other clips, for choosing a checkpoint
test.jsonl       questions with true answers; read by `evaluate` alone
truth.jsonl      true answers to prompts and dev questions, and true segment descriptions; read by `evaluate` alone
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.config import Config, WorldSection, plain
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.tiny_world import clips as tinyworld
from minirlaif.tiny_world.clips import SEGMENT_QUESTION, Event, Question

SIZE = 64  # pixels of a side of the mp4 files; the model gets frames of half that size
TEST_SEED = 20_24  # the test clips are the same for every seed of a run; dev has the next number

CARD = Path(tinyworld.__file__).with_name("card.txt")


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. draw the events of every part 2. write clips and rows 3. write the card."""
    if not cfg.data.world:
        print("world: data.world is empty, the run uses the files named in data")
        return
    settings = {"world": plain(cfg.world), "seed": cfg.seed}
    with run.stage("world", settings, redo=redo) as out:
        if out is None:
            return
        w = cfg.world
        clips = out.path / "clips"
        clips.mkdir(exist_ok=True)
        parts: list[tuple[str, int, Any]] = [
            # A stream of its own for each part. A pair whose second number is not 0 never equals a number, whatever the seed.
            ("short", w.sft_short_clips, np.random.default_rng([cfg.seed, 1])),
            ("sft", w.sft_clips, np.random.default_rng([cfg.seed, 2])),
            ("prompts", w.prompt_clips, np.random.default_rng([cfg.seed, 3])),
            ("dev", w.dev_clips, np.random.default_rng(TEST_SEED + 1)),
            ("test", w.test_clips, np.random.default_rng(TEST_SEED)),
        ]
        rows: dict[str, list[dict[str, Any]]] = {"sft": [], "prompts": [], "dev": [], "test": [], "truth": []}
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # PyAV encodes without Python's lock
            for part, count, draw in progress(parts, len(parts), "world"):
                drawn = [tinyworld.draw_events(draw, 1 if part == "short" else None) for _ in range(count)]
                for start in range(0, count, 64):
                    videos = tinyworld.render(draw, drawn[start : start + 64], SIZE)
                    paths = [clips / f"{part}{number:04d}.mp4" for number in range(start, start + len(videos))]
                    list(pool.map(_write_clip, paths, videos))
                for number, events in enumerate(drawn):
                    _add_rows(rows, part, f"{part}{number:04d}", events, w, draw)
        for name, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (out.path / f"{name}.jsonl").write_text(text)
        both = 1 - (1 - w.still_share) * (1 - w.shuffled_share)
        shares = {"still": w.still_share, "shuffled": w.shuffled_share, "both": both, "short": w.sft_short_clips}
        card = CARD.read_text(encoding="utf-8").format(types=", ".join(tinyworld.QUESTION_TYPES), **shares)
        (out.path / "card.md").write_text(card)
        out.summary.update({"clips": sum(count for _, count, _ in parts), "test_questions": len(rows["test"])})


def _add_rows(
    rows: dict[str, list[dict[str, Any]]], part: str, name: str, events: Sequence[Event], w: WorldSection, rng: Any
) -> None:
    video = f"clips/{name}.mp4"
    if part == "short":
        rows["sft"].append(_conversation(name, video, [Question("segment", SEGMENT_QUESTION, events[0].sentence, "")]))
        return
    if part == "sft":
        questions = tinyworld.draw_questions(rng, _as_annotated(events, w, rng), 4)
        # Short and long answers are rows of their own: the curriculum sorts rows by the length of their answers.
        for kind in ("short", "long"):
            of_kind = [q for q in questions if (q.type == "describe") == (kind == "long")]
            if of_kind:
                rows["sft"].append(_conversation(f"{name}-{kind}", video, of_kind))
        return
    for number, q in enumerate(tinyworld.draw_questions(rng, events, w.questions_per_clip)):
        row = {"id": f"{name}-{number}", "video": video, "question": q.text, "type": q.type}
        if part == "test":
            rows["test"].append({**row, "answer": q.answer, "key": q.key})
        else:
            rows[part].append(row)
            rows["truth"].append({**row, "answer": q.answer, "key": q.key, "segments": [e.sentence for e in events]})


def _as_annotated(events: Sequence[Event], w: WorldSection, rng: Any) -> tuple[Event, ...]:
    """The events as the SFT labels have them: motions left out, or in a wrong order, each with its share."""
    annotated = list(events)
    if rng.random() < w.still_share:
        annotated = [Event(e.colour, e.shape, "stays still") for e in annotated]
    if rng.random() < w.shuffled_share:
        turn = 1 + int(rng.integers(len(annotated) - 1))  # a rotation: never the true order
        annotated = annotated[turn:] + annotated[:turn]
    return tuple(annotated)


def _conversation(name: str, video: str, questions: Sequence[Question]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for number, q in enumerate(questions):
        turns.append({"from": "human", "value": f"<video>\n{q.text}" if number == 0 else q.text})
        turns.append({"from": "gpt", "value": q.answer})
    return {"id": name, "video": video, "conversations": turns}


def _write_clip(path: Path, frames: np.ndarray) -> None:
    """One h264 file; quality high enough that a small shape keeps its outline."""
    import av

    with av.open(str(path), "w") as container:
        # Without mbtree: with it, x264 now and then writes other bytes for the same frames.
        options = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=tinyworld.FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
