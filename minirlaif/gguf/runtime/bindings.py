"""llama_cpp's C functions with llama.cpp's log collected for error messages, and the tokenizer of a GGUF. No torch."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from minirlaif.errors import UserError

INSTALL = "pip install llama-cpp-python==0.3.36"
ERROR = 4  # ggml's log level

_messages: deque[str] = deque(maxlen=20)
_callbacks: list[Any] = []  # referenced here because C holds only a pointer


def library() -> Any:
    """The module of C functions. UserError when llama-cpp-python is missing or does not run here."""
    try:
        from llama_cpp import llama_cpp, mtmd_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"llama-cpp-python cannot be used ({str(error)[:100]}); `{INSTALL}`") from None
    _messages.clear()
    if not _callbacks:

        def note(level: int, text: bytes, user_data: Any) -> None:
            if level == ERROR:
                _messages.append(text.decode(errors="replace").strip())

        _callbacks.append(llama_cpp.llama_log_callback(note))
        llama_cpp.llama_log_set(_callbacks[0], ctypes.c_void_p(0))
        mtmd_cpp.mtmd_helper_log_set(_callbacks[0], ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def logged_error() -> str:
    """The first line of llama.cpp's error log since the last call; the first one is nearest to the cause. Clears the log."""
    message = next((line[:200] for line in _messages if line), "it gave no reason")
    _messages.clear()
    return message


class Vocabulary:
    """A byte-level BPE tokenizer read from a GGUF, with the part of transformers' interface that `renderer.Renderer` uses.

    Attributes:
        added_tokens_decoder: control tokens by id; unused: ids without a token.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._c, self._handle = library, handle
        self.encode_special_tokens = False  # no effect: text never becomes a special token here
        self._size: int = library.llama_vocab_n_tokens(handle)
        kinds = [library.llama_vocab_get_attr(handle, number) for number in range(self._size)]
        control = [number for number, kind in enumerate(kinds) if kind & library.LLAMA_TOKEN_ATTR_CONTROL]
        self.added_tokens_decoder = {number: SimpleNamespace(content=self._text(number), special=True) for number in control}
        self.unused = [number for number, kind in enumerate(kinds) if kind & library.LLAMA_TOKEN_ATTR_UNUSED]

    def __len__(self) -> int:
        return self._size

    @property
    def backend_tokenizer(self) -> Vocabulary:
        """The object that encodes text; here the same one."""
        return self

    def _text(self, token: int) -> str:
        return bytes(self._c.llama_vocab_get_text(self._handle, token)).decode(errors="replace")

    def encode(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        """Ids of plain text. Special tokens written in it stay plain text, and none are added."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        ids = (self._c.llama_token * room)()
        count = self._c.llama_tokenize(self._handle, data, len(data), ids, room, False, False)
        if count < 0:
            raise ValueError(f"llama.cpp cannot split a text of {len(data)} bytes")
        return SimpleNamespace(ids=ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one token, possibly part of a character; empty for a special token."""
        buffer = ctypes.create_string_buffer(256)
        size = self._c.llama_token_to_piece(self._handle, token, buffer, 256, 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._c.llama_token_to_piece(self._handle, token, buffer, -size, 0, False)
        return buffer.raw[:size]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.piece, ids)).decode("utf-8", errors="replace")
