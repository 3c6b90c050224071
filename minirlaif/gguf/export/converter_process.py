"""Runs llama.cpp's converter; started by converter.py as a process of its own, never imported by other modules.

Reads an order as json from stdin: which scripts to run with which words, and how to find the pre-tokenizer's name. The
converter looks the name up by a hash of what the tokenizer makes of one text, so it knows published tokenizers alone. For
others the names of the order are tried with the vocabulary alone, until llama.cpp gives the same ids as transformers.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    """Carry out one order."""
    order = json.load(sys.stdin)
    folder = Path(order["folder"])
    sys.path[1:1] = [str(folder / "gguf-py"), str(folder)]
    from conversion import base  # type: ignore[import-not-found]

    vocabulary = Vocabulary(base, order["control"])
    error = ""
    for job in order["jobs"]:
        if "--mmproj" not in job["args"] and order["probes"] and not vocabulary.name:
            error = vocabulary.choose(folder, job["args"], order["names"], order["probes"])
            if error:
                break
        run(folder / job["script"], job["args"])
    answer = {"error": error} if error else {"pre": vocabulary.name}
    Path(order["result"]).write_text(json.dumps(answer), encoding="utf-8")


def run(script: Path, words: Sequence[str]) -> None:
    """Run one of the converter's scripts in this process. SystemExit with a reason when it fails."""
    sys.argv = [str(script), *words]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{script.name} gave up with code {stop.code}")


class Vocabulary:
    """How the converter writes vocabularies from now on. name: the pre-tokenizer's, "" before it is known."""

    def __init__(self, base: Any, control: Sequence[str]) -> None:
        self.name = ""
        self._forced = ""
        of_hash, original = base.TextModel.get_vocab_base_pre, base.TextModel.get_vocab_base

        def pre(model: Any, tokenizer: Any) -> str:
            self.name = self._forced or of_hash(model, tokenizer)
            return self.name

        def vocabulary(model: Any) -> tuple[list[str], list[int], str]:
            tokens, kinds, name = original(model)
            kinds = [base.gguf.TokenType.CONTROL if token in control else kind for token, kind in zip(tokens, kinds, strict=True)]
            return tokens, kinds, name

        def no_pieces(model: Any, add_to_gguf: bool = True) -> None:
            # Llama's models ask for a tokenizer.model first. No family here has one, and reading it takes another package.
            raise FileNotFoundError("tokenizer.model")

        base.TextModel._set_vocab_sentencepiece = no_pieces
        base.TextModel.get_vocab_base_pre, base.TextModel.get_vocab_base = pre, vocabulary

    def choose(self, folder: Path, args: Sequence[str], names: Sequence[str], probes: Sequence[tuple[str, list[int]]]) -> str:
        """Settle the name; "" or what is wrong. The name of the converter's own hash is tried first."""
        more = [word for word in args if word == "--no-nextn"]
        wrong: dict[str, str] = {}
        for name in ("", *names):
            self._forced = name
            with tempfile.TemporaryDirectory() as work:
                path = Path(work) / "vocabulary.gguf"
                try:
                    run(folder / "convert_hf_to_gguf.py", [args[0], "--outfile", str(path), "--vocab-only", *more])
                except NotImplementedError:
                    continue  # no hash of a known tokenizer
                differing = [text for text, ids in probes if tokens_of(path, text) != ids]
            if not differing:
                return ""
            wrong[self.name] = f"{len(differing)} of {len(probes)}, such as {differing[0]!r:.40}"
        listed = "; ".join(f"{name}: {text}" for name, text in wrong.items())
        return f"{args[0]}: no pre-tokenizer of llama.cpp gives the ids that transformers gives ({listed}); it cannot be exported"


def tokens_of(path: Path, text: str) -> list[int]:
    """What llama.cpp makes of a text, special tokens in it staying letters."""
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, verbose=False)
    try:
        return model.tokenize(text.encode(), add_bos=False, special=False)
    finally:
        model.close()


if __name__ == "__main__":
    main()
