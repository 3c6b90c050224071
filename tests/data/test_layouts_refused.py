"""Rows that would be read as something else than they mean: each is refused by file, row, column and reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minirlaif.data.dataset import load_preferences, load_samples
from minirlaif.data.formats import BadRow, parse_sample
from minirlaif.errors import UserError

Q, A = "What does the dog do?", "It jumps into a lake."
ROW: dict[str, Any] = {"video": "a.mp4", "question": Q, "answer": A}
ASK, REPLY = {"role": "user", "content": f"<video>{Q}"}, {"role": "assistant", "content": A}
CHAT: dict[str, Any] = {"messages": [ASK, REPLY], "videos": ["a.mp4"]}
PETS: dict[str, Any] = {"video": "a.mp4", "question": "Which animal?", "options": ["cat", "dog"]}


def chat(**more: Any) -> dict[str, Any]:
    """A conversation whose answer has further keys."""
    return {"messages": [ASK, {**REPLY, **more}], "videos": ["a.mp4"]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # columns that mean something and are not used
    **{
        f"column {name}": (ROW | {name: value}, f"column `{name}` would change what the row means")
        for name, value in {
            "duration": 12.5,
            "timestamp": 4.5,
            "time": 3,
            "timestamps": [[1, 2], [4, 5]],
            "start_frame": 30,
            "counterfactual": "It swims.",
            "negative": ["It swims."],
            "rejected": "It swims.",
            "subtitle": "Good dog!",
            "subtitles": "a.srt",
            "system": "You are helpful.",
            "history": [["Who?", "A dog."]],
            "weight": 0.5,
            "loss": False,
            "label": False,
            "kto_tag": True,
            "tools": "[]x",
            "images": ["b.jpg"],
            "audios": ["b.wav"],
            "context": "A dog show.",
            "Duration": 3,
            "option_b": "swim",
            "opb": "swim",
            "distractor_1": "swim",
            "train": False,
            "is_train": False,
            "from": 3,
            "second": 4.5,
            "t0": 1.5,
            "t_out": 3,
            "sec_from": 1,
            "in_point": 2,
            "first_frame": 30,
            "frame_indices": [1, 2, 9],
            "frame_stride": 4,
            "speed": 2,
            "reverse": True,
            "flipped": True,
            "mirrored": True,
            "i": "Answer in French.",
            "instructions": "Answer in French.",
            "speech": "Good dog!",
            "subs": "a.srt",
            "answers": ["It swims.", "It sinks."],
            "Video": "b.mp4",
            "alternatives": ["x", "y"],
            "answer_list": ["x", "y"],
            "foils": ["x", "y"],
            "bad_answer": "x",
            "(B)": "swim",
            "c": "swim",
            "stop": 9,
            "tend": 9,
            "timeframe": "3-9",
            "frames": [30, 90],
            "clip_range": [3, 9],
            "gt_span": [3, 9],
            "metadata": {"start": 3, "end": 9},
            "bbox": [1, 2, 3, 4],
            "training": False,
            "kto_label": False,
            "is_correct": False,
            "rationale": "It is wet.",
            "output_1": "It swims.",
            "responses": ["x", "y"],
            "rejected_images": ["b.jpg"],
            "video2": "b.mp4",
            "second_video": "b.mp4",
            "sub_text": "Good dog!",
            "post_prompt": "Answer in French.",
            "dialogue": "Good dog!",
            "Answer": "It swims.",
            "correct": "It swims.",
            "reject": "It swims.",
            "ocr": "Good dog!",
            "passage": "Dogs swim.",
            "rotation": 90,
            "crop": [0, 0, 10, 10],
            "answer_number": 1,
        }.items()
    },
    "another question": (ROW | {"question_2": "And then?"}, "`question_2` is another question: make a row of it"),
    "another clip": (ROW | {"video_name": "b.mp4"}, "`video_name` names another clip (b.mp4) than the row's (a.mp4)"),
    "another clip of any name": (ROW | {"source": "x/b.webm"}, "data.ignore_columns: [source]"),
    "another clip in a list": (ROW | {"related": ["c.mp4"]}, "`related` names another clip (c.mp4)"),
    "a clip of that name in another folder": (
        ROW | {"video": "one/a.mp4", "file": "two/a.mp4"},
        "`file` names another clip (two/a",
    ),
    "a file of that name in another folder": (ROW | {"video": "one/a.mp4", "path": "two/a.mp4"}, "two columns may be the clip"),
    "another clip of a camcorder": (ROW | {"source": "b.MTS"}, "`source` names another clip (b.MTS)"),
    "an option's number and another one's text": (
        PETS | {"answer": 1, "answer_text": "cat"},
        "two columns may be the answer, `answer` and `answer_text`",
    ),
    "an answer that says when, by the clock": (
        {"video": "a.mp4", "question": "When?", "answer": "From 1:03 to 1:09.", "start": 63, "end": 69},
        "the answer holds the times of its part of the clip",
    ),
    "another file": (ROW | {"file": "b.mp4"}, "`file` names another clip (b.mp4)"),
    "a preference among conversations": (
        ROW | {"chosen": "x", "rejected": "y"},
        "`chosen` and `rejected` make the row a preference: name its file in data.preferences",
    ),
    "a preference of the paper": (
        CHAT | {"output_1": "x", "output_2": "y", "preference": 1},
        "`output_1` and `output_2` make the row a preference",
    ),
    "a label in words": (ROW | {"label": "false"}, "column `label` would change what the row means"),
    "several of them": (ROW | {"duration": 3, "subtitle": "x"}, "columns `duration` and `subtitle` would change"),
    # two columns for one thing
    "prompt and question": (ROW | {"prompt": "You are helpful."}, "two columns may be the question, `prompt` and `question`"),
    "problem and question": (ROW | {"problem": Q}, "two columns may be the question, `question` and `problem`"),
    "messages and prompt": (CHAT | {"prompt": Q}, "two columns may be the question, `messages` and `prompt`"),
    "two answers": (ROW | {"a": "x"}, "two columns may be the answer, `answer` and `a`"),
    "two answers, of which one counts the options": (
        PETS | {"answer": "cat", "answer_idx": 1},
        "two columns may be the answer, `answer` and `answer_idx`",
    ),
    "an answer and another response": (ROW | {"response": "x"}, "two columns may be the answer, `answer` and `response`"),
    "a pair without its answer": ({"video": "a.mp4", "QA": [{"q": Q}]}, "answer 1 is empty"),
    "a pair with a mask": ({"video": "a.mp4", "QA": [{"q": Q, "a": A, "weight": 0.5}]}, "`weight` is 0.5"),
    "labels out of order": (PETS | {"options": ["B. x", "A. y"], "answer": "A"}, "must have its options in order, A, B"),
    "labels with a gap": (PETS | {"options": ["A. cat", "C. dog"], "answer": "C"}, "must have its options in order, A, B"),
    "objects out of order": (
        PETS | {"options": [{"label": "B", "text": "dog"}, {"label": "A", "text": "cat"}], "answer": "A"},
        "must have its options in order, A, B",
    ),
    "objects that say which is right": (
        PETS | {"options": [{"text": "cat", "is_correct": True}, {"text": "dog", "is_correct": False}], "answer": "B"},
        "holds options with `is_correct`, which is not used",
    ),
    "texts and labels of two lengths": (
        PETS | {"options": {"text": ["cat", "dog", "cow"], "label": ["A", "B"]}, "answer": "A"},
        "has 3 texts and 2 labels",
    ),
    "a text number in numbered columns": (
        {"video": "a.mp4", "question": Q, "a0": "1", "a1": "2", "a2": "3", "answer": "2"},
        "may be an option or the number of one",
    ),
    "TGIF-QA's numbers": (
        {"video": "a.mp4", "question": Q, "a1": "v", "a2": "w", "a3": "x", "answer": 2},
        "may count the columns of options from 0 or from 1",
    ),
    "other options in the question": (
        PETS | {"question": "Which?\nA. dog\nB. cat", "answer": "A"},
        "the question lists options behind letters or numbers",
    ),
    "numbers in the question": (PETS | {"question": "Which?\n1. cat\n2. dog", "answer": 1}, "the question lists options behind"),
    "another option that begins so": (
        PETS | {"question": "A. cats\nB. dogs", "answer": "A"},
        "the question lists options behind",
    ),
    "options of odd text": (PETS | {"options": "{['cat']: 1}", "answer": "A"}, "must be a list of texts, this is text"),
    "an answer that says when": (
        {"video": "a.mp4", "question": "When?", "answer": "From 24.3 to 30.4 seconds.", "timestamp": [24.3, 30.4]},
        "the answer holds the times of its part of the clip",
    ),
    "a start with another end": (ROW | {"start": 3, "stop": 9}, "column `stop` would change"),
    "a name that looks like times": (ROW | {"segment": "12-34"}, "column `segment` would change"),
    "a mask of a part of a turn": (
        chat(train_detail=[{"begin_offset": 0, "train": False}]),
        "has `train_detail`, which is not used",
    ),
    "a mask of another name": (chat(masked=True), "has `masked`, which is not used"),
    "a clip of a turn": (chat(video="b.mp4"), "has `video`, which is not used"),
    "a part of text with a clip": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q, "video": "b.mp4"}]}, REPLY], "video": "a.mp4"},
        "has a part of text with `video`",
    ),
    "a clip inside of the question": (ROW | {"question": "<video>b.mp4</video>What?"}, "contains the token </video>"),
    "tokens of times": (ROW | {"question": "From <s0> to <e0>?"}, "contains the token <s0>"),
    "columns of two lengths": (
        {"video": "a.mp4", "conversations": {"from": ["human", "gpt", "human"], "value": ["<video>q", "a"]}},
        "has 3 of `from` and 2 of `value`",
    ),
    "two clips by path": (ROW | {"video": "b.mp4", "path": "a.mp4"}, "two columns may be the clip, `video` and `path`"),
    "two columns of options": (PETS | {"answer": "A", "candidates": ["x", "y"]}, "two columns may be the options"),
    "two columns of clips": (ROW | {"videos": ["b.mp4"]}, "two columns may be the clip, `video` and `videos`"),
    "two parts of a clip": (ROW | {"start": 1, "end": 2, "timestamps": [3, 4]}, "two columns may be the part of the clip"),
    "a part in the name and in columns": (ROW | {"video": "a.mp4#t=1,2", "start": 3}, "both give a part of the clip"),
    # options
    "a letter behind the options": (PETS | {"answer": "C"}, "`answer` 'C' is none of the 2 options"),
    "a text that is no option": (PETS | {"answer": "horse"}, "`answer` 'horse' is none of the 2 options"),
    "letter of one option, text of another": (PETS | {"answer": "A. dog"}, "the letter of one option and the text of another"),
    "a number that is an option too": (PETS | {"options": ["1", "2", "0"], "answer": 1}, "may be an option or the number of one"),
    "one option": (PETS | {"options": ["cat"], "answer": "A"}, "`options` must hold 2 to 26 options"),
    "one option twice": (PETS | {"options": ["cat", "cat"], "answer": "A"}, "`options` holds one option twice"),
    "options out of order": (PETS | {"options": {"B": "x", "A": "y"}, "answer": "A"}, "must have its options in order"),
    "options as prose": (PETS | {"options": "cat or dog", "answer": "A"}, "`options` must be a list of texts, this is text"),
    "options of a conversation": (
        {"messages": [ASK, REPLY, {"role": "user", "content": "And?"}, REPLY], "videos": ["a.mp4"], "options": ["x", "y"]},
        "the row has options and 2 questions",
    ),
    # parts of clips
    "an end before the start": (ROW | {"start": 5, "end": 2}, "`start` and `end`: the part ends at 2 s and starts at 5 s"),
    "a negative start": (ROW | {"start": -1, "end": 2}, "`start` must be a time in seconds from 0, this is '-1'"),
    "a start in words": (ROW | {"start": "soon"}, "`start` must be a time in seconds from 0, this is 'soon'"),
    "a part with an unknown time": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "timestamp": 3}]}, REPLY]},
        "turn 1 of `messages`: `video part`: column `timestamp` would change",
    ),
    # masks
    "a weight between": (chat(weight=0.5), "turn 2 of `messages`: `weight` is 0.5"),
    "loss on a question": ({"messages": [{**ASK, "loss": True}, REPLY], "videos": ["a.mp4"]}, "only answers are trained on"),
    "nothing to learn": (chat(loss=False), "no answer is trained on"),
    "a tool call": (chat(tool_calls=[{"id": 1}]), "turn 2 of `messages` has `tool_calls`, which is not used"),
    "reasoning beside an answer": (chat(reasoning_content="Because."), "turn 2 of `messages` has `reasoning_content`"),
    # clips
    "a moment beside a clip": (ROW | {"video": {"path": "a.mp4", "timestamp": 3}}, "`video`: column `timestamp` would change"),
    "a clip on the web": (ROW | {"video": "https://example.org/a.mp4"}, "is an address; download the clip"),
    "a Windows drive": (ROW | {"video": "C:\\clips\\b.mp4"}, "is a Windows path with a drive"),
    "a picture of Video-R1": (
        {"problem": Q, "data_type": "image", "solution": "<answer>3</answer>", "path": "./a.jpg"},
        "`path` holds frame pictures (./a.jpg)",
    ),
    "two clips": (ROW | {"video": ["a.mp4", "b.mp4"]}, "2 clips in one row"),
    "an audio part": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}, REPLY], "videos": ["a.mp4"]},
        "has a part of type 'audio'",
    ),
    # benchmarks of other kinds
    "Charades-STA": ({"video": "a.mp4", "timestamp": [1, 2], "sentence": "a dog jumps"}, "`question` or `q` column"),
    "CLEVRER": ({"video": "a.mp4", "questions": [{"question": Q}]}, "`question` or `q` column"),
    "a conversation as prose": ({"conversations": f"<video>{Q} {A}", "video": "a.mp4"}, "must be a list of turns, this is text"),
    # answers
    "a list of answers": (ROW | {"answer": ["x", "y"]}, "`answer` must be text or one message, this is a list"),
    "no number": (ROW | {"answer": float("nan")}, "`answer` must be text or one message"),
    "history that is no list of pairs": (
        {"query": Q, "response": A, "history": ["x"], "videos": ["a.mp4"]},
        "`history` must be a list of [question, answer] pairs",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"clip")
    return tmp_path


def refusal(folder: Path, row: Any, load: Any = load_samples) -> str:
    source = folder / "rows.jsonl"
    source.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(str(source))
    message = str(caught.value)
    assert message.startswith(f"{source}, row 1: ") and "\n" not in message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_is_refused_by_name(folder: Path, name: str) -> None:
    row, expected = REFUSED[name]
    assert expected in refusal(folder, row)


def test_the_refusal_of_a_column_names_the_setting_that_passes_over_it(folder: Path) -> None:
    message = refusal(folder, ROW | {"duration": 3, "subtitle": "x"})
    assert message.endswith("take them out, or pass over with data.ignore_columns: [duration, subtitle]")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": Q, "chosen": "x", "rejected": "y", "duration": 3}, "column `duration` would change"),
        ({"messages": [ASK, REPLY], "rejected_messages": [{"role": "user", "content": "Who?"}, REPLY]}, "one conversation"),
        (
            {
                "prompt": "Who?",
                "chosen": [{"role": "user", "content": Q}, REPLY],
                "rejected": [{"role": "user", "content": Q}, ASK],
            },
            "one conversation that ends in two different answers",
        ),
        (
            {
                "prompt": "Who?",
                "chosen": [{"role": "user", "content": Q}, REPLY],
                "rejected": [{"role": "user", "content": Q}, {"role": "assistant", "content": "No."}],
            },
            "begin with another conversation than the prompt column holds",
        ),
        ({"question": Q, "rejected_response": "x", "rejected_messages": [REPLY]}, "two columns may be the rejected answer"),
        ({"question": "Which?", "options": ["cat", "dog"], "chosen": "B", "rejected": "dog"}, "are the same"),
        ({"messages": [ASK, {**REPLY, "loss": False}], "rejected_response": "x"}, "is masked"),
        ({"chosen": [ASK, {**REPLY, "weight": 0}], "rejected": [ASK, {**REPLY, "content": "x"}]}, "has a masked answer"),
        ({"question": Q, "chosen": "x", "rejected": "y", "preference": 2}, "column `preference` would change"),
        ({"question": Q, "chosen": "b.mp4", "rejected": "a.mp4"}, "name clips"),
        ({"question": "When?", "chosen": "At 3 to 9 s.", "rejected": "x", "start": 3, "end": 9}, "holds the times of its part"),
    ],
)
def test_a_preference_is_refused_by_name(folder: Path, row: dict[str, Any], expected: str) -> None:
    assert expected in refusal(folder, row | {"videos": ["a.mp4"]}, load_preferences)


def test_two_files_that_one_address_may_mean(folder: Path) -> None:
    for name in ("c%20d.mp4", "c d.mp4"):
        (folder / name).write_bytes(b"clip")
    assert "and both are there: rename one of them" in refusal(folder, ROW | {"video": "file://c%20d.mp4"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "a.mp4", "question": "q", "answer": "A", "A": "x", "B": "y", "D": "z"}, "`D` stands behind a gap"),
        ({"video": "a.mp4", "question": "q", "answer": "a", "time_stamp": 3}, "time_stamp"),
        ({"video": "a.mp4", "question": "q", "answer": "a", "startTime": 3}, "startTime"),
        ({"video": "a.mp4", "question": "q", "answer": "a", "distractor1": "b"}, "distractor1"),
        ({"video": "a.mp4", "conversation": [{"human": "q", "assistant": "a", "input": "x"}]}, "has `input`, which is not used"),
        ({"video": "a.mp4", "question": "q", "answer": {"content": "x", "weight": 0}}, "is masked"),
        ({"video": "a.mp4", "question": "q", "options": ["C", "A", "B"], "answer": "A"}, "may be an option or the letter of one"),
        (
            {"video": "a.mp4", "question": "q", "options": {"A": "b", "B": "a"}, "answer": "a"},
            "may be an option or the name of one",
        ),
        ({"video": "a.mp4", "question": "q", "answer": {"content": "x", "value": "y"}}, "a `value` and another `content`"),
        ({"video": "a.mp4", "messages": [{"role": "user", "content": "q", "start": 1}]}, "has `start`, which is not used"),
        ({"video": "a.mp4", "messages": [{"role": "user", "content": "q", "mask": True}]}, "has `mask`, which is not used"),
        ({"video": "a.mp4", "question": "q", "answer": {"role": "user", "content": "x"}}, "must be a message of the assistant"),
    ],
)
def test_what_changes_a_row_is_not_dropped(row: dict[str, object], message: str) -> None:
    with pytest.raises(BadRow, match=re.escape(message)):
        parse_sample(row)


def test_numbers_that_options_begin_with_are_theirs() -> None:
    row = {"video": "a.mp4", "question": "q", "options": ["1. cat", "2. dog", "3. cow"], "answer": "1"}
    assert parse_sample(row).turns[0].answer.endswith("cat")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_an_object_with_one_name_twice(folder: Path, name: str) -> None:
    row = '{"video": "a.mp4", "question": "q", "answer": "x", "answer": "y"}'
    (folder / name).write_text(row if name.endswith("l") else f"[{row}]", encoding="utf-8")
    with pytest.raises(UserError, match=r"not valid JSON \(`answer` stands twice in one object\)"):
        load_samples(str(folder / name))


def test_a_table_with_one_column_twice(folder: Path) -> None:
    from minirlaif.data.tables import table_rows

    (folder / "rows.csv").write_text("video,question,answer,answer\na.mp4,q,x,y\n", encoding="utf-8")
    with pytest.raises(UserError, match="column `answer` stands twice in its first line"):
        table_rows(folder / "rows.csv")


def test_questions_of_a_clip_that_name_another(folder: Path) -> None:
    (folder / "questions.json").write_text(json.dumps({"a.mp4": [{"question": "q", "video": "b.mp4"}]}), encoding="utf-8")
    with pytest.raises(UserError, match="a question of a.mp4 names another clip, b.mp4"):
        load_samples(str(folder), need_answers=False)


def test_a_file_that_may_be_a_part_of_another(folder: Path) -> None:
    (folder / "a.mp4#t=1,2").write_bytes(b"clip")
    assert "a.mp4#t=1,2 is a file, and also a part of a.mp4: rename the file" in refusal(folder, ROW | {"video": "a.mp4#t=1,2"})
