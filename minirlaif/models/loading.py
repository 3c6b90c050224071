"""Opening a backbone: which family a folder or hub id belongs to, in which precision and where. Families do the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif import distributed
from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.runs.io import sha256

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import Backbone

TINY = Path(__file__).parents[1] / "tiny_world" / "base"
BASE_SUFFIXES = (".safetensors", ".json", ".txt", ".model")  # what a folder's result depends on; .txt: merges.txt of tokenizers
FAMILIES = {  # model_type -> name; one module each in families/
    "smolvlm": "SmolVLM and SmolVLM2",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_5": "Qwen3.5",
    "llava": "LLaVA-1.5, VLM-RLAIF",
}


def base_folder(section: ModelSection) -> str:
    """The folder or hub id behind `model.base`."""
    return str(TINY) if section.base == "tiny" else section.base


def model_type(section: ModelSection) -> str:
    """`model_type` of the base, read from its config alone.

    Raises:
        UserError: no such folder or hub id, or a family that minirlaif does not know.
    """
    name = base_folder(section)
    if Path(name).is_dir():
        path = Path(name) / "config.json"
        if not path.is_file():
            raise UserError(f"model.base {section.base}: no config.json in this folder; name a folder saved by save_pretrained")
        try:
            found = json.loads(path.read_text())["model_type"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"model.base {section.base}: its config.json names no model_type; save the model again") from None
    else:
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(name, revision=section.revision).model_type
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"model.base {section.base}: no such folder, and the hub gave no config ({reason})") from None
    if found not in FAMILIES:
        known = ", ".join(f"{name} ({kind})" for kind, name in FAMILIES.items())
        old = " (an old LLaVA checkpoint? `python -m minirlaif convert` makes it one)" if found == "llava_llama" else ""
        raise UserError(f"model.base {section.base}: model type {found!r} is not supported; known are {known}{old}")
    return str(found)


def open_backbone(section: ModelSection) -> Backbone:
    """Load the base model with its tokenizer, frozen and in eval mode.

    Raises:
        UserError: unknown family, files that cannot be read, a device that is not there, or LoRA targets that name no layer.
    """
    device = pick_device(section.device)
    dtype = pick_dtype(section, device)
    load, family = family_of(model_type(section))
    quantization = quantization_config(section, dtype, family.skip_quantization)
    backbone = load(base_folder(section), section.revision, dtype, quantization, device)
    _check_targets(section, backbone)
    backbone.model.requires_grad_(False)
    backbone.model.eval()
    return backbone


def _check_targets(section: ModelSection, backbone: Backbone) -> None:
    """PEFT passes over a target that matches nothing as long as another one matches."""
    from torch import nn

    layers = {name.split(".")[-1] for name, part in backbone.text_model.named_modules() if isinstance(part, nn.Linear)}
    unknown = [name for name in section.lora_targets if name not in layers]
    if unknown:
        known = ", ".join(sorted(layers))
        raise UserError(f"model.lora_targets: {', '.join(unknown)} is no layer of {section.base}; it has {known}")


def family_of(kind: str) -> tuple[Callable[..., Backbone], type[Backbone]]:
    """`load` and the class of the family's module, imported here because they load torch."""
    from minirlaif.models.backbones import llava, qwen3_5, qwen3_vl, smolvlm

    return {
        "smolvlm": (smolvlm.load, smolvlm.SmolVLM),
        "qwen3_vl": (qwen3_vl.load, qwen3_vl.Qwen3VL),
        "qwen3_5": (qwen3_5.load, qwen3_5.Qwen35),
        "llava": (llava.load, llava.Llava),
    }[kind]


def pick_device(wanted: str) -> Any:
    """torch.device of `model.device`: auto takes the GPU where there is one."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "model.device is cuda, but torch sees no GPU: set model.device to auto, or run `python -m minirlaif doctor`"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    # On one machine the number of a process is the number of its GPU.
    return torch.device(wanted, distributed.rank()) if wanted == "cuda" else torch.device(wanted)


def pick_dtype(section: ModelSection, device: Any) -> Any:
    """torch.dtype of `model.dtype`: auto is bfloat16 on a GPU and float32 on a CPU."""
    import torch

    wanted = section.dtype if section.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, wanted)


def quantization_config(section: ModelSection, dtype: Any, skip_quantization: Sequence[str]) -> Any:
    """transformers' quantisation config of `model.quantization`, or None. dtype: what 4-bit weights are computed in;
    skip_quantization: starts of the names of what is not quantised."""
    if section.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    # The vision tower, its connector and the output head stay in full precision: they are small, and quantising what the
    # model sees costs more than it saves (the paper's QLoRA leaves projector and head out too, section 7.1 of its code).
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip_quantization),  # matched from the start of a name
    )


def base_hash(section: ModelSection) -> str:
    """sha256 (16 hex) of the base: of weights, config, tokenizer and layout for a folder, of name and revision for a hub id."""
    name = base_folder(section)
    digest = hashlib.sha256()
    if Path(name).is_dir():
        for path in sorted(path for path in Path(name).iterdir() if path.suffix in BASE_SUFFIXES and path.is_file()):
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    else:
        digest.update(f"{name}@{section.revision}".encode())
    return digest.hexdigest()[:16]
