"""Benchmark files in the layouts in which they are published, about clips of the tiny world: the right keys, 20 rows each."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = 20
CLIPS = 10

World = Sequence[dict[str, Any]]  # rows of the tiny world's test.jsonl: video, question, answer


def stem(row: dict[str, Any]) -> str:
    return Path(row["video"]).stem


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def videoinstruct(folder: Path, world: World) -> Path:
    """generic_qa.json, temporal_qa.json and consistency_qa.json as the benchmark's authors publish them."""
    rows = world[:ROWS]
    one = [{"Q": row["question"], "A": row["answer"], "video_name": stem(row)} for row in rows]
    two = [
        {"Q1": row["question"], "Q2": f"please tell me: {row['question']}", "A": row["answer"], "video_name": stem(row)}
        for row in rows
    ]
    put(folder / "generic_qa.json", one)
    put(folder / "temporal_qa.json", one[::-1])
    put(folder / "consistency_qa.json", two)
    return folder


def repack(folder: Path, world: World) -> Path:
    """The hub repack: parquet below Generic, Temporal, Consistency; the two questions of a pair in two rows."""
    import pyarrow
    import pyarrow.parquet

    rows = world[:ROWS]
    one = [{"video_name": stem(row), "question": row["question"], "answer": row["answer"]} for row in rows]
    two = [
        {"video_name": stem(row), "question_1": first, "question_2": second, "answer": row["answer"]}
        for row in rows
        for first, second in ((row["question"], "None"), ("None", f"please tell me: {row['question']}"))
    ]
    for name, table in (("Generic", one), ("Temporal", one), ("Consistency", two)):
        (folder / name).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / name / "test-00000-of-00001.parquet")
    return folder


def two_files(folder: Path, world: World) -> Path:
    """Video-LLaVA's and ActivityNet-QA's layout: test_q.json and test_a.json, here in different orders; names without suffix."""
    questions = [
        {"video_name": stem(row), "question": row["question"], "question_id": f"{stem(row)}_{number}"}
        for number, row in enumerate(world[:ROWS])
    ]
    answers = [
        {"answer": row["answer"], "type": 3, "question_id": f"{stem(row)}_{number}"} for number, row in enumerate(world[:ROWS])
    ]
    put(folder / "test_q.json", questions)
    put(folder / "test_a.json", answers[::-1])
    return folder


def activitynet(path: Path, world: World) -> Path:
    """ActivityNet-QA as one list; clips are called v_ and their name, with a suffix."""
    rows = [
        {"video_id": f"v_{stem(row)}.mp4", "question": row["question"], "question_id": f"v_{n}", "answer": row["answer"]}
        for n, row in enumerate(world[:ROWS])
    ]
    return put(path, rows)


def mvbench(path: Path, world: World) -> Path:
    """MVBench's files: `candidates`, and the right one's text in `answer`."""
    rows = []
    for number, row in enumerate(world[:ROWS]):
        options, place = options_of(world, number)
        rows.append({"video": f"{stem(row)}.mp4", "question": row["question"], "candidates": options, "answer": options[place]})
    return put(path, rows)


def original_two_files(folder: Path, world: World) -> Path:
    """The same layout about MSVD's clips, which are called vid<N>; their files may have kept the names on YouTube."""
    rows = [*enumerate(world[:ROWS])]
    questions = [
        {"video_name": f"vid{number_of(row)}", "question": row["question"], "question_id": str(n), "answer": "?"}
        for n, row in rows
    ]
    answers = [{"question": "another", "answer": row["answer"], "type": "what", "question_id": n} for n, row in rows]
    put(folder / "test_q.json", questions)
    put(folder / "test_a.json", answers[::-1])
    return folder


def msrvtt_qa(path: Path, world: World) -> Path:
    """MSRVTT-QA's own list: clips are numbers, the files are called video<N>."""
    rows = [
        {"answer": row["answer"], "category_id": 3, "id": 158581 + n, "question": row["question"], "video_id": number_of(row)}
        for n, row in enumerate(world[:ROWS])
    ]
    return put(path, rows)


def egoschema(folder: Path, world: World) -> Path:
    """questions.json with options in columns, a question a clip, and the public part of the answers: every second one."""
    questions, answers = [], {}
    firsts = {stem(row): number for number, row in reversed([*enumerate(world)])}
    for count, number in enumerate(sorted(firsts.values())):
        options, place = options_of(world, number, 5)
        row = {"q_uid": stem(world[number]), "google_drive_id": "x", "question": f"What of {number}?"}
        questions.append({**row, **{f"option {i}": option for i, option in enumerate(options)}})
        if count % 2:
            answers[stem(world[number])] = place
    put(folder / "questions.json", questions)
    put(folder / "subset_answers.json", answers)
    return folder


def sharded(folder: Path, world: World) -> Path:
    """Generic's rows in two files of a folder, as the hub cuts them: row numbers begin anew in each."""
    one = [{"video_name": stem(row), "question": row["question"], "answer": row["answer"]} for row in world[:ROWS]]
    for number, rows in enumerate((one[: ROWS // 2], one[ROWS // 2 :])):
        put(folder / "Generic" / f"test-{number:05d}-of-00002.json", rows)
    return folder


def merged(path: Path, world: World) -> Path:
    """VLM-RLAIF's own <task>_qa.json: one list; its questions keep the clip's place."""
    return put(
        path,
        [
            {
                "video_name": stem(row),
                "question": f"<image>\n{row['question']}",
                "question_id": f"q{number}",
                "answer": row["answer"],
            }
            for number, row in enumerate(world[:ROWS])
        ],
    )


def original_msvd(path: Path, world: World) -> Path:
    """MSVD-QA's own test_qa.json: clips are numbers; the files are called vid<N>."""
    return put(
        path,
        [
            {"answer": row["answer"], "id": 100 + number, "question": row["question"], "video_id": number_of(row)}
            for number, row in enumerate(world[:ROWS])
        ],
    )


def number_of(row: dict[str, Any]) -> int:
    return int(stem(row).removeprefix("test"))


def tgif(path: Path, world: World) -> Path:
    """TGIF-QA's FrameQA test table: tabs between cells."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["gif_name", "question", "answer", "type", "vid_id", "key", "description"])
        for number, row in enumerate(world[:ROWS]):
            writer.writerow(
                [stem(row), row["question"], row["answer"], "0", f"FRAMEQA{number}", str(number), "a clip, with comma"]
            )
    return path


def options_of(world: World, number: int, count: int = 4) -> tuple[list[str], int]:
    """Answers of other rows around the right one, and its place."""
    right = world[number]["answer"]
    others = list(dict.fromkeys(row["answer"] for row in world if row["answer"] != right))[: count - 1]
    place = number % count
    return [*others[:place], right, *others[place:]], place


def choice(path: Path, world: World) -> Path:
    """Options with letters and the answer's letter, as Video-MME has them."""
    rows = []
    for number in range(ROWS):
        options, place = options_of(world, number)
        told = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options)]
        rows.append(
            {"videoID": stem(world[number]), "question_id": f"{number:03d}-1", "question": world[number]["question"],
             "options": told, "answer": chr(ord("A") + place)}
        )  # fmt: skip
    return put(path, rows)


def choice_csv(path: Path, world: World) -> Path:
    """NExT-QA's table: a0 to a4, the answer's number."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "question", "answer", "qid", "type", *(f"a{i}" for i in range(5))])
        for number in range(ROWS):
            options, place = options_of(world, number, 5)
            writer.writerow([stem(world[number]), world[number]["question"], place, number, "TN", *options])
    return path


def retrieval(path: Path, world: World) -> Path:
    """MSRVTT's 1k-A table: two captions of each clip."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "vid_key", "video_id", "sentence"])
        for number, row in enumerate(world[:ROWS]):
            writer.writerow([f"ret{number}", f"msr{number}", stem(row), row["answer"]])
    return path


def ucf101(folder: Path, world: World) -> Path:
    """testlist01.txt and classInd.txt; a class per clip, more classes than the list has."""
    folder.mkdir(parents=True)
    names = ["ApplyEyeMakeup", "BaseballPitch", "Typing"]
    lines = [f"{names[number % 3]}/{stem(row)}.avi" for number, row in enumerate(world[:ROWS])]
    (folder / "testlist01.txt").write_text("\n".join(lines) + "\n")
    (folder / "classInd.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate([*names, "YoYo"], 1)))
    return folder


def hmdb51(folder: Path, world: World) -> Path:
    """A file per class; 2 marks a test clip, 1 a training clip, 0 neither."""
    folder.mkdir(parents=True)
    for place, name in enumerate(("brush_hair", "cartwheel")):
        rows = world[place * 10 : place * 10 + 10]
        lines = [f"{stem(row)}.avi 2 " for row in rows] + ["elsewhere.avi 1 ", "nowhere.avi 0 "]
        (folder / f"{name}_test_split1.txt").write_text("\n".join(lines) + "\n")
    return folder
