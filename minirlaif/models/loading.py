"""The base model behind `model.base`: its config.json, its family, the hash of its files, and opening it on a device."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minirlaif import distributed
from minirlaif.config import ModelSection, RewardSection
from minirlaif.errors import UserError
from minirlaif.models.backbones import FAMILIES, family_of
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.language_model import LanguageModel
from minirlaif.models.pretrained import check_hub, load_config, load_tokenizer, load_weights
from minirlaif.runs.io import sha256

TINY = Path(__file__).parents[1] / "tiny_world" / "base"
BASE_SUFFIXES = (".safetensors", ".json", ".txt", ".model")  # what a folder's result depends on; .txt: merges.txt of tokenizers
KNOWN_FILE = Path(__file__).parent / "known_configs.json"  # config.json of standard backbones, with their sources


def base_folder(section: ModelSection) -> str:
    """The folder or hub id behind `model.base`, which may also be the short name of a standard backbone."""
    if section.base == "tiny":
        return str(TINY)
    known = None if Path(section.base).is_dir() else known_models().get(section.base)
    return str(known["hub"]) if known else section.base


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


def hub_commit(section: ModelSection) -> str:
    """Commit of the hub's files behind `model.base` and `model.revision`, once they were loaded; "" for a folder."""
    from huggingface_hub import try_to_load_from_cache

    name = base_folder(section)
    path = None if Path(name).is_dir() else try_to_load_from_cache(name, "config.json", revision=section.revision)
    return Path(path).parent.name if isinstance(path, str) else ""


def model_type(section: ModelSection) -> str:
    """`model_type` of the base, which names its family. UserError as for `read_config`."""
    return str(read_config(section, standard=False)["model_type"])


def read_config(section: ModelSection, folder: str = "", standard: bool = True, setting: str = "model.base") -> dict[str, Any]:
    """config.json of the section's base, or of `folder` where one is given. standard: also by the name of a standard backbone
    (`known_models`), whose files need not be there; setting: of the base, for messages. UserError: there is none, or no family
    takes it."""
    place = f"--model-config {folder}" if folder else f"{setting} {section.base}"
    name = folder or base_folder(section)
    config: Any = known_config(name) if standard else None
    if Path(name).is_dir():
        try:
            config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise UserError(f"{place}: no config.json that can be read in this folder; name a folder saved by save_pretrained")
    elif folder:
        raise UserError(f"{place}: no such folder; name one that holds config.json")
    elif config is None:
        try:
            check_hub(name, section.revision, setting)
        except UserError as error:
            more = f"; or use --model-config FOLDER, or a standard name: {', '.join(sorted(known_models()))}" if standard else ""
            raise UserError(f"{error}{more}") from None
        config = load_config(name, section.revision).to_dict()
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        families = {name: family_of(name) for name in FAMILIES}
        known = ", ".join(f"{family.title} ({name})" for name, family in families.items())
        old = any(kind in family.convertible_types for family in families.values())
        more = " (convert an old LLaVA checkpoint with `python -m minirlaif convert`)" if old else ""
        raise UserError(f"{place}: model type {kind!r} is not supported; known are {known}{more}")
    family_of(kind).check_config(config, place)
    return dict(config)


@lru_cache(maxsize=1)
def known_models() -> dict[str, dict[str, Any]]:
    """Standard backbones by short name, such as smolvlm2-500m: `hub` id and `config`."""
    models: dict[str, dict[str, Any]] = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return models


def known_config(name: str) -> dict[str, Any] | None:
    """config.json of a standard backbone by short name or hub id; None for another model."""
    return next((dict(known["config"]) for short, known in known_models().items() if name in (short, known["hub"])), None)


def empty_model(config: Mapping[str, Any], dtype: Any = None) -> Any:
    """The transformers model of a config.json with parameters that have shapes and no memory; its buffers are real.
    UserError: transformers refuses the config."""
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
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        RecursionError,
        ZeroDivisionError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.json of a {config['model_type']} model: transformers refuses it ({reason})") from None
    model.tie_weights()
    return model


def open_backbone(section: ModelSection) -> VisionLanguageModel:
    """Load the base model with its tokenizer, frozen and in eval mode.
    UserError: unknown family, files that cannot be read, a device that is not there, or LoRA targets that name no layer."""
    device, family = pick_device(section.device), family_of(model_type(section))
    dtype = pick_dtype(section, device)
    quantization = quantization_config(section, dtype, family.skip_quantization())
    backbone = family.load(base_folder(section), section.revision, dtype, quantization, device)
    layers = {name.split(".")[-1] for name, part in backbone.text_model.named_modules() if isinstance(part, nn.Linear)}
    # PEFT passes over a target that matches nothing as long as another one matches.
    if unknown := [name for name in section.lora_targets if name not in layers]:
        known = ", ".join(sorted(layers))
        raise UserError(f"model.lora_targets: {', '.join(unknown)} is no layer of {section.base}; it has {known}")
    backbone.model.requires_grad_(False)
    backbone.model.eval()
    return backbone


def open_text_model(section: ModelSection, end_of_turn: Callable[[Any], int]) -> LanguageModel:
    """Load any causal language model of transformers, frozen and in eval mode, for prompts without video.

    end_of_turn: the token that ends an answer, from the tokenizer; it may refuse a tokenizer with a UserError.
    UserError: files that cannot be read, or a device that is not there.
    """
    from transformers import AutoModelForCausalLM

    folder, device = base_folder(section), pick_device(section.device)
    dtype = pick_dtype(section, device)
    quantization = quantization_config(section, dtype, ("lm_head",))
    tokenizer = load_tokenizer(folder, section.revision)
    end_id = end_of_turn(tokenizer)
    model = load_weights(AutoModelForCausalLM, folder, section.revision, dtype, quantization, device).eval()
    model.requires_grad_(False)
    return LanguageModel(model, tokenizer, folder, model.get_decoder(), model.get_output_embeddings(), end_id)


def check_tokenizers(model: ModelSection, reward: RewardSection) -> None:
    """The value model stands beside the policy token by token, and the reward model reads the policy's ids.
    UserError: model.base and reward.base number their tokens differently, or reward.base is no base at all."""
    if not reward.base:
        return
    sections = [model, critic_model(model, reward)]
    read_config(sections[1], standard=False, setting="reward.base")
    policy, critic = (load_tokenizer(base_folder(section), section.revision) for section in sections)
    if policy.get_vocab() != critic.get_vocab():
        raise UserError(
            f"reward.base {reward.base}: its tokenizer has other tokens than that of model.base {model.base}; name a"
            " reward base of the same family, or leave reward.base empty"
        )


def pick_device(wanted: str) -> torch.device:
    """torch.device of `model.device`: auto takes the GPU where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "model.device is cuda, but torch sees no GPU: set model.device to auto, or run `python -m minirlaif doctor`"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    # On one machine the number of a process is the number of its GPU.
    return torch.device(wanted, distributed.rank()) if wanted == "cuda" else torch.device(wanted)


def pick_dtype(section: ModelSection, device: torch.device) -> torch.dtype:
    """torch.dtype of `model.dtype`: auto is bfloat16 on a GPU and float32 on a CPU."""
    wanted = section.dtype if section.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def quantization_config(section: ModelSection, dtype: Any, skip_quantization: Sequence[str]) -> Any:
    """transformers' quantisation config of `model.quantization`, or None. dtype: what 4-bit weights are computed in;
    skip_quantization: starts of the names of what is not quantised."""
    if section.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    # The vision tower, its connector and the output head stay in full precision: they are small, and quantising what the
    # model sees costs more than it saves (the paper's QLoRA leaves projector and head out too, section 7.1 of its code).
    kind: Any = BitsAndBytesConfig  # its methods have no types
    return kind(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip_quantization),  # matched from the start of a name
    )
