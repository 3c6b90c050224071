"""config.json of models of 10 to 40 million weights, one per family: big enough that activations outweigh what Python takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EYES = {"hidden_size": 96, "intermediate_size": 192}  # small: a bench's clips come with their features


def middle(folder: Path, family: str, width: int, ffn: int, layers: int, words: int) -> str:
    """Write config.json into `folder`; returns the setting that names it."""
    text = {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "vocab_size": words}
    made = {"smolvlm": _smolvlm, "qwen3_vl": _qwen3_vl, "qwen3_5": _qwen3_5, "llava": _llava}[family](text)
    (folder / "config.json").write_text(json.dumps({"model_type": family, **made}))
    return f"model.base={folder}"


def _smolvlm(text: dict[str, Any]) -> dict[str, Any]:
    text |= {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    vision = {**EYES, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 256, "patch_size": 16}
    whole = {"scale_factor": 4, "tie_word_embeddings": True, "image_token_id": 5}
    return {**whole, "text_config": text, "vision_config": vision}


def _qwen(text: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
    text |= {"model_type": f"{kind}_text", "tie_word_embeddings": True}
    vision = {**EYES, "model_type": f"{kind}_vision", "depth": 2, "num_heads": 3, "patch_size": 16, "spatial_merge_size": 2}
    vision |= {"temporal_patch_size": 2, "out_hidden_size": text["hidden_size"], "num_position_embeddings": 256, **more}
    return {"tie_word_embeddings": True, "text_config": text, "vision_config": vision}


def _qwen3_vl(text: dict[str, Any]) -> dict[str, Any]:
    size = text["hidden_size"] // 8
    turns = [size // 2 - 2 * (size // 6), size // 6, size // 6]
    text |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": size}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": turns, "mrope_interleaved": True}
    return _qwen(text, "qwen3_vl", deepstack_visual_indexes=[0, 1])


def _qwen3_5(text: dict[str, Any]) -> dict[str, Any]:
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "full_attention_interval": 4}
    text |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 8, "linear_num_value_heads": 8}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    text["rope_parameters"]["partial_rotary_factor"] = 0.25
    return _qwen(text, "qwen3_5")


def _llava(text: dict[str, Any]) -> dict[str, Any]:
    text |= {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8}
    vision = {**EYES, "model_type": "clip_vision_model", "num_hidden_layers": 3, "num_attention_heads": 3, "projection_dim": 96}
    vision |= {"image_size": 336, "patch_size": 14}
    return {"image_token_index": 5, "tie_word_embeddings": False, "text_config": text, "vision_config": vision}
