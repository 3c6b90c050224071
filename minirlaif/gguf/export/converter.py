"""llama.cpp's own converter: fetched once from the source package of the llama-cpp-python version that runs the files. No torch.

No package that pip installs contains the converter, and the PyPI package `gguf` does not fit it. So it is taken from the source
package and runs in a child process, `python -m minirlaif.gguf.export.converter`, where its `gguf` cannot clash with an installed
one.
"""

import runpy
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.gguf.export import source_package
from minirlaif.runs.hash_cache import cache_folder
from minirlaif.runs.io import sha256
from minirlaif.video.child_process import ChildLost, ChildProcess, serve

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"  # also in requirements.txt; other versions read and write other files
SOURCE = f"llama_cpp_python-{VERSION}.tar.gz"
SOURCE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
MAX_SOURCE_BYTES = 1 << 28
ROOT = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
MEMBERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")


@dataclass(frozen=True)
class Job:
    """One file to write. args: command line arguments of `script`, one of the converter's own."""

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
        raise UserError(f"{PACKAGE} {what}; `{sys.executable} -m pip install {PACKAGE}=={VERSION}` (compiling takes minutes)")


def fetch() -> Path:
    """The folder of the converter's scripts; fetched from the package index the first time (77 MB, of which 2 MB stay on disk).

    Raises:
        UserError: the source package cannot be fetched, or its hash is another one.
    """
    folder = cache_folder() / f"converter-{VERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source = folder.parent / SOURCE  # a user can put it there where there is no network
        if not source.is_file():
            source = _download(Path(work))
        if (digest := sha256(source)) != SOURCE_SHA256:
            local = source.parent == folder.parent
            where, remedy = (source, "delete it") if local else ("package index", "check pip's settings")
            raise UserError(f"{where}: sha256 {digest} is not that of {SOURCE} ({SOURCE_SHA256}); {remedy} and try again")
        unpacked = Path(work) / "converter"
        with tarfile.open(source) as archive:
            members = [m for m in archive if m.name.startswith(tuple(ROOT + name for name in MEMBERS))]
            for member in members:
                member.name = member.name.removeprefix(ROOT)
            archive.extractall(unpacked, members=members, filter="data")
        try:
            unpacked.rename(folder)
        except OSError:  # another export created it first
            if not folder.is_dir():
                raise
    return folder


def _download(work: Path) -> Path:
    print(f"fetching the source package of {PACKAGE} {VERSION} for its converter (once) …", flush=True)
    path = work / SOURCE
    try:
        source_package.download(PACKAGE, path, MAX_SOURCE_BYTES)
    except UserError as error:
        raise UserError(
            f"{PACKAGE} {VERSION}: its source package cannot be fetched ({error}); run again with a network connection,"
            f" or put {SOURCE} into {cache_folder()}"
        ) from None
    return path


def convert(
    pre_tokenizers: Sequence[str], jobs: Sequence[Job], probes: Sequence[tuple[str, Sequence[int]]], control: Sequence[str] = ()
) -> str:
    """Run the converter for every job in one process: loading its libraries takes longer than converting a small model.

    Args:
        pre_tokenizers: as in the family's `GGUFFacts`; probes: texts with their ids, which decide the pre-tokenizer of a
            tokenizer that the converter does not know.
        control: added tokens that text can never turn into, whatever the tokenizer's files say about them.

    Returns:
        the name of the pre-tokenizer.

    Raises:
        UserError: a model that the converter cannot convert, or no pre-tokenizer gives the same ids as transformers.
    """
    request = {
        "folder": str(fetch()),
        "jobs": [asdict(job) for job in jobs],
        "names": list(pre_tokenizers),
        "probes": [[text, list(ids)] for text, ids in probes],
        "control": list(control),
    }
    return str(in_child("minirlaif.gguf.export.converter", Path(jobs[0].args[0]), request)["pre"])


def in_child(module: str, path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to one request of a module that runs in its own process (see `child_process.serve`).

    A native abort ends only that process: a UserError about the file `path` with its last output.
    """
    child = ChildProcess((sys.executable, "-P", "-W", "ignore", "-m", module), {"TOKENIZERS_PARALLELISM": "false"})
    try:
        reply = child.ask(request)
    except ChildLost as lost:
        reason = next((line for line in lost.printed if "ASSERT" in line), (lost.printed or ["no output"])[-1])[:300]
        message = f"cannot be used ({reason}; exit status {lost.status}); make it again with `python -m minirlaif export`"
        raise UserError(f"{path}: {message}") from None
    finally:
        child.close()
    if "error" in reply:
        raise UserError(reply["error"])
    return reply


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the child: run the jobs of a request; {"pre": name of the pre-tokenizer}."""
    folder = Path(request["folder"])
    sys.path[1:1] = [str(folder / "gguf-py"), str(folder)]
    from conversion import base  # type: ignore[import-not-found]

    vocabulary = Vocabulary(base, request["control"])
    for job in request["jobs"]:
        if "--mmproj" not in job["args"] and request["probes"] and not vocabulary.name:
            vocabulary.choose(folder, job["args"], request["names"], request["probes"])
        run(folder / job["script"], job["args"])
    return {"pre": vocabulary.name}


def run(script: Path, args: Sequence[str]) -> None:
    """Run one of the converter's scripts in this process. SystemExit with a reason when it fails."""
    sys.argv = [str(script), *args]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as error:
        if error.code:
            sys.exit(f"{script.name} failed with code {error.code}")


class Vocabulary:
    """Changes how the converter writes vocabularies. name: of the pre-tokenizer, "" before it is known.

    The converter finds the name by a hash of the ids of one text, so it knows published tokenizers only. For others the names are
    tried with the vocabulary alone, until llama.cpp gives the same ids as transformers.
    """

    def __init__(self, base: Any, control: Sequence[str]) -> None:
        self.name = ""
        self._forced = ""
        name_by_hash, original = base.TextModel.get_vocab_base_pre, base.TextModel.get_vocab_base

        def pre(model: Any, tokenizer: Any) -> str:
            self.name = self._forced or name_by_hash(model, tokenizer)
            return self.name

        def vocabulary(model: Any) -> tuple[list[str], list[int], str]:
            tokens, kinds, name = original(model)
            kinds = [base.gguf.TokenType.CONTROL if token in control else kind for token, kind in zip(tokens, kinds, strict=True)]
            return tokens, kinds, name

        def no_pieces(model: Any, add_to_gguf: bool = True) -> None:
            # The converter reads tokenizer.model first for Llama. No family here has one, and reading it needs another package.
            raise FileNotFoundError("tokenizer.model")

        base.TextModel._set_vocab_sentencepiece = no_pieces
        base.TextModel.get_vocab_base_pre, base.TextModel.get_vocab_base = pre, vocabulary

    def choose(self, folder: Path, args: Sequence[str], names: Sequence[str], probes: Sequence[tuple[str, list[int]]]) -> None:
        """Find the name; UserError when none fits. The name that the converter's own hash gives is tried first."""
        from llama_cpp import Llama

        more = [arg for arg in args if arg == "--no-nextn"]
        wrong: dict[str, str] = {}
        for name in ("", *names):
            self._forced = name
            with tempfile.TemporaryDirectory() as work:
                path = Path(work) / "vocabulary.gguf"
                try:
                    run(folder / "convert_hf_to_gguf.py", [args[0], "--outfile", str(path), "--vocab-only", *more])
                except NotImplementedError:
                    continue  # no hash of a known tokenizer
                with closing(Llama(str(path), vocab_only=True, verbose=False)) as model:
                    ids_of = partial(model.tokenize, add_bos=False, special=False)  # special tokens in a text stay plain text
                    differing = [text for text, ids in probes if ids_of(text.encode()) != ids]
            if not differing:
                return
            wrong[self.name] = f"{len(differing)} of {len(probes)}, such as {differing[0]!r:.40}"
        listed = "; ".join(f"{name}: {text}" for name, text in wrong.items())
        raise UserError(
            f"{args[0]}: no pre-tokenizer of llama.cpp gives the ids that transformers gives ({listed}); it cannot be exported"
        )


if __name__ == "__main__":
    serve(_answer)
