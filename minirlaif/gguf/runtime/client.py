"""The process with llama.cpp in it, seen from outside. A native assertion ends that process alone, and is told in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np

from minirlaif.errors import UserError


class Child:
    """Starts `_worker.py` and asks it; a process that died is started again by the next question.

    Args:
        opening: the files and settings that the process opens first.
    """

    def __init__(self, **opening: Any) -> None:
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # what the child printed
        self._before: Counter[str] = Counter()  # what processes that are gone had counted
        self._counted: Counter[str] = Counter(encodes=0, prefilled_tokens=0, reused_tokens=0, decoded_tokens=0)

    @property
    def counters(self) -> dict[str, int]:
        """What was done so far, by all processes."""
        return {name: number + self._before[name] for name, number in self._counted.items()}

    def start(self) -> None:
        """Start the process and open the files. UserError when they cannot be opened."""
        self._errors = tempfile.TemporaryFile()
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # passive: llama.cpp's threads wait between its many small steps without spinning, which on a busy machine costs the other
        # threads their cores (measured: 20 words a second instead of 900).
        self._process = subprocess.Popen(
            (
                sys.executable,
                "-P",
                "-m",
                "minirlaif.gguf.runtime.worker",
            ),  # -P: nothing in the working folder may shadow a module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")},
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the child
        )
        self.ask("open", **self._opening)

    def ask(self, verb: str, pixels_FHW3: np.ndarray | None = None, **request: Any) -> dict[str, Any]:
        """One request, one reply. UserError for what the child says is wrong, and when it dies; any interruption ends it."""
        if self._process is None:
            self.start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        shape = {} if pixels_FHW3 is None else {"shape": pixels_FHW3.shape}
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **request, **shape}).encode() + b"\n")
            if pixels_FHW3 is not None:
                self._process.stdin.write(np.ascontiguousarray(pixels_FHW3).data)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            reply: dict[str, Any] = json.loads(line)
        except (BrokenPipeError, json.JSONDecodeError):
            raise self._lost() from None
        except BaseException:
            self.close()
            raise
        self._counted.update({name: number - self._counted[name] for name, number in reply["counters"].items()})
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def _lost(self) -> UserError:
        """What is to be said of a child that died."""
        assert self._process is not None and self._errors is not None
        status = self._process.wait()
        self._errors.seek(0)
        printed = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        reason = next((line for line in printed if "ASSERT" in line or "Error" in line), printed[-1] if printed else "no reason")
        self.close()
        files = " and ".join(Path(self._opening[name]).name for name in ("text", "mmproj"))
        return UserError(
            f"llama.cpp ended with status {status} over {files} ({reason[:200]}); export the files again if it stays"
        )

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # a request that never reached a dead child
                    pass
        self._process = None
        self._before += self._counted
        self._counted = Counter(dict.fromkeys(self._counted, 0))
