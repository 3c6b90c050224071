"""One model in llama.cpp, through its low-level interface: token ids and frames in, logits out. No torch.

llama.cpp's own chat handlers would change the prompt (SmolVLM: a tile beside the overview, Qwen: every frame by itself), so ids
come from our renderer, and only the vectors of llama.cpp's image chunks are used.

A native assertion ends the process without an exception, so worker.py uses this class in a child. F frames, V vocabulary.
"""

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.errors import UserError
from minirlaif.gguf.runtime.bindings import EncodedFrames, Projector, Vocabulary, library, logged_error

BATCH = 512  # tokens per call of the model
LEAST = 256  # tokens; llama.cpp's KV cache grows in such steps, and an assertion fails where it is much smaller
WORK, SNAPSHOT = 0, 1  # sequences: the conversation, and a copy of its first items (see `prefill`)
KV_TYPES = {"f32": 0, "f16": 1}  # ggml's numbers


class LlamaSession:
    """An opened text GGUF with its mmproj and a KV cache of one conversation. Needs `close`.

    Args:
        text: text model; mmproj: vision projector; n_ctx: tokens in the KV cache, image vectors included.
        threads: of the CPU; kv: number format of keys and values, "f16" or "f32".
    Attributes:
        vocabulary: the tokenizer; n_ctx: as above; trained_ctx: context length of the model, the maximum of n_ctx.
        counters: encodes (groups of frames), prefilled_tokens, reused_tokens, decoded_tokens.
    Raises:
        UserError: files that cannot be read or do not belong together; llama-cpp-python is missing.
    """

    def __init__(self, text: Path, mmproj: Path, n_ctx: int, threads: int = 1, kv: str = "f16") -> None:
        self._c = library()
        self._context: Any = None
        self._resources = ExitStack()
        self._adapters: dict[Path, Any] = {}
        self._scales: dict[Path, float] = {}
        self._threads, self._kv, self._name = threads, KV_TYPES[kv], text.name
        self._items: list[int | EncodedFrames] = []  # in the KV cache; _starts: position of each one
        self._starts: list[int] = []
        self._snapshot = 0  # items in the copy
        self.n_ctx = n_ctx
        self._next = 0  # position of the next token
        self.counters = {"encodes": 0, "prefilled_tokens": 0, "reused_tokens": 0, "decoded_tokens": 0}
        try:
            self._open(text, mmproj)
            self.resize(n_ctx)
        except BaseException:
            self.close()
            raise

    def _open(self, text: Path, mmproj: Path) -> None:
        for path in (text, mmproj):
            if not path.is_file():
                raise UserError(f"{path}: no such file; name a GGUF that `python -m minirlaif export` made")
        settings = self._c.llama_model_default_params()
        settings.n_gpu_layers = 0
        # llama.cpp's AMX kernels crash where the machine reports AMX but its kernel or hypervisor withholds the tile registers
        # (ggml-org/llama.cpp#20824). Without the extra buffer types quantised weights use AVX-512, with the same results.
        settings.use_extra_bufts = b"AMX_INT8 = 1" not in self._c.llama_print_system_info()
        self._model = self._c.llama_model_load_from_file(str(text).encode(), settings)
        if not self._model:
            raise UserError(f"{text}: llama.cpp cannot open it ({logged_error()}); export the model again")
        self._resources.callback(self._c.llama_model_free, self._model)  # with its adapters
        self.trained_ctx: int = self._c.llama_model_n_ctx_train(self._model)
        self._recurrent: bool = self._c.llama_model_is_recurrent(self._model) or self._c.llama_model_is_hybrid(self._model)
        self.vocabulary: Vocabulary = Vocabulary(self._c, self._c.llama_model_get_vocab(self._model))
        self._projector = Projector(self._c, self._model, mmproj, self._threads)
        self._resources.callback(self._projector.close)

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._context:
            self._c.llama_free(self._context)
        self._context = None
        self._resources.close()

    def resize(self, n_ctx: int) -> None:
        """A new, empty KV cache of `n_ctx` tokens. UserError when the machine has too little memory."""
        if n_ctx > self.trained_ctx:
            raise UserError(f"a context of {n_ctx} tokens: the model takes {self.trained_ctx}; set fewer with --ctx")
        if self._context:
            self._c.llama_free(self._context)
        settings = self._c.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = max(n_ctx, LEAST), BATCH, BATCH
        settings.n_seq_max, settings.kv_unified = 2, True
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.type_k = settings.type_v = self._kv
        settings.flash_attn_type = self._c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        self._context = self._c.llama_init_from_model(self._model, settings)
        if not self._context:
            raise UserError(f"not enough memory for a context of {n_ctx} tokens ({logged_error()}); use fewer frames")
        self.n_ctx = n_ctx  # llama.cpp rounds up; this is the number requested
        self._memory = self._c.llama_get_memory(self._context)
        self._clear()
        self._apply()

    def adapt(self, scales: Mapping[Path, float]) -> None:
        """Add these LoRA files to the model, each times its scale, and no others. UserError when one does not fit."""
        scale_of_path = {path: scale for path, scale in scales.items() if scale}
        for path in scale_of_path:
            if path not in self._adapters:
                adapter = self._c.llama_adapter_lora_init(self._model, str(path).encode()) if path.is_file() else None
                if not adapter:
                    why = logged_error() if path.is_file() else "no such file"
                    raise UserError(f"{path}: not an adapter of this model ({why}); export it again")
                self._adapters[path] = adapter
        if scale_of_path != self._scales:
            self._scales = scale_of_path
            self._apply()
            self._clear()

    def _apply(self) -> None:
        count = len(self._scales)
        pointers = (self._c.llama_adapter_lora_p_ctypes * count)(*(self._adapters[path] for path in self._scales))
        scales = (ctypes.c_float * count)(*self._scales.values())
        self._c.llama_set_adapters_lora(self._context, pointers, count, scales)

    def encode(self, pixels_FHW3: np.ndarray) -> EncodedFrames:
        """A group of uint8 frames that share placeholders -> their vectors, for any number of prompts; see `Projector.encode`."""
        self.counters["encodes"] += 1
        return self._projector.encode(pixels_FHW3)

    def drop(self, frames: EncodedFrames) -> None:
        """Free a group of frames. Prompts may no longer contain it."""
        if any(item is frames for item in self._items):
            self._clear()
        self._projector.drop(frames)

    def prefill(self, items: Sequence[int | EncodedFrames], prefix: int = 0) -> np.ndarray:
        """Fill the KV cache with exactly these token ids and frames; logits_V (float32) of the next token.

        Items that are cached already are not computed again. prefix: how many of the items later prompts will share. Recurrent
        models cannot drop single items, so a snapshot after the prefix is kept for them. UserError: the items exceed `n_ctx`.
        """
        if length(items) > self.n_ctx:
            raise UserError(f"{length(items)} tokens do not fit a context of {self.n_ctx}")
        if not items or isinstance(items[-1], EncodedFrames):
            raise ValueError("a prompt ends with a token")
        common = self._truncate(items)
        self.counters["reused_tokens"] += length(items[:common])
        self.counters["prefilled_tokens"] += length(items[common:])
        if self._recurrent and common < prefix <= len(items) - 1:
            self._advance(items[common:prefix])
            self._c.llama_memory_seq_rm(self._memory, SNAPSHOT, -1, -1)
            self._c.llama_memory_seq_cp(self._memory, WORK, SNAPSHOT, -1, -1)
            self._snapshot = common = prefix
        self._advance(items[common:])
        return self._logits()

    def step(self, token: int) -> np.ndarray:
        """Add one token; logits_V of the next."""
        if length(self._items) + 1 > self.n_ctx:
            raise UserError(f"the conversation has filled its context of {self.n_ctx} tokens")
        self._advance([token])
        self.counters["decoded_tokens"] += 1
        return self._logits()

    def _truncate(self, items: Sequence[int | EncodedFrames]) -> int:
        """Drop cached items from the first one that differs from `items` on, at most all but the last; how many stay."""
        pairs = zip(self._items, items[:-1], strict=False)
        common = next((number for number, (old, new) in enumerate(pairs) if old is not new and old != new), None)
        common = min(len(self._items), len(items) - 1) if common is None else common
        if common == len(self._items):
            return common
        position = self._starts[common]
        if common and self._c.llama_memory_seq_rm(self._memory, WORK, position, -1):
            self._next = position
        elif self._recurrent and 0 < self._snapshot <= common:
            common = self._snapshot
            self._c.llama_memory_seq_rm(self._memory, WORK, -1, -1)
            self._c.llama_memory_seq_cp(self._memory, SNAPSHOT, WORK, -1, -1)
            self._next = self._starts[common]
        else:
            self._clear()
            return 0
        del self._items[common:], self._starts[common:]
        self._snapshot = self._snapshot if self._snapshot <= common else 0
        return common

    def _clear(self) -> None:
        self._c.llama_memory_clear(self._memory, True)
        self._items, self._starts, self._next, self._snapshot = [], [], 0, 0

    def _advance(self, items: Sequence[int | EncodedFrames]) -> None:
        """Compute items and append them to the KV cache."""
        tokens: list[int] = []
        for item in items:
            if not isinstance(item, EncodedFrames):
                tokens.append(int(item))
                continue
            self._append_tokens(tokens)
            tokens = []
            self._check(self._projector.append_to_context(item, self._context, self._next, WORK, BATCH))
            self._items.append(item)
            self._starts.append(self._next)
            self._next += item.positions
        self._append_tokens(tokens)

    def _append_tokens(self, tokens: Sequence[int]) -> None:
        """Positions are explicit, since after Qwen's frames the next one is not the last plus one."""
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            batch = self._c.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for number, token in enumerate(part):
                    batch.token[number], batch.pos[number] = token, self._next + number
                    batch.n_seq_id[number], batch.seq_id[number][0] = 1, WORK
                    batch.logits[number] = number == len(part) - 1
                self._check(self._c.llama_decode(self._context, batch))
            finally:
                self._c.llama_batch_free(batch)
            self._items += part
            self._starts += range(self._next, self._next + len(part))
            self._next += len(part)

    def _check(self, code: int) -> None:
        if code:
            self._clear()  # half a prompt may be in it
            raise UserError(f"llama.cpp stopped ({logged_error()}, code {code}); use fewer frames or shorter questions")

    def _logits(self) -> np.ndarray:
        pointer = self._c.llama_get_logits_ith(self._context, -1)
        logits_V: np.ndarray = np.ctypeslib.as_array(pointer, (len(self.vocabulary),)).copy()
        if not np.isfinite(logits_V).all():
            raise UserError(f"{self._name}: its logits are not finite, so it cannot answer; export the model again")
        return logits_V


def length(items: Sequence[int | EncodedFrames]) -> int:
    """KV cache entries of items: one per token, and one per vector of a frame."""
    return sum(item.vectors if isinstance(item, EncodedFrames) else 1 for item in items)
