"""`ablate`: the verdict rule and the figures by hand, which arms there are, folders that share stages, children, what goes on."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.ablation import report, runner, view
from minirlaif.ablation.arms import ANSWERS, COUNTS, JUDGE, MAIN, PATIENT, REWARD, SEGMENTS, Measure
from minirlaif.ablation.outcomes import (
    FAILS,
    HOLDS,
    OPEN,
    Figure,
    common,
    differences,
    over_seeds,
    read,
    remarks,
    verdict,
)
from minirlaif.ablation.runner import Job, run_jobs
from minirlaif.cli import main as cli
from minirlaif.errors import UserError
from minirlaif.runs import gains
from minirlaif.runs.records import write_sealed
from minirlaif.runs.run import Run
from minirlaif.session import settings_of
from minirlaif.stages.registry import METHODS, STAGES, pipeline, until
from tests.fixtures import small_config, tiny
from tests.fixtures.ablation_runs import DISTILLED, arms_of, groups_of, stages_of

TRUE, FALSE = "a red circle moves left.", "a blue cross stays still."
CFG = config.load(small_config.TINY)


# The rule.


@pytest.mark.parametrize(
    ("low", "high", "seeds", "n", "expected"),
    [
        (0.001, 0.2, (0.1, 0.0), 30, HOLDS),
        (0.001, 0.2, (0.25, -0.001), 30, OPEN),  # one seed points the other way
        (0.0, 0.2, (0.1, 0.1), 30, OPEN),  # zero itself is not above zero
        (-0.3, 0.0099, (-0.1, -0.2), 30, FAILS),
        (-0.3, 0.01, (-0.1, -0.2), 30, OPEN),  # a point is possible
        (-0.3, -0.1, (-0.2, -0.2), 30, FAILS),
        (0.001, 0.009, (0.005, 0.005), 30, HOLDS),  # above zero first: small, but there
        (0.1, 0.2, (0.15, 0.15), 29, OPEN),  # too few items, either way
        (-0.2, -0.1, (-0.15, -0.15), 29, OPEN),
    ],
)
def test_the_rule(low: float, high: float, seeds: tuple[float, ...], n: int, expected: str) -> None:
    each = {number: Figure(mean, mean, mean, n) for number, mean in enumerate(seeds)}
    assert verdict(Figure((low + high) / 2, low, high, n), each) == expected


def test_a_difference_is_taken_item_by_item() -> None:
    one = {"a": ("x", 1.0), "b": ("x", 0.0), "c": ("y", 1.0)}
    two = {"b": ("x", 1.0), "a": ("x", 0.0), "d": ("y", 0.0)}
    assert differences(one, two) == {"a": ("x", 1.0), "b": ("x", -1.0)}
    result = common({"one": one, "two": two, "three": {"a": ("x", 0.5), "c": ("y", 0.5)}})
    assert result == {"one": {"a": ("x", 1.0)}, "two": {"a": ("x", 0.0)}, "three": {"a": ("x", 0.5)}}


def test_an_interval_draws_clips_with_all_their_seeds() -> None:
    """Two clips, right in all of eight seeds and wrong in all. Draws of two clips give 0, 1/2 or 1, a quarter of them each end;
    draws of sixteen items would stay far from both ends."""
    items = {seed: {"q1": ("one", 1.0), "q2": ("two", 0.0)} for seed in range(8)}
    assert over_seeds(items, 400) == Figure(0.5, 0.0, 1.0, 16)


def test_an_interval_draws_seeds_too() -> None:
    """Forty clips, all right in one of two seeds and all wrong in the other: draws of seeds give 0, 1/2 or 1; draws of clips
    alone would give 1/2 always."""
    items = {seed: {f"q{n}": (f"{n}", float(seed)) for n in range(40)} for seed in range(2)}
    assert over_seeds(items, 400) == Figure(0.5, 0.0, 1.0, 80)


# What files say, by hand.


def written(run: Run) -> None:
    """A main run with two questions about a prompt clip, one about a dev clip, and one about a test clip."""
    truth = [
        {"id": "p0-0", "video": "clips/p0.mp4", "answer": TRUE, "segments": [TRUE, FALSE]},
        {"id": "p0-1", "video": "clips/p0.mp4", "answer": TRUE, "segments": [TRUE, FALSE]},
        {"id": "dev0-0", "video": "clips/dev0.mp4", "answer": TRUE, "segments": [TRUE]},
    ]

    def pair(name: str, a: str, b: str, choice: str, bare: str) -> dict[str, Any]:
        verdict = {"choice": choice, "orders": [choice, choice]}
        without = {"choice": bare, "orders": ["A", "B"]}
        pair = {"id": name, "video": "../world/clips/p0.mp4", "answer_a": a, "answer_b": b}
        return {**pair, **verdict, "without_context": without}

    verdicts = [
        pair("p0-0#0", TRUE, FALSE, "A", "B"),
        pair("p0-0#1", FALSE, "A red circle moves left", "B", "tie"),  # the truth up to case and full stop
        pair("p0-1#0", FALSE, "nothing.", "A", "A"),  # both wrong: says nothing about the judge
        pair("p0-1#1", TRUE, TRUE, "tie", "tie"),
    ]
    scored = [
        {"id": "p0-0#0", "chosen": TRUE, "rejected": FALSE, "score_chosen": 1.0, "score_rejected": 2.0},
        {"id": "p0-0#1", "chosen": FALSE, "rejected": TRUE, "score_chosen": 1.0, "score_rejected": 2.0},
        {"id": "p0-1#0", "chosen": FALSE, "rejected": "nothing.", "score_chosen": 3.0, "score_rejected": 2.0},
    ]
    contexts = [{"video": "../world/clips/p0.mp4", "segments": [TRUE]}, {"video": "../world/clips/dev0.mp4", "segments": [FALSE]}]
    answers = [{"id": "t0-0", "video": "../world/clips/t0.mp4", "truth": TRUE, "base": TRUE, "sft": FALSE, "rlaif": TRUE}]

    def world(path: Path) -> None:
        tiny.write_lines(path / "truth.jsonl", truth)
        tiny.write_lines(path / "prompts.jsonl", [{"id": "p0-0"}, {"id": "p0-1"}])

    def feedback(path: Path) -> None:
        tiny.write_lines(path / "verdicts.jsonl", verdicts)
        tiny.write_lines(path / "contexts.jsonl", contexts)

    tiny.finished(run, "world", world)
    tiny.finished(run, "sft")
    tiny.finished(run, "feedback", feedback)
    tiny.finished(run, "reward", lambda path: tiny.write_lines(path / "held_out.jsonl", scored), accuracy=0.75)
    tiny.finished(run, "ppo", None, kl=1.5, chosen_iteration=20)
    tiny.finished(run, "evaluate", lambda path: tiny.write_lines(path / "answers.jsonl", answers))


@pytest.fixture
def main(runs_dir: Path) -> Run:
    run = Run(runs_dir / "seed0")
    written(run)
    return run


@pytest.mark.parametrize(
    ("counts", "column", "expected"),
    [
        (JUDGE, "", {"p0-0#0": ("7/p0", 1.0), "p0-0#1": ("7/p0", 1.0)}),
        (JUDGE, "without_context", {"p0-0#0": ("7/p0", 0.0), "p0-0#1": ("7/p0", 0.5)}),  # a tie counts one half
        (REWARD, "", {"p0-0#0": ("7/p0", 0.0), "p0-0#1": ("7/p0", 1.0)}),
        (SEGMENTS, "", {"p0#0": ("7/p0", 1.0), "p0#1": ("7/p0", 0.0)}),  # a missing one is wrong; dev clips stay out
        (ANSWERS, "sft", {"t0-0": ("t0", 0.0)}),
        (ANSWERS, "rlaif", {"t0-0": ("t0", 1.0)}),
    ],
)
def test_what_counts_as_right(main: Run, counts: str, column: str, expected: dict[str, tuple[str, float]]) -> None:
    items = read(Measure("key", "label", MAIN, counts, column), main, 7)
    assert {key.split("|")[0]: item for key, item in items.items()} == expected


def test_remarks(main: Run) -> None:
    # Three pairs of different answers: all decided in both orders; without context two decided, none in both orders.
    # Of those with one true answer two are right; without context one is wrong and one undecided.
    expected = {"decided": 1.0, "right of the decided": 1.0, "both orders agree": 1.0}
    assert remarks(Measure("k", "l", MAIN, JUDGE), main) == expected
    bare = {"decided": 2 / 3, "right of the decided": 0.0, "both orders agree": 0.0}
    assert remarks(Measure("k", "l", MAIN, JUDGE, "without_context"), main) == bare
    assert remarks(Measure("k", "l", MAIN, REWARD), main) == {"agrees with the judge": 0.75}
    of_answers = remarks(Measure("k", "l", MAIN, ANSWERS, "rlaif"), main)
    assert {"KL at the end, nats": 1.5, "kept iteration": 20}.items() <= of_answers.items()
    assert remarks(Measure("k", "l", MAIN, ANSWERS, "sft"), main) == {}


def test_what_a_model_took_by_hand(runs_dir: Path) -> None:
    """Feedback sampled 100 answers in 60 s; PPO 3 iterations of 8 in 30 s; the reward model 30 s. Peaks of 1, 3 and 2 GiB."""
    run = Run(runs_dir / "cost")
    tiny.finished(run, "feedback", None, sampled_answers=100)
    tiny.finished(run, "reward")
    tiny.finished(run, "ppo", lambda path: tiny.write_lines(path / "metrics.jsonl", [{"kl": 1.0}] * 3), chosen_iteration=3)
    took = {"feedback": (60, 1.0, {}), "reward": (30, 3.0, {}), "ppo": (30, 2.0, {"rollout": {"rollouts": 8}})}
    for stage, (seconds, peak, config_) in took.items():
        values = json.loads((run.dir(stage) / "manifest.json").read_text())
        changed = {**values, "seconds": seconds, "peak_rss_gib": peak, "config": {**values["config"], **config_}}
        write_sealed(run.dir(stage) / "manifest.json", changed)
    notes = remarks(Measure("k", "l", MAIN, ANSWERS, "policy"), run)
    assert notes == {"kept iteration": 3, "answers sampled": 124.0, "minutes": 2.0, "peak GiB": 3.0}


# The arms.


@pytest.mark.parametrize(("path", "more"), [(small_config.TINY, DISTILLED), (small_config.NO_LABELS, ())])
def test_every_figure_has_its_arm_and_every_arm_its_inputs(path: Path, more: tuple[str, ...]) -> None:
    cfg = config.load(path, more)
    known = {arm.name: arm for arm in arms_of(cfg)}
    assert len(known) == len(arms_of(cfg))
    used = set()
    for group in groups_of(cfg):
        keys = [measure.key for measure in group.measures]
        assert len(set(keys)) == len(keys) and {measure.counts for measure in group.measures} <= set(COUNTS)
        counts = {measure.key: measure.counts for measure in group.measures}
        for text, better, worse in group.claims:
            assert counts[better] == counts[worse], text
        if any(measure.arm in known for measure in group.measures):
            used |= {measure.arm for measure in group.measures}
    sources = {arm.source for arm in known.values()}
    assert used - {MAIN} == set(known) - (sources - {MAIN})
    once = list(STAGES)[: list(STAGES).index("evaluate")]
    order = [*once, *(f"round-2/{stage}" for stage in once), "exam"]
    exams = {"policy": set(METHODS), "sft": {"sft"}, "best": {"sft", "reward"}, "": set()}
    for arm in known.values():
        here = config.load(path, [*more, *arm.changed])
        assert not set(arm.shares) & set(arm.makes)
        assert list(arm.makes) == sorted(arm.makes, key=order.index)
        there = set(arm.shares)
        source = known[arm.source] if arm.source != MAIN else None
        assert there <= ({*source.shares, *source.makes} if source else set(stages_of(cfg)))
        for stage in arm.makes:
            _, name = gains.split_name(stage)
            needed = set(STAGES[name].inputs) & set(config.stages_of(here)) if stage != "exam" else set()
            assert needed <= there, arm.name
            there.add(stage)
        assert exams[arm.answered_by] & there or not arm.answered_by
        assert bool(arm.answered_by) == ("exam" in arm.makes)
    assert {text for group in groups_of(cfg) for text, *_ in group.claims if "better than the base" in text}


def test_arms_follow_the_main_run() -> None:
    changed = {arm.name: arm.changed for arm in arms_of(CFG)}
    assert changed["short"] == ("ppo.iterations=10", "optimize.methods=[ppo]", *PATIENT)  # a third of 30
    assert "feedback.limit=600" in changed["letter"]  # a fifth of 3000, five batches of 120
    other = config.load(small_config.TINY, ["world.prompt_clips=11", "feedback.batch_size=4", "ppo.iterations=1"])
    changed = {arm.name: arm.changed for arm in arms_of(other)}
    assert "feedback.limit=8" in changed["letter"]  # 33 prompts, a fifth is 6.6: two whole batches
    assert changed["short"] == ("ppo.iterations=1", "optimize.methods=[ppo]", *PATIENT)
    assert {"kl-0.01", "kl-0.1", "kl-0.3"} < set(changed) and "kl-0.03" not in changed  # 0.03 is the arm `short`


# Settings that are off leave no trace.


def test_a_switch_that_is_off_keeps_older_runs_current(tmp_path: Path) -> None:
    sections = ("model", "sft", "feedback")

    def settings_at(cfg: config.Config) -> dict[str, Any]:
        return settings_of(cfg.seed, cfg.data, ["preferences"], **cfg.sections(*sections))

    settings = settings_at(CFG)
    for name, field, on in (("sft", "curriculum", "false"), ("feedback", "limit", "5"), ("data", "preference_limit", "5")):
        assert field not in settings[name]
        other = settings_at(config.load(small_config.TINY, [f"{name}.{field}={on}"]))
        assert field in other[name]
        run = Run(tmp_path / name)
        with run.stage(name, settings):
            pass
        with pytest.raises(UserError, match=f"{name}.{field} None -> "), run.stage(name, other):
            pass


# Shared stages.


def test_shared_stages_stay_where_they_are_and_are_checked(main: Run, runs_dir: Path) -> None:
    arm = Run(runs_dir / "ablation" / "seed0" / "short")
    arm.take_over(main, ["world", "feedback"])
    arm.take_over(main, ["world", "feedback"])  # a second time changes nothing
    assert os.readlink(arm.root / "world") == "../../../seed0/world"
    assert arm.require("world").samefile(main.dir("world")) and (arm.root / "cache").samefile(main.root / "cache")
    with arm.stage("ppo", {}, ["feedback"]):
        pass
    assert arm.manifest("ppo")["inputs"] == {"feedback": main.manifest("feedback")["identity"]}  # type: ignore[index]
    moved = runs_dir.rename(runs_dir.with_name("moved"))  # links are relative: a folder of runs can be moved
    Run(moved / "ablation" / "seed0" / "short").require("ppo")
    moved.rename(runs_dir)
    (main.dir("feedback") / "verdicts.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="verdicts.jsonl: has changed"):
        arm.require("feedback")


def test_a_shared_stage_made_again_is_noticed(main: Run, runs_dir: Path) -> None:
    arm = Run(runs_dir / "arm")
    arm.take_over(main, ["feedback"])
    with arm.stage("ppo", {}, ["feedback"]):
        pass
    with main.stage("feedback", {}, redo=True) as out:
        (out.path / "verdicts.jsonl").write_text("other\n")  # type: ignore[union-attr]
    assert arm.outdated("ppo") == "feedback"
    with pytest.raises(UserError, match="made from another feedback"):
        arm.require("ppo")


def test_what_is_shared_is_never_deleted(main: Run, runs_dir: Path) -> None:
    arm = Run(runs_dir / "arm")
    arm.take_over(main, ["world", "sft"])
    before = small_config.files(main.root)
    with arm.stage("world", {"other": 1}, redo=True) as out:  # its own one takes the place of the link
        (out.path / "truth.jsonl").write_text("mine")  # type: ignore[union-attr]
    arm.set_aside("sft")
    assert not (arm.root / "world").is_symlink() and (arm.root / "world" / "truth.jsonl").read_text() == "mine"
    assert not (arm.root / "sft").exists() and not (arm.root / "sft.old").is_symlink()
    assert small_config.files(main.root) == before
    with pytest.raises(UserError, match="must become a link"):
        arm.take_over(main, ["world"])
    with pytest.raises(UserError, match="does not exist yet"):
        arm.take_over(main, ["pretrain"])


# Children.


def child(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import time\n{text}"]


def test_jobs_wait_for_what_they_need_and_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in "abcd"}
    touch = "open({!r}, 'x').close()".format

    def job(name: str, text: str, *needs: str) -> Job:
        return Job(name, lambda: child(text), tmp_path / f"{name}.txt", needs, 10)

    jobs = [
        job("b", f"import os; assert os.path.exists({str(places['a'])!r}); {touch(str(places['b']))}", "a"),
        job("a", f"time.sleep(0.3); {touch(str(places['a']))}"),
        job("bad", "print('minirlaif: too hot'); raise SystemExit(2)"),
        job("c", touch(str(places["c"])), "bad"),
        Job("nothing", lambda: None, tmp_path / "n.txt"),
        job("d", touch(str(places["d"])), "nothing"),
    ]
    failed: dict[str, str] = {}
    done = list(run_jobs(jobs, 2, failed))
    assert failed == {"bad": "too hot", "c": "needs bad"}
    assert [place.exists() for place in places.values()] == [True, True, False, True]
    assert done == sorted(done) and done[-1] == 110  # five jobs of 10, done or not, and one of 60 with nothing to do


def test_no_more_children_than_jobs_and_none_stays_behind(tmp_path: Path) -> None:
    started: list[str] = []

    def job(name: str) -> Job:
        def command() -> list[str]:
            started.append(name)
            return child(f"open({str(tmp_path / name)!r}, 'w').write(str(__import__('os').getpid())); time.sleep(120)")

        return Job(name, command, tmp_path / "log.txt")

    working = run_jobs([job("a"), job("b"), job("c")], 2, {})
    next(working)
    while not all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "ab"):
        time.sleep(0.02)
    next(working)
    assert started == ["a", "b"]
    began = time.monotonic()
    working.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 60  # stopped, not waited for
    for name in "ab":
        assert gone(int((tmp_path / name).read_text()))


def gone(process: int) -> bool:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child goes on to its end")
def test_a_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom minirlaif.ablation.runner import Job, run_jobs\n"
        "words = [sys.executable, '-S', '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)']\n"
        f"list(run_jobs([Job('a', lambda: words, Path({str(tmp_path / 'log.txt')!r}))], 1, {{}}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    log = tmp_path / "log.txt"
    while not (log.is_file() and log.read_text().endswith("\n")):
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(int(log.read_text()))


# The verb.


def options(runs_dir: Path, *more: str) -> list[str]:
    return ["ablate", "--config", str(small_config.TINY), "--runs-dir", str(runs_dir), "--seeds", "0", *more]


def arm_run(runs_dir: Path, main: Run, name: str) -> runner.ArmRun:
    (arm,) = [arm for arm in arms_of(CFG) if arm.name == name]
    settings = config.dump(config.load(small_config.TINY, arm.changed))
    return runner.ArmRun(0, arm, settings, Run(runs_dir / "ablation" / "seed0" / name), main)


def test_a_finished_arm_is_not_made_again_and_a_changed_one_says_so(main: Run, runs_dir: Path) -> None:
    here = arm_run(runs_dir, main, "short")
    assert not runner._finished(here)
    words = runner._arm_job(here).command()
    assert words is not None and words[1:] == ["-m", "minirlaif.ablation.run_arm", str(here.run.root)]
    loaded = config.load(here.run.root / "config.yaml")
    assert config.dump(loaded) == here.settings and loaded.ppo.iterations == 10
    for stage in ("ppo", "exam"):
        assert not runner._finished(here)
        with here.run.stage(stage, {}, ["ppo"] if stage == "exam" else ["sft", "feedback", "reward"]):
            pass
    assert runner._finished(here) and runner._arm_job(here).command() is None and runner._arm_job(here).weight == 0
    other = replace(here, settings=config.dump(config.load(small_config.TINY, [*here.arm.changed, "rollout.rollouts=64"])))
    with pytest.raises(UserError, match="--arms short --redo"):
        runner._arm_job(other).command()
    with main.stage("reward", {}, redo=True) as out:
        (out.path / "held_out.jsonl").write_text("")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="from another main run.*--arms short --redo"):
        runner._arm_job(here).command()


def fake_children(patch: pytest.MonkeyPatch, made: list[str]) -> None:
    """Children that make an arm's stages out of nothing, in this process, and look at no main run."""

    def carried(jobs: Any, at_once: int, failed: dict[str, str]) -> Iterator[float]:
        for job in jobs:
            words = job.command()
            if words is not None and "minirlaif.ablation.run_arm" in words:
                made.append(job.name)
                run = Run(words[-1])
                for stage in json.loads((run.root / "arm.json").read_text())["makes"]:
                    tiny.finished(run, stage, lambda path: tiny.write_lines(path / "answers.jsonl", ANSWERED), **METRICS)
            yield 0.0

    patch.setattr(runner, "run_jobs", carried)


ANSWERED = [{"id": "t0-0", "video": "../world/clips/t0.mp4", "truth": TRUE, "policy": FALSE}]
METRICS = {"kl": 0.5, "chosen_iteration": 10}


def test_arms_are_made_once_and_again_on_demand(main: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    fake_children(monkeypatch, made)
    words = options(runs_dir, "--arms", "short,kl-0.1")
    assert cli.main(words) == 0
    assert made == ["seed 0, short", "seed 0, kl-0.1"]
    assert cli.main(words) == 0 and len(made) == 2
    before = small_config.results(main.root, ["world", "sft", "feedback", "reward", "ppo", "evaluate"])
    assert cli.main(options(runs_dir, "--arms", "kl-0.1", "--redo")) == 0
    assert made[2:] == ["seed 0, kl-0.1"]
    assert small_config.results(main.root, ["world", "sft", "feedback", "reward", "ppo", "evaluate"]) == before
    numbers = json.loads((runs_dir / "ablation" / "ablation.json").read_text())
    assert numbers["seeds"] == [0] and list(numbers["arms"]) == ["kl-0.1"]


def test_one_arm_that_fails_is_named_and_leaves_a_report_of_the_others(
    main: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    fake_children(monkeypatch, made)
    real = runner.run_jobs

    def carried(jobs: Any, at_once: int, failed: dict[str, str]) -> Iterator[float]:
        failed["seed 0, kl-0.1"] = "out of luck"
        yield from real([job for job in jobs if job.name not in failed], at_once, failed)

    monkeypatch.setattr(runner, "run_jobs", carried)
    assert cli.main(options(runs_dir, "--arms", "short,kl-0.1,kl-0.3")) == 2
    assert "minirlaif: seed 0, kl-0.1: out of luck" in capsys.readouterr().err
    (group,) = [g for g in json.loads((runs_dir / "ablation/ablation.json").read_text())["groups"] if g["name"] == "kl"]
    assert [measure["arm"] for measure in group["entries"]] == ["short", "kl-0.3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,x"], "--seeds 0,x: write whole numbers"),
        (["--seeds=-1"], "must not be negative"),
        (["--arms", "shrot"], "--arms shrot: no such arm (did you mean short?)"),
        (["--run", "a/b"], "--run 'a/b': must be a plain name"),
        (["--set", "data.world="], 'data.world is empty; ablate runs only on the tiny world; set data.world to "tiny"'),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
    ],
)
def test_what_the_user_can_put_right(runs_dir: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options(runs_dir, *words)) == 2
    output = capsys.readouterr().err
    assert message in output and output.count("\n") == 1
    assert not list(runs_dir.iterdir())


def test_the_parent_needs_no_torch(python) -> None:  # type: ignore[no-untyped-def]
    done = python("-c", "import sys, minirlaif.ablation.runner; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_main_runs_come_from_the_folder_of_from(runs_dir: Path) -> None:
    given = argparse.Namespace(config="c.yaml", set=["sft.epochs=2"], main_runs=Path("there"), runs_dir=runs_dir)
    job = runner._main_job(given, runs_dir / "ablation", 3, Run(given.main_runs / "seed3"), until("evaluate", pipeline()))
    words = job.command()
    assert words is not None and words[3:] == [
        *("run", "world", "sft", "feedback", "reward", "ppo", "evaluate", "--config", "c.yaml", "--run", "seed3"),
        *("--runs-dir", "there", "--set", "sft.epochs=2", "seed=3"),
    ]


# The report.


def numbers_of(runs: dict[int, dict[str, Run]]) -> dict[str, Any]:
    return report.summary(groups_of(CFG), 20, runs, [], {})


def test_the_report_by_hand(main: Run, runs_dir: Path) -> None:
    arm = Run(runs_dir / "arm")
    tiny.finished(arm, "ppo", None, kl=2.0, chosen_iteration=5)
    rows = [{"id": "t0-0", "video": "x/t0.mp4", "truth": TRUE, "policy": TRUE}]
    tiny.finished(arm, "exam", lambda path: tiny.write_lines(path / "answers.jsonl", rows))
    other = Run(runs_dir / "other")
    tiny.finished(other, "ppo", None, kl=1.0, chosen_iteration=10)
    rows = [{"id": "t0-0", "video": "x/t0.mp4", "truth": TRUE, "policy": FALSE}]
    tiny.finished(other, "exam", lambda path: tiny.write_lines(path / "answers.jsonl", rows))
    numbers = numbers_of({0: {MAIN: main, "short": arm, "kl-0.3": other}})
    groups = {group["name"]: group for group in numbers["groups"]}
    assert list(groups) == ["base", "context", "best-of", "kl"]  # the others have no claim with both sides measured
    (claim,) = groups["kl"]["claims"]
    assert claim["text"] == "KL coefficient 0.3 is worse than 0.03"
    assert claim["pooled"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1} and claim["verdict"] == OPEN
    assert (claim["better_mean"], claim["worse_mean"]) == (1.0, 0.0)
    (judge,) = groups["context"]["claims"]
    assert judge["pooled"]["mean"] == pytest.approx(0.75) and judge["pooled"]["n"] == 2  # 1 and 1 against 0 and 1/2
    of_training = ("KL at the end, nats", "kept iteration")
    notes = [[measure["remarks"][name] for name in of_training] for measure in groups["kl"]["entries"]]
    assert notes == [[2.0, 5], [1.0, 10]]
    text = view.markdown(numbers)
    row = "| KL coefficient 0.3 is worse than 0.03 | 100.0\u00a0% against 0.0\u00a0% | +100.0 [+100.0 to +100.0] | +100.0 | – |"
    assert f"{row} **undecided** |" in text
    page = str(view.document(numbers))
    assert page.startswith("<!doctype html>") and "src=" not in page and "<script" not in page and "http://" not in page
    assert page.count('class="claim"') == sum(len(group["claims"]) for group in numbers["groups"]) == 4


def test_figures_stand_on_items_that_all_arms_have(main: Run, runs_dir: Path) -> None:
    """The arm with letters judged one of the two pairs; so the main run's figure beside it is of that pair alone."""
    arm = Run(runs_dir / "letter")
    arm.take_over(main, ["world"])
    (row,) = [row for row in tiny.read_lines(main.dir("feedback") / "verdicts.jsonl") if row["id"] == "p0-0#1"]
    row = {**row, "choice": "A"}
    tiny.finished(arm, "feedback", lambda path: tiny.write_lines(path / "verdicts.jsonl", [row]))
    groups = {group["name"]: group for group in numbers_of({0: {MAIN: main, "letter": arm}})["groups"]}
    figures = {measure["key"]: measure["pooled"] for measure in groups["readout"]["entries"]}
    assert {key: (value["mean"], value["n"]) for key, value in figures.items()} == {MAIN: (1.0, 1), "letter": (0.0, 1)}


def test_seeds_are_counted_together_where_everything_but_the_seed_is_the_same(tmp_path: Path) -> None:
    scorer = tmp_path / "score.py"
    scorer.write_text("def reward(prompt, answer, tags):\n    return 1.0\n")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")

    def digest(*settings: str) -> str:
        cfg = config.load(small_config.TINY, settings)
        sections = {name: section for name, section in vars(cfg).items() if is_dataclass(section)}
        roles = (cfg.feedback.describer, cfg.feedback.judge)
        return runner.settings_hash(sections, cfg.model, roles, cfg.optimize.reward)

    plain = digest()
    assert digest() == digest("data.max_bad_rows=0.5") == digest("questions.per_clip=6") == plain
    others = ["feedback.judge=base", "feedback.describer=base", "ppo.clip=0.1", f"model.base={base}", f"optimize.reward={scorer}"]
    hashes = {name: digest(name) for name in others}
    assert len({plain, *hashes.values()}) == 1 + len(others)
    (base / "config.json").write_text("{ }")
    scorer.write_text("def reward(prompt, answer, tags):\n    return 2.0\n")
    assert all(digest(name) != hashes[name] for name in others[-2:])


def test_the_reverse_holds_by_the_same_rule_alone() -> None:
    def claim(n: int, *seeds: float) -> dict[str, Any]:
        figures = {seed: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": n} for seed, mean in enumerate(seeds)}
        pooled = {"mean": sum(seeds) / len(seeds), "low": -0.4, "high": -0.05, "n": n * len(seeds)}
        sides = {"better": "X", "worse": "Y", "better_mean": 0.5, "worse_mean": 0.7}
        return {"text": "X is better", "verdict": FAILS, "pooled": pooled, "seeds": figures, "t": None, **sides}

    assert "; the reverse holds" in view.sentence(claim(40, -0.3, -0.2))
    assert "the reverse" not in view.sentence(claim(40, -0.3, 0.02))  # one seed points the other way
    assert "the reverse" not in view.sentence(claim(5, -0.3, -0.2))  # ten items are too few


def test_a_sentence_says_which_way_and_how_sure() -> None:
    figures = {"mean": -0.1, "low": -0.15, "high": -0.05, "n": 2250}
    sides = {"better": "PPO", "worse": "Base", "better_mean": 0.55, "worse_mean": 0.65}
    claim = {"text": "PPO better than the base", "verdict": FAILS, "pooled": figures, "seeds": {0: figures, 1: figures}, **sides}
    claim["t"] = (-0.2, -0.01)
    assert view.sentence(claim) == (
        "PPO better than the base: does not hold; the reverse holds. PPO 55.0\u00a0%, Base 65.0\u00a0%:"
        " −10.0 points (−15.0 to −5.0; by seed −10.0, −10.0; t over seeds −20.0 to −1.0), n 2\u202f250."
    )
