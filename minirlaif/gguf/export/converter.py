"""llama.cpp's own converter: fetched once from the source package of the very llama-cpp-python that runs the files. No torch.

No package that pip installs holds the converter, and the PyPI package `gguf` does not fit it. So it is taken from the source
package and run in its own processes (converter_process.py), where its `gguf` cannot clash with an installed one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.io import sha256

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"  # also in requirements.txt; another version reads and writes other files
SOURCE = f"llama_cpp_python-{VERSION}.tar.gz"
SOURCE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
MEMBERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")


@dataclass(frozen=True)
class Job:
    """One file to make. args: words for `script`, one of the converter's own."""

    script: str
    args: tuple[str, ...]


def check_installed() -> None:
    """UserError unless this version of llama-cpp-python is installed."""
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        installed = ""
    if installed != VERSION:
        what = f"is {installed}, this needs {VERSION}" if installed else "is not installed"
        raise UserError(f"{PACKAGE} {what}; `{sys.executable} -m pip install {PACKAGE}=={VERSION}` (it compiles for minutes)")


def cache_folder() -> Path:
    """Where the converter is kept between exports."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "minirlaif"


def fetch() -> Path:
    """The folder of the converter's scripts; fetched through pip the first time (77 MB, 2 MB of them are kept).

    Raises:
        UserError: pip cannot get the source package, or it is not the known one.
    """
    folder = cache_folder() / f"converter-{VERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source = folder.parent / SOURCE  # put there by hand where no network is
        if not source.is_file():
            source = _download(Path(work))
        if (digest := sha256(source)) != SOURCE_SHA256:
            raise UserError(f"{source}: sha256 {digest} is not that of {SOURCE} ({SOURCE_SHA256}); delete it and try again")
        unpacked = Path(work) / "converter"
        with tarfile.open(source) as archive:
            members = [m for m in archive if m.name.startswith(tuple(INSIDE + name for name in MEMBERS))]
            for member in members:
                member.name = member.name.removeprefix(INSIDE)
            archive.extractall(unpacked, members=members, filter="data")
        try:
            unpacked.rename(folder)
        except OSError:  # another export was faster
            if not folder.is_dir():
                raise
    return folder


def _download(work: Path) -> Path:
    print(f"fetching the source package of {PACKAGE} {VERSION} for its converter (once) …", flush=True)
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--no-binary", PACKAGE, "--dest", str(work), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    path = work / SOURCE
    if done.returncode != 0 or not path.is_file():
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"{PACKAGE} {VERSION}: pip cannot fetch its source package ({reason}); run again with a network connection,"
            f" or put {SOURCE} into {cache_folder()}"
        )
    return path


def convert(
    pre_tokenizers: Sequence[str], jobs: Sequence[Job], probes: Sequence[tuple[str, Sequence[int]]], control: Sequence[str] = ()
) -> str:
    """Run the converter for every job, in one process of its own: loading its libraries takes longer than small models do.

    Args:
        pre_tokenizers: as in the family's `GGUFFacts`; probes: texts with their ids, which decide the pre-tokenizer of a
            tokenizer that the converter does not know.
        control: added tokens that text can never turn into, whatever the tokenizer's files say of them.

    Returns:
        the name of the pre-tokenizer.

    Raises:
        UserError: a model that the converter cannot convert, or no pre-tokenizer gives the same ids as transformers.
    """
    order = {
        "folder": str(fetch()),
        "jobs": [asdict(job) for job in jobs],
        "names": list(pre_tokenizers),
        "probes": [[text, list(ids)] for text, ids in probes],
        "control": list(control),
    }
    answer = in_child("minirlaif.gguf.export.converter_process", Path(jobs[0].args[0]), order)
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return str(answer["pre"])


def in_child(module: str, about: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module in a process of its own: it reads `order` as json from stdin and writes json to the file named there.

    A native abort ends only the child process: a UserError about the file `about` with its last output.
    """
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as work:
        result = Path(work) / "result.json"
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-m", module],
            input=json.dumps({**order, "result": str(result)}),
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        )
        if done.returncode == 0 and result.is_file():
            answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return answer
    raise UserError(_failure(done.stderr, about, done.returncode))


def _failure(printed: str, about: Path, code: int) -> str:
    """The message about a child process that failed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip(" *")]
    reason = next((line for line in lines if "ASSERT" in line), lines[-1] if lines else "no output")
    own = f"{UserError.__module__}.{UserError.__name__}: "
    if reason.startswith(own):
        return reason.removeprefix(own)
    return f"{about}: cannot be used ({reason[:300]}; exit status {code}); make it again with `python -m minirlaif export`"


def free_or_refuse(folder: Path, need: int) -> None:
    """UserError when a folder's disk has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(f"{folder}: the export needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room")
