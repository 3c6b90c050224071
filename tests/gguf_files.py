"""GGUF files of the shipped tiny base, written from its safetensors without llama.cpp's converter: in milliseconds, with no
network, and by other code than the export's. The format: github.com/ggml-org/ggml, docs/gguf.md."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from minirlaif.gguf import export_info
from minirlaif.inference.engine import Options
from minirlaif.models.loading import TINY
from minirlaif.tiny_world.base_model import LAYOUT
from minirlaif.video.frame_sampling import Sizing

ALIGNMENT = 32
FRAMES = 4
U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10  # numbers of value types
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # numbers of token types


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    kinds = [(I32, struct.pack("<i", item)) if isinstance(item, int) else _value(item) for item in value]
    return ARRAY, struct.pack("<IQ", kinds[0][0], len(kinds)) + b"".join(data for _, data in kinds)


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """A GGUF file of float32 tensors. numpy's axes come out reversed, as in every GGUF."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, data = _value(value)
        head += _string(key) + struct.pack("<I", kind) + data
    body = b""
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(body))
        body += np.ascontiguousarray(tensor, np.float32).tobytes()
        body += bytes(-len(body) % ALIGNMENT)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + body)
    return path


TEXT_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
VISION_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
HEADS = 4  # of the tiny base's language model


def turned(weight: np.ndarray) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: the two halves of a rotary pair side by side, for each head."""
    return weight.reshape(HEADS, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def text_tensors(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The language model under llama.cpp's names."""
    found = {"token_embd.weight": weights["model.text_model.embed_tokens.weight"]}
    found["output_norm.weight"] = weights["model.text_model.norm.weight"]
    for number in range(4):
        for theirs, ours in TEXT_NAMES.items():
            weight = weights[f"model.text_model.layers.{number}.{theirs}.weight"]
            found[f"blk.{number}.{ours}.weight"] = turned(weight) if ours in ("attn_q", "attn_k") else weight
    return found


def vision_tensors(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The vision tower and its connector under llama.cpp's names."""
    start, embed = "model.vision_model.", "model.vision_model.embeddings."
    found = {"mm.model.fc.weight": weights["model.connector.modality_projection.proj.weight"]}
    found["v.position_embd.weight"] = weights[f"{embed}position_embedding.weight"]
    for end in ("weight", "bias"):
        found[f"v.patch_embd.{end}"] = weights[f"{embed}patch_embedding.{end}"]
        found[f"v.post_ln.{end}"] = weights[f"{start}post_layernorm.{end}"]
        for number in range(2):
            for theirs, ours in VISION_NAMES.items():
                found[f"v.blk.{number}.{ours}.{end}"] = weights[f"{start}encoder.layers.{number}.{theirs}.{end}"]
    return found


def vocabulary() -> dict[str, Any]:
    """The tokenizer as metadata."""
    read = json.loads((TINY / "tokenizer.json").read_text())
    tokens = {number: text for text, number in read["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for token in read["added_tokens"]:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in read["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [tokens[number] for number in range(len(tokens))],
        "tokenizer.ggml.token_type": [kinds[number] for number in range(len(tokens))],
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }


TEXT = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.context_length": 2048,
    "llama.embedding_length": 128,
    "llama.feed_forward_length": 384,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": HEADS,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 32,
}
VISION = {
    "general.architecture": "clip",
    "clip.has_vision_encoder": True,
    "clip.projector_type": "idefics3",
    "clip.use_gelu": True,
    "clip.vision.projection_dim": 128,
    "clip.vision.image_size": 32,
    "clip.vision.preproc_image_size": 32,
    "clip.vision.patch_size": 8,
    "clip.vision.embedding_length": 64,
    "clip.vision.feed_forward_length": 256,
    "clip.vision.block_count": 2,
    "clip.vision.attention.head_count": 2,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.projector.scale_factor": 4,
}
ADAPTER = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}


def adapter(path: Path, layers: Mapping[str, tuple[np.ndarray, np.ndarray]], alpha: float) -> Path:
    """A LoRA file. layers: (A [r, in], B [out, r]) by llama.cpp's name, such as blk.0.attn_v."""
    tensors = {}
    for name, (a, b) in layers.items():
        tensors |= {f"{name}.weight.lora_a": a, f"{name}.weight.lora_b": b}
    return write(path, ADAPTER | {"adapter.lora.alpha": float(alpha)}, tensors)


def tiny(folder: Path, models: Sequence[str] = ("rlaif",), adapters: Mapping[str, str] | None = None) -> Path:
    """An export of the shipped tiny base as it is, in float32: text.gguf, mmproj.gguf and minirlaif.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(TINY / "model.safetensors")
    write(folder / "text.gguf", TEXT | vocabulary(), text_tensors(weights))
    write(folder / "mmproj.gguf", VISION, vision_tensors(weights))
    export_info.write(
        folder,
        export_info.Facts(
            run="tiny",
            family="smolvlm",
            layout=LAYOUT,
            sizing=Sizing(32, 32),
            frames=FRAMES,
            frame_pixels=65536,
            text={"f32": "text.gguf"},
            mmproj="mmproj.gguf",
            options=Options(0.0, 1.0, 32, 0),
            models=tuple(models),
            adapters=adapters or {},
        ),
    )
    return folder
