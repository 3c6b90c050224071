"""The verb `doctor`: what a run needs, whether it is installed and works here, and the command that installs what is missing.

Everything that may crash or hang on import (torch, decoders, bitsandbytes) is tried in a child process.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from minirlaif.cli.flags import verb

GIB = 2**30
# Optional packages, and what needs them. All others in requirements.txt are required.
OPTIONAL = {
    "decord": "without it PyAV reads all clips",
    "bitsandbytes": "needed for model.quantization=nf4",
    "tensorboard": "needed for report_to=tensorboard",
    "protobuf": "needed to convert old LLaVA checkpoints with a tokenizer.model",
    "llama-cpp-python": "needed for export and for chat with exported files",
    "gradio": "needed for the chat and its test clips",
    "pytest": "needed only for development",
    "ruff": "needed only for development",
    "mypy": "needed only for development",
}
_TORCH = """
import torch
print(f"{torch.get_num_threads()} threads, ", end="")
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    print(f"GPU {torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
else:
    print("no GPU: a CPU is enough for the tiny world; other models need a GPU")
"""
_NF4 = """
import torch, bitsandbytes.functional as f
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.linspace(-1, 1, 4096, device=device).view(64, 64)
packed, state = f.quantize_4bit(weight, quant_type="nf4")
error = (f.dequantize_4bit(packed, state) - weight).abs().max().item()
assert error < 0.2, f"NF4 quantization error is {error}"
print(f"NF4 works on {device}")
"""
_VISION = """
import importlib.util as u
if u.find_spec("torchvision"):
    import torchvision
    print("installed and imports")
else:
    print("not installed, and not needed")
"""
# Run from here: minirlaif need not be installed.
_SANDBOX = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from minirlaif.video import sandbox
print("; ".join(sandbox.enter() or ["this system offers no limits"]))
"""
_LLAMA = "from llama_cpp import mtmd_cpp; print('loads')"  # a build for another processor crashes here
_TRACKER = "from torch.utils.tensorboard import SummaryWriter; print('imports')"


@dataclass(frozen=True)
class Finding:
    """One line of the table. state: "ok", "note" (a run still works) or "missing" (no run works)."""

    name: str
    state: str
    text: str
    remedy: str = ""  # the command or setting that fixes it


def add(verbs: Any) -> None:
    """Add the parser of `doctor`."""
    verb(verbs, "doctor", "check versions, GPU, memory and decoders, and print how to install what is missing", "doctor", run)


def run(options: argparse.Namespace) -> int:
    """Print the table; 0 when a run can start, else 1."""
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.state:8}{finding.name.ljust(width)}  {finding.text}")
        if finding.remedy:
            print(f"{'':8}{'':{width}}  -> {finding.remedy}")
    missing = [finding.name for finding in findings if finding.state == "missing"]
    print(
        f"not ready: {', '.join(missing)}" if missing else "ready: python -m minirlaif run --config configs/tiny.yaml --run tiny"
    )
    return 1 if missing else 0


def examine() -> list[Finding]:
    """All findings about this machine, in the order of the table."""
    return [python_version(sys.version_info[:3]), *packages(pins()), *tried(), memory(), disk(Path.cwd())]


def python_version(version: tuple[int, ...]) -> Finding:
    """Python 3.11 or newer."""
    text = ".".join(str(part) for part in version)
    if version < (3, 11):
        return Finding("python", "missing", text, "create the virtual environment with Python 3.11 or newer")
    return Finding("python", "ok", text)


def pins() -> dict[str, str]:
    """Package -> pinned version, from requirements.txt beside the package; empty when that is not there."""
    path = Path(__file__).parents[2] / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = [line.partition("#")[0].strip().split("==") for line in lines]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def packages(wanted: dict[str, str], installed: Callable[[str], str] = metadata.version) -> list[Finding]:
    """One finding per pinned package; another version is noted, not refused."""
    findings = []
    for name, pin in wanted.items():
        command = f"python -m pip install {name}=={pin}"
        try:
            version = installed(name)
        except metadata.PackageNotFoundError:
            lost = f"not installed; {OPTIONAL[name]}" if name in OPTIONAL else "not installed"
            findings.append(Finding(name, "note" if name in OPTIONAL else "missing", lost, command))
            continue
        same = version.partition("+")[0] == pin  # +cpu, +cu130: the same version built for another device
        text = f"{version}, tested with {pin}: numbers may differ"
        findings.append(Finding(name, "ok", version) if same else Finding(name, "note", text, command))
    return findings


def attempt(code: str, seconds: float = 120.0) -> tuple[bool, str]:
    """Run Python code in a child process: whether it worked, and its last line (of its output, or of its error)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {seconds:.0f} s"
    if done.returncode < 0:
        return False, f"killed by signal {-done.returncode}"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1].strip() if lines else ""


def tried(attempt: Callable[[str], tuple[bool, str]] = attempt) -> list[Finding]:
    """What imports and works, each tried in a child process."""
    install = "python -m pip install -r requirements.txt"
    codes = {
        "device": _TORCH,
        "torchvision": _VISION,
        "decord reads": "import decord; print('imports')",
        "av reads": "import av; print('imports')",
        "decoding limits": _SANDBOX,
        "4-bit": _NF4,
        "llama.cpp": _LLAMA,
        "tensorboard logs": _TRACKER,
    }
    results = {}
    for name, code in codes.items():
        _say(f"trying: {name} …")
        results[name] = attempt(code)
    _say("")
    # PyAV also writes the tiny world's clips, so nothing replaces it. A torchvision that fails breaks transformers.
    needed = ("device", "torchvision", "av reads")
    remedies = {"torchvision": "python -m pip uninstall torchvision"}
    findings = []
    for name, (works, text) in results.items():
        state = "ok" if works else "missing" if name in needed else "note"
        if name == "decoding limits" and works and not all(part in text for part in ("seccomp", "Landlock")):
            state, text = "note", f"only {text}: decode clips of strangers on Linux 5.13 or newer, or in a container"
        findings.append(Finding(name, state, text if works else f"fails: {text}", "" if works else remedies.get(name, install)))
    return findings


def _say(text: str) -> None:
    """One line that the next one replaces; on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def memory() -> Finding:
    """Main memory; the tiny run needs about 4 GiB."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "note", "unknown")
    state, remedy = ("ok", "") if total >= 4 else ("note", "close other programs: 4 GiB are needed")
    return Finding("memory", state, f"{total:.1f} GiB, {os.cpu_count()} cores", remedy)


def disk(folder: Path) -> Finding:
    """Free space where runs go; the tiny run needs under 2 GiB."""
    free = shutil.disk_usage(folder).free / GIB
    state, remedy = ("ok", "") if free >= 2 else ("note", "free some space, or choose another folder with --runs-dir")
    return Finding("disk", state, f"{free:.1f} GiB free in {folder}", remedy)
