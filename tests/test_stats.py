"""Exact match, guessing and intervals: numbers from tables or by hand."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from minirlaif.stats import (
    exact_match,
    guess_rate,
    mean_of_means,
    paired_bootstrap,
    sign_flip,
    t_interval,
    two_level_bootstrap,
    wilson,
    win_rate,
)


@pytest.mark.parametrize("answer", ["the ball rolls", "The Ball rolls.", "  the  ball\nrolls . ", "THE BALL ROLLS"])
def test_exact_match_forgives(answer: str) -> None:
    assert exact_match(answer, "The ball rolls.")


@pytest.mark.parametrize("answer", ["B. dog", "b", "B.", "(B)", "B)", "Dog."])
def test_an_option_matches_by_its_letter_or_text(answer: str) -> None:
    assert exact_match(answer, "B. dog")


@pytest.mark.parametrize("answer", ["A", "A. dog", "B. cat", "dog B"])
def test_another_option_does_not(answer: str) -> None:
    assert not exact_match(answer, "B. dog")


@pytest.mark.parametrize("answer", ["ball rolls", "the ball rolls!", "the ball rolls..", "the ball, rolls", "the balls roll", ""])
def test_exact_match_forgives_nothing_else(answer: str) -> None:
    assert not exact_match(answer, "The ball rolls.")


def test_guess_rate_by_hand() -> None:
    # Best guesses: "red" 2 of 3, "left" 1 of 1, so 3 of 4; case does not make two answers of one.
    assert guess_rate({"color": ["Red", "red.", "blue"], "motion": ["left"], "none": []}) == 0.75
    # The constant comes from other clips, so it may be the wrong one here.
    assert guess_rate({"color": ["Red", "red.", "blue"]}, {"color": ["blue", "blue", "red"]}) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no truths"):
        guess_rate({"color": []})


def test_wilson_by_table() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    for successes, n in ((1, 0), (-1, 4), (5, 4)):
        with pytest.raises(ValueError, match="wilson"):
            wilson(successes, n)


def test_win_rate_counts_decided_choices() -> None:
    choices = ["A"] * 8 + ["B"] * 2 + ["tie", "invalid", "disagree"]
    assert win_rate(choices) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert win_rate(choices[::-1]) == win_rate(choices)
    with pytest.raises(ValueError, match="no decided"):
        win_rate(["tie"])


def test_bootstrap_of_equal_clusters_has_no_width() -> None:
    assert paired_bootstrap({"a": [1.0, 0.0], "b": [0.0, 1.0]}, 50, 0) == (0.5, 0.5, 0.5)


def test_bootstrap_by_hand() -> None:
    # Two clips, one all right, one all wrong: the resampled mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.
    assert paired_bootstrap({"a": [1.0] * 5, "b": [0.0] * 5}, 400, 0) == (0.5, 0.0, 1.0)
    # The mean is per item: 3 items of 1 against 1 item of 0.
    assert paired_bootstrap({"a": [1.0, 1.0, 1.0], "b": [0.0]}, 10, 0)[0] == 0.75
    assert paired_bootstrap({"a": [1.0, 1.0, 1.0], "b": [1.0]}, 50, 0) == (1, 1, 1)


def test_bootstrap_draws_clips() -> None:
    # Ten like items in each of 40 clips carry the weight of 40 values, not of 400: deviation 1/2, so 1.96 / 2 / sqrt 40.
    clustered = {str(i): [float(i % 2)] * 10 for i in range(40)}
    mean, low, high = paired_bootstrap(clustered, 2000, 1)
    assert mean == 0.5 and (high - low) / 2 == pytest.approx(0.155, abs=0.02)
    single = {f"{name}-{j}": [value] for name, values in clustered.items() for j, value in enumerate(values)}
    assert paired_bootstrap(single, 500, 1)[2] - 0.5 == pytest.approx(0.049, abs=0.012)


def test_bootstrap_depends_on_the_seed_only() -> None:
    rows = {str(i): [random.Random(i).random(), random.Random(i + 50).random()] for i in range(20)}
    before = {name: list(values) for name, values in rows.items()}
    random.seed(7)
    state = random.getstate()
    first = paired_bootstrap(rows, 200, 3)
    turned = {name: rows[name][::-1] for name in reversed(rows)}
    assert paired_bootstrap(turned, 200, 3) == first
    assert paired_bootstrap(rows, 200, 4) != first
    assert rows == before and random.getstate() == state


def test_bootstrap_is_symmetric() -> None:
    rows = {str(i): [random.Random(i).uniform(-1, 2)] for i in range(30)}
    mean, low, high = paired_bootstrap(rows, 300, 5)
    swapped = paired_bootstrap({name: [-value for value in values] for name, values in rows.items()}, 300, 5)
    assert swapped == pytest.approx((-mean, -high, -low))


def test_bootstrap_refuses_nothing() -> None:
    for rows, resamples in (({}, 10), ({"a": []}, 10), ({"a": [1.0]}, 0)):
        with pytest.raises(ValueError, match="at least one"):
            paired_bootstrap(rows, resamples, 0)


def test_needs_no_torch() -> None:
    code = (
        "import sys, minirlaif.stats, minirlaif.feedback.verdicts, minirlaif.training.schedules; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_mean_of_means_weighs_metrics_alike():
    """Two metrics: 1, 2, 3 (mean 2) and 5 (mean 5): 3.5, whatever the number of rows."""
    mean, low, high = mean_of_means([{"a": [1.0, 2.0], "b": [3.0]}, {"a": [5.0]}], 200, 0)
    # Draws without clip a have no second metric and are drawn again; the others: a alone (1.5, 5), a and b (2, 5).
    assert mean == 3.5 and (low, high) == (3.25, 3.5)


def test_mean_of_means_draws_the_same_clips_for_every_metric():
    """The metrics of a clip are mirrored, so that every draw of clips gives the same mean: no interval is left."""
    first = {f"c{n}": [float(n)] for n in range(20)}
    second = {f"c{n}": [19.0 - n] for n in range(20)}
    assert mean_of_means([first, second], 300, 1) == pytest.approx((9.5, 9.5, 9.5))
    with pytest.raises(ValueError, match="values in every part"):
        mean_of_means([{"a": [1.0]}, {"a": []}], 10, 0)


def test_sign_flip_by_enumeration():
    """Three clips, differences 1, 1, 1: of the eight signs two (all plus, all minus) are as far from zero: p near 1/4."""
    p = sign_flip([{"a": [1.0], "b": [1.0], "c": [1.0]}], 20_000, 0)
    assert p == pytest.approx(0.25, abs=0.01)  # the deviation of 20,000 draws is 0.003
    assert sign_flip([{"a": [1.0], "b": [-1.0]}], 500, 0) == 1.0  # mean 0: every sign is as far


def test_sign_flip_flips_whole_clips():
    """One clip with ten equal differences is one witness, not ten."""
    assert sign_flip([{"a": [1.0] * 10}], 500, 0) == 1.0
    assert sign_flip([{str(n): [1.0] for n in range(10)}], 2000, 0) < 0.01


def test_sign_flip_of_several_metrics_weighs_them_alike():
    """Clip a: +1 in a metric of one row; clip b: -1 in a metric of one row; together 0."""
    assert sign_flip([{"a": [1.0]}, {"b": [-1.0]}], 500, 0) == 1.0
    with pytest.raises(ValueError, match="differences in every part"):
        sign_flip([{}], 10, 0)


def test_two_levels_with_one_run_are_the_bootstrap_over_clips():
    values = {"a": [1.0, 0.0], "b": [1.0], "c": [0.0, 0.0, 1.0]}
    assert two_level_bootstrap([values], 500, 3)[0] == paired_bootstrap(values, 500, 3)[0] == pytest.approx(0.5)
    low, high = two_level_bootstrap([values], 4000, 3)[1:]
    assert (low, high) == pytest.approx(paired_bootstrap(values, 4000, 3)[1:], abs=0.05)
    with pytest.raises(ValueError, match="needs values"):
        two_level_bootstrap([{"a": []}], 10, 0)


def test_two_levels_cover_what_runs_differ_by():
    """Runs whose true means differ by a deviation of 0.1: of intervals from ten runs about 95 % cover 0, of clips alone fewer."""
    dice, covered, covered_by_clips = random.Random(5), 0, 0
    for trial in range(60):
        runs = []
        for _ in range(10):
            shift = dice.gauss(0.0, 0.1)
            runs.append({str(clip): [shift + dice.gauss(0.0, 0.3)] for clip in range(40)})
        _, low, high = two_level_bootstrap(runs, 200, trial)
        covered += low <= 0 <= high
        together = {f"{place}/{name}": values for place, run in enumerate(runs) for name, values in run.items()}
        _, low, high = paired_bootstrap(together, 200, trial)
        covered_by_clips += low <= 0 <= high
    assert covered >= 52 and covered_by_clips <= 42


def test_t_interval_by_hand():
    """Means 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, half width 4.303 x 0.1 / sqrt(3)."""
    assert t_interval([0.1, 0.2, 0.3]) == pytest.approx((0.2 - 0.248434, 0.2 + 0.248434), abs=1e-5)
    # Two means, 12.706 x 0.1 / 2 to each side for means that lie 0.1 apart; four, 3.182 x deviation / 2; five, 2.776.
    assert t_interval([0.2, 0.3]) == pytest.approx((0.25 - 0.6353, 0.25 + 0.6353), abs=1e-5)
    half = 3.182 * (5 / 300) ** 0.5 / 2
    assert t_interval([0.1, 0.2, 0.3, 0.4]) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-5)
    assert t_interval([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx((0.3 - 0.196293, 0.3 + 0.196293), abs=1e-5)
    assert t_interval([0.4]) is None
