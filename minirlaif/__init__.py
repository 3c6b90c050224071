"""VLM-RLAIF for video on one GPU, or on a laptop: a video model that gets better by judging its own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from minirlaif.app.loading import VideoModel

__version__ = "0.1.0"


def load(folder: str | Path) -> VideoModel:
    """Open a finished run (runs/NAME) or an export (runs/NAME/export): `load("runs/tiny").ask("clip.mp4", "what happens?")`.

    UserError: the folder is neither, or a stage of the run is not finished.
    """
    from minirlaif.app.loading import load as opened  # with torch

    return opened(folder)
