"""llama_cpp's C functions, made silent: what llama.cpp complains about is kept for error messages. No torch."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

from minirlaif.errors import UserError

INSTALL = "pip install llama-cpp-python==0.3.36"
ERROR = 4  # ggml's number of that level

_messages: deque[str] = deque(maxlen=20)
_callbacks: list[Any] = []  # C keeps a pointer to it


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


def complaint() -> str:
    """What llama.cpp has complained about since the last call: the first line, which is nearest to the cause."""
    message = next((line[:200] for line in _messages if line), "it gave no reason")
    _messages.clear()
    return message
