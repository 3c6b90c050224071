"""The tiny base model: its tokenizer and its untrained weights. Training it is the stage `pretrain`.

A SmolVLM of about a million weights that turns a frame of 32 x 32 pixels into one token. For llama.cpp it has byte-level BPE with
the gpt-2 pre-tokenizer, line breaks as single tokens, and in base_config.json the name that its converter looks up. Rows
are 128 or 384 wide, not multiples of 256, so k-quants of it fall back to q5_0/q8_0 (named in the recipe).
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

from minirlaif.models.renderer import Layout
from minirlaif.tiny_world.clips import COLOURS, MOTIONS, SEGMENT_QUESTION, SHAPES, Event, all_questions, describe

VOCABULARY = 512
LAYOUT = Layout(user="User:", intro="", frame="{image}", outro="\n")  # one token per frame and no times: 12 frames, 12 tokens
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)


def make_tokenizer() -> Any:
    """A byte-level BPE in which every word of the tiny world is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(_corpus(), trainer)
    engine.add_tokens(["\n\n"])
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token="<end_of_utterance>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=2048,
    )


def _corpus() -> list[str]:
    lines: list[str] = []
    for colour, shape, motion in product(COLOURS, SHAPES, MOTIONS):
        event = Event(colour, shape, motion)
        other = Event("blue" if colour != "blue" else "red", shape, motion)
        events = (event, other, event, other)
        lines += [q.text for q in all_questions(events)] + [" " + q.answer for q in all_questions(events)]
        lines += [f"{i}s: {event.sentence}\n" for i in range(4)] + [describe(events)]
    frame = f"User:\n{SEGMENT_QUESTION}\nAssistant: two three four things happen. describe the video.\n"
    lines += [frame] * 200
    # A little ordinary language, so that a person's own question is not spelled letter by letter.
    lines += ["What is the person doing in this video? Which answer is better, A or B? The answer is the one that"] * 20
    return lines


def make_model(tokenizer: Any, seed: int, layers: int = 4) -> Any:
    """An untrained SmolVLM for `tokenizer`; the global torch seed is set to `seed`."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    torch.manual_seed(seed)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    sizes = json.loads(Path(__file__).with_name("base_config.json").read_text(encoding="utf-8"))
    names = {"bos_token_id": "<|im_start|>", "eos_token_id": "<end_of_utterance>", "pad_token_id": "<|endoftext|>"}
    sizes["text_config"] |= {"vocab_size": len(tokenizer), "num_hidden_layers": layers}
    sizes["text_config"] |= {field: ids[token] for field, token in names.items()}
    config = SmolVLMConfig(**sizes, image_token_id=ids["<image>"])
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<end_of_utterance>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model.float()
