"""The one place that opens files of a model that someone may have made: configs, tokenizers and weights, from a folder or the hub
in transformers' layout. Safetensors only, and code in a model's folder is never run (`trust_remote_code=False` everywhere)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from minirlaif.errors import UserError


def load_config(folder: str, revision: str, setting: str = "model.base") -> Any:
    """The config of a folder or hub id as transformers reads it. UserError when there is none, or transformers refuses it, also
    because it wants to run code of its own. setting: for messages."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except Exception as error:  # whatever stands in the file: KeyError, TypeError, IndexError, RecursionError
        raise UserError(f"{setting} {folder}: its config.json cannot be used ({_reason(error)}); get the model again") from None


def load_weights(kind: Any, folder: str, revision: str, dtype: torch.dtype, quantization: Any, device: torch.device) -> Any:
    """A model of transformers class `kind` from a folder or hub id. UserError when its files cannot be read."""
    # On a CPU with bf16 instructions bitsandbytes asks for a package that nothing here uses, in words that read like a failure.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        with no_progress_bars() if Path(folder).is_dir() else nullcontext():  # a download keeps them
            model = kind.from_pretrained(
                folder,
                revision=revision,
                dtype=dtype,
                quantization_config=quantization,
                device_map={"": device} if quantization is not None or device.type != "cpu" else None,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
            )
    except Exception as error:  # whatever stands in its files: RuntimeError for a shape, errors of the hub's own for a config
        if "out of memory" in str(error):
            raise
        raise UserError(f"model.base {folder}: its weights cannot be loaded ({_reason(error)}); get the model again") from None
    for module in model.modules():
        # bitsandbytes on a CPU with bf16 instructions repacks 4-bit weights when they are first used, and packed weights have no
        # backward pass: gradients through the base would silently be missing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_with_report(kind: Any, folder: str) -> tuple[Any, dict[str, Any]]:
    """A model of transformers class `kind` in its own number format, and which weights were missing or not as expected.
    OSError or ValueError: its files cannot be read."""
    model, report = kind.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
    return model, report


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' progress bars, which every stage would print again."""
    import transformers

    bars: Any = transformers.utils.logging  # its functions have no types
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()


def load_tokenizer(folder: str, revision: str) -> Any:
    """The fast tokenizer of a folder or hub id. UserError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except Exception as error:  # whatever stands in the file: ValueError, KeyError, and a bare Exception from the Rust side
        raise UserError(
            f"model.base {folder}: no tokenizer.json that can be read ({_reason(error)}); save the tokenizer beside the model"
        ) from None


def _reason(error: BaseException) -> str:
    """The first line of an error, without what stands before a list."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(": ")
