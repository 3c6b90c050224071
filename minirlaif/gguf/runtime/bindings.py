"""llama_cpp's C functions with llama.cpp's log collected for error messages, the tokenizer of a GGUF, and the vision projector of
an mmproj: frames in, vectors out, and vectors into the language model's KV cache. No torch.

Only the vectors of llama.cpp's image chunks are used; the tokens around them come from models/renderer.py. F frames, N
vectors, E numbers of each.
"""

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minirlaif.errors import UserError

INSTALL = "pip install llama-cpp-python==0.3.36"
ERROR = 4  # ggml's log level
MAX_VECTORS = 1 << 16  # of a frame; frames have their final size, and llama.cpp's own bounds would scale them

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

        @llama_cpp.llama_log_callback
        def note(level: int, text: bytes, user_data: Any) -> None:
            if level == ERROR:
                _messages.append(text.decode(errors="replace").strip())

        _callbacks.append(note)
        llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
        mtmd_cpp.mtmd_helper_log_set(note, ctypes.c_void_p(0))
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
        self.backend_tokenizer = self  # the object that encodes text
        self._size: int = library.llama_vocab_n_tokens(handle)
        kinds = [library.llama_vocab_get_attr(handle, number) for number in range(self._size)]
        control = [number for number, kind in enumerate(kinds) if kind & library.LLAMA_TOKEN_ATTR_CONTROL]
        texts = {number: bytes(library.llama_vocab_get_text(handle, number)).decode(errors="replace") for number in control}
        self.added_tokens_decoder = {n: SimpleNamespace(content=text, special=True) for n, text in texts.items()}
        self.unused = [number for number, kind in enumerate(kinds) if kind & library.LLAMA_TOKEN_ATTR_UNUSED]

    def __len__(self) -> int:
        return self._size

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


@dataclass(frozen=True, eq=False)
class EncodedFrames:
    """A frame, or a group of frames that share placeholders, as the vectors that replace image tokens in a prompt.

    vectors: how many; positions: by how many the following text is shifted; embeddings_NE: values; chunk: llama.cpp's handle.
    """

    vectors: int
    positions: int
    embeddings_NE: np.ndarray
    chunk: Any


class Projector:
    """An opened mmproj. UserError when it cannot be read or belongs to another text model.

    Args:
        library: llama_cpp's C functions; model: the text model's handle; threads: of the CPU.
    """

    def __init__(self, library: Any, model: Any, mmproj: Path, threads: int) -> None:
        from llama_cpp import mtmd_cpp

        self._mtmd: Any = mtmd_cpp
        self._width: int = library.llama_model_n_embd_inp(model)
        self._chunks: list[Any] = []
        settings = self._mtmd.mtmd_context_params_default()
        settings.use_gpu, settings.print_timings, settings.warmup, settings.n_threads = False, False, False, threads
        settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.image_min_tokens, settings.image_max_tokens = 1, MAX_VECTORS
        self._handle = self._mtmd.mtmd_init_from_file(str(mmproj).encode(), model, settings)
        if not self._handle:
            raise UserError(f"{mmproj}: cannot be used with this text model ({logged_error()}); take both from one export")

    def close(self) -> None:
        """Free everything; encoded frames can no longer be used."""
        for chunk in self._chunks:
            self._mtmd.mtmd_input_chunk_free(chunk)
        self._mtmd.mtmd_free(self._handle)
        self._chunks = []

    def encode(self, pixels_FHW3: np.ndarray) -> EncodedFrames:
        """A group of uint8 frames that share placeholders -> their vectors.

        The pixels must be those of training: llama.cpp's own scaling differs. UserError when it refuses them.
        """
        m = self._mtmd
        placeholders = m.mtmd_default_marker() * len(pixels_FHW3)
        text_input = m.mtmd_input_text(placeholders, len(placeholders), False, False)
        chunks, bitmaps = m.mtmd_input_chunks_init(), []
        try:
            for frame in np.ascontiguousarray(pixels_FHW3):
                data = frame.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
                bitmaps.append(m.mtmd_bitmap_init(frame.shape[1], frame.shape[0], data))
                m.mtmd_bitmap_set_mergeable(bitmaps[-1], len(pixels_FHW3) > 1)
            pointers = (m.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            failed = m.mtmd_tokenize(self._handle, chunks, ctypes.byref(text_input), pointers, len(bitmaps))
            all_chunks = [m.mtmd_input_chunks_get(chunks, i) for i in range(m.mtmd_input_chunks_size(chunks))]
            images = [chunk for chunk in all_chunks if m.mtmd_input_chunk_get_type(chunk) == m.MTMD_INPUT_CHUNK_TYPE_IMAGE]
            if failed or not images or m.mtmd_encode_chunk(self._handle, images[-1]):
                size = f"{pixels_FHW3.shape[2]}x{pixels_FHW3.shape[1]}"
                raise UserError(f"llama.cpp cannot encode frames of {size} pixels ({logged_error()}); export the model again")
            image = images[-1]  # SmolVLM: its tiles come first, the whole frame last
            vectors = m.mtmd_input_chunk_get_n_tokens(image)
            embeddings_NE = np.ctypeslib.as_array(m.mtmd_get_output_embd(self._handle), (vectors, self._width)).copy()
            self._chunks.append(m.mtmd_input_chunk_get_placeholder(image))  # the chunk without its pixels
            return EncodedFrames(vectors, m.mtmd_input_chunk_get_n_pos(image), embeddings_NE, self._chunks[-1])
        finally:
            m.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                m.mtmd_bitmap_free(bitmap)

    def drop(self, encoded: EncodedFrames) -> None:
        """Free encoded frames."""
        self._chunks.remove(encoded.chunk)
        self._mtmd.mtmd_input_chunk_free(encoded.chunk)

    def append_to_context(self, encoded: EncodedFrames, context: Any, position: int, sequence: int, batch: int) -> int:
        """Append vectors to the KV cache of a llama.cpp context from `position` on; 0, or llama.cpp's error code."""
        numbers = encoded.embeddings_NE.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        after, nothing = ctypes.c_int32(position), self._mtmd.mtmd_helper_post_decode_callback()
        arguments = (encoded.chunk, numbers, position, sequence, batch, ctypes.byref(after), nothing, None)
        return int(self._mtmd.mtmd_helper_decode_image_chunk(self._handle, context, *arguments))


def group_frames(pixels_FHW3: np.ndarray, size: int) -> list[np.ndarray]:
    """Frames in groups that share placeholders. A short last group repeats its last frame, as in training."""
    frames_FHW3 = np.concatenate([pixels_FHW3, pixels_FHW3[-1:].repeat(-len(pixels_FHW3) % size, 0)])
    return [frames_FHW3[start : start + size] for start in range(0, len(frames_FHW3), size)]


def insert_frames(ids: Sequence[int], image_id: int, encoded: Sequence[EncodedFrames]) -> list[int | EncodedFrames]:
    """Ids with each group's placeholders replaced by its encoded frames."""
    items: list[int | EncodedFrames] = []
    groups, covered = iter(encoded), 0
    for token in ids:
        if token != image_id:
            items.append(token)
        elif covered:
            covered -= 1
        else:
            items.append(group := next(groups))
            covered = group.vectors - 1
    return items
