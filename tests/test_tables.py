"""Tables: every figure worked out by hand, nothing without a mark left out in silence, judges kept apart."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from minirlaif import charts, tablepage
from minirlaif.grading import JudgeName
from minirlaif.published import ROWS, published
from minirlaif.scores import Mark, Scores
from minirlaif.tables import blocks, cells, changes, examples, table_json, why_unmarked

JUDGE = JudgeName("openai", "judge", "v1", "abc", ("2026-01-01", "2026-01-02"))


def scores(title: str, marks: list[Mark], judge: JudgeName = JUDGE, **changes: Any) -> Scores:
    model = {"run": "r", "title": title, "answers": "id"}
    return replace(Scores("videoinstruct", "videoinstruct", "f" * 64, model, judge, tuple(marks), {"asked": 1}), **changes)


def rows(metric: str, *values: float | None, why: str = "unreadable: not a JSON object: 'x'") -> list[Mark]:
    """Marks of items 0, 1, … of one metric; two items to a clip."""
    return [
        Mark(f"{metric}{n}", f"clip{n // 2}", metric, value, "" if value is not None else why) for n, value in enumerate(values)
    ]


FIVE = {
    "correctness": (5, 4, 3, 0),  # 12 / 4 = 3
    "detail": (2, 2, 3, 3),  # 10 / 4 = 2.5
    "context": (4, 4, 4, 5),  # 17 / 4 = 4.25
    "temporal": (1, 2),  # 1.5
    "consistency": (5, 0),  # 2.5
}


def five() -> list[Mark]:
    return [mark for metric, values in FIVE.items() for mark in rows(metric, *map(float, values))]


def test_the_five_metrics_and_their_mean():
    found = cells(scores("m", five()))
    assert {name: cell.mean for name, cell in found.items()} == {
        "correctness": 3.0,
        "detail": 2.5,
        "context": 4.25,
        "temporal": 1.5,
        "consistency": 2.5,
        "mean": 2.75,  # (3 + 2.5 + 4.25 + 1.5 + 2.5) / 5, not the mean of all 16 marks, which is 47 / 16 = 2.9375
    }
    assert all(cell.rows == cell.marked for cell in found.values()) and found["mean"].rows == 16


def test_the_papers_own_mean():
    """VLM-RLAIF 7B in the paper's Table 1: the mean that others quote for it is 3.49."""
    values = {row.model: row.values for row in ROWS["videoinstruct"]}
    assert round(values["VLM-RLAIF 7B"]["mean"], 2) == 3.49
    assert values["VLM-SFT 7B"]["mean"] == pytest.approx((2.79 + 2.82 + 3.37 + 2.28 + 2.49) / 5, abs=1e-3)


def test_four_metrics_have_no_mean_of_five():
    assert "mean" not in cells(scores("m", [mark for mark in five() if mark.metric != "temporal"]))


def test_rows_without_a_mark_are_counted_and_bounded():
    found = scores("m", rows("correctness", 4.0, None, 2.0, None))
    cell = cells(found)["correctness"]
    assert (cell.rows, cell.marked, cell.mean) == (4, 2, 3.0)
    assert (cell.worst, cell.best) == (1.5, 4.0)  # 6 / 4, and (6 + 5 + 5) / 4
    assert why_unmarked(found) == {"unreadable": 2}


def test_the_bounds_of_the_mean_of_five():
    marks = [replace(mark, value=None, why="no such clip") if mark.id == "consistency0" else mark for mark in five()]
    cell = cells(scores("m", marks))["mean"]
    # consistency: 0 alone; with the missing row worst 0 / 2, best 5 / 2; the others are whole
    assert (cell.rows, cell.marked) == (16, 15)
    assert cell.mean == pytest.approx((3 + 2.5 + 4.25 + 1.5 + 0) / 5)
    assert (cell.worst, cell.best) == (pytest.approx(2.25), pytest.approx(2.75))


def test_a_metric_without_any_mark_has_no_mean_and_neither_have_the_five():
    marks = [replace(mark, value=None, why="refused: no") if mark.metric == "detail" else mark for mark in five()]
    found = cells(scores("m", marks))
    assert found["detail"].mean is None and found["mean"].mean is None and found["mean"].rows == 16


def test_shares_are_bounded_by_one():
    cell = cells(scores("m", rows("accuracy", 1.0, 0.0, 1.0, None)))["accuracy"]
    assert (cell.mean, cell.worst, cell.best) == (pytest.approx(2 / 3), 0.5, 0.75)


def test_intervals_draw_whole_clips():
    """Two clips of four equal marks: one draw in four is all 0. Of eight items drawn one by one, one draw in 256 would be."""
    marks = [Mark(str(n), f"clip{n // 4}", "correctness", 5.0 * (n // 4)) for n in range(8)]
    cell = cells(scores("m", marks))["correctness"]
    assert (cell.mean, cell.low, cell.high) == (2.5, 0.0, 5.0)


def test_differences_by_hand():
    first = scores("sft", [*rows("correctness", 1.0, 2.0, None, 4.0), Mark("extra", "clip9", "correctness", 5.0)])
    second = scores("rlaif", rows("correctness", 3.0, 2.0, 5.0, 5.0))
    change = changes(first, second)["correctness"]
    assert (change.rows, change.left_out, change.mean) == (3, 2, 1.0)  # +2, 0, +1; one without a mark, one alone
    assert change.p == pytest.approx(0.5, abs=0.05)  # two clips of the same sign: two of four signs are as far


def test_the_mean_of_five_differences():
    better = [replace(mark, value=min(5.0, (mark.value or 0) + 1)) for mark in five()]
    found = changes(scores("a", five()), scores("b", better))
    # correctness +0 +1 +1 +1 = 0.75; detail +1; context +1 +1 +1 +0 = 0.75; temporal +1; consistency +0 +1 = 0.5
    assert found["mean"].mean == pytest.approx((0.75 + 1 + 0.75 + 1 + 0.5) / 5)


@pytest.mark.parametrize("change", ["kind", "name", "version", "prompt"])
def test_other_judges_make_other_tables(change: str):
    one, two = scores("a", five()), scores("b", five(), replace(JUDGE, **{change: "other"}))
    assert blocks([one, two]) == [[one], [two]]
    with pytest.raises(ValueError, match="different judges"):
        changes(one, two)
    table = table_json([one, two])
    assert [len(each["rows"]) for each in table["tables"]] == [1, 1] and not any(t["differences"] for t in table["tables"])
    text = tablepage.markdown(table)
    assert text.count("## Judge: ") == 2 and all("| r a" not in part or "| r b" not in part for part in text.split("## "))


def test_the_date_is_told_and_does_not_part_tables():
    later = replace(JUDGE, dates=("2026-03-01", "2026-03-01"))
    (table,) = table_json([scores("a", five()), scores("b", five(), later)])["tables"]
    assert table["title"] == "judge (openai), version v1, prompt abc, 2026-01-01 to 2026-03-01"


def test_published_rows_stand_apart_with_their_judge():
    table = table_json([scores("a", five())])
    text = tablepage.markdown(table)
    mine, theirs = text.split("## Published, judge: gpt-3.5-turbo, version not named")
    assert "| VLM-RLAIF 7B | 3.63 | 3.25 | 4.00 | 3.23 | 3.32 | 3.49 |" in theirs and "VLM-RLAIF" not in mine
    assert "| r a | 3.00 [" in mine


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [
        ("MSVD_Zero_Shot_QA", "qa", 0.764),
        ("msrvtt_qa", "qa", 0.630),
        ("anet_qa", "qa", 0.573),
        ("ucf101", "action", 0.6283),
        ("hmdb51", "action", 0.448),
        ("msvd-ret", "retrieval", 0.3603),
        ("MSRVTT_JSFUSION_test", "retrieval", 0.210),
    ],
)
def test_published_rows_by_name(name: str, kind: str, own: float):
    assert list(published(name, kind)[-1].values.values()) == [own]


def test_unknown_benchmarks_have_no_published_rows():
    assert published("mine", "qa") == () == published("msvd", "choice")


def test_markdown_says_what_is_missing():
    table = table_json([scores("m", rows("correctness", 4.0, None, 2.0, None))])
    text = tablepage.markdown(table)
    assert "2 of 4 rows have no mark; with all of them worst or best the mean would be 1.50 or 4.00." in text
    assert "unreadable 2" in text and "| 2 of 4 |" in text


def test_worst_and_best_examples():
    marks = [*rows("correctness", 5.0, 0.0, 3.0, 4.0), Mark("x", "c", "correctness", None, "no such clip")]
    assert examples(scores("m", marks), 1) == (["correctness1"], ["correctness0"])
    assert examples(scores("m", marks), 9) == (["correctness1", "correctness2"], ["correctness0", "correctness3"])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_is_whole_and_loads_nothing():
    table = table_json([scores("<b>sft", five()), scores("rlaif", five())])
    drawn = {"radar.svg": "<svg onload='x'/>", "bars.svg": "<svg/>"}
    example = tablepage.Example("What?", "<script>", [("sft", "said <i>", "score 1 of 5")], "s0", 8, 1.0)
    page = tablepage.document(table, "run r", drawn, [example], [], {"s0": b"jpeg"})
    tags = Tags()
    tags.feed(page)
    names = [name for name, _ in tags.seen]
    assert "script" not in names and "svg" not in names and names.count("img") == 2 and "<b>sft" not in page
    for _, attributes in tags.seen:
        assert not re.match(r"https?:|//", attributes.get("src") or attributes.get("href") or "")
    assert "score 1 of 5" in page and "+0.00 [+0.00, +0.00]" in page and "VLM-RLAIF 7B" in page


def test_pictures_keep_judges_apart():
    other = scores("b", five(), replace(JUDGE, version="v2"))
    found = charts.panels(table_json([scores("a", five()), other]))
    assert [[series.model for series in panel.series] for panel in found[:2]] == [["r a"], ["r b"]]
    assert found[2].title == "Published (gpt-3.5-turbo, version not named)"
    for svg in (charts.radar(found), charts.bars(found)):
        assert svg.startswith("<?xml") and svg.count('id="axes_') == 3


def test_pictures_of_what_has_no_figures():
    nothing = charts.panels(table_json([scores("a", rows("accuracy", None), kind="qa", benchmark="mine")]))
    assert charts.radar(nothing) == charts.bars(nothing) == ""
