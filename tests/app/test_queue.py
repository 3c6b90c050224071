"""The page while the model is busy, and while a run goes on."""

from __future__ import annotations

from pathlib import Path

import gradio
import pytest

from minirlaif.app import tabs
from tests.fixtures import chat_run
from tests.fixtures.browser import FakeEngine, Page, Served, chromium, serving
from tests.fixtures.clips import write_clip


def test_a_long_conversation_scrolls_in_its_box(unlocked: Served, place: Path) -> None:
    with chromium() as browser:
        page = Page(browser, unlocked.address, width=1440)
        page.upload(place / "good.mp4")
        page.frames()
        for number in range(6):
            page.ask(f"question {number}")
            page.page.wait_for_selector(f"#chat .copy >> nth={number}")
            page.wait_until_idle()
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
        page.page.wait_for_selector("#progress :text('ppo is running')", timeout=120_000)
        page.close()
