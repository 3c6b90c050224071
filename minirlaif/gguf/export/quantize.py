"""Quantising GGUF files with llama.cpp, and what is in them. No torch.

llama.cpp ends the process where something does not fit, so this module also runs as a child process:
`python -m minirlaif.gguf.export.quantize`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.gguf.export.converter import fetch, in_child

TYPES = {  # as users know them -> llama.cpp's name of the file type
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
    "q3_k_m": "MOSTLY_Q3_K_M",
    "q2_k": "MOSTLY_Q2_K",
}


BYTES = {  # per weight, about
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 1.07,
    "q6_k": 0.9,
    "q5_k_m": 0.8,
    "q4_k_m": 0.75,
    "q3_k_m": 0.65,
    "q2_k": 0.6,
}
BLOCKS = {"q8_0": 32, "q6_k": 256, "q5_k_m": 256, "q4_k_m": 256, "q3_k_m": 256, "q2_k": 256}  # weights of a row per scale


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
    block = BLOCKS.get(kind, 1)
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
    settings.ftype = getattr(native, f"LLAMA_FTYPE_{TYPES[order['kind']]}")
    failed = native.llama_model_quantize(order["source"].encode(), order["target"].encode(), ctypes.byref(settings))
    if failed:
        sys.exit(f"{order['source']}: llama.cpp cannot write it as {order['kind']}")
    Path(order["result"]).write_text("{}", encoding="utf-8")


if __name__ == "__main__":
    main()
