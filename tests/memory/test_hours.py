"""How long a run will take: hand-made times scaled by hand, and small runs of real settings through the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.cli import main
from minirlaif.cli.plan import plan_of
from minirlaif.errors import UserError
from minirlaif.memory import hours, small_run
from minirlaif.memory.hours import Hours, StageTime, Work
from minirlaif.memory.small_run import Amounts, SmallRun, _Made
from minirlaif.runs.progress import LoopTimes
from minirlaif.runs.run import Run
from tests import test_run_from_clips as from_clips
from tests.fixtures import small_config

FEEDBACK = StageTime("feedback", 4.0, (Work(1200, "prompt", 0.5), Work(10, "dev question", 2.0)))
MEASURED = Hours(
    (StageTime("sft", 2.0, (Work(1, "row", 58.0),)), FEEDBACK, StageTime("export", why="not measured: no cmake")),
    "a card",
    "2026-12-01",
    0.25,
    1.5,
    (900, 90),
    75.0,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_table_by_hand() -> None:
    table, total, size, pairs, left_out = hours.lines(MEASURED)
    assert [" ".join(row.split()) for row in table.splitlines()] == [
        "stage work s each time",
        "sft 1 row 58 1 min 00 s",
        "feedback 1,200 prompts 0.5 10 min 24 s",
        "export -",
    ]
    assert total == "time: at least 11 min 24 s (measured on a card, 2026-12-01, by a small run of 1 min 15 s)"
    assert size == "feature cache: about 0.2 GiB on disk; host memory: 1.5 GiB at the peak of the measurement"
    assert pairs == "pairs: about 900 decided, 90 of them held out" and left_out == "export: not measured: no cmake"
    assert hours.total(replace(MEASURED, stages=MEASURED.stages[:2])).startswith("time: about 11 min 24 s (")


def test_an_estimate_is_kept_for_its_settings(cache: Path) -> None:
    assert hours.known("seed: 0") is None
    hours.keep("seed: 0", MEASURED)
    assert hours.known("seed: 0") == MEASURED and hours.known("seed: 1") is None
    (file,) = (cache / "minirlaif" / "hours").iterdir()
    for damage in ("", "[]", "{}", json.dumps({"stages": [{}]})):
        file.write_text(damage)
        assert hours.known("seed: 0") is None


def test_the_time_left_counts_the_stages_of_every_round() -> None:
    assert hours.seconds_left(MEASURED, ["feedback", "evaluate", "export"]) == 624
    assert hours.seconds_left(MEASURED, ["round-2/feedback", "sft"]) == 684
    assert hours.seconds_left(None, ["feedback"]) == 0


def scaled(small: Mapping[str, float], full: Mapping[str, float], *settings: str) -> SmallRun:
    """A small run of given amounts that was not made."""
    plan = plan_of(config.load(small_config.TINY, [*small_config.SETTINGS, *settings]), gpu=False)
    run = SmallRun(plan, Run(Path("nowhere")))
    run.__dict__["amounts"] = Amounts(small, full)
    return run


def test_feedback_scales_with_prompts_without_its_first_chunk() -> None:
    """Batches of 6 prompts: 9 s (warming up), 3 s; 4 dev questions in 2 s. 2,400 prompts with 2 pairs each: of 400 batches one in
    four is judged without descriptions as well, in 5 s, so that about 1,000 pairs are."""
    run = scaled({"prompts": 12, "dev": 4}, {"prompts": 2400, "dev": 40})
    made = _Made(20.0, LoopTimes({"feedback": [9.0, 3.0, 2.0]}, {"control": [5.0]}))
    stage = run.stage_time("feedback", made)
    assert stage.works[:2] == (Work(2400, "prompt", 0.5), Work(40, "dev question", 0.5))
    assert stage.works[2] == Work(100, "chunk judged without descriptions", 5.0)
    assert stage.fixed == pytest.approx(20 - 14 - 5) and stage.seconds == pytest.approx(1 + 1200 + 20 + 500)


def test_a_method_that_samples_scales_with_its_iterations_and_looks() -> None:
    """PPO of 3 iterations, a look at the dev prompts every 2nd: of the start, after 2 and after 3."""
    run = scaled({"prompts": 12, "dev": 4}, {"prompts": 600, "dev": 40})
    stage = run.stage_time("ppo", _Made(30.0, LoopTimes({"ppo": [9.0, 5.0]}, {"dev": [1.0, 3.0]})))
    assert stage.works == (Work(3, "iteration", 5.0), Work(3, "look at the dev prompts", 20.0))
    assert stage.fixed == pytest.approx(30 - 14 - 4)


def test_a_method_on_stored_answers_scales_with_them() -> None:
    """24 answers of 12 prompts took 12 s; of 600 prompts it are 1,200, in batches of 8 over one epoch 150 steps."""
    more = (
        "optimize.methods=[distill]",
        "feedback.context_answers=1",
        "distill.epochs=1.0",
        "distill.batch_size=8",
        "distill.dev_every=50",
    )
    run = scaled({"prompts": 12, "dev": 4}, {"prompts": 600, "dev": 4}, *more)
    stage = run.stage_time("distill", _Made(15.0, LoopTimes({"distill": [4.0] * 3}, {"dev": [1.0]}), {"answers": 24}))
    assert stage.works == (Work(1200, "answer", 0.5), Work(4, "look at the dev prompts", 1.0))
    assert stage.seconds == pytest.approx(2 + 600 + 4)


def test_stages_of_every_round_are_counted() -> None:
    amounts = {"prompts": 12, "dev": 4, "test": 4}
    run = scaled(amounts, amounts, "optimize.rounds=3")
    assert run.stage_time("ppo", _Made(9.0, LoopTimes({"ppo": [9.0, 2.0]}))).works[0].count == 9
    assert run.stage_time("evaluate", _Made(9.0)).fixed == 9.0


def command(verb: str, *settings: str) -> list[str]:
    return [verb, "--config", str(small_config.TINY), "--set", *small_config.SETTINGS, *settings]


def test_the_tiny_world_by_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages and their amounts, the export too; then the first lines of a run know the time, and progress the time left."""
    more = ("sft.epochs=2", "export.enabled=true", "world.prompt_clips=80")
    assert main.main([*command("plan", *more), "--hours"]) == 0
    output, errors = capsys.readouterr()
    assert "plan: timing feedback, " in errors and "sft: 1/" not in errors  # its own loops are silent
    rows = {line.split()[0]: line.split() for line in output[output.index("stage  ") :].splitlines()}
    amounts = {
        "world": "99 clips",
        "sft": "12 rows",
        "feedback": "240 prompts",
        "ppo": "3 iterations",
        "evaluate": "12 questions",
    }
    assert {name: " ".join(rows[name][1:3]) for name in amounts} == amounts
    assert rows["export"][2] == "questions" and "pairs: about" in output
    total = next(line for line in output.splitlines() if line.startswith("time: about "))
    assert "measured on cpu, " in total
    dry = ["--run", "a", "--dry-run", "--runs-dir", str(tmp_path / "runs")]
    assert main.main([*command("run", *more), *dry]) == 0
    assert total in capsys.readouterr().out
    assert main.main([*command("run", *more, "seed=5"), *dry]) == 0
    assert f"time: not measured yet; `python -m minirlaif plan --config {small_config.TINY} --hours`" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_own_clips_without_rows_by_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = from_clips.folder_of_clips(tmp_path)
    before = sorted(root.rglob("*"))
    assert main.main(["plan", "--config", str(root / "mine.yaml"), "--hours"]) == 0
    output = capsys.readouterr().out

    assert [line.split()[0] for line in output.splitlines() if " 12 clips" in line] == ["questions"]
    assert "\ndistill " in output and "time: about " in output
    assert [path for path in sorted(root.rglob("*")) if "cache" not in path.parts] == before


def test_a_stage_that_fails_in_the_small_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(config.load(small_config.TINY, [*small_config.SETTINGS, "world.prompt_clips=2"]), gpu=False)
    load = small_run.STAGES["reward"].load()

    class Failing:
        @staticmethod
        def load() -> Any:
            def fail(*_: Any) -> None:
                raise UserError("too few pairs")

            return fail

    monkeypatch.setattr(small_run, "STAGES", {**small_run.STAGES, "reward": Failing})
    assert load
    measured = small_run.measure(plan, small_run.export.ExportOptions((), False, 1))
    whys = {stage.stage: stage.why for stage in measured.stages if stage.why}
    assert whys == {
        "reward": "not measured: too few pairs",
        "ppo": "not measured, because reward failed",
        "evaluate": "not measured, because reward failed",
        "report": "not measured, because reward failed",
    }
    assert hours.total(measured).startswith("time: at least ")


def test_a_judge_that_may_cost_money_is_not_asked(tmp_path: Path) -> None:
    judge = tmp_path / "judge.yaml"
    judge.write_text("name: openai:gpt\n")
    plan = plan_of(config.load(small_config.TINY, [*small_config.SETTINGS]), gpu=False)
    settings = replace(plan.settings, feedback=replace(plan.settings.feedback, judge=str(judge)))
    with pytest.raises(UserError, match="may cost money"):
        small_run.measure(replace(plan, settings=settings), small_run.export.ExportOptions((), False, 1))
