"""Kills and damaged files by the hundred, on the shrunken run: the results are the same, or one line names what helps.

A kill comes at a random instant, or before the n-th rename, replace, sync, removal or open for writing. Files are damaged as a
power loss or a bad disk does it, in unfinished and finished stages, the feature cache and the state; what a refusal names is
then done, and must end in the same results.
"""

from __future__ import annotations

import functools
import random
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from tests.fixtures import forked, small_config
from tests.fixtures.forked import DAMAGES, Outcome, damaged
from tests.fixtures.small_config import STAGES, lines, manifest, results

pytestmark = pytest.mark.learning
CHAINS, KILLS = 7, 4  # runs of each stage, and kills of each
CASES = {"partial": 24, "cache": 5, "finished": 9}  # damages of each kind to each interrupted run


@dataclass(frozen=True)
class Reference:
    """A run that nothing interrupted. before: a copy of it before each stage; after: at its end; changes: kind and path of each
    change that a stage made; seconds: what it took."""

    folder: Path
    changes: dict[str, list[tuple[str, str]]]
    seconds: dict[str, float]

    def before(self, stage: str) -> Path:
        return self.folder / f"before-{stage}"

    @property
    def after(self) -> Path:
        return self.folder / "runs" / "a"


def command(runs: Path, *stages: str) -> functools.partial[int]:
    return functools.partial(main.main, small_config.words(runs, stages))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    forked.preload()
    folder = tmp_path_factory.mktemp("reference")
    made, log = Reference(folder, {}, {}), folder / "changes"
    for stage in STAGES:
        shutil.copytree(made.after, made.before(stage)) if made.after.is_dir() else made.before(stage).mkdir()

        def logged(stage: str = stage) -> int:
            with log.open("w") as file:
                forked.watch(made.after, lambda kind, path: print(kind, path, file=file))
                return command(made.after.parent, stage)()

        outcome = forked.forked(logged)
        assert outcome.code == 0, outcome.text
        made.changes[stage] = [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()]  # type: ignore[misc]
        made.seconds[stage] = outcome.seconds
    return made


def differences(run: Path, reference: Path, stages: tuple[str, ...]) -> list[str]:
    """Files and identities of finished stages that are not those of the reference; metrics have timings in them."""
    problems = [
        f"{stage}: identity" for stage in stages if manifest(run, stage)["identity"] != manifest(reference, stage)["identity"]
    ]
    mine, theirs = results(run, stages), results(reference, stages)
    for name in sorted(mine.keys() | theirs.keys()):
        if name.endswith("metrics.jsonl"):
            rows = [[row["step"] for row in lines(folder / name)] for folder in (run, reference)]
            problems += [name] if rows[0] != rows[1] else []
        elif mine.get(name) != theirs.get(name):
            problems.append(name)
    for stage in stages:
        try:
            Run(run).require(stage)
        except UserError as error:
            problems.append(str(error))
    return problems


def killed_again_and_again(case: tuple[Reference, Path, str, int]) -> tuple[int, list[str]]:
    """A stage that is killed up to KILLS times and then finishes; the number of kills, and what differs."""
    reference, runs, stage, number = case
    dice = random.Random(f"{stage} {number}")
    runs = runs / f"{stage}-{number}"
    shutil.copytree(reference.before(stage), runs / "a")
    kills = 0

    def dying(at: int) -> int:
        forked.kill_at(runs / "a", at)
        return command(runs, stage)()

    for _ in range(KILLS):
        if dice.random() < 0.3:
            outcome = forked.forked(command(runs, stage), kill_after=dice.uniform(0.2, 1.0) * reference.seconds[stage])
        else:
            outcome = forked.forked(functools.partial(dying, dice.randint(1, len(reference.changes[stage]))))
        kills += outcome.code == -9
        if outcome.code != -9 and outcome.fault:
            return kills, [f"{stage} {number}: {outcome.fault}"]
    outcome = forked.forked(command(runs, stage))
    if outcome.code:
        return kills, [f"{stage} {number}: {outcome.text[-800:]}"]
    stages = STAGES[: STAGES.index(stage) + 1]
    problems = [f"{stage} {number}: {problem}" for problem in differences(runs / "a", reference.after, stages)]
    if not problems:
        shutil.rmtree(runs)
    return kills, problems


def test_killed_at_any_instant_a_stage_ends_in_the_same_bytes(reference: Reference, tmp_path: Path) -> None:
    cases = [(reference, tmp_path, stage, number) for number in range(CHAINS) for stage in STAGES]
    ends = forked.each(killed_again_and_again, cases)
    kills, problems = sum(count for count, _ in ends), [problem for _, found in ends for problem in found]
    print(f"{kills} kills in {len(cases)} runs of a stage; {len(problems)} differences")
    assert not problems and kills >= 100


@pytest.fixture(scope="module")
def interrupted(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by the stage that was killed soon after a commit in its middle; and "" for the finished run."""
    runs = {"": reference.after}
    for stage in STAGES[1:]:
        changes = reference.changes[stage]
        commits = [
            number for number, change in enumerate(changes, 1) if change[0] == "os.rename" and change[1].endswith("/state")
        ]
        folder = tmp_path_factory.mktemp(stage)
        shutil.copytree(reference.before(stage), folder / "a")

        def dying(folder: Path = folder, stage: str = stage, at: int = commits[len(commits) // 2] + 4) -> int:
            forked.kill_at(folder / "a", at)
            return command(folder, stage)()

        assert forked.forked(dying).code == -9
        runs[stage] = folder / "a"
        assert (runs[stage] / f"{stage}.partial" / "state" / "position.json").is_file()
    return runs


def chosen(run: Path, dice: random.Random) -> list[tuple[str, str]]:
    """Which file gets which damage."""
    groups: dict[str, list[tuple[str, str]]] = {kind: [] for kind in CASES}
    for name in sorted(small_config.files(run)):
        kind = "partial" if ".partial/" in name else "cache" if name.startswith("cache/") else "finished"
        if "/clips/" not in name or dice.random() < 0.1:
            groups[kind] += [(name, damage) for damage in DAMAGES]
    return [each for kind, most in CASES.items() for each in dice.sample(groups[kind], min(most, len(groups[kind])))]


def healed_or_refused(case: tuple[Reference, Path, str, Path, str, str]) -> tuple[str, str]:
    """How a damaged run goes on: "healed" or "refused", and what is wrong with that."""
    reference, source, stage, runs, name, damage = case
    shutil.copytree(source, runs / "a", copy_function=shutil.copy)  # with new times, as after a restart
    path, where = runs / "a" / name, f"{stage or 'finished'}: {name} {damage}: "
    data = damaged(path.read_bytes(), damage, random.Random(f"{stage} {name} {damage}"))
    path.unlink() if data is None else path.write_bytes(data)
    stages = STAGES[: STAGES.index(stage) + 1] if stage else STAGES
    first = outcome = forked.forked(command(runs, *stages))
    for _ in range(3):
        if outcome.fault:
            return "fault", where + outcome.fault
        if outcome.code == 0:
            break
        if problem := help_of(outcome):
            return "fault", where + problem
        outcome = forked.forked(command(runs, *stages))
    if outcome.code:
        return "fault", where + "what it names does not help: " + outcome.last
    problems = differences(runs / "a", reference.after, stages)
    if not problems:
        shutil.rmtree(runs)
    return "refused" if first.code else "healed", where + "; ".join([*problems, first.last]) if problems else ""


def help_of(outcome: Outcome) -> str:
    """Do what a refusal names; what is wrong with it, or ""."""
    if commands := re.findall(r"`python -m minirlaif (.*?)`", outcome.last):
        again = forked.forked(functools.partial(main.main, shlex.split(commands[-1])))
        return again.fault or ("" if again.code == 0 else f"`{commands[-1]}` ends with {again.last}, after {outcome.last}")
    if "delete it" in outcome.last and (path := re.search(r"minirlaif: (/\S+?):", outcome.last)):
        Path(path[1]).unlink()
        return ""
    return f"nothing that helps is named: {outcome.last}"


def test_damaged_files_heal_or_are_refused(reference: Reference, interrupted: dict[str, Path], tmp_path: Path) -> None:
    dice, cases = random.Random(13), []
    for stage, run in interrupted.items():
        for name, damage in chosen(run, dice):
            cases.append((reference, run, stage, tmp_path / str(len(cases)), name, damage))
    ends = forked.each(healed_or_refused, cases)
    counts, problems = Counter(kind for kind, _ in ends), [problem for _, problem in ends if problem]
    print(f"{len(cases)} damages: {dict(counts)}")
    assert not problems and len(cases) >= 200, "\n".join(problems)
