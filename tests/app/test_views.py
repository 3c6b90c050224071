"""What the app reads and shows of runs."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minirlaif import config
from minirlaif.app import run_reader, tabs, views
from minirlaif.app.run_reader import PublicRun
from minirlaif.app.votes import VoteStore
from minirlaif.errors import UserError
from minirlaif.inference.engine import LoadedClip
from minirlaif.models.feature_cache import VisionFeatureCache
from minirlaif.models.loading import open_backbone
from minirlaif.runs.run import Run
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader
from tests.fixtures import chat_run


def test_votes_in_which_people_and_the_judge_differ() -> None:
    choices: list[tuple[Any, Any]] = [(1, 1), (1, 2), ("tie", "tie"), ("tie", 1), (2, "disagree"), ("both bad", ""), (2, 2)]
    rows = [
        {"prompt": f"question {number}?", "preference": vote, "judge": judge, "output_1": "x", "output_2": "y"}
        for number, (vote, judge) in enumerate(choices)
    ]

    def listed(only_other: bool, **how: int) -> list[int]:
        return [int(number) for number in re.findall(r"question (\d)\?", views.vote_cards(rows, only_other, **how))]

    assert listed(False) == [6, 5, 4, 3, 2, 1, 0]  # the last one first
    assert listed(True) == [4, 3, 1]  # not the one that the judge was never asked about
    assert listed(True, most=2) == [4, 3] and listed(False, most=2) == [6, 5]
    assert "None." in views.vote_cards(rows[:1], True) and views.vote_cards([], True) == ""


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
    assert run_reader.running_stage(run) == "ppo" and "step 3 of 30" in views.progress(run)
    with file.open("a") as more:
        more.write('{"step": 4, "sco')  # in the middle of a line
    assert "step 3 of 30" in views.progress(run)
    os.utime(file, (time.time() - 130,) * 2)
    assert run_reader.running_stage(run) == "ppo" and "ppo is running" in views.progress(
        run
    )  # a long step: states come every 120 s
    os.utime(file, (time.time() - 400,) * 2)
    assert run_reader.running_stage(run) == "" and "running" not in views.progress(run)


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
    drawn, count = views.verdict(Run(finished / "a"), wanted, 99)  # past the end: the last one
    assert count == len(numbers) and f"question {numbers[-1]}?" in drawn
    assert set(run_reader.VERDICT_FILTERS) >= {wanted} and len(run_reader.VERDICT_FILTERS) == 9


def test_frames_of_a_part_of_a_clip(finished: Path) -> None:
    run = Run(finished / "a")
    cfg = config.load(run.root / "config.yaml")
    part = "../world/clip.mp4#t=0.5,1.5"
    assert run_reader.strip(run, part, 12) == b""
    with ClipReader(60) as reader:
        store = VisionFeatureCache(run.root / "cache" / "features.sqlite", open_backbone(cfg.model), reader, cfg.video)
        store.get(run.located(part), lambda info: [uniform_plan(info.seconds, 12)])
        store.close()
    whole, of_part = (run_reader.strip(run, name, 12) for name in ("../world/clip.mp4", part))
    assert of_part[:2] == b"\xff\xd8" and of_part != whole
    assert run_reader.strip(run, "../world/clip.mp4#t=50,60", 12) == b""


def test_frames_are_found_in_a_run_that_was_moved(finished: Path, tmp_path: Path) -> None:
    moved = Run(shutil.copytree(finished / "a", tmp_path / "moved"))
    assert run_reader.strip(moved, "../world/clip.mp4", 12)[:2] == b"\xff\xd8"  # a JPEG
    assert run_reader.strip(moved, "../world/clip.mp4", 11) == b""
    assert run_reader.strip(moved, "../world/none.mp4", 12) == b""
    (moved.root / "cache" / "features.sqlite").write_bytes(b"no database at all")
    assert run_reader.strip(moved, "../world/clip.mp4", 12) == b""
    assert "no longer in the run" in views.verdict(moved, "all", 1)[0]


def test_pages_about_runs_that_lack_something(finished: Path, tmp_path: Path) -> None:
    bare = Run(tmp_path / "bare")
    bare.root.mkdir()
    (bare.root / "config.yaml").write_text("model: {base: nonsense}\nvideo: [")
    assert "missing" in views.progress(bare) and "No stage has logged" in views.curves(bare)
    assert "has not finished" in views.gallery(bare, "all", 1)[0] and views.verdict(bare, "all", 1)[1] == 0
    for made in (views.progress(None), views.gallery(None, "all", 1)[0], views.verdict(None, "all", 1)[0]):
        assert "python -m minirlaif run --config configs/tiny.yaml --run tiny" in made
    run = Run(finished / "a")
    assert views.gallery(run, "all", 99)[1] == 2
    assert "Right before RLAIF, wrong after it" in views.gallery(run, "all", 1)[0]


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


ROW = '{"id": "a", "video": "../world/clip.mp4", "question": "q", "sft": "x", "rlaif": "y", "base": "z", '
CONTENT = {
    "no rows": "null\n[]\n1\n",
    "nothing in them": "{}\n",
    "no JSON": "[" * 100_000,
    "no text": "\0\ud800",
    "another file": ROW + '"truth": "x", "strip": "../../secret.jpg"}\n',
    "no picture": ROW + '"truth": "x", "strip": "strips/bad.jpg"}\n',
    "types": ROW + '"truth": 1, "type": {}, "step": [], "orders": [[]], "choice": {}}\n',
    "numbers": '{"step": 1e999, "loss": "1", "score": {}}\n{"step": 2, "score": [], "kl": 1e999}\n{"step": 3, "score": "x"}\n',
}


@pytest.mark.parametrize("content", CONTENT)
def test_the_page_of_a_run_survives_any_content(content: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "a", tmp_path / "a")
    run, data = Run(tmp_path / "a"), CONTENT[content].encode(errors="surrogatepass")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for name in ("manifest.json", "metrics.jsonl", "answers.jsonl", "verdicts.jsonl", "held_out.jsonl", "strips/bad.jpg"):
        for stage in ("evaluate", "feedback", "reward", "ppo", "sft.partial"):
            (run.root / stage / name).parent.mkdir(parents=True, exist_ok=True)
            (run.root / stage / name).write_bytes(data)
    (run.root / "sft.partial" / "gone.json").symlink_to("nothing")
    assert run_reader.runs(tmp_path)[0].root == run.root
    drawn = [tabs._shown(views.progress, run), tabs._shown(views.curves, run)]
    drawn += [tabs._shown(views.gallery, run, "all", 1)[0], tabs._shown(views.verdict, run, "all", 1)[0]]
    assert all(drawn) and "c2VjcmV0" not in "".join(drawn)  # in base64
    assert run_reader.example_questions(run) and run_reader.example_clips(run)


def drawn(run: Run) -> list[str]:
    """What the page shows of a run."""
    pages = [tabs._shown(views.progress, run), tabs._shown(views.curves, run)]
    return [*pages, tabs._shown(views.gallery, run, "all", 1)[0], tabs._shown(views.verdict, run, "all", 1)[0]]


@pytest.mark.parametrize("place", ["a path", "a link"])
def test_visitors_see_no_clip_outside_the_run(place: str, finished: Path, tmp_path: Path) -> None:
    """Its owner does: a run about clips of one's own names them where they lie."""
    shutil.copytree(finished / "a", tmp_path / "a")
    outside, clip = tmp_path / "mine" / "clip.mp4", tmp_path / "a" / "world" / "clip.mp4"
    outside.parent.mkdir()
    clip.rename(outside)
    if place == "a link":
        (tmp_path / "a" / "clips").mkdir()
        (tmp_path / "a" / "clips" / "clip.mp4").symlink_to(outside)
    name = str(outside) if place == "a path" else "../clips/clip.mp4"
    for file in ("evaluate/answers.jsonl", "feedback/verdicts.jsonl"):
        path = tmp_path / "a" / file
        path.write_text(path.read_text().replace("../world/clip.mp4", name))
    own, public = Run(tmp_path / "a"), PublicRun(tmp_path / "a")
    assert run_reader.strip(own, name, 12)[:2] == b"\xff\xd8" and run_reader.strip(public, name, 12) == b""
    assert [clip.name for clip in run_reader.example_clips(own)] == ["clip.mp4"]
    assert outside not in {clip.resolve() for clip in run_reader.example_clips(public)}
    shown = "".join(drawn(public)[2:])
    assert "data:image" not in shown and ("question 0?" in shown or place == "a link")


@pytest.mark.parametrize(
    "name",
    ["evaluate", "evaluate/answers.jsonl", "sft/manifest.json", "cache/features.sqlite", "config.yaml"]
    + ["ppo.partial/state/position.json"],
)
def test_links_out_of_a_run_are_not_followed(name: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "a", tmp_path / "a")
    state = tmp_path / "a" / "ppo.partial" / "state"
    state.mkdir(parents=True)
    (state / "position.json").write_text('{"step": 3}')
    target = tmp_path / "elsewhere" / name
    target.parent.mkdir(parents=True)
    shutil.move(tmp_path / "a" / name, target)
    (tmp_path / "a" / name).symlink_to(target)
    for page in drawn(Run(tmp_path / "a")):
        assert f"{name}: a link out of the run is not followed" in page and page.count("\n") < 3
    assert run_reader.without_links(Run(tmp_path / "a")) is None


@pytest.mark.parametrize("name", ["evaluate", "evaluate/answers.jsonl", "sft", "ppo/metrics.jsonl", "votes"])
def test_a_link_to_itself_costs_its_page_one_line(name: str, finished: Path, tmp_path: Path) -> None:
    """`Path.resolve` fails at one."""
    shutil.copytree(finished / "a", tmp_path / "a")
    path = tmp_path / "a" / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    for run in (Run(tmp_path / "a"), PublicRun(tmp_path / "a")):
        assert len(drawn(run)) == len(drawn(Run(finished / "a")))
        assert run_reader.without_links(run) is run
    with pytest.raises(UserError, match="votes") if name == "votes" else nullcontext():
        VoteStore(tmp_path / "a" / "votes").rows()


def test_stages_of_another_run_are_seen_by_their_owner_alone(finished: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "arm")
    run.take_over(Run(finished / "a"), ["sft", "reward"])
    shutil.copy(finished / "a" / "config.yaml", run.root)
    assert "finished" in drawn(run)[0] and "a link out" in drawn(PublicRun(run.root))[0]


def test_what_many_visitors_look_at_is_drawn_once(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished / "a", tmp_path / "a")
    run, draws = Run(tmp_path / "a"), list[int]()

    def draw(run: Run | None, group: str, number: int) -> tuple[str, int]:
        draws.append(number)
        return f"{group} {number}", 9

    moments = iter([100.0] * 40 + [102.1])
    monkeypatch.setattr(tabs, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    assert {tabs._shown(draw, Run(run.root), "all", number)[0] for number in (1, 2, 1, 2) * 10} == {"all 1", "all 2"}
    assert draws == [1, 2]
    tabs._shown(draw, run, "all", 1)
    assert draws == [1, 2, 1]
    hashes: list[Path] = []
    monkeypatch.setattr(run_reader, "sha256", lambda path: hashes.append(path) or "0" * 64)
    for _ in range(3):
        run_reader.strip(run, "../world/clip.mp4", 12)
    assert len(hashes) == 1
