"""Old-layout checkpoints, written here from transformers' separate Llama and CLIP, against what the conversion makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from minirlaif.cli import main
from minirlaif.config import ModelSection
from minirlaif.convert import legacy_files
from minirlaif.convert.llava import convert
from minirlaif.errors import UserError
from minirlaif.models.backbones.llava import DEVIATION, MEAN
from minirlaif.models.loading import open_backbone
from minirlaif.models.renderer import FrameLayout
from minirlaif.types import Turn

GOLDEN = Path(__file__).parents[1] / "golden"
PIECES = 420
TOWER = "model.vision_tower.vision_tower.vision_model."
SETTINGS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 64,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "torch_dtype": "float16",
    "vocab_size": PIECES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_scaling": None,
    "rope_theta": 50.0,  # not transformers' own
}


class Parts:
    """The three networks of an old checkpoint, each by itself."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.llama = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=PIECES,
                    hidden_size=64,
                    intermediate_size=96,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    max_position_embeddings=4096,
                    rms_norm_eps=1e-5,
                    rope_parameters={"rope_type": "default", "rope_theta": 50.0},
                    initializer_range=0.1,
                )
            ).eval()
            self.clip = CLIPVisionModel(
                CLIPVisionConfig(
                    hidden_size=64,
                    intermediate_size=80,
                    num_hidden_layers=3,
                    num_attention_heads=1,
                    image_size=28,
                    patch_size=7,
                    initializer_range=0.05,
                )
            ).eval()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def weights(self) -> dict[str, torch.Tensor]:
        """By their old names, with the buffers that old files keep."""
        actual = dict(self.llama.state_dict())
        for number, layer in (("0", self.first), ("2", self.second)):
            actual |= {f"model.mm_projector.{number}.{name}": tensor for name, tensor in layer.state_dict().items()}
        actual |= {TOWER + name: tensor for name, tensor in self.clip.state_dict().items()}
        actual |= {TOWER + "embeddings.position_ids": torch.arange(17)[None]}
        actual["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        return {name: tensor.clone() for name, tensor in actual.items()}

    @torch.no_grad()
    def logits(self, ids: list[int], image_id: int, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """What the old code computed: patches of the last but one layer, the two-layer projector, then the means."""
        pixels = (torch.from_numpy(pixels_FHW3) / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        modules = self.clip(pixels.permute(0, 3, 1, 2), output_hidden_states=True).hidden_states[-2][:, 1:]
        projected = self.second(nn.functional.gelu(self.first(modules)))
        place = ids.index(image_id)
        saved = torch.tensor([i for i in ids if i != image_id])
        words = self.llama.model.embed_tokens(saved)
        row = torch.cat([words[:place], projected.mean(1), projected.mean(0), words[place:]])
        return self.llama(inputs_embeds=row[None]).logits


def write_old(folder: Path, weights: dict[str, torch.Tensor], form: str = "bin", **changes: Any) -> Path:
    """An old checkpoint in two files with their index."""
    folder.mkdir()
    names = sorted(weights)
    stem, index = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        path = folder / f"{stem}-{number:05d}-of-00002.{index}"
        content = {name: weights[name] for name in part}
        torch.save(content, path) if form == "bin" else save_file(content, path)
        places |= dict.fromkeys(part, path.name)
    (folder / f"{stem}.{index}.index.json").write_text(json.dumps({"weight_map": places}))
    settings = {name: value for name, value in (SETTINGS | changes).items() if value != "left out"}
    (folder / "config.json").write_text(json.dumps(settings))
    shutil.copy(GOLDEN / "llava.model", folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def check_same_logits(new: Path, parts: Parts) -> None:
    base = open_backbone(ModelSection(base=str(new), device="cpu", dtype="float32"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    ids = base.renderer.conversation(FrameLayout((0.0, 1.0, 2.0), 3.0, 19), [Turn("What happens?", "A red circle.")]).ids
    with torch.no_grad():
        rows = torch.tensor([ids])
        after = base.logits(base.hidden(base.embed(rows, [base.encode_frames(pixels)]), torch.ones_like(rows)))
    before = parts.logits(list(ids), base.renderer.image_id, pixels)
    assert float(before.std()) > 0.1 and before.shape[-1] == PIECES
    torch.testing.assert_close(after[..., :PIECES], before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_logits_are_the_same_before_and_after(parts: Parts, tmp_path: Path, monkeypatch: Any, form: str) -> None:
    from transformers import LlavaForConditionalGeneration

    monkeypatch.setattr(legacy_files, "SHARD", 100_000)  # several files are written
    old = write_old(tmp_path / "old", parts.weights(), form)
    assert main.main(["convert", "--from", str(old), "--to", str(tmp_path / "new")]) == 0
    check_same_logits(tmp_path / "new", parts)
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 2
    _, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_checkpoint_without_a_tower_takes_one_by_name(parts: Parts, tmp_path: Path, capsys: Any) -> None:
    weights = {name: tensor for name, tensor in parts.weights().items() if not name.startswith(TOWER)}
    old = write_old(tmp_path / "old", weights)
    words = ["convert", "--from", str(old), "--to", str(tmp_path / "new")]
    assert main.main(words) == 2
    assert "add --vision openai/clip-vit-large-patch14-336" in capsys.readouterr().err
    parts.llama.save_pretrained(tmp_path / "llama")
    assert main.main([*words, "--vision", str(tmp_path / "llama")]) == 2
    assert "not CLIP" in capsys.readouterr().err
    plain = CLIPModel(CLIPConfig(vision_config=parts.clip.config.to_dict()))  # the hub's CLIPs have a text tower, too
    plain.vision_model.load_state_dict(parts.clip.state_dict())
    plain.save_pretrained(tmp_path / "clip")
    assert main.main([*words, "--vision", str(tmp_path / "clip")]) == 0
    check_same_logits(tmp_path / "new", parts)


def test_half_precision_stays_half(parts: Parts, tmp_path: Path) -> None:
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in parts.weights().items()}
    convert(str(write_old(tmp_path / "old", halves, model_type="llava_llama")), tmp_path / "new")
    saved = {name: tensor for path in (tmp_path / "new").glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert torch.equal(saved["language_model.model.norm.weight"], halves["model.norm.weight"])
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "float16"
    rows = saved["language_model.lm_head.weight"]
    assert rows.shape == (448, 64)  # 420 pieces and <image>, filled up to a multiple of 64
    torch.testing.assert_close(rows[PIECES:].float(), halves["lm_head.weight"].float().mean(0).expand(28, -1), atol=1e-4, rtol=0)


def test_ids_are_those_of_the_old_code(parts: Parts, tmp_path: Path) -> None:
    """Golden ids, made with sentencepiece itself by golden/make_llava.py."""
    convert(str(write_old(tmp_path / "old", parts.weights())), tmp_path / "new")
    render = open_backbone(ModelSection(base=str(tmp_path / "new"), device="cpu")).renderer
    one = FrameLayout((0.0,), 1.0, 1)
    actual = {
        "prompt": render.prompt(one, "What happens in the video?"),
        "context": render.prompt(one, "And then?", "0s: a circle.\n2s:  a square.\n"),
        "text": render.prompt(None, "What is 12 plus 30?"),
        "conversation": render.conversation(one, [Turn("What?", "A red  circle, 日本."), Turn("And then?", "It left.")]).ids,
    }
    expected = json.loads((GOLDEN / "llava.json").read_text())
    assert actual.keys() == expected.keys()
    for name, case in expected.items():
        expected = [render.image_id if i == "<image>" else i for i in case["ids"]]
        assert list(actual[name]) == expected, name
        plain = AutoTokenizer.from_pretrained(tmp_path / "new")  # as others open it
        assert plain(case["text"])["input_ids"] == expected, name


def refused(old: Path, new: Path, vision: str = "") -> str:
    with pytest.raises(UserError) as error:
        convert(str(old), new, vision)
    assert "\n" not in str(error.value) and str(old) in str(error.value)
    assert not list(new.parent.glob("*.partial")) and not (new / "config.json").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_config": {}}, "use it as model.base"),
        ({"model_type": "qwen2"}, "not of a LLaVA checkpoint"),
        ({"mm_vision_tower": "left out"}, "not of a LLaVA checkpoint"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"mm_projector_type": "left out"}, "mm_projector_type is None"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_vision_tower": "google/siglip"}, "add --vision"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 3}, "weights are missing"),
        ({"intermediate_size": 90}, "does not belong"),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(parts: Parts, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    old = write_old(tmp_path / "old", parts.weights(), **changes)
    assert says in refused(old, tmp_path / "new")


def test_broken_downloads_are_refused_in_one_line(parts: Parts, tmp_path: Path) -> None:
    old, new = write_old(tmp_path / "old", parts.weights()), tmp_path / "new"
    second = old / "pytorch_model-00002-of-00002.bin"
    content = second.read_bytes()
    second.write_bytes(content[:2000])
    assert "download it again" in refused(old, new)
    second.unlink()
    assert "pytorch_model-00002-of-00002.bin is missing" in refused(old, new)
    second.write_bytes(content)
    (old / "tokenizer.model").write_bytes(b"\xff\xff")
    assert "sentencepiece" in refused(old, new)
    (old / "tokenizer.model").unlink()
    assert "tokenizer.model" in refused(old, new)
    for path in old.glob("*.bin"):
        path.unlink()
    assert "no weights in it, and 0 folders" in refused(old, new)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


def test_nothing_in_a_bin_file_is_executed(parts: Parts, tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", parts.weights())
    torch.save({"model.norm.weight": Trap(tmp_path / "sprung")}, old / "pytorch_model-00001-of-00002.bin")
    assert "not a file of plain weights" in refused(old, tmp_path / "new")
    assert not (tmp_path / "sprung").exists()


def test_a_full_disk_is_seen_before_anything_is_written(parts: Parts, tmp_path: Path, monkeypatch: Any) -> None:
    old = write_old(tmp_path / "old", parts.weights())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    with pytest.raises(UserError, match="0.0 GB are free; make room"):
        convert(str(old), tmp_path / "new")


def test_a_folder_that_holds_something_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        convert(str(write_old(tmp_path / "old", parts.weights())), tmp_path / "new")
    assert (tmp_path / "new" / "mine.txt").read_text() == "mine"


def test_an_old_adapter_changes_the_new_model_as_it_changed_the_old_one(parts: Parts, tmp_path: Path) -> None:
    """The adapter is PEFT's own on the old Llama; the converted one is opened by PEFT on the converted model."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlavaForConditionalGeneration

    convert(str(write_old(tmp_path / "old", parts.weights())), tmp_path / "new")
    old = Parts()
    wrapped = get_peft_model(old.llama, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "published" / "adapter_model"
    wrapped.save_pretrained(folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")  # as older PEFT wrote it
    (folder / "adapter_model.safetensors").unlink()
    (tmp_path / "published" / "config.json").write_text(json.dumps(SETTINGS))  # of the base; the adapter is what there is
    torch.save({}, tmp_path / "published" / "non_lora_trainables.bin")
    torch.save({"weight": torch.ones(1, 64).half(), "bias": torch.zeros(1)}, tmp_path / "published" / "reward_head")
    convert(str(tmp_path / "published"), tmp_path / "adapter")

    ids = torch.tensor([[1, 5, 9, 300, 12]])
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "new", dtype=torch.float32)
    with torch.no_grad():
        base = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter")(ids).logits[..., :PIECES]
        expected = wrapped(ids).logits
    assert float((expected - base[..., :PIECES]).abs().max()) > 0.1
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=0)
    head = load_file(tmp_path / "adapter" / "head.safetensors")
    assert head["linear.weight"].tolist() == [[1.0] * 64] and head["linear.bias"].tolist() == [0.0]
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}

    torch.save({"base_model.model.model.mm_projector.0.bias": torch.ones(64)}, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="non_lora_trainables.bin: holds 1 trained weights"):
        convert(str(folder), tmp_path / "other")


@pytest.mark.parametrize("name", ["nowhere/at-all", "/no/such/folder"])
def test_a_name_that_is_no_folder_and_no_hub_id_is_refused(tmp_path: Path, name: str) -> None:
    assert "no such folder" in refused(Path(name), tmp_path / "new")


def test_weights_that_are_slices_of_one_buffer(tmp_path: Path) -> None:
    """As checkpoints that were gathered from shards are saved."""
    parts = Parts()
    flat = torch.cat([tensor.float().reshape(-1) for tensor in parts.weights().values()])
    weights, place = {}, 0
    for name, tensor in parts.weights().items():
        weights[name] = flat.narrow(0, place, tensor.numel()).view(tensor.shape)
        place += tensor.numel()
    convert(str(write_old(tmp_path / "old", weights)), tmp_path / "new")
    check_same_logits(tmp_path / "new", parts)
