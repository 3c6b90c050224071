"""Files that survive a kill: atomic writes, hashes, locks, and what a full disk looks like. No torch."""

import errno
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError


def write_atomic(path: Path, text: str) -> None:
    """Write a whole text file or, after a kill or on a full disk, leave what was there."""
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)  # of a run that others made, it may be a link to a file elsewhere
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
        sync(new)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    new.replace(path)


def refuse_links(folder: Path) -> None:
    """UserError for a folder to be filled that is a link or has one: what lies behind it must not be changed."""
    for path in itertools.chain([folder], folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path}: a link, which is not followed; delete it, then run the command again")


def refuse_dead_links(*paths: Path) -> None:
    """UserError for a link to nothing or to itself where a folder will be needed, before the work that would fill it."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a link that leads nowhere; delete it, then run the command again")


def real_path(path: str | Path) -> Path:
    """The absolute path behind all links; of links that lead to themselves, at which `Path.resolve` fails, one of them."""
    return Path(os.path.realpath(path))


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading. OSError for a pipe, a socket, a device or a folder: reading those may never end."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe without a writer is not waited for
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(handle, "rb")


def read_text(path: Path) -> str:
    """The content of a text file. OSError as for `open_file`, UnicodeDecodeError."""
    with open_file(path) as file:
        return file.read().decode()


def read_json(path: Path, cure: str = "make the stage again") -> Any:
    """The content of a JSON file. UserError naming it when it cannot be read. cure: what corrects that."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {cure}", again=()) from None


def json_lines(lines: Iterable[str], loads: Callable[[str], Any] = json.loads) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and value of every line that is not blank; the error in place of a value that is not JSON."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, loads(line)
            except (ValueError, RecursionError) as error:
                yield number, error


def read_jsonl(path: Path, missing_ok: bool = False, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file that this package wrote.

    Args:
        missing_ok: no file means no rows.
        skip_damaged: leave out lines that are not JSON, as the last one of a file whose writer was killed.

    Raises:
        UserError: the file cannot be read, or a line (named by its number) is not JSON.
    """
    if missing_ok and not path.is_file():
        return []
    rows = []
    try:
        with io.TextIOWrapper(open_file(path), "utf-8", "replace" if skip_damaged else "strict") as file:
            for number, row in json_lines(file):
                if not isinstance(row, Exception):
                    rows.append(row)
                elif not skip_damaged:
                    raise UserError(f"{path}:{number}: not valid JSON ({row}); make the stage again", again=())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the stage again", again=()) from None
    return rows


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk: a rename may otherwise arrive there before them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """The value as JSON can hold it: tuples become lists, one-element tensors numbers, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_folders(value: Any) -> Any:
    """The value as it may be published: of absolute paths in it, also as keys, only the names. Keys that become equal are
    numbered."""
    if isinstance(value, Mapping):
        renamed: dict[str, Any] = {}
        for key, item in value.items():
            name = str(without_folders(key))
            number = next(n for n in itertools.count(1) if (name if n == 1 else f"{name} ({n})") not in renamed)
            renamed[name if number == 1 else f"{name} ({number})"] = without_folders(item)
        return renamed
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return os.path.basename(value.rstrip(os.sep)) if isinstance(value, str) and os.path.isabs(value) else value


def private_folder(folder: Path) -> Path:
    """A folder that other users of the machine cannot read, made when missing; one that is there keeps its mode."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def empty(folder: Path) -> None:
    """Delete everything in a folder, not the folder itself (it may be locked)."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go when the process ends. UserError if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing guards against a second process there
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process works on it; wait for it or stop it") from None
        yield
    finally:
        os.close(handle)


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error means a full disk. Not every writer says so: torch.save and safetensors raise errors of their own."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    says = any(words in str(error) for words in ("No space left on device", "database or disk is full"))
    return says or shutil.disk_usage(folder).free < 2**20
