"""VLM-RLAIF for video on one GPU, or on a laptop: a video model that gets better by judging its own answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"


def load(folder: str | Path) -> Any:
    """Open a finished run (runs/NAME) or an export (runs/NAME/export) as an `app.loading.VideoModel`:
    `load("runs/tiny").ask("clip.mp4", "what happens?")`.

    UserError: the folder is neither, or a stage of the run is not finished.
    """
    # By name, as the registry does with stages: this module is below all others, and loads none of them.
    return import_module("minirlaif.app.loading").load(folder)
