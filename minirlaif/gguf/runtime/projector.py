"""The vision projector: an opened mmproj. Frames in, vectors out, and vectors into the language model's KV cache. No torch.

Only the vectors of llama.cpp's image chunks are used; the tokens around them come from models/renderer.py. F frames, N
vectors, E numbers of each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.errors import UserError
from minirlaif.gguf.runtime.bindings import logged_error

MAX_VECTORS = 1 << 16  # of a frame; frames have their final size, and llama.cpp's own bounds would scale them


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
