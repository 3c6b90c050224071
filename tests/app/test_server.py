"""The app's server: what it refuses, what it survives, and what it leaves behind."""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from minirlaif.app import server
from minirlaif.app.conversations import ChatService
from minirlaif.app.requests import middleware, quotas
from minirlaif.app.requests.middleware import RequestFilter
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from tests.fixtures import chat_run, tiny
from tests.fixtures.browser import HIDDEN, FakeEngine, Served, serving, wait_for
from tests.fixtures.http_client import Client, login, turns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    chat_run.world_clip(folder / "good.mp4")
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    with serving(FakeEngine(), None, place / "none", place / "uploads", "--max-mb", "1") as result:
        yield result


def foreign(place: Path, served: Served) -> list[str]:
    """Requests for what is none of a visitor's business, each in another way."""
    secret, inside = str(place / "secret.txt"), str(served.folder)
    up = "../" * 12
    link = served.folder / "link"
    link.mkdir(exist_ok=True)
    if not (link / "out.mp4").is_symlink():
        (link / "out.mp4").symlink_to(secret)
    api = "/gradio_api"
    return [
        f"{api}/file={secret}",
        f"{api}/file=/etc/passwd",
        f"{api}/file=//etc/passwd",
        f"{api}/file=etc/passwd",
        f"{api}/file={up}etc/passwd",
        f"{api}/file={inside}/../secret.txt",
        f"{api}/file={inside}/x/../../secret.txt",
        f"{api}/file={inside}/%2e%2e/secret.txt",
        f"{api}/file={inside}/..%2fsecret.txt",
        f"{api}/file={inside}%2f..%2fsecret.txt",
        f"{api}/file={inside}/%252e%252e/secret.txt",
        f"{api}/file={inside}/..%5csecret.txt",
        f"{api}/file={inside}/link/out.mp4",
        f"{api}/file={inside}",
        f"{api}/file=file://{secret}",
        f"{api}/file=http://127.0.0.1:{served.address.rsplit(':', 1)[1]}/config",
        f"{api}/file=http://169.254.169.254/latest/meta-data/",
        f"{api}/file={secret}%00.mp4",
        f"{api}/file=~/.bashrc",
        f"{api}/file=/proc/self/environ",
        f"{api}/file=/dev/zero",
        f"{api}/file={ROOT}/app.py",
        f"{api}/file/{secret}",
        f"{api}/file={os.getcwd()}/README.md",
        f"/file={secret}",
        f"/static/{up}etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"/assets/{up}etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        f"/svelte/{up}etc/passwd",
        f"{api}/proxy=http://127.0.0.1/",
        f"{api}/proxy=https://a.hf.space/file=/etc/passwd",
        f"{api}/custom_component/x/client/component/../../../../etc/passwd",
        f"{api}/stream/a/b/1/playlist.m3u8",
        f"{api}/dev/reload",
        f"{api}/vibe-code",
        f"{api}/token",
        f"{api}/openapi.json",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/deep_link",
        "/docs",
        "/pwa_icon",
    ]


def test_foreign_paths_are_refused(place: Path, served: Served) -> None:
    client = Client(served.address)
    paths = foreign(place, served)
    assert len(paths) > 40
    taken = []
    for path in paths:
        status, body = client.get(path)
        if status < 400 or b"secret" == body.strip() or b"root:" in body:
            taken.append((path, status))
    assert taken == []
    for path in ("vibe-edit", "process_recording", "component_server", "run-history/connect", "api/predict", "call/answer"):
        assert client.post(f"/gradio_api/{path}", {"data": []})[0] == 404
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.send(method, "/")[0] in (404, 405)
    assert client.get("/")[0] == 200


def test_what_is_not_an_upload_is_not_opened(place: Path, served: Served) -> None:
    """Paths that a visitor writes into the page's own requests instead of asking for them."""
    client, engine = Client(served.address), served.service.engine
    secret, before = place / "good.mp4", len(engine.loaded)  # type: ignore[attr-defined]
    for path in (
        str(secret),
        f"{served.folder}/../good.mp4",
        "/etc/passwd",
        "http://127.0.0.1:1/x.mp4",
        "https://127.0.0.1/x.mp4",
    ):
        assert client.open(path) == {"success": False, "status": 403, "output": '{"detail": "this file was not uploaded here"}'}
    assert len(engine.loaded) == before  # type: ignore[attr-defined]
    answering = client.after[client.events["question", "submit"]]
    status, _ = client.quick(answering, ["rlaif", 0, 1, 9])  # past the queue
    assert status in (403, 404, 422, 500) and engine.at_once == 0  # type: ignore[attr-defined]


EVENT_PATHS = ("queue/join", "run/predict", "queue/join/", "run/predict/")


@pytest.mark.parametrize("where", EVENT_PATHS)
def test_a_path_is_found_wherever_it_stands(place: Path, served: Served, where: str) -> None:
    """Gradio takes files out of any place in what it is sent: behind others, inside lists, in parts that an event ignores."""
    client = Client(served.address)
    status, sent = client.upload("good.webm", (place / "good.mp4").read_bytes() + b"\0\0\0\x08free")  # never opened
    assert status == 200
    ours, other = ({"path": path, "meta": {"_type": "gradio.FileData"}} for path in (sent.decode(), str(place / "good.mp4")))

    def request(data: object, **more: object) -> tuple[int, bytes]:
        return client.post(f"/gradio_api/{where}", {"data": data, "fn_index": 0, "session_hash": client.session, **more})

    for data in (
        [other],
        [ours, other],
        [4, "x", None, other],
        [ours, [0, [ours, {"a": 1, "b": [1, 2, other]}]]],
        [{"path": ours["path"], "x": other}],
        [{"x": ours, "path": other["path"]}],
        [{"path": [other["path"]]}],
    ):
        assert request(data) == (403, b'{"detail": "this file was not uploaded here"}')
    assert request([ours], event_data={"x": [ours, other]})[0] == 403
    assert request([ours, [ours]])[1] != b'{"detail": "this file was not uploaded here"}'  # one's own are taken


@pytest.mark.parametrize("where", EVENT_PATHS)
def test_a_request_that_is_too_long_is_not_read(served: Served, where: str) -> None:
    client, engine = Client(served.address), served.service.engine
    before = len(engine.requests)  # type: ignore[attr-defined]
    begin = client.events["question", "submit"]
    for letters, wanted in ((1 << 19, True), (1 << 20, False), (3 << 20, False)):
        status, body = client.post(
            f"/gradio_api/{where}", {"data": ["x" * letters], "fn_index": begin, "session_hash": client.session}
        )
        assert (status, body) != TOO_MUCH if wanted else (status, body) == TOO_MUCH
    assert len(engine.requests) == before  # type: ignore[attr-defined]


TOO_MUCH = (413, b'{"detail": "request too large"}')
WRONG = ("", " ", "ö", "öpen", "öpen sesam", "öpen sesame!", "sesame", "Öpen sesame", "wrong", "\0", "öpen sesame" * 9)


def test_only_the_whole_password_opens_what_is_behind_it(place: Path) -> None:
    # A block of its own: gradio knows one folder of uploads per process, which is the other server's again afterwards.
    with serving(FakeEngine(), None, place / "none", place / "locked", "--password", "öpen sesame") as locked:
        for given in WRONG:
            status, cookie = login(locked.address, given)
            assert 400 <= status < 500 and cookie == "", given
        assert login(locked.address, "öpen sesame", "m" * 65)[0] == 400  # names of those who are in are kept
        assert set(hidden_answers(locked, "").values()) == {401}
        status, cookie = login(locked.address, "öpen sesame")
        assert status == 200 and cookie
        assert 401 not in hidden_answers(locked, cookie).values()
        forged = "; ".join(f"{each[:-4]}AAAA" for each in cookie.split("; "))
        assert set(hidden_answers(locked, forged).values()) == {401}
        client = Client(locked.address, cookie)
        client.show(place / "good.mp4")
        assert turns(client.ask("who is there?")) == [("who is there?", "rlaif heard: who is there?", "")]


def hidden_answers(locked: Served, cookie: str) -> dict[str, int]:
    """What the server says to requests for what a password keeps."""
    client = Client.__new__(Client)  # without asking for the page's parts, which are behind it as well
    parts = urlsplit(locked.address)
    client.host, client.port, client.cookie = str(parts.hostname), int(parts.port or 80), cookie
    upload = locked.folder / "kept" / "kept.mp4"  # uploads lie in folders; what lies beside them is cleared away
    upload.parent.mkdir(exist_ok=True)
    upload.touch()
    request = {"data": [""], "fn_index": 0, "session_hash": "somebody"}
    replies = {path: client.get(path)[0] for path in ("/config", "/gradio_api/info", f"/gradio_api/file={upload}")}
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        replies[path] = client.post(path, request)[0]
    replies["/gradio_api/upload"] = client.upload("x.mp4", b"x" * 100)[0]
    upload.unlink()
    return replies


def test_parts_of_a_file_are_asked_for_as_browsers_do(served: Served) -> None:
    client, kept = Client(served.address), served.folder / "part" / "a.webm"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(bytes(range(10)))
    for text, wanted in (("bytes=2-4", 206), ("bytes=0-", 200), ("bytes=0-99", 206)):
        status, body = client.get(f"/gradio_api/file={kept}", Range=text)
        assert status in (wanted, 206) and body[:1] == bytes([int(text[6])]), text
    for text in (
        "bytes=0-0,1-1",
        "bytes=NaN-",
        "bytes=9-1",
        "bytes=-",
        "bytes=²-³",
        f"bytes={'9' * 5000}-",
        "lines=1-2",
        "bytes=1e1-2",
    ):
        assert client.get(f"/gradio_api/file={kept}", Range=text) == (416, b"range: not one part of a file"), text


def test_names_that_point_here_are_not_served(served: Served) -> None:
    """A page elsewhere may let its own name point to this machine; it must not reach the app by it."""
    client = Client(served.address)
    assert client.get("/config", Host="evil.example:7860")[0] == 403
    assert client.get("/config", Host="localhost:7860")[0] == 200
    request_filter = RequestFilter(None, served.folder)
    assert request_filter.refusal({"method": "GET", "path": "/config", "headers": [(b"host", b"my.server")]}) is None


def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    status, body = Client(served.address).get("/")
    assert status == 200 and b"fonts.googleapis" not in body
    import urllib.request

    with urllib.request.urlopen(served.address, timeout=120) as reply:
        policy = reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    rules = {name: set(sources) for name, *sources in (rule.split() for rule in policy.split(";"))}
    assert len(rules) == policy.count(";") + 1  # of two of one name, the first counts
    assert rules["default-src"] == {"'self'"}
    # Neither * nor a host nor a scheme that leads elsewhere; and what default-src does not stand in for is named.
    here = {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert {source for sources in rules.values() for source in sources} <= here
    assert {"base-uri", "form-action", "frame-ancestors"} <= rules.keys()
    assert all("data:" not in rules.get(name, set()) for name in ("script-src", "worker-src", "connect-src"))
    assert rules["object-src"] == rules["frame-src"] == {"'none'"} and rules["connect-src"] == {"'self'"}


def test_too_large_an_upload_is_refused_and_leaves_nothing(served: Served) -> None:
    client = Client(served.address)
    status, _ = client.upload("big.mp4", bytes(2 << 20))
    assert status == 413
    assert [path for path in served.folder.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20] == []


def mutations(clip: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Files that are a clip with something wrong, or no clip at all."""
    draw = random.Random(seed)
    for number in range(count):
        data = bytearray(clip)
        kind = number % 5
        if kind == 0:  # some bytes differ
            for _ in range(draw.randint(1, 60)):
                data[draw.randrange(len(data))] = draw.randrange(256)
        elif kind == 1:  # cut short
            data = data[: draw.randrange(1, len(data))]
        elif kind == 2:  # a piece is missing or there twice
            start, end = sorted(draw.randrange(len(data)) for _ in range(2))
            data = data[:start] + data[end:] if draw.random() < 0.5 else data[:end] + data[start:]
        elif kind == 3:  # noise behind a container's first bytes
            head = draw.choice([clip[:32], b"\x1a\x45\xdf\xa3", b"RIFF\x00\x00\x00\x00AVI ", b"FLV\x01", b"GIF89a"])
            data = bytearray(head + draw.randbytes(draw.randrange(4000)))
        else:
            data = bytearray(draw.randbytes(draw.randrange(2000)))
        yield bytes(data)


def strings(count: int, seed: int) -> Iterator[str]:
    """Things that people, and others, write into a box."""
    draw = random.Random(seed)
    pieces = [
        "<image>", "<|im_start|>", "<end_of_utterance>", "</div>", "<script>alert(1)</script>", "${7*7}", "{{7*7}}", "\0", "\n\n",
        "\u202e", "\ud83d\ude00", "\ufffd", "'; DROP TABLE clips; --", "../../etc/passwd", "%s%n", "what happens first?",
        " ", "é中", "A" * 300, "\x1b[31m", "&lt;b&gt;", "null", "[]", "\\", '"',
    ]  # fmt: skip
    for _ in range(count):
        parts = [
            draw.choice(pieces) if draw.random() < 0.8 else chr(draw.randrange(1, 0x2FFF)) for _ in range(draw.randint(1, 8))
        ]
        yield "".join(parts)


def endure(served: Served, place: Path, clips: int, questions: int, matches: Callable[[str, str], bool] | None = None) -> None:
    """Broken clips, then odd questions, each of which is answered. matches: whether an answer is one to a question; without it
    any answer is, and so is a note of what its owner can put right."""
    client = Client(served.address)
    good = (place / "good.mp4").read_bytes()
    for data in mutations(good, clips, 5):
        status, path = client.upload("clip.mp4", data)
        assert status == 200
        output = client.open(path.decode())
        assert output["success"] and ("<img" in str(output["output"]) or "Cannot use this clip" in str(output["output"]))
    client.show(place / "good.mp4")
    stood, answered = 0, 0
    for number, text in enumerate([*strings(questions, 6), "still here"]):
        if number % 5 == 0:  # a conversation that no longer fits would be the only answer from then on
            client.quick(client.events["clear", "click"], [])
            stood = 0
        drawn = client.ask(text)
        assert "<script>" not in drawn and "<image>" not in drawn
        stood += bool(text.strip())  # nothing is asked without words
        replies = turns(drawn)
        assert len(replies) == stood
        if text.strip():
            question, answer, note = replies[-1]
            assert "The model failed" not in note and "waiting for the model" not in drawn
            assert matches(question, answer) if matches else (answer or note)
            answered += bool(answer) and "no answer" not in answer
    assert question == "still here" and answered > questions * 0.5
    status, _ = client.get("/")
    assert status == 200
    served.service.close_session(client.session)
    assert [path for path in served.folder.rglob("*.mp4") if "examples" not in path.parts and not path.is_symlink()] == []


def test_broken_clips_and_odd_questions_leave_it_serving(served: Served, place: Path) -> None:
    endure(served, place, 20, 40, lambda question, answer: spaced(answer) == spaced(f"rlaif heard: {question}"))


def spaced(text: str) -> str:
    """Spaces and ends of lines are not compared."""
    return " ".join(text.split())


@pytest.mark.learning
def test_many_broken_clips_and_odd_questions_leave_a_real_engine_serving(place: Path, tmp_path: Path) -> None:
    from minirlaif.feedback.readout import judge_of_run
    from minirlaif.inference.hf_engine import HfEngine

    run = chat_run.run_of(tmp_path / "runs" / "a")
    with serving(lambda: HfEngine(run, judge_of_run), run, tmp_path / "runs", tmp_path / "uploads") as real:
        endure(real, place, 200, 500)
    assert not (tmp_path / "uploads").exists()


@contextmanager
def program(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`python app.py`, in a folder without runs, with temporary files of its own. Killed behind a failure."""
    (folder / "temp").mkdir(exist_ok=True)
    variables = {**os.environ, "TMPDIR": str(folder / "temp"), "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    default_sigint = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a shell's background job has it ignored
    command = [sys.executable, str(ROOT / "app.py"), "--port", "0", *words]
    with subprocess.Popen(command, cwd=folder, env=variables, preexec_fn=default_sigint, **pipes) as app:
        try:
            yield app
        except BaseException:
            app.kill()
            raise


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are named by Linux")
def test_a_signal_that_another_thread_gets_ends_it_too(tmp_path: Path) -> None:
    """The kernel may choose any thread; the main one sleeps on."""
    with program(tmp_path) as app:
        assert app.stdout is not None
        app.stdout.readline()
        open_to_signals = re.compile(r"^SigBlk:\s+0+$", re.M)  # threads of libraries are not
        tasks = Path(f"/proc/{app.pid}/task").iterdir()
        others = [int(t.name) for t in tasks if t.name != str(app.pid) and open_to_signals.search((t / "status").read_text())]
        tgkill = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
        assert ctypes.CDLL(None).syscall(tgkill, app.pid, others[0], int(signal.SIGTERM)) == 0
        assert app.wait(120) == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_without_a_run_the_page_says_which_command_makes_one(tmp_path: Path, end: signal.Signals) -> None:
    with program(tmp_path, "--password", "open sesame") as app:
        try:
            assert app.stdout is not None
            client_at = app.stdout.readline().split()[1].rstrip("/")
            import urllib.error
            import urllib.request

            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{client_at}/config", timeout=120)
            form = b"username=me&password=wrong"
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(f"{client_at}/login", form, timeout=120)
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            opener.open(f"{client_at}/login", b"username=me&password=open+sesame", timeout=120)
            page = opener.open(f"{client_at}/config", timeout=120).read().decode()
            assert "python -m minirlaif run --config configs/tiny.yaml --run tiny" in page
            assert '"elem_id":"ask"' not in page and '"elem_id":"clip"' not in page  # nothing that would not work
            assert len(list((tmp_path / "temp").glob("minirlaif-app-*"))) == 1
        finally:
            app.send_signal(end)
        assert app.wait(120) == 0
        assert app.stderr is not None and "Traceback" not in app.stderr.read()
    assert list((tmp_path / "temp").glob("minirlaif-app-*")) == []


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (("--run", "nope"), "runs/nope: no such run folder; runs there: none"),
        (("--run", "../x"), "must be a plain name"),
        (("--gguf", "nowhere"), "no such file or folder"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path, words: tuple[str, ...], output: str) -> None:
    with program(tmp_path, *words) as app:
        _, errors = app.communicate(timeout=120)
        assert app.returncode == 2
    (line,) = errors.strip().splitlines()
    assert output in line and line.startswith("minirlaif: ")
    assert list((tmp_path / "temp").glob("minirlaif-app-*")) == []


def test_folders_of_killed_servers_go_at_the_next_start(tmp_path: Path) -> None:
    with program(tmp_path) as killed:
        assert killed.stdout is not None and killed.stdout.readline().startswith("open ")
        (left,) = (tmp_path / "temp").glob("minirlaif-app-*")
        (left / ("0" * 64)).mkdir()
        (left / ("0" * 64) / "clip.mp4").write_bytes(bytes(1000))
        with program(tmp_path) as second:  # the first one is alive
            assert second.stdout is not None and second.stdout.readline().startswith("open ")
            second.terminate()
        assert left.is_dir()
        killed.kill()
    assert left.is_dir()
    with program(tmp_path) as third:
        assert third.stdout is not None and third.stdout.readline().startswith("open ")
        assert not left.exists()
        third.terminate()
    assert list((tmp_path / "temp").glob("minirlaif-app-*")) == []


def test_a_session_without_heartbeat_ends(served: Served, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clip goes, and what Gradio kept of it; the one of a page that is open stays."""
    monkeypatch.setattr(middleware, "EXPIRY_SECONDS", 0.1)
    monkeypatch.setattr(quotas, "SESSION_SECONDS", 1.0)
    invented, page = Client(served.address), Client(served.address)
    with page.beating():
        for client in (invented, page):
            client.show(place / "good.mp4")
        wait_for(lambda: invented.session not in served.service._sessions)
        assert served.service.session(page.session).clip is not None
        assert invented.get(f"/gradio_api/queue/data?session_hash={invented.session}")[0] == 404


def test_a_taken_port_is_said(served: Served, tmp_path: Path) -> None:
    port = served.address.rsplit(":", 1)[1]
    options = server._parser().parse_args(["--port", port, "--runs-dir", str(tmp_path)])
    with pytest.raises(UserError, match=f"--port {port}: cannot listen on this port"):
        with server.page_at(options, None, None, tmp_path):
            pass


def test_only_named_hosts_reach_a_server_on_the_network(place: Path) -> None:
    words = ("--host", "0.0.0.0", "--allowed-host", "my.site")
    with serving(FakeEngine(), None, place / "none", place / "uploads7", *words) as served:
        port = int(served.address.rstrip("/").rsplit(":", 1)[1])
        for name, wanted in (("my.site", 200), (f"my.site:{port}", 200), ("127.0.0.1", 200), ("evil.example", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("GET", "/", headers={"Host": name})
            assert connection.getresponse().status == wanted, name
            connection.close()


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ([], ""),
        (["--host", "0.0.0.0"], "can reach 0.0.0.0"),
        (["--share"], "knows the address"),
        (["--share", "--password", "x"], ""),
    ],
)
def test_an_open_door_is_warned_of(words: list[str], warned: str, capsys: pytest.CaptureFixture[str]) -> None:
    options: argparse.Namespace = server._parser().parse_args(words)
    server._warn_if_open(options)
    output = capsys.readouterr().err
    assert warned in output and bool(output) == bool(warned)


def test_sessions_that_end_take_their_clips_along(served: Served, place: Path) -> None:
    """Two visitors bring the same clip; it goes with the second one. The page's heartbeat says when a visitor is gone."""
    first, second = Client(served.address), Client(served.address)
    with second.beating():
        with first.beating():
            first.show(place / "good.mp4")
            second.show(place / "good.mp4")
            seen, other = (served.service.session(each.session) for each in (first, second))
            here = other.clip
            assert here is not None and here == seen.clip
            assert turns(first.ask("a slow one"))
        wait_for(lambda: seen.clip is None)  # its connection is closed
        assert here.is_file() and other.clip == here
        assert turns(second.ask("still?")) == [("still?", "rlaif heard: still?", "")]
    wait_for(lambda: not here.parent.exists())
    assert other.clip is None


def test_an_upload_waits_to_be_opened(served: Served, place: Path) -> None:
    """Uploads of the same content share a folder. A page that has it closes after another one's upload and before its event."""
    first, second, content = Client(served.address), Client(served.address), (place / "good.mp4").read_bytes()
    with second.beating():
        with first.beating():
            first.show(place / "good.mp4")
            clip = served.service.session(first.session).clip
            status, path = second.upload("good.mp4", content)
            assert status == 200 and clip is not None
        wait_for(lambda: first.session not in served.service._sessions)
        assert "<img" in str(second.open(path.decode())["output"])
        assert served.service.session(second.session).clip == clip
    wait_for(lambda: not clip.parent.exists())


def test_a_killed_decoder_costs_a_client_no_place(served: Served, place: Path) -> None:
    """More often than it has places: for uploads, for events, and of the decoder's time."""
    client, store = Client(served.address), served.service.upload_store
    content = (place / "good.mp4").read_bytes()
    client.show(place / "good.mp4")
    others = {folder: [*times] for folder, times in store._held.items()}  # uploads of earlier tests that nobody opened
    for number in range(2 * max(quotas.MODEL_PLACES, quotas.UPLOADS_AT_ONCE)):
        store._reader.info(place / "good.mp4")  # so that it runs
        assert store._reader._child is not None
        os.kill(pid := store._reader._child.pid, signal.SIGSTOP)
        status, path = client.upload("clip.mp4", content + b"\0\0\0\x18free" + number.to_bytes(16, "big"))
        assert status == 200
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        assert "the decoder crashed (exit status -9)" in str(client.open(path.decode())["output"])
    client.show(place / "good.mp4")
    assert turns(client.ask("still?")) == [("still?", "rlaif heard: still?", "")]
    assert store._decoding.add("127.0.0.1", 0) < quotas.DECODING_SECONDS / 2
    assert all(set(times) <= {*others.get(folder, ())} for folder, times in store._held.items())


def test_a_visitor_that_goes_away_stops_its_answer(served: Served, place: Path) -> None:
    client, engine = Client(served.address), served.service.engine
    with client.beating():
        client.show(place / "good.mp4")
        client.quick(client.events["question", "submit"], ["a slow one"])
        (answer,) = served.service.session(client.session).turns
        data = ["rlaif", 0.0, 1.0, 16]
        answering = client.after[client.events["question", "submit"]]
        client.post("/gradio_api/queue/join", {"data": data, "fn_index": answering, "session_hash": client.session})
        wait_for(lambda: "word1" in answer.text)
    wait_for(lambda: engine.at_once == 0, 3.0)  # type: ignore[attr-defined]  # of 4 s
    assert "word39" not in answer.text


def test_uploads_that_nobody_opened_go_in_time(served: Served) -> None:
    stale = served.folder / ("0" * 64)
    stale.mkdir()
    (stale / "left.mp4").touch()
    served.service.sweep(3600)
    assert stale.exists()  # somebody may be about to open it
    os.utime(stale, (time.time() - 4000,) * 2)
    served.service.sweep(3600)
    assert not stale.exists()


def test_nothing_that_the_page_is_sent_tells_who_is_who_before_the_vote(served: Served, place: Path) -> None:
    """What stands in no page may still be in the stream that draws it."""
    client = Client(served.address)
    client.show(place / "good.mp4")
    begin = client.events["compare-question", "submit"]
    _, drawn = client.quick(begin, ["a blind one"])
    done = client.event(client.after[begin], ["", 0.0, 1.0, 16])
    assert done["success"] and b"one thing happens" in client.received and b"another thing happens" in client.received
    assert HIDDEN.findall(json.dumps(drawn) + client.received.decode()) == []
    status, voted = client.quick(client.events["vote-A", "click"], [0.0, 1.0, 16])
    assert status == 200 and {"rlaif", "SFT", "reward", "judge chose"} <= set(HIDDEN.findall(json.dumps(voted)))


def test_what_is_left_behind_goes_while_nobody_comes(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SWEEP_SECONDS", 0.05)
    stale = service.upload_store.folder / "tmpabc"
    stale.write_bytes(b"x")
    os.utime(stale, (time.time() - 4000,) * 2)
    done = threading.Event()
    sweeper = threading.Thread(target=server._sweep, args=(service, done))
    sweeper.start()
    end = time.monotonic() + 10
    while stale.exists() and time.monotonic() < end:
        time.sleep(0.05)
    done.set()
    sweeper.join(60.0)
    assert not stale.exists() and not sweeper.is_alive()


@pytest.mark.parametrize(
    ("words", "shown", "votes"),
    [
        ("--run old", "runs/old", "runs/old/votes"),
        ("", "runs/new", "runs/new/votes"),
        ("--gguf runs/old/export", "runs/old", "runs/old/votes"),
        ("--gguf runs/old/export/old-F16.gguf", "runs/old", "runs/old/votes"),
        ("--gguf files", "runs/new", "files/votes"),  # the newest run is shown; it did not make these files
        ("--gguf files/some-F16.gguf", "runs/new", "files/votes"),
        ("--gguf files --run old", "runs/old", "runs/old/votes"),
        ("--gguf files --runs-dir none", None, "files/votes"),
        ("--runs-dir none", None, "votes"),
    ],
)
def test_votes_lie_in_the_run_of_the_models_or_beside_the_files(
    words: str, shown: str | None, votes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, name in enumerate(("old", "new")):
        manifest = tiny.finished(Run(tmp_path / "runs" / name), "sft", lambda path: None) / "manifest.json"
        (tmp_path / "runs" / name / "config.yaml").write_text("")
        os.utime(manifest, (seconds, seconds))
    for path in ("runs/old/export/old-F16.gguf", "files/some-F16.gguf"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)
    run, folder = server._run_and_votes(server._parser().parse_args(words.split()))
    assert (run and run.root.absolute()) == (shown and tmp_path / shown)
    assert folder.absolute() == tmp_path / votes


def test_a_body_that_is_no_text_is_refused(unlocked: Served) -> None:
    status, reply = Client(unlocked.address).send("POST", "/gradio_api/reset", b"\xba", {"Content-Type": "text/plain"})
    assert (status, json.loads(reply)["detail"]) == (422, "the body is not that of this request")
