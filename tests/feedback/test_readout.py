"""Which read-out is trusted, with a scripted model: what the pairs are, and from when letters are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minirlaif import config
from minirlaif.feedback import readout
from minirlaif.models.generation import Completion
from minirlaif.runs.run import Run
from minirlaif.types import Comparison, Sample, Turn, Verdict


def rows_of(clips: int, each: int = 1) -> list[Sample]:
    return [Sample(f"q{c}-{n}", f"/clips/{c}", (Turn(f"what {n}?"),)) for c in range(clips) for n in range(each)]


def test_rows_are_spread_over_all_and_compared_with_another_clip() -> None:
    pairs = readout.probe_rows(rows_of(100, 3))
    assert len(pairs) == readout.PROBE_PAIRS == 20
    assert [row.video for row, _ in pairs] == [f"/clips/{5 * number}" for number in range(20)]
    assert [other for _, other in pairs] == [f"/clips/{5 * number}" for number in [*range(1, 20), 0]]
    few = readout.probe_rows(rows_of(2, 3))
    assert len(few) == 6 and all(row.video != other for row, other in few)
    assert readout.probe_rows(rows_of(1, 3)) == [] and readout.probe_rows([]) == []


class Script:
    """A session whose answer is the description that it reads, or the number of the clip that it sees."""

    def __init__(self, same: Sequence[str] = (), cut: Sequence[str] = ()) -> None:
        self.roles: list[str] = []
        self.prompts: list[tuple[Any, str, str]] = []
        self.adapters = SimpleNamespace(inference_as=self._role)
        self.backbone = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
        self.same, self.cut = same, cut

    @contextmanager
    def _role(self, name: str) -> Iterator[None]:
        self.roles.append(name)
        yield

    def video_input(self, video: str) -> str:
        return f"frames of {video}"

    def encode_prompt(self, view: Any, question: str, context: str) -> str:
        self.prompts.append((view, question, context))
        return context or view

    def greedy(self, _: Any, prompts: Sequence[str], batch_size: int, limit: int) -> Iterator[Completion]:
        for prompt in prompts:
            answer = "the same" if prompt in self.same else f"of {prompt}"
            yield Completion(tuple(map(ord, answer)), prompt not in self.cut, ())


def tried(patch: pytest.MonkeyPatch, session: Script, clips: int, letters: str, *settings: str) -> readout.ReadoutProbe:
    """letters: of each pair A, B, or t for a pair whose orders disagree; the likelihood always prefers A."""
    rows = readout.probe_rows(rows_of(clips))

    def judge(_: Any, pairs: Sequence[Comparison], views: Any, kind: str, *rest: Any) -> list[Verdict]:
        assert all(pair.answer_a == f"of {pair.context or views[pair.video]}" for pair in pairs)  # about the clip itself
        choices = letters if kind == "letter" else "A" * len(pairs)
        return [
            Verdict(pair.id, "disagree", 0.0, ("A", "B")) if c == "t" else Verdict(pair.id, c, 1.0, (c, c))  # type: ignore[arg-type]
            for pair, c in zip(pairs, choices, strict=True)
        ]

    patch.setattr(readout, "judge", judge)
    patch.setattr(readout, "greedy", session.greedy)
    contexts = {f"/clips/{number}": f"context {number}" for number in range(clips)}
    section = config.load(None, list(settings)).feedback
    return readout.probe(session, section, rows, contexts, "sft", "base")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("letters", "share", "consistent", "used"),
    [
        ("AAAAAAAAAA", 1.0, 10, "letter"),
        ("AAAAAAABBA", 0.8, 10, "letter"),
        ("AAAAAtttAt", 0.8, 6, "letter"),
        ("AAAAAAABBt", 0.75, 9, "letter"),
        ("AAAAAAABBB", 0.7, 10, "likelihood"),
        ("tttttttttt", 0.5, 0, "likelihood"),  # the same letter in both orders
        ("BBBBBBBBBB", 0.0, 10, "likelihood"),
    ],
)
def test_letters_are_used_from_three_quarters(letters: str, share: float, consistent: int, used: str, monkeypatch) -> None:
    session = Script()
    result = tried(monkeypatch, session, 10, letters)
    assert (result.pairs, result.letter, result.likelihood, result.consistent) == (10, pytest.approx(share), 1.0, consistent)
    assert result.readout == used and str(result).endswith(f": {used} is used")
    assert session.roles == ["sft", "base"]  # who answers, who judges


def test_what_is_shown_is_what_the_judge_will_see(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Script()
    tried(monkeypatch, session, 2, "AA", "feedback.judge_frames=false")
    assert session.prompts[:2] == [(None, "what 0?", "context 0"), (None, "what 0?", "context 1")]
    session = Script()
    tried(monkeypatch, session, 2, "AA", "feedback.context=false")
    assert session.prompts[:2] == [("frames of /clips/0", "what 0?", ""), ("frames of /clips/1", "what 0?", "")]


def test_equal_answers_and_cut_ones_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten clips in a ring; three neighbours answer alike (two pairs), and one answer was cut (two pairs)."""
    session = Script(same=[f"context {n}" for n in (0, 1, 2)], cut=["context 5"])
    rows = readout.probe_rows(rows_of(10))
    seen: list[str] = []

    def judge(_: Any, pairs: Sequence[Comparison], *rest: Any) -> list[Verdict]:
        seen[:] = [pair.video for pair in pairs]
        return [Verdict(pair.id, "A", 1.0, ("A", "A")) for pair in pairs]

    monkeypatch.setattr(readout, "judge", judge)
    monkeypatch.setattr(readout, "greedy", session.greedy)
    contexts = {f"/clips/{number}": f"context {number}" for number in range(10)}
    result = readout.probe(session, config.FeedbackSection(), rows, contexts, "sft", "sft")  # type: ignore[arg-type]
    assert result.pairs == 6 and seen == [f"/clips/{n}" for n in (2, 3, 6, 7, 8, 9)]


def test_too_few_pairs_are_no_reason_to_trust_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(monkeypatch, Script(), 4, "AAAA").readout == "likelihood"
    assert tried(monkeypatch, Script(), 5, "AAAAA").readout == "letter"
    nothing = readout.probe(Script(), config.FeedbackSection(), [], {}, "sft", "sft")  # type: ignore[arg-type]
    assert (nothing.pairs, nothing.readout) == (0, "likelihood")


def test_before_feedback_is_finished_the_read_out_that_always_works_is_shown(tmp_path: Path) -> None:
    """As the app does of a run that has only SFT; then the one that was chosen, or that an earlier `feedback` was given."""
    section = config.load(None, ["feedback.readout=auto"]).feedback
    run = Run(tmp_path / "a")
    assert readout.known_readout(section, run).readout == "likelihood"
    for name, given, chosen, shown in (
        ("b", "auto", {"readout": "letter"}, "letter"),
        ("c", "auto", {"readout": "likelihood"}, "likelihood"),
        ("d", "likelihood", {}, "likelihood"),
        ("e", "letter", {}, "letter"),
        ("f", "auto", {}, "letter"),  # a judge that reads text
    ):
        run = Run(tmp_path / name)
        with run.stage("feedback", {"feedback": {"readout": given}}) as out:
            assert out is not None
            out.summary.update(chosen)
        assert readout.known_readout(section, run).readout == shown, name


def test_a_section_that_names_its_read_out_keeps_it() -> None:
    for name in ("letter", "likelihood"):
        section = config.load(None, [f"feedback.readout={name}"]).feedback
        assert readout.known_readout(section, None) is section  # type: ignore[arg-type]
