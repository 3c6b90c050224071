"""A judge in a GGUF file, run by llama.cpp. Text only."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.judges.base import Message, Refused, Reply, today
from minirlaif.judges.config import JudgeSettings, check_judge
from minirlaif.judges.grade import ChatJudge
from minirlaif.runs.io import sha256


class GgufJudge(ChatJudge):
    """A GGUF file of a text model, with the chat template that it carries."""

    kind = "gguf"

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        check_judge(settings)
        path = Path(settings.name)
        try:
            import llama_cpp
        except ImportError:
            raise UserError(f"judge gguf:{settings.name}: needs llama.cpp; `pip install llama-cpp-python`") from None
        self.name, self._version = path.name, sha256(path)[:16]
        self._lock, self._closed = threading.Lock(), False
        self.signature = {
            "kind": self.kind,
            "file": self._version,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "context": settings.context,
        }
        try:
            self._model = llama_cpp.Llama(
                str(path),
                n_ctx=settings.context,
                n_gpu_layers=-1,
                n_threads=settings.threads or None,
                n_threads_batch=settings.threads or None,
                seed=0,
                verbose=False,
            )
        except ValueError as error:
            raise UserError(f"judge gguf:{settings.name}: llama.cpp cannot load it ({error})") from None
        super().__init__(settings, replies)

    def stop(self) -> None:
        """Free the model once no thread decodes: llama.cpp would read freed memory and end the process."""
        with self._lock:
            if not self._closed:
                self._model.close()
            self._closed = True

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply. Refused when question and reply do not fit the context."""
        s = self.settings
        with self._lock:
            if self._closed:
                raise UserError(f"judge {self.name}: closed before this question was asked")
            try:
                completion: Any = self._model.create_chat_completion(
                    list(messages),  # type: ignore[arg-type]
                    temperature=s.temperature,
                    max_tokens=s.max_tokens,
                    repeat_penalty=1.0,
                )
            except ValueError as error:  # longer than the context
                raise Refused(f"{error} (raise context, which is {s.context})") from None
        usage = completion.get("usage", {})
        text = completion["choices"][0]["message"]["content"] or ""
        tokens = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
        return Reply(text, self._version, today(), *tokens)
