"""Which round counts, and the names, commands and records of further rounds, on stages that nothing trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minirlaif.errors import UserError
from minirlaif.runs import gains, rounds
from minirlaif.runs.records import write_sealed
from minirlaif.runs.rounds import Round
from minirlaif.runs.run import Run
from minirlaif.stages.registry import MOST_ROUNDS, pipeline
from tests.fixtures import tiny

BETTER, SAME = {"chosen_iteration": 7, "dev_win_rate": 0.6}, {"chosen_iteration": 0, "dev_win_rate": 0.5}
UNKNOWN = {"chosen_iteration": 9, "dev_win_rate": None}


@pytest.mark.parametrize(
    ("methods", "gained"),
    [
        ([BETTER], True),
        ([SAME], False),
        ([{"chosen_iteration": 7, "dev_win_rate": 0.5}], False),  # no better than the start
        ([{"chosen_iteration": 0, "dev_win_rate": 0.6}], False),  # it is the start
        ([UNKNOWN], None),
        ([{}], None),  # a method that chooses no checkpoint
        ([BETTER, SAME], True),  # the second one has added nothing
        ([SAME, BETTER], True),
        ([SAME, SAME], False),
        ([SAME, UNKNOWN], None),
        ([BETTER, UNKNOWN], True),
    ],
)
def test_whether_a_round_has_gained(methods: list[dict], gained: bool | None):
    assert gains.gained({str(place): each for place, each in enumerate(methods)}) is gained


@pytest.mark.parametrize(
    ("outcomes", "counts", "text"),
    [
        ([], 1, ""),
        ([True], 1, ""),
        (
            [False],
            1,
            "round 1 gained nothing on the dev prompts (none better beyond the standard error), so round 2 was not begun",
        ),
        ([True, True], 2, ""),
        (
            [True, False],
            1,
            "round 2 gained nothing on the dev prompts (none better beyond the standard error), so round 3 was not begun",
        ),
        (
            [True, True, False],
            2,
            "round 3 gained nothing on the dev prompts (none better beyond the standard error)",
        ),
        ([True, True, True], 3, "all 3 rounds were made; each gained on the dev prompts"),
        ([None, None, None], 3, "all 3 rounds were made; without dev prompts the last counts"),
    ],
)
def test_which_round_counts(outcomes: list[bool | None], counts: int, text: str):
    made = [{"round": n, "gained": g, "methods": {"distill": SAME}} for n, g in enumerate(outcomes, 1)]
    assert gains.counting(made) == counts and gains.outcome(made, 3) == text


def test_names_of_stages():
    names = {
        "round-2/feedback": (2, "feedback"),
        "feedback": (1, "feedback"),
        "round-1/ppo": (1, "ppo"),
        "round-100/a": (100, "a"),
    }
    assert {name: gains.split_name(name) for name in names} == names
    for name in (
        "round-0/feedback",
        "round-02/a",
        f"round-{MOST_ROUNDS + 1}/a",
        "round-x/a",
        "round-2",
        "round-²/a",
        "a/round-2/b",
    ):
        assert gains.split_name(name) == (1, name)
    assert gains.name_of(1, "ppo") == "ppo" and gains.name_of(3, "ppo") == "round-3/ppo"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two methods and three rounds wanted, without SFT."""
    run = Run(tmp_path / "a")
    run.stages, run.rounds = pipeline(("distill", "ppo"), sft=False), 3
    return run


def fill(run: Run, **ppo) -> None:
    """All stages of a round."""
    for stage in ("feedback", "reward", "distill", "ppo"):
        inputs = run.inputs(stage)
        with run.stage(stage, {"seed": 1}, inputs=inputs) as out:
            assert out is not None
            out.summary.update({"ppo": {**BETTER, **ppo}, "distill": SAME, "feedback": {"decided": 3}}.get(stage, {}))


def test_a_round_reads_its_own_stages_and_those_of_the_round_before(run: Run):
    second, third = Round(run, 2), Round(run, 3)
    assert (second.start("distill"), second.start("ppo"), third.start("distill")) == ("round-1/ppo", "distill", "round-2/ppo")
    assert second.dir(second.start_model) == run.dir("ppo") and third.dir(third.start_model) == run.root / "round-2" / "ppo"
    assert second.dir("distill") == run.root / "round-2" / "distill" and second.dir("world") == run.root / "world"
    fill(run)
    fill(second)
    record = {stage: sorted(json.loads((second.dir(stage) / "manifest.json").read_text())["inputs"]) for stage in second.methods}
    assert record == {
        "distill": ["ppo", "round-2/feedback"],
        "ppo": ["ppo", "round-2/distill", "round-2/feedback", "round-2/reward"],
    }
    clip = run.root / "world" / "clips" / "a.mp4"
    assert second.stored(str(clip)) == "../../world/clips/a.mp4" and second.located("../../world/clips/a.mp4") == str(clip)
    assert run.stored(str(clip)) == "../world/clips/a.mp4" and second.stored("/elsewhere/b.mp4") == "/elsewhere/b.mp4"
    assert (second.folder, run.folder) == (run.root / "round-2", run.root)


def test_what_is_made_again_with_a_stage(run: Run):
    fill(run)
    fill(Round(run, 2))
    (run.root / "evaluate.partial").mkdir()
    again = run.remake("distill").split()
    assert again[4:13] == [
        "distill",
        "ppo",
        *(f"round-2/{s}" for s in ("feedback", "reward", "distill", "ppo")),
        "evaluate",
        "--config",
        "…",
    ]
    assert Round(run, 2).remake("ppo").split()[3:7] == ["run", "round-2/ppo", "evaluate", "--config"]
    assert Round(run, 3).command("feedback").split()[3:5] == ["run", "round-3/feedback"]


def test_the_record_follows_the_stages(run: Run):
    rounds.record(run)
    assert not (run.root / gains.FILE).exists()
    fill(run)
    rounds.record(run)
    assert gains.counting(gains.read(run.root)) == 1 and rounds.held_back(run, "round-2/feedback") == ""
    assert run.producer("rlaif") == "ppo" and run.scored_rounds() == {}
    fill(Round(run, 2))
    rounds.record(run)
    assert run.producer("rlaif") == "round-2/ppo" and run.adapters() == ("rlaif",)
    assert run.scored_rounds() == {1: "ppo", 2: "round-2/ppo"}
    assert run.inputs("evaluate") == ["feedback", "reward", "round-2/ppo", "ppo", "round-2/feedback"]
    fill(Round(run, 3), **SAME)
    rounds.record(run)
    assert run.producer("rlaif") == "round-2/ppo" and run.scored_rounds()[3] == "round-3/ppo"
    run.rounds = 1
    rounds.record(run)
    assert run.producer("rlaif") == "ppo" and len(gains.read(run.root)) == 1
    run.rounds = 3
    run.set_aside("ppo")  # nothing of it is finished any more
    rounds.record(run)
    assert gains.read(run.root) == []


def test_a_round_without_a_decided_pair_ends_the_rounds(run: Run):
    fill(run)
    second = Round(run, 2)
    tiny.finished(second, "feedback", decided=0)
    rounds.record(run)
    assert [each["gained"] for each in gains.read(run.root)] == [True, False] and run.producer("rlaif") == "ppo"
    why = "round 2 gained nothing on the dev prompts (the judge decided no pair), so round 3 was not begun"
    assert [rounds.held_back(run, f"round-{name}") for name in ("2/feedback", "2/reward", "2/ppo", "3/feedback")] == [
        "",
        why,
        why,
        why,
    ]
    assert run.scored_rounds() == {}


def test_an_export_of_fewer_rounds_is_made_again(run: Run, capsys: pytest.CaptureFixture[str]):
    fill(run)
    with run.stage("export", {}, inputs=run.export_inputs()):
        pass
    rounds.make_room(run, "export", run.export_inputs())
    assert run.manifest("export") is not None
    fill(Round(run, 2))
    rounds.record(run)
    rounds.make_room(run, "export", run.export_inputs())
    assert run.manifest("export") is None and "export: the rounds are others now" in capsys.readouterr().out
    with run.stage("export", {}, inputs=["feedback"]):  # made from something else: that is not for the rounds to decide
        pass
    rounds.make_room(run, "export", run.export_inputs())
    assert run.manifest("export") is not None


@pytest.mark.parametrize(
    "row",
    [
        {"round": 2, "methods": {}, "gained": None},
        {"round": 1, "methods": {"../../else": {"identity": "a"}}, "gained": None},
        {"round": 1, "methods": {"ppo": {"identity": 7}}, "gained": None},
        {"round": 1, "methods": {"ppo": {"identity": "a", "dev_win_rate": "much"}}, "gained": None},
        {"round": 1, "methods": {}, "gained": "yes"},
        {"round": 1, "gained": True},
        7,
    ],
)
def test_a_record_that_is_none(run: Run, row):
    run.root.mkdir()
    write_sealed(run.root / gains.FILE, {"rounds": [row]})
    with pytest.raises(UserError, match="rounds.json: damaged; delete it"):
        run.producer("rlaif")


def test_a_record_that_was_changed(run: Run):
    fill(run)
    rounds.record(run)
    path = run.root / gains.FILE
    path.write_text(path.read_text().replace("0.6", "0.7"))
    with pytest.raises(UserError, match="damaged"):
        run.producer("rlaif")
    rounds.record(run)
    assert run.producer("rlaif") == "ppo" and "0.6" in path.read_text()
