"""Who is on the device when: roles, reference, reward base and eyes rest in host memory while nothing needs them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from minirlaif import config
from minirlaif.algorithms import rollout as rollouts
from minirlaif.models import offload
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.feature_cache import resting_eyes
from minirlaif.models.loading import open_backbone
from minirlaif.models.logprobs import token_logprobs, token_values
from minirlaif.models.offload import Resting
from minirlaif.runs.run import Run
from minirlaif.session import critic_config
from minirlaif.session_open import _reference_bench, check_tokenizers, open_workbench
from minirlaif.stages import ppo
from minirlaif.stages.pretrain import save
from minirlaif.training.optim import make_accelerator, make_optimizer
from minirlaif.types import Sample, Turn, UserError
from tests.fixtures import tiny

ROLES = ("policy", "reference", "reward", "value")
CLIPS = range(3)
SHORT = (
    "rollout.rollouts=3 rollout.batch_size=2 rollout.max_new_tokens=5 ppo.minibatch_size=3 ppo.micro_batch_size=2 ppo.epochs=1"
).split()


def small(seed: int, layers: int = 1) -> SmolVLM:
    return tiny.backbone(seed, layers)


def trained(bench: tiny.TinyBench, roles: Sequence[str] = ROLES) -> None:
    """Roles with random weights."""
    for number, role in enumerate(roles):
        owner = {"policy": bench, "reference": bench.reference}.get(role, bench.critic)
        owner.roles.add(role, number)
        tiny.stir(owner.roles, role, number, 0.05)
        if role in ("reward", "value"):
            owner.roles.add_head(role, number, start=0.3)


def opened(*overrides: str, critic: SmolVLM | None = None) -> tiny.TinyBench:
    """A bench on the shipped base as PPO opens it, every role at rest that may be."""
    cfg = tiny.settings(*SHORT, *overrides)
    base: Any = open_backbone(cfg.model)
    bench = tiny.TinyBench(base, {f"clip{i}": tiny.view(base, 1 + i, i) for i in CLIPS}, cfg)
    if cfg.reference.kind == "model":
        bench.reference = _reference_bench(bench)
    if critic is not None:
        bench.critic = tiny.TinyBench(critic, {f"clip{i}": tiny.view(critic, 1 + i, i) for i in CLIPS}, critic_config(cfg))
        resting_eyes(critic)
        if cfg.reward.rest == "cpu":
            bench.critic.roles.park("base")
    trained(bench)
    ppo.park(bench)
    return bench


def prompts() -> list[Sample]:
    questions = ("what happens first?", "how many things happen?", "describe the video.")
    return [Sample(str(i), f"clip{i}", (Turn(questions[i]),)) for i in CLIPS]


def memory() -> dict[str, Any]:
    return {"score_mean": None, "score_deviation": None, "updates": 0, "best": {}}


def stored_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors with what 4-bit weights carry along."""
    total = 0
    for tensor in tensors:
        total += tensor.data.untyped_storage().nbytes()
        state = getattr(tensor, "quant_state", None)
        parts = [getattr(s, n, None) for s in (state, getattr(state, "state2", None)) for n in ("absmax", "code", "offset")]
        total += sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor))
    return total


def present(bench: tiny.TinyBench) -> set[str]:
    """Roles, and bases of their own, that hold memory."""
    owners = {"policy": bench, "reference": bench.reference, "reward": bench.critic, "value": bench.critic}
    found = {role for role, owner in owners.items() if stored_bytes(owner.roles.parameters(role))}
    for name, owner in (("reference base", bench.reference), ("reward base", bench.critic)):
        base = [t for n, t in owner.backbone.model.named_parameters() if "lora_" not in n]
        if owner is not bench and stored_bytes(base):
            found.add(name)
    return found


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_all_kinds_of_reference_give_the_same_logprobs(quantization: str) -> None:
    found = {}
    for kind in ("adapter", "model"):
        for rest in ("device", "cpu"):
            bench = opened(f"reference.kind={kind}", f"reference.rest={rest}", f"model.quantization={quantization}")
            assert ("reference" in present(bench)) == (rest == "device")
            rows = tiny.rows(bench.backbone)  # type: ignore[arg-type]
            reference = bench.reference.roles
            for _ in range(2):  # it goes and comes again
                with reference.visiting("reference"), reference.reading_as("reference"):
                    found[kind, rest], mask, _ = token_logprobs(bench.reference.backbone, rows)
    with bench.roles.reading_as("base"):
        plain, _, _ = token_logprobs(bench.backbone, rows)
    assert float((plain - found["adapter", "device"])[mask].abs().max()) > 1e-3  # the adapter says something
    for other in found.values():
        assert torch.equal(other, found["adapter", "device"])


class Watch:
    """Notes who is on the device in each phase of an iteration."""

    def __init__(self, bench: tiny.TinyBench, patch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, set[str]] = {}
        for module, name in (
            (rollouts, "sample"),
            (rollouts, "token_logprobs"),
            (rollouts, "sequence_scores"),
            (rollouts, "token_values"),
            (ppo, "_micro"),
        ):
            patch.setattr(module, name, self._noting(bench, name, getattr(module, name)))

    def _noting(self, bench: tiny.TinyBench, name: str, real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            owner = bench.reference if name == "token_logprobs" and given[0] is bench.reference.backbone else bench
            phase = f"{name} of {owner.roles._active()}" if name == "token_logprobs" else name
            self.seen.setdefault(phase, set()).update(present(bench))
            return real(*given, **named)

        return call


def iteration(bench: tiny.TinyBench, folder: Path) -> tuple[rollouts.Rollout, ppo.Learner]:
    parameters: dict[str, list[Any]] = {
        "policy": bench.roles.parameters("policy"),
        "value": bench.critic.roles.parameters("value"),
    }
    accelerator = make_accelerator(bench.cfg, folder)
    optimizers = {role: make_optimizer(accelerator, weights, 0.01, 0.0) for role, weights in parameters.items()}
    learner = ppo.Learner(accelerator, parameters, optimizers, memory())
    rollout, _ = rollouts.collect(bench, prompts(), {}, learner.extra, 0.0, 0)
    ppo.update(bench, rollout, learner, 0)
    return rollout, learner


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_phase_has_only_the_roles_it_needs(kind: str, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = opened(f"reference.kind={kind}", f"model.quantization={quantization}")
    watch = Watch(bench, monkeypatch)
    iteration(bench, tmp_path)
    own = {"reference base"} if kind == "model" else set()
    assert watch.seen == {
        "sample": {"policy"},
        "token_logprobs of policy": {"policy"},
        "token_logprobs of reference": {"reference"} | own,
        "sequence_scores": {"reward", "value"},
        "token_values": {"reward", "value"},
        "_micro": {"policy", "value"},
    }
    assert present(bench) == set()


@pytest.mark.parametrize("rest", ["cpu", "device"])
def test_a_reward_base_of_its_own_rests_while_the_policy_samples(
    rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = opened(f"reward.rest={rest}", "reward.base=other", critic=small(9, 2))
    watch = Watch(bench, monkeypatch)
    iteration(bench, tmp_path)
    always = {"reward base"} if rest == "device" else set()
    assert watch.seen["sample"] == {"policy"} | always
    assert watch.seen["token_logprobs of reference"] == {"reference"} | always
    assert watch.seen["sequence_scores"] == {"reward", "value", "reward base"}
    assert watch.seen["_micro"] == {"policy", "value", "reward base"}


def test_reward_and_value_of_another_base_read_the_policys_tokens(tmp_path: Path) -> None:
    other = small(9, 2)
    bench = opened("reward.base=other", critic=other)
    critic = bench.critic
    with critic.roles.visiting("value"):
        before, start = tiny.digest(critic.roles.parameters("value")), tiny.digest(tiny.base_weights(other))
    rollout, _ = rollouts.collect(bench, prompts(), {}, memory(), 0.0, 0)
    assert rollout.rows[0].features is not None and rollout.critic_rows[0].features is not None
    assert not torch.equal(rollout.rows[0].features, rollout.critic_rows[0].features)  # seen through eyes of its own
    assert [row.answer for row in rollout.rows] == [row.answer for row in rollout.critic_rows]
    assert rollout.values_BR.shape == rollout.logprobs_BR.shape
    with critic.roles.visiting("value"), critic.roles.reading_as("value"):
        for number, row in enumerate(rollout.critic_rows):
            alone, _ = token_values(other, critic.roles.heads["value"], [row])
            torch.testing.assert_close(rollout.values_BR[number, : len(row.answer)], alone[0], atol=1e-5, rtol=1e-5)
    iteration(bench, tmp_path)
    with critic.roles.visiting("value"):
        assert tiny.digest(critic.roles.parameters("value")) != before
        assert tiny.digest(tiny.base_weights(other)) == start


def test_parking_changes_no_number_of_an_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With host copies that are really copies, as on a GPU, the trained weights are those of a run that never parks."""
    found = []
    for parking in (True, False):
        if parking:
            monkeypatch.setattr(offload, "_host_copy", lambda tensor: tensor.clone())
            monkeypatch.setattr(Resting, "come", _come_as_copies)
        else:
            monkeypatch.undo()
            monkeypatch.setattr(ppo, "park", lambda bench: None)
        bench = opened()
        rollout, learner = iteration(bench, tmp_path)
        ppo.update(bench, rollout, learner, 1)
        with bench.roles.visiting(*ROLES):
            found.append({role: tiny.digest(bench.roles.parameters(role)) for role in ROLES})
    assert found[0] == found[1]


def _come_as_copies(self: Resting) -> None:
    if self.away:
        for (owner, name), host in zip(self._places, self._host, strict=True):
            setattr(owner, name, host.clone())
        self.away = False


def test_a_parked_role_is_saved_with_its_head_and_stays_parked(tmp_path: Path) -> None:
    bench = opened()
    roles = bench.roles
    with roles.visiting("value"):
        roles.save("value", tmp_path / "present")
    roles.save("value", tmp_path / "parked")
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "present" / name).read_bytes() == (tmp_path / "parked" / name).read_bytes()
    assert present(bench) == set()


def test_four_bit_weights_take_their_state_along() -> None:
    base = open_backbone(config.ModelSection(quantization="nf4", device="cpu", dtype="float32"))
    layers = [m for m in base.model.modules() if type(m).__name__ == "Linear4bit"]
    for state in (layer.weight.quant_state for layer in layers):
        assert state.quant_type == "nf4" and state.nested  # double quantisation: the scales are quantised, too
    rows = tiny.rows(base)  # type: ignore[arg-type]
    with torch.no_grad():
        before, _, _ = token_logprobs(base, rows)
    weights = [layer.weight for layer in layers]
    held = stored_bytes(weights)
    away = Resting(weights, frozen=True)
    away.rest()
    assert held > 0 and stored_bytes(weights) == 0
    away.come()
    assert stored_bytes(weights) == held
    for layer in layers:
        assert layer.weight.quant_state is layer.quant_state and layer.weight.bnb_quantized
    with torch.no_grad():
        after, _, _ = token_logprobs(base, rows)
    assert torch.equal(before, after)


def test_a_full_device_leaves_everything_where_it_was() -> None:
    class Full(torch.Tensor):
        def to(self, *where: Any, **how: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("full")

    one, two = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    away = Resting([one, two])
    away.rest()
    good, away._host[1] = away._host[1], torch.ones(2).as_subclass(Full)
    with pytest.raises(torch.OutOfMemoryError):
        away.come()
    assert away.away and stored_bytes([one, two]) == 0
    away._host[1] = good
    with away.visiting():
        assert one.tolist() == [1, 1, 1] and two.tolist() == [1, 1]


@pytest.mark.parametrize("rest", ["cpu", "device"])
def test_a_workbench_for_ppo_opens_the_bases_of_its_own_and_puts_them_to_rest(rest: str, tmp_path: Path) -> None:
    save(small(9), tmp_path / "judge")
    named = [f"reward.base={tmp_path / 'judge'}", f"reward.rest={rest}", "reference.kind=model", f"reference.rest={rest}"]
    cfg = tiny.settings(*named, "data.world=")
    with open_workbench(cfg, Run(tmp_path / "run"), for_ppo=True) as bench:
        for other in (bench.reference, bench.critic):
            assert other is not bench
            seeing = {id(p) for part in other.backbone.eyes for p in part.parameters()}
            assert bool(stored_bytes(p for p in other.backbone.model.parameters() if id(p) not in seeing)) == (rest == "device")
        assert bench.critic.cfg.model.base == str(tmp_path / "judge")
        assert stored_bytes(bench.backbone.text_model.parameters())
    with open_workbench(cfg, Run(tmp_path / "run")) as bench:
        assert bench.reference is bench.critic is bench


def test_nobody_reads_through_a_parked_base() -> None:
    bench = opened("reference.kind=model")
    with pytest.raises(ValueError, match="base is parked"), bench.reference.roles.reading_as("reference"):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_every_adapter_layer_through_four_bits_and_checkpointing(dtype: str) -> None:
    """No input requires a gradient here, so this is what a reentrant checkpoint would get wrong."""
    found = []
    for checkpointing in ("false", "true"):
        bench = opened("model.quantization=nf4", f"model.dtype={dtype}", f"model.gradient_checkpointing={checkpointing}")
        rows = tiny.rows(bench.backbone)  # type: ignore[arg-type]
        norms = [p for n, p in bench.backbone.model.named_parameters() if "norm" in n and "lora_" not in n]
        assert {p.dtype for p in norms} == {getattr(torch, dtype)}
        packed = [m for m in bench.backbone.model.modules() if hasattr(m, "compute_dtype")]
        assert len(packed) == 4 * 7 and {m.compute_dtype for m in packed} == {getattr(torch, dtype)}
        with bench.roles.visiting("policy"), bench.roles.training_as("policy"):
            (-token_logprobs(bench.backbone, rows)[0].sum()).backward()
            weights = bench.roles.named("policy")
            assert {p.dtype for p in weights.values()} == {torch.float32}
            found.append({name: p.grad for name, p in weights.items()})
    assert len(found[0]) == 4 * 7 * 2
    for name, plain in found[0].items():
        assert plain is not None and found[1][name] is not None
        assert float(plain.abs().max()) > 0, name
        torch.testing.assert_close(plain, found[1][name])


def test_a_head_keeps_full_precision_under_autocast() -> None:
    bench = opened()
    with bench.roles.visiting("reward"):
        head = bench.roles.heads["reward"]
        hidden = torch.randn(5, bench.backbone.width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = head(hidden)
        by_hand = hidden @ head.linear.weight[0] + head.linear.bias
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, by_hand)


def test_another_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    from minirlaif.tiny_world.base_model import make_tokenizer

    save(small(3), tmp_path / "same")
    check_tokenizers(config.load(None, [f"reward.base={tmp_path / 'same'}"]))
    check_tokenizers(config.load(None))
    save(small(3), tmp_path / "other")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zeppelin"])
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for name, words in (("other", "tokenizer has other tokens than that of model.base tiny"), ("empty", "no config.json")):
        with pytest.raises(UserError, match=words) as caught:
            check_tokenizers(config.load(None, [f"reward.base={tmp_path / name}"]))
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"reward.base {tmp_path / name}")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_on_a_gpu_the_reference_holds_no_byte_during_the_update(kind: str, tmp_path: Path) -> None:
    """Allocated bytes with policy and value there are those of a bench that never had a reference, to the byte."""
    held = []
    for with_reference in (False, False, True):  # the first one pays for what the libraries keep for themselves
        gc.collect()
        start = torch.cuda.memory_allocated()
        cfg = tiny.settings(*SHORT, f"reference.kind={kind}", "model.device=cuda", "model.quantization=nf4", "model.dtype=auto")
        base: Any = open_backbone(cfg.model)
        bench = tiny.TinyBench(base, {f"clip{i}": tiny.view(base, 1 + i, i) for i in CLIPS}, cfg)
        if with_reference and kind == "model":
            bench.reference = _reference_bench(bench)
        trained(bench, ROLES if with_reference else ("policy", "reward", "value"))
        for role in ("policy", "reward", "value"):
            bench.roles.park(role)
        if with_reference:
            bench.reference.roles.park("reference")
        with bench.roles.visiting("policy", "value"):
            held.append(torch.cuda.memory_allocated() - start)
        if with_reference:
            reference = bench.reference.roles
            with reference.visiting("reference"):
                assert {p.device.type for p in reference.parameters("reference")} == {"cuda"}
                assert stored_bytes(reference.parameters("reference")) > 0
            iteration(bench, tmp_path)
            assert present(bench) == set()
        del bench, base
    assert held[1] == held[2] > 0


@pytest.mark.gpu
def test_on_a_gpu_reading_and_training_do_the_same_arithmetic(tmp_path: Path) -> None:
    bench = opened("model.device=cuda", "model.dtype=bfloat16")
    rows = tiny.rows(bench.backbone)  # type: ignore[arg-type]
    accelerator = make_accelerator(bench.cfg, tmp_path)
    with bench.roles.visiting("policy"):
        with bench.roles.reading_as("policy"):
            read, _, _ = token_logprobs(bench.backbone, rows)
        with bench.roles.training_as("policy"), accelerator.autocast():
            trained_on, _, _ = token_logprobs(bench.backbone, rows)
    torch.testing.assert_close(read, trained_on.detach(), atol=1e-5, rtol=1e-5)
