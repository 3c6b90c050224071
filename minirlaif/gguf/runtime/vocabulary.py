"""The vocabulary inside a GGUF, in the few words that `chat.Renderer` knows of a tokenizer. No torch, no transformers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple


class Token(NamedTuple):
    """A token that was added to the vocabulary by hand."""

    content: str
    special: bool


class Encoding(NamedTuple):
    """The ids of a text."""

    ids: list[int]


class Vocabulary:
    """A tokenizer of byte-level BPE read from a GGUF.

    Attributes:
        added_tokens_decoder: control tokens by id; unused: ids that stand for no token.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._c, self._handle = library, handle
        self.encode_special_tokens = False  # text never becomes a special token here, whatever this says
        self._size: int = library.llama_vocab_n_tokens(handle)
        kinds = [library.llama_vocab_get_attr(handle, number) for number in range(self._size)]
        control = [number for number, kind in enumerate(kinds) if kind & library.LLAMA_TOKEN_ATTR_CONTROL]
        self.added_tokens_decoder = {number: Token(self._text(number), True) for number in control}
        self.unused = [number for number, kind in enumerate(kinds) if kind & library.LLAMA_TOKEN_ATTR_UNUSED]

    def __len__(self) -> int:
        return self._size

    @property
    def backend_tokenizer(self) -> Vocabulary:
        """What turns text into ids; here the same object."""
        return self

    def _text(self, token: int) -> str:
        return bytes(self._c.llama_vocab_get_text(self._handle, token)).decode(errors="replace")

    def encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        """Ids of plain text. Special tokens written in it stay letters, and none are added."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        ids = (self._c.llama_token * room)()
        count = self._c.llama_tokenize(self._handle, data, len(data), ids, room, False, False)
        if count < 0:
            raise ValueError(f"llama.cpp cannot split a text of {len(data)} bytes")
        return Encoding(ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one token, maybe half a letter; nothing for a special one."""
        buffer = ctypes.create_string_buffer(256)
        size = self._c.llama_token_to_piece(self._handle, token, buffer, 256, 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._c.llama_token_to_piece(self._handle, token, buffer, -size, 0, False)
        return buffer.raw[:size]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, ids)).decode("utf-8", errors="replace")
