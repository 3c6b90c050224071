"""What visitors see where others can reach the page: the run that it is about, and their own votes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures import chat_run
from tests.fixtures.browser import FakeEngine, Served, serving
from tests.fixtures.http_client import Client, login


def runs(folder: Path) -> tuple[chat_run.Run, Path]:
    """Two runs, of which the first is served; a folder that holds them."""
    run = chat_run.run_of(folder / "runs" / "public", aligned=False)
    secret = chat_run.run_of(folder / "runs" / "secret-one", aligned=False)
    chat_run.begin_ppo(secret, 7)
    return run, folder / "runs"


def progress_of(client: Client, config: str, name: str) -> str:
    events = json.loads(config)["dependencies"]
    ticks = [event["id"] for event in events if event["targets"][0][1] == "tick"]
    return json.dumps(client.event(ticks[0], [name]))


def voted(served: Served, client: Client, clip: Path, question: str) -> str:
    """Vote on a comparison; what the page shows of votes then."""
    client.show(clip)
    begin = client.events["compare-question", "submit"]
    client.quick(begin, [question])
    client.event(client.after[begin], ["", 0.0, 1.0, 16])
    assert client.quick(client.events["vote-A", "click"], [0.0, 1.0, 16])[0] == 200
    return json.dumps(client.event(client.events["tab-votes", "select"], [False]))


@pytest.mark.parametrize("words", [("--password", "x"), ("--host", "0.0.0.0"), ()])
def test_a_visitor_sees_one_run_and_the_own_votes(words: tuple[str, ...], tmp_path: Path) -> None:
    run, folder = runs(tmp_path)
    clip = chat_run.world_clip(tmp_path / "good.mp4")
    with serving(FakeEngine(), run, folder, tmp_path / "uploads", *words) as served:
        address = served.address.replace("0.0.0.0", "127.0.0.1").replace("localhost", "127.0.0.1")
        cookie = login(address, "x")[1] if "x" in words else ""
        one, two = Client(address, cookie), Client(address, cookie)
        config = one.get("/config", **one.known())[1].decode()
        seen = voted(served, one, clip, "a blind first?"), voted(served, two, clip, "a blind second?")
        others = progress_of(one, config, "secret-one")
        for text in (config, *seen, others, progress_of(one, config, "public")):
            assert str(tmp_path) not in text and str(Path.cwd()) not in text
    is_public = bool(words)
    for shown in ("secret-one" in config, "step 7" in others, "first?" in seen[1], "data.preferences" in seen[0]):
        assert shown is not is_public
    assert "first?" in seen[0] and "second?" in seen[1]
    assert len(served.service.vote_store.rows()) == 2  # type: ignore[union-attr]


def test_a_run_that_lies_elsewhere_names_no_path(tmp_path: Path) -> None:
    """As with --gguf, whose run is not in the folder of runs."""
    run, _ = runs(tmp_path)
    (run.dir("sft") / "manifest.json").write_text("{")
    with serving(FakeEngine(), run, tmp_path / "none", tmp_path / "uploads", "--host", "0.0.0.0") as served:
        client = Client(served.address.replace("0.0.0.0", "127.0.0.1"))
        text = progress_of(client, client.get("/config", **client.known())[1].decode(), "public")
    assert "sft/manifest.json: cannot be read" in text and str(tmp_path) not in text


def test_a_run_shows_visitors_nothing_beside_itself(tmp_path: Path) -> None:
    """Neither a clip that its files name elsewhere, among the examples, nor votes behind a link."""
    clip, elsewhere = chat_run.world_clip(tmp_path / "good.mp4"), tmp_path / "elsewhere"
    run = chat_run.run_of(tmp_path / "runs" / "public")
    chat_run.add_stage_outputs(run, clip)
    private = chat_run.world_clip(tmp_path / "private.mp4", chat_run.TWO[::-1], seed=1)
    answers = run.dir("evaluate") / "answers.jsonl"
    answers.write_text(answers.read_text().replace("../world/clip.mp4", str(private)))
    elsewhere.mkdir()
    (elsewhere / "votes.jsonl").write_text('{"prompt": "secret?"}\n')
    for words, sees in (((), True), (("--host", "0.0.0.0"), False)):
        with serving(FakeEngine(), run, run.root.parent, tmp_path / f"uploads{sees}", *words) as served:
            examples = [path.read_bytes() for path in served.folder.rglob("*.mp4")]
            assert (private.read_bytes() in examples) is sees
            (run.root / "votes").symlink_to(elsewhere)
            seen = voted(served, Client(served.address.replace("0.0.0.0", "127.0.0.1")), clip, "a blind one?")
            assert "votes: a link out of the run" in seen and "secret?" not in seen
            (run.root / "votes").unlink()
    assert (elsewhere / "votes.jsonl").read_text() == '{"prompt": "secret?"}\n'
