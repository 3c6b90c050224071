"""Learning rate as a function of the step."""

from __future__ import annotations

import pytest

from minirlaif.training.schedules import learning_rate


def rates(total: int, warmup: int, kind: str) -> list[float]:
    return [learning_rate(step, total, 2.0, warmup, kind) for step in range(total)]


def test_by_hand() -> None:
    assert rates(6, 2, "constant") == pytest.approx([1, 2, 2, 2, 2, 2])
    assert rates(6, 2, "linear") == pytest.approx([1, 2, 2, 1.5, 1, 0.5])
    assert rates(6, 2, "cosine") == pytest.approx([1, 2, 2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 30])
def test_every_step_learns_and_never_above_the_peak(kind: str, warmup: int) -> None:
    got = rates(20, warmup, kind)
    assert all(0 < rate <= 2 for rate in got)
    assert got[:warmup] == sorted(got[:warmup])
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
    assert (max(got) == 2) == (warmup <= 20)


def test_after_the_end() -> None:
    assert learning_rate(10, 10, 1.0, 2, "cosine") == pytest.approx(0)
    assert learning_rate(99, 10, 1.0, 2, "linear") == 0
    assert learning_rate(99, 10, 1.0, 2, "constant") == 1


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="cosine, linear or constant"):
        learning_rate(0, 10, 1.0, 5, "cosin")  # already in the warm-up, where the kind is not needed yet
    for step, total, warmup in ((-1, 10, 0), (0, 0, 0), (0, 10, -1)):
        with pytest.raises(ValueError, match="need step"):
            learning_rate(step, total, 1.0, warmup, "linear")
