"""Opening a backbone: which family a folder or hub id belongs to, in which precision and where. Families do the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif import parallel
from minirlaif.config import ModelSection
from minirlaif.disk import sha256
from minirlaif.records import UserError

if TYPE_CHECKING:
    from minirlaif.families.common import Backbone

TINY = Path(__file__).parent / "tiny_base"
BASE_SUFFIXES = (".safetensors", ".json", ".txt", ".model")  # what a folder's result depends on; .txt: merges.txt of tokenizers
FAMILIES = {"smolvlm": "SmolVLM and SmolVLM2"}  # model_type -> name; one module each in families/


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
        raise UserError(f"model.base {section.base}: model type {found!r} is not supported; known are {known}")
    return str(found)


def open_backbone(section: ModelSection) -> Backbone:
    """Load the base model with its tokenizer, frozen and in eval mode.

    Raises:
        UserError: unknown family, files that cannot be read, a device that is not there, or LoRA targets that name no layer.
    """
    import torch

    kind = model_type(section)
    device = pick_device(section.device)
    dtype = {"auto": torch.bfloat16 if device.type == "cuda" else torch.float32, "float32": torch.float32}.get(
        section.dtype, torch.bfloat16
    )
    backbone = _loader(kind)(base_folder(section), section.revision, dtype, _quantization(section, dtype), device)
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


def _loader(kind: str) -> Callable[..., Backbone]:
    """`load` of the family's module, imported here because a run needs only one."""
    from minirlaif.families import smolvlm

    return {"smolvlm": smolvlm.load}[kind]


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
    return torch.device(wanted, parallel.rank()) if wanted == "cuda" else torch.device(wanted)


def _quantization(section: ModelSection, dtype: Any) -> Any:
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
        llm_int8_skip_modules=["model.vision_model", "model.connector", "lm_head"],  # matched from the start of a name,
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
