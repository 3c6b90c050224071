"""A tiny random SmolVLM2 laid out as published: no chat_layout.json, several tokens per frame, its processor's settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from minirlaif.tiny_world.base_model import SPECIAL, make_tokenizer

TILE = 32
# preprocessor_config.json as the hub has it for SmolVLM2, with 32 for 512 and 128 for 2048.
SIGHT = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SmolVLMImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": TILE},
    "processor_class": "SmolVLMProcessor",
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 4 * TILE},
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": TILE}},
}


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """uint8 frames [F, H, W, 3] with slopes, edges and noise."""
    random = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    made = []
    for number in range(frames):
        slope = np.stack([x * 255 / width, y * 255 / height, (x + y) * 5 % 256], -1)
        slope[height // 4 : height // 2, width // 4 + number : width // 2 + number] = (255, 0, 128)
        made.append(np.clip(slope + random.normal(0, 12, slope.shape), 0, 255).astype(np.uint8))
    return np.stack(made)


def smolvlm(folder: Path) -> Path:
    """Write the model into `folder`; about 0.3 M weights, 16 tokens per frame."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = SmolVLMConfig(
        image_token_id=ids["<image>"],
        scale_factor=2,
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama",
            "vocab_size": (len(tokenizer) // 64 + 1) * 64,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.1,
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 4,
            "initializer_range": 0.1,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<end_of_utterance>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SIGHT))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 16, "processor_class": "SmolVLMProcessor"}))
    return folder
