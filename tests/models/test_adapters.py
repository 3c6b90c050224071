from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.logprobs import reward_scores, token_logprobs
from minirlaif.runs.run import Run
from tests.fixtures import tiny

NAMES = ("policy", "reference", "value")


def make(checkpointing: bool = False) -> tuple[SmolVLM, AdapterSet]:
    base = tiny.backbone()
    roles = AdapterSet(base, ModelSection(lora_r=4, lora_alpha=8, gradient_checkpointing=checkpointing))
    for seed, name in enumerate(NAMES):
        roles.add(name, seed)
        tiny.stir(roles, name, seed)
    roles.add_head("value", 0, start=0.1)
    return base, roles


@pytest.fixture
def made() -> tuple[SmolVLM, AdapterSet]:
    return make()


def seen(base: SmolVLM) -> Tensor:
    """Log-probabilities under whatever role is active."""
    with torch.no_grad():
        return token_logprobs(base, tiny.rows(base)[:2])[0]


def as_role(base: SmolVLM, roles: AdapterSet, role: str) -> Tensor:
    with roles.inference_as(role):
        return seen(base)


def everything(base: SmolVLM, roles: AdapterSet) -> tuple[list[bool], list[bool], str]:
    weights = [*base.model.parameters(), *roles.heads["value"].parameters()]
    return [p.requires_grad for p in weights], [m.training for m in base.model.modules()], tiny.digest([seen(base)])


def test_each_role_is_a_model_of_its_own_and_base_is_the_model_without_any(made: tuple[SmolVLM, AdapterSet]) -> None:
    base, roles = made
    outputs = [as_role(base, roles, name) for name in (*NAMES, "base")]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert float((one - other).abs().max()) > 1e-3
    assert torch.equal(outputs[-1], seen(tiny.backbone()))


def test_a_fresh_role_changes_nothing_yet_and_its_seed_decides_its_weights(made: tuple[SmolVLM, AdapterSet]) -> None:
    base, roles = made
    for name, seed in (("x", 7), ("y", 7), ("z", 8)):
        roles.add(name, seed)
    weights = {name: tiny.digest(list(roles.named(name).values())) for name in "xyz"}
    assert weights["x"] == weights["y"] != weights["z"]
    assert torch.equal(as_role(base, roles, "x"), as_role(base, roles, "base"))


def test_making_a_role_draws_nothing_from_the_global_generator(made: tuple[SmolVLM, AdapterSet]) -> None:
    before = torch.get_rng_state()
    made[1].add("x", 7)
    made[1].add_head("x", 7, start=0.1)
    assert torch.equal(torch.get_rng_state(), before)


@contextmanager
def failing(roles: AdapterSet, kind: str, role: str) -> Iterator[None]:
    with pytest.raises(ZeroDivisionError), getattr(roles, kind)(role):
        yield
        raise ZeroDivisionError


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["inference_as", "training_as"])
def test_flags_mode_and_role_come_back_also_after_an_error(kind: str, checkpointing: bool) -> None:
    base, roles = make(checkpointing)
    before = everything(base, roles)
    assert not any(before[0])
    for role in (*NAMES, "base"):
        with getattr(roles, kind)(role):
            pass
        assert everything(base, roles) == before, role
        with failing(roles, kind, role):
            pass
        assert everything(base, roles) == before, role


def test_nested_roles_come_back_one_by_one(made: tuple[SmolVLM, AdapterSet]) -> None:
    base, roles = made
    outside = everything(base, roles)
    with roles.training_as("value"):
        inside = everything(base, roles)
        assert any(inside[0])
        with roles.inference_as("base"):
            assert not torch.is_grad_enabled()
            assert torch.equal(seen(base), seen(tiny.backbone()))
            with failing(roles, "training_as", "policy"):
                pass
            assert torch.equal(seen(base), seen(tiny.backbone()))
        assert torch.is_grad_enabled()
        assert everything(base, roles) == inside
    assert everything(base, roles) == outside


def test_an_unknown_role_is_an_error_and_changes_nothing(made: tuple[SmolVLM, AdapterSet]) -> None:
    base, roles = made
    before = everything(base, roles)
    with pytest.raises(ValueError, match="judge"), roles.inference_as("judge"):
        pass
    assert everything(base, roles) == before


@pytest.mark.parametrize("role", ["policy", "value"])
def test_only_the_named_role_learns(made: tuple[SmolVLM, AdapterSet], role: str) -> None:
    base, roles = made
    others = [name for name in NAMES if name != role]

    def other_weights() -> str:
        heads = [] if role == "value" else list(roles.heads["value"].parameters())
        return tiny.digest([*tiny.base_weights(base), *heads, *(p for n in others for p in roles.named(n).values())])

    before, mine = other_weights(), [p.detach().clone() for p in roles.parameters(role)]
    optimizer = torch.optim.SGD(roles.parameters(role), lr=0.1)
    with roles.training_as(role):
        if role == "value":
            loss = reward_scores(base, roles.heads["value"], tiny.rows(base)).sum()
        else:
            loss = token_logprobs(base, tiny.rows(base))[0].sum()
        loss.backward()
    weights = {id(p) for p in roles.parameters(role)}
    strangers = [p for p in [*base.model.parameters(), *roles.heads["value"].parameters()] if id(p) not in weights]
    assert all(p.grad is None for p in strangers)
    assert all(p.grad is not None for p in roles.parameters(role))
    optimizer.step()
    assert other_weights() == before
    assert all(not torch.equal(a, b) for a, b in zip(mine, roles.parameters(role), strict=True))


def test_adapters_sit_in_the_language_model_alone(made: tuple[SmolVLM, AdapterSet]) -> None:
    names = list(made[1].named("policy"))
    assert len(names) == 2 * 7 * 2  # layers x projections x (A, B)
    assert all(".text_model." in name for name in names)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        base, roles = make(checkpointing)
        with roles.training_as("policy"):
            assert base.text_model.training == checkpointing
            token_logprobs(base, tiny.rows(base))[0].sum().backward()
        gradients.append([p.grad for p in roles.parameters("policy")])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, saved)


def test_a_role_that_starts_as_a_copy_is_equal_and_then_goes_its_own_way(made: tuple[SmolVLM, AdapterSet]) -> None:
    base, roles = made
    roles.add("reward", 99, "policy")
    assert torch.equal(as_role(base, roles, "reward"), as_role(base, roles, "policy"))
    before = as_role(base, roles, "policy")
    tiny.stir(roles, "reward", 5)
    assert torch.equal(as_role(base, roles, "policy"), before)
    assert not torch.equal(as_role(base, roles, "reward"), before)


def test_an_offloaded_role_takes_no_memory_and_comes_back_the_same(made: tuple[SmolVLM, AdapterSet]) -> None:
    base, roles = made
    resident = as_role(base, roles, "reference")
    roles.enable_offload("reference")
    for _ in range(2):  # it goes back to the park after every visit
        assert all(p.untyped_storage().nbytes() == 0 for p in roles.named("reference").values())
        with pytest.raises(ValueError, match="is offloaded"), roles.inference_as("reference"):
            pass
        with roles.on_device("reference"):
            assert torch.equal(as_role(base, roles, "reference"), resident)
    with pytest.raises(ZeroDivisionError), roles.on_device("reference"):
        raise ZeroDivisionError
    assert all(p.untyped_storage().nbytes() == 0 for p in roles.named("reference").values())
    with roles.on_device("policy"):  # without enable_offload a role stays where it is
        pass
    assert all(p.numel() for p in roles.named("policy").values())


def test_peft_opens_a_saved_role_and_gives_the_same_logits(made: tuple[SmolVLM, AdapterSet], tmp_path: Path) -> None:
    from peft import PeftModel

    base, roles = made
    roles.save("policy", tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    row = tiny.rows(base)[0]
    ids = torch.tensor([row.prompt + row.answer])
    with roles.inference_as("policy"):
        ours = base.logits(base.hidden(base.embed(ids, [row.features]), None))
    fresh = tiny.backbone()
    theirs = PeftModel.from_pretrained(fresh.model, tmp_path / "adapter")
    with torch.no_grad():
        actual = theirs(input_ids=ids, pixel_values=(torch.from_numpy(tiny.pixels(2, 0)).permute(0, 3, 1, 2) / 127.5 - 1)[None])
    torch.testing.assert_close(actual.logits, ours, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in theirs.parameters())


def test_a_saved_role_and_its_head_come_back_bit_by_bit(made: tuple[SmolVLM, AdapterSet], tmp_path: Path) -> None:
    base, roles = made
    for name, beta in (("with", 3.0), ("without", None)):
        roles.add_head("value", 3, start=0.1, beta=beta)
        roles.save("value", tmp_path / name)
        again_base, again = make()
        again.add("reward", 50, tmp_path / name)
        again.load_head("reward", tmp_path / name)
        assert (again.heads["reward"].beta is None) == (beta is None)
        assert not any(p.requires_grad for p in again.heads["reward"].parameters())
        with roles.inference_as("value"):
            one = reward_scores(base, roles.heads["value"], tiny.rows(base))
        with again.inference_as("reward"):
            other = reward_scores(again_base, again.heads["reward"], tiny.rows(again_base))
        assert torch.equal(one, other)


@pytest.mark.parametrize("section", [ModelSection(lora_r=8), ModelSection(lora_r=4, lora_targets=("q_proj",))])
def test_an_adapter_of_another_shape_is_refused_in_one_line(
    made: tuple[SmolVLM, AdapterSet], tmp_path: Path, section: ModelSection
) -> None:
    made[1].save("policy", tmp_path / "adapter")
    other = AdapterSet(tiny.backbone(), section)
    with pytest.raises(UserError, match="adapter does not fit model.lora_r/lora_targets") as caught:
        other.add("policy", 0, tmp_path / "adapter")
    assert "\n" not in str(caught.value) and str(tmp_path / "adapter") in str(caught.value)


def test_an_adapter_of_another_scale_is_refused(made: tuple[SmolVLM, AdapterSet], tmp_path: Path) -> None:
    """alpha is not in the weights' shapes, yet with another one the same weights are another model."""
    made[1].save("policy", tmp_path / "adapter")
    other = AdapterSet(tiny.backbone(), ModelSection(lora_r=4, lora_alpha=16))
    with pytest.raises(UserError, match="lora_alpha"):
        other.add("policy", 0, tmp_path / "adapter")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_roles_speak_to_their_libraries_by_today_s_names(checkpointing: bool):
    """No FutureWarning, and recomputation is on exactly where it was set."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        base, roles = make(checkpointing)
        with roles.training_as("policy"):
            assert base.text_model.training == checkpointing
    assert base.text_model.is_activation_checkpointing == checkpointing and not base.text_model.training


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "noise": lambda data: b"\xff" * len(data),
    "whole numbers": lambda data: save({name: tensor.to(torch.int64) for name, tensor in load(data).items()}),
    "not finite": lambda data: save({name: tensor * float("nan") for name, tensor in load(data).items()}),
    "shapes": lambda data: save({name: tensor.repeat(2, 1) for name, tensor in load(data).items()}),
    "names": lambda data: save({f"{name}.x": tensor for name, tensor in load(data).items()}),
    "one is missing": lambda data: save(dict(list(load(data).items())[1:])),
    "gone": None,
    "pipe": None,
}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_one_line_with_the_command(name: str, damage: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    adapter = tiny.finished(run, "reward", lambda path: tiny.save_adapter(path / "adapter", 1, head=True)) / "adapter"
    path, change = adapter / name, DAMAGE[damage]
    data = path.read_bytes()
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    elif change is not None:
        path.write_bytes(change(data))
    roles = AdapterSet(tiny.backbone(), tiny.settings().model)
    with pytest.raises(UserError) as caught:
        roles.add("reward", 0, adapter)
        roles.load_head("reward", adapter)
    assert str(adapter) in str(caught.value) and f"`{run.remake('reward')}`" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"lora_alpha": "8"}', '{"lora_alpha": NaN}', "\udcff"])
def test_damaged_settings_of_an_adapter_are_one_line_with_the_command(text: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    adapter = tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1)) / "adapter"
    (adapter / "adapter_config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match="lora_alpha|adapter_config.json") as caught:
        AdapterSet(tiny.backbone(), tiny.settings().model).add("sft", 0, adapter)
    assert "\n" not in str(caught.value)
    assert f"`{run.remake('sft')}`" in str(caught.value)
