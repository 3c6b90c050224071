"""Whatever a user can get wrong: one line, exit code 2, nothing lost. Through the command line, with the real stages."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minirlaif.cli import main
from tests.fixtures import clips, small_config

QUICK = ["video.frames=2", "sft.batch_size=1", "sft.save_steps=1", "sft.epochs=1", "sft.short_words=1", "model.lora_r=2"]


def conversation(video: str, question: str = "<video>\nwhat happens first?") -> dict[str, Any]:
    return {"video": video, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "a red circle."}]}


class CommandLine:
    """A folder with a good clip and good rows; `call` runs a command there and gives exit code and complaint."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        clips.write_clip(folder / "good.mp4", times=[n / 8 for n in range(16)])
        self.write("sft.json", [conversation("good.mp4", f"<video>\nquestion {n}?") for n in range(4)])
        self.run = folder / "runs" / "a"
        self.partial, self.adapter = self.run / "sft.partial", self.run / "sft" / "adapter" / "adapter_model.safetensors"

    def write(self, name: str, rows: Any) -> Path:
        path = self.folder / name
        path.write_text(json.dumps(rows))
        return path

    def call(self, verb: str, *settings: str) -> tuple[int, str]:
        flags = ["--config", str(small_config.TINY), "--run", "a", "--runs-dir", str(self.folder / "runs")]
        data = ['data.world=""', f"data.sft=[{self.folder / 'sft.json'}]"]
        self._capsys.readouterr()
        redo = [word for word in settings if word == "--redo"]
        code = main.main([verb, *flags, "--set", *data, *QUICK, *(word for word in settings if word not in redo), *redo])
        printed = self._capsys.readouterr().err
        assert "Traceback" not in printed
        complaints = [line for line in printed.splitlines() if line.startswith("minirlaif: ")]
        assert len(complaints) == (0 if code == 0 else 1), printed
        assert code == 0 or printed.rstrip("\n").splitlines()[-1] == complaints[0], "the complaint is the last line"
        return code, "".join(complaints)


@pytest.fixture
def command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(tmp_path, capsys)


# --- settings


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sft.learnin_rate=1", "sft.learnin_rate: no such setting (did you mean learning_rate?)"),
        ("ppo.iterations=many", "ppo.iterations"),
        ("video.frames=-3", "video.frames"),
        ("data.sft=7", "data.sft"),
    ],
)
def test_settings(command_line: CommandLine, setting: str, words: str):
    code, complaint = command_line.call("sft", setting)
    assert code == 2 and words.split(":")[0] in complaint and not command_line.run.exists()
    if "did you mean" in words:
        assert "did you mean" in complaint and "learning_rate" in complaint


# --- clips


def make_bad(kind: str, path: Path, good: Path) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a clip.\n" * 50)
    elif kind == "sound":
        clips.write_sound(path)
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif kind == "no frames":
        clips.write_no_frames(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "empty (0 bytes)"),
        ("text", "not a video file"),
        ("sound", "no video stream, only sound"),
        ("truncated", "cut short or broken"),
        ("no frames", "a video stream but no frames"),
    ],
)
def test_clips(command_line: CommandLine, kind: str, reason: str):
    bad = command_line.folder / "bad.mp4"
    make_bad(kind, bad, command_line.folder / "good.mp4")
    command_line.write("sft.json", [conversation("good.mp4"), conversation("bad.mp4")])
    code, complaint = command_line.call("sft")
    assert code == 2 and str(bad) in complaint and reason in complaint
    assert not (command_line.run / "sft").exists()
    if kind == "truncated":  # put right, the same command goes through
        clips.write_clip(bad)
        assert command_line.call("sft") == (0, "")


def test_unreadable_clips_can_be_left_out(command_line: CommandLine):
    (command_line.folder / "bad.mp4").touch()
    command_line.write("sft.json", [conversation("good.mp4"), conversation("bad.mp4")])
    assert command_line.call("sft", "video.max_unreadable=0.4")[0] == 2
    assert command_line.call("sft", "video.max_unreadable=0.5") == (0, "")


def test_what_is_left_out_is_listed(command_line: CommandLine):
    rows = [conversation("good.mp4", f"<video>\nquestion {n}?") for n in range(10)]
    command_line.write("sft.json", [*rows, conversation("gone.mp4"), conversation("good.mp4", "<video><video> two"), rows[0]])
    assert command_line.call("sft", "data.max_bad_rows=0.1")[0] == 2
    assert command_line.call("sft", "data.max_bad_rows=0.1", "video.max_unreadable=0.1") == (0, "")
    entries = [json.loads(line) for line in (command_line.run / "left_out.jsonl").read_text().splitlines()]
    assert [(entry["kind"], entry["row"]) for entry in entries] == [("bad row", 12), ("clip", 11), ("duplicate", 13)]
    manifest = json.loads((command_line.run / "sft" / "manifest.json").read_text())
    assert "max_bad_rows" not in manifest["config"]["data"] and manifest["metrics"]["long_rows"] == 10


def test_a_part_of_a_clip_and_a_masked_answer_go_through(command_line: CommandLine):
    row = conversation("good.mp4") | {"start": 0.5, "end": 1.5}
    row["conversations"] += [{"from": "human", "value": "and then?"}, {"from": "gpt", "value": "nothing.", "loss": False}]
    command_line.write("sft.json", [row])
    assert command_line.call("sft") == (0, "")
    shown = (command_line.run / "sft" / "samples.jsonl").read_text()
    assert "good.mp4#t=0.5,1.5" in shown
    command_line.write("sft.json", [row | {"start": 5, "end": 6}])
    code, complaint = command_line.call("sft", "--redo")
    assert code == 2 and "good.mp4#t=5,6: the part from 5 s lies behind the end of the clip at 2 s" in complaint


# --- rows

ROWS = {
    "more tags than clips": (conversation("good.mp4", "<video><video>\nwhat differs?"), "2 <video> tags but 1 clip"),
    "two clips": ({**conversation("good.mp4", "what differs?"), "video": ["good.mp4", "other.mp4"]}, "2 clips in one row"),
    "image token": (conversation("good.mp4", "<video>\nwhat does <image> show?"), "contains the token <image>"),
    "no answer": ({"video": "good.mp4", "question": "what happens?"}, "question 1 has no answer"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(command_line: CommandLine, name: str):
    row, words = ROWS[name]
    path = command_line.write("sft.json", [conversation("good.mp4"), row])
    code, complaint = command_line.call("sft")
    assert code == 2 and f"{path}, row 2: " in complaint and words in complaint
    assert not (command_line.run / "sft").exists()


def test_many_bad_rows_are_one_line(command_line: CommandLine):
    path = command_line.write("sft.json", [row for row, _ in ROWS.values()])
    code, complaint = command_line.call("sft")
    assert code == 2 and f"{path}: 4 bad rows, the first is row 1: 2 <video> tags" in complaint


@pytest.mark.parametrize("part", ["prompts", "dev", "test", "preferences"])
def test_rows_of_later_stages_are_looked_at_before_anything_trains(command_line: CommandLine, part: str):
    good = {"id": "1", "video": "good.mp4", "question": "what happens?", "chosen": "a.", "rejected": "b."}
    path = command_line.write("more.json", [good, {**good, "video": "gone.mp4"}])
    code, complaint = command_line.call("sft", f"data.{part}=[{path}]")
    assert code == 2 and f"{path}, row 2: " in complaint and "gone.mp4 does not exist" in complaint
    assert not (command_line.partial / "metrics.jsonl").exists(), "it trained before it looked"


def test_clips_of_later_stages_are_looked_at_before_anything_trains(command_line: CommandLine):
    (command_line.folder / "bad.mp4").touch()
    path = command_line.write("more.json", [{"video": "bad.mp4", "question": "what happens?"}])
    code, complaint = command_line.call("sft", f"data.prompts=[{path}]")
    assert (
        code == 2
        and "bad.mp4: the file is empty (0 bytes)" in complaint
        and not (command_line.partial / "metrics.jsonl").exists()
    )


@pytest.mark.parametrize("part", ["prompts", "dev", "preferences", "test"])
def test_clips_are_opened_before_anything_trains_but_those_of_the_test(command_line: CommandLine, part: str):
    (command_line.folder / "bad.mp4").touch()
    row = {"question": "what happens?", "chosen": "a.", "rejected": "b."}
    path = command_line.write("more.json", [{"video": "bad.mp4", **row}, {"video": "good.mp4", **row}])
    code, complaint = command_line.call("sft", f"data.{part}=[{path}]", "sft.epochs=0.25")
    if part == "test":
        assert (code, complaint) == (0, "")
        return
    assert (
        code == 2
        and "bad.mp4: the file is empty (0 bytes)" in complaint
        and not (command_line.partial / "metrics.jsonl").exists()
    )
    assert command_line.call("sft", f"data.{part}=[{path}]", "video.max_unreadable=0.5", "sft.epochs=0.25") == (0, "")


def test_a_row_that_is_too_long_is_named_before_anything_trains(command_line: CommandLine):
    long = conversation("good.mp4", "<video>\n" + "and then? " * 300)
    short = conversation("good.mp4", "<video>\nwhat?")
    path = command_line.write("sft.json", [conversation("good.mp4"), long, short, {**long, "id": "4"}])
    code, complaint = command_line.call("sft", "sft.max_length=500")
    assert code == 2 and f"{path}:2: a conversation has" in complaint and "sft.max_length allows 500" in complaint
    assert "(1 more rows are too long)" in complaint and not (command_line.partial / "metrics.jsonl").exists()


def test_a_run_on_the_world_is_looked_at_too(command_line: CommandLine):
    sizes = [f"world.{part}_clips=1" for part in ("sft_short", "sft", "prompt", "dev", "test")]
    world = ["data.world=tiny", "data.sft=[]", *sizes]
    assert command_line.call("world", *world)[0] == 0
    code, complaint = command_line.call("sft", *world, "sft.max_length=20")
    assert code == 2 and "sft.jsonl:1: a conversation has" in complaint
    path = command_line.write("more.json", [{"video": "gone.mp4", "question": "what?", "chosen": "a.", "rejected": "b."}])
    code, complaint = command_line.call("sft", *world, f"data.preferences=[{path}]")
    assert code == 2 and f"{path}, row 1: " in complaint and not (command_line.partial / "metrics.jsonl").exists()


def test_rows_that_changed_are_noticed_where_they_are_read(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch):
    from minirlaif.stages import sft

    changed = command_line.write("prompts.json", [{"video": "good.mp4", "question": "what?"}])
    rows = json.loads((command_line.folder / "sft.json").read_text())
    real, losses = sft.sft_loss, []

    def stopped(*arguments: Any) -> Any:
        losses.append(1)
        return real(*arguments) * (float("nan") if len(losses) == 3 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "sft_loss", stopped)
        assert command_line.call("sft")[0] == 2 and (command_line.partial / "state").is_dir()
    rows[0]["conversations"][1]["value"] = "another answer."
    command_line.write("sft.json", rows)
    code, complaint = command_line.call("sft")
    assert code == 2 and "sft.json" in complaint and "begun with other settings" in complaint, "it went on over other rows"
    assert command_line.call("sft", f"data.prompts=[{changed}]")[0] == 2  # still the old attempt
    rows[0]["conversations"][1]["value"] = "a red circle."
    command_line.write("sft.json", rows)
    assert command_line.call("sft", f"data.prompts=[{changed}]") == (0, ""), "other parts of the data are none of its business"
    assert command_line.call("sft", f"data.test=[{changed}]", "data.preferences=[owner/name]") == (0, "")
    rows[0]["conversations"][1]["value"] = "another answer."
    command_line.write("sft.json", rows)
    code, complaint = command_line.call("sft")
    assert code == 2 and "sft.json" in complaint and "made with other settings" in complaint and "--redo`" in complaint


def test_a_clip_whose_name_is_no_text(command_line: CommandLine):
    folder = command_line.folder / "clips"
    folder.mkdir()
    (folder / "questions.txt").write_text("what?\n")
    clips.write_clip(folder / "fine.mp4")
    os.rename(folder / "fine.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
    code, complaint = command_line.call("sft", f"data.prompts=[{folder}]")
    assert code == 2 and "row 1: the name of clip" in complaint and "caf\\udce9.mp4' is not UTF-8: rename" in complaint


def test_a_feature_cache_that_is_none(command_line: CommandLine):
    cache = command_line.run / "cache" / "features.sqlite"
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"garbage" * 1000)
    code, complaint = command_line.call("sft")
    assert code == 2 and f"{cache}: damaged, or not such a file" in complaint and "delete it" in complaint
    cache.unlink()
    assert command_line.call("sft") == (0, "")
    with cache.open("r+b") as file:  # whole at its start, spoilt further on
        file.seek(4096)
        file.write(b"\xff" * (cache.stat().st_size - 4096))
    code, complaint = command_line.call("sft", "--redo")
    assert code == 2 and "delete it, it is made again" in complaint


# --- stages


@pytest.mark.parametrize(("stage", "first"), [("feedback", "sft"), ("reward", "sft"), ("ppo", "sft"), ("evaluate", "sft")])
def test_a_stage_before_its_predecessor(command_line: CommandLine, stage: str, first: str):
    code, complaint = command_line.call(stage)
    assert code == 2 and f"run `python -m minirlaif {first} " in complaint
    assert {path.name for path in command_line.run.iterdir()} == {"config.yaml"}


def test_sft_before_its_world(command_line: CommandLine):
    code, complaint = command_line.call("sft", "data.world=tiny", "data.sft=[]")
    assert code == 2 and "run `python -m minirlaif world " in complaint


def test_a_run_of_another_base_model(command_line: CommandLine):
    assert command_line.call("sft")[0] == 0
    before = {name: (command_line.run / name).read_bytes() for name in ("config.yaml", "sft/manifest.json")}
    code, complaint = command_line.call("sft", "model.base=some/other")
    assert code == 2 and "made with model.base tiny, the settings now say some/other" in complaint
    assert {name: (command_line.run / name).read_bytes() for name in before} == before


def test_no_part_of_the_data_is_named(command_line: CommandLine):
    assert command_line.call("sft")[0] == 0
    code, complaint = command_line.call("feedback")
    assert code == 2 and "data.prompts: names no file" in complaint and command_line.adapter.is_file()


# --- interruptions: the last good state stays, and the same command ends with the same bytes


def full_disk(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_safetensors(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def not_a_number(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return real(*arguments, **named) * float("nan")


def ctrl_c(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with the signal ignored
    os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **named)


FAULTS = {
    "disk full in a state": ("training.optim.save_optimizer", full_disk, 2, "the disk is full"),
    "disk full in weights": ("training.optim.save_optimizer", full_disk_in_safetensors, 2, "the disk is full"),
    "not a number": ("stages.sft.sft_loss", not_a_number, 2, "sft: loss is nan at step 3"),
    "ctrl-c": ("training.optim.optimizer_step", ctrl_c, 130, "to resume from the last saved step"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_interruptions_lose_nothing(command_line: CommandLine, fault: str, monkeypatch: pytest.MonkeyPatch):
    assert command_line.call("sft") == (0, "")
    expected = command_line.adapter.read_bytes()
    command_line.run.rename(command_line.run.with_name("uninterrupted"))
    name, strike, code, words = FAULTS[fault]
    module, _, function = name.rpartition(".")
    owner = importlib.import_module(f"minirlaif.{module}")
    real, calls = getattr(owner, function), []

    def struck(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return strike(real, *arguments, **named) if len(calls) == 3 else real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, struck)
        actual, complaint = command_line.call("sft")
    assert actual == code and words in complaint
    assert not (command_line.run / "sft").exists()
    assert json.loads((command_line.partial / "state" / "position.json").read_text())["step"] == 2, "the last good state"
    assert command_line.call("sft") == (0, "")
    assert command_line.adapter.read_bytes() == expected
    assert [row["step"] for row in small_config.lines(command_line.run / "sft" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_learning_rate_that_explodes(command_line: CommandLine):
    code, complaint = command_line.call("sft", "sft.learning_rate=1e30", "sft.schedule=constant")
    assert code == 2 and "at step 2" in complaint and "lower sft.learning_rate" in complaint
    assert json.loads((command_line.partial / "state" / "position.json").read_text())["step"] == 1


def test_a_full_disk_at_the_end_keeps_the_state(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch):
    """The last write of a stage is its adapter; everything before it was committed."""
    from minirlaif.models.adapters import AdapterSet

    real = AdapterSet.save

    def save(self: AdapterSet, role: str, folder: Path) -> None:
        if folder.name == "adapter":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        real(self, role, folder)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterSet, "save", save)
        code, complaint = command_line.call("sft")
    assert code == 2 and "the disk is full" in complaint
    assert json.loads((command_line.partial / "state" / "position.json").read_text())["step"] == 4
    assert command_line.call("sft") == (0, "") and command_line.adapter.is_file()
    assert json.loads((command_line.run / "sft" / "manifest.json").read_text())["metrics"]["loss"] > 0, "no step was left to make"
