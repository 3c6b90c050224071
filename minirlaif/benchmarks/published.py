"""Figures that others have published, with the judge that gave them. Numbers and names only.

From the VLM-RLAIF paper and its project page. Values marked `read off` were measured from the pixels of a figure (about 0.1 of a
score or half a point off). The judge was an unversioned name of a paid service: with its version alone, accuracies of one model
moved by ten points, so these rows stand in tables of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

GPT = "gpt-3.5-turbo, version not named"
NO_PROTOCOL = "protocol not named"


@dataclass(frozen=True)
class Published:
    """One model's row. values: by metric, scores 0 to 5, shares 0 to 1; read_off: taken from a figure."""

    model: str
    values: Mapping[str, float]
    judge: str
    read_off: bool = False


def _five(model: str, *values: float) -> Published:
    names = ("correctness", "detail", "context", "temporal", "consistency")
    five = dict(zip(names, values, strict=True))
    return Published(model, {**five, "mean": round(sum(values) / 5, 3)}, GPT)


def _accuracy(model: str, share: float, read_off: bool = True) -> Published:
    return Published(model, {"accuracy": share}, GPT, read_off)


def _top(metric: str, model: str, share: float, read_off: bool = True) -> Published:
    return Published(model, {metric: share}, NO_PROTOCOL, read_off)


ROWS: Mapping[str, Mapping[str, tuple[Published, ...]]] = {  # by kind, then by a word of the benchmark's name ("": any)
    "videoinstruct": {
        "": (
            _five("VideoChat", 2.23, 2.50, 2.53, 1.94, 2.24),
            _five("LLaMA-Adapter", 2.03, 2.32, 2.30, 1.98, 2.15),
            _five("Video-LLaMA", 1.96, 2.18, 2.16, 1.82, 1.79),
            _five("Video-ChatGPT", 2.40, 2.52, 2.62, 1.98, 2.37),
            _five("Valley", 2.43, 2.13, 2.86, 2.04, 2.45),
            _five("BT-Adapter", 2.68, 2.69, 3.27, 2.34, 2.46),
            _five("VTimeLLM", 2.78, 3.10, 3.40, 2.49, 2.47),
            _five("Video-LLaVA", 2.84, 2.86, 3.44, 2.46, 2.57),
            _five("VideoChat2", 3.02, 2.88, 3.51, 2.66, 2.81),
            _five("LLaMA-VID 7B", 2.96, 3.00, 3.53, 2.46, 2.51),
            _five("LLaMA-VID 13B", 3.07, 3.05, 3.60, 2.58, 2.63),
            _five("GPT-4V", 3.85, 3.45, 3.84, 3.63, 2.80),
            _five("VLM-SFT 7B", 2.79, 2.82, 3.37, 2.28, 2.49),
            _five("VLM-RLAIF 7B", 3.63, 3.25, 4.00, 3.23, 3.32),
        ),
    },
    "qa": {
        "msvd": (
            _accuracy("Video-ChatGPT", 0.649),
            _accuracy("Video-LLaVA", 0.706),
            _accuracy("LLaMA-VID", 0.697),
            _accuracy("VLM-SFT 7B", 0.672, False),
            _accuracy("VLM-RLAIF 7B", 0.764, False),
        ),
        "msrvtt": (
            _accuracy("Video-ChatGPT", 0.493),
            _accuracy("Video-LLaVA", 0.589),
            _accuracy("LLaMA-VID", 0.576),
            _accuracy("VLM-SFT 7B", 0.524, False),
            _accuracy("VLM-RLAIF 7B", 0.630, False),
        ),
        "activitynet": (
            _accuracy("Video-ChatGPT", 0.352),
            _accuracy("Video-LLaVA", 0.453),
            _accuracy("LLaMA-VID", 0.473),
            _accuracy("VLM-SFT 7B", 0.441, False),
            _accuracy("VLM-RLAIF 7B", 0.573, False),
        ),
    },
    "retrieval": {
        "msvd": (
            _top("r1", "Video-ChatGPT", 0.260),
            _top("r1", "Video-LLaVA", 0.293),
            _top("r1", "LLaMA-VID", 0.273),
            _top("r1", "VLM-SFT", 0.2665, False),
            _top("r1", "VLM-RLAIF", 0.3603, False),
        ),
        "msrvtt": (
            _top("r1", "Video-ChatGPT", 0.145),
            _top("r1", "Video-LLaVA", 0.186),
            _top("r1", "LLaMA-VID", 0.165),
            _top("r1", "VLM-SFT", 0.132),
            _top("r1", "VLM-RLAIF", 0.210),
        ),
    },
    "action": {
        "ucf101": (
            _top("top1", "Video-ChatGPT", 0.516),
            _top("top1", "Video-LLaVA", 0.523),
            _top("top1", "LLaMA-VID", 0.565),
            _top("top1", "VLM-SFT", 0.5303, False),
            _top("top1", "VLM-RLAIF", 0.6283, False),
        ),
        "hmdb51": (
            _top("top1", "Video-ChatGPT", 0.370),
            _top("top1", "LLaMA-VID", 0.389),
            _top("top1", "VLM-SFT", 0.385),
            _top("top1", "VLM-RLAIF", 0.448),
        ),
    },
}
_NAMES = {  # as whole words, "qa" behind them or not: "planet_qa" is not ActivityNet's "anet_qa"
    "msvd": "msvd",
    "msrvtt": "msr ?vtt",
    "activitynet": "activity ?net|anet",
    "ucf101": "ucf ?(101)?",
    "hmdb51": "hmdb ?(51)?",
}


def published(name: str, kind: str) -> tuple[Published, ...]:
    """Rows for a benchmark of this name and kind, none for one that the paper does not know."""
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    for each, rows in ROWS.get(kind, {}).items():
        if not each or re.search(rf"\b({_NAMES[each]})(qa)?\b", words):
            return rows
    return ()
