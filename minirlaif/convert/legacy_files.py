"""Reads files of old checkpoints: weights and tokenizers.

Old .bin files are pickles. They are read with torch's `weights_only`, which builds tensors and plain containers and refuses
everything else, so nothing in them is executed. Files are mapped into memory, where their format allows.
"""

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minirlaif.errors import UserError
from minirlaif.runs import io

read_json = partial(io.read_json, cure="download it again")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first pattern that matches


def weight_files(folder: Path, patterns: Sequence[str] = WEIGHTS) -> list[Path]:
    """Files of the first pattern that matches any; UserError when one that an index names is missing."""
    pattern = next((pattern for pattern in patterns if any(folder.glob(pattern))), None)
    if pattern is None:
        raise UserError(f"{folder}: neither {' nor '.join(patterns)} in it; download the checkpoint again")
    files = sorted(folder.glob(pattern))
    for index in folder.glob(f"{pattern}.index.json"):
        missing = set(read_json(index)["weight_map"].values()) - {path.name for path in files}
        if missing:
            raise UserError(f"{folder}: {min(missing)} is missing, {index.name} names it; download the checkpoint again")
    return files


def pickled(path: Path) -> dict[str, Any]:
    """Content of a .bin file: tensors by name. Nothing in it is executed."""
    try:  # files older than torch 1.6 are no zip archives, and cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a file of plain weights ({str(error).splitlines()[0]}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains no weights by name; download it again")
    return content


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Weights of one file by name, in its order; they stay on disk until they are used, where the format allows."""
    if path.suffix != ".safetensors":
        yield from pickled(path).items()
        return
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from None


def llama_tokenizer(old: Path, image: str) -> Any:
    """Llama's fast tokenizer with the image token, from tokenizer.json or from sentencepiece's tokenizer.model."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    if (old / "tokenizer.json").is_file():
        content = read_json(old / "tokenizer.json")
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
    elif (old / "tokenizer.model").is_file():
        vocabulary = {piece: number for number, piece in enumerate(_pieces(old / "tokenizer.model"))}
        merges = generate_merges(vocabulary)
        added = read_json(old / "added_tokens.json") if (old / "added_tokens.json").is_file() else {}
    else:
        raise UserError(f"{old}: neither tokenizer.json nor tokenizer.model in it; download the checkpoint again")
    # legacy: with a space before every piece of text between special tokens, as the old tokenizer had it.
    settings: dict[str, Any] = {"legacy": True, "add_bos_token": True, "pad_token": "<unk>", "padding_side": "left"}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, **settings)
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
