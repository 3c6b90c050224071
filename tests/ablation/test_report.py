"""`ablate`: every claim from files whose figures are known, and an arm that could not be made, in all three reports."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.ablation import report, runner, view
from minirlaif.ablation.arms import MAIN, REWARD, Measure
from minirlaif.ablation.outcomes import FAILS, HOLDS, MISSING, OPEN, read
from minirlaif.cli import main
from minirlaif.runs.run import Run
from tests.fixtures import ablation_runs, small_config, tiny
from tests.fixtures.ablation_runs import FALSE, TRUE, arms_of, groups_of
from tests.fixtures.browser import chromium

CFG = config.load(small_config.TINY, [*ablation_runs.DISTILLED, "evaluate.bootstrap=200"])
SPACE = "\u00a0"

# Of 40 clips: how many are right on either side, as tests/fixtures/ablation_runs.py has them, and what follows by the rule. One
# clip is 2.5 points; a side that is ahead in one clip of 40 has an interval that begins at 0.
CLAIMS = {
    "The aligned model is better than the base": (26, 36, FAILS),
    "PPO from SFT is better than the base": (30, 36, FAILS),
    "GRPO is better than PPO, both from SFT": (17, 30, FAILS),
    "Distillation is better than PPO, both from SFT": (22, 30, FAILS),
    "Best of n is better than distillation, both from SFT": (12, 22, FAILS),
    "Best of n from SFT is better than the base": (12, 36, FAILS),
    "Distillation and PPO are better than distillation alone, with as many answers, from SFT": (31, 22, HOLDS),
    "The base describes more segments right than the SFT model": (10, 3, HOLDS),
    "The base is the better judge": (32, 27, HOLDS),
    "A base that describes and judges makes the better model": (12, 6, HOLDS),
    "With the segment descriptions the judge is right more often": (32, 22, HOLDS),
    "Verdicts with context make the better model": (23, 13, HOLDS),
    "A segment for each event makes a better judge than one segment": (32, 12, HOLDS),
    "It is also better than one segment with a prompt for the video": (32, 33, FAILS),
    "A segment for each event makes a better judge than two segments": (32, 31, OPEN),
    "Segments shorter than the events make a worse judge": (32, 20, HOLDS),
    "1,000 pairs make a better reward model than 250": (28, 18, HOLDS),
    "All pairs make a better reward model than 1,000": (34, 28, HOLDS),
    "1,000 pairs make a better model than 250": (15, 5, HOLDS),
    "All pairs make a better model than 1,000": (25, 15, HOLDS),
    "After the curriculum more test questions are answered right": (8, 28, FAILS),
    "After the curriculum more segments are described right": (10, 30, FAILS),
    "The best of 8 answers by the reward model is better than SFT": (19, 8, HOLDS),
    "The aligned model is better than SFT": (26, 8, HOLDS),
    "The aligned model is better than the best of 8 answers": (26, 19, HOLDS),
    "With context in its input the reward model is right more often": (34, 14, HOLDS),
    "With context in the reward model's input PPO gives a better model": (25, 23, OPEN),
    "The likelihood read-out is right more often than the letter": (32, 16, HOLDS),
    "KL coefficient 0.01 is worse than 0.03": (25, 7, HOLDS),
    "KL coefficient 0.1 is worse than 0.03": (25, 24, OPEN),
    "KL coefficient 0.3 is worse than 0.03": (25, 35, FAILS),
}


def claims_of(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {claim["text"]: claim for group in numbers["groups"] for claim in group["claims"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One seed with all its arms; nobody writes to it."""
    return ablation_runs.make(tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture(scope="module")
def numbers(made: dict[str, Run]) -> dict[str, Any]:
    return report.summary(groups_of(CFG), CFG.evaluate.bootstrap, {0: made}, arms_of(CFG), {})


@pytest.mark.parametrize("text", CLAIMS)
def test_a_claim_from_known_figures(numbers: dict[str, Any], text: str) -> None:
    better, worse, expected = CLAIMS[text]
    claim = claims_of(numbers)[text]
    assert (claim["better_mean"], claim["worse_mean"]) == (better / 40, worse / 40)
    assert claim["pooled"]["mean"] == pytest.approx((better - worse) / 40) and claim["pooled"]["n"] == 40
    assert claim["verdict"] == expected


def test_the_count_of_verdicts(numbers: dict[str, Any]) -> None:
    assert list(claims_of(numbers)) == list(CLAIMS)
    summary = "Of 31 claims 18 hold, 10 do not, and 3 are undecided."
    assert view.lead(numbers) == summary and summary in view.markdown(numbers) and summary in view.document(numbers)


def test_sentences_from_known_figures(numbers: dict[str, Any]) -> None:
    claims = claims_of(numbers)
    passes = view.sentence(claims["The aligned model is better than the base"])
    assert passes.startswith(f"The aligned model is better than the base: does not hold; the reverse holds. RLAIF 65.0{SPACE}%,")
    assert f"Base 90.0{SPACE}%: −25.0 points (−" in passes and passes.endswith("; by seed −25.0), n 40.")
    better = view.sentence(claims["The aligned model is better than SFT"])
    assert better.startswith(f"The aligned model is better than SFT: holds. RLAIF 65.0{SPACE}%, SFT 20.0{SPACE}%: +45.0 points (")


def test_a_tie_of_the_reward_model_is_not_right_whichever_answer_the_judge_chose(made: dict[str, Run], runs_dir: Path) -> None:
    run = Run(runs_dir / "tied")
    run.take_over(made[MAIN], ["world"])
    alike = {"score_chosen": 1.0, "score_rejected": 1.0}
    rows = [
        {"id": "p0-0#0", "chosen": TRUE, "rejected": FALSE, **alike},
        {"id": "p1-0#0", "chosen": FALSE, "rejected": TRUE, **alike},
    ]
    tiny.finished(run, "reward", lambda path: tiny.write_lines(path / "held_out.jsonl", rows))
    assert [value for _, value in read(Measure("k", "l", MAIN, REWARD), run, 0).values()] == [0.0, 0.0]


# An arm that failed.

WHY = "the loss is not a number | step 3"


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the reports and stderr, after all arms of two seeds were made but two of seed 1."""
    runs_dir = tmp_path_factory.mktemp("runs")
    ablation_runs.make(runs_dir, (0, 1))

    def carried(jobs: Any, at_once: int, failed: dict[str, str]) -> Iterator[float]:
        failed.update({"seed 1, kl-0.1": WHY, "seed 1, letter": "needs luck"})
        yield 0.0

    given = ["--runs-dir", str(runs_dir), "--seeds", "0,1", "--set", "evaluate.bootstrap=200", *ablation_runs.DISTILLED]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(output):
        patch.setattr(runner, "run_jobs", carried)
        assert main.main(["ablate", "--config", str(small_config.TINY), *given]) == 2
    return runs_dir / "ablation", output.getvalue()


LOST = {
    "The likelihood read-out is right more often than the letter": "seed 1, letter: needs luck",
    "KL coefficient 0.1 is worse than 0.03": f"seed 1, kl-0.1: {WHY}",
}


def test_the_last_line_still_names_the_first_failure(failing: tuple[Path, str]) -> None:
    assert failing[1].endswith(f"minirlaif: seed 1, kl-0.1 (and 1 more): {WHY}\n")


def test_programs_read_what_failed_and_which_claims_it_took_along(failing: tuple[Path, str]) -> None:
    numbers = json.loads((failing[0] / "ablation.json").read_text())
    failed = [{"seed": 1, "arm": "letter", "reason": "needs luck"}, {"seed": 1, "arm": "kl-0.1", "reason": WHY}]
    assert sorted(numbers["failed"], key=lambda each: each["arm"], reverse=True) == failed
    assert {name for name, arm in numbers["arms"].items() if arm["seeds"] == [0]} == {"letter", "kl-0.1"}
    assert all(arm["seeds"] == [0, 1] for name, arm in numbers["arms"].items() if name not in ("letter", "kl-0.1"))
    claims = claims_of(numbers)
    assert list(claims) == list(CLAIMS)  # none vanishes
    assert {text: claim["reason"] for text, claim in claims.items() if claim["verdict"] == MISSING} == LOST
    assert all(claims[text]["pooled"]["mean"] is None for text in LOST)
    assert claims["The aligned model is better than SFT"]["pooled"]["n"] == 80


def test_people_read_what_failed_and_which_claims_it_took_along(failing: tuple[Path, str]) -> None:
    text, page = ((failing[0] / f"ablation.{kind}").read_text() for kind in ("md", "html"))
    for shown in (text, page):
        assert "Of 31 claims 17 hold, 10 do not, 2 are undecided, and 2 were not measured." in shown
        assert f"seed 1, kl-0.1: {WHY}" in shown and "seed 1, letter: needs luck" in shown
    claim_name = "KL coefficient 0.1 is worse than 0.03"
    row = next(line for line in text.splitlines() if line.startswith(f"| {claim_name} |"))
    assert row.endswith("| – | – | – | – | **not measured** (seed 1, kl-0.1: the loss is not a number ¦ step 3) |")
    assert row.count("|") == 7  # six cells: the reason opens none of its own
    assert page.count("– not measured") == 4  # in the table of claims and under the question, for both
    assert "<td>0</td>" in page and "<td>0, 1</td>" in page  # the table of arms says for which seeds


def test_nothing_is_cut_off_on_a_phone_or_a_wide_screen(failing: tuple[Path, str]) -> None:
    """No table is wider than its place: the verdicts stand in the last column, and arms change long settings."""
    wide = 'Array.from(document.querySelectorAll(".scroll, main")).filter(e => e.scrollWidth > e.clientWidth).length'
    with chromium() as browser:
        for width in (390, 1440):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto((failing[0] / "ablation.html").as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
            assert page.evaluate(wide) == 0 and page.evaluate("document.documentElement.scrollWidth") <= width, width
            assert page.locator(".verdicts .open").last.is_visible()


def test_a_claim_on_an_arm_that_was_not_wanted_is_no_failure(made: dict[str, Run]) -> None:
    runs = {0: {name: made[name] for name in (MAIN, "short", "kl-0.3")}}
    numbers = report.summary(groups_of(CFG), CFG.evaluate.bootstrap, runs, [], {0: {"kl-0.1": "no luck"}})
    (kl,) = [group for group in numbers["groups"] if group["name"] == "kl"]
    assert [(claim["text"].split()[2], claim["verdict"]) for claim in kl["claims"]] == [("0.1", MISSING), ("0.3", FAILS)]


def test_a_question_whose_arms_all_failed_is_still_shown(made: dict[str, Run]) -> None:
    lost = {name: "no luck" for name in made if name.startswith("kl-") or name == "short"}
    numbers = report.summary(
        groups_of(CFG),
        CFG.evaluate.bootstrap,
        {0: {name: run for name, run in made.items() if name not in lost}},
        arms_of(CFG),
        {0: lost},
    )
    (kl,) = [group for group in numbers["groups"] if group["name"] == "kl"]
    assert not kl["entries"] and [claim["verdict"] for claim in kl["claims"]] == [MISSING] * 3
    assert "Which KL coefficient?" in view.markdown(numbers)
    assert "seed 0, short: no luck; seed 0, kl-0.1: no luck" in view.document(numbers)


def test_a_claim_without_any_item_says_so(made: dict[str, Run], runs_dir: Path) -> None:
    empty = Run(runs_dir / "empty")
    empty.take_over(made[MAIN], ["world"])
    tiny.finished(empty, "feedback", lambda path: tiny.write_lines(path / "verdicts.jsonl", []))
    numbers = report.summary(groups_of(CFG), CFG.evaluate.bootstrap, {0: made | {"letter": empty}}, arms_of(CFG), {})
    claim = claims_of(numbers)["The likelihood read-out is right more often than the letter"]
    assert (claim["verdict"], claim["reason"]) == (MISSING, "no items that both arms have in every seed")
