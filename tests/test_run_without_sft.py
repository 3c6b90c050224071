"""A run without supervised fine-tuning, on a shrunken world: its stages, a kill, its truth, the report, the app's models."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import yaml

from minirlaif.app.sessions import compared_models
from minirlaif.cli import main
from minirlaif.feedback.readout import judge_of_run
from minirlaif.inference.engine import SamplingParams
from minirlaif.inference.hf_engine import HfEngine
from minirlaif.runs.records import write_sealed
from minirlaif.runs.run import Run
from tests.fixtures.processes import kill_once_saved
from tests.fixtures.small_config import begin, files, lines, manifest, results

ROOT = Path(__file__).parents[1]
STAGES = ("world", "feedback", "reward", "distill", "ppo", "evaluate", "report")
SETTINGS = (
    "world.prompt_clips=8 world.dev_clips=3 world.test_clips=4 feedback.batch_size=6 feedback.margin=0 feedback.answers=2"
    " feedback.context_answers=2 feedback.pairs_per_prompt=2"
    " optimize.methods=[distill,ppo] distill.epochs=2 distill.batch_size=6 distill.dev_every=3 distill.save_every=2"
    " reward.epochs=1 reward.batch_size=4 reward.save_steps=1 reward.min_accuracy=0 reward.held_out=0.3 reward.context=true"
    " rollout.rollouts=8 rollout.max_new_tokens=40 ppo.iterations=2 ppo.minibatch_size=4 ppo.dev_every=1 ppo.save_every=1"
    " evaluate.bootstrap=50"
).split()


# Whole runs of one of three methods that differ in a few lines, which tests/stages/test_group.py has for all of them; the others
# belong to the measured tier.
METHODS = ["grpo", *(pytest.param(name, marks=pytest.mark.learning) for name in ("rloo", "dr_grpo"))]


def words(runs_dir: Path, *settings: str, stages: tuple[str, ...] = ()) -> list[str]:
    flags = ["--config", str(ROOT / "configs" / "tiny-nolabels.yaml"), "--run", "a", "--runs-dir", str(runs_dir)]
    return ["run", *stages, *flags, "--set", *SETTINGS, *settings]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert main.main(words(folder)) == 0
    return folder / "a"


def test_it_has_no_sft_stage_and_every_stage_names_what_it_is_made_from(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert {path.name for path in finished.iterdir() if path.is_dir()} == {*STAGES[:-1], "cache"}
    inputs = {stage: sorted(manifest(finished, stage)["inputs"]) for stage in STAGES[:-1]}
    assert inputs == {
        "world": [],
        "feedback": ["world"],
        "reward": ["feedback"],
        "distill": ["feedback"],
        "ppo": ["distill", "feedback", "reward"],
        "evaluate": ["feedback", "ppo", "reward"],
    }
    assert main.main(["status", "--run", "a", "--runs-dir", str(finished.parent)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[stage, "finished"] for stage in STAGES] and rows[-2][-2:] == ["over", "base"]


def test_answers_carry_the_ids_that_were_sampled_and_who_saw_the_descriptions(finished: Path):
    rows = lines(finished / "feedback" / "answers.jsonl")
    assert len(rows) == 24
    for row in rows:
        assert row["with_context"] == [False, False, True, True] and len(row["ids"]) == len(row["stopped"]) == 4
        ended = {ids[-1] for ids, stopped in zip(row["ids"], row["stopped"], strict=True) if stopped}
        assert len(ended) == 1  # the end token
    learned = sum(
        stopped and context for row in rows for stopped, context in zip(row["stopped"], row["with_context"], strict=True)
    )
    metrics = manifest(finished, "distill")["metrics"]
    assert metrics["answers"] == learned == 48 - metrics["left_out"]


def test_the_first_pair_of_a_prompt_is_the_clearest(finished: Path):
    """The judge ranks all candidates: its verdict on the best and the worst has the widest margin."""
    margins: dict[str, list[float]] = {}
    for row in lines(finished / "feedback" / "verdicts.jsonl"):
        margins.setdefault(row["id"].split("#")[0], []).append(row["margin"])
    several = [each for each in margins.values() if len(each) == 2]
    assert len(several) > 2 and all(first >= second - 1e-4 for first, second in several)
    assert any(first > second + 0.1 for first, second in several)


def test_the_report_compares_with_the_base(finished: Path):
    report = json.loads((finished / "report.json").read_text())
    assert report["start"] == "base" and report["method"] == "ppo" and "sft" not in report["accuracy"]
    assert report["accuracy_gain"]["mean"] is None and set(report["gain_over_base"]) == {"mean", "ci95_low", "ci95_high"}
    answers = lines(finished / "evaluate" / "answers.jsonl")
    assert set(answers[0]) >= {"base", "rlaif", "base_blind"} and "sft" not in answers[0]
    page = (finished / "report.html").read_text()
    assert "Supervised fine-tuning is off" in page and "over base" in page and "over SFT" not in page and "None" not in page


def killed(command: list[str], run: Path, stage: str, folder: Path) -> int:
    """Start a command, kill -9 it once `stage` has saved a state; returns the number of steps that were saved."""
    position = run / f"{stage}.partial" / "state" / "position.json"
    kill_once_saved(["-m", "minirlaif", *command], position, folder)
    assert not (run / stage).exists(), f"{stage} was finished before it could be killed"
    return int(json.loads(position.read_text())["step"])


def test_a_killed_distillation_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path):
    run = begin(finished, tmp_path / "runs", ["world", "feedback", "reward"])
    for stage, steps in (("distill", 16), ("ppo", 2)):
        assert 0 < killed(words(tmp_path / "runs"), run, stage, tmp_path) < steps
    assert main.main(words(tmp_path / "runs")) == 0
    mine, theirs = (results(folder, ("distill", "ppo", "evaluate")) for folder in (run, finished))
    assert {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)} <= {
        f"{stage}/metrics.jsonl" for stage in ("distill", "ppo", "evaluate")
    }
    assert all(manifest(run, stage)["identity"] == manifest(finished, stage)["identity"] for stage in ("distill", "ppo"))


def mislead(run: Path) -> None:
    """Shuffle the truth of a run's world, as if that had been made so."""
    record = manifest(run, "world")
    for name, columns in (("truth.jsonl", ("answer", "segments")), ("test.jsonl", ("answer", "key"))):
        rows = lines(run / "world" / name)
        moved = rows[len(rows) // 2 :] + rows[: len(rows) // 2]
        text = "".join(
            json.dumps({**row, **{column: other[column] for column in columns}}) + "\n"
            for row, other in zip(rows, moved, strict=True)
        ).encode()
        (run / "world" / name).write_bytes(text)
        record["outputs"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    record["identity"] = "another world"
    write_sealed(run / "world" / "manifest.json", record)


def test_truth_reaches_no_stage_before_evaluate(finished: Path, tmp_path: Path):
    """With truths shuffled, feedback, distillation and PPO write the same bytes, and only `evaluate` notices."""
    run = begin(finished, tmp_path, ["world"])
    mislead(run)
    assert main.main(words(tmp_path, stages=("feedback", "reward", "distill", "ppo", "evaluate"))) == 0
    stages = ("feedback", "reward", "distill", "ppo")
    mine, theirs = results(run, stages), results(finished, stages)
    assert {name for name in mine if mine[name] != theirs[name]} <= {f"{stage}/metrics.jsonl" for stage in stages}
    one, other = (json.loads((folder / "evaluate" / "result.json").read_text()) for folder in (run, finished))
    assert one["accuracy"] != other["accuracy"]


def test_the_judge_scores_in_place_of_a_reward_model(finished: Path, tmp_path: Path):
    """After distillation the base judges, which is no longer the reference. Killed on the way, and with shuffled truth: the same
    bytes as in one go. There is no reward model anywhere."""
    settings = ["optimize.methods=[distill,grpo]", "optimize.reward=rank", *GROUPS]
    stages = ("feedback", "distill", "grpo")
    made = []
    for name in ("straight", "killed"):
        run = begin(finished, tmp_path / name, ["world"])
        command = words(tmp_path / name, *settings)
        if name == "killed":
            mislead(run)
            assert 0 < killed(command, run, "grpo", tmp_path) < 3
        assert main.main(command) == 0
        made.append(results(run, stages))
    assert {name for name in made[0] if made[0][name] != made[1][name]} <= {f"{stage}/metrics.jsonl" for stage in stages}
    straight, rows = (lines(tmp_path / name / "a" / "grpo" / "metrics.jsonl") for name in ("straight", "killed"))
    for name in ("policy_loss", "policy_grad_norm", "score"):
        assert [row[name] for row in rows] == [row[name] for row in straight]
    assert all(abs(row["score"]) < 1e-6 for row in rows)  # ranks of a prompt's answers add up to nothing
    assert not (run / "reward").exists() and sorted(manifest(run, "grpo")["inputs"]) == ["distill", "feedback"]
    report, page = json.loads((run / "report.json").read_text()), (run / "report.html").read_text()
    assert report["reward_model"] is None and "Reward model" not in page and "None" not in page


def test_the_app_compares_the_aligned_model_with_the_base(finished: Path):
    engine = HfEngine(Run(finished), judge_of_run)
    try:
        assert engine.models == ("rlaif", "base") and compared_models(engine.models) == ("rlaif", "base")
        clip = engine.load_clip(str(finished / "world" / "clips" / "dev0000.mp4"))
        sampling = SamplingParams(0.0, 1.0, 8, 0)
        texts = ["".join(engine.stream(clip, (), "what happens first?", sampling, model)) for model in engine.models]
        assert all(texts)
    finally:
        engine.close()
    assert compared_models(("sft", "base")) == compared_models(("rlaif",)) == ()
    assert compared_models(("rlaif", "sft", "base")) == ("rlaif", "sft")


@pytest.mark.parametrize("method", METHODS)
def test_methods_without_a_value_model_in_four_bits(finished: Path, tmp_path: Path, method: str):
    run = begin(finished, tmp_path, ["world"])
    settings = ["model.quantization=nf4", f"optimize.methods=[{method}]", *GROUPS]
    assert main.main(words(tmp_path, *settings, stages=("feedback", "reward", method))) == 0
    rows = lines(run / method / "metrics.jsonl")
    assert all(row["first_ratio_gap"] < 1e-3 for row in rows) and all(row["policy_grad_norm"] > 0 for row in rows)
    assert abs(rows[-1]["kl"]) > 1e-3  # it has moved
    assert files(run / method) >= {"adapter/adapter_model.safetensors"}


@pytest.mark.parametrize("method", ["distill", "bestofn", "dpo"])
def test_four_bits(finished: Path, tmp_path: Path, method: str):
    run = begin(finished, tmp_path, ["world"])
    settings = [
        "model.quantization=nf4",
        f"optimize.methods=[{method}]",
        "distill.epochs=6",
        "dpo.epochs=4",
        "dpo.batch_size=6",
        "dpo.learning_rate=0.002",
    ]
    assert main.main(words(tmp_path, *settings, stages=("feedback", method))) == 0
    losses = [row["loss"] for row in lines(run / method / "metrics.jsonl")]
    assert len(losses) > 5 and losses[-1] < losses[0] and files(run / method) >= {"adapter/adapter_model.safetensors"}


def test_the_answers_that_the_judge_found_best_are_learned(finished: Path, tmp_path: Path):
    """One for each prompt that has any, or whose answers are all the same; killed on the way: same bytes as in one go."""
    made = []
    for name in ("straight", "killed"):
        run = begin(finished, tmp_path / name, ["world", "feedback"])
        command = words(tmp_path / name, "optimize.methods=[bestofn]", "distill.save_every=1")
        if name == "killed":
            assert 0 < killed(command, run, "bestofn", tmp_path) < 8
        assert main.main(command) == 0
        made.append(results(run, ("bestofn", "evaluate")))
    assert {name for name in made[0] if made[0][name] != made[1][name]} <= {"bestofn/metrics.jsonl", "evaluate/metrics.jsonl"}
    assert sorted(manifest(run, "bestofn")["inputs"]) == ["feedback"] and not (run / "reward").exists()
    prompts = {row["id"].split("#")[0] for row in lines(run / "feedback" / "preferences.jsonl")}
    prompts |= {row["id"] for row in lines(run / "feedback" / "answers.jsonl") if len(set(row["answers"])) == 1}
    metrics = manifest(run, "bestofn")["metrics"]
    assert metrics["answers"] == len(prompts) == 24 - metrics["left_out"] and prompts
    page = (run / "report.html").read_text()
    assert (
        "Best-of-n loss" in page and "None" not in page and json.loads((run / "report.json").read_text())["method"] == "bestofn"
    )


def test_preferences_after_distillation(finished: Path, tmp_path: Path):
    """dpo starts from distill's adapter, which is its reference, so its first loss is that of a coin; the base judges on dev."""
    run = begin(finished, tmp_path, ["world", "feedback", "distill"])
    settings = ["optimize.methods=[distill,dpo]", "dpo.batch_size=6", "dpo.learning_rate=0.002", "dpo.dev_every=2"]
    assert main.main(words(tmp_path, *settings)) == 0
    assert sorted(manifest(run, "dpo")["inputs"]) == ["distill", "feedback"] and not (run / "reward").exists()
    first = lines(run / "dpo" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4) and first["margin"] == pytest.approx(0.0, abs=1e-4)
    report = json.loads((run / "report.json").read_text())
    assert report["method"] == "dpo" and report["reward_model"] is None and "None" not in (run / "report.html").read_text()


GROUPS = [
    "rollout.samples_per_prompt=4", "group.iterations=3", "group.minibatch_size=4", "group.learning_rate=0.002",
    "group.warmup_steps=0", "group.dev_every=1", "group.save_every=1",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_answers_to_one_prompt_are_compared(finished: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]):
    """From the base without a value model, killed on the way: same bytes as in one go; the report knows the method."""
    made = []
    for name in ("straight", "killed"):
        run = begin(finished, tmp_path / name, ["world", "feedback", "reward"])
        command = words(tmp_path / name, f"optimize.methods=[{method}]", *GROUPS)
        if name == "killed":
            assert 0 < killed(command, run, method, tmp_path) < 3
        assert main.main(command) == 0
        made.append(results(run, (method, "evaluate")))
    assert {name for name in made[0] if made[0][name] != made[1][name]} <= {f"{method}/metrics.jsonl", "evaluate/metrics.jsonl"}
    assert sorted(manifest(run, method)["inputs"]) == ["feedback", "reward"] and not (run / "ppo").exists()
    rows = lines(run / method / "metrics.jsonl")
    # The kept adapter may be that of an early iteration; the numbers of all iterations tell the runs apart.
    straight = lines(tmp_path / "straight" / "a" / method / "metrics.jsonl")
    for name in ("policy_loss", "policy_grad_norm", "score", "kl"):
        assert [row[name] for row in rows] == [row[name] for row in straight]
    assert len(rows) == 3 and not any("value" in key or "explained" in key for row in rows for key in row)
    assert all(0 <= row["equal_groups"] < 1 for row in rows) and rows[0]["kl"] == pytest.approx(0, abs=1e-4) != rows[-1]["kl"]
    report = json.loads((run / "report.json").read_text())
    assert report["method"] == method and report[method]["dev_win_rate"] is not None
    page = (run / "report.html").read_text()
    assert "Equal groups" in page and "PPO" not in page and "None" not in page
    capsys.readouterr()
    assert main.main(["status", "--run", "a", "--runs-dir", str(run.parent)]) == 0
    state = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert state[method] == "finished" and "ppo" not in state


@pytest.mark.parametrize(
    ("settings", "words_of_error"),
    [
        (
            ["optimize.methods=[rloo]"],
            "has rloo: answers to one prompt are compared, set rollout.samples_per_prompt to 2 or more",
        ),
        (
            ["rollout.samples_per_prompt=3"],
            "rollout.rollouts is 8, no multiple of rollout.samples_per_prompt, which is 3: set it to 9",
        ),
        (["rollout.samples_per_prompt=0"], "rollout.samples_per_prompt must be above 0"),
        (["optimize.methods=[ppo,distil]"], "names 'distil', which is no method (did you mean distill?)"),
        (["optimize.methods=[ppo,ppo]"], "names ppo twice"),
        (["feedback.context_answers=0"], "set feedback.context_answers to 1 or more"),
        (
            ["optimize.methods=[bestofn]", "feedback.answers=1", "feedback.context_answers=0"],
            "has bestofn, which picks one of several answers: set feedback.answers to 2 or more",
        ),
        (["feedback.context=false"], "set feedback.context to true"),
        (["optimize.methods=[]"], "optimize.methods is empty"),
    ],
)
def test_methods_that_do_not_go_together(settings, words_of_error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(words(tmp_path, *settings)) == 2
    message = capsys.readouterr().err
    assert words_of_error in message and message.count("\n") == 1 and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("stage", "settings", "words_of_error"),
    [
        ("sft", [], "sft: off, sft.enabled is false"),
        (
            "ppo",
            ["optimize.methods=[distill]"],
            "ppo: not among optimize.methods; add it: `--set optimize.methods=[distill,ppo]`",
        ),
        ("reward", ["optimize.methods=[distill]"], "reward: no method of this run scores with it"),
    ],
)
def test_a_stage_that_the_run_does_not_have(stage, settings, words_of_error, tmp_path, capsys: pytest.CaptureFixture[str]):
    assert main.main(words(tmp_path, *settings, stages=(stage,))) == 2
    assert words_of_error in capsys.readouterr().err


def test_written_answers_without_sft_are_said_to_be_unread(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = yaml.safe_load((ROOT / "configs" / "tiny-nolabels.yaml").read_text())
    config["data"] = {"sft": ["a.jsonl"], "prompts": ["b.jsonl"], "test": ["b.jsonl"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main.main(["run", "--config", str(tmp_path / "c.yaml"), "--run", "a", "--runs-dir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "data.sft is not read, because sft.enabled is false" in output.out and "b.jsonl" in output.err


def test_a_limit_that_cuts_answers_chooses_none_of_them_and_says_what_to_raise(finished: Path, tmp_path: Path, capsys):
    run = begin(finished, tmp_path, ["world"])
    cut = ["feedback.max_new_tokens=6", "feedback.describe_tokens=3"]
    assert main.main(words(tmp_path, *cut, stages=("feedback",))) == 0
    output = capsys.readouterr().out
    rows = lines(run / "feedback" / "answers.jsonl")
    texts = {row["id"]: dict(zip(row["answers"], row["stopped"], strict=True)) for row in rows}
    stopped = [each for row in rows for each in row["stopped"]]
    assert stopped.count(False) > len(stopped) / 2
    assert f"{stopped.count(False)} of {len(stopped)} answers were cut at the limit of tokens" in output
    assert "raise feedback.max_new_tokens, which is 6" in output and "raise feedback.describe_tokens, which is 3" in output
    assert manifest(run, "feedback")["metrics"]["cut_answers"] == stopped.count(False)
    chosen = [
        (row["id"].split("#")[0], row[side])
        for row in lines(run / "feedback" / "preferences.jsonl")
        for side in ("chosen", "rejected")
    ]
    assert chosen and all(texts[name][text] for name, text in chosen)
    assert main.main(words(tmp_path, *cut, "optimize.methods=[distill]", stages=("distill",))) == 0
    learned = manifest(run, "distill")["metrics"]
    assert learned["answers"] + learned["left_out"] == 48 and learned["answers"] < 24
