"""Recipe of qwen.npz and qwen.json: what transformers' own Qwen3VLProcessor makes of small clips.

Run once, where torchvision works (the versions are written into qwen.json): `python tests/golden/make_qwen.py`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fixtures import bases_qwen

HERE = Path(__file__).parent
PIXELS = 4096  # most pixels of a frame
FPS = 4.0
# name: (height, width, numbers of the frames in a clip of 4 frames per second). "whole": no resizing, only patches.
CLIPS = {
    "whole_wide": (32, 64, (0, 3, 5, 9)),
    "whole_high": (64, 32, (0, 1, 6)),
    "wide": (90, 160, (2, 7, 30, 31)),
    "high": (150, 61, (0, 10, 11, 26, 39)),
    "small": (24, 40, (1, 2)),
}
# The video token stands bare: it is what the processor replaces. Vision marks that a chat template puts around it would stay
# around all pairs, which is not how the models were trained.
TEXT = {
    "qwen3_vl": "<|im_start|>user\n<|video_pad|>what happens then?<|im_end|>\n<|im_start|>assistant\n",
    "qwen3_5": "<|im_start|>user\n<|video_pad|>what happens then?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
}


def frames(name: str) -> np.ndarray:
    """The clip's frames_FHW3: a ramp per colour with a bright square that moves, so that edges are resized too."""
    height, width, numbers = CLIPS[name]
    y, x = np.mgrid[:height, :width]
    made = []
    for number in numbers:
        picture = np.stack([x * 2 + number * 9, y * 3, x + y + number * 5], -1) % 256
        top, left = number * 2 % (height - 12), number * 5 % (width - 12)
        picture[top : top + 12, left : left + 12] = (250, 240 - number, 20)
        made.append(picture.astype(np.uint8))
    return np.stack(made)


def times(name: str) -> tuple[float, ...]:
    """Seconds of the clip's frames."""
    return tuple(number / FPS for number in CLIPS[name][2])


def main() -> None:
    """Write both files."""
    import torch
    import torchvision
    import transformers
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    ids: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for kind, text in TEXT.items():
        video = Qwen3VLVideoProcessor(cap_pixels_per_frame=False)
        processor = Qwen3VLProcessor(Qwen2VLImageProcessor(), bases_qwen.tokenizer(kind), video)
        for name, (_, _, numbers) in CLIPS.items():
            out = processor(
                text=[text],
                videos=[frames(name)],
                video_metadata=[{"fps": FPS, "total_num_frames": 40, "frames_indices": list(numbers)}],
                do_sample_frames=False,
                size={"shortest_edge": 1, "longest_edge": PIXELS * len(numbers)},
                return_tensors="pt",
            )
            ids[f"{kind}/{name}"] = out["input_ids"][0].tolist()
            arrays[name], arrays[f"{name}/grid"] = out["pixel_values_videos"].numpy(), out["video_grid_thw"].numpy()
    versions = {module.__name__: module.__version__ for module in (transformers, torch, torchvision)}
    (HERE / "qwen.json").write_text(json.dumps({"versions": versions, "ids": ids}) + "\n")
    np.savez_compressed(HERE / "qwen.npz", **arrays)


if __name__ == "__main__":
    main()
