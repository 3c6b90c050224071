"""Run folders: manifest last, resume from the last state, nothing tampered with, a full disk is one line."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from minirlaif.errors import StageStopped, UserError
from minirlaif.runs import io, records, stage_dir
from minirlaif.runs.run import Run
from minirlaif.runs.status import status_table


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return Run(runs_dir / "r")


def make(run: Run, name: str = "sft", text: str = "weights", config: dict | None = None, inputs=(), redo=False) -> bool:
    with run.stage(name, config or {"sft": {"epochs": 1.0}}, inputs, redo=redo) as out:
        if out is None:
            return False
        (out.path / "adapter").mkdir()
        (out.path / "adapter" / "w.bin").write_text(text)
        out.log(1, loss=0.5, clock=time.monotonic())
        out.summary["loss"] = 0.5
        out.counters["decodes"] = 7
    return True


# What the crash tests run in a process of its own: 6 steps, a state after each second one, killed after step CRASH's lines.
STAGE = """
import os, sys, json
from pathlib import Path
from minirlaif.runs.run import Run

root, crash = sys.argv[1], sys.argv[2]
with Run(root).stage("ppo", {"n": 6}) as out:
    resumed = out.resume()
    step, total = (resumed[0], json.loads((resumed[1] / "total.json").read_text())) if resumed else (0, 0)
    print("from", step)
    while step < 6:
        step += 1
        total = total * 3 + step
        out.log(step, total=total)
        out.sample({"step": step})
        for name in ["extra.jsonl"] + ["late.jsonl"] * (step > 2):
            with (out.path / name).open("a") as file:
                file.write(f"{step}\\n")
        out.counters["steps"] = out.counters.get("steps", 0) + 1
        if crash == f"line {step}":
            os._exit(9)
        if step % 2 == 0:
            def write(folder):
                (folder / "total.json").write_text(json.dumps(total))
                if crash == f"write {step}":
                    os._exit(9)
            if crash == f"swap {step}":
                real = Path.rename
                def rename(self, target):
                    result = real(self, target)
                    if self.name == "state":
                        os._exit(9)
                    return result
                Path.rename = rename
            out.commit_state(step, write)
    (out.path / "final.txt").write_text(str(total))
    if crash == "publish":
        Run._publish = lambda self, name: os._exit(9)
"""


def outcome(run: Run) -> dict[str, str]:
    folder = run.dir("ppo")
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize(
    ("crash", "resumed_from"),
    [("line 1", 0), ("line 3", 2), ("line 5", 4), ("write 4", 2), ("swap 4", 4), ("line 6", 4)],
)
def test_killed_stage_goes_on_with_the_same_result(runs_dir: Path, python, crash: str, resumed_from: int):
    straight, killed = Run(runs_dir / "straight"), Run(runs_dir / "killed")
    assert python("-c", STAGE, str(straight.root), "never").returncode == 0
    assert python("-c", STAGE, str(killed.root), crash).returncode == 9
    assert not killed.dir("ppo").exists() and killed.partial("ppo").is_dir()
    with pytest.raises(UserError, match="not finished"):
        killed.require("ppo")
    again = python("-c", STAGE, str(killed.root), "never")
    assert again.stdout.splitlines()[0] == f"from {resumed_from}", again.stderr
    assert outcome(killed) == outcome(straight)
    assert (killed.dir("ppo") / "extra.jsonl").read_text() == "1\n2\n3\n4\n5\n6\n"  # cut at the state, then written again
    assert (killed.dir("ppo") / "late.jsonl").read_text() == "3\n4\n5\n6\n"  # not there at state 2, so it goes
    assert len((killed.dir("ppo") / "metrics.jsonl").read_text().splitlines()) == 6
    old, new = straight.manifest("ppo"), killed.manifest("ppo")
    assert new["counters"] == {"steps": 6}
    assert new["identity"] == old["identity"]
    assert not killed.partial("ppo").exists()


def test_killed_between_manifest_and_rename(runs_dir: Path, python):
    run = Run(runs_dir / "r")
    assert python("-c", STAGE, str(run.root), "publish").returncode == 9
    assert (run.partial("ppo") / "manifest.json").exists() and not run.dir("ppo").exists()
    with run.stage("ppo", {"n": 6}) as out:
        assert out is None
    assert sorted(outcome(run)) == ["extra.jsonl", "final.txt", "late.jsonl", "metrics.jsonl", "samples.jsonl"]


def test_exact_files_and_manifest(run: Run):
    assert make(run)
    assert sorted(path.relative_to(run.root).as_posix() for path in run.root.rglob("*") if path.is_file()) == [
        "sft/adapter/w.bin",
        "sft/manifest.json",
        "sft/metrics.jsonl",
    ]
    manifest = run.manifest("sft")
    assert sorted(manifest["outputs"]) == ["adapter/w.bin", "metrics.jsonl"]
    assert manifest["outputs"]["adapter/w.bin"] == {
        "bytes": 7,
        # printf weights | sha256sum
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }
    assert manifest["metrics"] == {"loss": 0.5} and manifest["counters"] == {"decodes": 7}
    assert manifest["config"] == {"sft": {"epochs": 1.0}} and manifest["inputs"] == {}
    assert manifest["versions"]["torch"] and manifest["seconds"] >= 0


def test_finished_stage_is_skipped_and_says_so(run: Run, capsys):
    assert make(run)
    assert not make(run)
    assert "sft: finished already" in capsys.readouterr().out


def test_other_settings_need_redo(run: Run):
    make(run)
    with pytest.raises(UserError, match=r"sft\.epochs 1\.0 -> 2\.0.*--redo"):
        make(run, config={"sft": {"epochs": 2.0}})
    assert make(run, text="other", config={"sft": {"epochs": 2.0}}, redo=True)
    assert (run.dir("sft") / "adapter" / "w.bin").read_text() == "other"
    assert not (run.root / "sft.old").exists()


def test_names_of_folders_in_a_setting_that_is_published(run: Run):
    """A stage that was made when its manifest still named them is finished."""
    data = {"sha256": {"/one/rows.json": "12", "/two/rows.json": "34"}, "videos": "/one/clips"}
    make(run, config={"model": {"base": "/one/base"}, "data": data})
    named = {"sha256": {"rows.json": "12", "rows.json (2)": "34"}, "videos": "clips"}
    assert io.without_folders({"data": data}) == {"data": named}
    assert not make(run, config={"model": {"base": "base"}, "data": named})
    with pytest.raises(UserError, match="model.base"):
        make(run, config={"model": {"base": "/two/base"}, "data": data})


def test_failed_redo_keeps_the_old_stage_aside(run: Run):
    make(run)
    with pytest.raises(ZeroDivisionError), run.stage("sft", {}, redo=True):
        raise ZeroDivisionError
    assert (run.root / "sft.old" / "adapter" / "w.bin").read_text() == "weights"


def test_the_command_that_makes_a_stage_again(tmp_path: Path):
    """It names what stands on the stage, nothing before it, and the settings in force; a name with a space is quoted."""
    run = Run(tmp_path / "my runs" / "a b", ["--config", "c.yaml", "--set", "seed=1"])
    make(run)
    flags = f"--config c.yaml --set seed=1 --run 'a b' --runs-dir '{tmp_path}/my runs' --redo"
    assert run.remake("sft") == f"python -m minirlaif sft {flags}"
    make(run, "feedback", inputs=["sft"])
    run.partial("reward").mkdir()
    (run.root / "report.html").touch()
    assert run.remake("sft") == f"python -m minirlaif run sft feedback reward report {flags}"
    assert "run feedback reward report" in run.remake("feedback") and "minirlaif pretrain" in run.remake("pretrain")
    assert "--set seed=1 ppo.clip=0.1 --run" in run.remake("ppo", "ppo.clip=0.1")
    with pytest.raises(UserError) as caught:
        make(run, config={"sft": {"epochs": 2.0}})
    assert f"`{run.remake('sft')}`" in str(caught.value)
    (run.root / "config.yaml").touch()
    command = Run(run.root).remake("evaluate", "evaluate.gallery=3")
    assert f"--config '{run.root}/config.yaml' --set evaluate.gallery=3 --run" in command


def test_an_error_in_a_stage_gets_the_command(run: Run):
    with pytest.raises(StageStopped) as caught, run.stage("sft", {}):
        raise StageStopped("sft: loss is nan; start again", again=("sft.learning_rate=…",))
    assert str(caught.value).startswith("sft: loss is nan; start again: `python -m minirlaif sft")
    assert "--set sft.learning_rate=… --run r" in str(caught.value) and str(caught.value).endswith("--redo`")


def test_a_state_is_due_by_steps_and_by_time(run: Run, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stage_dir.time, "monotonic", lambda: now[0])
    with run.stage("sft", {}) as out:
        assert [step for step in range(1, 7) if out.due(step, 3)] == [3, 6]
        now[0] += stage_dir.SAVE_SECONDS
        assert out.due(7, 3)
        out.commit_state(7, lambda folder: None)
        assert not out.due(8, 3)


def test_other_settings_do_not_go_on_from_a_state(run: Run):
    with pytest.raises(ZeroDivisionError), run.stage("sft", {"a": 1}) as out:
        out.commit_state(1, lambda folder: None)
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"a 1 -> 2.*--redo"), run.stage("sft", {"a": 2}):
        pass
    with run.stage("sft", {"a": 2}, redo=True) as out:
        assert out.resume() is None


def test_without_a_state_other_settings_start_over(run: Run):
    with pytest.raises(ZeroDivisionError), run.stage("sft", {"a": 1}) as out:
        out.log(1, loss=1.0)
        raise ZeroDivisionError
    with run.stage("sft", {"a": 2}) as out:
        assert out.resume() is None and not (out.path / "metrics.jsonl").exists()


def test_require_names_the_command(run: Run):
    with pytest.raises(UserError, match=r"does not exist yet; run `python -m minirlaif sft --config … --run r"):
        run.require("sft")
    with pytest.raises(UserError, match="sft: does not exist"), run.stage("feedback", {}, ["sft"]):
        pass
    assert not run.partial("feedback").exists()


@pytest.mark.parametrize("tamper", ["change", "remove"])
def test_tampered_output_is_refused(run: Run, tamper: str):
    make(run)
    path = run.dir("sft") / "adapter" / "w.bin"
    assert run.require("sft") == run.dir("sft")
    if tamper == "change":
        path.write_text("Weights")  # same length
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"w\.bin: (has changed|is missing)"):
        run.require("sft")


def test_broken_manifest_is_one_line(run: Run):
    make(run)
    (run.dir("sft") / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        run.require("sft")
    (run.dir("sft") / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a manifest of this version"):
        run.require("sft")


def test_moved_run_still_loads(run: Run, tmp_path: Path):
    make(run)
    make(run, "feedback", inputs=["sft"])
    shutil.move(run.root, tmp_path / "elsewhere")
    moved = Run(tmp_path / "elsewhere")
    assert moved.require("feedback") == tmp_path / "elsewhere" / "feedback"
    assert not make(moved, "feedback", inputs=["sft"])
    assert str(run.root) not in (moved.dir("feedback") / "manifest.json").read_text()


def test_remade_input_outdates_what_stands_on_it(run: Run):
    make(run)
    make(run, "feedback", inputs=["sft"])
    make(run, redo=True)  # the same bytes again: nothing is outdated
    assert run.outdated("feedback") == "" and not make(run, "feedback", inputs=["sft"])
    make(run, text="better", redo=True)
    with pytest.raises(UserError, match="feedback: made from another sft"):
        run.require("feedback")
    with pytest.raises(UserError, match="inputs.*--redo"):
        make(run, "feedback", inputs=["sft"])


def test_two_processes_cannot_fill_one_stage(run: Run):
    with run.stage("sft", {}):
        with pytest.raises(UserError, match="another process"), Run(run.root).stage("sft", {}):
            pass


def test_full_disk_keeps_the_last_state(run: Run, monkeypatch):
    real = records.write_atomic

    def full(path: Path, text: str) -> None:
        if path.name == "position.json" and json.loads(text)["step"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    monkeypatch.setattr(records, "write_atomic", full)
    with pytest.raises(StageStopped, match="disk is full") as caught, run.stage("sft", {}) as out:
        for step in (1, 2):
            out.log(step)
            out.commit_state(step, lambda folder, step=step: (folder / "x").write_text(str(step)))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    with run.stage("sft", {}) as out:
        step, state = out.resume()
        assert step == 1 and (state / "x").read_text() == "1"
        assert (out.path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("file", ["begun.json.new", "manifest.json.new"])
def test_full_disk_while_the_books_are_written(run: Run, monkeypatch, file: str):
    real = io.sync

    def full(path: Path) -> None:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(io, "sync", full)
    with pytest.raises(StageStopped, match="disk is full"):
        make(run)
    monkeypatch.undo()
    assert run.partial("sft").is_dir() and not run.dir("sft").exists()
    assert not [path for path in run.root.rglob("*.json*") if path.name in (file, file.removesuffix(".new"))]
    assert make(run)


def test_full_disk_in_other_words(tmp_path: Path):
    assert io.disk_is_full(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert not io.disk_is_full(OSError(errno.EACCES, "Permission denied"), tmp_path)
    assert not io.disk_is_full(UserError("NaN loss"), tmp_path)


def test_numbers_in_logs(run: Run):
    class Tensor:
        def item(self) -> float:
            return 0.25

    with run.stage("sft", {}) as out:
        out.log(3, loss=float("nan"), share=Tensor(), pair=(1, 2))
        assert json.loads((out.path / "metrics.jsonl").read_text()) == {"step": 3, "loss": None, "share": 0.25, "pair": [1, 2]}


def write_moments(step: int, folder: Path) -> None:
    (folder / "moments").write_bytes(bytes([step]) * 80)


def saved(run: Run) -> None:
    """A stage that was killed after two commits, with lines, a file and a kept folder."""
    with pytest.raises(RuntimeError), run.stage("ppo", {"a": 1}) as out:
        for step in (1, 2):
            out.log(step, loss=step / 3)
            out.sample({"step": step, "text": "x" * 40})
            (out.kept(f"iteration-{step}") / "sub").mkdir(parents=True)
            (out.path / "kept" / f"iteration-{step}" / "sub" / "weights").write_bytes(bytes(range(64)))
            (out.path / "table.bin").write_bytes(b"table" * 20)
            write = partial(write_moments, step)
            out.commit_state(step, write, kept=f"iteration-{step}")
        out.log(3, loss=9.0)  # after the last commit
        raise RuntimeError


RELIED_ON = (
    "begun.json",
    "metrics.jsonl",
    "samples.jsonl",
    "table.bin",
    "kept/iteration-2/sub/weights",
    "state/moments",
    "state/position.json",
)
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "a tail of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "a bit": lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", RELIED_ON)
def test_damage_to_what_a_commit_relies_on_is_noticed(name: str, damage: str, run: Run) -> None:
    saved(run)
    path = run.partial("ppo") / name
    data = DAMAGE[damage](path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    if (name, damage) == ("state/position.json", "missing"):  # nothing was committed: it starts again
        with run.stage("ppo", {"a": 1}) as out:
            assert out.resume() is None
        return
    with pytest.raises(UserError) as caught, run.stage("ppo", {"a": 1}) as out:
        out.resume()
    text = str(caught.value)
    assert str(path) in text and "minirlaif ppo" in text and "--redo" in text and "\n" not in text


def test_what_came_after_a_commit_is_cut_off_and_what_it_relies_on_is_published(run: Run) -> None:
    saved(run)
    for name in ("new.jsonl", "manifest.json.new", "weights"):
        (run.partial("ppo") / name).write_text("{}\n")
    with run.stage("ppo", {"a": 1}) as out:
        step, state = out.resume()
        assert step == 2 and (state / "moments").read_bytes() == bytes([2]) * 80
        assert [json.loads(line)["step"] for line in (out.path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
        out.log(3, loss=1.0)
        out.commit_state(3, lambda folder: None, kept="iteration-2")  # lines are hashed on from where they were
        out.publish_kept("iteration-2", "adapter")
    assert {path.name for path in run.dir("ppo").iterdir()} == {
        "manifest.json", "metrics.jsonl", "samples.jsonl", "table.bin", "adapter",
    }  # fmt: skip
    assert (run.dir("ppo") / "adapter" / "sub" / "weights").read_bytes() == bytes(range(64))
    run.require("ppo")


def test_a_missing_manifest_is_noticed(run: Run) -> None:
    make(run)
    (run.dir("sft") / "manifest.json").unlink()
    with pytest.raises(UserError, match="sft: its manifest.json is missing; .*`python -m minirlaif sft .*--redo`"):
        make(run)
    assert make(run, redo=True)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "missing"])
def test_damage_to_a_manifest_is_noticed(damage: str, run: Run) -> None:
    with run.stage("sft", {"a": 1}) as out:
        out.summary["loss"] = 0.25
    path = run.dir("sft") / "manifest.json"
    path.write_bytes(DAMAGE[damage](path.read_bytes()) or b"")
    with pytest.raises(UserError, match=r"manifest.json: .*`python -m minirlaif sft"):
        run.require("sft")


def test_a_number_of_a_manifest_is_not_another(run: Run) -> None:
    with run.stage("sft", {"a": 1}) as out:
        out.summary["loss"] = 0.25
    path = run.dir("sft") / "manifest.json"
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(UserError, match="manifest.json: damaged, its content is not what was written"):
        run.manifest("sft")


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "missing"])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_damage_to_a_finished_stage_is_noticed_by_itself_and_by_what_is_made_of_it(stage: str, damage: str, run: Run) -> None:
    make(run)
    make(run, "feedback", inputs=["sft"])
    path = run.dir("sft") / "adapter" / "w.bin"
    path.write_bytes(DAMAGE[damage](path.read_bytes() + b"12345") or b"")
    with pytest.raises(UserError, match="w.bin: has changed since the stage finished; .*`python -m minirlaif run sft feedback"):
        make(run, stage, inputs=["feedback"] if stage == "reward" else [])


CONTENT = ("[]", "null", '{"seconds": "1"}', '{"seconds": 1e999}', "[" * 100_000, '{"metrics": {"rlaif": []}}', "\0", '"\\ud800"')


@pytest.mark.parametrize("content", CONTENT)
def test_a_run_with_any_content_has_a_status(content: str, run: Run) -> None:
    """Whatever lies in its files: other stages are shown, and a damaged one with what helps."""
    make(run)
    make(run, "feedback", inputs=["sft"])
    (run.dir("sft") / "manifest.json").write_text(content)
    for name in ("state/position.json", "metrics.jsonl"):
        (run.partial("ppo") / name).parent.mkdir(parents=True, exist_ok=True)
        (run.partial("ppo") / name).write_text(content)
    for name in ("report.json", "report.html", "config.yaml"):
        (run.root / name).write_text(content)
    rows = {line.split()[0]: line for line in status_table(run, run.stages).splitlines()}
    assert "damaged" in rows["sft"] and "`python -m minirlaif run sft feedback" in rows["sft"]
    assert "partial" in rows["ppo"] and "missing" in rows["evaluate"]


@pytest.mark.parametrize("change", [
    {"metrics": []}, {"inputs": 1}, {"outputs": {"a": 1}}, {"seconds": float("nan")}, {"identity": None}, {"seconds": 1e308},
    {"outputs": {"../../a": {"bytes": 1, "sha256": ""}}}, {"metrics": {"\ud800\x1b[2J": {"rlaif": "\ud800"}}, "seconds": -1e9},
    {"metrics": {"a\nb": "x" * 5000}},
])  # fmt: skip
def test_a_manifest_of_a_stranger_is_read_with_care(change: dict, run: Run) -> None:
    make(run)
    path = run.dir("sft") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change, records.SEAL: None}))
    table = status_table(run, run.stages)
    assert table.encode() and "\x1b" not in table and max(map(len, table.splitlines())) < 500
    assert len(table.splitlines()) == len(run.stages) + 1


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "missing"])
def test_settings_of_a_started_stage_are_read_with_care(damage: str, run: Run) -> None:
    saved(run)
    path = run.partial("ppo") / "begun.json"
    assert run.settings("ppo") == {"a": 1} and run.settings("sft") == {}
    path.write_bytes(DAMAGE[damage](path.read_bytes()) or b"")
    with pytest.raises(UserError, match=r"begun\.json: .*`python -m minirlaif ppo .*--redo`"):
        run.settings("ppo")


@pytest.mark.parametrize("name", ["sft", "cache"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_link_to_nothing_is_refused_before_the_work(name: str, target: str, run: Run) -> None:
    run.root.mkdir(parents=True, exist_ok=True)
    (run.root / name).symlink_to(name if target == "itself" else "gone")
    with pytest.raises(UserError, match=f"{name}: a link that leads nowhere; delete it, then run the command again"):
        with run.stage("sft", {}, inputs=[]):
            raise AssertionError("the work began")


def test_links_of_an_attempt_are_not_followed(run: Run, tmp_path: Path) -> None:
    """Neither one in its place, whose target would be emptied, nor one among its files."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    run.root.mkdir(parents=True)
    run.partial("sft").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"sft\.partial: a link, which is not followed; delete it"):
        make(run)
    make(run, redo=True)
    for name, target in (("kept", elsewhere), ("metrics.jsonl", elsewhere / "precious")):
        run.partial("ppo").mkdir()
        (run.partial("ppo") / name).symlink_to(target)
        with pytest.raises(UserError, match=f"{name}: a link"):
            make(run, "ppo")
        shutil.rmtree(run.partial("ppo"))
    assert [path.name for path in elsewhere.iterdir()] == ["precious"] and (elsewhere / "precious").read_text() == "x"
