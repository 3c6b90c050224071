"""Two processes on a CPU do what one does: the same lines, and weights that differ by the order of additions alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.fixtures import small_config
from tests.fixtures.small_config import begin, lines, manifest

ROOT = Path(__file__).parents[1]
SMALL = (  # several micro-batches in each step, and an odd number of them: one process has more to do
    "model.device=cpu sft.micro_batch_size=1 sft.batch_size=3 reward.micro_batch_size=1 reward.batch_size=3"
    " rollout.batch_size=2 rollout.rollouts=6 ppo.minibatch_size=3 ppo.micro_batch_size=1 ppo.iterations=2 feedback.batch_size=5"
).split()


def launch(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of two processes."""
    flags = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
    )
    what = [script] if script else ["-m", "minirlaif"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, *what, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


FUNCTIONS = """
import json, sys, torch
from minirlaif import distributed
distributed.start(on_cpu=True)
weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(1))]
weights[0].grad = torch.full((2, 3), 1.0 + distributed.rank())
if distributed.rank() == 1:
    weights[1].grad = torch.arange(4.0)
distributed.sum_gradients(weights)
result = {
    "count": distributed.count(),
    "gradients": [w.grad.flatten().tolist() for w in weights],
    "shared": list(distributed.share(list("abcde"))),
    "mapped": distributed.mapped(str.upper, list("abcde")),
    "none": distributed.mapped(str.upper, []),
    "total": distributed.total({"x": 1.5, **({"y": 2} if distributed.rank() else {})}),
    "leader": distributed.from_leader(lambda: f"from {distributed.rank()}"),
}
with distributed.alone():
    result["alone"] = [distributed.count(), list(distributed.share([1, 2]))] if distributed.leads() else []
open(f"{sys.argv[1]}/{distributed.rank()}.json", "w").write(json.dumps(result))
"""


def test_what_two_processes_exchange(tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(FUNCTIONS)
    done = launch(str(tmp_path), script=str(script))
    assert done.returncode == 0, done.stderr[-8000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first.pop("shared"), second.pop("shared")) == (["a", "c", "e"], ["b", "d"])
    assert (first.pop("alone"), second.pop("alone")) == ([1, [1, 2]], [])
    assert first == second == {
        "count": 2,
        "gradients": [[3.0] * 6, [0.0, 1.0, 2.0, 3.0], [0.0]],
        "mapped": list("ABCDE"),
        "none": [],
        "total": {"x": 3.0, "y": 2},
        "leader": "from 0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process made."""
    return small_config.make(tmp_path_factory.mktemp("one"), ("world", "sft", "feedback", "reward", "ppo"), *SMALL)


def both(one: Path, folder: Path, given: tuple[str, ...], stage: str) -> Path:
    """A stage made by two processes from the same predecessors."""
    run = begin(one, folder, given)
    done = launch(*small_config.words(folder, [stage], *SMALL))
    assert done.returncode == 0, done.stderr[-8000:]
    return run


def assert_like(one: Path, two: Path, names: tuple[str, ...]) -> None:
    for name in names:
        ours, theirs = load_file(one / name), load_file(two / name)
        assert ours.keys() == theirs.keys()
        worst = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
        moved = max(float(ours[key].abs().max()) for key in ours)
        assert worst < 1e-2 * moved, (name, worst, moved)  # AdamW's first steps turn tiny gradients into whole steps


ADAPTER = "adapter/adapter_model.safetensors"


def test_two_processes_train_the_same_sft_model(one: Path, tmp_path: Path) -> None:
    run = both(one, tmp_path, ("world",), "sft")
    assert_like(one / "sft", run / "sft", (ADAPTER,))
    ours, theirs = (lines(r / "sft" / "metrics.jsonl") for r in (one, run))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-4)
    assert manifest(run, "sft")["counters"]["decodes"] == manifest(one, "sft")["counters"]["decodes"]


def test_two_processes_give_the_same_feedback(one: Path, tmp_path: Path) -> None:
    run = both(one, tmp_path, ("world", "sft"), "feedback")
    for name in ("answers", "contexts", "preferences", "verdicts"):
        assert (run / "feedback" / f"{name}.jsonl").read_text() == (one / "feedback" / f"{name}.jsonl").read_text(), name
    assert not list(run.glob("*.partial"))


def test_two_processes_train_the_same_reward_model(one: Path, tmp_path: Path) -> None:
    run = both(one, tmp_path, ("world", "sft", "feedback"), "reward")
    assert_like(one / "reward", run / "reward", (ADAPTER, "adapter/head.safetensors"))


def test_two_processes_train_the_same_policy(one: Path, tmp_path: Path) -> None:
    run = both(one, tmp_path, ("world", "sft", "feedback", "reward"), "ppo")
    ours, theirs = (lines(r / "ppo" / "metrics.jsonl") for r in (one, run))
    assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-3)
    assert [row["length"] for row in ours] == [row["length"] for row in theirs]
    tokens = [manifest(r, "ppo")["counters"]["prefilled_tokens"] for r in (one, run)]
    assert tokens[0] == tokens[1] > 0
    assert_like(one / "ppo", run / "ppo", (ADAPTER,))


def test_two_processes_train_the_same_policy_without_a_value_model(one: Path, tmp_path: Path) -> None:
    """Six answers to two prompts: sampled by two processes, compared by both, learned from in minibatches of three."""
    group = (
        "optimize.methods=[grpo] rollout.samples_per_prompt=3 group.iterations=2 group.minibatch_size=3 group.micro_batch_size=1"
    )
    runs = []
    for name in ("alone", "together"):
        runs.append(begin(one, tmp_path / name, ("world", "sft", "feedback", "reward")))
        if name == "alone":
            small_config.make(tmp_path / name, ["grpo"], *SMALL, *group.split())
        else:
            done = launch(*small_config.words(tmp_path / name, ["grpo"], *SMALL, *group.split()))
            assert done.returncode == 0, done.stderr[-8000:]
    ours, theirs = (lines(run / "grpo" / "metrics.jsonl") for run in runs)
    for name in ("score", "kl_loss", "equal_groups"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], abs=1e-3)
    assert [row["length"] for row in ours] == [row["length"] for row in theirs]
    assert_like(runs[0] / "grpo", runs[1] / "grpo", (ADAPTER,))
