"""`minirlaif.json` in the export's folder: how prompts and frames are made for exported files. No torch.

The export writes it and the runtime reads it, so that prompt and frames equal those of training.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minirlaif.errors import UserError
from minirlaif.inference.engine import SamplingParams
from minirlaif.models.renderer import Layout
from minirlaif.runs.hash_cache import DIGITS, HashCache, cache_folder
from minirlaif.runs.io import read_text, write_atomic
from minirlaif.runs.records import NUMBER, inside, read_sealed, wrong_field
from minirlaif.video.frame_sampling import Sizing

FILE = "minirlaif.json"
SCHEMA = 1
FIELDS = {
    **dict.fromkeys(("run", "family", "mmproj"), str),
    **dict.fromkeys(("frames", "frame_pixels", "schema"), int),
    **dict.fromkeys(("layout", "text", "adapters?"), dict),
    "models": [str],
    "sizing": {"unit": int, "tile?": int, "longest?": int, "filter?": str},
    "options": {"temperature": NUMBER, "top_p": NUMBER, "max_new_tokens": int, "seed": int},
}


@dataclass(frozen=True)
class ExportInfo:
    """An export. File names are relative to its folder.

    run: name of the training run; family: transformers' model_type of the base; layout and sizing: how prompts are written and
    frames made; frames and frame_pixels: of a clip in training; options: how the policy sampled.
    text: text model by type, such as {"f16": "tiny-F16.gguf", "q8_0": …}, best first; mmproj: the vision projector.
    models: that can answer, best first; adapters: LoRA file by model, where a model is not the text file as it is.
    """

    run: str
    family: str
    layout: Layout
    sizing: Sizing
    frames: int
    frame_pixels: int
    text: Mapping[str, str]
    mmproj: str
    options: SamplingParams = SamplingParams()
    models: tuple[str, ...] = ("rlaif",)
    adapters: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema}, this version reads {SCHEMA}")
        if not self.text or not self.models or self.frames < 1 or self.sizing.unit < 1:
            raise ValueError("no text model, no model name, no frames or no unit of pixels")
        if unknown := set(self.adapters) - set(self.models):
            raise ValueError(f"adapters of unknown models: {', '.join(sorted(unknown))}")


def write(folder: Path, info: ExportInfo) -> None:
    """Write FILE into an export's folder."""
    plain = asdict(info) | {"layout": info.layout.as_dict()}
    write_atomic(folder / FILE, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> ExportInfo:
    """Read FILE of an export's folder. UserError when it is missing or invalid."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {FILE} in it, so its prompt and frame settings are unknown; name a folder that"
            " `python -m minirlaif export` made"
        )
    try:
        values = json.loads(read_text(path))
        if wrong := wrong_field(values, FIELDS):
            raise ValueError(wrong)
        files = [values["mmproj"], *values["text"].values(), *values.get("adapters", {}).values()]
        if not all(isinstance(name, str) and inside(name) for name in files):
            raise ValueError("a file is not named, or lies outside its folder")
        sizing, pad = values["sizing"], values["sizing"].get("pad")
        parts = {
            "layout": Layout.from_dict(values["layout"]),
            "sizing": Sizing(**{**sizing, "pad": pad and tuple(pad)}),
            "options": SamplingParams(**values["options"]),
            "models": tuple(values["models"]),
        }
        return ExportInfo(**{**values, **parts})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be understood ({error}); export the run again") from None


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Compare files with the hashes in the manifest of an export; each is hashed once, and again when its size or times change.
    Nothing is compared in a folder without a manifest, such as that of an export in progress. UserError: a file has changed."""
    if not (folder / "manifest.json").is_file():
        return
    outputs, hashes = read_sealed(folder / "manifest.json").get("outputs", {}), HashCache(cache_folder() / "exports.json")
    for name in names:
        path = os.path.abspath(folder / name)
        with suppress(OSError):  # missing or not readable: llama.cpp says so
            if name in outputs and hashes.digest(path) != outputs[name]["sha256"][:DIGITS]:
                raise UserError(f"{path}: changed since it was exported; export the run again")
    hashes.save()
