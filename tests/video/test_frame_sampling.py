"""Which moments of a clip are looked at."""

from __future__ import annotations

import pytest

from minirlaif.video.clocks import row_at
from minirlaif.video.frame_sampling import FramePlan, segment_spans, uniform_plan


def test_a_uniform_plan_takes_the_centres_of_equal_bins():
    assert uniform_plan(8.0, 4).times == (1.0, 3.0, 5.0, 7.0)
    assert uniform_plan(8.0, 2, start=4.0, end=6.0).times == (4.5, 5.5)
    assert uniform_plan(8.0, 2, start=4.0).times == (5.0, 7.0)
    assert uniform_plan(8.0, 2, start=4.0, end=100.0).times == (5.0, 7.0)  # an end behind the clip is cut
    assert uniform_plan(8.0, 1).times == (4.0,)


@pytest.mark.parametrize(
    ("seconds", "count", "start", "end"), [(0, 4, 0, None), (8, 0, 0, None), (8, 4, 8, None), (8, 4, 3, 3), (8, 4, -1, 3)]
)
def test_a_plan_of_nothing_is_refused(seconds, count, start, end):
    with pytest.raises(ValueError, match="cannot take"):
        uniform_plan(seconds, count, start, end)


@pytest.mark.parametrize("times", [(), (-0.1,), (float("nan"),), (0.0, float("inf"))])
def test_a_plan_has_real_times(times):
    with pytest.raises(ValueError, match="frame plan"):
        FramePlan(times)


def test_the_key_of_a_plan_is_its_moments():
    plan = FramePlan((0.5, 1.5))
    assert plan.key == FramePlan((0.5, 1.5)).key == FramePlan((0.50001, 1.5)).key  # below a millisecond
    assert plan.key == "2f-7983666a8ecb"  # sha256 of "500,1500": caches are found by it
    assert len({plan.key, FramePlan((0.5, 1.502)).key, FramePlan((1.5, 0.5)).key, FramePlan((0.5,)).key}) == 4


def test_segments_cover_the_clip():
    assert segment_spans(16.0, 8.0, 8) == ((0.0, 8.0), (8.0, 16.0))
    assert segment_spans(5.0, 8.0, 8) == ((0.0, 5.0),)
    assert segment_spans(2.0, 8.0, 8) == ((0.0, 2.0),)
    assert segment_spans(20.0, 8.0, 8) == ((0.0, 8.0), (8.0, 16.0), (16.0, 20.0))  # half a segment: its own
    assert segment_spans(19.0, 8.0, 8) == ((0.0, 8.0), (8.0, 19.0))  # less: joined
    assert segment_spans(100.0, 8.0, 4) == ((0.0, 25.0), (25.0, 50.0), (50.0, 75.0), (75.0, 100.0))


def test_a_clip_over_a_second_has_so_many_segments_at_least():
    assert segment_spans(7.0, 8.0, 8, 2) == ((0.0, 3.5), (3.5, 7.0))
    assert segment_spans(6.0, 8.0, 8, 3) == ((0.0, 2.0), (2.0, 4.0), (4.0, 6.0))
    assert segment_spans(1.0, 8.0, 8, 2) == ((0.0, 1.0),)  # of a second: one
    assert len(segment_spans(1.01, 8.0, 8, 2)) == 2
    assert segment_spans(5.0, 8.0, 1, 2) == ((0.0, 5.0),)  # the most wins
    assert segment_spans(20.0, 8.0, 8, 2) == segment_spans(20.0, 8.0, 8)  # those that have more keep them


@pytest.mark.parametrize("wrong", [(0.0, 8.0, 8), (5.0, 0.0, 8), (5.0, 8.0, 0)])
def test_segments_need_lengths(wrong):
    with pytest.raises(ValueError, match="cannot cut"):
        segment_spans(*wrong)


@pytest.mark.parametrize(
    ("starts", "when", "row"),
    [
        ((0.0, 0.033, 0.067, 0.1), 2 / 30, 2),  # rounded up to a millisecond by the container
        ((0.0, 0.033, 0.067, 0.1), 0.0655, 1),  # 1.5 ms early
        ((0.0, 0.033, 0.067, 0.1), 0.1, 3),
        ((0.0, 0.033, 0.067, 0.1), 9.0, 3),
        ((0.0, 0.001, 0.002, 0.003), 0.0016, 1),  # 1000 frames a second: 0.4 ms early is 0.4 of a frame
        ((0.0, 0.001, 0.002, 0.003), 0.00195, 2),  # a twentieth of a frame early
        ((0.0, 1 / 240, 2 / 240, 3 / 240), 0.0035, 0),  # 0.67 ms early is 0.16 of a frame of 4.17 ms
        ((0.0, 0.04, 0.0401, 0.08), 0.0395, 1),  # one that follows at once is not reached
        ((0.0, 0.04, 0.04, 0.08), 0.05, 2),  # several at one time: the last
        ((0.0, 0.04, 0.04, 0.08), 0.0395, 2),
        ((0.0,), 0.5, 0),
    ],
)
def test_the_frame_on_screen_is_the_last_that_has_started(starts: tuple[float, ...], when: float, row: int):
    assert row_at(starts, when) == row
