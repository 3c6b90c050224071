"""Makes smolvlm.json and smolvlm.npz: what transformers' own SmolVLMProcessor makes of two clips and a conversation.

Run by hand, with the repository and tests/ on PYTHONPATH, where torchvision and num2words import; the tests need neither.
Made with transformers 5.23.0, torch 2.14.1, torchvision 0.29.1. One clip is wider than high, the other higher than wide.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.fixtures.bases_smolvlm import clip, smolvlm

HERE = Path(__file__).parent
CLIPS = {"wide": (3, 54, 100), "high": (2, 45, 20)}
FPS = 2.0
ROWS = {"wide": [1, 5, 131], "high": [0, 7]}  # numbers of the frames in the clip: 0.5, 2.5, 65.5 and 0.0, 3.5 seconds
SECONDS = {"wide": 3725.9, "high": 4.5}
TURNS = [("What happens first?", "A red circle."), ("And then?", "Nothing.")]


def main() -> None:
    levels, content = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = smolvlm(Path(name))
        processor = SmolVLMProcessor(
            SmolVLMImageProcessor.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            SmolVLMVideoProcessor.from_pretrained(folder),
            image_seq_len=16,
        )
    for which, shape in CLIPS.items():
        frames = torch.from_numpy(clip(*shape)).permute(0, 3, 1, 2)
        metadata = VideoMetadata(
            total_num_frames=int(SECONDS[which] * FPS), fps=FPS, duration=SECONDS[which], frames_indices=ROWS[which]
        )
        (question, answer), (second, last) = TURNS
        said = [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            {"role": "user", "content": [{"type": "text", "text": second}]},
            {"role": "assistant", "content": [{"type": "text", "text": last}]},
        ]
        for kind, messages in (("prompt", said[:1]), ("conversation", said)):
            text = processor.apply_chat_template(messages, add_generation_prompt=kind == "prompt")
            out = processor(text=text, videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
            content[f"{which} {kind}"] = out["input_ids"][0].tolist()
        pixels = out["pixel_values"][0]
        exact = (pixels + 1) * 127.5
        assert float((exact - exact.round()).abs().max()) < 1e-3  # they were whole levels before they were scaled
        levels[which] = exact.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        content[f"{which} times"] = [row / FPS for row in ROWS[which]]
        content[f"{which} seconds"] = SECONDS[which]
    content["turns"] = TURNS
    (HERE / "smolvlm.json").write_text(json.dumps(content) + "\n")
    np.savez_compressed(HERE / "smolvlm.npz", **levels)


if __name__ == "__main__":
    main()
