"""Start and stop the app: its flags, its engine, its HTTP server, a temporary folder for uploads. No torch."""

import argparse
import hmac
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minirlaif.app import run_reader
from minirlaif.app.conversations import ChatService
from minirlaif.app.engine_thread import EngineThread
from minirlaif.app.requests.connections import limited_protocol
from minirlaif.app.requests.middleware import MAX_CLIP_BYTES, RequestFilter
from minirlaif.app.requests.model_time import ModelTime
from minirlaif.app.requests.quotas import MAX_SESSIONS
from minirlaif.app.uploads import Limits, UploadStore
from minirlaif.app.votes import VoteStore
from minirlaif.errors import UserError
from minirlaif.inference.engine import ChatEngine
from minirlaif.runs.io import locked
from minirlaif.runs.run import Run

SWEEP_SECONDS = 300.0
TEMPORARY = "minirlaif-app-"  # how temporary folders of this server begin
ANYWHERE = ("0.0.0.0", "::")
# A service manager's word, and that the terminal was closed; Windows has no SIGHUP.
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP. Exit code 2: an error that the user can fix."""
    options = _parser().parse_args(argv)
    for number in _STOPS:
        signal.signal(number, _stop)
    try:
        with serving(options) as address:
            remote = f"http://ADDRESS-OF-THIS-MACHINE:{urlsplit(address).port}/"
            others = f", from other devices {remote}" if options.host in ANYWHERE else ""
            print(f"open {address}{others} (Ctrl-C to stop)", flush=True)
            while True:
                time.sleep(0.5)  # not longer: a signal that another thread gets is handled after it
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except UserError as error:
        print(f"minirlaif: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _stop(*_: object) -> None:
    """End as with Ctrl-C, also while the model is being loaded; whoever asks twice does not interrupt the end."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Chat with an aligned model about a clip, compare it with the SFT model, view its training run.",
        epilog="Ctrl-C, SIGTERM or SIGHUP end it after the word or clip in progress, with exit code 0: uploads are deleted and"
        " child processes have ended. The exit code is 2 after an error that you can fix.",
    )
    parser.add_argument("--run", metavar="NAME", help="the run to load (default: the last finished one)")
    parser.add_argument("--runs-dir", metavar="DIR", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--gguf", metavar="DIR", type=Path, help="load exported files with llama.cpp instead, without torch")
    host = "address to serve on (default: 127.0.0.1, which only this machine can reach)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=int, default=7860, help="port to serve on (default: 7860; 0: any free one)")
    parser.add_argument("--share", action="store_true", help="also open a public gradio.live address for three days")
    allowed = "a name that browsers may use for this server, such as my.site; may be repeated (default: any with --host)"
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=allowed)
    password = "require this password, with any user name; better set $MINIRLAIF_PASSWORD, which other users do not see"
    parser.add_argument("--password", default=os.environ.get("MINIRLAIF_PASSWORD", ""), help=password)
    limits = Limits()
    parser.add_argument("--max-mb", type=int, default=limits.megabytes, help=f"largest clip (default: {limits.megabytes})")
    parser.add_argument("--max-seconds", type=float, default=limits.seconds, help=f"longest clip (default: {limits.seconds:.0f})")
    return parser


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[str]:
    """Serve the app inside a `with` block; yields its address. Afterwards its temporary folder is deleted."""
    with ExitStack() as stack:
        remove_leftovers()
        folder = _temporary(stack)
        quiet_gradio(folder)
        run, votes = _run_and_votes(options)
        upload_store = UploadStore(folder, Limits(options.max_mb, options.max_seconds))
        stack.callback(upload_store.close)
        service = None
        if options.gguf or run is not None:
            scratch = folder if options.gguf else _temporary(stack)  # frames of uploads, which are not served
            engine_thread = EngineThread(lambda: _engine(options, run, scratch))
            stack.callback(engine_thread.close)
            service = ChatService(engine_thread, upload_store, VoteStore(votes))
            done = threading.Event()
            stack.callback(done.set)
            threading.Thread(target=_sweep, args=(service, done), name="sweep", daemon=True).start()
        yield stack.enter_context(page_at(options, service, run, folder))


def _temporary(stack: ExitStack) -> Path:
    """A folder that is deleted at the end, or at the next start after a kill."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True)))
    stack.enter_context(locked(folder))
    return folder


def remove_leftovers() -> None:
    """Delete the folders of servers that were killed: those that no process holds locked."""
    with suppress(ImportError):
        import fcntl  # noqa: F401  without it, nothing tells a living server's folder

        for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
            with suppress(UserError, OSError), locked(folder):
                shutil.rmtree(folder)


def _sweep(service: ChatService, done: threading.Event) -> None:
    """Delete old uploads at intervals, also while no page is opened or closed."""
    while not done.wait(SWEEP_SECONDS):
        service.sweep()


def page_at(
    options: argparse.Namespace, service: ChatService | None, run: Run | None, folder: Path
) -> AbstractContextManager[str]:
    """Serve the page for a service and a run; yields its address. UserError if the port is not available."""
    from minirlaif.app import tabs, ui, views

    is_public = _reaches_others(options) or bool(options.password)
    run = run_reader.PublicRun(run.root) if run and is_public else run
    source = run_reader.without_links(run)
    examples = service.upload_store.examples(run_reader.example_clips(source)) if service else []
    questions = run_reader.example_questions(source)
    page = ui.build(tabs.AppContext(service, run, options.runs_dir, examples, questions, is_public))
    _warn_if_open(options)
    password, folders = options.password, [options.runs_dir.absolute(), *([run.root.absolute().parent] if run else [])]
    return launched(
        page,
        folder,
        options.host,
        options.port,
        share=options.share,
        allowed=options.allowed_host,
        auth=(lambda name, given: len(name) < 65 and hmac.compare_digest(given.encode(), password.encode()))
        if password
        else None,
        auth_message="Enter any user name and the password." if password else None,
        ended=service.close_session if service else None,
        arrived=service.upload_store.hold if service else None,
        model_time=service.upload_store.model_time if service else None,
        names={each: each.name for each in folders if each.name},
        max_file_size=options.max_mb << 20,
        head=views.page_script(),
    )


@contextmanager
def launched(
    page: Any,
    folder: Path,
    host: str,
    port: int,
    share: bool = False,
    allowed: Sequence[str] = (),
    ended: Callable[[str], object] | None = None,
    arrived: Callable[[Path], object] | None = None,
    model_time: ModelTime | None = None,
    names: Mapping[Path, str] | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Serve a Gradio page inside a `with` block, without the parts of Gradio that it does not need; yields its address.

    Args:
        folder: only files below it are served.
        allowed: names of this server beside those of this machine; empty: any where others can reach it.
        ended: called with the name of a session that ended; arrived: with the path of an upload.
        model_time: how long each client had the model.
        names: what stands in replies for other folders.
        settings: of Blocks.launch.

    Raises:
        UserError: the port is not available.
    """
    from fastapi.exceptions import RequestValidationError
    from starlette.middleware import Middleware

    from minirlaif.app import ui, views

    local_only = host in LOOPBACK and not share
    hosts = (*LOOPBACK, *allowed) if local_only or allowed else ()
    largest = settings.get("max_file_size", MAX_CLIP_BYTES)
    limits = {"same_origin_only": not share, "largest": largest, "names": names}
    limits |= {"ended": ended, "arrived": arrived, "model_time": model_time}
    request_filter = Middleware(RequestFilter, folder=folder, hosts=hosts, **limits)
    try:
        _, address, shared = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            share=share,
            app_kwargs={"middleware": [request_filter], "exception_handlers": {RequestValidationError: _invalid_body}},
            theme=ui.theme(),
            css=views.page_style(),
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            show_error=False,
            state_session_capacity=MAX_SESSIONS,
            **settings,
        )
        page.server.config.http_protocol_class = limited_protocol(page.server.config.http_protocol_class)
    except OSError as error:
        raise UserError(f"--port {port}: cannot listen on this port ({error}); choose another one") from None
    try:
        yield shared or address
    finally:
        page.close(verbose=False)


async def _invalid_body(request: Any, error: Exception) -> Any:
    """The reply to a body that is none of the event's. FastAPI's own repeats it, and fails where it is no text."""
    from starlette.responses import JSONResponse

    return JSONResponse({"detail": "the body is not that of this request"}, 422)


def quiet_gradio(folder: Path) -> None:
    """To be called before gradio is imported: uploads go to `folder`, and no telemetry is sent."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "cached")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"  # of what each request took, which nobody sees
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _run_and_votes(options: argparse.Namespace) -> tuple[Run | None, Path]:
    """The run to show, and where votes are stored: in the run of the models, or next to exported files outside any run."""
    exported: Path | None = options.gguf and (options.gguf.parent if options.gguf.is_file() else options.gguf)
    run = None
    if options.run:
        if Path(options.run).name != options.run or options.run == "..":
            raise UserError(f"--run {options.run!r}: must be a plain name; name its folder with --runs-dir")
        run = Run(options.runs_dir / options.run)
        if not run.root.is_dir():
            known = ", ".join(each.root.name for each in run_reader.runs(options.runs_dir)) or "none"
            raise UserError(f"{run.root}: no such run folder; runs there: {known}")
    elif exported and (exported.absolute().parent / "config.yaml").is_file():  # where `export` writes
        run = Run(exported.absolute().parent)
    beside = exported if run is None else None
    run = run or run_reader.newest_run(options.runs_dir)
    return run, (beside or (run.root if run else Path())) / "votes"


def _engine(options: argparse.Namespace, run: Run | None, scratch: Path) -> ChatEngine:
    if options.gguf:
        from minirlaif.gguf.runtime.engine import GgufEngine

        return GgufEngine(options.gguf)
    from minirlaif.feedback.readout import judge_of_run
    from minirlaif.inference.hf_engine import HfEngine

    assert run is not None
    print(f"loading {run.root} …", flush=True)
    return HfEngine(run, judge_of_run, scratch)


def _reaches_others(options: argparse.Namespace) -> bool:
    """Whether others than the users of this machine can open the page."""
    return options.share or options.host not in LOOPBACK


def _warn_if_open(options: argparse.Namespace) -> None:
    if _reaches_others(options) and not options.password:
        who = "anyone who knows the address" if options.share else f"anyone who can reach {options.host}"
        print(f"warning: {who} can use this model and upload clips; set $MINIRLAIF_PASSWORD", file=sys.stderr, flush=True)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        return int(probe.getsockname()[1])
