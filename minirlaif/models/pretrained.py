"""The one place that opens files of a model that someone may have made: configs, tokenizers and weights, from a folder or the hub
in transformers' layout. Safetensors only, and code in a model's folder is never run (`trust_remote_code=False` everywhere)."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from minirlaif.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_SECONDS = 10  # to wait for the hub's first answer


@cache
def check_hub(name: str, revision: str, setting: str = "model.base") -> None:
    """Ask the hub once, without retries, whether it has a model that is not in its cache. Nothing is downloaded.

    UserError: `name` is a path that is not there, or the hub has no such model, guards it by a licence, or cannot be reached;
    with what helps. setting: for messages.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if not HUB_ID.fullmatch(name):
        raise UserError(f"{setting} {name}: no such folder")
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    place = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    url = hf_hub_url(name, "config.json", revision=revision, endpoint=place)
    try:
        if constants.HF_HUB_OFFLINE:
            raise errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        get_hf_file_metadata(url, timeout=HUB_SECONDS, endpoint=place)
    except errors.GatedRepoError:
        raise UserError(f"{setting} {name}: accept its licence at {place}/{name}, then log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        missing = "no such folder, and no such model on the hub; a private one needs `hf auth login`"
        raise UserError(f"{setting} {name}: {missing}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{setting} {name}: the hub has no revision {revision} of it; name another, such as main") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{setting} {name}: the hub has no config.json of it, so it is no model of transformers") from None
    except Exception as error:  # of the hub's own, of its HTTP client, of the system
        raise UserError(
            f"{setting} {name}: no such folder, and the hub cannot be reached ({_reason(error)}); without a network, run"
            f" `hf download {name} --local-dir FOLDER` elsewhere and set {setting} to the folder; or set HF_HOME to a folder that"
            " holds its cache, or HF_ENDPOINT to a mirror"
        ) from None


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
