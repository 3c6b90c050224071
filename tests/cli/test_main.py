"""The command line: exit codes, one line per complaint, status, path, doctor. Stages are stand-ins here."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minirlaif import config
from minirlaif.cli import doctor, main
from minirlaif.cli import run as run_verbs
from minirlaif.errors import StageStopped
from minirlaif.runs import progress
from minirlaif.runs.run import Run
from minirlaif.stages.registry import METHODS, STAGES, Stage


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("data:\n  world: tiny\n")
    return path


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Stand-in stages that note their names; `failures` says what they raise."""
    names: list[str] = []

    def stage_function(name: str):
        def run(cfg: config.Config, run: Run, redo: bool = False) -> None:
            if name in failures:
                raise failures[name]
            with run.stage(name, {"seed": cfg.seed}, redo=redo) as out:
                if out is not None:
                    names.append(name)
                    out.log(5)
                    out.summary["accuracy"] = 0.51234

        return run

    monkeypatch.setattr(Stage, "load", lambda self: stage_function(self.name))
    failures.clear()
    return names


failures: dict[str, BaseException] = {}


@pytest.fixture
def call(settings: Path, runs_dir: Path, done: list[str], capsys):
    """Exit code, output and complaint of a command on run `a`."""

    def command(*words: str, flags: bool = True) -> tuple[int, str, str]:
        trains = words[0] not in ("status", "path", "doctor")
        extra = ["--run", "a", "--runs-dir", str(runs_dir), *(["--config", str(settings)] if trains else [])] if flags else []
        code = main.main([words[0], *extra, *words[1:]] if trains else [*words, *extra])
        text = capsys.readouterr()
        if code == 2:
            assert text.err.count("\n") == 1 and text.err.startswith("minirlaif: "), text.err
        return code, text.out, text.err

    return command


def test_run_makes_all_stages_in_order_and_skips_them_afterwards(call, done, runs_dir: Path):
    code, out, _ = call("run")
    assert code == 0 and done == ["world", "sft", "feedback", "reward", "ppo", "evaluate", "report"]
    assert "[1/7] world" in out and f"report: {runs_dir / 'a' / 'report.html'}" in out
    assert call("run")[0] == 0 and len(done) == 7
    assert yaml.safe_load((runs_dir / "a" / "config.yaml").read_text())["data"]["world"] == "tiny"


def test_a_whole_run_ends_with_an_export_where_it_is_enabled(call, runs_dir: Path, monkeypatch):
    exported: list[tuple[str, bool]] = []
    monkeypatch.setattr(run_verbs.export, "after_run", lambda cfg, run, redo: exported.append((run.root.name, redo)))
    call("run")
    call("sft", "--set", "export.enabled=true")
    call("run", "sft", "--set", "export.enabled=true")
    assert exported == []
    _, out, _ = call("run", "--set", "export.enabled=true")
    assert exported == [("a", False)] and out.endswith(f"GGUF: {runs_dir / 'a' / 'export'}\n")
    (runs_dir / "a" / "export").mkdir()
    assert call("run", "--redo", "--set", "export.enabled=true")[0] == 0
    assert exported[1:] == [("a", True)] and not (runs_dir / "a" / "export").exists()  # a stopped --redo goes on without it


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "/disk/r/sft.partial: read-only file system; choose another folder with --runs-dir"),
        (errno.EACCES, "/disk/r/sft.partial: permission denied; choose another folder"),
        (errno.EIO, "/disk/r/sft.partial: input/output error; see that the disk is there and nothing was renamed"),
        (errno.ENOENT, "/disk/r/sft.partial: no such file or directory; see that the disk is there"),
        (errno.ESTALE, "/disk/r/sft.partial: stale file handle; see that the disk is there"),
    ],
)
def test_a_failure_of_the_disk_is_one_line_with_its_file(code: int, words: str, call, monkeypatch):
    def fail(options: object) -> int:
        raise OSError(code, os.strerror(code), "/disk/r/sft.partial")

    monkeypatch.setattr(run_verbs, "_chosen", lambda options, *_: fail(options))
    exit_code, _, complaint = call("run")
    assert exit_code == 2 and words in complaint


def test_a_run_is_private(call, runs_dir: Path):
    call("run")
    assert (runs_dir / "a").stat().st_mode & 0o777 == 0o700
    (runs_dir / "a").chmod(0o750)
    call("run", "--redo")
    assert (runs_dir / "a").stat().st_mode & 0o777 == 0o750


def test_settings_that_did_not_change_are_not_written_again(call, runs_dir: Path, monkeypatch):
    call("run")
    monkeypatch.setattr(run_verbs, "write_atomic", lambda path, text: pytest.fail(f"{path} was written"))
    assert call("run")[0] == 0


def test_run_without_a_world(call, done):
    named = ["data.sft=a.json", "data.prompts=b.json", "data.test=c.json"]
    assert call("run", "--set", "data.world=", *named)[0] == 0
    assert done == ["sft", "feedback", "reward", "ppo", "evaluate", "report"]
    assert "data.world is empty" in call("world", "--set", "data.world=")[2]


def test_run_takes_several_stages_in_any_order(settings: Path, runs_dir: Path, done):
    assert main.main(["run", "ppo", "sft", "--config", str(settings), "--run", "b", "--runs-dir", str(runs_dir)]) == 0
    assert done == ["sft", "ppo"]


def test_one_verb_per_stage(call, done):
    assert "questions: this run writes none; name a folder of clips with data.clips" in call("questions")[2]
    names = [name for name in STAGES if name != "questions"]  # which tests/test_run_from_clips.py calls
    for name in names:
        settings = ["feedback.context_answers=1", "feedback.readout=likelihood", "rollout.samples_per_prompt=2"]
        needs = ["--set", f"optimize.methods=[{name}]", *settings] if name in METHODS else []
        assert call(name, *needs)[0] == 0, name
    assert done == names


def test_redo(call, done):
    call("sft")
    assert call("sft", "--redo")[0] == 0 and done == ["sft", "sft"]
    assert call("run", "--redo")[0] == 0 and len(done) == 9


def test_run_redo_that_was_stopped_goes_on_without_redo(call, done):
    call("run")
    done.clear()
    failures["reward"] = KeyboardInterrupt()
    code, _, complaint = call("run", "--redo", "--set", "seed=1")
    assert code == 130 and complaint.count("\n") == 1 and "--redo" not in complaint
    assert done == ["world", "sft", "feedback"]
    failures.clear()
    assert call("run", "--set", "seed=1")[0] == 0
    assert done == ["world", "sft", "feedback", "reward", "ppo", "evaluate", "report"]


def test_ctrl_c_names_the_command_that_goes_on(call):
    failures["sft"] = KeyboardInterrupt()
    code, _, complaint = call("sft", "--set", "rollout.kl_coef=0.2")
    assert code == 130
    assert (
        "run `python -m minirlaif sft --run a" in complaint
        and "--set rollout.kl_coef=0.2` again to resume from the last saved step" in complaint
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("sft", "--set", "ppo.clp=1"), "did you mean ppo.clip?"),
        (("sft", "--set", "model.base=4"), "model.base must be text"),
        (("sft", "--frobnicate"), "unrecognized arguments: --frobnicate"),
        (("run", "--set", "seed"), "write section.field=value"),
        (("path", "pop"), "did you mean ppo?"),
    ],
)
def test_bad_input_is_one_line(call, runs_dir: Path, words, complaint: str):
    (runs_dir / "a").mkdir()
    code, _, text = call(*words)
    assert code == 2 and complaint in text
    assert not list((runs_dir / "a").iterdir())


def test_unknown_verb_and_missing_flags(call):
    assert "trian: no such verb (did you mean train?)" not in call("trian", flags=False)[2]
    assert "statsu: no such verb (did you mean status?)" in call("statsu", flags=False)[2]
    assert "--config" in call("sft", flags=False)[2]


def test_unknown_stage_of_run(settings: Path, capsys):
    assert main.main(["run", "sfft", "--config", str(settings), "--run", "a", "--runs-dir", str(settings.parent)]) == 2
    assert "sfft: no such stage (did you mean sft?)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../a", "a/b", "..", ".", ""])
def test_run_names_are_plain(settings: Path, capsys, monkeypatch, tmp_path: Path, name: str):
    monkeypatch.chdir(tmp_path)
    assert main.main(["sft", "--config", str(settings), "--run", name]) == 2
    assert "must be a plain name" in capsys.readouterr().err


def test_stage_before_its_predecessor(runs_dir: Path, settings: Path, capsys, monkeypatch):
    monkeypatch.setattr(Stage, "load", lambda self: lambda cfg, run, redo=False: run.require("sft"))
    assert main.main(["ppo", "--config", str(settings), "--run", "a", "--runs-dir", str(runs_dir)]) == 2
    text = capsys.readouterr().err
    again = f"python -m minirlaif sft --config {runs_dir}/a/config.yaml --run a --runs-dir {runs_dir}"
    assert f"does not exist yet; run `{again}` first" in text


def test_run_of_another_base_model_is_refused(call, done, runs_dir: Path):
    call("sft")
    before = (runs_dir / "a" / "config.yaml").read_text()
    code, _, text = call("sft", "--set", "model.base=other")
    assert code == 2 and "made with model.base tiny, the settings now say other" in text
    assert (runs_dir / "a" / "config.yaml").read_text() == before and done == ["sft"]
    (runs_dir / "a" / "config.yaml").write_text("nonsense")
    assert "cannot be read as this run's settings" in call("sft")[2]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), StageStopped("the disk is full")])
def test_full_disk_is_one_line(call, error: Exception):
    failures["sft"] = error
    code, _, text = call("sft")
    assert code == 2 and "disk is full" in text


def test_full_disk_while_the_config_is_written(call, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_verbs, "write_atomic", full)
    assert "disk is full" in call("sft")[2]


def test_settings_that_a_finished_stage_refused_are_not_recorded(call, runs_dir: Path, monkeypatch):
    def stage_function(name: str):
        def run(cfg: config.Config, run: Run, redo: bool = False) -> None:
            with run.stage(name, {"seed": cfg.seed, name: config.plain(getattr(cfg, name))}, redo=redo):
                pass

        return run

    def recorded() -> tuple[int, float]:
        values = yaml.safe_load((runs_dir / "a" / "config.yaml").read_text())
        return values["ppo"]["iterations"], values["sft"]["epochs"]

    monkeypatch.setattr(Stage, "load", lambda self: stage_function(self.name))
    assert call("sft", "--set", "sft.epochs=2")[0] == 0 and recorded() == (100, 2.0)
    assert call("sft", "--set", "sft.epochs=3", "ppo.iterations=7")[0] == 2 and recorded() == (100, 2.0)
    assert call("ppo", "--set", "sft.epochs=3", "ppo.iterations=7")[0] == 0 and recorded() == (7, 2.0), "sft was made with 2"
    assert call("sft", "--set", "sft.epochs=2", "ppo.iterations=999")[0] == 0 and recorded() == (7, 2.0), "ppo was made with 7"
    assert call("ppo", "--redo", "--set", "ppo.iterations=9")[0] == 0 and recorded() == (9, 2.0)
    config.load(runs_dir / "a" / "config.yaml")


@pytest.mark.parametrize("place", ["runs-dir", "name"])
def test_a_file_where_a_folder_should_be(settings: Path, tmp_path: Path, capsys, place: str):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "file").touch()
    flags = ["a", str(folder / "file")] if place == "runs-dir" else ["file", str(folder)]
    for words in (["sft", "--config", str(settings)], ["status"]):
        assert main.main([*words, "--run", flags[0], "--runs-dir", flags[1]]) == 2
        assert f"{folder / 'file'}: is a file" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed(call, done, tmp_path: Path, monkeypatch):
    (tmp_path / "dvclive").mkdir()  # where a tracker of that name once wrote
    monkeypatch.syspath_prepend(tmp_path)
    assert "`pip install dvclive`" in call("sft", "--set", "report_to=dvclive")[2] and done == []
    assert call("sft", "--set", "report_to=tensorboard")[0] == 0


def test_a_run_whose_last_stages_have_no_data_does_not_start(call, done, runs_dir: Path):
    code, _, text = call("run", "--set", "data.world=", "data.sft=a.json")
    assert code == 2 and "data.prompts and data.test names no file" in text and done == [] and not (runs_dir / "a").exists()


def test_other_errors_are_tracebacks(call):
    failures["sft"] = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        call("sft")


def test_status_and_path(call, runs_dir: Path):
    assert "no such run folder; existing ones: none" in call("status")[2]
    call("sft")
    run = Run(runs_dir / "a")
    with pytest.raises(ZeroDivisionError), run.stage("ppo", {}) as out:
        out.log(1)
        out.commit_state(1, lambda folder: None)
        out.log(2)
        raise ZeroDivisionError
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in call("status")[1].splitlines()}
    assert "pretrain" not in rows
    assert re.fullmatch(r"finished +\d s +accuracy 0\.5123", rows["sft"])  # a busy machine may need a second
    assert rows["ppo"] == "partial         last step 2, resumes from step 1"
    shutil.rmtree(run.partial("ppo") / "state")
    assert call("status")[1].splitlines()[-3].endswith("partial         last step 2, restarts")
    (run.partial("ppo") / "metrics.jsonl").unlink()
    assert call("status")[1].splitlines()[-3].endswith("partial         restarts")
    assert rows["world"] == rows["evaluate"] == "missing"
    assert call("path", "sft")[1] == f"{runs_dir / 'a' / 'sft'}\n"
    assert "ppo: not finished; run `python -m minirlaif ppo" in call("path", "ppo")[2]


def test_the_report_counts_as_a_stage(call, runs_dir: Path):
    run, page = Run(runs_dir / "a"), runs_dir / "a" / "report.html"
    call("evaluate")

    def state() -> str:
        return call("status")[1].splitlines()[-1].split(maxsplit=1)[1]

    assert state() == "missing" and "not finished; run `python -m minirlaif report" in call("path", "report")[2]
    page.touch()
    shown = {"evaluation": run.manifest("evaluate")["identity"]}  # type: ignore[index]
    (run.root / "report.json").write_text(json.dumps(shown))
    assert state().split() == ["finished", str(page)] and call("path", "report")[1] == f"{page}\n"
    with run.stage("evaluate", {"seed": 1}, redo=True):
        pass
    assert state().startswith("outdated: made from another evaluate")
    run.set_aside("evaluate")
    assert state().startswith("outdated")
    (run.root / "report.json").write_text("{")
    assert state().startswith("outdated")


def test_status_shows_one_headline_number(call, runs_dir: Path):
    run = Run(runs_dir / "a")
    right = {"base": 0.6766666, "sft": 0.2426666666, "rlaif": 0.62533333}
    for accuracy, gain in ((right, {"mean": 0.38266666}), (None, None)):
        with run.stage("evaluate", {}, redo=True) as out:
            out.summary.update({"accuracy": accuracy, "accuracy_gain": gain})
        shown = call("status")[1].splitlines()[-2].split(maxsplit=4)
        assert shown[4:] == (["rlaif 0.625, +0.383 over sft"] if accuracy else [])


def test_status_of_a_run_without_a_world(call):
    call("sft", "--set", "data.world=")
    assert "world" not in call("status")[1]


def test_a_bare_command_shows_the_help(capsys):
    assert main.main([]) == 0 and "examples:" in capsys.readouterr().out


def test_status_shows_what_is_outdated(call, runs_dir: Path):
    run = Run(runs_dir / "a")
    for text, redo in (("1", False), ("2", True)):
        with run.stage("sft", {}, redo=redo) as out:
            (out.path / "w").write_text(text)
        if not redo:
            with run.stage("feedback", {}, ["sft"]):
                pass
    assert "outdated: made from another sft" in call("status")[1]


def test_help_has_examples_that_parse(capsys):
    for verb in ([], ["run"], ["path"], ["doctor"], *([name] for name in STAGES)):
        with pytest.raises(SystemExit) as caught:
            main.main([*verb, "--help"])
        assert caught.value.code == 0
        examples = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  python -m minirlaif")]
        assert examples
        for line in examples:
            options = main._parser().parse_args(line.split("   ")[0].split()[3:])
            config.load(None, getattr(options, "set", []))


# -- doctor


def test_doctor_compares_with_the_pins():
    wanted = {"torch": "2.13.0", "peft": "0.21.2", "av": "18.1.0", "decord": "0.6.0"}

    def installed(name: str) -> str:
        if name in ("av", "decord"):
            raise doctor.metadata.PackageNotFoundError(name)
        return {"torch": "2.13.0+cpu", "peft": "0.20.0"}[name]

    torch, peft, av, decord = doctor.packages(wanted, installed)
    assert (torch.state, peft.state, av.state, decord.state) == ("ok", "note", "missing", "note")
    assert "tested with 0.21.2" in peft.text and av.remedy == "python -m pip install av==18.1.0"


def test_doctor_reads_the_pins_and_knows_the_optional_ones():
    pins = doctor.pins()
    assert pins["torch"] == "2.13.0" and "torchvision" not in pins
    assert set(doctor.OPTIONAL) <= set(pins)


def test_doctor_tries_things_in_a_child():
    assert doctor.attempt("print('a'); print('b')") == (True, "b")
    assert doctor.attempt("raise OSError('no codec')") == (False, "OSError: no codec")
    assert doctor.attempt("import os; os.kill(os.getpid(), 11)") == (False, "killed by signal 11")
    assert doctor.attempt("import time; time.sleep(9)", seconds=0.2) == (False, "no answer within 0 s")


def test_doctor_says_what_it_is_trying(monkeypatch, capsys):
    doctor.tried(lambda code: (True, "x"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(doctor.sys.stderr, "isatty", lambda: True)
    doctor.tried(lambda code: (True, "x"))
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown[1:3] == ["trying: device …", "trying: torchvision …"] and shown[-1] == ""


def test_doctor_says_what_a_run_cannot_do_without():
    def attempt(code: str) -> tuple[bool, str]:
        return ("decord" not in code and "bitsandbytes" not in code, "x")

    states = {finding.name: finding.state for finding in doctor.tried(attempt)}
    assert states["decord reads"] == states["4-bit"] == "note" and states["av reads"] == "ok"
    broken = {finding.name: finding for finding in doctor.tried(lambda code: (False, "x"))}
    assert broken["av reads"].state == broken["torchvision"].state == broken["device"].state == "missing"
    assert "uninstall torchvision" in broken["torchvision"].remedy
    assert doctor.python_version((3, 10, 1)).state == "missing"


def test_doctor_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "tried", lambda: [doctor.Finding("av reads", "ok", "imports")])
    monkeypatch.setattr(doctor, "packages", lambda pins: [])
    assert main.main(["doctor"]) == 0 and "ready:" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "tried", lambda: [doctor.Finding("av reads", "missing", "fails", "pip install av")])
    assert main.main(["doctor"]) == 1 and "not ready: av reads" in capsys.readouterr().out


# -- progress


def test_progress_without_a_terminal_prints_about_ten_lines(capsys):
    assert list(progress.progress(range(100), total=100, label="ppo")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[0].startswith("ppo: 10/100, ")
    list(progress.progress(range(50), total=100, label="ppo", initial=50))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()][0] == "ppo: 60/100"


def test_clock():
    assert [progress.clock(seconds) for seconds in (42.4, 185, 7620)] == ["42 s", "3 min 05 s", "2 h 07 min"]


def test_a_reader_that_leaves_early_sees_no_traceback(tmp_path: Path):
    """As in `python -m minirlaif status --run a | true`."""
    with Run(tmp_path / "a").stage("world", {}):
        pass
    words = [sys.executable, "-m", "minirlaif", "status", "--run", "a", "--runs-dir", str(tmp_path)]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141
