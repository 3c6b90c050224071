from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minirlaif.algorithms.advantages import whiten
from minirlaif.algorithms.losses import total_stats
from minirlaif.algorithms.ppo import Learner
from minirlaif.algorithms.rollout import Rollout
from minirlaif.config.seeds import seed_of
from minirlaif.errors import StageStopped, UserError
from minirlaif.models.logprobs import reward_scores, token_logprobs, token_values
from minirlaif.models.seeds import generator, shuffled
from minirlaif.stages import reward, sft
from minirlaif.training.checkpoint import MethodProgress, load_optimizer, save_optimizer
from minirlaif.training.optim import AdapterTrainer, check_finite, make_accelerator, make_optimizer, optimizer_step
from minirlaif.types import Preference, Sample, Turn
from tests.fixtures import tiny

QUESTIONS = (
    "what happens first?",
    "how many things happen?",
    "describe the video.",
    "what happens after the red circle?",
    "and?",
)
ANSWERS = (
    "a red circle moves left.",
    "two",
    "first a red circle moves left. second a blue cross.",
    "a blue cross.",
    "three four",
)


def session(*overrides: str) -> tiny.TinySession:
    base = tiny.backbone(seed=4)
    cfg = tiny.settings("ppo.minibatch_size=5", "reward.max_grad_norm=1.0", *overrides)
    made = tiny.TinySession(base, {f"clip{i}": tiny.view(base, 1 + i % 3, i) for i in range(5)}, cfg)
    for seed, role in enumerate(("sft", "policy", "reward", "value")):
        made.adapters.add(role, seed)
        tiny.stir(made.adapters, role, seed, 0.05)
    made.adapters.add_head("reward", 0, start=0.3, beta=2.0)
    made.adapters.add_head("value", 1, start=0.3)
    return made


def samples() -> list[Sample]:
    return [Sample(str(i), f"clip{i}", (Turn(QUESTIONS[i], ANSWERS[i]),)) for i in range(5)]


def preferences() -> list[Preference]:
    return [Preference(str(i), f"clip{i}", QUESTIONS[i], ANSWERS[i], ANSWERS[i - 1]) for i in range(5)]


def rollout(made: tiny.TinySession) -> Rollout:
    """Answers with advantages and returns that no model made, old values a little off, old log-probabilities as they are."""
    rows = [made.encode_pair(made.video_input(f"clip{i}"), QUESTIONS[i], made.answer_ids(ANSWERS[i])) for i in range(5)]
    draw = torch.Generator().manual_seed(0)
    with made.adapters.inference_as("policy"):
        logprobs, mask, _ = token_logprobs(made.backbone, rows)
    with made.adapters.inference_as("value"):
        values, _ = token_values(made.backbone, made.adapters.heads["value"], rows)
    advantages, returns = (torch.randn(mask.shape, generator=draw) * mask for _ in range(2))
    return Rollout(rows, rows, torch.arange(5), logprobs, logprobs, whiten(advantages, mask), mask, values, returns)


def trainer(made: tiny.TinySession, stage: str, folder: Path) -> AdapterTrainer[Any]:
    return AdapterTrainer(made, stage, getattr(made.cfg, stage), tiny.accelerator(made, folder))


def learner(made: tiny.TinySession, folder: Path) -> Learner:
    return tiny.learner(tiny.models_of(made), folder)


def gradients(stage: str, micro: int, folder: Path) -> tuple[list[torch.Tensor], dict[str, float]]:
    made = session(f"sft.micro_batch_size={micro}", f"reward.micro_batch_size={micro}", f"ppo.micro_batch_size={micro}",
                 "reward.centering=0.5")  # fmt: skip
    if stage == "sft":
        stats, used = {"loss": sft.backward(trainer(made, "sft", folder), samples())}, ["sft"]
    elif stage == "reward":
        stats, used = reward.backward(trainer(made, "reward", folder), preferences()), ["reward"]
    else:
        rolled, ppo = rollout(made), learner(made, folder)
        counted = int(rolled.mask_BR.sum())
        groups = [list(range(5))] if micro >= 5 else [[4, 1], [0], [3, 2]]
        stats = total_stats(ppo._micro_batch(rolled, 5, counted, group) for group in groups)
        used = ["policy", "value"]
    return [p.grad for role in used for p in made.adapters.parameters(role)], stats  # type: ignore[misc]


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_accumulation_changes_neither_gradient_nor_numbers(stage: str, tmp_path: Path) -> None:
    whole, stats = gradients(stage, 5, tmp_path)
    parts, part_stats = gradients(stage, 2, tmp_path)
    assert all(float(g.abs().max()) > 0 for g in whole)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-4)
    assert stats == pytest.approx(part_stats, abs=1e-4)


def test_sft_loss_is_the_mean_over_all_answer_tokens_of_the_batch(tmp_path: Path) -> None:
    made = session()
    with made.adapters.inference_as("sft"):
        rows = [
            made.encode_pair(made.video_input(s.video), s.turns[0].question, made.answer_ids(str(s.turns[0].answer)))
            for s in samples()
        ]
        logprobs, mask, _ = token_logprobs(made.backbone, rows)
    loss = sft.backward(trainer(made, "sft", tmp_path), samples())
    assert loss == pytest.approx(-float(logprobs.sum() / mask.sum()), abs=1e-4)


def test_reward_learns_chosen_over_rejected(tmp_path: Path) -> None:
    made = session()
    state = trainer(made, "reward", tmp_path)
    before = reward.backward(state, preferences())
    for _ in range(6):
        state.step(0.01)
        after = reward.backward(state, preferences())
    assert after["loss"] < before["loss"] - 0.1
    assert after["accuracy"] == 1.0


@pytest.mark.parametrize("kind", ["adamw", "paged_adamw_8bit"])
def test_a_resumed_optimiser_goes_on_bit_by_bit(kind: str, tmp_path: Path) -> None:
    """Four steps in one go against two, a state on disk, a new process's worth of objects, and two more."""

    def train(state: AdapterTrainer[Any], steps: range) -> None:
        for step in steps:
            reward.step(state, preferences()[step % 2 :], 0.01 / (1 + step))

    def opened(folder: Path | None) -> AdapterTrainer[Any]:
        made = session("model.lora_r=32", f"model.optimizer={kind}", "reward.weight_decay=0.1")
        if folder:
            tiny.stir(made.adapters, "reward", 99)  # nothing of a fresh role may stay
            made.adapters._load_adapter("reward", folder / "reward")
            made.adapters.load_head("reward", folder / "reward")
        state = trainer(made, "reward", tmp_path)
        if folder:
            load_optimizer(folder, "reward", state.optimizer)
        return state

    straight, half = opened(None), opened(None)
    train(straight, range(4))
    train(half, range(2))
    (tmp_path / "state").mkdir()
    half.save(tmp_path / "state")
    moments = load_file(tmp_path / "state" / "reward.optimizer.safetensors")
    assert any(t.dtype == torch.uint8 for t in moments.values()) == (kind != "adamw")
    resumed = opened(tmp_path / "state")
    train(resumed, range(2, 4))
    assert tiny.digest(resumed.parameters) == tiny.digest(straight.parameters)
    assert tiny.digest(resumed.parameters) != tiny.digest(half.parameters)


def test_progress_comes_back_bit_by_bit_under_its_old_names(tmp_path: Path) -> None:
    progress = MethodProgress(2, 0.1 + 0.2, None, {"iteration": 1, "win_rate": 0.75}, 8, 3)
    progress.write(tmp_path)
    assert MethodProgress.read(tmp_path) == progress
    names = {"updates": 2, "score_mean": 0.30000000000000004, "score_deviation": None}
    names["best"] = {"iteration": 1, "win_rate": 0.75}
    assert json.loads((tmp_path / "extra.json").read_text()) == names | {"groups": 8, "equal_groups": 3, "scores_by": {}}
    (tmp_path / "extra.json").write_text(json.dumps(names))  # as an earlier version left it
    assert MethodProgress.read(tmp_path) == MethodProgress(2, 0.1 + 0.2, None, {"iteration": 1, "win_rate": 0.75})


@pytest.mark.parametrize(("kept", "wanted"), [("adamw", "paged_adamw_8bit"), ("paged_adamw_8bit", "adamw")])
def test_moments_of_the_other_optimiser_are_refused_in_one_line(kept: str, wanted: str, tmp_path: Path) -> None:
    made = session(f"model.optimizer={kept}")
    state = trainer(made, "reward", tmp_path)
    reward.step(state, preferences(), 0.01)
    state.save(tmp_path)
    other = make_optimizer(state.accelerator, state.parameters, 0.01, 0.1, wanted)
    with pytest.raises(UserError, match="model.optimizer") as caught:
        load_optimizer(tmp_path, "reward", other)
    assert "\n" not in str(caught.value) and caught.value.again == ()


def test_8_bit_steps_are_nearly_those_of_adamw(tmp_path: Path) -> None:
    moved = []
    for kind in ("adamw", "paged_adamw_8bit"):
        state = trainer(session("model.lora_r=32", f"model.optimizer={kind}"), "reward", tmp_path)
        before = torch.cat([p.detach().flatten().clone() for p in state.parameters])
        for _ in range(3):
            reward.step(state, preferences(), 0.01)
        moved.append(torch.cat([p.detach().flatten() for p in state.parameters]) - before)
    assert float(moved[0].abs().mean()) > 1e-3
    # 8 bits round the moments of small gradients away, so single weights differ; the direction is what must agree.
    assert float(torch.cosine_similarity(moved[0], moved[1], 0)) > 0.9


@pytest.mark.gpu
def test_a_gpu_pages_the_moments_and_resumes_bit_by_bit(tmp_path: Path) -> None:
    accelerator = make_accelerator(tiny.settings("model.device=cuda").model, "none", tmp_path)
    draw = torch.Generator().manual_seed(0)
    gradients = [torch.randn(512, 512, generator=draw).cuda() for _ in range(4)]
    ends = []
    for resumed in (False, True):
        weight = torch.nn.Parameter(torch.ones(512, 512, device="cuda"))
        optimizer = make_optimizer(accelerator, [weight], 0.01, 0.1, "paged_adamw_8bit")
        for step, gradient in enumerate(gradients):
            if resumed and step == 2:
                save_optimizer(tmp_path, "w", optimizer)
                optimizer = make_optimizer(accelerator, [weight], 0.01, 0.1, "paged_adamw_8bit")
                load_optimizer(tmp_path, "w", optimizer)
            weight.grad = gradient.clone()
            optimizer_step(accelerator, optimizer, [weight], 0.01, 1e9)
        assert optimizer.state[weight]["state1"].is_paged
        ends.append(weight.detach().cpu())
    assert torch.equal(*ends)


def test_a_nan_stops_the_stage_before_it_reaches_a_weight(tmp_path: Path) -> None:
    made = session()
    rolled, ppo = rollout(made), learner(made, tmp_path)
    before = tiny.digest([p for role in ("policy", "value") for p in made.adapters.parameters(role)])
    rolled.advantages_BR[2, 0] = float("nan")
    with pytest.raises(StageStopped, match="ppo: policy gradient norm is nan at step 4.*start the stage again"):
        ppo.update(rolled, 3)
    assert tiny.digest([p for role in ("policy", "value") for p in made.adapters.parameters(role)]) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_finite_names_stage_step_and_number(value: float) -> None:
    check_finite("sft", 1, {"loss": 0.0, "gradient norm": 1e30})
    with pytest.raises(StageStopped, match="sft: loss is .* at step 7") as caught:
        check_finite("sft", 7, {"gradient norm": 1.0, "loss": value})
    assert "\n" not in str(caught.value) and caught.value.again == ("sft.learning_rate=…",)


def test_an_update_that_sees_other_logprobs_than_the_rollout_stops(tmp_path: Path) -> None:
    made = session()
    rolled = rollout(made)
    rolled.logprobs_BR[rolled.mask_BR] += 0.1
    with pytest.raises(StageStopped, match="first probability ratio differs from 1"):
        learner(made, tmp_path).update(rolled, 0)


def test_the_step_clips_the_gradient_and_forgets_it(tmp_path: Path) -> None:
    accelerator = tiny.accelerator(session(), tmp_path)
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    optimizer = accelerator.prepare(torch.optim.SGD(parameters, lr=123.0))
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert optimizer_step(accelerator, optimizer, parameters, 0.5, 1.0) == pytest.approx(5.0)
    assert parameters[0].tolist() == pytest.approx([-0.3, 0.0], abs=1e-5) and float(parameters[1]) == pytest.approx(
        -0.4, abs=1e-5
    )
    assert all(p.grad is None for p in parameters)


def test_quantised_weights_are_refused_by_the_optimiser(tmp_path: Path) -> None:
    class Params4bit(torch.nn.Parameter):
        pass

    with pytest.raises(ValueError, match="adapter weights only"):
        make_optimizer(make_accelerator(tiny.settings().model, "none", tmp_path), [Params4bit(torch.zeros(1))], 0.1, 0.0)


def test_seeds_depend_on_seed_and_place_alone_and_never_change() -> None:
    assert seed_of(0, "ppo", 3) == 630409491681578352  # sha256 of "(0, 'ppo', 3)", its first 62 bits
    assert len({seed_of(s, p, n) for s in (0, 1) for p in ("ppo", "sft") for n in range(50)}) == 200
    assert seed_of(0, "a", 11) != seed_of(0, "a1", 1)
    assert all(0 <= seed_of(s) < 2**62 for s in range(100))
    assert torch.equal(torch.rand(3, generator=generator(5, "x")), torch.rand(3, generator=generator(5, "x")))


def test_shuffled_is_an_order_of_all_places() -> None:
    assert sorted(shuffled(50, 0, "sft", 1)) == list(range(50))
    assert shuffled(50, 0, "sft", 1) == shuffled(50, 0, "sft", 1)
    assert len({tuple(shuffled(50, seed, "sft", epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_a_padded_row_learns_as_it_does_alone(tmp_path: Path) -> None:
    """The score of the short row in a batch with a long one has the gradient it has on its own."""
    found = []
    for size in (1, 2):
        made = session()
        rows = [made.encode_pair(made.video_input(f"clip{i}"), QUESTIONS[i], made.answer_ids(ANSWERS[i])) for i in (1, 2)][:size]
        with made.adapters.training_as("reward"):
            reward_scores(made.backbone, made.adapters.heads["reward"], rows)[0].backward()
        found.append([p.grad for p in made.adapters.parameters("reward")])
    for alone, padded in zip(*found, strict=True):
        torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-4)


def test_a_state_of_an_earlier_version_is_refused(tmp_path: Path):
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match=r"adapter\.optimizer\.safetensors: not there, .* start the stage again with --redo"):
        load_optimizer(tmp_path, "adapter", torch.optim.AdamW([parameter]))
