"""Data in: every format gives the same records, every kind of bad row is named with file and row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minirlaif.data import formats
from minirlaif.data.dataset import load_preferences, load_samples
from minirlaif.data.left_out import RowRules
from minirlaif.errors import UserError
from minirlaif.types import Turn

ASKED = "What happens second?"
TURNS = (Turn(ASKED, "The ball rolls left."),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips (never opened here) beside the data files."""
    for name in ("a.mp4", "v_b.MKV"):
        (tmp_path / name).write_bytes(b"clip")
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> str:
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def error(source: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_samples(source, **options)
    return str(caught.value)


def own(video: str = "a.mp4", question: str = ASKED, answer: Any = "The ball rolls left.", **more: Any) -> dict[str, Any]:
    return {"video": video, "question": question, "answer": answer, **more}


def llava(question: str = f"<video>\n{ASKED}", answer: str = "The ball rolls left.", **more: Any) -> dict[str, Any]:
    return {"video": "a.mp4", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]} | more


SAID = {"role": "assistant", "content": TURNS[0].answer}
SAID_IN_PARTS = {"role": "assistant", "content": [{"type": "text", "text": TURNS[0].answer}]}  # parquet cannot mix text and parts
FORMATS: dict[str, dict[str, Any]] = {
    "ours": own(),
    "llava": llava(),
    "llava, tag last": llava(f"{ASKED}\n<video>"),
    "llava with role and content": llava() | {"conversations": [{"role": "user", "content": f"<video>{ASKED}"}, SAID]},
    "openai": {"videos": ["a.mp4"], "messages": [{"role": "user", "content": f"<video>{ASKED}"}, SAID]},
    "parts with path": {
        "messages": [
            {"role": "user", "content": [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": ASKED}]},
            SAID_IN_PARTS,
        ]
    },
    "parts with column": {
        "videos": [{"path": "a.mp4", "bytes": None}],
        "messages": [
            {"role": "user", "content": [{"type": "video", "video": None}, {"type": "text", "text": ASKED}]},
            SAID_IN_PARTS,
        ],
    },
    "videoinstruct": {"q": ASKED, "a": "The ball rolls left.", "video_id": "a"},
    "benchmark": {"Q": ASKED, "A": "The ball rolls left.", "video_name": "a"},
    "trl": {"prompt": [{"role": "user", "content": ASKED}], "completion": [SAID], "videos": ["a.mp4"]},
    "paper with a clip": {k: v for k, v in llava(f"<image>\n{ASKED}").items() if k != "video"} | {"images": ["a.mp4"]},
    "older hub sets": llava() | {"conversations": {"from": ["human", "gpt"], "value": [f"<video>{ASKED}", TURNS[0].answer]}},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("file", ["rows.json", "rows.jsonl", "rows.parquet"])
def test_formats_read_alike(folder: Path, name: str, file: str) -> None:
    row = FORMATS[name]
    if file.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist([row]), folder / file)
        source = str(folder / file)
    else:
        source = write(folder, row, name=file)
    (sample,) = load_samples(source)
    assert sample.turns == TURNS
    assert sample.video == str(folder / "a.mp4")
    assert sample.where == f"{source}:1"
    assert dict(sample.tags) == {}


def test_clip_is_found_by_stem_and_relative_to_videos(folder: Path) -> None:
    (folder / "data").mkdir()
    source = write(folder / "data", own("v_b"), own("b"), own("a.mp4"), own(str(folder / "a.mp4"), "Where?"))
    videos = [Path(sample.video).name for sample in load_samples(source, str(folder))]
    assert videos == ["v_b.MKV", "v_b.MKV", "a.mp4", "a.mp4"]
    assert "row 3: clip" in error(source) and "data.videos" in error(source)  # without `videos`: the file's own folder
    (folder / "v_b.mp4").touch()
    assert "row 1: clip v_b is there more than once" in error(source, videos=str(folder))


def test_ragged_rows_keep_their_own_columns_and_types(folder: Path) -> None:
    source = write(folder, own(id="2020-01-01", type="order"), own(question="Why?", id=7, world={"n": [1]}), own(question="How?"))
    first, second, third = load_samples(source)
    assert (first.id, dict(first.tags)) == ("2020-01-01", {"type": "order"})
    assert (second.id, dict(second.tags)) == ("7", {"world": '{"n": [1]}'})
    assert dict(third.tags) == {} and len(third.id) == 16


def test_ids_are_own_where_unique_and_content_otherwise(folder: Path) -> None:
    rows = [own(id="x"), own(question="Why?", id="x"), own(question="How?", id="y"), own(question="Who?")]
    ids = [sample.id for sample in load_samples(write(folder, *rows))]
    assert ids[2] == "y" and len(set(ids)) == 4
    assert load_samples(write(folder, rows[3], rows[0], name="other.jsonl"))[0].id == ids[3]  # not the place in the file
    assert load_samples(write(folder, own(question="Who?", answer="Nobody."), name="third.jsonl"))[0].id != ids[3]


def test_repetitions_of_a_row_are_left_out_and_listed(folder: Path) -> None:
    rules = RowRules()
    samples = load_samples(write(folder, own(id="x"), own(question="Why?"), own(id="x"), own(id="y")), rules=rules)
    assert [sample.where[-1] for sample in samples] == ["1", "2", "4"]  # a row with an id of its own is another row
    (entry,) = rules.left_out
    assert (entry.kind, entry.row, entry.reason) == ("duplicate", 3, "repeats row 1 (same clip and text)")


def test_turns_and_system_turns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = llava()
    row["conversations"] = [{"from": "system", "value": "Be brief."}, *row["conversations"]]
    row["conversations"] += [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": "It stops."}]
    source = write(folder, row | {"id": "c"})
    (sample,) = load_samples(source)
    assert sample.turns == (*TURNS, Turn("And then?", "It stops."))
    assert dict(sample.tags) == {"system": "Be brief."}
    assert "the system turns of 1 row are kept as tags; the model is not shown them" in capsys.readouterr().out
    prompts = load_samples(source, need_answers=False)
    assert [(prompt.id, prompt.turns) for prompt in prompts] == [("c", TURNS), ("c#2", (Turn("And then?", "It stops."),))]


def test_prompts_may_lack_answers(folder: Path) -> None:
    row = llava()
    row["conversations"].pop()
    source = write(folder, row, {"prompt": "Why?", "videos": "a.mp4"}, own(answer=2), own(question="Who?", answer=""))
    prompts = load_samples(source, need_answers=False)
    assert [prompt.turns[0].answer for prompt in prompts] == [None, None, "2", None]
    message = error(source)
    assert "row 1: question 1 has no answer" in message and "row 4: answer 1 is empty" in message and "row 3" not in message


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "two image tags": (llava(f"<image><image>\n{ASKED}"), "2 <image> tags but 1 clip"),
    "no clip": ({k: v for k, v in llava().items() if k != "video"}, "1 <video> tag but no clip"),
    "no clip, no tag": ({"question": ASKED, "answer": "x"}, "no clip: every row needs one in a `video` column"),
    "more tags than files": (llava("<video><video> Same?"), "2 <video> tags but 1 clip"),
    "more files than tags": (llava(videos=["a.mp4", "v_b.MKV"], video=None), "1 <video> tag but 2 clips"),
    "two clips": (llava("<video><video> Same?", videos=["a.mp4", "v_b.MKV"], video=None), "more than one is not supported"),
    "two clips, plain": ({"prompt": "Q?", "completion": "x", "videos": ["a.mp4", "v_b.MKV"]}, "more than one is not supported"),
    "tag inside": (llava("In <video> what falls?"), "question 1 contains the token <video>"),
    "tag in the answer": (llava(answer="<video>"), "answer 1 contains the token <video>"),
    "tag in a later question": (
        llava() | {"conversations": [*llava(ASKED)["conversations"], {"from": "human", "value": "<video> And?"}]},
        "question 2 contains the token <video>",
    ),
    "empty question": (llava("<video>\n "), "question 1 is empty"),
    "empty answer": (own(answer=" "), "answer 1 is empty"),
    "answer of a wrong type": (own(answer={"text": "x"}), "`answer` has no text"),
    "infinite answer": (own(answer=float("inf")), "`answer` must be text"),
    "missing clip": (own("c.mp4"), "c.mp4 does not exist"),
    "folder as clip": (own("."), "is a folder"),
    "impossible name": (own("a\0.mp4"), "cannot be a file name"),
    "endless name": (own("a" * 5000), "cannot be a file name"),
    "line break in a name": (own("a\nb.mp4"), "a b.mp4 does not exist"),
    "frame list": (
        {k: v for k, v in llava().items() if k != "video"} | {"images": ["f/1.jpg", "f/2.jpg"]},
        "holds frame pictures",
    ),
    "frame list in videos": (llava(videos=[["f/1.jpg", "f/2.jpg"]], video=None), "holds frame pictures"),
    "address": (own("https://example.org/a.mp4"), "is an address"),
    "answer first": (llava() | {"conversations": llava()["conversations"][::-1]}, "turn 1 is by the assistant"),
    "two questions in a row": (llava() | {"conversations": llava()["conversations"][:1] * 2, "videos": None}, "2 <video> tags"),
    "unknown role": (llava() | {"conversations": [{"from": "tool", "value": "<video>"}]}, "is by 'tool'"),
    "picture part": (
        {"videos": ["a.mp4"], "messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "part of type 'image'; known are text and video",
    ),
    "part and column differ": (FORMATS["parts with path"] | {"videos": ["v_b.MKV"]}, "1 <video> tag but 2 clips"),
    "only a system turn": ({"prompt": [{"role": "system", "content": "Hi."}], "video": "a.mp4"}, "has no question"),
    "no conversation": (llava() | {"conversations": []}, "must be a list of turns, this is empty"),
    "unknown format": ({"foo": 1, "video": "a.mp4"}, "it has `foo`, `video`"),
    "not an object": ("text", "must be an object with named columns, this is text"),
    "broken emoji": (own("a.mp4", "Why \ud83d?"), "contains an unpaired surrogate"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_named(folder: Path, name: str) -> None:
    row, expected = BAD_ROWS[name]
    source = write(folder, own(question="Why?"), row)
    message = error(source)
    assert message.startswith(f"{source}, row 2: ") and expected in message
    assert "\n" not in message


TOKENS = (
    "<image> <|im_start|> <|im_end|> <|endoftext|> <end_of_utterance> <fake_token_around_image> <global-img> <row_1_col_2>"
    " <|image_pad|> <|video_pad|> <|vision_start|> <start_of_turn> <end_of_turn> <start_of_image> <image_soft_token>"
    " <|turn> <turn|> </s> <bos> <audio>"
).split()


@pytest.mark.parametrize("token", TOKENS)
def test_chat_and_media_tokens_are_refused_by_name(folder: Path, token: str) -> None:
    source = write(folder, own(question=f"Why {token}?"), own(answer=f"So.{token}"))
    message = error(source)
    assert f"row 1: question 1 contains the token {token}" in message
    assert f"row 2: answer 1 contains the token {token}" in message


def test_harmless_brackets_stay(folder: Path) -> None:
    text = "Is 1 < 2 and a|b> c, <b>bold</b>, or x <|?"
    assert load_samples(write(folder, own(question=text)))[0].turns[0].question == text


def test_all_problems_come_together_first_twenty_shown(folder: Path) -> None:
    source = write(folder, own(), *[own("gone.mp4", str(number)) for number in range(30)])
    lines = error(source).splitlines()
    assert lines[0].startswith(f"{source}: 30 bad rows, the first is row 2: clip ")
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"  row {number}" for number in range(3, 22)]
    assert lines[-1] == "  … and 10 more"


def test_broken_json_names_the_place(folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(own()) + '\n\n{"video": \n' + json.dumps(own("gone.mp4")) + "\n")
    message = error(str(path))
    assert "2 bad rows, the first is row 3: not valid JSON" in message and "row 4: clip" in message
    (folder / "rows.json").write_text('[\n{"video": "a.mp4"},\n{"video" 1}]')
    assert error(str(folder / "rows.json")).startswith(f"{folder / 'rows.json'}, line 3: not valid JSON")


def test_json_and_jsonl_are_told_apart_by_content(folder: Path) -> None:
    (folder / "lines.json").write_text(
        "\ufeff" + json.dumps(own()) + "\n" + json.dumps(own(question="Why\u2028?"), ensure_ascii=False)
    )
    assert [sample.where[-1] for sample in load_samples(str(folder / "lines.json"))] == ["1", "2"]
    (folder / "list.jsonl").write_text(json.dumps([own(), own(question="Why?")], indent=1))
    assert [sample.where[-1] for sample in load_samples(str(folder / "list.jsonl"))] == ["1", "2"]
    (folder / "object.json").write_text(json.dumps({"data": [own()]}, indent=1))
    assert "one object instead of a list of rows" in error(str(folder / "object.json"))


def test_files_that_hold_no_rows(folder: Path) -> None:
    for name, content, expected in [
        ("empty.jsonl", b"", "the file is empty"),
        ("none.json", b"[]", "holds no rows"),
        ("latin.jsonl", '{"video": "é"}'.encode("latin-1"), "not UTF-8 text"),
        ("text.parquet", b"hello", "cannot be read as parquet"),
        ("rows.csv", b"a,b", "only .json, .jsonl, .parquet"),
    ]:
        (folder / name).write_bytes(content)
        message = error(str(folder / name))
        assert expected in message and str(folder / name) in message and "\n" not in message
    assert error("data/gone.jsonl").startswith("data/gone.jsonl: no such file or folder (")  # not taken for a hub name
    assert "no such folder of clips" in error(str(folder / "none.json"), videos=str(folder / "gone"))


def test_folder_of_clips_with_questions(folder: Path) -> None:
    assert "no file of questions" in error(str(folder))
    (folder / "questions.txt").write_text(f"{ASKED}\n\nWhy?\n")
    samples = load_samples(str(folder), need_answers=False)
    assert [(Path(sample.video).name, sample.turns[0], sample.where[-2:]) for sample in samples] == [
        ("a.mp4", Turn(ASKED), ":1"),
        ("a.mp4", Turn("Why?"), ":3"),
        ("v_b.MKV", Turn(ASKED), ":1"),
        ("v_b.MKV", Turn("Why?"), ":3"),
    ]
    assert "has no answer" in error(str(folder))
    (folder / "questions.json").write_text(
        json.dumps({"v_b": [ASKED, {"question": "Why?", "answer": "So.", "type": "why"}], "a": "Who?"})
    )
    assert "questions.txt and questions.json" in error(str(folder))
    (folder / "questions.txt").unlink()
    samples = load_samples(str(folder), need_answers=False)
    assert [(Path(sample.video).name, sample.turns[0]) for sample in samples] == [
        ("v_b.MKV", Turn(ASKED)),
        ("v_b.MKV", Turn("Why?", "So.")),
        ("a.mp4", Turn("Who?")),
    ]
    assert dict(samples[1].tags) == {"type": "why"}
    (folder / "questions.json").write_text(json.dumps({"gone": ["Why?"], "a": 3, "v_b": []}))
    message = error(str(folder), need_answers=False)
    assert (
        "3 bad rows, the first is row 1: clip" in message
        and "a must have a list" in message
        and "v_b has no questions" in message
    )
    (folder / "questions.json").unlink()
    write(folder, own(), name="questions.jsonl")
    assert load_samples(str(folder))[0].turns == TURNS


def test_folder_without_clips(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("Why?")
    assert "no clips in the folder" in error(str(tmp_path), need_answers=False)


ASKS = {"role": "user", "content": ASKED}
PREFERENCES: dict[str, dict[str, Any]] = {
    "ours": {"question": ASKED, "chosen": "Left.", "rejected": "Right.", "video": "a.mp4"},
    "trl, text": {"prompt": f"<video>{ASKED}", "chosen": "Left.", "rejected": "Right.", "videos": ["a.mp4"]},
    "trl, messages": {
        "prompt": [ASKS],
        "chosen": [{"role": "assistant", "content": "Left."}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "Right."}]}],
        "videos": ["a.mp4"],
    },
    "trl, prompt inside": {
        "chosen": [ASKS, {"role": "assistant", "content": "Left."}],
        "rejected": [ASKS, {"role": "assistant", "content": "Right."}],
        "videos": ["a.mp4"],
    },
    "llama-factory": {
        "conversations": [{"from": "human", "value": f"<video>{ASKED}"}],
        "chosen": {"from": "gpt", "value": "Left."},
        "rejected": {"from": "gpt", "value": "Right."},
        "videos": ["a.mp4"],
    },
    "ms-swift": {
        "messages": [{"role": "user", "content": f"<video>{ASKED}"}, {"role": "assistant", "content": "Left."}],
        "rejected_response": "Right.",
        "videos": ["a.mp4"],
    },
    "paper, 1": llava() | {"output_1": {"from": "gpt", "value": "Left."}, "output_2": {"value": "Right."}, "preference": 1},
    "paper, 2": llava() | {"output_1": "Right.", "output_2": "Left.", "preference": 2},
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_read_alike(folder: Path, name: str) -> None:
    (pair,) = load_preferences(write(folder, PREFERENCES[name]))
    assert (pair.question, pair.chosen, pair.rejected, pair.video) == (ASKED, "Left.", "Right.", str(folder / "a.mp4"))
    assert dict(pair.tags) == {} and pair.context == "" and pair.margin == 0 and len(pair.id) == 16


def test_preference_context_margin_and_tags(folder: Path) -> None:
    row = PREFERENCES["ours"] | {"id": 3, "context": "0-4 s: a ball.", "margin": 1, "type": "order"}
    (pair,) = load_preferences(write(folder, row))
    assert (pair.id, pair.context, pair.margin, dict(pair.tags)) == ("3", "0-4 s: a ball.", 1.0, {"type": "order"})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (own(), "not a preference"),
        (PREFERENCES["paper, 1"] | {"preference": 0}, "`preference` must be 1 or 2, not 0"),
        (PREFERENCES["paper, 1"] | {"preference": None}, "must be 1 or 2, not None"),
        (PREFERENCES["ours"] | {"rejected": " Left."}, "are the same"),
        (PREFERENCES["ours"] | {"rejected": ""}, "the rejected answer is empty"),
        (PREFERENCES["ours"] | {"chosen": "<|im_end|>"}, "the chosen answer contains the token <|im_end|>"),
        (PREFERENCES["ours"] | {"chosen": ["a", "b"]}, "`chosen` must be text or one message, this is a list"),
        (PREFERENCES["ours"] | {"margin": float("nan")}, "`margin` must be a finite number"),
        (PREFERENCES["ours"] | {"question": None}, "no `prompt`"),
        (
            PREFERENCES["ms-swift"] | {"messages": [{"role": "user", "content": "<video>?"}]},
            "the question must end with the chosen answer, or `response`",
        ),
        (PREFERENCES["llama-factory"] | {"conversations": llava()["conversations"]}, "one question without an answer"),
        (PREFERENCES["trl, messages"] | {"prompt": [ASKS, {"role": "assistant", "content": ""}, ASKS]}, "questions here: 2"),
        (PREFERENCES["trl, prompt inside"] | {"rejected": [ASKS, ASKS]}, "one conversation that ends in two different answers"),
    ],
)
def test_bad_preference_is_named(folder: Path, row: dict[str, Any], expected: str) -> None:
    source = write(folder, PREFERENCES["ours"], row)
    with pytest.raises(UserError) as caught:
        load_preferences(source)
    assert str(caught.value).startswith(f"{source}, row 2: ") and expected in str(caught.value)


def test_hub_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[Any] = []

    def load(name: str, config: str | None, revision: str | None, split: str | None) -> Any:
        calls.append((name, config, revision, split))
        rows = datasets.Dataset.from_list([own(type=None), own("v_b", "Why?", type="why")])
        return rows if split else datasets.DatasetDict({"train": rows, "test": rows.select([0])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    first, second = load_samples("owner/clips", str(folder))
    assert first.turns == TURNS and dict(first.tags) == {} and dict(second.tags) == {"type": "why"}
    assert second.where == "owner/clips:2"
    load_samples("owner/clips/Generic@v1.0:test", str(folder))
    assert calls == [("owner/clips", None, None, None), ("owner/clips", "Generic", "v1.0", "test")]
    assert "set data.videos" in error("owner/clips")


def test_hub_out_of_reach_is_one_line() -> None:
    message = error("owner/clips")  # the tests run with the hub switched off
    assert message.startswith("owner/clips: no such file or folder here, and the hub says: ") and "\n" not in message


def test_hub_set_with_several_splits_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_list([own()])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"dev": rows, "test": rows}))
    assert "has the splits dev, test; name one, such as owner/clips:dev" in error("owner/clips")


def test_clip_inside_a_parquet_file_is_refused_undecoded(folder: Path) -> None:
    import datasets

    columns = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.Value("string"), "video": datasets.Video()}
    )
    rows = [own(video={"path": None, "bytes": b"clip"})]  # type: ignore[arg-type]
    datasets.Dataset.from_list(rows, features=columns).to_parquet(folder / "rows.parquet")
    assert "row 1: `video` holds the clip itself" in error(str(folder / "rows.parquet"))


def test_the_rows_shown_in_the_settings_page_are_read():
    """One line each of conversations, questions and test rows; the file's name stands before it."""
    shown = re.findall(r"^(\w+)\.jsonl +(\{.*\})$", (Path(__file__).parents[2] / ".github/docs/own-clips.md").read_text(), re.M)
    assert [name for name, _ in shown] == ["conversations", "questions", "test"]
    for name, line in shown:
        sample = formats.parse_sample(json.loads(line), need_answers=name == "conversations")
        assert sample.video.endswith(".mp4") and "<video>" not in sample.turns[0].question
        assert bool(sample.turns[0].answer) == (name != "questions")
