"""Lists a GGUF with the converter's own reader; started by quantize.py as a process of its own, see there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LONG = 100  # items of a list from which on it is left out


def main() -> None:
    """Carry out one order."""
    order = json.load(sys.stdin)
    sys.path[1:1] = [str(Path(order["folder"]) / "gguf-py")]
    from gguf import GGUFReader  # type: ignore[import-not-found]

    reader = GGUFReader(order["path"])
    tensors = {t.name: (t.tensor_type.name, int(t.shape[0])) for t in reader.tensors if len(t.shape) > 1}
    values = {name: field.contents() for name, field in reader.fields.items()}
    fields = {name: value for name, value in values.items() if not isinstance(value, list) or len(value) < LONG}
    Path(order["result"]).write_text(json.dumps({"tensors": tensors, "fields": fields}), encoding="utf-8")


if __name__ == "__main__":
    main()
