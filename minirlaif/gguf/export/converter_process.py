"""Runs llama.cpp's converter; converter.py starts it as a separate process, other modules never import it.

A request names the scripts to run with their arguments, and the names of possible pre-tokenizers. The converter finds the name
by a hash of the ids of one text, so it knows published tokenizers only. For others the names are tried with the vocabulary
alone, until llama.cpp gives the same ids as transformers.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.video.child_process import serve


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run the jobs of a request; {"pre": name of the pre-tokenizer}."""
    folder = Path(request["folder"])
    sys.path[1:1] = [str(folder / "gguf-py"), str(folder)]
    from conversion import base  # type: ignore[import-not-found]

    vocabulary = Vocabulary(base, request["control"])
    for job in request["jobs"]:
        if "--mmproj" not in job["args"] and request["probes"] and not vocabulary.name:
            vocabulary.choose(folder, job["args"], request["names"], request["probes"])
        run(folder / job["script"], job["args"])
    return {"pre": vocabulary.name}


def run(script: Path, args: Sequence[str]) -> None:
    """Run one of the converter's scripts in this process. SystemExit with a reason when it fails."""
    sys.argv = [str(script), *args]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as error:
        if error.code:
            sys.exit(f"{script.name} failed with code {error.code}")


class Vocabulary:
    """Changes how the converter writes vocabularies. name: of the pre-tokenizer, "" before it is known."""

    def __init__(self, base: Any, control: Sequence[str]) -> None:
        self.name = ""
        self._forced = ""
        name_by_hash, original = base.TextModel.get_vocab_base_pre, base.TextModel.get_vocab_base

        def pre(model: Any, tokenizer: Any) -> str:
            self.name = self._forced or name_by_hash(model, tokenizer)
            return self.name

        def vocabulary(model: Any) -> tuple[list[str], list[int], str]:
            tokens, kinds, name = original(model)
            kinds = [base.gguf.TokenType.CONTROL if token in control else kind for token, kind in zip(tokens, kinds, strict=True)]
            return tokens, kinds, name

        def no_pieces(model: Any, add_to_gguf: bool = True) -> None:
            # The converter reads tokenizer.model first for Llama. No family here has one, and reading it needs another package.
            raise FileNotFoundError("tokenizer.model")

        base.TextModel._set_vocab_sentencepiece = no_pieces
        base.TextModel.get_vocab_base_pre, base.TextModel.get_vocab_base = pre, vocabulary

    def choose(self, folder: Path, args: Sequence[str], names: Sequence[str], probes: Sequence[tuple[str, list[int]]]) -> None:
        """Find the name; UserError when none fits. The name that the converter's own hash gives is tried first."""
        more = [arg for arg in args if arg == "--no-nextn"]
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
                return
            wrong[self.name] = f"{len(differing)} of {len(probes)}, such as {differing[0]!r:.40}"
        listed = "; ".join(f"{name}: {text}" for name, text in wrong.items())
        raise UserError(
            f"{args[0]}: no pre-tokenizer of llama.cpp gives the ids that transformers gives ({listed}); it cannot be exported"
        )


def tokens_of(path: Path, text: str) -> list[int]:
    """llama.cpp's ids of a text; special tokens written in it stay plain text."""
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, verbose=False)
    try:
        return model.tokenize(text.encode(), add_bos=False, special=False)
    finally:
        model.close()


if __name__ == "__main__":
    serve(answer)
