"""Rounds on a shrunken world: three of them, a kill in the second, one that does not gain, a changed parent, the report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from minirlaif.app import run_reader, views
from minirlaif.cli import main
from minirlaif.models.seeds import seed_of
from minirlaif.runs.records import write_sealed
from minirlaif.runs.run import Run
from tests.fixtures.processes import kill_once_saved
from tests.fixtures.scripted_dev import call
from tests.fixtures.small_config import lines, manifest, results

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "world.prompt_clips=6 world.dev_clips=2 world.test_clips=4 world.questions_per_clip=2 feedback.batch_size=6"
    " feedback.margin=0 feedback.answers=2 feedback.context_answers=2 distill.epochs=1 distill.batch_size=6 distill.dev_every=1"
    " distill.save_every=1 evaluate.bootstrap=50"
).split()
ROUNDS = ("feedback", "distill", "round-2/feedback", "round-2/distill", "round-3/feedback", "round-3/distill")
TIMED = re.compile(r".*/metrics\.jsonl")


def words(runs_dir: Path, *settings: str, stages: tuple[str, ...] = (), rounds: int = 3, redo: bool = False) -> list[str]:
    flags = ["--config", str(ROOT / "configs" / "tiny-nolabels.yaml"), "--run", "a", "--runs-dir", str(runs_dir)]
    more = [f"optimize.rounds={rounds}", *settings]
    return ["run", *stages, *flags, "--set", *SETTINGS, *more, *(["--redo"] if redo else [])]


def begin(finished: Path, runs_dir: Path, *names: str) -> Path:
    """A run that has some stages, and files, of a finished one."""
    for name in names:
        target = runs_dir / "a" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (finished / name).is_dir() else shutil.copy)(finished / name, target)
    return runs_dir / "a"


def same(one: Path, other: Path, stages: tuple[str, ...]) -> bool:
    """Whether all files of stages are equal but those with timings."""
    mine, theirs = results(one, stages), results(other, stages)
    return {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name) and not TIMED.match(name)} == set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert call(words(folder)) == 0
    return folder / "a"


def record(run: Path) -> list[tuple[int, bool | None]]:
    return [(each["round"], each["gained"]) for each in json.loads((run / "rounds.json").read_text())["rounds"]]


def test_each_round_is_made_from_the_model_of_the_round_before(finished: Path, capsys: pytest.CaptureFixture[str]):
    inputs = {stage: sorted(manifest(finished, stage)["inputs"]) for stage in (*ROUNDS, "evaluate")}
    assert inputs == {
        "feedback": ["world"],
        "distill": ["feedback"],
        "round-2/feedback": ["distill"],
        "round-2/distill": ["distill", "round-2/feedback"],
        "round-3/feedback": ["round-2/distill"],
        "round-3/distill": ["round-2/distill", "round-3/feedback"],
        "evaluate": sorted(ROUNDS),
    }
    assert record(finished) == [(1, True), (2, True), (3, True)]
    run = Run(finished)
    assert run.adapter("rlaif") == finished / "round-3" / "distill" / "adapter" and run.models() == ("rlaif", "base")
    assert main.main(["status", "--run", "a", "--runs-dir", str(finished.parent)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows[:-1]] == [[stage, "finished"] for stage in ("world", *ROUNDS, "evaluate", "report")]
    assert rows[-1][:7] == ["rounds", "3", "of", "3", "round", "3", "counts:"]
    assert "Round 3: Distillation loss" in views.curves(run) and "round-2/feedback" in views.progress(run)
    assert run_reader.newest_run(finished.parent).root == finished


def test_a_round_samples_with_a_seed_of_its_own_and_the_first_with_that_of_the_run(finished: Path):
    seeds = [manifest(finished, stage)["config"]["seed"] for stage in ROUNDS[::2]]
    assert seeds == [0, seed_of(0, "round", 2), seed_of(0, "round", 3)] and len(set(seeds)) == 3
    adapters = {(finished / stage / "adapter" / "adapter_model.safetensors").read_bytes() for stage in ROUNDS[1::2]}
    assert len(adapters) == 3
    clips = {
        (finished / stage / row["video"]).resolve() for stage in ROUNDS[::2] for row in lines(finished / stage / "answers.jsonl")
    }
    assert len(clips) == 6 and all(clip.is_file() and clip.name.startswith("prompt") for clip in clips)


def test_the_first_round_of_several_is_that_of_a_run_of_one(finished: Path, tmp_path: Path):
    run = begin(finished, tmp_path, "world")
    assert call(words(tmp_path, rounds=1, stages=ROUNDS[:2])) == 0
    assert same(run, finished, ROUNDS[:2]) and not (run / "rounds.json").exists()
    assert all(manifest(run, stage)["identity"] == manifest(finished, stage)["identity"] for stage in ROUNDS[:2])


def killed(command: list[str], position: Path, folder: Path) -> None:
    """Start a command and kill -9 it once a stage has saved a state."""
    program = "import sys; from tests.fixtures.scripted_dev import call; sys.exit(call(sys.argv[1:]))"
    kill_once_saved(["-c", program, *command], position, folder)


def test_a_kill_in_the_second_round_changes_no_byte(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(finished, tmp_path / "runs", "world", "feedback", "distill")
    for stage in ROUNDS[2:4]:
        killed(words(tmp_path / "runs"), run / f"{stage}.partial" / "state" / "position.json", tmp_path)
        assert not (run / stage).exists(), f"{stage} was finished before it could be killed"
        assert main.main(["status", "--run", "a", "--runs-dir", str(run.parent)]) == 0
        assert re.search(rf"^{stage} +partial .*resumes from step", capsys.readouterr().out, re.M)
    assert call(words(tmp_path / "runs")) == 0
    assert same(run, finished, (*ROUNDS, "evaluate"))
    assert all(manifest(run, stage)["identity"] == manifest(finished, stage)["identity"] for stage in (*ROUNDS, "evaluate"))
    assert (run / "rounds.json").read_bytes() == (finished / "rounds.json").read_bytes()
    # the chosen checkpoint may be an early one: the losses tell whether the steps after the kill were the same
    losses = [[row["loss"] for row in lines(folder / ROUNDS[3] / "metrics.jsonl")] for folder in (run, finished)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_no_round_follows_one_that_does_not_gain(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(finished, tmp_path, "world", "feedback", "distill")
    assert call(words(tmp_path), rate=0.25) == 0  # of the second round: the first one is finished
    output = capsys.readouterr().out
    why = "round 2 gained nothing on the dev prompts (none better beyond the standard error), so round 3 was not begun"
    assert output.count(f"round-3/feedback: not made, {why}") == 1 and "round-3/distill: not made" not in output
    assert record(run) == [(1, True), (2, False)] and not (run / "round-3").exists()
    assert Run(run).adapter("rlaif") == run / "distill" / "adapter"
    report = json.loads((run / "report.json").read_text())
    assert (
        report["round"] == 1 and report["rounds_ended"] == why and [each["gained"] for each in report["rounds"]] == [True, False]
    )
    assert report["rounds"][1]["gain_over_round_before"]["mean"] == 0.0  # its adapter is its start
    assert main.main(["status", "--run", "a", "--runs-dir", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "round-3" not in table.replace(why, "") and "2 of 3" in table and why in table
    # asked for by name, it is not made either
    assert call(words(tmp_path, stages=("round-3/feedback",))) == 0
    assert f"round-3/feedback: not made, {why}" in capsys.readouterr().out and not (run / "round-3").exists()


def test_more_rounds_go_on_where_fewer_ended(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From one round to three, with the evaluation of one; the stages of the first round are not made again."""
    run = begin(finished, tmp_path, "world", "feedback", "distill")
    assert call(words(tmp_path, rounds=1)) == 0
    assert sorted(manifest(run, "evaluate")["inputs"]) == ["distill", "feedback"] and not (run / "rounds.json").exists()
    made = (run / "distill" / "manifest.json").stat().st_mtime_ns
    begin(finished, tmp_path, "round-2", "round-3")
    capsys.readouterr()
    assert call(words(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "round-3/distill: finished already" in output and "evaluate: the rounds are others now; it is made again" in output
    assert (run / "distill" / "manifest.json").stat().st_mtime_ns == made and same(run, finished, (*ROUNDS, "evaluate"))
    assert call(words(tmp_path, rounds=2)) == 0  # and back: only the first two count
    assert record(run) == [(1, True), (2, True)] and json.loads((run / "report.json").read_text())["round"] == 2
    assert Run(run).rounds == 2


def test_a_round_whose_parent_was_made_again_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(finished, tmp_path, *ROUNDS[:2], "world", "round-2", "rounds.json")
    other = "distill.learning_rate=0.002"
    assert call(words(tmp_path, other, stages=("distill",), redo=True)) == 0
    assert record(run) == [(1, True)]
    capsys.readouterr()
    assert call(words(tmp_path, other)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "round-2/feedback: made with other settings or inputs (distill " in message
    assert "`python -m minirlaif run round-2/feedback round-2/distill --config" in message and "--redo`" in message
    assert main.main(["status", "--run", "a", "--runs-dir", str(tmp_path)]) == 0
    assert len(re.findall(r"^round-2/\w+ +outdated: made from another distill", capsys.readouterr().out, re.M)) == 2
    assert call(words(tmp_path, other, stages=ROUNDS[2:4], redo=True)) == 0
    assert record(run) == [(1, True), (2, True)] and not same(run, finished, ROUNDS[2:4])


def test_settings_of_a_round(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def message(*more: str, **how) -> str:
        assert call(words(tmp_path, *more, **how)) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "optimize.rounds must be above 0, not 0" in message(rounds=0)
    assert "round-4/distill: this run has rounds 1 to 3 (optimize.rounds)" in message(stages=("round-4/distill",))
    assert "no such stage" in message(stages=("round-2/evaluate",)) and not (tmp_path / "a").exists()
    begin(finished, tmp_path, "world", "feedback", "distill")
    missing = message(stages=("round-3/feedback",))
    assert "round-2/distill: does not exist yet; run `python -m minirlaif run round-2/distill" in missing
    other = message("distill.learning_rate=0.002", stages=("round-2/feedback", "round-2/distill", "distill"))
    assert "distill: made with other settings or inputs (distill.learning_rate" in other


def test_damaged_and_deleted_rounds(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(finished, tmp_path, "world", *ROUNDS[:2], "round-2", "round-3", "rounds.json", "config.yaml")

    def failed(*command: str) -> str:
        assert main.main(list(command) or words(tmp_path)) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    kept = run / "round-3" / "distill" / "adapter" / "adapter_model.safetensors"
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + b"x")
    assert "adapter_model.safetensors: has changed since the stage finished; make the stage again: `" in failed()
    assert "round-3/distill --config" in failed()
    kept.write_bytes(content)
    shutil.move(run / "round-3", tmp_path / "away")
    asked = ["chat", "--run", "a", "--runs-dir", str(tmp_path), "--video", str(run / "world" / "clips" / "dev0000.mp4"), "what?"]
    assert "round-3/distill: does not exist yet; run `python -m minirlaif run round-3/distill" in failed(*asked)
    os.symlink(tmp_path / "away", run / "round-3")
    assert "round-3: a link, which is not followed; delete it" in failed()
    (run / "round-3").unlink()
    (run / "round-3").write_text("")
    assert "round-3: a file, so it cannot hold a round; delete it" in failed()
    (run / "round-3").unlink()
    shutil.move(tmp_path / "away", run / "round-3")
    for damaged in ("{", '{"counts": 1, "rounds": [{"round": 2, "methods": {}, "gained": true}]}', '{"rounds": 7}'):
        (run / "rounds.json").write_text(damaged)
        assert "rounds.json: damaged; delete it, the next `run` of this folder writes it again" in failed(*asked)
        assert main.main(["status", "--run", "a", "--runs-dir", str(tmp_path)]) == 0
        assert "rounds.json: damaged" in capsys.readouterr().out
    assert call(words(tmp_path, stages=("round-3/distill",))) == 0
    assert (run / "rounds.json").read_bytes() == (finished / "rounds.json").read_bytes()


def test_the_report_shows_the_rounds(finished: Path):
    report = json.loads((finished / "report.json").read_text())
    assert report["round"] == 3 and report["method"] == "distill" and report["distill"]["dev_win_rate"] == 0.75
    assert [(each["round"], each["gained"], each["dev_win_rate"]) for each in report["rounds"]] == [
        (n, True, 0.75) for n in (1, 2, 3)
    ]
    answers = lines(finished / "evaluate" / "answers.jsonl")
    for each, column, stage in zip(report["rounds"], ("round-1", "round-2", "rlaif"), ROUNDS[::2], strict=True):
        right = [row[column].rstrip(".") == row["truth"].rstrip(".") for row in answers]
        assert each["accuracy"] == pytest.approx(sum(right) / len(right)) == report["accuracy"][column]
        low, high = each["accuracy_ci95"]
        assert low <= each["accuracy"] <= high
        assert each["pairs"] == manifest(finished, stage)["metrics"]["pairs"] > 0 and each["segment_accuracy"] > 0.5
    gains = [each["gain_over_round_before"] for each in report["rounds"]]
    steps = [each["accuracy"] for each in report["rounds"]]
    assert gains[0] is None and [gain["mean"] for gain in gains[1:]] == pytest.approx([steps[1] - steps[0], steps[2] - steps[1]])
    page = (finished / "report.html").read_text()
    assert (
        '<section id="rounds">' in page and "3 (counts)" in page and "Round 2: Distillation loss" in page and "None" not in page
    )
    assert "The RLAIF model is that of round 3" in page and "all 3 rounds were made; each gained on the dev prompts" in page
    assert set(report["seconds"]) == {"world", *ROUNDS, "evaluate"}


def test_truth_reaches_no_stage_of_a_round_and_no_test_clip_is_read(finished: Path, tmp_path: Path):
    """With truths shuffled and the test clips gone, all rounds write the same bytes."""
    run = begin(finished, tmp_path, "world")
    entries = manifest(run, "world")
    for name, columns in (("truth.jsonl", ("answer", "segments")), ("test.jsonl", ("answer", "key"))):
        rows = lines(run / "world" / name)
        moved = rows[len(rows) // 2 :] + rows[: len(rows) // 2]
        pairs = zip(rows, moved, strict=True)
        text = "".join(json.dumps({**row, **{column: other[column] for column in columns}}) + "\n" for row, other in pairs)
        (run / "world" / name).write_text(text)
        entries["outputs"][name] = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    for clip in (run / "world" / "clips").glob("test*"):
        clip.unlink()
        del entries["outputs"][f"clips/{clip.name}"]
    write_sealed(run / "world" / "manifest.json", entries)
    assert call(words(tmp_path, stages=ROUNDS)) == 0
    assert same(run, finished, ROUNDS) and record(run) == record(finished)


def test_without_dev_prompts_all_rounds_are_made_and_the_last_one_counts(finished: Path, tmp_path: Path, capsys):
    world = finished / "world"
    own = [
        'data.world=""',
        f"data.prompts=[{world / 'prompts.jsonl'}]",
        f"data.test=[{world / 'test.jsonl'}]",
        "feedback.limit=6",
    ]
    assert main.main(words(tmp_path, *own, rounds=2)) == 0
    run = tmp_path / "a"
    assert record(run) == [(1, None), (2, None)] and Run(run).adapter("rlaif") == run / "round-2" / "distill" / "adapter"
    report = json.loads((run / "report.json").read_text())
    assert report["rounds_ended"] == "all 2 rounds were made; without dev prompts the last counts"
    assert [each["dev_win_rate"] for each in report["rounds"]] == [None, None] and report["rounds"][0]["judge_accuracy"] is None
    assert "None" not in (run / "report.html").read_text()


def test_two_methods_and_a_reward_model_in_each_round(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(finished, tmp_path, "world", "feedback")
    more = (
        "optimize.methods=[distill,ppo] reward.epochs=1 reward.batch_size=4 reward.min_accuracy=0 reward.held_out=0.3"
        " distill.epochs=0.5 rollout.rollouts=4 rollout.max_new_tokens=40 ppo.iterations=1 ppo.minibatch_size=4"
    ).split()
    assert call(words(tmp_path, *more, rounds=2)) == 0
    assert sorted(manifest(run, "round-2/reward")["inputs"]) == ["ppo", "round-2/feedback"]
    assert sorted(manifest(run, "round-2/ppo")["inputs"]) == ["ppo", "round-2/distill", "round-2/feedback", "round-2/reward"]
    assert [[*each["methods"]] for each in json.loads((run / "rounds.json").read_text())["rounds"]] == [["distill", "ppo"]] * 2
    report = json.loads((run / "report.json").read_text())
    assert report["method"] == "ppo" and report["round"] == 2 and {"round-2/reward", "round-2/distill"} <= set(report["seconds"])
    page = (run / "report.html").read_text()
    assert "Round 2: Reward model loss" in page and "distill: 1 at 75.0" in page and "None" not in page
    capsys.readouterr()
    # what cannot be learned in a further round has a way out: the rounds before it
    (run / "round-2" / "ppo").rename(tmp_path / "away")
    strict = [*more, "reward.min_accuracy=1"]
    for stage in ("reward", "round-2/reward"):  # only round 2 is made with it
        record_ = json.loads((run / stage / "manifest.json").read_text())
        record_["config"]["reward"]["min_accuracy"], record_["metrics"]["accuracy"] = 1.0, 0.5
        write_sealed(run / stage / "manifest.json", record_)
    assert call(words(tmp_path, *strict, stages=("round-2/ppo",), rounds=2)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "below reward.min_accuracy" in message
    assert message.endswith("; to go on without round 2: `--set optimize.rounds=1`\n")


def test_a_round_in_which_the_judge_decides_nothing_is_the_last(finished: Path, tmp_path: Path, monkeypatch, capsys):
    from minirlaif.feedback import label
    from minirlaif.types import Verdict

    run = begin(finished, tmp_path, "world", "feedback", "distill")
    monkeypatch.setattr(label, "verdicts", lambda pairs, *rest: [Verdict(p.id, "tie", 0.0, ("tie", "tie")) for p in pairs])
    assert call(words(tmp_path)) == 0
    assert record(run) == [(1, True), (2, False)] and not (run / "round-2" / "distill").exists()
    output = capsys.readouterr().out
    assert output.count("not made, round 2 gained nothing on the dev prompts (the judge decided no pair)") == 1
    report = json.loads((run / "report.json").read_text())
    assert report["round"] == 1 and report["rounds"][1]["decided"] == 0 and report["rounds"][1]["accuracy"] is None
    assert "None" not in (run / "report.html").read_text()
