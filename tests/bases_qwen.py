"""Small random Qwen bases, made from nothing: a folder that opens like a published one, and the tokenizer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ("user", "assistant", "seconds", "what", " happens", " then", " red", " square", " circle", " moves", " left", " the")
# In the published order; the first ones are marked as special there, the others are added tokens of no mark.
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|>"
    " <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
    " <tool_response> </tool_response> <think> </think>"
).split()
AUDIO = "<|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single> <|audio_pad|>".split()
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "initializer_range": 0.2,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,  # more makes a model so steep that four bits and rounding say nothing about it
}


def tokenizer(kind: str) -> Any:
    """A tokenizer of the family's class: bytes, prefixes of a few words, and the family's added tokens."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer, Qwen3_5Tokenizer

    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        word = word.replace(" ", "Ġ")
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                merges.append((word[: end - 1], word[end - 1]))
                vocab[word[:end]] = len(vocab)
    made = {"qwen3_vl": Qwen2Tokenizer, "qwen3_5": Qwen3_5Tokenizer}[kind](vocab=vocab, merges=merges)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL], special_tokens=True)
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    if kind == "qwen3_5":
        made.add_tokens([AddedToken(token, special=token == AUDIO[0], normalized=False) for token in AUDIO])
    made.eos_token = "<|im_end|>"
    return made


def qwen3_vl(folder: Path) -> Path:
    """A Qwen3-VL of four text layers, two of them with DeepStack features."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "mrope_interleaved": True},
    }
    vision = VISION | {"deepstack_visual_indexes": [0, 1]}
    return _save(folder, "qwen3_vl", Qwen3VLConfig, Qwen3VLForConditionalGeneration, text, vision)


def qwen3_5(folder: Path) -> Path:
    """A Qwen3.5 of three linear layers and one of attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
    }
    return _save(folder, "qwen3_5", Qwen3_5Config, Qwen3_5ForConditionalGeneration, text, VISION)


def _save(folder: Path, kind: str, config: Any, model: Any, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    import torch

    tokens = tokenizer(kind)
    number = tokens.convert_tokens_to_ids
    ends = {"eos_token_id": number("<|im_end|>"), "pad_token_id": number("<|endoftext|>")}
    whole = config(
        text_config=TEXT | text | {"vocab_size": -(-len(tokens) // 64) * 64} | ends,  # rows without a token, as published
        vision_config=vision,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = model(whole).float()
        for name, weight in made.named_parameters():
            if weight.ndim == 1:  # norms and biases, which start at one value
                weight.data += 0.1 * torch.randn(weight.shape)
            elif name.endswith("pos_embed.weight"):
                weight.data.normal_()
    made.generation_config.update(**ends)
    made.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
