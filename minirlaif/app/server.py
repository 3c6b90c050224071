"""Starting and ending the app: which engine, which addresses, and a folder for uploads that is gone afterwards. No torch."""

from __future__ import annotations

import argparse
import hmac
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minirlaif.app import run_reader
from minirlaif.app.conversations import Talks
from minirlaif.app.engine_thread import Worker
from minirlaif.app.middleware import Guard
from minirlaif.app.uploads import Limits, UploadStore
from minirlaif.app.votes import VoteStore
from minirlaif.errors import UserError
from minirlaif.inference.engine import ChatEngine
from minirlaif.runs.run import Run

SWEEP_SECONDS = 300.0
ANYWHERE = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C. Exit code 2: the user can put it right."""
    options = _parser().parse_args(argv)
    done = threading.Event()
    for ending in (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())):  # HUP: its terminal was closed
        signal.signal(ending, lambda *_: done.set())
    try:
        with serving(options) as address:
            others = (
                f", from other devices http://ADDRESS-OF-THIS-MACHINE:{urlsplit(address).port}/"
                if options.host in ANYWHERE
                else ""
            )
            print(f"open {address}{others} (Ctrl-C ends it)", flush=True)
            while not done.wait(1.0):
                pass
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    except UserError as error:
        print(f"minirlaif: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Chat with an aligned model over a clip, compare it with its SFT self, look inside its run.",
    )
    parser.add_argument("--run", metavar="NAME", help="the run to talk with (default: the one that finished last)")
    parser.add_argument(
        "--runs-dir", metavar="DIR", type=Path, default=Path("runs"), help="where run folders lie (default: runs)"
    )
    parser.add_argument("--gguf", metavar="DIR", type=Path, help="talk with exported files through llama.cpp, without torch")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0: any free one")
    parser.add_argument("--share", action="store_true", help="open a public address through gradio.live for three days")
    parser.add_argument(
        "--password", default=os.environ.get("MINIRLAIF_PASSWORD", ""), help="ask for it (any name goes); or MINIRLAIF_PASSWORD"
    )
    limits = Limits()
    parser.add_argument("--max-mb", type=int, default=limits.megabytes, help=f"largest clip (default: {limits.megabytes})")
    parser.add_argument("--max-seconds", type=float, default=limits.seconds, help=f"longest clip (default: {limits.seconds:.0f})")
    return parser


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[str]:
    """The app at an address, for a block. Afterwards its folder is gone."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="minirlaif-app-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        quiet_gradio(folder)
        run = _chosen_run(options)
        desk = UploadStore(folder, Limits(options.max_mb, options.max_seconds))
        stack.callback(desk.close)
        talks = None
        if options.gguf or run is not None:
            worker = Worker(lambda: _engine(options, run))
            stack.callback(worker.close)
            talks = Talks(worker, desk, VoteStore(_votes_of(options, run)))
            stack.enter_context(_sweeping(talks))
        yield stack.enter_context(page_at(options, talks, run, folder))


@contextmanager
def _sweeping(talks: Talks) -> Iterator[None]:
    """Now and then, also while nobody comes or goes, what pages have left behind is deleted."""
    done = threading.Event()

    def sweep() -> None:
        while not done.wait(SWEEP_SECONDS):
            talks.sweep()

    threading.Thread(target=sweep, name="sweep", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def page_at(options: argparse.Namespace, talks: Talks | None, run: Run | None, folder: Path) -> Iterator[str]:
    """The pages over what is given. UserError where the port is taken."""
    from minirlaif.app import tabs, ui

    examples = talks.desk.examples(run_reader.example_clips(run)) if talks else []
    page = ui.build(tabs.Place(talks, run, options.runs_dir, examples, run_reader.example_questions(run)))
    _warn(options)
    word = options.password
    with launched(
        page,
        folder,
        options.host,
        options.port,
        share=options.share,
        auth=(lambda _, given: hmac.compare_digest(given.encode(), word.encode())) if word else None,
        auth_message="Any name (but not none), and the password." if word else None,
        max_file_size=options.max_mb << 20,
        head=ui.page_script(),
    ) as address:
        yield address


@contextmanager
def launched(page: Any, folder: Path, host: str, port: int, share: bool = False, **settings: Any) -> Iterator[str]:
    """A Gradio page at an address, for a block, without any part of Gradio that it does not need. folder: files are served from
    it only; settings: of Blocks.launch. UserError where the port is taken."""
    from starlette.middleware import Middleware

    from minirlaif.app import ui

    local = host in LOOPBACK and not share
    guard = Middleware(Guard, folder=folder, hosts=LOOPBACK if local else (), alone=not share)
    try:
        _, address, shared = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            share=share,
            app_kwargs={"middleware": [guard]},
            theme=ui.theme(),
            css=ui.page_style(),
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            show_error=False,
            **settings,
        )
    except OSError as error:
        raise UserError(f"--port {port}: cannot be served on ({error}); choose another one") from None
    try:
        yield shared or address
    finally:
        page.close(verbose=False)


def quiet_gradio(folder: Path) -> None:
    """Before gradio is loaded: uploads go to our folder, and it asks nobody for anything."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "cached")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _chosen_run(options: argparse.Namespace) -> Run | None:
    if options.run:
        if Path(options.run).name != options.run or options.run == "..":
            raise UserError(f"--run {options.run!r}: must be a plain name; the folder it lies in goes to --runs-dir")
        run = Run(options.runs_dir / options.run)
        if not run.root.is_dir():
            known = ", ".join(each.root.name for each in run_reader.runs(options.runs_dir)) or "none"
            raise UserError(f"{run.root}: no such run folder; runs there: {known}")
        return run
    return _home(options) or run_reader.newest(options.runs_dir)


def _home(options: argparse.Namespace) -> Run | None:
    """The run that exported files lie in, as `export` puts them."""
    folder = _export(options).absolute().parent if options.gguf else Path()
    return Run(folder) if options.gguf and (folder / "config.yaml").is_file() else None


def _export(options: argparse.Namespace) -> Path:
    where: Path = options.gguf
    return where.parent if where.is_file() else where


def _votes_of(options: argparse.Namespace, run: Run | None) -> Path:
    """Where votes are kept: with the run whose models they are about, or with exported files that lie in no run."""
    theirs = run if options.run or not options.gguf else _home(options)
    return (theirs.root if theirs else _export(options)) / "votes"


def _engine(options: argparse.Namespace, run: Run | None) -> ChatEngine:
    if options.gguf:
        from minirlaif.gguf.runtime.engine import GgufEngine

        exported: ChatEngine = GgufEngine(options.gguf)
        return exported
    from minirlaif.feedback.judge import SessionJudge
    from minirlaif.inference.hf_engine import HfEngine

    assert run is not None
    print(f"loading {run.root} …", flush=True)
    return HfEngine(run, SessionJudge)


def _warn(options: argparse.Namespace) -> None:
    if (options.share or options.host not in LOOPBACK) and not options.password:
        where = "everybody who knows the address" if options.share else f"everybody who reaches {options.host}"
        print(f"warning: {where} can use this model and upload clips; set --password", file=sys.stderr, flush=True)


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
