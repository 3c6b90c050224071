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


FIVE = """
VideoChat      2.23 2.50 2.53 1.94 2.24
LLaMA-Adapter  2.03 2.32 2.30 1.98 2.15
Video-LLaMA    1.96 2.18 2.16 1.82 1.79
Video-ChatGPT  2.40 2.52 2.62 1.98 2.37
Valley         2.43 2.13 2.86 2.04 2.45
BT-Adapter     2.68 2.69 3.27 2.34 2.46
VTimeLLM       2.78 3.10 3.40 2.49 2.47
Video-LLaVA    2.84 2.86 3.44 2.46 2.57
VideoChat2     3.02 2.88 3.51 2.66 2.81
LLaMA-VID 7B   2.96 3.00 3.53 2.46 2.51
LLaMA-VID 13B  3.07 3.05 3.60 2.58 2.63
GPT-4V         3.85 3.45 3.84 3.63 2.80
VLM-SFT 7B     2.79 2.82 3.37 2.28 2.49
VLM-RLAIF 7B   3.63 3.25 4.00 3.23 3.32
"""
METRICS = ("correctness", "detail", "context", "temporal", "consistency")  # columns of FIVE
# Kind and benchmark -> model and percent of accuracy, top-1 or R@1; ~: read off a figure.
SHARES = {
    ("qa", "msvd"): "Video-ChatGPT ~64.9, Video-LLaVA ~70.6, LLaMA-VID ~69.7, VLM-SFT 7B 67.2, VLM-RLAIF 7B 76.4",
    ("qa", "msrvtt"): "Video-ChatGPT ~49.3, Video-LLaVA ~58.9, LLaMA-VID ~57.6, VLM-SFT 7B 52.4, VLM-RLAIF 7B 63.0",
    ("qa", "activitynet"): "Video-ChatGPT ~35.2, Video-LLaVA ~45.3, LLaMA-VID ~47.3, VLM-SFT 7B 44.1, VLM-RLAIF 7B 57.3",
    ("retrieval", "msvd"): "Video-ChatGPT ~26.0, Video-LLaVA ~29.3, LLaMA-VID ~27.3, VLM-SFT 26.65, VLM-RLAIF 36.03",
    ("retrieval", "msrvtt"): "Video-ChatGPT ~14.5, Video-LLaVA ~18.6, LLaMA-VID ~16.5, VLM-SFT ~13.2, VLM-RLAIF ~21.0",
    ("action", "ucf101"): "Video-ChatGPT ~51.6, Video-LLaVA ~52.3, LLaMA-VID ~56.5, VLM-SFT 53.03, VLM-RLAIF 62.83",
    ("action", "hmdb51"): "Video-ChatGPT ~37.0, LLaMA-VID ~38.9, VLM-SFT ~38.5, VLM-RLAIF ~44.8",
}
COLUMN = {"qa": ("accuracy", GPT), "retrieval": ("r1", NO_PROTOCOL), "action": ("top1", NO_PROTOCOL)}  # of SHARES: metric, judge
_NAMES = {  # as whole words, "qa" behind them or not: "planet_qa" is not ActivityNet's "anet_qa"
    "msvd": "msvd",
    "msrvtt": "msr ?vtt",
    "activitynet": "activity ?net|anet",
    "ucf101": "ucf ?(101)?",
    "hmdb51": "hmdb ?(51)?",
}


def published(name: str, kind: str) -> tuple[Published, ...]:
    """Rows for a benchmark of this name and kind, none for one that the paper does not know."""
    if kind == "videoinstruct":
        return tuple(_five(line) for line in FIVE.strip().splitlines())
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    for (of_kind, benchmark), rows in SHARES.items():
        if of_kind == kind and re.search(rf"\b({_NAMES[benchmark]})(qa)?\b", words):
            return tuple(_share(row, *COLUMN[kind]) for row in rows.split(", "))
    return ()


def _five(line: str) -> Published:
    model, *cells = re.split(r"\s+(?=\d\.\d\d)", line)
    values = [float(cell) for cell in cells]
    return Published(model, {**dict(zip(METRICS, values, strict=True)), "mean": round(sum(values) / 5, 3)}, GPT)


def _share(row: str, metric: str, judge: str) -> Published:
    model, percent = row.rsplit(" ", 1)
    value = round(float(percent.lstrip("~")) / 100, 4)
    return Published(model, {metric: value}, judge, percent.startswith("~"))
