"""Converts checkpoints in LLaVA's old layout, such as VLM-RLAIF's, to ones that transformers opens: models and LoRA adapters.

This module maps weights of the old layout to the new one; `legacy_files.py` reads and writes. The result gets its name only when
it is complete.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minirlaif.convert.legacy_files import WEIGHTS, Writer, json_of, llama_tokenizer, pickled, shapes_of, tensors, weight_files
from minirlaif.errors import UserError
from minirlaif.models.adapters import HEAD_FILE, target_pattern
from minirlaif.models.backbones.llava import LAYOUT, Llava
from minirlaif.models.pretrained import load_with_report

ROW_MULTIPLE = 64  # embedding rows are padded to a multiple of it, for the speed of matrix products
TEXT_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps hidden_act"
    " max_position_embeddings rope_theta rope_scaling initializer_range bos_token_id eos_token_id pad_token_id"
).split()
# Prefixes of names in an old file, in published transformers files, and in the loaded model; the first match counts.
NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2.", "model.multi_modal_projector.linear_2."),
    ("lm_head.", "language_model.lm_head.", "lm_head."),
    ("model.", "language_model.model.", "model.language_model."),
)
TOWER = NAMES[0]
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # stored in old files, computed in new ones


def convert(old: str, new: Path, vision: str = "") -> None:
    """Convert a model or an adapter.

    Args:
        old: folder or hub id of a checkpoint in LLaVA's old layout, or of a LoRA adapter of one.
        new: folder to write; must not exist, or be empty.
        vision: folder or hub id of the CLIP vision tower, where the checkpoint has none.

    Raises:
        UserError: not such a checkpoint, an incomplete one, or too little disk space for the result.
    """
    if new.exists() and (not new.is_dir() or any(new.iterdir())):
        raise UserError(f"{new}: exists already; name a new folder with --to")
    source = _source(old)
    partial = new.with_name(new.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if (source / "adapter_config.json").is_file():
            _convert_adapter(source, partial)
        else:
            _convert_model(source, partial, vision)
        if new.exists():
            new.rmdir()
        partial.replace(new)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _source(old: str) -> Path:
    """The folder to read: the checkpoint itself, or the only adapter in it; downloaded from the hub where there is no folder."""
    folder = Path(old)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(old))
        except (OSError, ValueError) as error:
            raise UserError(f"{old}: no such folder, and the hub has none ({str(error).strip().splitlines()[0]})") from None
    if (folder / "adapter_config.json").is_file() or any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return folder
    adapters = [path.parent for path in folder.glob("*/adapter_config.json")]
    if len(adapters) != 1:
        raise UserError(f"{old}: no weights in it, and {len(adapters)} folders with an adapter; name one folder")
    return adapters[0]


def _convert_model(old: Path, new: Path, vision: str) -> None:
    from transformers import GenerationConfig, LlamaConfig, LlavaConfig

    settings = json_of(old / "config.json")
    _check_settings(old, settings)
    files = weight_files(old)
    shapes = {name: shape for path in files for name, shape in shapes_of(path).items()}
    has_tower = any(name.startswith(TOWER[0]) for name in shapes)
    if not has_tower and not vision:
        raise UserError(f"{old}: contains no vision tower; add --vision {settings['mm_vision_tower']} (a folder or hub id)")
    tower = _tower(vision) if vision else None
    need = sum(path.stat().st_size for path in files) + (0 if tower is None else sum(p.nbytes for p in tower.parameters()))
    if need * 1.02 > (free := shutil.disk_usage(new).free):
        raise UserError(
            f"{new.parent}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room or choose another --to"
        )
    tokenizer = llama_tokenizer(old, LAYOUT.image)
    rows = -(-max(int(settings.get("vocab_size", 0)), len(tokenizer)) // ROW_MULTIPLE) * ROW_MULTIPLE
    vision_config = tower.config if tower is not None else _clip_config(old, settings, shapes)
    text = {name: settings[name] for name in TEXT_FIELDS if settings.get(name) is not None}
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=LlamaConfig.from_dict({**text, "vocab_size": rows, "tie_word_embeddings": False}),
        image_token_index=tokenizer.convert_tokens_to_ids(LAYOUT.image),
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
    )
    expected = _expected_weights(config)

    writer = Writer(new)
    for number, path in enumerate(files, 1):
        print(f"[{number}/{len(files)}] {path.name}", flush=True)
        for name, tensor in tensors(path):
            if name.endswith(BUFFERS) or (tower is not None and name.startswith(TOWER[0])):
                continue
            after = _renamed(name)
            if after.endswith(("embed_tokens.weight", "lm_head.weight")):
                # The placeholder's embedding is never used. The logit of a mean row stays far from the highest, whereas a row of
                # zeros could exceed logits that are all negative.
                mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
                tensor = torch.cat([tensor, mean.expand(max(0, rows - len(tensor)), -1)])
            if expected.pop(after, None) != tuple(tensor.shape):
                raise UserError(
                    f"{path}: {name} {list(tensor.shape)} does not belong to the LLaVA-1.5 that config.json describes"
                )
            writer.add(after, tensor)
    for name, tensor in () if tower is None else tower.state_dict().items():
        if expected.pop(TOWER[1] + name, None) != tuple(tensor.shape):
            raise UserError(
                f"--vision {vision}: {name} does not fit the vision tower of {old}; name {settings['mm_vision_tower']}"
            )
        writer.add(TOWER[1] + name, tensor.to(writer.dtype))
    if expected:
        raise UserError(f"{old}: {len(expected)} weights are missing, the first is {min(expected)}; download it again")
    writer.close()
    config.dtype = writer.dtype
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(new)
    tokenizer.save_pretrained(new)
    ids = {key: getattr(config.text_config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(new)


def _check_settings(old: Path, settings: Mapping[str, Any]) -> None:
    if "text_config" in settings:
        raise UserError(f"{old}: is in transformers' layout already; use it as model.base")
    if settings.get("model_type") not in ("llava", "llava_llama") or "mm_vision_tower" not in settings:
        raise UserError(f"{old}: its config.json is not of a LLaVA checkpoint (model_type llava, with mm_vision_tower)")
    fixed = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "quantization_config": None,
    }
    for name, value in fixed.items():
        if settings.get(name, None if name == "mm_projector_type" else value) != value:
            raise UserError(
                f"{old}: {name} is {settings.get(name)!r} in its config.json; LLaVA-1.5 has {value!r}, only that is converted"
            )


def _renamed(name: str, to: int = 1) -> str:
    for row in NAMES:
        if name.startswith(row[0]):
            return row[to] + name.removeprefix(row[0])
    return name


def _expected_weights(config: Any) -> dict[str, tuple[int, ...]]:
    """Published name and shape of every weight that the model needs."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = {}
    for name, tensor in model.state_dict().items():
        row = next(row for row in NAMES if name.startswith(row[2]))
        expected[row[1] + name.removeprefix(row[2])] = tuple(tensor.shape)
    return expected


def _tower(vision: str) -> Any:
    from transformers import CLIPVisionModel

    try:
        tower, info = load_with_report(CLIPVisionModel, vision)
    except (OSError, ValueError) as error:
        raise UserError(f"--vision {vision}: no CLIP vision tower there ({str(error).strip().splitlines()[0]})") from None
    if info["missing_keys"] or info["mismatched_keys"]:  # transformers would initialise them randomly
        raise UserError(
            f"--vision {vision}: not CLIP, or incomplete: {len(info['missing_keys'])} weights are missing; name another"
        )
    return tower


def _clip_config(old: Path, settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Any:
    """The tower's config from its weights' shapes. OpenAI's CLIP has head size 64 and quick_gelu, which no shape tells."""
    from transformers import CLIPVisionConfig

    name = settings["mm_vision_tower"]
    if "clip-vit" not in str(name).lower() or "laion" in str(name).lower():
        raise UserError(f"{old}: its vision tower {name} is not one of OpenAI's; add --vision with its folder or hub id")
    part = {key.removeprefix(TOWER[0]): shape for key, shape in shapes.items()}
    try:
        width, _, patch, _ = part["embeddings.patch_embedding.weight"]
        patches = part["embeddings.position_embedding.weight"][0] - 1
        inner = part["encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError):
        raise UserError(f"{old}: its vision tower is incomplete; add --vision {name} (a folder or hub id)") from None
    layers = sum(key.endswith("mlp.fc1.weight") for key in part if key.startswith("encoder.layers."))
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
    )


def _convert_adapter(old: Path, new: Path) -> None:
    """Convert a LoRA adapter with PEFT's old file names. A reward head, beside it or one folder above, becomes HEAD_FILE."""
    from safetensors.torch import save_file

    settings = json_of(old / "adapter_config.json")
    for path in (old / "non_lora_trainables.bin", old.parent / "non_lora_trainables.bin"):
        if path.is_file() and (extra := pickled(path)):
            raise UserError(
                f"{path}: holds {len(extra)} trained weights beside the adapter ({min(extra)}); merge them with its base"
            )
    prefix, weights = "base_model.model.", {}
    files = weight_files(old, ("adapter_model*.safetensors", "adapter_model*.bin"))
    for name, tensor in (pair for path in files for pair in tensors(path)):
        after = _renamed(name.removeprefix(prefix), to=2)
        if not after.startswith(Llava.text_prefix) or ".lora_" not in after:
            raise UserError(f"{old}: {name} is not a LoRA weight of the language model; only those are converted")
        weights[prefix + after] = tensor.contiguous()
    save_file(weights, new / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in weights})
    settings["target_modules"] = target_pattern(Llava.text_prefix, targets)
    (new / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
    for path in (old / "reward_head", old.parent / "reward_head"):
        if path.is_file():
            head = {f"linear.{name}": tensor.float().contiguous() for name, tensor in pickled(path).items()}
            save_file(head, new / HEAD_FILE)
            break
