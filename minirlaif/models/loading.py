"""Opening `model.base`: its family, device, number format and quantisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minirlaif import distributed
from minirlaif.config import ModelSection, RewardSection
from minirlaif.errors import UserError
from minirlaif.models.backbones import family_of
from minirlaif.models.language_model import LanguageModel
from minirlaif.models.model_config import base_folder, critic_model, model_type
from minirlaif.models.pretrained import load_tokenizer, load_weights

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import VisionLanguageModel


def open_backbone(section: ModelSection) -> VisionLanguageModel:
    """Load the base model with its tokenizer, frozen and in eval mode.

    Raises:
        UserError: unknown family, files that cannot be read, a device that is not there, or LoRA targets that name no layer.
    """
    device = pick_device(section.device)
    dtype = pick_dtype(section, device)
    family = family_of(model_type(section))
    quantization = quantization_config(section, dtype, family.skip_quantization())
    backbone = family.load(base_folder(section), section.revision, dtype, quantization, device)
    _check_targets(section, backbone)
    backbone.model.requires_grad_(False)
    backbone.model.eval()
    return backbone


def open_text_model(section: ModelSection, end_of_turn: Callable[[Any], int]) -> LanguageModel:
    """Load any causal language model of transformers, frozen and in eval mode, for prompts without video.

    Args:
        end_of_turn: the token that ends an answer, from the tokenizer; it may refuse a tokenizer with a UserError.

    Raises:
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

    Raises:
        UserError: model.base and reward.base number their tokens differently, or reward.base is no base at all.
    """
    if not reward.base:
        return
    sections = [model, critic_model(model, reward)]
    try:
        model_type(sections[1])
    except UserError as error:
        raise UserError(str(error).replace("model.base", "reward.base", 1)) from None
    policy, critic = (load_tokenizer(base_folder(section), section.revision) for section in sections)
    if policy.get_vocab() != critic.get_vocab():
        raise UserError(
            f"reward.base {reward.base}: its tokenizer has other tokens than that of model.base {model.base}; name a"
            " reward base of the same family, or leave reward.base empty"
        )


def _check_targets(section: ModelSection, backbone: VisionLanguageModel) -> None:
    """PEFT passes over a target that matches nothing as long as another one matches."""
    from torch import nn

    layers = {name.split(".")[-1] for name, part in backbone.text_model.named_modules() if isinstance(part, nn.Linear)}
    unknown = [name for name in section.lora_targets if name not in layers]
    if unknown:
        known = ", ".join(sorted(layers))
        raise UserError(f"model.lora_targets: {', '.join(unknown)} is no layer of {section.base}; it has {known}")


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
    kind: Any = BitsAndBytesConfig  # its methods have no types
    return kind(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip_quantization),  # matched from the start of a name
    )
