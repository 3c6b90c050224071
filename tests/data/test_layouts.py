"""Rows as data sets and trainers publish them, each with its right reading, written down from the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minirlaif.data.dataset import load_preferences, load_samples
from minirlaif.data.left_out import RowRules
from minirlaif.errors import UserError
from minirlaif.types import Turn

Q, A = "What does the dog do?", "It jumps into a lake."
ASK, REPLY = {"role": "user", "content": f"<video>{Q}"}, {"role": "assistant", "content": A}
ONE = (Turn(Q, A),)
PETS = (Turn("Which animal?\nA. cat\nB. dog", "B. dog"),)
FIVE = {"a0": "run", "a1": "sit", "a2": "jump", "a3": "swim", "a4": "sleep"}
FIVE_LINES = "\nA. run\nB. sit\nC. jump\nD. swim\nE. sleep"
THINK = "<think>It barks.</think>"
PARTS = [{"type": "text", "text": Q}]

# Name of the layout: the row, the clip it means (with its part), its turns.
READINGS: dict[str, tuple[dict[str, Any], str, tuple[Turn, ...]]] = {
    # conversations
    "LLaVA": (
        {
            "id": "1",
            "video": "a.mp4",
            "conversations": [{"from": "human", "value": f"<video>\n{Q}"}, {"from": "gpt", "value": A}],
        },
        "a.mp4",
        ONE,
    ),
    "Video-LLaVA, tag at the end": (
        {"video": "a.mp4", "conversations": [{"from": "human", "value": f"{Q}\n<video>"}, {"from": "gpt", "value": A}]},
        "a.mp4",
        ONE,
    ),
    "LLaVA without a tag": (
        {"video": "a.mp4", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        "a.mp4",
        ONE,
    ),
    "ms-swift without a tag": (
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": Q}, REPLY], "videos": ["a.mp4"]},
        "a.mp4",
        ONE,
    ),
    "clip": ({"clip": "a.mp4", "question": Q, "answer": A}, "a.mp4", ONE),
    "file": ({"file": "clips/b.mp4", "question": Q, "answer": A}, "clips/b.mp4", ONE),
    "file of a recording beside its clip": (
        {"video": "a.mp4", "file_name": "clips/a.mp4", "question": Q, "answer": A},
        "a.mp4",
        ONE,
    ),
    "a clip's name that is a number": ({"video": "a.mp4", "clip": 7, "question": Q, "answer": A}, "a.mp4", ONE),
    "an upright clip": ({"video": "a.mp4", "rotation": 0, "question": Q, "answer": A}, "a.mp4", ONE),
    "LLaVA-Video-178K, open ended": (
        {
            "id": "ytb_1",
            "conversations": [{"from": "human", "value": f"<image>\n{Q}"}, {"from": "gpt", "value": A}],
            "data_source": "0_30_s_youtube_v0_1",
            "video": "clips/b.mp4",
        },
        "clips/b.mp4",
        ONE,
    ),
    "LLaVA-Video-178K, multiple choice": (
        {
            "id": "2301-0",
            "conversations": [
                {"from": "human", "value": "<image>\nWhich animal?\nA. cat\nB. dog\nRespond with only the letter."},
                {"from": "gpt", "value": "B."},
                {"from": "human", "value": "What colour?\nA. black\nB. red\nPlease state the letter and the option."},
                {"from": "gpt", "value": "A. black."},
            ],
            "data_source": "0_30_s_academic_v0_1",
            "video": "a.mp4",
        },
        "a.mp4",
        (
            Turn("Which animal?\nA. cat\nB. dog\nRespond with only the letter.", "B."),
            Turn("What colour?\nA. black\nB. red\nPlease state the letter and the option.", "A. black."),
        ),
    ),
    "ShareGPT of LLaMA-Factory": (
        {"conversations": [{"from": "human", "value": f"<video>{Q}"}, {"from": "gpt", "value": A}], "videos": ["a.mp4"]},
        "a.mp4",
        ONE,
    ),
    "ShareGPT with empty lists of other media": (
        {"messages": [ASK, REPLY], "videos": ["a.mp4"], "images": [], "audios": []},
        "a.mp4",
        ONE,
    ),
    "ShareGPT of ms-swift": ({"conversation": [{"human": f"<video>{Q}", "assistant": A}], "videos": "a.mp4"}, "a.mp4", ONE),
    "messages as JSON in a cell": ({"messages": json.dumps([ASK, REPLY]), "videos": ["a.mp4"]}, "a.mp4", ONE),
    "a path beside an id": ({"video_id": "x7", "video_path": "clips/b.mp4", "question": Q, "answer": A}, "clips/b.mp4", ONE),
    "messages of ms-swift": ({"messages": [ASK, REPLY], "videos": ["a.mp4"], "channel": "x"}, "a.mp4", ONE),
    "messages of Qwen, file address": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "file://a.mp4"}, *PARTS]}, REPLY]},
        "a.mp4",
        ONE,
    ),
    "messages of Qwen, part of a clip": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "video",
                            "video": "a.mp4",
                            "video_start": 1.0,
                            "video_end": 2.5,
                            "nframes": 8,
                            "max_pixels": 50176,
                        },
                        *PARTS,
                    ],
                },
                REPLY,
            ]
        },
        "a.mp4#t=1,2.5",
        ONE,
    ),
    "messages of transformers": (
        {"messages": [{"role": "user", "content": [{"type": "video", "path": "a.mp4"}, *PARTS]}, REPLY]},
        "a.mp4",
        ONE,
    ),
    "messages of vLLM": (
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "file://a.mp4"}}, *PARTS]}, REPLY]},
        "a.mp4",
        ONE,
    ),
    "messages with a solution beside them": ({"messages": [ASK], "solution": A, "videos": ["a.mp4"]}, "a.mp4", ONE),
    # masks
    "ms-swift, loss": (
        {
            "messages": [
                ASK,
                {**REPLY, "content": "bad", "loss": False},
                {"role": "user", "content": "again"},
                {**REPLY, "loss": True},
            ],
            "videos": ["a.mp4"],
        },
        "a.mp4",
        (Turn(Q, "bad", learn=False), Turn("again", A)),
    ),
    "OpenAI, weight": (
        {
            "messages": [
                ASK,
                {**REPLY, "content": "bad", "weight": 0},
                {"role": "user", "content": "again"},
                {**REPLY, "weight": 1},
            ],
            "videos": ["a.mp4"],
        },
        "a.mp4",
        (Turn(Q, "bad", learn=False), Turn("again", A)),
    ),
    "Axolotl, train": (
        {
            "conversations": [
                {"from": "human", "value": f"<video>{Q}", "train": False},
                {"from": "gpt", "value": "bad", "train": False},
                {"from": "human", "value": "again"},
                {"from": "gpt", "value": A, "train": True},
            ],
            "video": "a.mp4",
        },
        "a.mp4",
        (Turn(Q, "bad", learn=False), Turn("again", A)),
    ),
    "a row of weight 1": ({"video": "a.mp4", "question": Q, "answer": A, "weight": 1.0}, "a.mp4", ONE),
    # questions and answers
    "VideoInstruct100K": ({"q": Q, "a": A, "video_id": "v_abc"}, "v_abc.mp4", ONE),
    "ActivityNet-QA": (
        {"video_name": "abc", "question": Q, "question_id": "abc_1", "answer": "yes", "type": 3},
        "v_abc.mp4",
        (Turn(Q, "yes"),),
    ),
    "MSVD-QA": ({"id": 0, "video_id": 7, "question": Q, "answer": "jump"}, "7.avi", (Turn(Q, "jump"),)),
    "VideoChatGPT's benchmark": ({"Q": Q, "A": A, "video_name": "v_abc"}, "v_abc.mp4", ONE),
    "NExT-OE": ({"video": "a.mp4", "question": Q, "answer": A, "qid": 3, "type": "CW", "frame_count": 9}, "a.mp4", ONE),
    "TRL, text": ({"prompt": Q, "completion": A, "videos": ["a.mp4"]}, "a.mp4", ONE),
    "TRL, messages": (
        {"prompt": [{"role": "user", "content": Q}], "completion": [REPLY], "videos": ["a.mp4"]},
        "a.mp4",
        ONE,
    ),
    "query and response": ({"query": f"<video>{Q}", "response": A, "videos": ["a.mp4"]}, "a.mp4", ONE),
    "query with history": (
        {"query": "And then?", "response": "It swims.", "history": [[f"<video>{Q}", A]], "videos": ["a.mp4"]},
        "a.mp4",
        (*ONE, Turn("And then?", "It swims.")),
    ),
    "Alpaca": ({"instruction": f"<video>{Q}", "input": "", "output": A, "videos": ["a.mp4"]}, "a.mp4", ONE),
    "Alpaca with an input": (
        {"instruction": "Answer briefly.", "input": Q, "output": A, "videos": ["a.mp4"]},
        "a.mp4",
        (Turn(f"Answer briefly.\n{Q}", A),),
    ),
    "a count as a whole number": ({"video": "a.mp4", "question": "How many?", "answer": 3}, "a.mp4", (Turn("How many?", "3"),)),
    "a count in a column of floats": (
        {"video": "a.mp4", "question": "How many?", "answer": 3.0},
        "a.mp4",
        (Turn("How many?", "3"),),
    ),
    "a measure": ({"video": "a.mp4", "question": "How far?", "answer": 2.5}, "a.mp4", (Turn("How far?", "2.5"),)),
    "a truth value": ({"video": "a.mp4", "question": "Does it bark?", "answer": False}, "a.mp4", (Turn("Does it bark?", "no"),)),
    # options
    "options with labels, letter": (
        {"video": "a.mp4", "question": "Which animal?", "options": ["A. cat", "B. dog"], "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "options with labels in brackets": (
        {"video": "a.mp4", "question": "Which animal?", "options": ["(A) cat", "(B) dog"], "answer": "(B)"},
        "a.mp4",
        PETS,
    ),
    "MVBench": (
        {"video": "a.mp4", "question": "Which animal?", "candidates": ["cat", "dog"], "answer": "dog"},
        "a.mp4",
        PETS,
    ),
    "MVBench, part of a clip": (
        {"video": "a.mp4", "question": "Which animal?", "candidates": ["cat", "dog"], "answer": "dog", "start": 4.2, "end": 11.0},
        "a.mp4#t=4.2,11",
        PETS,
    ),
    "NExT-QA": (
        {
            "video": "a.mp4",
            "question": Q,
            "answer": 3,
            "qid": 1,
            "type": "CW",
            "frame_count": 99,
            "width": 4,
            "height": 4,
            **FIVE,
        },
        "a.mp4",
        (Turn(Q + FIVE_LINES, "D. swim"),),
    ),
    "EgoSchema": (
        {"q_uid": "a", "video": "a.mp4", "question": Q, "answer": "0", **{f"option {i}": f"act {i}" for i in range(5)}},
        "a.mp4",
        (Turn(Q + "\nA. act 0\nB. act 1\nC. act 2\nD. act 3\nE. act 4", "A. act 0"),),
    ),
    "letters as columns": (
        {"video": "a.mp4", "question": Q, "A": "run", "B": "sit", "C": "jump", "D": "swim", "answer": "C"},
        "a.mp4",
        (Turn(Q + "\nA. run\nB. sit\nC. jump\nD. swim", "C. jump"),),
    ),
    "an object of options": (
        {"video": "a.mp4", "question": "Which animal?", "options": {"A": "cat", "B": "dog"}, "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "options as text": (
        {"video": "a.mp4", "question": "Which animal?", "options": '["cat", "dog"]', "answer": "b"},
        "a.mp4",
        PETS,
    ),
    "ARC's choices": (
        {"video": "a.mp4", "question": "Which animal?", "choices": {"text": ["cat", "dog"], "label": ["A", "B"]}, "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "Perception Test": (
        {"video_id": "a", "question": "Which animal?", "options": ["cat", "dog"], "answer_id": 1, "area": "semantics"},
        "a.mp4",
        PETS,
    ),
    "STAR": (
        {
            "question_id": "Interaction_T1_13",
            "question": "Which animal?",
            "video_id": "a",
            "start": 11.1,
            "end": 19.6,
            "answer": "dog",
            "choices": [{"choice_id": 0, "choice": "cat"}, {"choice_id": 1, "choice": "dog"}],
        },
        "a.mp4#t=11.1,19.6",
        PETS,
    ),
    "TVQA": (
        {"qid": 1, "q": Q, "answer_idx": 2, "ts": "76.01-84.2", "vid_name": "a", "show_name": "x", **FIVE},
        "a.mp4#t=76.01,84.2",
        (Turn(Q + FIVE_LINES, "C. jump"),),
    ),
    "Video-R1, multiple choice": (
        {
            "problem_id": 2,
            "problem": "Which animal?",
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": ["A. cat", "B. dog"],
            "solution": "<answer>B</answer>",
            "path": "./a.mp4",
            "data_source": "x",
        },
        "a.mp4",
        PETS,
    ),
    "Video-R1, a number": (
        {"problem": "How many?", "problem_type": "numerical", "options": [], "solution": "<answer>3</answer>", "path": "./a.mp4"},
        "a.mp4",
        (Turn("How many?", "3"),),
    ),
    "options that the question spells out": (
        {"video": "a.mp4", "question": "Which animal?\n(A) cat\n(B) dog", "options": ["cat", "dog"], "answer": "B"},
        "a.mp4",
        (Turn("Which animal?\n(A) cat\n(B) dog", "B. dog"),),
    ),
    "options beside messages": (
        {
            "messages": [{"role": "user", "content": "<video>Which animal?"}, {"role": "assistant", "content": "B"}],
            "options": ["cat", "dog"],
            "videos": ["a.mp4"],
        },
        "a.mp4",
        PETS,
    ),
    "options in numbered columns, answer by column": (
        {"video": "a.mp4", "question": "Which animal?", "option_1": "cat", "option_2": "dog", "answer": "option_2"},
        "a.mp4",
        PETS,
    ),
    "options in numbered columns, answer by their number": (
        {"video": "a.mp4", "question": "Which animal?", "option1": "cat", "option2": "dog", "answer": 2},
        "a.mp4",
        PETS,
    ),
    "options as a Python list in a cell": (
        {"video": "a.mp4", "question": "Which animal?", "options": "['cat', 'dog']", "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "a truth value among options": (
        {"video": "a.mp4", "question": "Does it bark?", "options": ["yes", "no"], "answer": True},
        "a.mp4",
        (Turn("Does it bark?\nA. yes\nB. no", "A. yes"),),
    ),
    "an option by its word and letter": (
        {"video": "a.mp4", "question": "Which animal?", "options": ["cat", "dog"], "answer": "Option B"},
        "a.mp4",
        PETS,
    ),
    "reasoning before the letter": (
        {"path": "a.mp4", "problem": "Which animal?", "options": ["A. cat", "B. dog"], "solution": f"{THINK}<answer>B</answer>"},
        "a.mp4",
        (Turn("Which animal?\nA. cat\nB. dog", f"{THINK}<answer>B. dog</answer>"),),
    ),
    "MedMCQA's columns of options": (
        {"video": "a.mp4", "question": "Which animal?", "opa": "cat", "opb": "dog", "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "a column for each option, from 1": (
        {"video": "a.mp4", "question": "Which animal?", "opt1": "cat", "opt2": "dog", "answer": 2},
        "a.mp4",
        PETS,
    ),
    "an answer and its number": (
        {"video": "a.mp4", "question": "Which animal?", "options": ["cat", "dog"], "answer": "dog", "answer_idx": 1},
        "a.mp4",
        PETS,
    ),
    "VideoChat2-IT": (
        {"video": "a.mp4", "QA": [{"i": "Look closely.", "q": Q, "a": A}, {"i": "", "q": "Who?", "a": "A dog."}]},
        "a.mp4",
        (Turn(f"Look closely.\n{Q}", A), Turn("Who?", "A dog.")),
    ),
    "VideoChat2-IT, captions": (
        {"video": "a.mp4", "QA": [{"i": "Describe the clip.", "q": "", "a": A}]},
        "a.mp4",
        (Turn("Describe the clip.", A),),
    ),
    "Video-R1 with its reasoning": (
        {
            "path": "./a.mp4",
            "problem": "Which animal?",
            "options": ["A. cat", "B. dog"],
            "process": THINK,
            "solution": "<answer>B</answer>",
        },
        "a.mp4",
        (Turn("Which animal?\nA. cat\nB. dog", f"{THINK}\n<answer>B. dog</answer>"),),
    ),
    "a letter behind reasoning": (
        {"video": "a.mp4", "problem": "Which animal?", "options": ["cat", "dog"], "solution": f"{THINK}\n\nB"},
        "a.mp4",
        (Turn("Which animal?\nA. cat\nB. dog", f"{THINK}\n\nB. dog"),),
    ),
    "a boxed letter": (
        {"video": "a.mp4", "problem": "Which animal?", "options": ["cat", "dog"], "solution": "\\boxed{B}"},
        "a.mp4",
        PETS,
    ),
    "options that are objects with labels": (
        {
            "video": "a.mp4",
            "question": "Which animal?",
            "options": [{"id": 1, "text": "cat"}, {"id": 2, "text": "dog"}],
            "answer": 2,
        },
        "a.mp4",
        PETS,
    ),
    "options that are objects by letter": (
        {"video": "a.mp4", "question": "Which animal?", "options": [{"A": "cat"}, {"B": "dog"}], "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "options behind numbers": (
        {"video": "a.mp4", "question": "Which animal?", "options": ["1.cat", "2.dog"], "answer": 2},
        "a.mp4",
        PETS,
    ),
    "options in a struct of a table": (
        {"video": "a.mp4", "question": "Which animal?", "options": {"A": "cat", "B": "dog", "C": None}, "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "more columns than options": (
        {"video": "a.mp4", "question": "Which animal?", "A": "cat", "B": "dog", "C": "", "D": "", "answer": "B"},
        "a.mp4",
        PETS,
    ),
    "a full-width letter": (
        {"video": "a.mp4", "question": "Which animal?", "options": ["cat", "dog"], "answer": "\uff22"},
        "a.mp4",
        PETS,
    ),
    "an open question of a table of options": (
        {"video": "a.mp4", "question": Q, "choices": {"A": "", "B": ""}, "answer": A},
        "a.mp4",
        ONE,
    ),
    "EgoSchema, hub": (
        {"question_idx": "1", "question": "Which animal?", "video_idx": "v_abc", "option": ["A. cat", "B. dog"], "answer": "1"},
        "v_abc.mp4",
        PETS,
    ),
    "empty cells of a table": (
        {
            "video": "a.mp4",
            "question": Q,
            "answer": A,
            "problem": "",
            "start": "",
            "end": float("nan"),
            "images": [None],
            "system": "  ",
        },
        "a.mp4",
        ONE,
    ),
    "one clip under two spellings": ({"video": "a.mp4", "video_path": "./a.mp4", "question": Q, "answer": A}, "a.mp4", ONE),
    "messages as text in another column": (
        {
            "prompt": json.dumps([{"role": "user", "content": Q}]),
            "completion": json.dumps([{"role": "assistant", "content": A}]),
            "videos": "a.mp4",
        },
        "a.mp4",
        ONE,
    ),
    "parts without types": (
        {"messages": [{"role": "user", "content": [{"video": "a.mp4"}, {"text": Q}]}, REPLY]},
        "a.mp4",
        ONE,
    ),
    "a number as the question": ({"video": "a.mp4", "question": 3, "answer": A}, "a.mp4", (Turn("3", A),)),
    # parts of clips, names of clips
    "times as the text of a list": (
        {"video": "a.mp4", "question": Q, "answer": A, "timestamps": "[1.0, 3.0]"},
        "a.mp4#t=1,3",
        ONE,
    ),
    "a list of one part": ({"video": "a.mp4", "question": Q, "answer": A, "timestamps": [[1, 3]]}, "a.mp4#t=1,3", ONE),
    "times with their unit": (
        {"video": "a.mp4", "question": Q, "answer": A, "start": "3s", "end": "4.5 sec"},
        "a.mp4#t=3,4.5",
        ONE,
    ),
    "an empty column of clips": ({"video": "", "videos": ["a.mp4"], "messages": [ASK, REPLY]}, "a.mp4", ONE),
    "a file that is called as a part is": ({"video": "e.mp4#t=1,2", "question": Q, "answer": A}, "e.mp4#t=1,2", ONE),
    "a part inside the column of clips": (
        {"messages": [ASK, REPLY], "videos": [{"video": "a.mp4", "video_start": 1, "video_end": 2}]},
        "a.mp4#t=1,2",
        ONE,
    ),
    "a part beside a list of one clip": (
        {"messages": [ASK, REPLY], "videos": ["a.mp4"], "video_start": [1.5], "video_end": [2]},
        "a.mp4#t=1.5,2",
        ONE,
    ),
    "start and end as clock times": (
        {"video": "a.mp4", "question": Q, "answer": A, "start_time": "00:01:02.5", "end_time": "1:10"},
        "a.mp4#t=62.5,70",
        ONE,
    ),
    "a list of two times": ({"video": "a.mp4", "question": Q, "answer": A, "timestamps": [3, 9.25]}, "a.mp4#t=3,9.25", ONE),
    "an end alone": ({"video": "a.mp4", "question": Q, "answer": A, "video_end": 4}, "a.mp4#t=,4", ONE),
    "a media fragment": ({"video": "a.mp4#t=1,2", "question": Q, "answer": A}, "a.mp4#t=1,2", ONE),
    "a date that is no time in the clip": (
        {"video": "a.mp4", "question": Q, "answer": A, "time": "2026-11-28T10:00:00+00:00"},
        "a.mp4",
        ONE,
    ),
    "a colon and a percent sign": ({"video": "take 1: 50%20.mp4", "question": Q, "answer": A}, "take 1: 50%20.mp4", ONE),
    "an address with percent codes": ({"video": "file://clips/c%20d.mp4", "question": Q, "answer": A}, "clips/c d.mp4", ONE),
    "one clip in two columns": ({"video": "a.mp4", "videos": ["a.mp4"], "question": Q, "answer": A}, "a.mp4", ONE),
    "Windows' backslashes": ({"video": "clips\\b.mp4", "question": Q, "answer": A}, "clips/b.mp4", ONE),
}
FILES = ("a.mp4", "e.mp4#t=1,2", "v_abc.mp4", "7.avi", "clips/b.mp4", "clips/c d.mp4", "take 1: 50%20.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(b"clip")  # never opened here
    return tmp_path


def write(folder: Path, *rows: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("name", READINGS)
def test_a_published_row_is_read_as_it_is_meant(folder: Path, name: str) -> None:
    row, video, turns = READINGS[name]
    (sample,) = load_samples(write(folder, row))
    assert sample.turns == turns
    assert sample.video == str(folder / video)


@pytest.mark.parametrize("name", [name for name, (row, _, turns) in READINGS.items() if len(turns) == 1])
def test_its_question_alone_is_a_prompt(folder: Path, name: str) -> None:
    row, video, turns = READINGS[name]
    (prompt,) = load_samples(write(folder, row), need_answers=False)
    assert (prompt.turns[0].question, prompt.video) == (turns[0].question, str(folder / video))


@pytest.mark.parametrize(
    "answers", [{"chosen": "Left.", "rejected": "Right."}, {"output_1": "Left.", "output_2": "Right.", "preference": 1}]
)
def test_the_questions_of_preferences_are_prompts(folder: Path, answers: dict[str, Any]) -> None:
    row = {"video": "a.mp4", "question": Q, **answers}
    (prompt,) = load_samples(write(folder, row), need_answers=False)
    assert prompt.turns == (Turn(Q),) and not prompt.tags  # which would stand in the rows of other preferences


def test_an_answer_and_a_rejected_response_are_a_preference(folder: Path) -> None:
    row = {"video": "a.mp4", "question": Q, "answer": "Left.", "rejected_response": "Right."}
    (pair,) = load_preferences(write(folder, row))
    assert (pair.question, pair.chosen, pair.rejected) == (Q, "Left.", "Right.")


def test_a_file_of_one_conversation(folder: Path) -> None:
    (folder / "one.json").write_text(json.dumps({"messages": [ASK, REPLY], "videos": ["a.mp4"]}), encoding="utf-8")
    (sample,) = load_samples(str(folder / "one.json"))
    assert sample.turns == ONE


def test_a_table_without_rows(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"video": [], "question": [], "answer": []}).to_parquet(str(folder / "none.parquet"))
    with pytest.raises(UserError, match="none.parquet: holds no rows"):
        load_samples(str(folder / "none.parquet"))


def test_columns_to_pass_over_are_as_if_they_were_not_there(folder: Path) -> None:
    row = {"video": "a.mp4", "question": Q, "answer": A, "duration": "short", "start": 1, "prompt": "You are helpful."}
    (sample,) = load_samples(write(folder, row), rules=RowRules(ignore=("duration", "start", "prompt")))
    assert (sample.turns, sample.video, dict(sample.tags)) == (ONE, str(folder / "a.mp4"), {})


def test_video_mme_without_its_duration(folder: Path) -> None:
    row = {"videoID": "x", "video": "a.mp4", "duration": "short", "question": "Which animal?", "options": ["A. cat.", "B. dog."]}
    (sample,) = load_samples(write(folder, row | {"answer": "B"}), rules=RowRules(ignore=("duration",)))
    assert sample.turns == (Turn("Which animal?\nA. cat.\nB. dog.", "B. dog."),)


PROMPT = [{"role": "user", "content": Q}]
BETTER, WORSE = {"role": "assistant", "content": "Left."}, {"role": "assistant", "content": "Right."}
PREFERENCES: dict[str, dict[str, Any]] = {
    "TRL, text": {"prompt": Q, "chosen": "Left.", "rejected": "Right.", "videos": ["a.mp4"]},
    "TRL, messages": {"prompt": PROMPT, "chosen": [BETTER], "rejected": [WORSE], "videos": ["a.mp4"]},
    "TRL, whole lists": {"chosen": [*PROMPT, BETTER], "rejected": [*PROMPT, WORSE], "videos": ["a.mp4"]},
    "TRL, whole lists beside the prompt": {
        "prompt": Q,
        "chosen": [*PROMPT, BETTER],
        "rejected": [*PROMPT, WORSE],
        "videos": "a.mp4",
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": f"<video>{Q}"}],
        "chosen": {"from": "gpt", "value": "Left."},
        "rejected": {"from": "gpt", "value": "Right."},
        "videos": ["a.mp4"],
    },
    "LLaMA-Factory, Alpaca": {"instruction": Q, "input": "", "chosen": "Left.", "rejected": "Right.", "videos": ["a.mp4"]},
    "ms-swift, rejected_response": {"messages": [ASK, BETTER], "rejected_response": "Right.", "videos": ["a.mp4"]},
    "ms-swift, rejected_response of messages": {"messages": [ASK, BETTER], "rejected_response": [WORSE], "videos": ["a.mp4"]},
    "ms-swift, rejected_messages": {"messages": [ASK, BETTER], "rejected_messages": [ASK, WORSE], "videos": ["a.mp4"]},
    "query and response": {"query": Q, "chosen": "Left.", "rejected": "Right.", "videos": ["a.mp4"]},
    "LLaVA-Hound": {
        "id": "v_1",
        "video": "a.mp4",
        "prompt": f"<video>\n{Q}",
        "answer": A,
        "chosen": "Left.",
        "rejected": "Right.",
    },
    "VLM-RLAIF": {
        "video": "a.mp4",
        "conversations": [{"from": "human", "value": f"<image>\n{Q}"}, {"from": "gpt", "value": "Old."}],
        "output_1": {"from": "llm", "value": "Right."},
        "output_2": {"from": "llm", "value": "Left."},
        "preference": 2,
    },
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_published_preference_is_read_as_it_is_meant(folder: Path, name: str) -> None:
    (pair,) = load_preferences(write(folder, PREFERENCES[name]))
    assert (pair.question, pair.chosen, pair.rejected, pair.video) == (Q, "Left.", "Right.", str(folder / "a.mp4"))


def test_a_preference_with_options_and_a_part_of_a_clip(folder: Path) -> None:
    row = {
        "video": "a.mp4",
        "question": "Which animal?",
        "options": ["cat", "dog"],
        "chosen": "B",
        "rejected": 0,
        "start": 1,
        "end": 2,
    }
    (pair,) = load_preferences(write(folder, row))
    assert (pair.question, pair.chosen, pair.rejected) == ("Which animal?\nA. cat\nB. dog", "B. dog", "A. cat")
    assert pair.video == str(folder / "a.mp4#t=1,2")
