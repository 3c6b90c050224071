"""Answers of other seeds, kept in ablation.json: there and back, pooled with those of a command, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.ablation import earlier_seeds, report
from minirlaif.cli.main import main
from minirlaif.errors import UserError
from minirlaif.runs.io import plain
from tests.fixtures import ablation_runs, small_config
from tests.fixtures.ablation_runs import arms_of, groups_of

CFG = config.load(small_config.TINY, [*ablation_runs.DISTILLED, "evaluate.bootstrap=200"])
ITEMS = {"t1-0": ("t1", 1.0), "t0-1": ("t0", 0.0), "t0-0": ("t0", 1.0)}


def test_there_and_back(tmp_path: Path) -> None:
    other = {name: (clip, 1 - value) for name, (clip, value) in ITEMS.items()}
    values = earlier_seeds.encode({3: {"one": ITEMS, "two": other}}, {3: {"one": {"minutes": 2.0}}})
    assert values["questions"] == {"t0": ["t0-0", "t0-1"], "t1": ["t1-0"]} and values["right"] == {
        "3": {"one": "101", "two": "010"}
    }
    path = tmp_path / "ablation.json"
    path.write_text(json.dumps({"settings": "s", "groups": [{"name": "methods", "answers": values}]}))
    read = earlier_seeds.read([str(path)], "s", [1])["methods"]
    assert read.items == {3: {"one": ITEMS, "two": other}} and read.remarks == {3: {"one": {"minutes": 2.0}}}


def test_other_questions_or_halves_are_not_kept() -> None:
    assert earlier_seeds.encode({3: {"one": ITEMS, "two": {"t0-0": ("t0", 1.0)}}}, {}) == {}
    assert earlier_seeds.encode({3: {"one": {"t0-0": ("t0", 0.5)}}}, {}) == {} == earlier_seeds.encode({}, {})


def summary(runs: Any, earlier: Any) -> dict[str, Any]:
    return json.loads(json.dumps(plain(report.summary(groups_of(CFG), 200, runs, arms_of(CFG), {}, earlier))))


def test_seeds_of_two_commands_give_the_figures_of_one(tmp_path: Path) -> None:
    """Seeds 0 and 1 together, against seed 1 with the file of seed 0."""
    runs = ablation_runs.make(tmp_path / "runs", (0, 1), shift=3)
    together = summary(runs, {})
    (tmp_path / "first.json").write_text(json.dumps({"settings": "s", **summary({0: runs[0]}, {})}))
    added = summary({1: runs[1]}, earlier_seeds.read([str(tmp_path / "first.json")], "s", [1]))
    assert added["seeds"] == together["seeds"] == [0, 1]
    known = {group["name"]: group for group in together["groups"]}
    assert {"base", "best-of", "kl", "segments", "pairs", "readout", "judge"} <= known.keys()
    assert [group["name"] for group in added["groups"]] == [*known]
    for group in added["groups"]:
        mine, theirs = (
            [(each["key"], each["pooled"], each["remarks"]) for each in values["entries"]]
            for values in (group, known[group["name"]])
        )
        assert mine == theirs and mine
        assert group["claims"] == known[group["name"]]["claims"] and all(claim["pooled"]["n"] == 80 for claim in group["claims"])


def test_a_seeds_own_items_there_and_back(tmp_path: Path) -> None:
    """Pairs of two clips, one of them undecided; the names of pairs are not kept."""
    one = {"p1#0": ("3/b", 0.5), "p0#1": ("3/a", 0.0), "p0#0": ("3/a", 1.0)}
    two = {name: (clip, 1 - value) for name, (clip, value) in one.items()}
    values = earlier_seeds.encode_own({3: {"one": one, "two": two}}, {"one": "judge", "two": "judge"})
    assert values == {"3": {"judge": {"clips": [2, 1], "values": {"one": "10h", "two": "01h"}}}}
    path = tmp_path / "ablation.json"
    group = {"name": "context", "answers": {}, "own": values, "remarks": {"3": {"one": {"decided": 0.5}}}}
    path.write_text(json.dumps({"settings": "s", "groups": [group]}))
    read = earlier_seeds.read([str(path)], "s", [1])["context"]
    assert [[*items.values()] for items in read.items[3].values()] == [
        [("3/000000", 1.0), ("3/000000", 0.0), ("3/000001", 0.5)],
        [("3/000000", 0.0), ("3/000000", 1.0), ("3/000001", 0.5)],
    ]
    assert read.remarks == {3: {"one": {"decided": 0.5}}}


ODD = (
    '{"settings": "s", "groups": [{"name": "m", '
    '"answers": {"questions": {"t0": ["t0-0"]}, "right": {"1": {"a": "%s"}}, "remarks": {}}}]}'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"groups": []}', "not an ablation.json of this version"),
        ('{"settings": "x", "groups": []}', "made with other settings"),
        ('{"groups": [3]}', "not an ablation.json"),
    ],
)
def test_files_that_are_none_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    words = ["ablate", "--config", str(small_config.TINY), "--runs-dir", str(tmp_path), "--add", str(path)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{path}: " in line and message in line


def test_a_seed_that_two_files_have_is_refused(tmp_path: Path) -> None:
    values = {"settings": "s", "groups": [{"name": "methods", "answers": earlier_seeds.encode({3: {"one": ITEMS}}, {})}]}
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="b.json: seed 3 is among --seeds or in another file, too"):
        earlier_seeds.read(list(map(str, paths)), "s", [1])
    with pytest.raises(UserError, match="a.json: seed 3 is among --seeds"):
        earlier_seeds.read([str(paths[0])], "s", [3])
    with pytest.raises(UserError, match="no such file"):
        earlier_seeds.read([str(tmp_path / "none.json")], "s", [1])


def test_earlier_seeds_that_answered_other_questions_are_refused(tmp_path: Path) -> None:
    runs = ablation_runs.make(tmp_path / "runs", (0, 1), shift=3)
    values = {"settings": "s", **summary({0: runs[0]}, {})}
    text = json.dumps(values).replace('"t0-0"', '"x0-0"')
    (tmp_path / "first.json").write_text(text)
    with pytest.raises(UserError, match="--add: the questions of earlier seeds are others"):
        summary({1: runs[1]}, earlier_seeds.read([str(tmp_path / "first.json")], "s", [1]))
