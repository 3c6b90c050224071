"""The exam of an arm, and the whole ablation on a shrunken world: killed, gone on with, equal to single commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from minirlaif import config
from minirlaif.ablation import run_arm
from minirlaif.algorithms import rollout
from minirlaif.models import generation
from minirlaif.models.generation import Completion
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.logprobs import EncodedPair
from minirlaif.runs.run import Run
from minirlaif.types import Sample, Turn
from tests.fixtures import small_config, tiny

TESTS = [Sample(f"t{number}", f"/clips/{number}", (Turn("what happens first?", f"answer {number}"),)) for number in range(3)]


def session_of(patch: pytest.MonkeyPatch, folder: Path, *settings: str) -> tuple[tiny.TinySession, Run]:
    base = tiny.backbone()
    cfg = tiny.settings("evaluate.batch_size=2", *settings)
    session = tiny.TinySession(base, {f"/clips/{n}": tiny.view(base, 2, n) for n in range(3)}, cfg)
    tiny.use_session(patch, run_arm, session, test=TESTS)
    run = Run(folder / "run")
    tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
    tiny.finished(run, "ppo", lambda path: tiny.save_adapter(path / "adapter", 2))
    tiny.finished(run, "reward", lambda path: tiny.save_adapter(path / "adapter", 3, head=True))
    return session, run


def settings_file(session: tiny.TinySession, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(config.dump(session.cfg))
    return path


@pytest.mark.parametrize(("who", "stage"), [("policy", "ppo"), ("sft", "sft")])
def test_the_model_in_question_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, who: str, stage: str) -> None:
    session, run = session_of(monkeypatch, tmp_path)
    questions: list[tuple[int, bool]] = []
    spare = tiny.TinySession(tiny.backbone())
    spare.adapters.add("it", 0, run.dir(stage) / "adapter")
    weights = tiny.digest(spare.adapters.parameters("it"))

    def sample(backbone: Any, prompts: Sequence[EncodedPrompt], *rest: Any, **named: Any) -> list[list[Completion]]:
        assert named["temperature"] == 0
        questions.append((len(prompts), tiny.digest(session.adapters.parameters(who)) == weights))
        return [[Completion(backbone.renderer.answer("a red circle."), True, ())] for _ in prompts]

    monkeypatch.setattr(generation, "sample", sample)
    run_arm.answer_questions(settings_file(session, tmp_path), run, who)
    assert questions == [(2, True), (1, True)]
    rows = tiny.read_lines(run.dir("exam") / "answers.jsonl")
    assert [(row["id"], row["truth"], row[who]) for row in rows] == [(f"t{n}", f"answer {n}", "a red circle.") for n in range(3)]
    assert set((run.manifest("exam") or {})["inputs"]) == {stage}


@pytest.mark.parametrize("context", [True, False])
def test_the_best_of_the_first_n_answers_is_the_one_with_the_highest_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, context: bool
) -> None:
    """Eight answers of one to eight words; scores by number of words. By hand: of the first two the second, and so on."""
    scores = {1: 0.0, 2: 0.5, 3: 0.2, 4: -1.0, 5: 0.1, 6: 0.4, 7: 0.9, 8: 1.3}
    session, run = session_of(monkeypatch, tmp_path, f"reward.context={context}".lower(), "rollout.batch_size=5")
    renderer, active = session.backbone.renderer, []
    read: list[str] = []

    def sample(backbone: Any, prompts: Sequence[EncodedPrompt], count: int, *rest: Any) -> list[list[Completion]]:
        active.append("sampled")
        # The eighth, which has the highest score, was cut at the limit of tokens.
        return [[Completion(renderer.answer(" ".join(["red"] * n)), n < 8, ()) for n in range(1, count + 1)] for _ in prompts]

    def scored(backbone: Any, head: Any, rows: Sequence[EncodedPair]) -> torch.Tensor:
        assert head is session.adapters.heads["reward"] and len(rows) <= 5
        read.extend(renderer.decode(row.prompt) for row in rows)
        return torch.tensor([scores[renderer.decode(row.answer).count("red")] for row in rows])

    message = {row.video: {"context": f"0s: a blue cross. {row.id}\n"} for row in TESTS}
    monkeypatch.setattr(run_arm, "sample", sample)
    monkeypatch.setattr(rollout, "reward_scores", scored)
    monkeypatch.setattr(run_arm, "describe", lambda *_: message)
    run_arm.answer_questions(settings_file(session, tmp_path), run, "best")
    for row in tiny.read_lines(run.dir("exam") / "answers.jsonl"):
        assert [row[f"best_{n}"].count("red") for n in (2, 4, 8)] == [2, 2, 7]
    assert len(read) == 24 and all(("a blue cross." in text) == context for text in read)


# The whole thing. Slow: every arm is a process that loads torch.


ARMS = ("bare", "sft-mixed", "pairs-250", "kl-0.3", "short", "best", "segments-1", "letter")


@pytest.mark.parametrize("gained", [True, False])
def test_an_arm_with_a_second_round_makes_it_in_the_folder_of_the_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gained: bool
) -> None:
    """With another seed, from the model of the first round; and the exam is that of the round which counts. A round that gained
    nothing is the last."""
    cfg = config.load(small_config.NO_LABELS, ["optimize.rounds=2"])
    run = Run(tmp_path)
    tiny.finished(run, "feedback", decided=4)
    tiny.finished(
        run, "distill", lambda path: tiny.save_adapter(path / "adapter", 1), chosen_iteration=3 * gained, dev_win_rate=0.6
    )
    (tmp_path / "config.yaml").write_text(config.dump(cfg))
    (tmp_path / "arm.json").write_text(json.dumps({"makes": ["round-2/feedback", "round-2/distill", "exam"], "exam": "policy"}))
    made: list[tuple[str, int, str]] = []
    producers: list[str] = []

    def stage(name: str) -> Any:
        def make(cfg: Any, run: Run) -> None:
            made.append((run.name(name), cfg.seed, run.start_model))
            if name == "distill":
                tiny.finished(
                    run, name, lambda path: tiny.save_adapter(path / "adapter", 2), chosen_iteration=1, dev_win_rate=0.7
                )
            else:
                tiny.finished(run, name, decided=4)

        return type("Stage", (), {"load": staticmethod(lambda: make)})

    monkeypatch.setattr(run_arm, "STAGES", {name: stage(name) for name in ("feedback", "distill")})
    monkeypatch.setattr(run_arm, "answer_questions", lambda file, run, who: producers.append(run.producer("rlaif")))
    assert run_arm.main(str(tmp_path)) == 0
    assert producers == ["round-2/distill" if gained else "distill"]
    names = [name for name, *_ in made]
    assert names == (["round-2/feedback", "round-2/distill"] if gained else [])
    assert all(seed != cfg.seed and start == "round-1/distill" for _, seed, start in made)


def command(runs_dir: Path) -> list[str]:
    words = ["--config", str(small_config.TINY), "--runs-dir", str(runs_dir), "--seeds", "0", "--arms", ",".join(ARMS)]
    return [sys.executable, "-m", "minirlaif", "ablate", *words, "--set", *small_config.SETTINGS]


@pytest.mark.learning
def test_an_ablation_that_is_killed_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    root = runs_dir / "ablation" / "seed0"
    first = subprocess.Popen(command(runs_dir), cwd=small_config.TINY.parent.parent)
    while sum((root / name / "arm.json").is_file() for name in ARMS) < 4:  # so at least two are finished: two at a time
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in root.glob("*/*/manifest.json") if not path.parent.is_symlink()}
    main = {path: path.stat().st_mtime_ns for path in (runs_dir / "seed0").glob("*/manifest.json")}
    assert finished and len(main) == 6
    done = subprocess.run(command(runs_dir), cwd=small_config.TINY.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in (finished | main).items())
    # Nothing was copied: an arm's folder holds links and small files.
    for name in ARMS:
        own = [path for path in (root / name).rglob("*") if path.is_file()]
        assert (root / name / "world").is_symlink() and not any(path.suffix in (".mp4", ".sqlite") for path in own)
    # The arm with nothing changed but the number of PPO steps starts from the same bytes as a run of its own would.
    judged = tiny.read_lines(root / "letter" / "feedback" / "answers.jsonl")
    whole = {row["id"]: row for row in tiny.read_lines(runs_dir / "seed0" / "feedback" / "answers.jsonl")}
    assert judged and all(whole[row["id"]] == row for row in judged)
    numbers = json.loads((runs_dir / "ablation" / "ablation.json").read_text())
    assert [group["name"] for group in numbers["groups"]] == [
        *("context", "segments", "pairs", "curriculum", "best-of", "readout", "kl")
    ]
    assert all(path.stat().st_size for path in (runs_dir / "ablation").glob("ablation.*"))
    again = subprocess.run(command(runs_dir), cwd=small_config.TINY.parent.parent, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("done after") == 1  # only the look at the main run


@pytest.mark.learning
def test_the_exam_asks_as_evaluate_does(tmp_path: Path) -> None:
    """The same adapter, the same questions, the same answers, clip by clip through links."""
    main = small_config.make(tmp_path, small_config.STAGES)
    words = ["--config", str(small_config.TINY), "--runs-dir", str(tmp_path), "--seeds", "0", "--arms", "short"]
    main.rename(tmp_path / "seed0")
    three = [word if not word.startswith("ppo.iterations") else "ppo.iterations=3" for word in small_config.SETTINGS]
    done = subprocess.run(
        [sys.executable, "-m", "minirlaif", "ablate", *words, "--set", *three],
        cwd=small_config.TINY.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0
    arm, main = tmp_path / "ablation" / "seed0" / "short", tmp_path / "seed0"
    run = Run(arm)
    run.set_aside("ppo")
    run.set_aside("exam")
    (arm / "ppo").symlink_to(main / "ppo")  # now the arm's policy is the main run's
    run_arm.answer_questions(arm / "config.yaml", run, "policy")
    mine = {row["id"]: row["policy"] for row in tiny.read_lines(arm / "exam" / "answers.jsonl")}
    assert mine == {row["id"]: row["rlaif"] for row in tiny.read_lines(main / "evaluate" / "answers.jsonl")}
    assert mine and (run.manifest("exam") or {})["counters"]["encodes"] == 0  # the main run's cache has everything
