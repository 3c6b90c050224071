"""The app as a house with many visitors: whose clip is deleted when, what broken uploads leave, who may ask from where."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import talking
from asking import Client
from clips import write_clip
from pages import FakeEngine, Page, Served, chromium, serving

from minirlaif.app.clips import Desk, Limits
from minirlaif.app.talks import Talks
from minirlaif.app.votes import Ballot, Vote
from minirlaif.app.worker import Worker
from minirlaif.data import load_preferences
from minirlaif.records import UserError
from minirlaif.talk import Options

OPTIONS = Options(0.0, 1.0, 16, 0)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Talks]:
    (tmp_path / "uploads").mkdir()
    worker, desk = Worker(FakeEngine), Desk(tmp_path / "uploads", Limits(1, 60.0, 100 * 100), seconds=10.0)
    yield Talks(worker, desk, Ballot(tmp_path / "votes"))
    desk.close()
    worker.close()


def brought(room: Talks, name: str, folder: str = "u" * 64) -> str:
    (room.desk.folder / folder).mkdir(exist_ok=True)
    return str(write_clip(room.desk.folder / folder / name))


def test_the_same_clip_under_two_names_is_kept_for_whoever_stays(room: Talks) -> None:
    """Uploads of the same content share a folder."""
    one, two = room.session("one"), room.session("two")
    room.open(one, brought(room, "alice.mp4"), 4)
    room.open(two, brought(room, "bob.mp4"), 4)
    room.leave("one")
    assert two.clip is not None and two.clip.is_file()
    room.open(two, brought(room, "renamed.mp4"), 4)  # one page, the same content again
    assert two.notice == "" and two.clip.name == "renamed.mp4" and two.clip.is_file()
    room.leave("two")
    assert list(room.desk.folder.iterdir()) == []


def test_a_question_waits_for_its_clip(room: Talks) -> None:
    session, path = room.session("me"), brought(room, "good.mp4")
    room.expect(session)
    later = threading.Timer(0.5, lambda: room.open(session, path, 4))
    later.start()
    assert room.begin(session, "what?") and session.notice == ""
    later.join()


def test_a_picture_of_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Limits(1, 60.0, 100 * 100), seconds=10.0)
    (tmp_path / "u").mkdir()
    screen = b"GIF89a" + (8000).to_bytes(2, "little") * 2 + b"\xf0\0\0" + b"\0\0\0\xff\xff\xff"
    image = b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    (tmp_path / "u" / "huge.gif").write_bytes(screen + image * 3 + b"\x3b")
    began = time.monotonic()
    with pytest.raises(UserError, match="^a frame has 64,000,000 pixels, 10,000 are allowed"):
        desk.examine(tmp_path / "u" / "huge.gif")
    desk.close()
    assert time.monotonic() - began < 60


def test_both_answers_of_a_pair_show_at_once(room: Talks) -> None:
    """The time to a first word would tell which model had read the clip before."""
    session = room.session("me")
    room.open(session, brought(room, "good.mp4"), 4)
    assert room.begin_duel(session, "a slow one")
    pair = session.duel
    seen = {tuple(bool(answer.text) for answer in pair.answers) for _ in room.fight(session, OPTIONS)}
    assert seen == {(False, False), (True, True)} and pair.ready


def test_a_judge_that_failed_is_not_said_to_be_missing(room: Talks, monkeypatch: pytest.MonkeyPatch) -> None:
    from minirlaif.app import views

    def broken(*_: Any) -> Any:
        raise UserError("out of tune")

    monkeypatch.setattr(FakeEngine, "judge", broken)
    session = room.session("me")
    room.open(session, brought(room, "good.mp4"), 4)
    room.begin_duel(session, "who?")
    for _ in room.fight(session, OPTIONS):
        pass
    room.vote(session, "A", OPTIONS)
    drawn = views.duel(session, True)
    assert "The judge could not be asked." in drawn and "no judge" not in drawn


@pytest.mark.parametrize("letter", ["\ud83d", "a\udc00b"])
def test_half_a_character_is_refused_in_words(room: Talks, letter: str) -> None:
    session = room.session("me")
    room.open(session, brought(room, "good.mp4"), 4)
    assert not room.begin(session, letter) and "half a character" in session.notice


def test_a_question_that_never_came_to_the_model_is_given_up(room: Talks) -> None:
    session = room.session("me")
    room.open(session, brought(room, "good.mp4"), 4)
    assert room.begin(session, "what?")
    room.give_up(session)
    assert not session.busy and "ask again" in session.turns[0].note
    assert room.begin(session, "and now?")


def test_votes_with_odd_line_ends_and_torn_rows_stay_readable(room: Talks, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    room.ballot.add(Vote(clip, "what\u2028happens?", ("x", "y"), ("rlaif", "sft"), "A"))
    room.ballot.add(Vote(clip, "plain?", ("x", "y"), ("rlaif", "sft"), "B"))
    assert [row["prompt"] for row in room.ballot.rows()] == ["what\u2028happens?", "plain?"]
    with room.ballot.file.open("a") as file:
        file.write('{"id": "vote-1", "vid')
    room.ballot.add(Vote(clip, "third?", ("x", "y"), ("rlaif", "sft"), "A"))
    assert [row.question for row in load_preferences(str(room.ballot.file))][1:] == ["plain?", "third?"]


def test_what_broken_uploads_left_is_swept(room: Talks) -> None:
    part, fresh = room.desk.folder / "tmpabc", room.desk.folder / "tmpdef"
    for path in (part, fresh):
        path.write_bytes(b"x")
    os.utime(part, (time.time() - 4000,) * 2)
    room.sweep(3600)
    assert not part.exists() and fresh.exists()


# Over HTTP


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    talking.world_clip(folder / "good.mp4")
    return folder


@pytest.fixture(scope="module")
def unlocked(place: Path) -> Iterator[Served]:
    with serving(FakeEngine(), None, place / "none", place / "uploads2") as found:
        yield found


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
        last = page.page.locator("#chat .told .bubble").last.bounding_box()
        field = page.page.locator("#question").bounding_box()
        assert last["y"] >= box["y"] and last["y"] + last["height"] <= box["y"] + box["height"] <= field["y"] + 1
        assert page.page.evaluate("getComputedStyle(document.querySelector('#chat')).overflowY") == "auto"
        page.close()
