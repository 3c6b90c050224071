"""A tiny random LLaVA-1.5 in transformers' layout, with a tokenizer as Llama's: pieces with metaspace, bytes for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("<unk>", "<s>", "</s>")
TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite"
    " answers to the user's questions. USER: what happens in the video? ASSISTANT: a red circle moves left, then a blue square."
)


def tokenizer_json() -> dict[str, Any]:
    """tokenizer.json as published for LLaVA-1.5: a space is put before every text between special tokens, by a normaliser."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    engine.train_from_iterator([TEXT] * 20, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learned = json.loads(engine.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    added = [(i, name) for i, name in enumerate(SPECIAL)] + [(len(names), "<image>")]
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, name in added
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {**model, "vocab": {name: i for i, name in enumerate(names)}, "merges": learned["merges"]},
    }


def write_tokenizer(folder: Path) -> int:
    """tokenizer.json and its config; returns the id of <image>, the last one."""
    content = tokenizer_json()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<unk>", "model_max_length": 2048}))
    return int(content["added_tokens"][-1]["id"])


def llava(folder: Path) -> Path:
    """Write the model into `folder`; about 0.2 M weights, 28 x 28 pixels, 16 patches."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    image_id = write_tokenizer(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=1,
            image_size=28,
            patch_size=7,
            initializer_range=0.05,
        ),
        text_config=LlamaConfig(
            vocab_size=(image_id // 64 + 1) * 64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.1,
            pad_token_id=0,
        ),
        image_token_index=image_id,
        image_seq_length=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    return folder
