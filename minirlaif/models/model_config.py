"""A base model's folder or hub id: its config.json, its family, the hash of its files, and an empty model of its shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirlaif.config import ModelSection, RewardSection
from minirlaif.errors import UserError
from minirlaif.models.backbones import FAMILIES, family_of
from minirlaif.runs.io import sha256

TINY = Path(__file__).parents[1] / "tiny_world" / "base"
BASE_SUFFIXES = (".safetensors", ".json", ".txt", ".model")  # what a folder's result depends on; .txt: merges.txt of tokenizers
KNOWN_FILE = Path(__file__).parent / "known_configs.json"  # config.json of standard backbones, with their sources


def base_folder(section: ModelSection) -> str:
    """The folder or hub id behind `model.base`."""
    return str(TINY) if section.base == "tiny" else section.base


def critic_model(model: ModelSection, reward: RewardSection) -> ModelSection:
    """The model section of reward and value model: on `reward.base` where it names one."""
    return replace(model, base=reward.base, revision="main") if reward.base else model


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


def model_type(section: ModelSection) -> str:
    """`model_type` of the base, which names its family. UserError as for `read_config`."""
    return str(read_config(section, standard=False)["model_type"])


def read_config(section: ModelSection, folder: str = "", standard: bool = True) -> dict[str, Any]:
    """config.json of `model.base`, or of `folder` where one is given.

    Args:
        standard: also by the name of a standard backbone (see `known_names`), whose files need not be there.

    Raises:
        UserError: there is none, it belongs to no family, or its family refuses it.
    """
    place = f"--model-config {folder}" if folder else f"model.base {section.base}"
    name = folder or base_folder(section)
    config: Any = known_config(name) if standard else None
    if Path(name).is_dir():
        try:
            config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = None
        if not isinstance(config, dict):
            raise UserError(f"{place}: no config.json that can be read in this folder; name a folder saved by save_pretrained")
    elif folder:
        raise UserError(f"{place}: no such folder; name one that holds config.json")
    elif config is None:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(name, revision=section.revision).to_dict()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            more = f"; use --model-config FOLDER, or a standard name: {', '.join(known_names())}" if standard else ""
            raise UserError(f"{place}: no such folder, and the hub gave no config ({reason}){more}") from None
    kind = config.get("model_type")
    if kind not in FAMILIES:
        families = {name: family_of(name) for name in FAMILIES}
        known = ", ".join(f"{family.title} ({name})" for name, family in families.items())
        old = any(kind in family.convertible_types for family in families.values())
        more = " (an old LLaVA checkpoint? `python -m minirlaif convert` makes it one)" if old else ""
        raise UserError(f"{place}: model type {kind!r} is not supported; known are {known}{more}")
    family_of(kind).check_config(config, place)
    return dict(config)


def known_names() -> list[str]:
    """Short names of the standard backbones, such as smolvlm2-500m."""
    return sorted(_known())


def known_config(name: str) -> dict[str, Any] | None:
    """config.json of a standard backbone by short name or hub id; None for another model."""
    for short, entry in _known().items():
        if name in (short, entry["hub"]):
            return dict(entry["config"])
    return None


@lru_cache(maxsize=1)
def _known() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return content


def empty_model(config: Mapping[str, Any], dtype: Any = None) -> Any:
    """The transformers model of a config.json with parameters that have shapes and no memory; its buffers are real.

    Raises:
        UserError: transformers refuses the config.
    """
    import torch
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind: Any = AutoModelForImageTextToText  # its methods have no types
    values = {name: value for name, value in config.items() if name not in ("model_type", "transformers_version")}
    try:
        built = AutoConfig.for_model(config["model_type"], **values)
        built._attn_implementation = "sdpa"
        with init_empty_weights(include_buffers=False):
            model = kind.from_config(built, dtype=dtype or torch.float32)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.json of a {config['model_type']} model: transformers refuses it ({reason})") from None
    model.tie_weights()
    return model
