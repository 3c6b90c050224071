"""The app's page in a headless Chromium, over an engine of the test's own or over a real one."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minirlaif.app import server
from minirlaif.app.conversations import Talks
from minirlaif.app.engine_thread import Worker
from minirlaif.app.uploads import Desk, Limits
from minirlaif.app.votes import Ballot
from minirlaif.inference.engine import Judged, Look, Options
from minirlaif.runs.run import Run
from minirlaif.types import Turn, UserError

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
EDITOR = ("failed to import ffmpeg-core.js",)  # the player's editor misses its ffmpeg, which guard.py keeps back
MARKUP = "<img src=http://outside.invalid/x.png onerror=alert(1)> <b>bold</b> ${1+1} {{value}} <script>alert(1)</script>"


BLIND = {"rlaif": "one thing happens", "sft": "another thing happens"}
HIDDEN = re.compile("rlaif|aligned|sft|reward|judge chose|the same as you|not as you", re.IGNORECASE)  # tells who is who
OURS = ("rlaif", BLIND["rlaif"])  # how answers of the aligned model begin


class FakeEngine:
    """Answers by the question's words: "slow" takes 40 pieces of 0.1 s, "stuck" 3 s before its first piece, "fail" breaks in the
    middle, "long" does not fit, "markup" answers in HTML, "blind" without saying which model it is; anything else is repeated. It
    has a reward model and a judge, both for "rlaif"."""

    models = ("rlaif", "sft")
    title = "a fake engine"
    frames = 4
    options = Options(0.0, 1.0, 64, 0)

    def __init__(self) -> None:
        self.looks: list[tuple[str, int]] = []
        self.asked: list[tuple[str, str, tuple[Turn, ...], Options]] = []
        self.at_once = self.most_at_once = 0

    @property
    def counters(self) -> Mapping[str, int]:
        return {"decodes": len(self.looks), "encodes": len(self.looks), "prefilled_tokens": 0, "reused_tokens": 0}

    def look(self, video: str, frames: int = 0) -> Look:
        count = frames or self.frames
        self.looks.append((Path(video).name, count))
        pixels = np.full((count, 8, 8, 3), 90, np.uint8)
        return Look(video, 2.0, tuple(2.0 * (i + 0.5) / count for i in range(count)), pixels, 1.0, f"{video}:{count}")

    def stream(self, look: Look, turns: Sequence[Turn], question: str, options: Options, model: str = "") -> Iterator[str]:
        self.asked.append((question, model, tuple(turns), options))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if "long" in question:
                raise UserError("the conversation has 9 tokens, the model takes 8: clear it, or show fewer frames")
            if "stuck" in question:
                time.sleep(3.0)
            if "slow" in question:
                for number in range(40):
                    yield f"word{number} "
                    time.sleep(0.1)
            elif "fail" in question:
                yield "it begins "
                raise RuntimeError("a secret of the server")
            elif "blind" in question:
                yield BLIND[model][:4]
                yield BLIND[model][4:]
            else:
                yield MARKUP if "markup" in question else f"{model} heard: "
                yield "" if "markup" in question else question
        finally:
            self.at_once -= 1

    def score(self, look: Look, question: str, answer: str) -> float | None:
        return 1.25 if answer.startswith(OURS) else -0.5

    def judge(self, look: Look, question: str, answer_a: str, answer_b: str) -> Judged:
        choice = "A" if answer_a.startswith(OURS) else "B"
        return Judged(choice, 0.75, (choice, choice), "0s: something <b>happens</b>.\n")

    def close(self) -> None:
        pass


def wait_for(done: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until something is so, at most so long."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.1)
    assert done()


@dataclass(frozen=True)
class Served:
    """A running app: where, what it does, and its folder of uploads."""

    address: str
    talks: Talks
    folder: Path


@contextmanager
def serving(engine: Any, run: Run | None, runs_dir: Path, folder: Path, *words: str) -> Iterator[Served]:
    """The pages over an engine, on a free port; words: flags as for app.py. Uploads go to `folder`."""
    options = server._parser().parse_args(["--runs-dir", str(runs_dir), "--port", "0", *words])
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")  # put back afterwards
        server._quiet_gradio(folder)
        worker = Worker(engine if not isinstance(engine, FakeEngine) else lambda: engine)
        desk = Desk(folder, Limits(options.max_mb, options.max_seconds))
        talks = Talks(worker, desk, Ballot(run.root / "votes") if run else None)
        try:
            with server.page_at(options, talks, run, folder) as address:
                yield Served(address.rstrip("/"), talks, folder)
        finally:
            desk.close()
            worker.close()
            shutil.rmtree(folder)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; everything it asks for must be on this machine."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("the tests of the app need Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Page:
    """A page of its own in a browser, with the words of the tests. problems: requests elsewhere and errors of its scripts."""

    def __init__(self, browser: Any, address: str, width: int = 1280, dark: bool = False) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme="dark" if dark else "light")
        self.page = self.context.new_page()
        self.problems: list[str] = []
        here = (address, "data:", "blob:")
        self.page.on("request", lambda r: None if r.url.startswith(here) else self.problems.append(f"asked for {r.url}"))
        self.page.on("pageerror", self._failed)
        self.page.set_default_timeout(20_000)
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea")

    def _failed(self, error: Any) -> None:
        if str(error) not in EDITOR:
            self.problems.append(str(error))

    def upload(self, path: Path | str) -> None:
        self.page.set_input_files("#clip input[type=file]", str(path))

    def frames(self) -> int:
        """How many frames are shown, once there are any."""
        self.page.wait_for_selector("#strip img")
        return self.page.locator("#strip img").count()

    def ask(self, question: str) -> None:
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")

    def rest(self) -> None:
        """Wait until the answer is there."""
        self.page.wait_for_selector("#ask:not([disabled])")
        self.page.wait_for_selector("#chat [aria-busy=true]", state="detached")

    def answers(self) -> list[str]:
        return [text.strip() for text in self.page.locator("#chat .told .bubble").all_inner_texts()]

    def text(self, where: str) -> str:
        return str(self.page.inner_text(where))

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}-button")

    def close(self) -> None:
        self.context.close()
