"""Conversations and comparisons of many pages over one engine."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minirlaif.app import conversations, uploads, views
from minirlaif.app.conversations import ChatService, Session
from minirlaif.app.engine_thread import EngineThread
from minirlaif.app.uploads import UploadStore
from minirlaif.errors import UserError
from minirlaif.inference.engine import LoadedClip
from tests.fixtures.browser import HIDDEN, FakeEngine
from tests.fixtures.chat_service import OPTIONS, finish, opened, uploaded


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


def test_no_one_can_vote_where_no_folder_is(engine_thread: EngineThread, upload_store: UploadStore) -> None:
    service = ChatService(engine_thread, upload_store, None)
    session = opened(service)
    service.begin_side_by_side(session, "who?")
    finish(service.answer_both(session, OPTIONS))
    service.vote(session, "A", OPTIONS)
    assert session.side_by_side is not None and session.side_by_side.vote == "A"


def test_the_same_clip_under_two_names_is_kept_for_whoever_stays(service: ChatService) -> None:
    """Uploads of the same content share a folder."""
    one, two = service.session("one"), service.session("two")
    service.open_clip(one, uploaded(service.upload_store, "alice.mp4"), 4)
    service.open_clip(two, uploaded(service.upload_store, "bob.mp4"), 4)
    service.close_session("one")
    assert two.clip is not None and two.clip.is_file()
    service.open_clip(two, uploaded(service.upload_store, "renamed.mp4"), 4)  # one page, the same content again
    assert two.notice == "" and two.clip.name == "renamed.mp4" and two.clip.is_file()
    service.close_session("two")
    assert list(service.upload_store.folder.iterdir()) == []


def test_a_clip_that_is_on_its_way_is_not_taken_along(service: ChatService) -> None:
    """Somebody with the same clip leaves before it is opened."""
    one, two = service.session("one"), service.session("two")
    service.open_clip(one, uploaded(service.upload_store, "good.mp4"), 4)
    path = uploaded(service.upload_store, "good.mp4")
    service.expect_upload(two, path)
    service.close_session("one")
    service.open_clip(two, path, 4)
    assert two.notice == "" and two.loaded is not None
    service.close_session("two")
    assert list(service.upload_store.folder.iterdir()) == []


def test_each_upload_is_held_until_it_was_opened_or_refused(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    store, kept = service.upload_store, service.session("kept")
    bad = Path(uploaded(store, "bad.mp4"))
    bad.write_bytes(b"no clip" * 50)
    store.hold(bad)
    service.open_clip(kept, str(bad), 4)
    assert kept.notice and not bad.parent.exists()
    path = uploaded(store, "good.mp4")
    for name in ("one", "two"):
        store.hold(Path(path))
        service.open_clip(service.session(name), path, 4)
    store.hold(Path(path))  # by somebody who never opens it
    service.open_clip(service.session("one"), path, 6)  # another number of frames is no other upload
    for name in ("one", "two"):
        service.close_session(name)
    assert Path(path).is_file()
    monkeypatch.setattr(uploads, "HOLD_SECONDS", 0.0)
    service.sweep(0.0)
    assert not Path(path).exists() and not store._held


def test_a_question_waits_for_its_clip(service: ChatService) -> None:
    session, path = service.session("me"), uploaded(service.upload_store, "good.mp4")
    service.expect_upload(session, path)
    later = threading.Timer(0.5, lambda: service.open_clip(session, path, 4))
    later.start()
    asyncio.run(service.clip_or_time(session))
    assert service.begin(session, "what?") and session.notice == ""
    later.join()


def test_both_answers_of_a_pair_show_at_once(service: ChatService) -> None:
    """The time to a first word would tell which model had read the clip before."""
    session = service.session("me")
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
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
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
    service.begin_side_by_side(session, "who?")
    for _ in service.answer_both(session, OPTIONS):
        pass
    service.vote(session, "A", OPTIONS)
    drawn = views.side_by_side(session, True)
    assert "The judge failed" in drawn and "no judge" not in drawn


@pytest.mark.parametrize("letter", ["\ud83d", "a\udc00b"])
def test_half_a_character_is_refused_in_words(service: ChatService, letter: str) -> None:
    session = service.session("me")
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
    assert not service.begin(session, letter) and "unpaired surrogate" in session.notice


def test_a_question_that_never_came_to_the_model_is_given_up(service: ChatService) -> None:
    session = service.session("me")
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
    assert service.begin(session, "what?")
    service.abandon(session)
    assert not session.busy and "ask again" in session.turns[0].note
    assert service.begin(session, "and now?")


def test_giving_up_one_question_leaves_other_answers_alone(service: ChatService) -> None:
    session = service.session("me")
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
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
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
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
    service.open_clip(session, uploaded(service.upload_store, "good.mp4"), 4)
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
