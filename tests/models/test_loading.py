from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.loading import TINY, base_hash, model_type, open_backbone, pick_device
from minirlaif.models.logprobs import EncodedPair, token_logprobs
from tests.fixtures import tiny


def section(base: Path | str, **more: str) -> ModelSection:
    return ModelSection(base=str(base), device="cpu", **more)  # type: ignore[arg-type]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_shipped_base_opens_frozen_in_eval_mode() -> None:
    base = open_backbone(section("tiny"))
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not any(m.training for m in base.model.modules())
    assert (base.sizing.tile, base.side, base.width, base.vocabulary) == (32, 1, 128, 442)
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    assert base.renderer.layout.frame == "{image}"  # its own layout, not the family's


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics3"}))
    with pytest.raises(UserError, match="'idefics3' is not supported; known are .*SmolVLM and SmolVLM2") as error:
        open_backbone(section(tmp_path))
    assert one_line(error).startswith(f"model.base {tmp_path}")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config.json") as error:
        model_type(section(tmp_path))
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        model_type(section(tmp_path))
    assert "config.json" in one_line(error)


def test_a_name_that_is_no_folder_and_no_hub_id_is_refused() -> None:
    with pytest.raises(UserError, match="no such folder") as error:
        model_type(section("nowhere/at-all"))
    assert "nowhere/at-all" in one_line(error)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="model.device.*auto.*doctor") as error:
        open_backbone(ModelSection(device="cuda"))
    one_line(error)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_dtypes() -> None:
    low = open_backbone(section("tiny", dtype="bfloat16"))
    assert {p.dtype for p in low.model.parameters()} == {torch.bfloat16}


def rows(base: object) -> list[EncodedPair]:
    return tiny.rows(base)  # type: ignore[arg-type]


def test_four_bits_on_a_cpu_say_nearly_the_same() -> None:
    full, small = open_backbone(section("tiny")), open_backbone(section("tiny", quantization="nf4", dtype="float32"))
    kinds = {name: type(module).__name__ for name, module in small.model.named_modules()}
    low = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert len(low) == 4 * 7 and all(".text_model.layers." in name for name in low)  # sight and head stay as they are
    np.testing.assert_allclose(small.encode_frames(tiny.pixels(2, 0)), full.encode_frames(tiny.pixels(2, 0)), atol=1e-4)
    with torch.no_grad():
        exact, mask, _ = token_logprobs(full, rows(full))
        near, _, _ = token_logprobs(small, rows(small))
    pairs = torch.stack([exact[mask], near[mask]])
    assert 0 < float((pairs[0] - pairs[1]).abs().mean()) < 0.5
    assert float(torch.corrcoef(pairs)[0, 1]) > 0.98


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    assert base_hash(section("tiny")) == base_hash(section(TINY))
    seen = {base_hash(section("tiny"))}
    for name in (
        "",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_layout.json",
        "RECIPE.md",
    ):
        folder = tmp_path / (name or "copy")
        shutil.copytree(TINY, folder)
        if name:
            changed = bytearray((folder / name).read_bytes())
            changed[-1] ^= 1
            (folder / name).write_bytes(changed)
        assert (base_hash(section(folder)) in seen) == (name in ("", "RECIPE.md")), name
        seen.add(base_hash(section(folder)))
    shutil.copytree(TINY, tmp_path / "more")
    (tmp_path / "more" / "chat_layout.json").unlink()
    assert base_hash(section(tmp_path / "more")) not in seen
    assert base_hash(section("a/b")) != base_hash(ModelSection(base="a/b", revision="other"))


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def other_shape(path: Path) -> None:
    weights = load_file(path)
    name = min(weights)
    save_file(weights | {name: torch.zeros(3, *weights[name].shape)}, path, metadata={"format": "pt"})


def other_type(path: Path) -> None:
    config = json.loads(path.read_text())
    config["text_config"]["num_key_value_heads"] = "many"
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("tokenizer.json", Path.unlink, "no tokenizer.json that can be read"),
        ("tokenizer.json", lambda path: path.write_text("{"), "no tokenizer.json that can be read"),
        ("tokenizer.json", lambda path: path.write_text('{"version": "1.0"}'), "no tokenizer.json that can be read"),
        ("model.safetensors", shortened, "its weights cannot be loaded"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "its weights cannot be loaded"),
        ("model.safetensors", Path.unlink, "its weights cannot be loaded"),
        ("model.safetensors", other_shape, "its weights cannot be loaded"),
        ("config.json", other_type, "cannot be loaded|cannot be used"),
    ],
)
def test_a_base_that_cannot_be_read(tmp_path: Path, name: str, spoil: Callable[[Path], object], words: str) -> None:
    shutil.copytree(TINY, tmp_path / "base")
    spoil(tmp_path / "base" / name)
    with pytest.raises(UserError, match=words) as error:
        open_backbone(ModelSection(base=str(tmp_path / "base"), device="cpu"))
    assert str(tmp_path / "base") in one_line(error)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    from minirlaif.models.renderer import Layout, Renderer

    with pytest.raises(UserError, match="no special token <other>") as error:
        Renderer(tiny.tokenizer(), Layout(image="<other>"))
    one_line(error)


def test_lora_targets_are_layers_of_the_language_model() -> None:
    for targets in (("foo",), ("q_proj", "foo")):
        with pytest.raises(UserError, match="model.lora_targets: foo is no layer of tiny; it has down_proj, gate_proj, k_proj"):
            open_backbone(ModelSection(device="cpu", lora_targets=targets))


def test_a_broken_layout_beside_a_model_is_refused_by_name(tmp_path: Path) -> None:
    from minirlaif.models.backbones import smolvlm

    path = tmp_path / "chat_layout.json"
    assert smolvlm._layout(path) == smolvlm.Layout()
    parts = ({"no_such_part": "x"}, {"user": 1.5}, {"outro": ["x"]}, {"group": -1}, {"group": "2"}, {"intro": "{count.real}"})
    frames = ({"frame": "{image} {pixels}"}, {"frame": "{image:>99999999}"}, {"frame": "no picture"}, {"frame": "{image!r}"})
    for text in ("{", "[]", *(json.dumps(part) for part in (*parts, *frames))):
        path.write_text(text)
        with pytest.raises(UserError, match="not a chat layout") as error:
            smolvlm._layout(path)
        assert str(path) in one_line(error)


def test_frames_are_scaled_as_published_and_keep_their_channels() -> None:
    """127.5 is the middle of the range; a red frame and a blue one are not the same."""
    base = tiny.backbone()
    seen = {}
    base.vision_modules[0].register_forward_pre_hook(lambda module, args, named: seen.update(named), with_kwargs=True)
    frame = np.zeros((1, 32, 32, 3), np.uint8)
    frame[..., 0] = 255
    base.encode_frames(frame)
    assert seen["pixel_values"][0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_opening_a_folder_shows_no_progress_bar(capfd):
    from transformers.utils import logging

    open_backbone(ModelSection(device="cpu"))
    assert capfd.readouterr().err == "" and logging.is_progress_bar_enabled()
