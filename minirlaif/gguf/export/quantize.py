"""Quantises GGUF files with llama.cpp, and lists their contents. No torch.

llama.cpp ends the process when a file does not fit, and the converter's `gguf` may clash with an installed one, so both run in
a child process: `python -m minirlaif.gguf.export.quantize`.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from minirlaif.errors import UserError
from minirlaif.gguf.export.converter import fetch, in_child
from minirlaif.video.child_process import serve

LONG = 100  # fields with so many items are not listed


class Type(NamedTuple):
    """A type of a text model. file_type: llama.cpp's name; bytes: per weight, roughly; block: weights that share a scale."""

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
    """Write `source` (F32 or F16) as `kind`, one of TYPES. UserError with llama.cpp's last output when it fails."""
    in_child("minirlaif.gguf.export.quantize", source, {"source": str(source), "target": str(target), "kind": kind})


def fell_back(path: Path, kind: str) -> dict[str, str]:
    """Type by name of weights that llama.cpp stored in another type, because their rows cannot be divided into blocks."""
    block = TYPES[kind].block
    return {name: stored for name, (stored, width) in listed(path)["tensors"].items() if width % block and stored != "F32"}


def listed(path: Path) -> dict[str, Any]:
    """Contents of a file, read with the converter's own reader: "tensors" (name -> type and width of its rows; those of more
    than one dimension) and "fields" (name -> value, without long lists)."""
    return in_child("minirlaif.gguf.export.quantize", path, {"folder": str(fetch()), "path": str(path)})


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the child: list a file when the request names the converter's folder, else quantise one."""
    if "folder" in request:
        sys.path[1:1] = [str(Path(request["folder"]) / "gguf-py")]
        from gguf import GGUFReader  # type: ignore[import-not-found]

        reader = GGUFReader(request["path"])
        values = {name: field.contents() for name, field in reader.fields.items()}
        return {
            "tensors": {t.name: (t.tensor_type.name, int(t.shape[0])) for t in reader.tensors if len(t.shape) > 1},
            "fields": {name: value for name, value in values.items() if not isinstance(value, list) or len(value) < LONG},
        }
    import ctypes

    from llama_cpp import llama_cpp as native

    settings = native.llama_model_quantize_default_params()
    settings.ftype = getattr(native, f"LLAMA_FTYPE_{TYPES[request['kind']].file_type}")
    if native.llama_model_quantize(request["source"].encode(), request["target"].encode(), ctypes.byref(settings)):
        sys.exit(f"{request['source']}: llama.cpp cannot write it as {request['kind']}")
    return {}


if __name__ == "__main__":
    serve(_answer)
