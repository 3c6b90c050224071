"""Quantising GGUF files with llama.cpp, and what is in them. No torch.

llama.cpp ends the process where something does not fit, so this module also runs as a child process:
`python -m minirlaif.gguf.export.quantize`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from minirlaif.errors import UserError
from minirlaif.gguf.export.converter import fetch, in_child


class Type(NamedTuple):
    """A type of a text model. file_type: llama.cpp's name; bytes: per weight, about; block: weights that share a scale."""

    file_type: str
    bytes: float
    block: int = 1


TYPES = {
    "f32": Type("ALL_F32", 4.0),
    "f16": Type("MOSTLY_F16", 2.0),
    "bf16": Type("MOSTLY_BF16", 2.0),
    "q8_0": Type("MOSTLY_Q8_0", 1.07, 32),
    "q6_k": Type("MOSTLY_Q6_K", 0.9, 256),
    "q5_k_m": Type("MOSTLY_Q5_K_M", 0.8, 256),
    "q4_k_m": Type("MOSTLY_Q4_K_M", 0.75, 256),
    "q3_k_m": Type("MOSTLY_Q3_K_M", 0.65, 256),
    "q2_k": Type("MOSTLY_Q2_K", 0.6, 256),
}


def chosen_types(text: str) -> tuple[str, ...]:
    """Types named in a list such as "f16,q4_k_m". UserError for others."""
    names = tuple(dict.fromkeys(filter(None, (name.strip().lower() for name in text.split(",")))))
    unknown = [name for name in names if name not in TYPES]
    if unknown or not names:
        raise UserError(f"--types {text}: {', '.join(unknown) or 'empty'} is no type; choose from {', '.join(TYPES)}")
    return names


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write `source` (F32 or F16) as `kind`, one of TYPES. UserError with llama.cpp's last words when it gives up."""
    in_child("minirlaif.gguf.export.quantize", source, {"source": str(source), "target": str(target), "kind": kind})


def fell_back(path: Path, kind: str) -> dict[str, str]:
    """Weights that llama.cpp wrote in another type, because their rows cannot be cut into the type's blocks; type by name."""
    block = TYPES[kind].block
    return {name: stored for name, (stored, width) in listed(path)["tensors"].items() if width % block and stored != "F32"}


def listed(path: Path) -> dict[str, Any]:
    """What the converter's own reader finds in a file: "tensors" (name -> type and width of its rows; those of more than one
    dimension) and "fields" (name -> value, without long lists)."""
    return in_child("minirlaif.gguf.export.list_process", path, {"folder": str(fetch()), "path": str(path)})


def main() -> None:
    """One file, as the order on stdin says."""
    order = json.load(sys.stdin)
    import ctypes

    from llama_cpp import llama_cpp as native

    settings = native.llama_model_quantize_default_params()
    settings.ftype = getattr(native, f"LLAMA_FTYPE_{TYPES[order['kind']].file_type}")
    failed = native.llama_model_quantize(order["source"].encode(), order["target"].encode(), ctypes.byref(settings))
    if failed:
        sys.exit(f"{order['source']}: llama.cpp cannot write it as {order['kind']}")
    Path(order["result"]).write_text("{}", encoding="utf-8")


if __name__ == "__main__":
    main()
