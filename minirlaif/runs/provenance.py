"""Where a result comes from: code revision, package versions, GPU. No torch: if nobody loaded it, no GPU was used."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = "torch transformers peft accelerate bitsandbytes datasets decord av numpy pillow tokenizers safetensors".split()


def code_version() -> dict[str, Any]:
    """Git revision of the package's folder and whether files differ from it; None where it is not a git checkout."""
    folder = Path(__file__).parents[1]
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "changed": None}
    return {"revision": answers[0], "changed": bool(answers[1])}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result, and of Python."""
    versions = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def start_gpu_count() -> None:
    """Count the peak memory from here on."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def gpu_use() -> dict[str, Any]:
    """Name of the GPU in use and the peak of memory allocated on it (GiB) since start_gpu_count; None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {"gpu": None, "peak_gib": None}
    return {"gpu": torch.cuda.get_device_name(), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}
