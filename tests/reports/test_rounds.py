"""The figures of rounds, by hand."""

from __future__ import annotations

import pytest

from minirlaif.reports import rounds

METHOD = {"identity": "a", "chosen_iteration": 3, "dev_win_rate": 0.6}
START = {"identity": "b", "chosen_iteration": 0, "dev_win_rate": 0.5}
RECORD = [
    {"round": 1, "gained": True, "methods": {"distill": METHOD, "ppo": START}},
    {"round": 2, "gained": True, "methods": {"distill": METHOD}},
    {"round": 3, "gained": False, "methods": {"distill": START}},
]
# right answers: round 1 the first question, round 2 (which counts) the first three, round 3 the first two
ANSWERS = [
    {"video": f"{clip}.mp4", "truth": "a", "round-1": first, "rlaif": second, "round-3": third}
    for clip, first, second, third in (("x", "a", "a", "a"), ("x", "b", "a", "a"), ("y", "b", "a", "b"), ("y", "b", "b", "b"))
]
NO_TRUTH = {"video": "z.mp4", "truth": None, "round-1": "a", "rlaif": "a", "round-3": "a"}


def test_each_round_beside_the_one_before():
    judged = {"2": {"judge": {"with_context": 0.9}, "context": {"segment_accuracy": 0.8}}}
    made = rounds.figures(RECORD, {1: {"pairs": 7, "decided": 5}}, {"seed": 0, "rounds": judged}, [*ANSWERS, NO_TRUTH], 50)
    assert [each["accuracy"] for each in made] == [0.25, 0.75, 0.5]
    # round 2 answers two of four more, round 3 one fewer than round 2
    assert made[0]["gain_over_round_before"] is None
    assert [each["gain_over_round_before"]["mean"] for each in made[1:]] == [0.5, -0.25]
    # of the two clips, x gives round 2 one of two more and y one of two more: whichever are drawn, the mean is a half
    assert made[1]["gain_over_round_before"] == {"mean": 0.5, "ci95_low": 0.5, "ci95_high": 0.5}
    assert made[2]["gain_over_round_before"]["ci95_low"] == -0.5 and made[2]["gain_over_round_before"]["ci95_high"] == 0.0
    assert [each["dev_win_rate"] for each in made] == [0.6, 0.6, 0.5]
    assert made[0]["methods"]["ppo"] == {"chosen_iteration": 0, "dev_win_rate": 0.5}
    assert (made[0]["pairs"], made[0]["decided"], made[1]["pairs"]) == (7, 5, None)
    assert [each["judge_accuracy"] for each in made] == [None, 0.9, None] and made[1]["segment_accuracy"] == 0.8


@pytest.mark.parametrize(
    "rows", [[], [NO_TRUTH], [{name: text for name, text in row.items() if name != "round-3"} for row in ANSWERS]]
)
def test_what_was_not_measured_is_none(rows: list[dict]):
    last = rounds.figures(RECORD, {}, {"seed": 0}, rows, 50)[-1]
    assert (last["accuracy"], last["accuracy_ci95"], last["gain_over_round_before"]) == (None, None, None)
    page = rounds.section(rounds.figures(RECORD, {}, {"seed": 0}, rows, 50), 2, "round 3 gained nothing")
    assert "Round 3 gained nothing." in page and "2 (counts)" in page and "None" not in page
