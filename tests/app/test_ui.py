"""The app's page, driven in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minirlaif.data.dataset import load_preferences, load_samples
from minirlaif.feedback.readout import judge_of_run
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.inference.hf_engine import HfEngine
from minirlaif.runs.run import Run
from tests.fixtures import chat_run, tiny
from tests.fixtures.browser import HIDDEN, FakeEngine, Page, Served, chromium, serving, wait_for
from tests.fixtures.clips import picture, write_clip

FOLDER = "served"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as result:
        yield result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, good and bad ones, and a run made by hand."""
    folder = tmp_path_factory.mktemp("place")
    chat_run.world_clip(folder / "good.mp4")
    chat_run.world_clip(folder / "other.mp4", chat_run.TWO[::-1], seed=3)
    (folder / "empty.mp4").touch()
    Image.fromarray(picture(1)).save(folder / "photo.png")
    shutil.copyfile(folder / "photo.png", folder / "photo.mp4")
    (folder / "playlist.mp4").write_text("#EXTM3U\n" + "#EXTINF:1,\n/etc/passwd\n" * 9)
    (folder / "broken.mp4").write_bytes((folder / "good.mp4").read_bytes()[:900])
    write_clip(folder / "lengthy.mp4", [0.0, 100.0, 200.0], last_seconds=1.0)
    chat_run.add_stage_outputs(chat_run.run_of(folder / "runs" / "a"), folder / "good.mp4")
    return folder


@pytest.fixture(scope="module")
def fake(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, FakeEngine]]:
    """The page over a fake engine; clips may last 60 s."""
    engine = FakeEngine()
    folder = tmp_path_factory.mktemp("fake")
    with serving(engine, None, place / "none", folder / FOLDER, "--max-seconds", "60") as served:
        served.service.vote_store = chat_run.vote_store(folder / "votes")
        yield served, engine


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Page]]:
    """Open pages; they are closed after the test, and none of them may have asked elsewhere or failed in a script."""
    pages: list[Page] = []

    def open_page(address: str, **how: Any) -> Page:
        pages.append(Page(browser, address, **how))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()
    assert [problem for page in pages for problem in page.problems] == []


GROWS = """() => { window.seen = new Set(); new MutationObserver(() => {
    const answers = document.querySelector('#chat .answer .bubble'); if (answers) window.seen.add(answers.innerText.trim());
}).observe(document.querySelector('#chat'), {subtree: true, childList: true, characterData: true}); }"""


def from_a_clip_to_a_vote(page: Page, place: Path, counters: Callable[[], dict[str, int]], frames: int, votes: Path) -> None:
    """Upload, frames, a streamed answer, a second question without a second encode, a comparison, a vote that `reward` reads."""
    page.upload(place / "good.mp4")
    assert page.frames() == frames
    assert "32 × 32 pixels" in page.text("#strip") and page.page.locator("#strip figcaption").all_inner_texts()[0].endswith(" s")
    page.page.evaluate(GROWS)
    page.ask("describe the video.")
    page.page.wait_for_selector("#chat .copy")
    page.wait_until_idle()
    assert len(page.page.evaluate("[...window.seen]")) > 3  # it grew on the page
    assert page.answers()[0].startswith("first a")
    first = counters()
    page.ask("how many things happen?")
    page.page.wait_for_selector("#chat .copy >> nth=1")
    page.wait_until_idle()
    second = counters()
    assert (second["decodes"], second["encodes"]) == (first["decodes"], first["encodes"]) and first["encodes"] >= 1
    assert second["reused_tokens"] - first["reused_tokens"] >= frames  # the frames were not read again
    assert len(page.answers()) == 2 and page.answers()[1]

    page.tab("compare")
    page.page.fill("#compare-question textarea", "describe the video.")
    page.page.press("#compare-question textarea", "Enter")
    page.page.wait_for_selector("#vote-A:not([disabled])")
    text = page.page.inner_html("#side-by-side")
    assert text.count("Answer ") == 2 and HIDDEN.findall(text) == []  # who is who is hidden, in classes and attributes too
    page.page.click("#vote-A")
    page.page.wait_for_selector("#vote-B[disabled]")
    wait_for(lambda: "You chose Answer A" in page.text("#side-by-side"))
    text = page.text("#side-by-side")
    assert "RLAIF" in text and "SFT" in text
    (vote,) = load_preferences(str(votes / "votes.jsonl"))
    (row,) = tiny.read_lines(votes / "votes.jsonl")
    assert vote.question == "describe the video." and (vote.chosen, vote.rejected) == (row["output_1"], row["output_2"])
    assert Path(vote.video).read_bytes() == (place / "good.mp4").read_bytes()
    assert {row["model_1"], row["model_2"]} == {"rlaif", "sft"} and row["frames"] == frames
    page.tab("votes")
    page.page.wait_for_selector("#vote-list .card")
    assert "1 vote:" in page.text("#agreement")


def test_from_a_clip_to_a_vote(place: Path, opened: Callable[..., Page], tmp_path: Path) -> None:
    run = Run(shutil.copytree(place / "runs" / "a", tmp_path / "runs" / "a"))
    with serving(lambda: HfEngine(run, judge_of_run), run, tmp_path / "runs", tmp_path / FOLDER) as served:
        page, engine = opened(served.address), served.service.engine
        from_a_clip_to_a_vote(page, place, lambda: dict(engine.counters), 12, run.root / "votes")
        page.tab("compare")
        text = page.text("#side-by-side")
        assert text.count("reward") == 2 and "The judge chose" in text and "0s: " in text
        (vote,) = load_preferences(str(run.root / "votes" / "votes.jsonl"))
        assert vote.context.startswith("0s: ") and vote.tags["judge"] in ("1", "2")
        page.close()
        wait_for(lambda: uploads(served.folder) == [])
    assert not (tmp_path / FOLDER).exists()


@contextmanager
def without_torch(folder: Path, *words: str) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """The app over exported files in a process of its own: its address, and what it says to a line on stdin. At the end it
    has not imported torch, and its folder of uploads is gone."""
    program = Path(__file__).parents[1] / "fixtures" / "serve_without_torch.py"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder / "temp")}
    (folder / "temp").mkdir()
    with subprocess.Popen(
        [sys.executable, str(program), "--port", "0", "--runs-dir", str(folder / "none"), *words],
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        lines, text = child.stdin, child.stdout

        def query(question: str) -> Any:
            lines.write(question + "\n")
            lines.flush()
            return json.loads(text.readline())

        try:
            yield text.readline().strip().removeprefix("open ").split()[0].rstrip("/"), query
            assert query("modules") == []
        finally:
            child.terminate()
        assert child.wait(120) == 0
    assert list((folder / "temp").glob("minirlaif-app-*")) == []


def test_the_same_over_exported_files_without_torch(place: Path, opened: Callable[..., Page], tmp_path: Path) -> None:
    export = tmp_path / "export"
    chat_run.exported(export)
    with without_torch(tmp_path, "--gguf", str(export)) as (address, query):
        page = opened(address)
        from_a_clip_to_a_vote(page, place, lambda: query("counters"), 4, export / "votes")
        assert "This engine has no judge" in page.text("#side-by-side")
        page.close()


def test_what_goes_wrong_over_exported_files_without_torch(place: Path, opened: Callable[..., Page], tmp_path: Path) -> None:
    """Files that are no clips, a question without a clip, one that is sent twice, Stop, and two browsers at once."""
    chat_run.exported(tmp_path / "export")
    slow, short = "slow describe the video.", "how many things happen?"
    with without_torch(tmp_path, "--gguf", str(tmp_path / "export"), "--max-seconds", "60") as (address, query):
        (folder,) = (tmp_path / "temp").glob("minirlaif-app-*")
        page = opened(address)
        page.ask(short)
        wait_for(lambda: "Choose a clip first" in page.text("#clip-notice"))
        assert page.page.input_value("#question textarea") == short  # nothing is lost
        no_clips_are_refused(page, place, folder)
        assert query("questions") == [] and query("counters")["encodes"] == 0
        page.upload(place / "good.mp4")
        assert page.frames() == 4 and page.text("#clip-notice").strip() == ""

        send_twice(page, slow)
        page.page.wait_for_selector("#chat .copy")
        page.wait_until_idle()
        (full,) = page.answers()
        assert query("questions") == [slow] and full.startswith("first a")

        page.page.click("#clear")  # so that the same answer comes again
        wait_for(lambda: page.answers() == [])
        page.ask(slow)
        page.page.wait_for_function("document.querySelector('#chat .answer .bubble')?.innerText.trim().includes(' ')")
        page.page.click("#stop")
        page.wait_until_idle()
        wait_for(lambda: query("at once") == 0, 3.0)  # the model is free, of some 5 s that its answer takes
        (stopped,) = page.answers()
        assert full.startswith(stopped) and 0 < len(stopped) < len(full) and "stopped" in page.text("#chat")
        page.ask(short)
        page.page.wait_for_selector("#chat .copy >> nth=1")
        page.wait_until_idle()
        assert page.answers()[0] == stopped and page.answers()[1]  # it did not grow any more
        assert query("questions") == [slow, slow, short]

        second = opened(address)
        second.upload(place / "other.mp4")
        second.frames()
        page.ask(slow)
        page.page.wait_for_selector("#chat [aria-busy=true]")
        second.ask(short)
        wait_for(lambda: "queue" in second.text("#chat-status"))
        assert second.text("#chat .question").strip() == short and "waiting for the model" in second.text("#chat")
        second.page.wait_for_selector("#chat .copy")
        second.wait_until_idle()
        page.wait_until_idle()
        assert len(second.answers()) == 1 and second.answers()[0] and len(page.answers()) == 3 and page.answers()[2]
        assert query("questions")[3:] == [slow, short] and query("most at once") == 1
        assert page.page.locator("#chat .ended").count() == 1 and second.page.locator("#chat .ended").count() == 0
        page.close()
        wait_for(lambda: [path.name for path in uploads(folder)] == ["other.mp4"])
        second.close()
        wait_for(lambda: uploads(folder) == [])


FIRST = """async (question) => {  // milliseconds from the question to the first word of its answer
    const box = document.querySelector('#question textarea'), before = document.querySelectorAll('#chat .answer .bubble').length;
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, question);
    box.dispatchEvent(new Event('input', {bubbles: true}));
    const began = performance.now();
    document.querySelector('#ask').click();
    return await new Promise((done) => {
        const look = () => {
            const answers = [...document.querySelectorAll('#chat .answer .bubble')];
            if (answers.length > before && answers[answers.length - 1].innerText.trim()) done(performance.now() - began);
            else requestAnimationFrame(look);
        };
        look();
    });
}"""


@pytest.mark.learning  # seconds on the clock: not beside other tests
def test_the_first_word_comes_soon_and_the_second_question_sooner(
    place: Path, opened: Callable[..., Page], tmp_path: Path
) -> None:
    """From a clip and a question to the first word, and from a second question about the clip to its first word."""
    run = Run(shutil.copytree(place / "runs" / "a", tmp_path / "runs" / "a"))
    exported = chat_run.exported(tmp_path / "export")
    for name, engine in (("run", lambda: HfEngine(run, judge_of_run)), ("gguf", lambda: GgufEngine(exported))):
        with serving(engine, run, tmp_path / "runs", tmp_path / f"served-{name}") as served:
            warm = opened(served.address)  # the first clip of all pays for what is loaded once
            warm.upload(place / "other.mp4")
            warm.frames()
            warm.page.evaluate(FIRST, "describe the video.")
            warm.wait_until_idle()
            page = opened(served.address)
            began = time.monotonic()
            page.upload(place / "good.mp4")
            page.frames()
            seen = time.monotonic() - began
            page.page.evaluate(FIRST, "describe the video.")
            first = time.monotonic() - began
            page.wait_until_idle()
            second = page.page.evaluate(FIRST, "what happens first?") / 1000
            print(f"{name}: frames after {seen:.3f} s, first word after {first:.3f} s, of the second question {second:.3f} s")
            assert first < 2 and second < first / 2
            warm.close()
            page.close()


def uploads(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "examples" not in path.parts and path.suffix != ".png"]


REJECTED = {
    "photo.mp4": "not a video but a PNG image",
    "playlist.mp4": "not a video but a playlist",
    "empty.mp4": "the file is empty",
    "broken.mp4": "cannot be read",
    "lengthy.mp4": "60 s are allowed",
}


def no_clips_are_refused(page: Page, place: Path, folder: Path) -> None:
    """Each is said in words, and nothing of it stays in the folder of uploads."""
    for name, text in REJECTED.items():
        page.upload(place / name)
        page.page.wait_for_selector("#clip-notice .notice")
        wait_for(lambda text=text: text in page.text("#clip-notice"))  # type: ignore[misc]
        assert str(folder) not in page.text("#clip-notice")
        assert page.page.locator("#clip video").count() == 0  # ready for the next one
        assert uploads(folder) == []
    page.upload(place / "photo.png")
    page.page.wait_for_selector("text=Invalid file type: photo.png")


def send_twice(page: Page, question: str) -> None:
    """A question whose button is clicked three times at once, and another one while the first is answered."""
    page.page.fill("#question textarea", question)
    page.page.evaluate("""() => { const ask = document.querySelector("#ask"); ask.click(); ask.click(); ask.click(); }""")
    page.page.wait_for_selector("#chat [aria-busy=true]")
    assert page.page.is_disabled("#ask")
    page.page.fill("#question textarea", "another")
    page.page.press("#question textarea", "Enter")


def test_files_that_are_no_clips_are_refused_in_words(
    place: Path, fake: tuple[Served, FakeEngine], opened: Callable[..., Page]
) -> None:
    served, engine = fake
    page, before = opened(served.address), len(engine.loaded)
    no_clips_are_refused(page, place, served.folder)
    assert len(engine.loaded) == before
    page.upload(place / "good.mp4")
    assert page.frames() == 4
    assert page.text("#clip-notice").strip() == ""


def test_a_question_needs_a_clip_and_words(fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]) -> None:
    served, engine = fake
    page, before = opened(served.address), len(engine.requests)
    page.ask("what happens?")
    page.page.wait_for_selector("#clip-notice .notice")
    assert "Choose a clip first" in page.text("#clip-notice")
    assert page.page.input_value("#question textarea") == "what happens?"  # nothing is lost
    page.tab("compare")
    page.page.fill("#compare-question textarea", "what happens?")
    page.page.click("#compare")
    page.page.wait_for_timeout(500)
    assert page.page.is_disabled("#vote-A")
    page.tab("chat")
    page.upload(place / "good.mp4")
    page.frames()
    page.ask("   ")
    wait_for(lambda: "Type a question" in page.text("#clip-notice"))
    assert len(engine.requests) == before


def test_asking_twice_at_once_asks_once(fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]) -> None:
    served, engine = fake
    page = opened(served.address)
    page.upload(place / "good.mp4")
    page.frames()
    before = len(engine.requests)
    send_twice(page, "a slow one")
    page.wait_until_idle()
    assert [question for question, *_ in engine.requests[before:]] == ["a slow one"]
    assert len(page.answers()) == 1 and page.answers()[0].endswith("word39")


def test_stopping_keeps_what_was_said_and_frees_the_model(
    fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]
) -> None:
    served, engine = fake
    page = opened(served.address)
    page.upload(place / "good.mp4")
    page.frames()
    page.ask("a slow one")
    page.page.wait_for_function("() => (document.querySelector('#chat .answer .bubble')?.innerText || '').includes('word3')")
    places = [page.page.locator(part).bounding_box() for part in ("#chat", "#question", "#ask", "#retry")]
    page.page.click("#stop")
    page.wait_until_idle()
    assert [page.page.locator(part).bounding_box() for part in ("#chat", "#question", "#ask", "#retry")] == places  # no jump
    (text,) = page.answers()
    assert "word3" in text and "word39" not in text and "stopped" in page.text("#chat")
    wait_for(lambda: engine.at_once == 0, 3.5)  # of some 4 s that its answer takes
    page.ask("and then?")
    page.page.wait_for_selector("#chat .chip")
    assert page.answers() == [text, "rlaif heard: and then?"]
    question, model, turns, _ = engine.requests[-1]
    assert (question, model, [turn.question for turn in turns]) == ("and then?", "rlaif", ["a slow one"])
    assert turns[0].answer.strip() == text


def test_two_browsers_wait_for_one_model(fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]) -> None:
    served, engine = fake
    first, second = opened(served.address), opened(served.address)
    for page, clip in ((first, "good.mp4"), (second, "other.mp4")):
        page.upload(place / clip)
        page.frames()
    first.ask("a slow one")
    first.page.wait_for_selector("#chat [aria-busy=true]")
    second.ask("mine")
    wait_for(lambda: "queue" in second.text("#chat-status"))
    assert second.text("#chat .question").strip() == "mine"  # it stands there while it waits
    assert "waiting for the model" in second.text("#chat")
    second.page.wait_for_selector("#chat .chip")
    assert second.answers() == ["rlaif heard: mine"]
    assert first.answers()[0].endswith("word39") and "mine" not in first.text("#chat")
    assert engine.most_at_once == 1
    third = opened(served.address)
    third.upload(place / "good.mp4")
    third.frames()
    first.ask("a slow two")
    first.page.wait_for_selector("#chat [aria-busy=true]")
    third.ask("never")
    wait_for(lambda: "queue" in third.text("#chat-status"))
    third.page.click("#stop")  # before its turn has come
    third.wait_until_idle()
    first.page.click("#stop")
    first.wait_until_idle()
    assert "never" not in [question for question, *_ in engine.requests]
    third.ask("now")
    third.page.wait_for_selector("#chat .chip")
    assert third.answers()[-1] == "rlaif heard: now"


def test_an_error_of_the_model_is_a_message(fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]) -> None:
    served, _ = fake
    page = opened(served.address)
    page.upload(place / "good.mp4")
    page.frames()
    page.ask("fail")
    page.page.wait_for_selector("#chat .ended")
    page.wait_until_idle()
    assert page.answers() == ["it begins"]
    assert "The model failed (RuntimeError)" in page.text("#chat") and "secret" not in page.text("body")
    page.ask("too long")
    page.page.wait_for_selector("#chat .ended >> nth=1")
    assert "the model takes 8" in page.text("#chat")
    page.wait_until_idle()
    page.ask("well?")
    page.page.wait_for_selector("#chat .chip")
    page.tab("compare")
    page.page.fill("#compare-question textarea", "fail")
    page.page.click("#compare")
    wait_for(lambda: "The model failed" in page.text("#side-by-side"))
    assert page.page.is_disabled("#vote-A")


def test_what_is_written_is_never_markup(fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]) -> None:
    from tests.fixtures.browser import MARKUP

    served, _ = fake
    page = opened(served.address)
    dialogs: list[str] = []
    page.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.upload(place / "good.mp4")
    page.frames()
    question_text = f"markup </div><image> {MARKUP}"
    page.ask(question_text)
    page.page.wait_for_selector("#chat .chip")
    assert page.text("#chat .question").strip() == question_text
    assert page.answers() == [MARKUP]
    assert page.page.locator("#chat img, #chat b, #chat script").count() == 0
    page.tab("compare")
    page.page.fill("#compare-question textarea", question_text)
    page.page.press("#compare-question textarea", "Enter")
    wait_for(lambda: "Both answers are identical" in page.text("#side-by-side"))
    assert page.page.locator("#side-by-side img, #side-by-side b, #side-by-side script").count() == 0
    assert page.page.is_disabled("#vote-tie")
    assert dialogs == []


def test_retry_clear_export_and_who_answers(
    fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page], tmp_path: Path
) -> None:
    served, engine = fake
    page = opened(served.address)
    page.upload(place / "good.mp4")
    page.frames()
    page.page.click("#tab-chat label:has-text('SFT')")
    page.ask("one")
    page.page.wait_for_selector("#chat .chip")
    page.wait_until_idle()
    seed = engine.requests[-1][3].seed
    page.page.click("#retry")
    wait_for(lambda: engine.requests[-1][3].seed == seed + 1)  # asked anew, not the same draw again
    page.wait_until_idle()
    assert page.answers() == ["sft heard: one"] and engine.requests[-1][2] == ()
    page.ask("two")
    page.page.wait_for_selector("#chat .chip >> nth=1")
    page.wait_until_idle()
    with page.page.expect_download() as caught:
        page.page.click("#export")
    row = json.loads(Path(caught.value.path()).read_text())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    (tmp_path / "good.mp4").touch()
    (tmp_path / "said.jsonl").write_text(json.dumps(row) + "\n")
    (sample,) = load_samples(str(tmp_path / "said.jsonl"))  # it is a row that sft takes
    assert [(turn.question, turn.answer) for turn in sample.turns] == [("one", "sft heard: one"), ("two", "sft heard: two")]
    page.page.click("#clear")
    wait_for(lambda: page.answers() == [])
    assert page.frames() == 4  # the clip stays


def test_it_fits_a_phone_and_the_keyboard_reaches_everything(
    fake: tuple[Served, FakeEngine], place: Path, opened: Callable[..., Page]
) -> None:
    served, _ = fake
    page = opened(served.address, width=390, dark=True)
    page.upload(place / "good.mp4")
    page.frames()
    for name in ("chat", "compare", "votes", "run"):
        page.tab(name)
        page.page.wait_for_timeout(300)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tab("chat")
    reached = set()
    page.page.focus("#clip button >> nth=0")
    for _step in range(60):
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate("document.activeElement.closest('[id]')?.id || ''"))
    assert {"ask", "tab-compare-button"} <= reached and any("question" in name for name in reached)
    page.page.focus("#question textarea")
    page.page.keyboard.type("by keyboard")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#chat .chip")
    assert page.answers() == ["rlaif heard: by keyboard"]


def test_inside_a_run(place: Path, tmp_path: Path, opened: Callable[..., Page]) -> None:
    """Curves, test answers, verdicts with filters, and a second run that trains while one looks."""
    shutil.copytree(place / "runs", tmp_path / "runs")
    run, live = Run(tmp_path / "runs" / "a"), Run(tmp_path / "runs" / "b")
    live.root.mkdir()
    shutil.copyfile(run.root / "config.yaml", live.root / "config.yaml")
    file = chat_run.begin_ppo(live, 2)
    with serving(FakeEngine(), run, tmp_path / "runs", tmp_path / FOLDER) as served:
        page = opened(served.address)
        page.tab("run")
        page.page.wait_for_selector("#curves figure")
        assert page.page.locator("#curves figure").count() == 2  # score and KL
        assert "finished" in page.text("#progress")
        page.page.click("button[role=tab]:has-text('Test answers')")
        page.page.wait_for_selector("#gallery .card")
        assert page.page.locator("#gallery .card").count() == 8 and "Page (of 2)" in page.text("#page")
        assert page.page.locator("#gallery .frames").count() == 8
        page.page.click("#kind input")
        page.page.click("li:has-text('Wrong before RLAIF, right after it')")
        wait_for(lambda: page.page.locator("#gallery .card").count() == 3)
        assert page.text("#gallery .card >> nth=0").startswith("test 0?")
        page.page.click("button[role=tab]:has-text('Verdicts')")
        page.page.wait_for_selector("#verdict .frames")
        assert "question 0?" in page.text("#verdict") and "Verdict (of 5)" in page.text("#number")
        assert "a red circle <b>moves</b> left." in page.text("#verdict")  # as it was written
        assert "0s: a red circle moves left." in page.text("#verdict") and "it disagrees" in page.text("#verdict")
        page.page.click("#number-after")
        wait_for(lambda: "question 1?" in page.text("#verdict"))
        page.page.click("#filter input")
        page.page.click("li:has-text('context changed the verdict')")
        wait_for(lambda: "Verdict (of 3)" in page.text("#number"))
        page.page.click("button[role=tab]:has-text('Progress')")
        page.page.click("#run input")
        page.page.click("li:has-text('b')")
        wait_for(lambda: "ppo is running" in page.text("#progress"))
        assert "step 2 of 30" in page.text("#progress")
        for step, score in ((3, 7.25), (4, 5.5), (5, 6.75)):  # by itself, each within the time of two ticks
            with file.open("a") as more:
                more.write(json.dumps({"step": step, "score": score}) + "\n")
            wait_for(lambda text=f"step {step} of 30": text in page.text("#progress"))  # type: ignore[misc]
            wait_for(lambda text=str(score): text in page.text("#curves figcaption b"))  # type: ignore[misc]
