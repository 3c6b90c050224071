"""The process that runs llama.cpp, seen from outside. A native assertion ends that process alone and becomes one line."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.errors import UserError
from minirlaif.video.child_process import ChildLost, ChildProcess


class LlamaClient:
    """Starts worker.py and sends it requests; a process that died is started again by the next request.

    Args:
        open_request: the files and settings that the process opens first.
    """

    def __init__(self, **open_request: Any) -> None:
        self._open_request = open_request
        self._process: ChildProcess | None = None
        self._before: Counter[str] = Counter()  # counts of processes that ended
        self._counted: Counter[str] = Counter(encodes=0, prefilled_tokens=0, reused_tokens=0, decoded_tokens=0)

    @property
    def counters(self) -> dict[str, int]:
        """Counts so far, over all processes."""
        return {name: number + self._before[name] for name, number in self._counted.items()}

    def start(self) -> None:
        """Start the process and open the files. UserError when they cannot be opened."""
        # passive: llama.cpp's threads wait between its many small steps without spinning, which on a busy machine takes the other
        # threads' cores (measured: 20 words a second instead of 900). -P: nothing in the working folder may shadow a module.
        policy = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
        self._process = ChildProcess((sys.executable, "-P", "-m", "minirlaif.gguf.runtime.worker"), policy)
        self.ask("open", **self._open_request)

    def ask(self, verb: str, pixels_FHW3: np.ndarray | None = None, **request: Any) -> dict[str, Any]:
        """One request, one reply. UserError for an error of the worker, and when it dies; any interruption ends it."""
        if self._process is None:
            self.start()
        assert self._process is not None
        shape = {} if pixels_FHW3 is None else {"shape": pixels_FHW3.shape}
        frames = b"" if pixels_FHW3 is None else np.ascontiguousarray(pixels_FHW3).data
        try:
            reply = self._process.ask({"verb": verb, **request, **shape}, frames)
        except ChildLost as lost:
            self.close()
            raise self._error(lost) from None
        except BaseException:
            self.close()
            raise
        self._counted.update({name: number - self._counted[name] for name, number in reply["counters"].items()})
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def _error(self, lost: ChildLost) -> UserError:
        last = lost.printed[-1] if lost.printed else "no output"
        reason = next((line for line in lost.printed if "ASSERT" in line or "Error" in line), last)
        files = " and ".join(Path(self._open_request[name]).name for name in ("text", "mmproj"))
        return UserError(
            f"llama.cpp ended with status {lost.status} over {files} ({reason[:200]}); export the files again if it stays"
        )

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.close()
        self._process = None
        self._before += self._counted
        self._counted = Counter(dict.fromkeys(self._counted, 0))
