"""VLM-RLAIF for video on one GPU, or on a laptop: a video model that gets better by judging its own answers."""

__version__ = "0.1.0"
