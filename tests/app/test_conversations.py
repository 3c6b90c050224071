"""The app without its page: the engine's thread, clips from strangers, conversations, votes, and what is read of runs."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minirlaif.app import run_pages, run_reader, views
from minirlaif.app.conversations import ChatService, Session
from minirlaif.app.engine_thread import EngineThread
from minirlaif.app.uploads import Limits, UploadStore, check_content
from minirlaif.app.votes import Agreement, Vote, VoteStore, agreement
from minirlaif.data.dataset import load_preferences
from minirlaif.errors import UserError
from minirlaif.inference.engine import LoadedClip, SamplingParams
from minirlaif.runs.run import Run
from minirlaif.video.reader import ClipReader
from tests.fixtures import chat_run, tiny
from tests.fixtures.browser import HIDDEN, FakeEngine
from tests.fixtures.clips import write_clip

OPTIONS = SamplingParams(0.0, 1.0, 16, 0)


@pytest.fixture
def engine_thread() -> Iterator[EngineThread]:
    made = EngineThread(FakeEngine)
    yield made
    made.close()


@pytest.fixture
def upload_store(tmp_path: Path) -> Iterator[UploadStore]:
    (tmp_path / "uploads").mkdir()
    made = UploadStore(tmp_path / "uploads", Limits(1, 60.0, 100 * 100), seconds=10.0)
    yield made
    made.close()


def uploaded(upload_store: UploadStore, name: str = "clip.mp4", upload: str = "u" * 64, **how: Any) -> str:
    """A clip where an upload would lie."""
    folder = upload_store.folder / upload
    folder.mkdir(exist_ok=True)
    return str(write_clip(folder / name, **how))


@pytest.fixture
def service(engine_thread: EngineThread, upload_store: UploadStore, tmp_path: Path) -> ChatService:
    return ChatService(engine_thread, upload_store, VoteStore(tmp_path / "votes"))


def opened(service: ChatService, name: str = "me") -> Session:
    session = service.session(name)
    service.open_clip(session, uploaded(service.upload_store), 4)
    assert session.loaded is not None and session.notice == ""
    return session


def finish(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


# The thread


def test_everything_happens_in_one_thread_in_order(engine_thread: EngineThread) -> None:
    names: list[str] = []
    for _ in range(3):
        engine_thread.call(lambda engine: names.append(threading.current_thread().name))
    assert names == ["engine"] * 3

    def pieces(engine: Any) -> Iterator[str]:
        for letter in "abc":
            yield letter + threading.current_thread().name

    assert list(engine_thread.stream(pieces, threading.Event())) == ["aengine", "bengine", "cengine"]


def test_errors_come_out_where_they_were_asked_for(engine_thread: EngineThread) -> None:
    def broken(engine: Any) -> Iterator[str]:
        yield "a"
        raise UserError("no")

    stream = engine_thread.stream(broken, threading.Event())
    assert next(stream) == "a"
    with pytest.raises(UserError, match="no"):
        next(stream)
    with pytest.raises(ZeroDivisionError):
        engine_thread.call(lambda engine: 1 / 0)
    assert engine_thread.call(lambda engine: 2) == 2

    def none() -> Any:
        raise UserError("no model")

    with pytest.raises(UserError, match="no model"):
        EngineThread(none)


@pytest.mark.parametrize("how", ["stop", "gone"])
def test_a_stream_that_nobody_hears_ends(engine_thread: EngineThread, how: str) -> None:
    ended = threading.Event()

    def endless(engine: Any) -> Iterator[str]:
        try:
            while True:
                yield "on"
                time.sleep(0.01)
        finally:
            ended.set()

    stop = threading.Event()
    stream: Any = engine_thread.stream(endless, stop)
    next(stream)
    if how == "stop":
        stop.set()
        assert set(stream) <= {"on"}
    else:
        stream.close()
    assert ended.wait(5) and engine_thread.call(lambda engine: True)
    assert how == "stop" or not stop.is_set()  # it was not stopped: its reader left


# Clips


HEADS = {
    "mp4": b"\0\0\0\x20ftypisom",
    "old mov": b"\0\0\0\x08wide\0\0\0\0mdat",
    "webm": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "mpg": b"\0\0\x01\xba",
    "flv": b"FLV\x01",
    "ogv": b"OggS",
    "wmv": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "gif": b"GIF89a",
    "ts": b"\x47" + bytes(187) + b"\x47" + bytes(187) + b"\x47",
}
OTHERS = {
    b"#EXTM3U\n/etc/passwd": "not a video but a playlist",
    b"ffconcat version 1.0\nfile /etc/passwd": "not a video; supported",
    b"\x89PNG\r\n\x1a\n": "not a video but a PNG image",
    b"RIFF\0\0\0\0WAVEfmt ": "not a video but a sound file",
    b"<html>": "not a video but a web page",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1": "not a video; supported",
    b"G" + bytes(500): "not a video; supported",  # one mark of a transport stream is none
}


@pytest.mark.parametrize("name", HEADS)
def test_containers_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(HEADS[name] + bytes(400))
    check_content(path, Limits())


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "the file is empty$"), (19, r"too short for a clip \(19 bytes"), (63, r"too short for a clip \(63 bytes")],
)
def test_a_file_that_is_only_the_head_of_a_video_is_refused(size: int, text: str, tmp_path: Path) -> None:
    """What a browser leaves of a recording that it had no time to write."""
    path, data = tmp_path / "clip.mp4", HEADS["mp4"] + bytes(52)
    assert len(data) == 64
    path.write_bytes(data)
    check_content(path, Limits())
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match=text):
        check_content(path, Limits())


@pytest.mark.parametrize("head", OTHERS)
def test_other_content_is_refused_before_anything_decodes_it(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(head + bytes(400))
    with pytest.raises(UserError, match=OTHERS[head]):
        check_content(path, Limits())


def test_limits_of_a_clip(upload_store: UploadStore, tmp_path: Path) -> None:
    assert upload_store.examine(uploaded(upload_store)).width == 64
    with pytest.raises(UserError, match="the clip lasts .* 60 s are allowed"):
        upload_store.examine(uploaded(upload_store, "long.mp4", times=[0.0, 100.0, 200.0], last_seconds=1.0))
    with pytest.raises(UserError, match="^a frame has 12,288 pixels, 10,000 are allowed; scale"):
        upload_store.examine(uploaded(upload_store, "wide.mp4", width=128, height=96))
    large = Path(uploaded(upload_store, "large.mp4"))
    with large.open("ab") as file:
        file.truncate(3 << 20)
    with pytest.raises(UserError, match="the file has 3 MB, 1 MB are allowed"):
        upload_store.examine(large)
    outside = write_clip(tmp_path / "outside.mp4")
    for path in (
        outside,
        upload_store.folder / "u" / ".." / ".." / "outside.mp4",
        upload_store.folder / "nothing.mp4",
        upload_store.folder,
    ):
        with pytest.raises(UserError, match="was not uploaded here"):
            upload_store.examine(path)
    link = upload_store.folder / "link.mp4"
    link.symlink_to(outside)
    with pytest.raises(UserError, match="was not uploaded here"):
        upload_store.examine(link)


HANGING = """
import time
from minirlaif.video import decode_worker
real = decode_worker.inspect
decode_worker.inspect = lambda path: time.sleep(600) if path.endswith("stuck.mp4") else real(path)
decode_worker.main()
"""


def test_a_clip_that_hangs_the_decoder_is_killed_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipReader, "command", (sys.executable, "-P", "-c", HANGING))
    upload_store = UploadStore(tmp_path, Limits(), seconds=3.0)
    hanging, good = uploaded(upload_store, "stuck.mp4"), uploaded(upload_store, "good.mp4")
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot be read: no answer within 3 seconds: the decoder hangs"):
        upload_store.examine(hanging)
    assert time.monotonic() - began < 30
    assert upload_store.examine(good).width == 64
    upload_store.close()


def test_examples_are_copies_with_a_picture(upload_store: UploadStore, tmp_path: Path) -> None:
    sources = [write_clip(tmp_path / f"{number}.mp4") for number in range(2)]
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 20)
    result = upload_store.examples([tmp_path / "bad.mp4", *sources, *sources], wanted=3)
    assert [clip.name for clip, _ in result] == ["0.mp4", "1.mp4", "0.mp4"]
    assert all(np.asarray(Image.open(picture)).shape == (96, 96, 3) for _, picture in result)
    assert all(clip.is_relative_to(upload_store.folder) for clip, _ in result)
    upload_store.drop(result[0][0])
    upload_store.sweep([], 0.0)
    assert result[0][0].is_file()  # examples stay


# Conversations


def test_another_number_of_frames_goes_on_with_the_conversation(service: ChatService) -> None:
    session = opened(service)
    service.begin(session, "one")
    finish(service.answer(session, OPTIONS, "rlaif"))
    service.open_clip(session, str(session.clip), 8)
    assert session.loaded is not None and len(session.loaded.times) == 8 and len(session.turns) == 1
    service.open_clip(session, uploaded(service.upload_store, "other.mp4", upload="v" * 64), 8)
    assert session.turns == [] and not (service.upload_store.folder / ("u" * 64)).exists()
    service.open_clip(session, None, 8)
    assert session.clip is None and list(service.upload_store.folder.iterdir()) == []


def test_a_clip_is_kept_while_another_page_shows_it(service: ChatService) -> None:
    one, two = opened(service, "one"), opened(service, "two")
    assert one.clip == two.clip and one.clip is not None
    service.close_session("one")
    assert one.clip is None and two.clip is not None and two.clip.is_file()
    service.close_session("two")
    assert list(service.upload_store.folder.iterdir()) == []


def test_stale_uploads_go_when_somebody_leaves(service: ChatService) -> None:
    """An upload that no page ever opened; nothing but the pages' coming and going cleans up behind it."""
    opened(service)
    old, new = uploaded(service.upload_store, upload="o" * 64), uploaded(service.upload_store, upload="n" * 64)
    os.utime(Path(old).parent, (time.time() - 4000,) * 2)
    service.close_session("nobody here")
    assert Path(old).is_file()
    service.close_session("me")
    assert not Path(old).parent.exists()
    assert Path(new).is_file()  # its page may be about to open it


def test_what_cannot_be_asked(service: ChatService) -> None:
    session = service.session("me")
    assert not service.begin(session, "what?") and "Choose a clip first" in session.notice
    session = opened(service)
    assert not service.begin(session, " \n") and "Type a question" in session.notice
    assert not service.begin(session, "x" * 5000) and "the limit is 4000" in session.notice
    assert service.begin(session, "what?") and session.notice == ""
    assert not service.begin(session, "again?") and len(session.turns) == 1  # while the first one waits


def test_stopping_before_the_answer_begins(service: ChatService) -> None:
    session = opened(service)
    service.begin(session, "what?")
    service.stop_job(session)
    finish(service.answer(session, OPTIONS, "rlaif"))  # its turn comes all the same
    assert (session.turns[0].text, session.turns[0].note) == ("", "stopped") and not session.busy
    assert service.engine.requests == []  # type: ignore[attr-defined]
    assert service.begin(session, "next?")


def test_a_page_that_goes_away_in_the_middle_frees_the_model(service: ChatService) -> None:
    session = opened(service)
    service.begin(session, "a slow one")
    steps = service.answer(session, OPTIONS, "rlaif")
    for _ in range(3):
        next(steps)
    service.close_session("me")
    steps.close()  # type: ignore[attr-defined]
    began = time.monotonic()
    assert service.engine_thread.call(lambda engine: True) and time.monotonic() - began < 2
    assert not session.busy


def test_clearing_stops_the_answer_in_progress(service: ChatService) -> None:
    session = opened(service)
    service.begin(session, "a slow one")
    steps, (choices,) = service.answer(session, OPTIONS, "rlaif"), session.turns
    for _ in range(4):
        next(steps)
    service.clear(session)
    finish(steps)
    assert "word1" in choices.text and "word39" not in choices.text  # of 40 pieces
    assert session.turns == [] and session.clip is not None
    service.begin(session, "next?")
    finish(service.answer(session, OPTIONS, "rlaif"))
    assert [turn.text for turn in session.turns] == ["rlaif heard: next?"]
    assert service.engine.requests[-1][2] == ()  # type: ignore[attr-defined]  # nothing is remembered


def test_who_is_a_is_drawn(service: ChatService) -> None:
    session, firsts = opened(service), []
    for _ in range(40):
        assert service.begin_side_by_side(session, "who?")
        assert session.side_by_side is not None
        firsts.append(session.side_by_side.answers[0].model)
        service.stop_job(session)
    assert 5 < firsts.count("rlaif") < 35  # of 40 fair draws; missed once in a million
    assert {answer.model for answer in session.side_by_side.answers} == {"rlaif", "sft"}


def test_both_models_draw_with_one_seed(service: ChatService) -> None:
    """Else one of them may be lucky; the next pair has another seed, so that asking again answers anew."""
    session, seeds = opened(service), []
    for _ in range(3):
        service.begin_side_by_side(session, "who?")
        finish(service.answer_both(session, OPTIONS))
        request = service.engine.requests[-2:]  # type: ignore[attr-defined]
        assert {model for _, model, _, _ in request} == {"rlaif", "sft"}
        assert request[0][3] == request[1][3]  # the same options, the seed among them
        seeds.append(request[0][3].seed)
        service.vote(session, "A", OPTIONS)
    assert len(set(seeds)) == 3
    assert service.vote_store is not None and [row["seed"] for row in service.vote_store.rows()] == seeds


def blind(service: ChatService) -> Session:
    """A page with a pair to vote on, whose answers do not say who gave them."""
    session = opened(service)
    service.begin_side_by_side(session, "a blind one")
    return session


def test_nothing_tells_who_is_who_before_the_vote(service: ChatService) -> None:
    """In no class, attribute or text, at no step: whoever looks at the page's source votes blind as well."""
    session = blind(service)
    drawn = [views.side_by_side(session, True)]
    drawn += [views.side_by_side(session, True) for _ in service.answer_both(session, OPTIONS)]
    assert session.side_by_side is not None and session.side_by_side.ready and session.side_by_side.verdict is not None
    assert session.side_by_side.answers[0].score is not None and len(drawn) > 5
    assert "one thing happens" in drawn[-1] and "another thing happens" in drawn[-1]
    assert [HIDDEN.findall(each) for each in drawn] == [[]] * len(drawn)
    service.vote(session, "tie", OPTIONS)
    text = views.side_by_side(session, True)
    assert set(HIDDEN.findall(text)) >= {"rlaif", "RLAIF", "SFT", "sft", "reward", "judge chose"}


@pytest.mark.parametrize("choice", ["aligned", "other", "tie"])
def test_the_judge_is_said_to_agree_when_it_does(service: ChatService, choice: str) -> None:
    """The judge of the tests is for the aligned model."""
    session = blind(service)
    finish(service.answer_both(session, OPTIONS))
    assert session.side_by_side is not None
    aligned = "AB"[[answer.model for answer in session.side_by_side.answers].index("rlaif")]
    service.vote(session, {"aligned": aligned, "other": "AB".replace(aligned, "")}.get(choice, choice), OPTIONS)
    text = re.sub("<[^>]*>", "", views.side_by_side(session, True))
    agrees = "agrees" if choice == "aligned" else "disagrees"
    assert f"The judge chose Answer {aligned} and {agrees} with you (margin 0.75)." in text


def test_one_vote_a_pair_and_none_on_equals(service: ChatService) -> None:
    session = opened(service)
    service.begin_side_by_side(session, "who?")
    service.vote(session, "A", OPTIONS)  # too early
    finish(service.answer_both(session, OPTIONS))
    assert session.side_by_side is not None and session.side_by_side.ready and session.side_by_side.verdict is not None
    service.vote(session, "maybe", OPTIONS)
    service.vote(session, "tie", OPTIONS)
    service.vote(session, "A", OPTIONS)
    assert service.vote_store is not None and [row["preference"] for row in service.vote_store.rows()] == ["tie"]
    (row,) = service.vote_store.rows()
    aligned = [row["model_1"], row["model_2"]].index("rlaif") + 1
    assert (row["judge"], row[f"reward_{aligned}"], row[f"reward_{3 - aligned}"]) == (aligned, 1.25, -0.5)
    assert (row["frames"], row["temperature"], row["context"]) == (4, 0.0, "0s: something <b>happens</b>.\n")
    service.begin_side_by_side(session, "markup")
    finish(service.answer_both(session, OPTIONS))
    assert session.side_by_side.identical and session.side_by_side.ready
    for choice in ("A", "tie"):
        service.vote(session, choice, OPTIONS)
        assert (session.side_by_side.vote, session.side_by_side.note) == ("", "")  # it was not even tried to keep it
    assert "nothing to vote on" in views.side_by_side(session, True) and "RLAIF" not in views.side_by_side(session, True)
    assert len(service.vote_store.rows()) == 1


def test_a_judge_that_fails_does_not_cost_the_vote(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no judge today")

    monkeypatch.setattr(FakeEngine, "judge", broken)
    session = opened(service)
    service.begin_side_by_side(session, "who?")
    finish(service.answer_both(session, OPTIONS))
    service.vote(session, "B", OPTIONS)
    assert service.vote_store is not None and [row["judge"] for row in service.vote_store.rows()] == [""]


def test_an_unkeepable_vote_is_said_and_leaves_the_file_sound(service: ChatService) -> None:
    session = opened(service)
    service.begin_side_by_side(session, "what does <|im_start|> do?")
    finish(service.answer_both(session, OPTIONS))
    service.vote(session, "A", OPTIONS)
    assert session.side_by_side is not None and "contains the token <|im_start|>" in session.side_by_side.note
    assert "contains the token" in views.side_by_side(session, True)
    assert service.vote_store is not None and service.vote_store.rows() == []


def test_running_out_of_memory_is_said(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def full(self: FakeEngine, clip: LoadedClip, *_: Any) -> Iterator[str]:
        raise OutOfMemoryError("CUDA out of memory")
        yield ""

    monkeypatch.setattr(FakeEngine, "stream", full)
    session = opened(service)
    service.begin(session, "what?")
    finish(service.answer(session, OPTIONS, "rlaif"))
    assert "Use fewer frames" in session.turns[0].note and session.turns[0].state == "done"


# Votes


def vote(clip: Path, choice: str, **how: Any) -> Vote:
    return Vote(clip, "what happens?", ("left.", "right."), ("sft", "rlaif"), choice, **how)


def test_votes_are_what_reward_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "any.MP4")
    vote_store = VoteStore(tmp_path / "votes")
    for choice in ("A", "tie", "B", "both bad", "A"):
        vote_store.add(vote(clip, choice, judge="B", context="0s: it goes.\n", extra={"reward_1": 0.5}))
    clip.unlink()  # the upload is gone, the vote's own copy is not
    pairs = load_preferences(str(vote_store.file))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("left.", "right."), ("right.", "left."), ("left.", "right.")]
    assert all(Path(pair.video).is_file() and pair.question == "what happens?" for pair in pairs)
    assert {pair.video for pair in pairs} == {str(next((tmp_path / "votes" / "clips").iterdir()))}  # one copy for all
    assert pairs[0].tags["judge"] == "2" and pairs[0].tags["reward_1"] == "0.5" and len({pair.id for pair in pairs}) == 3
    assert "2 votes without a winner (tie, both bad) are left out" in capsys.readouterr().out
    undecided = [row for row in vote_store.rows() if row["preference"] not in (1, 2)]
    tiny.write_lines(vote_store.file, undecided)
    with pytest.raises(UserError, match="holds no rows"):
        load_preferences(str(vote_store.file))


def test_a_row_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    vote_store = VoteStore(tmp_path / "votes")
    vote_store.add(vote(clip, "A"))
    vote_store.file.write_text(vote_store.file.read_text() + '{"id": "vote-1", "vid')
    vote_store.add(vote(clip, "B"))
    assert [row["preference"] for row in vote_store.rows()] == [1, 2]


def test_agreement_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"preference": 1, "model_1": "rlaif", "model_2": "sft", "judge": 1},
        {"preference": 2, "model_1": "rlaif", "model_2": "sft", "judge": 1},
        {"preference": 2, "model_1": "sft", "model_2": "rlaif", "judge": 2},
        {"preference": 1, "model_1": "rlaif", "model_2": "sft", "judge": "tie"},
        {"preference": "tie", "model_1": "rlaif", "model_2": "sft", "judge": 1},
        {"preference": "both bad", "model_1": "rlaif", "model_2": "sft", "judge": ""},
    ]
    counts = agreement(rows)
    assert counts == Agreement(votes=6, wins=3, losses=1, ties=1, bad=1, agreed=2, both_decided=3)
    low, high = counts.win_interval or (0, 0)
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson 1927 for 3 of 4
    text = views.votes(counts, "v.jsonl")
    assert "6 votes: 3 for RLAIF, 1 for SFT, 1 tied, 1 both bad" in text and "75.0" in text and "66.7" in text
    assert agreement([]).win_interval is None and "No votes yet" in views.votes(agreement([]), "")


def test_votes_in_which_people_and_the_judge_differ() -> None:
    choices: list[tuple[Any, Any]] = [(1, 1), (1, 2), ("tie", "tie"), ("tie", 1), (2, "disagree"), ("both bad", ""), (2, 2)]
    rows = [
        {"prompt": f"question {number}?", "preference": vote, "judge": judge, "output_1": "x", "output_2": "y"}
        for number, (vote, judge) in enumerate(choices)
    ]

    def shown(only_other: bool, **how: int) -> list[int]:
        return [int(number) for number in re.findall(r"question (\d)\?", run_pages.vote_cards(rows, only_other, **how))]

    assert shown(False) == [6, 5, 4, 3, 2, 1, 0]  # the last one first
    assert shown(True) == [4, 3, 1]  # not the one that the judge was never asked about
    assert shown(True, most=2) == [4, 3] and shown(False, most=2) == [6, 5]
    assert "None." in run_pages.vote_cards(rows[:1], True) and run_pages.vote_cards([], True) == ""


# Runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    clip = chat_run.world_clip(folder / "good.mp4")
    chat_run.add_stage_outputs(chat_run.run_of(folder / "runs" / "a"), clip)
    return folder / "runs"


def test_the_newest_run_that_can_talk(finished: Path, tmp_path: Path) -> None:
    assert run_reader.newest_run(tmp_path) is None and run_reader.runs(tmp_path / "none") == []
    chat_run.run_of(tmp_path / "sft", aligned=False)
    only = run_reader.newest_run(tmp_path)
    assert only is not None and only.root.name == "sft"
    for name in ("old", "new"):
        shutil.copytree(finished / "a", tmp_path / name)
    os.utime(tmp_path / "old" / "ppo" / "manifest.json", (1000, 1000))
    result = run_reader.newest_run(tmp_path)
    assert result is not None and result.root.name == "new"  # not the one without ppo, though it is newer


def test_a_stage_that_wrote_lately_is_at_work(finished: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished / "a", tmp_path / "a"))
    assert run_reader.running_stage(run) == ""
    file = chat_run.begin_ppo(run, 3)
    assert run_reader.running_stage(run) == "ppo" and "step 3 of 30" in run_pages.progress(run)
    with file.open("a") as more:
        more.write('{"step": 4, "sco')  # in the middle of a line
    assert "step 3 of 30" in run_pages.progress(run)
    os.utime(file, (time.time() - 130,) * 2)
    assert run_reader.running_stage(run) == "ppo" and "ppo is running" in run_pages.progress(
        run
    )  # a long step: states come every 120 s
    os.utime(file, (time.time() - 400,) * 2)
    assert run_reader.running_stage(run) == "" and "running" not in run_pages.progress(run)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("the two orders disagree", [1, 4]),
        ("letter readout: the two orders disagree", [2]),
        ("context changed the verdict", [1, 2, 4]),
        ("the reward model disagrees", [0]),
        ("tie", [3]),
        ("invalid", [4]),
        ("decided", [0, 2]),
    ],
)
def test_filters_of_verdicts(finished: Path, wanted: str, numbers: list[int]) -> None:
    result = run_reader.verdicts(Run(finished / "a"), wanted)
    assert [row["question"] for row in result] == [f"question {number}?" for number in numbers]
    drawn, count = run_pages.verdict(Run(finished / "a"), wanted, 99)  # past the end: the last one
    assert count == len(numbers) and f"question {numbers[-1]}?" in drawn
    assert set(run_reader.VERDICT_FILTERS) >= {wanted} and len(run_reader.VERDICT_FILTERS) == 9


def test_frames_are_found_in_a_run_that_was_moved(finished: Path, tmp_path: Path) -> None:
    moved = Run(shutil.copytree(finished / "a", tmp_path / "moved"))
    assert run_reader.strip(moved, "../world/clip.mp4", 12)[:2] == b"\xff\xd8"  # a JPEG
    assert run_reader.strip(moved, "../world/clip.mp4", 11) == b""
    assert run_reader.strip(moved, "../world/none.mp4", 12) == b""
    (moved.root / "cache" / "features.sqlite").write_bytes(b"no database at all")
    assert run_reader.strip(moved, "../world/clip.mp4", 12) == b""
    assert "no longer in the run" in run_pages.verdict(moved, "all", 1)[0]


def test_pages_about_runs_that_lack_something(finished: Path, tmp_path: Path) -> None:
    bare = Run(tmp_path / "bare")
    bare.root.mkdir()
    (bare.root / "config.yaml").write_text("model: {base: nonsense}\nvideo: [")
    assert "missing" in run_pages.progress(bare) and "No stage has logged" in run_pages.curves(bare)
    assert "has not finished" in run_pages.gallery(bare, "all", 1)[0] and run_pages.verdict(bare, "all", 1)[1] == 0
    for made in (run_pages.progress(None), run_pages.gallery(None, "all", 1)[0], run_pages.verdict(None, "all", 1)[0]):
        assert "python -m minirlaif run --config configs/tiny.yaml --run tiny" in made
    run = Run(finished / "a")
    assert run_pages.gallery(run, "all", 99)[1] == 2
    assert "Right after SFT, wrong after RLAIF" in run_pages.gallery(run, "all", 1)[0]


def test_examples_suit_the_run(finished: Path, tmp_path: Path) -> None:
    run = Run(finished / "a")
    assert run_reader.example_clips(run) == [finished / "a" / "world" / "clip.mp4"]
    assert run_reader.example_questions(run) == ["test 0?"]  # one of each kind
    assert "What happens first?" in run_reader.example_questions(None)
    assert all(clip.suffix == ".mp4" and clip.is_file() for clip in run_reader.example_clips(None)) and run_reader.example_clips(
        None
    )


def test_many_frames_of_any_shape_are_drawn() -> None:
    pixels = np.zeros((20, 300, 400, 3), np.uint8)
    drawn = views.strip(LoadedClip("x", 60.0, tuple(float(n) for n in range(20)), pixels, 2.5, "k"), "")
    assert drawn.count("<img") == 20 and "image/jpeg" in drawn and "aspect-ratio:2.5" in drawn and "19.0 s" in drawn
    assert len(drawn) < 60_000  # not the whole frames


def test_no_one_can_vote_where_no_folder_is(engine_thread: EngineThread, upload_store: UploadStore) -> None:
    service = ChatService(engine_thread, upload_store, None)
    session = opened(service)
    service.begin_side_by_side(session, "who?")
    finish(service.answer_both(session, OPTIONS))
    service.vote(session, "A", OPTIONS)
    assert session.side_by_side is not None and session.side_by_side.vote == "A"
