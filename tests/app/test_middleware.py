"""The app as a house with many visitors: whose clip is deleted when, what broken uploads leave, who may ask from where."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio
import pytest

from minirlaif.app import conversations, middleware, server, tabs
from minirlaif.app.conversations import ChatService
from minirlaif.app.engine_thread import EngineThread
from minirlaif.app.uploads import Limits, UploadStore, duration
from minirlaif.app.votes import Vote, VoteStore
from minirlaif.data.dataset import load_preferences
from minirlaif.errors import UserError
from minirlaif.inference.engine import SamplingParams
from tests.fixtures import chat_run
from tests.fixtures.browser import FakeEngine, Page, Served, chromium, serving
from tests.fixtures.clips import write_clip
from tests.fixtures.http_client import Client, login

OPTIONS = SamplingParams(0.0, 1.0, 16, 0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ChatService]:
    (tmp_path / "uploads").mkdir()
    engine_thread, upload_store = (
        EngineThread(FakeEngine),
        UploadStore(tmp_path / "uploads", Limits(1, 60.0, 100 * 100), seconds=10.0),
    )
    yield ChatService(engine_thread, upload_store, VoteStore(tmp_path / "votes"))
    upload_store.close()
    engine_thread.close()


def uploaded(service: ChatService, name: str, folder: str = "u" * 64) -> str:
    (service.upload_store.folder / folder).mkdir(exist_ok=True)
    return str(write_clip(service.upload_store.folder / folder / name))


def test_the_same_clip_under_two_names_is_kept_for_whoever_stays(service: ChatService) -> None:
    """Uploads of the same content share a folder."""
    one, two = service.session("one"), service.session("two")
    service.open_clip(one, uploaded(service, "alice.mp4"), 4)
    service.open_clip(two, uploaded(service, "bob.mp4"), 4)
    service.close_session("one")
    assert two.clip is not None and two.clip.is_file()
    service.open_clip(two, uploaded(service, "renamed.mp4"), 4)  # one page, the same content again
    assert two.notice == "" and two.clip.name == "renamed.mp4" and two.clip.is_file()
    service.close_session("two")
    assert list(service.upload_store.folder.iterdir()) == []


def test_a_clip_that_is_on_its_way_is_not_taken_along(service: ChatService) -> None:
    """Somebody with the same clip leaves before it is opened."""
    one, two = service.session("one"), service.session("two")
    service.open_clip(one, uploaded(service, "good.mp4"), 4)
    path = uploaded(service, "good.mp4")
    service.expect_upload(two, path)
    service.close_session("one")
    service.open_clip(two, path, 4)
    assert two.notice == "" and two.loaded is not None
    service.close_session("two")
    assert list(service.upload_store.folder.iterdir()) == []


def test_a_question_waits_for_its_clip(service: ChatService) -> None:
    session, path = service.session("me"), uploaded(service, "good.mp4")
    service.expect_upload(session, path)
    later = threading.Timer(0.5, lambda: service.open_clip(session, path, 4))
    later.start()
    assert service.begin(session, "what?") and session.notice == ""
    later.join()


def test_a_picture_of_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    upload_store = UploadStore(tmp_path, Limits(1, 60.0, 100 * 100), seconds=10.0)
    (tmp_path / "u").mkdir()
    screen = b"GIF89a" + (8000).to_bytes(2, "little") * 2 + b"\xf0\0\0" + b"\0\0\0\xff\xff\xff"
    image = b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    (tmp_path / "u" / "huge.gif").write_bytes(screen + image * 3 + b"\x3b")
    began = time.monotonic()
    with pytest.raises(UserError, match="^a frame has 64,000,000 pixels, 10,000 are allowed"):
        upload_store.examine(tmp_path / "u" / "huge.gif")
    upload_store.close()
    assert time.monotonic() - began < 60


def test_both_answers_of_a_pair_show_at_once(service: ChatService) -> None:
    """The time to a first word would tell which model had read the clip before."""
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    assert service.begin_side_by_side(session, "a slow one")
    pair = session.side_by_side
    seen = {tuple(bool(answer.text) for answer in pair.answers) for _ in service.answer_both(session, OPTIONS)}
    assert seen == {(False, False), (True, True)} and pair.ready


def test_a_judge_that_failed_is_not_said_to_be_missing(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    from minirlaif.app import views

    def broken(*_: Any) -> Any:
        raise UserError("out of tune")

    monkeypatch.setattr(FakeEngine, "judge", broken)
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    service.begin_side_by_side(session, "who?")
    for _ in service.answer_both(session, OPTIONS):
        pass
    service.vote(session, "A", OPTIONS)
    drawn = views.side_by_side(session, True)
    assert "The judge failed" in drawn and "no judge" not in drawn


@pytest.mark.parametrize("letter", ["\ud83d", "a\udc00b"])
def test_half_a_character_is_refused_in_words(service: ChatService, letter: str) -> None:
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    assert not service.begin(session, letter) and "incomplete character" in session.notice


def test_a_question_that_never_came_to_the_model_is_given_up(service: ChatService) -> None:
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    assert service.begin(session, "what?")
    service.abandon(session)
    assert not session.busy and "ask again" in session.turns[0].note
    assert service.begin(session, "and now?")


def test_giving_up_one_question_leaves_other_answers_alone(service: ChatService) -> None:
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    service.begin(session, "what?")
    for _ in service.answer(session, OPTIONS, "rlaif"):
        pass
    assert service.begin_side_by_side(session, "who?")
    service.abandon(session)
    assert session.turns[0].note == "" and session.turns[0].text
    assert all("ask again" in answer.note for answer in session.side_by_side.answers)


def test_a_question_after_stop_is_its_own(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stopped one may go on for a while; neither its end nor its failure is the next one's."""
    monkeypatch.setattr(conversations, "STOP_SECONDS", 0.1)
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    service.begin(session, "a stuck one")
    old = threading.Thread(target=lambda: [None for _ in service.answer(session, OPTIONS, "rlaif")])
    old.start()
    time.sleep(0.3)
    service.stop_job(session)
    assert not session.busy and service.begin(session, "mine?")
    old.join()
    assert session.busy and (session.turns[0].text, session.turns[0].note) == ("", "stopped")
    service.abandon(session)  # gradio says that the cancelled event failed
    assert session.busy and session.turns[1].note == ""
    for _ in service.answer(session, OPTIONS, "rlaif"):
        pass
    assert session.turns[1].text == "rlaif heard: mine?" and not session.busy
    assert service.begin(session, "next?")
    service.abandon(session)  # this one is meant
    assert "ask again" in session.turns[2].note


def test_a_pair_that_was_stopped_while_it_was_judged_is_not_voted_on(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "STOP_SECONDS", 0.1)
    judge = FakeEngine.judge
    monkeypatch.setattr(FakeEngine, "judge", lambda self, *request: (time.sleep(1.0), judge(self, *request))[1])
    session = service.session("me")
    service.open_clip(session, uploaded(service, "good.mp4"), 4)
    service.begin_side_by_side(session, "who?")
    first = session.side_by_side
    old = threading.Thread(target=lambda: [None for _ in service.answer_both(session, OPTIONS)])
    old.start()
    time.sleep(0.4)
    service.stop_job(session)
    assert service.begin_side_by_side(session, "and who?")
    old.join()
    assert not first.ready and session.side_by_side is not first and session.busy and session.side_by_side.note == ""
    for _ in service.answer_both(session, OPTIONS):
        pass
    assert session.side_by_side.ready


def test_a_vote_file_without_its_last_line_end_loses_nothing(service: ChatService, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    for question in ("one?", "two?"):
        service.vote_store.add(Vote(clip, question, ("x", "y"), ("rlaif", "sft"), "A"))
    service.vote_store.file.write_text(service.vote_store.file.read_text().rstrip("\n"))
    service.vote_store.add(Vote(clip, "three?", ("x", "y"), ("rlaif", "sft"), "B"))
    assert [row.question for row in load_preferences(str(service.vote_store.file))] == ["one?", "two?", "three?"]


@pytest.mark.parametrize(("seconds", "text"), [(20, "20 s"), (90, "90 s"), (150, "2.5 minutes"), (600, "10 minutes")])
def test_limits_are_told_as_they_are(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_votes_with_odd_line_ends_and_torn_rows_stay_readable(service: ChatService, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    service.vote_store.add(Vote(clip, "what\u2028happens?", ("x", "y"), ("rlaif", "sft"), "A"))
    service.vote_store.add(Vote(clip, "plain?", ("x", "y"), ("rlaif", "sft"), "B"))
    assert [row["prompt"] for row in service.vote_store.rows()] == ["what\u2028happens?", "plain?"]
    with service.vote_store.file.open("a") as file:
        file.write('{"id": "vote-1", "vid')
    service.vote_store.add(Vote(clip, "third?", ("x", "y"), ("rlaif", "sft"), "A"))
    assert [row.question for row in load_preferences(str(service.vote_store.file))][1:] == ["plain?", "third?"]


def test_what_broken_uploads_left_is_swept(service: ChatService) -> None:
    part, fresh = service.upload_store.folder / "tmpabc", service.upload_store.folder / "tmpdef"
    for path in (part, fresh):
        path.write_bytes(b"x")
    os.utime(part, (time.time() - 4000,) * 2)
    service.sweep(3600)
    assert not part.exists() and fresh.exists()


def test_what_is_left_behind_goes_while_nobody_comes(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SWEEP_SECONDS", 0.05)
    stale = service.upload_store.folder / "tmpabc"
    stale.write_bytes(b"x")
    os.utime(stale, (time.time() - 4000,) * 2)
    with server._sweeping(service):
        end = time.monotonic() + 10
        while stale.exists() and time.monotonic() < end:
            time.sleep(0.05)
    assert not stale.exists()


# Over HTTP


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    chat_run.world_clip(folder / "good.mp4")
    return folder


@pytest.fixture(scope="module")
def unlocked(place: Path) -> Iterator[Served]:
    with serving(FakeEngine(), None, place / "none", place / "uploads2") as result:
        yield result


def test_strangers_cannot_end_anything(place: Path) -> None:
    """Before the other servers: gradio keeps one folder of uploads for a process."""
    with serving(FakeEngine(), None, place / "none", place / "uploads", "--password", "open sesame") as served:
        host, port = served.address.removeprefix("http://").split(":")
        for path in ("heartbeat/abc123", "cancel", "reset"):
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            method, body = ("GET", None) if path.startswith("heartbeat") else ("POST", json.dumps({}))
            connection.request(method, f"/gradio_api/{path}", body, {"Content-Type": "application/json"})
            assert connection.getresponse().status == 401
            connection.close()


def test_passwords_cannot_be_tried_fast(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LOGIN_SECONDS", 0.6)
    with serving(FakeEngine(), None, place / "none", place / "uploads3", "--password", "open sesame") as served:
        took = []
        for word, wanted in (("open", False), ("open sesame", True)):
            began = time.monotonic()
            status, _ = login(served.address, word)
            took.append(time.monotonic() - began)
            assert (status == 200) is wanted
        threads = [threading.Thread(target=login, args=(served.address, f"guess {n}")) for n in range(3)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert took[0] >= 0.6 and time.monotonic() - began >= 1.8  # one after the other, not side by side


def test_pages_of_other_addresses_may_not_ask(unlocked: Served) -> None:
    client = Client(unlocked.address)
    here = unlocked.address
    for headers in (
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "null"},
    ):
        assert client.send("POST", "/gradio_api/upload", b"", headers)[0] == 403
        assert client.get("/config", **headers)[0] == 403
    assert client.get("/config", Origin=here)[0] == 200
    assert client.upload("good.mp4", b"x" * 100)[0] == 200


def test_a_name_that_no_file_can_have_is_refused(unlocked: Served) -> None:
    assert Client(unlocked.address).get(f"/gradio_api/file={unlocked.folder}/{'a' * 5000}")[0] == 403


def test_an_unfinished_login_keeps_nobody_out(place: Path) -> None:
    with serving(FakeEngine(), None, place / "none", place / "uploads4", "--password", "open sesame") as served:
        host, port = served.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(f"POST /login HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 100\r\n\r\nuser".encode())
            began = time.monotonic()
            assert login(served.address, "open sesame")[0] == 200 and time.monotonic() - began < 5


def test_pages_elsewhere_may_not_ask_a_server_on_the_network() -> None:
    """Browsers tell plain addresses of a network no fetch site."""

    def status(alone: bool, *headers: tuple[bytes, bytes]) -> int:
        request = {"method": "POST", "path": "/gradio_api/upload", "headers": [(b"host", b"nas:7860"), *headers]}
        return (middleware.RequestFilter(None, Path("/nowhere"), (), alone).refusal(request) or (200, ""))[0]

    assert status(True) == status(True, (b"origin", b"http://nas:7860")) == 200
    assert status(True, (b"origin", b"http://evil.example")) == 403
    assert status(True, (b"origin", b"https://my.site"), (b"x-forwarded-host", b"my.site")) == 200  # behind a proxy
    assert status(False, (b"origin", b"https://some.gradio.live")) == 200  # --share


def test_uploads_together_have_a_limit(unlocked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(unlocked.address)
    assert client.upload("one.mp4", b"1" * 100)[0] == 200
    monkeypatch.setattr(middleware, "MAX_STORED_BYTES", 50)
    status, body = client.upload("two.mp4", b"2" * 100)
    assert status == 507 and b"storage is full" in body


def test_an_upload_under_another_name_leaves_nothing(unlocked: Served) -> None:
    client = Client(unlocked.address)
    body = b'--cut\r\nContent-Disposition: form-data; name="other"; filename="a.mp4"\r\n\r\nxyz\r\n--cut--\r\n'
    client.send("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=cut"})
    end = time.monotonic() + 5  # it goes when the request is over, which its answer does not wait for
    while (left := [path.name for path in unlocked.folder.iterdir() if path.is_file()]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def test_a_clip_with_an_escaped_name_is_taken(unlocked: Served, place: Path) -> None:
    client = Client(unlocked.address)
    status, path = client.upload("my%20clip.mp4", (place / "good.mp4").read_bytes())
    assert status == 200 and "<img" in str(client.open(path.decode())["output"])


# On the page


def test_a_long_conversation_scrolls_in_its_box(unlocked: Served, place: Path) -> None:
    with chromium() as browser:
        page = Page(browser, unlocked.address, width=1440)
        page.upload(place / "good.mp4")
        page.frames()
        for number in range(6):
            page.ask(f"question {number}")
            page.page.wait_for_selector(f"#chat .copy >> nth={number}")
            page.rest()
        box = page.page.locator("#chat").bounding_box()
        last = page.page.locator("#chat .answer .bubble").last.bounding_box()
        field = page.page.locator("#question").bounding_box()
        assert last["y"] >= box["y"] and last["y"] + last["height"] <= box["y"] + box["height"] <= field["y"] + 1
        assert page.page.evaluate("getComputedStyle(document.querySelector('#chat')).overflowY") == "auto"
        page.close()


def test_a_question_that_finds_the_queue_full_is_given_back(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio refuses it after the page has shown it; it must not stand there waiting for ever."""
    queue = gradio.Blocks.queue
    monkeypatch.setattr(gradio.Blocks, "queue", lambda self, **how: queue(self, **{**how, "max_size": 1}))
    with serving(FakeEngine(), None, tmp_path / "none", tmp_path / "uploads") as served, chromium() as browser:
        pages = [Page(browser, served.address) for _ in range(3)]
        for number, page in enumerate(pages):
            page.upload(write_clip(tmp_path / f"{number}.mp4"))
            page.frames()
        pages[0].ask("a slow one")
        pages[0].page.wait_for_selector("#chat [aria-busy=true]")
        pages[1].ask("a slow one too")
        pages[1].page.wait_for_selector("#chat .question")
        pages[1].page.wait_for_timeout(500)  # it is in the queue now, which is full with it
        pages[2].ask("mine?")
        pages[2].page.wait_for_selector("#chat .ended")
        assert "ask again" in pages[2].text("#chat") and not pages[2].page.is_disabled("#ask")
        for page in pages:
            page.close()


def test_stop_frees_the_page_while_the_model_is_stuck(place: Path, tmp_path: Path) -> None:
    with serving(FakeEngine(), None, tmp_path / "none", tmp_path / "uploads") as served, chromium() as browser:
        page = Page(browser, served.address)
        page.upload(place / "good.mp4")
        page.frames()
        page.ask("a stuck one")
        page.page.wait_for_selector("#chat [aria-busy=true]")
        page.page.wait_for_timeout(300)
        page.page.click("#stop")
        page.page.wait_for_selector("#ask:not([disabled])")
        page.ask("mine?")
        page.page.wait_for_selector("#chat .copy")
        assert page.answers()[-1] == "rlaif heard: mine?" and "ask again" not in page.text("#chat")
        page.close()


def test_the_page_goes_on_following_when_the_next_stage_begins(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabs, "IDLE", 1.0)
    run = chat_run.run_of(tmp_path / "runs" / "a", aligned=False)
    with serving(FakeEngine(), run, tmp_path / "runs", tmp_path / "uploads") as served, chromium() as browser:
        page = Page(browser, served.address)
        page.tab("run")
        page.page.wait_for_selector("#progress table")
        page.page.wait_for_timeout(5000)  # nothing is at work now
        chat_run.begin_ppo(run, 2)
        page.page.wait_for_selector("#progress :text('ppo is running')", timeout=15000)
        page.close()
