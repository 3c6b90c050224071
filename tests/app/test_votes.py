"""Votes: the file that `reward` reads, and agreement with the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minirlaif.app import views
from minirlaif.app.conversations import ChatService
from minirlaif.app.votes import Agreement, VoteStore, agreement
from minirlaif.data.dataset import load_preferences
from minirlaif.errors import UserError
from minirlaif.runs.io import sha256
from tests.fixtures import tiny
from tests.fixtures.clips import write_clip


def add(vote_store: VoteStore, clip: Path, choice: str, **how: Any) -> None:
    vote_store.add(clip, "what happens?", ("left.", "right."), ("sft", "rlaif"), choice, **how)


def test_votes_are_what_reward_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "any.MP4")
    vote_store = VoteStore(tmp_path / "votes")
    for choice in ("A", "tie", "B", "both bad", "A"):
        add(vote_store, clip, choice, judge="B", context="0s: it goes.\n", reward_1=0.5)
    clip.unlink()  # the upload is gone, the vote's own copy is not
    pairs = load_preferences(str(vote_store.file))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("left.", "right."), ("right.", "left."), ("left.", "right.")]
    assert all(Path(pair.video).is_file() and pair.question == "what happens?" for pair in pairs)
    assert {pair.video for pair in pairs} == {str(next((tmp_path / "votes" / "clips").iterdir()))}  # one copy for all
    assert pairs[0].tags["judge"] == "2" and pairs[0].tags["reward_1"] == "0.5" and len({pair.id for pair in pairs}) == 3
    assert "left out 2 votes without a winner (tie, both bad)" in capsys.readouterr().out
    undecided = [row for row in vote_store.rows() if row["preference"] not in (1, 2)]
    tiny.write_lines(vote_store.file, undecided)
    with pytest.raises(UserError, match="holds no rows"):
        load_preferences(str(vote_store.file))


def test_pages_show_no_absolute_path(tmp_path: Path) -> None:
    vote_store = VoteStore(tmp_path / "votes")
    assert not Path(vote_store.shown).is_absolute() and Path(vote_store.shown).resolve() == vote_store.file.resolve()


def test_a_row_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    vote_store = VoteStore(tmp_path / "votes")
    add(vote_store, clip, "A")
    vote_store.file.write_text(vote_store.file.read_text() + '{"id": "vote-1", "vid')
    add(vote_store, clip, "B")
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
    without_sft = agreement([{"preference": 2, "model_1": "rlaif", "model_2": "base"}])
    assert "1 vote: 0 for RLAIF, 1 for the base, 0 tied" in views.votes(without_sft, "")
    assert agreement([]).win_interval is None and "No votes yet" in views.votes(agreement([]), "")


def test_a_vote_file_without_its_last_line_end_loses_nothing(service: ChatService, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    for question in ("one?", "two?"):
        service.vote_store.add(clip, question, ("x", "y"), ("rlaif", "sft"), "A")
    service.vote_store.file.write_text(service.vote_store.file.read_text().rstrip("\n"))
    service.vote_store.add(clip, "three?", ("x", "y"), ("rlaif", "sft"), "B")
    assert [row.question for row in load_preferences(str(service.vote_store.file))] == ["one?", "two?", "three?"]


def test_votes_with_odd_line_ends_and_torn_rows_stay_readable(service: ChatService, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "any.mp4")
    service.vote_store.add(clip, "what\u2028happens?", ("x", "y"), ("rlaif", "sft"), "A")
    service.vote_store.add(clip, "plain?", ("x", "y"), ("rlaif", "sft"), "B")
    assert [row["prompt"] for row in service.vote_store.rows()] == ["what\u2028happens?", "plain?"]
    with service.vote_store.file.open("a") as file:
        file.write('{"id": "vote-1", "vid')
    service.vote_store.add(clip, "third?", ("x", "y"), ("rlaif", "sft"), "A")
    assert [row.question for row in load_preferences(str(service.vote_store.file))][1:] == ["plain?", "third?"]


@pytest.mark.parametrize("name", ["votes", "votes/votes.jsonl", "votes/clips", "part of a clip"])
def test_votes_behind_a_link_out_of_the_run_are_neither_read_nor_written(name: str, tmp_path: Path) -> None:
    """A run that somebody else made could have another file of this machine written."""
    clip, elsewhere = write_clip(tmp_path / "any.mp4"), tmp_path / "elsewhere"
    store = VoteStore(tmp_path / "run" / "votes")
    if name != "votes":
        (tmp_path / "run" / "votes" / "clips").mkdir(parents=True)
    if name in ("votes", "votes/clips"):
        elsewhere.mkdir()
        if name == "votes/clips":
            (tmp_path / "run" / name).rmdir()
    else:
        elsewhere.write_text('{"prompt": "secret"}\n')
    (tmp_path / "run").mkdir(exist_ok=True)
    link = f"votes/clips/{sha256(clip)[:16]}.part" if name == "part of a clip" else name
    (tmp_path / "run" / link).symlink_to(elsewhere)
    before = elsewhere.read_text() if elsewhere.is_file() else [*elsewhere.iterdir()]
    with pytest.raises(UserError, match=f"{link.split('/')[0]}.*: a link out of the run"):
        add(store, clip, "A")
    assert (elsewhere.read_text() if elsewhere.is_file() else [*elsewhere.iterdir()]) == before
    if name in ("votes", "votes/votes.jsonl"):
        with pytest.raises(UserError, match="a link out of the run"):
            store.rows()


@pytest.mark.parametrize(
    "changed", [[], {"preference": []}, {"preference": {}}, {"judge": [1]}, {"model_1": None}, {"prompt": 3}]
)
def test_rows_that_are_no_votes_are_passed_over(changed: Any, tmp_path: Path) -> None:
    clip, vote_store = write_clip(tmp_path / "any.mp4"), VoteStore(tmp_path / "votes")
    add(vote_store, clip, "A", judge="B")
    (good,) = vote_store.rows()
    tiny.write_lines(vote_store.file, [good, {**good, **changed} if isinstance(changed, dict) else changed])
    assert vote_store.rows() == [good]
    assert agreement(vote_store.rows()).votes == 1 and "what happens?" in views.vote_cards(vote_store.rows(), True)
