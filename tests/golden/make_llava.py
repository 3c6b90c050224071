"""Makes llava.model and llava.json: a small sentencepiece model as Llama's, and token ids as the old LLaVA code made them.

Run by hand where sentencepiece 0.2 is installed; the tests need neither. The old code cut a conversation at <image>, gave each
part to the slow tokenizer, and put the image between; that tokenizer cut at special tokens again and handed each piece of text
to sentencepiece, which puts a space in front. So every piece of text between special tokens starts with a space.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import sentencepiece

HERE = Path(__file__).parent
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CASES = {
    "prompt": SYSTEM + "USER: <image>\nWhat happens in the video? ASSISTANT:",
    "context": SYSTEM + "USER: <image>\n0s: a circle.\n2s:  a square.\nAnd then? ASSISTANT:",
    "text": SYSTEM + "USER: What is 12 plus 30? ASSISTANT:",
    "conversation": SYSTEM + "USER: <image>\nWhat? ASSISTANT: A red  circle, 日本.</s>USER: And then? ASSISTANT: It left.</s>",
}


def main() -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("<image>", "").replace("</s>", " ") for text in CASES.values()] * 50),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99,
        minloglevel=2,
    )
    (HERE / "llava.model").write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())

    def ids(text: str) -> list[int | str]:
        special: dict[str, list[int | str]] = {"<image>": ["<image>"], "</s>": [model.eos_id()]}
        parts = [part for part in re.split("(<image>|</s>)", text) if part]
        return [model.bos_id(), *(i for part in parts for i in special.get(part) or model.encode(part))]

    content = {name: {"text": text, "ids": ids(text)} for name, text in CASES.items()}
    (HERE / "llava.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
