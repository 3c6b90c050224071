"""Lines of progress: the time left with the stages after, a line where nothing was reported, and loops that are timed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from minirlaif.cli import main
from minirlaif.cli.main import INTERACTIVE
from minirlaif.runs import progress


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_time_left_with_the_stages_after(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stages_after(7200.0):
        list(progress.progress(range(2), 2, "sft"))
    assert [line.split(", about ")[1] for line in lines(capsys)] == ["0 s left, 2 h 00 min with the stages after it"] * 2
    list(progress.progress(range(1), 1, "sft"))
    assert lines(capsys) == ["sft: 1/1, 0 s spent, about 0 s left"]


def test_a_slow_loop_reports_every_item(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1,000 items 3 are no tenth; each takes longer than the silence that is allowed."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    for _ in zip(progress.progress(range(1000), 1000, "ppo"), range(4), strict=False):
        time.sleep(0.02)
    assert [line.split(",")[0] for line in lines(capsys)] == [f"ppo: {done}/1000" for done in (1, 2, 3, 4)]


def test_a_silent_command_says_that_it_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.1)
    with progress.heartbeat("plan"):
        time.sleep(0.35)
        for _ in progress.progress(range(1000), 1000, "ppo"):
            capsys.readouterr()
            time.sleep(0.35)
            break
        said = lines(capsys)
    assert said and all(line.startswith("ppo: 0/1000: working, ") for line in said), said
    with progress.heartbeat("plan"):
        time.sleep(0.35)
    assert "plan: working, 0 s since the start" in lines(capsys)
    time.sleep(0.25)
    assert lines(capsys) == []  # it ended with the command


def test_a_command_that_reports_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.3)
    with progress.heartbeat("plan"):
        for _ in range(8):
            time.sleep(0.1)
            progress.print_line("here")
    assert set(lines(capsys)) == {"here"}


@pytest.mark.parametrize("verb", ["status", "chat"])
def test_every_verb_that_works_says_so(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(main, "heartbeat", lambda label: labels.append(label) or main.nullcontext())
    assert main.main([verb, "--run", "nowhere", *(["--video", "a.mp4", "what?"] if verb == "chat" else [])]) in (0, 2)
    assert labels == ([] if verb in INTERACTIVE else [verb])


def test_loops_are_timed_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """An item's time is that of making it and of the work on it, without what is timed apart."""

    def made() -> Iterator[int]:
        for number in range(2):
            time.sleep(0.05)
            yield number

    with progress.loop_times() as times:
        for number in progress.progress(made(), 2, "feedback"):
            time.sleep(0.02)
            if number:
                with progress.timed_apart("dev"):
                    time.sleep(0.1)
    first, second = times.items["feedback"]
    assert 0.07 <= first < 0.15 and 0.07 <= second < 0.15 and 0.1 <= times.apart["dev"][0] < 0.2
    assert lines(capsys) == []
    with progress.timed_apart("dev"):  # without a measurement nothing is kept
        pass
    assert len(times.apart["dev"]) == 1
