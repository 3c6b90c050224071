"""What is on the device when: roles, reference, reward base and vision modules are offloaded while nothing needs them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minirlaif import config
from minirlaif.algorithms import rollout as rollouts
from minirlaif.algorithms.ppo import Learner
from minirlaif.data.preflight import Preflight
from minirlaif.errors import UserError
from minirlaif.models import offload
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.feature_cache import offloaded_vision
from minirlaif.models.loading import check_tokenizers, critic_model, open_backbone
from minirlaif.models.logprobs import token_logprobs, token_values
from minirlaif.models.offload import OffloadableWeights
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, PPOModels, open_ppo_models, second_base
from minirlaif.stages.tiny.pretrain import save
from minirlaif.types import Sample, Turn
from tests.fixtures import tiny

ROLES = ("policy", "reference", "reward", "value")
CLIPS = range(3)
SHORT = (
    "rollout.rollouts=3 rollout.batch_size=2 rollout.max_new_tokens=5 ppo.minibatch_size=3 ppo.micro_batch_size=2 ppo.epochs=1"
).split()


def small(seed: int, layers: int = 1) -> SmolVLM:
    return tiny.backbone(seed, layers)


def trained(models: PPOModels, roles: Sequence[str] = ROLES) -> None:
    """Roles with random weights."""
    for number, role in enumerate(roles):
        owner = {"policy": models.policy, "reference": models.reference}.get(role, models.critic)
        owner.adapters.add(role, number)
        tiny.stir(owner.adapters, role, number, 0.05)
        if role in ("reward", "value"):
            owner.adapters.add_head(role, number, start=0.3)


def opened(*overrides: str, critic: SmolVLM | None = None) -> PPOModels:
    """The models on the shipped base as PPO opens them, everything offloaded that may be."""
    cfg = tiny.settings(*SHORT, *overrides)
    base: Any = open_backbone(cfg.model)
    policy = tiny.TinySession(base, {f"clip{i}": tiny.view(base, 1 + i, i) for i in CLIPS}, cfg)
    reference = second_base(policy, cfg.reference) if cfg.reference.kind == "model" else policy
    other: ModelSession = policy
    if critic is not None:
        model = critic_model(cfg.model, cfg.reward)
        other = tiny.TinySession(critic, {f"clip{i}": tiny.view(critic, 1 + i, i) for i in CLIPS}, replace(cfg, model=model))
        offloaded_vision(critic)
        if cfg.reward.rest == "cpu":
            other.adapters.enable_offload("base")
    models = PPOModels(policy, reference, other, cfg.reference.rest == "cpu")
    trained(models)
    models.enable_offload()
    return models


def prompts() -> list[Sample]:
    questions = ("what happens first?", "how many things happen?", "describe the video.")
    return [Sample(str(i), f"clip{i}", (Turn(questions[i]),)) for i in CLIPS]


def stored_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors with what 4-bit weights carry along."""
    total = 0
    for tensor in tensors:
        total += tensor.data.untyped_storage().nbytes()
        state = getattr(tensor, "quant_state", None)
        parts = [getattr(s, n, None) for s in (state, getattr(state, "state2", None)) for n in ("absmax", "code", "offset")]
        total += sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor))
    return total


def present(models: PPOModels) -> set[str]:
    """Roles, and bases of their own, that hold memory."""
    owners = {"policy": models.policy, "reference": models.reference, "reward": models.critic, "value": models.critic}
    names = {role for role, owner in owners.items() if stored_bytes(owner.adapters.parameters(role))}
    for name, owner in (("reference base", models.reference), ("reward base", models.critic)):
        base = [t for n, t in owner.backbone.model.named_parameters() if "lora_" not in n]
        if owner is not models.policy and stored_bytes(base):
            names.add(name)
    return names


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_all_kinds_of_reference_give_the_same_logprobs(quantization: str) -> None:
    logprobs = {}
    for kind in ("adapter", "model"):
        for rest in ("device", "cpu"):
            models = opened(f"reference.kind={kind}", f"reference.rest={rest}", f"model.quantization={quantization}")
            assert ("reference" in present(models)) == (rest == "device")
            rows = tiny.rows(models.policy.backbone)  # type: ignore[arg-type]
            reference = models.reference.adapters
            for _ in range(2):  # it goes and comes again
                with reference.on_device("reference"), reference.inference_as("reference"):
                    logprobs[kind, rest], mask, _ = token_logprobs(models.reference.backbone, rows)
    with models.policy.adapters.inference_as("base"):
        plain, _, _ = token_logprobs(models.policy.backbone, rows)
    assert float((plain - logprobs["adapter", "device"])[mask].abs().max()) > 1e-3  # the adapter says something
    for other in logprobs.values():
        assert torch.equal(other, logprobs["adapter", "device"])


class Watch:
    """Notes who is on the device in each phase of an iteration."""

    def __init__(self, models: PPOModels, patch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, set[str]] = {}
        for module, name in (
            (rollouts, "sample"),
            (rollouts, "token_logprobs"),
            (rollouts, "reward_scores"),
            (rollouts, "token_values"),
            (Learner, "_micro_batch"),
        ):
            patch.setattr(module, name, self._noting(models, name, getattr(module, name)))

    def _noting(self, models: PPOModels, name: str, real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            owner = models.reference if name == "token_logprobs" and given[0] is models.reference.backbone else models.policy
            phase = f"{name} of {owner.adapters._active()}" if name == "token_logprobs" else name
            self.seen.setdefault(phase, set()).update(present(models))
            return real(*given, **named)

        return call


def iteration(models: PPOModels, folder: Path) -> tuple[rollouts.Rollout, Learner]:
    learner = tiny.learner(models, folder)
    rollout, _ = tiny.collector(models).collect(prompts(), 0)
    learner.update(rollout, 0)
    return rollout, learner


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_phase_has_only_the_roles_it_needs(kind: str, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = opened(f"reference.kind={kind}", f"model.quantization={quantization}")
    watch = Watch(models, monkeypatch)
    iteration(models, tmp_path)
    own = {"reference base"} if kind == "model" else set()
    assert watch.seen == {
        "sample": {"policy"},
        "token_logprobs of policy": {"policy"},
        "token_logprobs of reference": {"reference"} | own,
        "reward_scores": {"reward", "value"},
        "token_values": {"reward", "value"},
        "_micro_batch": {"policy", "value"},
    }
    assert present(models) == set()


@pytest.mark.parametrize("rest", ["cpu", "device"])
def test_a_reward_base_of_its_own_rests_while_the_policy_samples(
    rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = opened(f"reward.rest={rest}", "reward.base=other", critic=small(9, 2))
    watch = Watch(models, monkeypatch)
    iteration(models, tmp_path)
    always = {"reward base"} if rest == "device" else set()
    assert watch.seen["sample"] == {"policy"} | always
    assert watch.seen["token_logprobs of reference"] == {"reference"} | always
    assert watch.seen["reward_scores"] == {"reward", "value", "reward base"}
    assert watch.seen["_micro_batch"] == {"policy", "value", "reward base"}


def test_reward_and_value_of_another_base_read_the_policys_tokens(tmp_path: Path) -> None:
    other = small(9, 2)
    models = opened("reward.base=other", critic=other)
    critic = models.critic
    with critic.adapters.on_device("value"):
        before, start = tiny.digest(critic.adapters.parameters("value")), tiny.digest(tiny.base_weights(other))
    rollout, _ = tiny.collector(models).collect(prompts(), 0)
    assert rollout.rows[0].features is not None and rollout.critic_rows[0].features is not None
    assert not torch.equal(rollout.rows[0].features, rollout.critic_rows[0].features)  # encoded by its own vision modules
    assert [row.answer for row in rollout.rows] == [row.answer for row in rollout.critic_rows]
    assert rollout.values_BR.shape == rollout.logprobs_BR.shape
    with critic.adapters.on_device("value"), critic.adapters.inference_as("value"):
        for number, row in enumerate(rollout.critic_rows):
            alone, _ = token_values(other, critic.adapters.heads["value"], [row])
            torch.testing.assert_close(rollout.values_BR[number, : len(row.answer)], alone[0], atol=1e-5, rtol=1e-5)
    iteration(models, tmp_path)
    with critic.adapters.on_device("value"):
        assert tiny.digest(critic.adapters.parameters("value")) != before
        assert tiny.digest(tiny.base_weights(other)) == start


def test_parking_changes_no_number_of_an_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With host copies that are really copies, as on a GPU, the trained weights are those of a run that never parks."""
    digests = []
    for parking in (True, False):
        if parking:
            monkeypatch.setattr(offload, "_host_copy", lambda tensor: tensor.clone())
            monkeypatch.setattr(OffloadableWeights, "onload", _onload_copies)
        else:
            monkeypatch.undo()
            monkeypatch.setattr(PPOModels, "enable_offload", lambda models: None)
        models = opened()
        rollout, learner = iteration(models, tmp_path)
        learner.update(rollout, 1)
        with models.policy.adapters.on_device(*ROLES):
            digests.append({role: tiny.digest(models.policy.adapters.parameters(role)) for role in ROLES})
    assert digests[0] == digests[1]


def _onload_copies(self: OffloadableWeights) -> None:
    if self.offloaded:
        for (owner, name), host in zip(self._places, self._host, strict=True):
            setattr(owner, name, host.clone())
        self.offloaded = False


def test_an_offloaded_role_is_saved_with_its_head_and_stays_offloaded(tmp_path: Path) -> None:
    models = opened()
    roles = models.policy.adapters
    with roles.on_device("value"):
        roles.save("value", tmp_path / "present")
    roles.save("value", tmp_path / "parked")
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "present" / name).read_bytes() == (tmp_path / "parked" / name).read_bytes()
    assert present(models) == set()


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
    moved = OffloadableWeights(weights, frozen=True)
    moved.offload()
    assert held > 0 and stored_bytes(weights) == 0
    moved.onload()
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
    moved = OffloadableWeights([one, two])
    moved.offload()
    good, moved._host[1] = moved._host[1], torch.ones(2).as_subclass(Full)
    with pytest.raises(torch.OutOfMemoryError):
        moved.onload()
    assert moved.offloaded and stored_bytes([one, two]) == 0
    moved._host[1] = good
    with moved.on_device():
        assert one.tolist() == [1, 1, 1] and two.tolist() == [1, 1]


@pytest.mark.parametrize("rest", ["cpu", "device"])
def test_a_session_for_ppo_opens_its_own_bases_and_offloads_them(rest: str, tmp_path: Path) -> None:
    save(small(9), tmp_path / "judge")
    named = [f"reward.base={tmp_path / 'judge'}", f"reward.rest={rest}", "reference.kind=model", f"reference.rest={rest}"]
    cfg = tiny.settings(*named, "data.world=")
    checks = Preflight(cfg.data, cfg.sft, cfg.reward)
    with open_ppo_models(Run(tmp_path / "run"), cfg.model, cfg.video, checks, cfg.reference, cfg.reward) as models:
        for other in (models.reference, models.critic):
            assert other is not models.policy
            seeing = {id(p) for part in other.backbone.vision_modules for p in part.parameters()}
            assert bool(stored_bytes(p for p in other.backbone.model.parameters() if id(p) not in seeing)) == (rest == "device")
        assert models.critic.model.base == str(tmp_path / "judge")
        assert stored_bytes(models.policy.backbone.text_model.parameters())
    plain = tiny.settings("data.world=")
    with open_ppo_models(Run(tmp_path / "run"), plain.model, plain.video, checks, plain.reference, plain.reward) as models:
        assert models.reference is models.critic is models.policy


def test_nobody_reads_through_an_offloaded_base() -> None:
    models = opened("reference.kind=model")
    with pytest.raises(ValueError, match="base is offloaded"), models.reference.adapters.inference_as("reference"):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_every_adapter_layer_through_four_bits_and_checkpointing(dtype: str) -> None:
    """No input requires a gradient here, so this is what a reentrant checkpoint would get wrong."""
    gradients = []
    for checkpointing in ("false", "true"):
        models = opened("model.quantization=nf4", f"model.dtype={dtype}", f"model.gradient_checkpointing={checkpointing}")
        rows = tiny.rows(models.policy.backbone)  # type: ignore[arg-type]
        norms = [p for n, p in models.policy.backbone.model.named_parameters() if "norm" in n and "lora_" not in n]
        assert {p.dtype for p in norms} == {getattr(torch, dtype)}
        packed = [m for m in models.policy.backbone.model.modules() if hasattr(m, "compute_dtype")]
        assert len(packed) == 4 * 7 and {m.compute_dtype for m in packed} == {getattr(torch, dtype)}
        with models.policy.adapters.on_device("policy"), models.policy.adapters.training_as("policy"):
            (-token_logprobs(models.policy.backbone, rows)[0].sum()).backward()
            weights = models.policy.adapters.named("policy")
            assert {p.dtype for p in weights.values()} == {torch.float32}
            gradients.append({name: p.grad for name, p in weights.items()})
    assert len(gradients[0]) == 4 * 7 * 2
    for name, plain in gradients[0].items():
        assert plain is not None and gradients[1][name] is not None
        assert float(plain.abs().max()) > 0, name
        torch.testing.assert_close(plain, gradients[1][name])


def test_a_head_keeps_full_precision_under_autocast() -> None:
    models = opened()
    with models.policy.adapters.on_device("reward"):
        head = models.policy.adapters.heads["reward"]
        hidden = torch.randn(5, models.policy.backbone.width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = head(hidden)
        by_hand = hidden @ head.linear.weight[0] + head.linear.bias
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, by_hand)


def test_another_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    from minirlaif.tiny_world.base_model import make_tokenizer

    save(small(3), tmp_path / "same")
    check_tokenizers(config.ModelSection(), config.load(None, [f"reward.base={tmp_path / 'same'}"]).reward)
    check_tokenizers(config.ModelSection(), config.RewardSection())
    save(small(3), tmp_path / "other")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zeppelin"])
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for name, words in (("other", "tokenizer has other tokens than that of model.base tiny"), ("empty", "no config.json")):
        with pytest.raises(UserError, match=words) as caught:
            check_tokenizers(config.ModelSection(), config.load(None, [f"reward.base={tmp_path / name}"]).reward)
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
        session = tiny.TinySession(base, {f"clip{i}": tiny.view(base, 1 + i, i) for i in CLIPS}, cfg)
        reference = second_base(session, cfg.reference) if with_reference and kind == "model" else session
        models = PPOModels(session, reference, session)
        trained(models, ROLES if with_reference else ("policy", "reward", "value"))
        for role in ("policy", "reward", "value"):
            models.policy.adapters.enable_offload(role)
        if with_reference:
            models.reference.adapters.enable_offload("reference")
        with models.policy.adapters.on_device("policy", "value"):
            held.append(torch.cuda.memory_allocated() - start)
        if with_reference:
            reference = models.reference.adapters
            with reference.on_device("reference"):
                assert {p.device.type for p in reference.parameters("reference")} == {"cuda"}
                assert stored_bytes(reference.parameters("reference")) > 0
            iteration(models, tmp_path)
            assert present(models) == set()
        del session, models, reference, base
    assert held[1] == held[2] > 0


@pytest.mark.gpu
def test_on_a_gpu_reading_and_training_do_the_same_arithmetic(tmp_path: Path) -> None:
    models = opened("model.device=cuda", "model.dtype=bfloat16")
    rows = tiny.rows(models.policy.backbone)  # type: ignore[arg-type]
    accelerator = tiny.accelerator(models.policy, tmp_path)
    with models.policy.adapters.on_device("policy"):
        with models.policy.adapters.inference_as("policy"):
            read, _, _ = token_logprobs(models.policy.backbone, rows)
        with models.policy.adapters.training_as("policy"), accelerator.autocast():
            trained_on, _, _ = token_logprobs(models.policy.backbone, rows)
    torch.testing.assert_close(read, trained_on.detach(), atol=1e-5, rtol=1e-5)
