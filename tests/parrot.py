"""A language model that gives one reply to everything, as a GGUF file and as a folder of transformers.

After the token that opens an answer comes a token whose text is the whole reply, after that the end: two rows of the output
layer say so, all other weights are zero. So a real runtime loads, tokenises and samples, and the reply is known beforehand.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEADS, CONTEXT = 32, 2, 2048
SAY, END = "<|say|>", "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|say|>{{ m['content'] }}<|end|>"
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|say|>{% endif %}"
)


def byte_letters() -> list[str]:
    """The 256 letters that byte-level tokenizers write bytes with: printable ones stand for themselves, others are moved up."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def vocabulary(reply: str) -> list[str]:
    return [*byte_letters(), SAY, END, reply]


def weights(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and output layer, both [vocabulary, WIDTH]."""
    say, end, reply = (words.index(word) for word in (SAY, END, words[-1]))
    embeddings, output = (np.zeros((len(words), WIDTH), np.float32) for _ in range(2))
    embeddings[say, 0] = embeddings[reply, 1] = 1.0
    output[reply, 0] = output[end, 1] = 10.0
    return embeddings, output


def write_gguf(path: Path, reply: str) -> Path:
    """A GGUF file, version 3, all weights float32."""
    words = vocabulary(reply)
    embeddings, output = weights(words)
    zeros = np.zeros((WIDTH, WIDTH), np.float32)
    layers = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
    tensors = {
        "token_embd.weight": embeddings,
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": output,
        "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.ffn_norm.weight": np.ones(WIDTH, np.float32),
        **{f"blk.0.{name}.weight": zeros for name in layers},
    }
    facts: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "parrot",
        "llama.block_count": 1,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 4],  # ordinary, control, control, user-defined
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": words.index(END),
        "tokenizer.ggml.bos_token_id": words.index(END),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    for name, value in facts.items():
        head += _text(name) + _typed(value)
    data = b""
    for name, tensor in tensors.items():
        head += (
            _text(name) + struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *tensor.shape[::-1]) + struct.pack("<IQ", 0, len(data))
        )
        data += tensor.tobytes() + b"\0" * (-tensor.nbytes % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _typed(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def write_folder(folder: Path, reply: str) -> Path:
    """The same model as `save_pretrained` writes it."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = vocabulary(reply)
    engine = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(SAY, special=True), AddedToken(END, special=True)])
    engine.add_tokens([AddedToken(reply, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, eos_token=END, additional_special_tokens=[SAY])
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, tie_word_embeddings=False, bos_token_id=None, eos_token_id=words.index(END),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    embeddings, output = (torch.from_numpy(matrix) for matrix in weights(words))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if "norm" not in name else parameter.fill_(1.0)
        model.get_input_embeddings().weight.copy_(embeddings)
        model.get_output_embeddings().weight.copy_(output)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
