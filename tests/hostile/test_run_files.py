"""Three hundred run folders with one mutated file, also forged together with its hashes, or something that is no file in its
place: every command and every page goes on, or says in one line what is wrong."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minirlaif.app import run_reader, tabs, views
from minirlaif.app.votes import VoteStore, agreement
from minirlaif.cli import main
from minirlaif.runs.run import Run
from tests.fixtures import forked, small_config
from tests.fixtures.forged import INSTEAD, forge, replace_with, write_json, write_rows
from tests.fixtures.mutations import mutated, mutated_rows, mutated_value
from tests.fixtures.small_config import STAGES

pytestmark = pytest.mark.hostile
CASES = {"forged rows": 120, "forged record": 70, "bytes": 70, "no file": 40}
LIMIT = 60.0  # seconds of one command; a stage of this run takes about five
ROWS = (
    *("feedback/verdicts.jsonl", "feedback/contexts.jsonl", "feedback/preferences.jsonl", "reward/held_out.jsonl") * 3,
    *("evaluate/answers.jsonl", "world/truth.jsonl") * 2,
    *("feedback/answers.jsonl", "world/test.jsonl", "world/prompts.jsonl", "left_out.jsonl", "votes/votes.jsonl"),
    *(f"{stage}/metrics.jsonl" for stage in STAGES[1:]),
)
RECORDS = (
    *(f"{stage}/manifest.json" for stage in STAGES),
    *("evaluate/result.json", "report.json", "ppo.partial/state/position.json", "ppo.partial/begun.json"),
)
SETTINGS = (  # smaller still than the small run: each case makes a stage of it
    "world.sft_clips=3 world.sft_short_clips=3 world.prompt_clips=5 world.dev_clips=1 world.test_clips=2"
    " world.questions_per_clip=2 feedback.answers=3 feedback.pairs_per_prompt=1 rollout.rollouts=4"
    " ppo.iterations=1 ppo.minibatch_size=2 evaluate.max_new_tokens=8"
).split()
READERS = {  # the stages that read a file, or the others of its folder
    "feedback/verdicts.jsonl": ("report", "evaluate"),
    "feedback/contexts.jsonl": ("ppo", "evaluate"),
    "feedback/preferences.jsonl": ("reward",),
    "reward/held_out.jsonl": ("evaluate",),
    "world/truth.jsonl": ("evaluate",),
    "world": ("sft", "evaluate", "report"),
    "sft": ("report", "feedback"),
    "feedback": ("report", "evaluate", "ppo"),
    "reward": ("report", "evaluate", "ppo"),
    "ppo": ("report", "evaluate"),
    "ppo.partial": ("ppo",),
}
LEFT_OUT = {"kind": "clip", "file": "../a.mp4", "row": 0, "reason": "empty (0 bytes)"}
VOTE = {
    "id": "v",
    "prompt": "q?",
    "output_1": "a",
    "output_2": "b",
    "preference": 1,
    "model_1": "rlaif",
    "model_2": "sft",
    "judge": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `a`, with votes, a list of what was left out, and a second attempt at PPO that was interrupted."""
    forked.preload()
    runs = tmp_path_factory.mktemp("finished")
    run = runs / "a"
    assert forked.forked(functools.partial(interrupted_ppo, runs), 600).code == -signal.SIGKILL
    (run / "ppo.partial").rename(runs / "begun")
    outcome = forked.forked(functools.partial(main.main, words(runs, *STAGES, "report")), 600)
    assert outcome.code == 0, outcome.text
    (runs / "begun").rename(run / "ppo.partial")
    position = json.loads((run / "ppo.partial" / "state" / "position.json").read_text())
    assert position["files"] and position["state"]
    write_rows(run / "left_out.jsonl", [LEFT_OUT, LEFT_OUT])
    (run / "votes").mkdir()
    write_rows(run / "votes" / "votes.jsonl", [VOTE, VOTE])
    return run


def interrupted_ppo(runs: Path) -> int:
    """All stages up to PPO, killed at the first change after its state was saved."""
    saved = False

    def seen(event: str, path: str) -> None:
        nonlocal saved
        if saved:
            os.kill(os.getpid(), signal.SIGKILL)
        saved = event == "os.rename" and path.endswith("ppo.partial/state")

    forked.watch(runs, seen)
    return main.main(words(runs, *STAGES[: STAGES.index("ppo") + 1]))


def words(runs: Path, *stages: str) -> list[str]:
    return small_config.words(runs, stages, *SETTINGS)


def damage(run: Path, kind: str, dice: random.Random) -> str:
    """Change one file of a run; its name and how."""
    names = sorted(small_config.files(run))
    if kind == "forged rows":
        name = dice.choice(ROWS)
        write_rows(run / name, mutated_rows([json.loads(line) for line in (run / name).read_text().splitlines()], dice))
    elif kind == "forged record":
        name = dice.choice(RECORDS)
        write_json(run / name, mutated_value(json.loads((run / name).read_text()), dice))
    elif kind == "bytes":
        name = dice.choice([name for name in names if not name.startswith("world/clips/") or dice.random() < 0.05])
        how, data = mutated((run / name).read_bytes(), dice, (run / dice.choice(names)).read_bytes())
        (run / name).write_bytes(data)
        if dice.random() < 0.5:
            return f"{name}: {how}"
    else:
        name = dice.choice([*ROWS, *RECORDS, "config.yaml", "cache/features.sqlite", "cache", *STAGES, "report.html"])
        what = dice.choice(INSTEAD)
        replace_with(run / name, what)
        return f"{name}: {what}"
    forge(run, name.split("/", 1)[0])
    return f"{name}: {kind}"


def show_pages(run_folder: Path) -> int:
    """Everything that the app shows of a run, and what it reads at its start."""
    run = Run(run_folder)
    run_reader.runs(run_folder.parent)
    run_reader.newest_run(run_folder.parent)
    run_reader.running_stage(run)
    run_reader.example_clips(run)
    run_reader.example_questions(run)
    shown = [tabs._shown(views.progress, run), tabs._shown(views.curves, run)]
    shown += [
        tabs._shown(views.gallery, run, group, page)[0] for group, page in [("all", 2), *((group, 1) for group in views.GROUPS)]
    ]
    shown += [tabs._shown(views.verdict, run, group, 1)[0] for group in run_reader.VERDICT_FILTERS]
    votes = VoteStore(run_folder / "votes").rows()
    shown += [views.votes(agreement(votes), ""), views.vote_cards(votes, False), views.vote_cards(votes, True)]
    print("minirlaif: a notice" if any('class="notice' in str(each) or "damaged" in str(each) for each in shown) else "shown")
    return 0


def commands(run: Path, name: str, dice: random.Random) -> list[tuple[str, Any]]:
    """What is done with the changed run: its pages, its state, and a stage that reads the file. Stages that are made again are
    deleted first."""
    runs = run.parent
    made = [("pages", functools.partial(show_pages, run))]
    made.append(("status", functools.partial(main.main, ["status", "--run", "a", "--runs-dir", str(runs)])))
    reader = dice.choice(READERS.get(name, READERS.get(name.split("/")[0], ("report",))))

    def make() -> int:
        for folder in (run / reader, *(() if name.startswith("ppo.partial") else (run / f"{reader}.partial",))):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
        return main.main(words(runs, reader))

    return [*made, (reader, make)]


def fault_of(outcome: forked.Outcome) -> str:
    """What is wrong with the end of a command, or ""."""
    lines = [line for line in outcome.text.splitlines() if line.startswith("minirlaif: ")]
    if outcome.fault:
        return outcome.fault
    if outcome.seconds > LIMIT:
        return f"took {outcome.seconds:.0f} s"
    return f"{len(lines)} lines: {outcome.text[-800:]}" if outcome.code == 2 and len(lines) != 1 else ""


def outcomes(case: tuple[Path, Path, str, int]) -> tuple[list[str], list[str]]:
    """How each command ended, and what was wrong with it."""
    source, runs, kind, number = case
    dice, run = random.Random(f"{kind} {number}"), runs / "a"
    shutil.copytree(source, run)
    what = damage(run, kind, dice)
    ends, problems = [], []
    for verb, call in commands(run, what.split(": ")[0], dice):
        outcome = forked.forked(call, LIMIT)
        ends.append(f"{verb} {'refused' if outcome.code else 'noticed' if 'minirlaif: ' in outcome.last else 'went on'}")
        fault = fault_of(outcome)
        if not fault and outcome.code and kind == "forged rows" and "`python -m minirlaif " not in outcome.last:
            fault = f"no command is named: {outcome.last}"
        if fault:
            problems.append(f"{kind} {number}, {what}, {verb}: {fault}")
    shutil.rmtree(runs)
    return ends, problems


def test_run_folders_with_a_mutated_file_are_read_or_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    kinds = [(kind, number) for kind, count in CASES.items() for number in range(count)]
    results = forked.each(outcomes, [(finished, tmp_path / f"{kind} {number}", kind, number) for kind, number in kinds])
    counts = Counter(end for ends, _ in results for end in ends)
    problems = [problem for _, found in results for problem in found]
    print(f"{len(kinds)} run folders: {dict(sorted(counts.items()))}; {len(problems)} faults")
    assert not problems, "\n\n".join(problems)
    for verb in ("report", "evaluate", "ppo"):
        assert counts[f"{verb} refused"] and counts[f"{verb} went on"], counts
    assert counts["pages noticed"] and counts["pages went on"]
