"""Reads files of old checkpoints (weights, tokenizers) and writes weights as safetensors files of limited size.

Old .bin files are pickles. They are read with torch's `weights_only`, which builds tensors and plain containers and refuses
everything else, so nothing in them is executed. One file is in memory at a time (mapped, where its format allows).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlaif.errors import UserError
from minirlaif.runs.io import sync

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first pattern that matches
SHARD = 2 << 30  # bytes of one written file, and so of the weights in memory


def json_of(path: Path) -> Any:
    """Content of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from None


def weight_files(folder: Path, patterns: Sequence[str] = WEIGHTS) -> list[Path]:
    """Files of the first pattern that matches any; UserError when one that an index names is missing."""
    pattern = next((pattern for pattern in patterns if any(folder.glob(pattern))), None)
    if pattern is None:
        raise UserError(f"{folder}: neither {' nor '.join(patterns)} in it; download the checkpoint again")
    files = sorted(folder.glob(pattern))
    for index in folder.glob(f"{pattern}.index.json"):
        missing = set(json_of(index)["weight_map"].values()) - {path.name for path in files}
        if missing:
            raise UserError(f"{folder}: {min(missing)} is missing, {index.name} names it; download the checkpoint again")
    return files


def pickled(path: Path) -> dict[str, Any]:
    """Content of a .bin file: tensors by name. Nothing in it is executed."""
    import pickle

    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files older than torch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a file of plain weights ({str(error).splitlines()[0]}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains no weights by name; download it again")
    return content


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Weights of one file by name, in its order."""
    if path.suffix != ".safetensors":
        yield from pickled(path).items()
        return
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a file; the weights stay on disk where the format allows."""
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in pickled(path).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from None


def llama_tokenizer(old: Path, image: str) -> Any:
    """Llama's fast tokenizer with the image token, from tokenizer.json or from sentencepiece's tokenizer.model."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    if (old / "tokenizer.json").is_file():
        content = json_of(old / "tokenizer.json")
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
    elif (old / "tokenizer.model").is_file():
        vocabulary = {piece: number for number, piece in enumerate(_pieces(old / "tokenizer.model"))}
        merges = generate_merges(vocabulary)
        added = json_of(old / "added_tokens.json") if (old / "added_tokens.json").is_file() else {}
    else:
        raise UserError(f"{old}: neither tokenizer.json nor tokenizer.model in it; download the checkpoint again")
    # legacy: with a space before every piece of text between special tokens, as the old tokenizer had it.
    tokenizer = LlamaTokenizer(
        vocab=vocabulary, merges=merges, legacy=True, add_bos_token=True, pad_token="<unk>", padding_side="left"
    )
    special = [token for token, number in sorted(added.items(), key=lambda item: item[1]) if number >= len(vocabulary)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, *({image} - set(special))]})
    return tokenizer


def _pieces(path: Path) -> list[str]:
    try:
        from transformers.convert_slow_tokenizer import import_protobuf

        schema = import_protobuf()
    except ImportError:
        raise UserError(f"{path}: protobuf is needed to read it; run `pip install protobuf`") from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = schema.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: not a sentencepiece model; download it again") from None
    return [piece.piece for piece in model.pieces]


@dataclass
class Writer:
    """Writes weights into files of SHARD bytes, in the order of `add`; `close` adds transformers' index."""

    folder: Path
    dtype: torch.dtype = torch.float32  # of the first weight
    _pending: dict[str, Tensor] = field(default_factory=dict)
    _bytes: int = 0
    _written: list[list[str]] = field(default_factory=list)
    _total: int = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a weight, at the latest in `close`."""
        if not self._total:
            self.dtype = tensor.dtype
        if self._pending and self._bytes + tensor.nbytes > SHARD:
            self._flush()
        self._pending[name] = tensor.detach().contiguous()
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes

    def close(self) -> None:
        """Write the pending weights, and give the files their final names."""
        self._flush()
        places: dict[str, str] = {}
        for number, names in enumerate(self._written, 1):
            final = f"model-{number:05d}-of-{len(self._written):05d}.safetensors"
            (self.folder / f"part-{number}.safetensors").rename(self.folder / final)
            places |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _flush(self) -> None:
        from safetensors.torch import save_file

        self._written.append(sorted(self._pending))
        path = self.folder / f"part-{len(self._written)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        sync(path)
        self._pending, self._bytes = {}, 0
