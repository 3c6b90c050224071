"""Merges a run's policy into its full-precision base: a folder in transformers' layout with all files that are needed to open it.

Letters: T tokens, V vocabulary.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minirlaif.config import DataSection, ModelSection, VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf.export.model_card import chat_template
from minirlaif.gguf.export.reference import clip_questions, logits_of, plain_section, reference_of
from minirlaif.models.adapters import AdapterSet, read_weights
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.chat_template import render, tokens_of
from minirlaif.models.loading import base_folder, empty_model, open_backbone, read_config
from minirlaif.models.pretrained import load_config, load_tokenizer, no_progress_bars
from minirlaif.runs.io import read_json
from minirlaif.runs.run import Run

REFUSED = {"use_rslora": "rank-stabilised LoRA", "use_dora": "DoRA", "modules_to_save": "whole trained modules"}
# Files of a base that are copied unchanged; those that transformers would write may differ.
COPIED = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt tokenizer.model"
    " chat_template.jinja chat_template.json chat_layout.json preprocessor_config.json processor_config.json"
    " video_preprocessor_config.json generation_config.json LICENSE"
).split()


def check_adapter(folder: Path, text_prefix: str) -> None:
    """UserError for an adapter that llama.cpp, or a merge, would apply wrongly without an error."""
    settings = read_json(folder / "adapter_config.json", "train it again")
    if not isinstance(settings, dict):
        raise UserError(f"{folder / 'adapter_config.json'}: not settings of an adapter; train it again")
    for name, what in REFUSED.items():
        if settings.get(name):
            raise UserError(f"{folder}: {what} ({name}) is not exported: llama.cpp would read it as plain LoRA; train without it")
    names = list(read_weights(folder / "adapter_model.safetensors"))
    prefix = f"base_model.model.{text_prefix}."
    wrong = [name for name in names if not name.startswith(prefix) or "embed" in name or ".lora_" not in name]
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} weights are not LoRA on the language model's layers (such as {wrong[0]}); llama.cpp would"
            " ignore them silently, so this adapter is not exported"
        )


def merged(
    run: Run, model: ModelSection, video: VideoSection, data: DataSection, folder: Path, keep_apart: bool = False
) -> dict[str, Any]:
    """Write the policy as one model in transformers' layout.

    Args:
        folder: to write into; keep_apart: write the base unchanged, the adapters stay separate files.

    Returns:
        logit_difference: largest, to the policy as it was trained (on a four-bit base, if it was); trained_on: quantisation of
        that base; dtype: of the saved weights; template_fits: see there; question: an example of a prompt without frames.
    """
    section, rows = plain_section(model), clip_questions(run, data)
    backbone = open_backbone(section)
    if keep_apart:
        save_model(backbone, backbone.model, folder, own_dtype(model))
    adapter = run.adapter("rlaif")
    adapters = AdapterSet(backbone, section)
    adapters.add("policy", 0, adapter)
    trained_on, trained_adapters = backbone, adapters
    if model.quantization != "none":
        trained_on = open_backbone(replace(section, quantization=model.quantization))
        trained_adapters = AdapterSet(trained_on, section)
        trained_adapters.add("policy", 0, adapter)
    trained = reference_of(trained_on, rows, video, {"policy": trained_adapters.inference_as("policy")})
    if not keep_apart:
        save_model(backbone, adapters.merge("policy"), folder, own_dtype(model))
    with adapters.inference_as("policy") if keep_apart else nullcontext():
        logits = logits_of(backbone, trained.probes)
    copy_files(backbone, model.revision, folder)
    return {
        "logit_difference": float(abs(logits - trained.logits["policy"]).max()),
        "trained_on": model.quantization,
        "dtype": str(own_dtype(model)).removeprefix("torch."),
        "template_fits": template_fits(folder, backbone),
        "question": backbone.example_prompt,
    }


def save_model(backbone: VisionLanguageModel, model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a model in `dtype`; afterwards it holds the rounded weights in float32, like a model loaded from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype)
    text = model.config.get_text_config()
    if backbone.gguf and backbone.gguf.text_architecture:
        text.architectures = [backbone.gguf.text_architecture]
    with no_progress_bars():
        model.save_pretrained(folder, max_shard_size="4GB")
    model.float()


def copy_files(backbone: VisionLanguageModel, revision: str, folder: Path) -> None:
    """Copy the base's tokenizer, image processor, chat template and generation settings to the weights; missing ones are written
    from the family's facts."""
    from transformers.utils import cached_file

    for name in COPIED:
        optional = dict.fromkeys(("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False)
        path = cached_file(backbone.name, name, revision=revision, **optional)
        if path is not None:
            shutil.copyfile(path, folder / name)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"model.base {backbone.name}: has no tokenizer.json; save its fast tokenizer beside it")
    processor = folder / "preprocessor_config.json"
    if not processor.is_file() and backbone.gguf:
        processor.write_text(json.dumps(backbone.gguf.processor(backbone.sizing), indent=2), encoding="utf-8")
    tokenizer = folder / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text(encoding="utf-8")) if tokenizer.is_file() else {}
    files = ("chat_template.jinja", "chat_template.json")
    if not settings.get("chat_template") and not any((folder / name).is_file() for name in files):
        (folder / "chat_template.jinja").write_text(chat_template(backbone.renderer.layout), encoding="utf-8")


def template_fits(folder: Path, backbone: VisionLanguageModel) -> bool:
    """Whether the folder's chat template, which other programs use, writes a text prompt as it was in training."""
    turns: Any = [{"role": "user", "content": [{"type": "text", "text": "What happens?"}]}]
    tokenizer = load_tokenizer(str(folder), "main")
    try:
        text = render(tokenizer.chat_template, turns, tokens_of(tokenizer))
    except ValueError:
        return False
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(ids) == backbone.renderer.prompt(None, "What happens?")


def own_dtype(section: ModelSection) -> torch.dtype:
    """Number format of the base's files, in which the merged model is saved too."""
    stored: Any = load_config(base_folder(section), section.revision).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def bytes_needed(section: ModelSection, kinds: Sequence[float]) -> int:
    """Disk space that an export takes at most. kinds: bytes per weight of each type of the text model."""
    weights = sum(parameter.numel() for parameter in empty_model(read_config(section)).parameters())
    unquantized = own_dtype(section).itemsize + 4 + 4  # hf/, and text model and projector in float32 and F16 while it is compared
    return int(1.05 * weights * (unquantized + sum(kinds))) + 2**26
