"""Tables: every figure worked out by hand, nothing without a mark left out in silence, judges kept apart."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from minirlaif.benchmarks import page as table_page
from minirlaif.benchmarks import plots
from minirlaif.benchmarks.kinds.base import Grade
from minirlaif.benchmarks.tables import Scores, cells, changes, examples, judge_head, judged, published, table_json
from minirlaif.feedback.text_judge import JudgeName

JUDGE = JudgeName("openai", "judge", "v1", "abc", ("2026-01-01", "2026-01-02"))


def scores(title: str, grades: list[Grade], judge: JudgeName = JUDGE, **changes: Any) -> Scores:
    model = {"run": "r", "title": title, "answers": "id"}
    return replace(Scores("videoinstruct", "videoinstruct", "f" * 64, model, judge, tuple(grades), {"asked": 1}), **changes)


def rows(metric: str, *values: float | None, why: str = "unreadable: not a JSON object: 'x'") -> list[Grade]:
    """Marks of items 0, 1, … of one metric; two items to a clip."""
    return [
        Grade(f"{metric}{n}", f"clip{n // 2}", metric, value, "" if value is not None else why) for n, value in enumerate(values)
    ]


FIVE = {
    "correctness": (5, 4, 3, 0),  # 12 / 4 = 3
    "detail": (2, 2, 3, 3),  # 10 / 4 = 2.5
    "context": (4, 4, 4, 5),  # 17 / 4 = 4.25
    "temporal": (1, 2),  # 1.5
    "consistency": (5, 0),  # 2.5
}


def five() -> list[Grade]:
    return [grade for metric, values in FIVE.items() for grade in rows(metric, *map(float, values))]


def test_the_five_metrics_and_their_mean():
    result = cells(scores("m", five()))
    assert {name: cell.mean for name, cell in result.items()} == {
        "correctness": 3.0,
        "detail": 2.5,
        "context": 4.25,
        "temporal": 1.5,
        "consistency": 2.5,
        "mean": 2.75,  # (3 + 2.5 + 4.25 + 1.5 + 2.5) / 5, not the mean of all 16 marks, which is 47 / 16 = 2.9375
    }
    assert all(cell.rows == cell.marked for cell in result.values()) and result["mean"].rows == 16


def test_the_papers_own_mean():
    """VLM-RLAIF 7B in the paper's Table 1: the mean that others quote for it is 3.49."""
    values = {row["model"]: row["values"] for row in published("videoinstruct", "videoinstruct")}
    assert round(values["VLM-RLAIF 7B"]["mean"], 2) == 3.49
    assert values["VLM-SFT 7B"]["mean"] == pytest.approx((2.79 + 2.82 + 3.37 + 2.28 + 2.49) / 5, abs=1e-3)


def test_four_metrics_have_no_mean_of_five():
    assert "mean" not in cells(scores("m", [grade for grade in five() if grade.metric != "temporal"]))


def test_rows_without_a_mark_are_counted_and_bounded():
    result = scores("m", rows("correctness", 4.0, None, 2.0, None))
    cell = cells(result)["correctness"]
    assert (cell.rows, cell.marked, cell.mean) == (4, 2, 3.0)
    assert (cell.worst, cell.best) == (1.5, 4.0)  # 6 / 4, and (6 + 5 + 5) / 4
    assert judged([result], [])["rows"][0]["without_mark"] == {"unreadable": 2}


def test_the_bounds_of_the_mean_of_five():
    grades = [replace(grade, value=None, why="no such clip") if grade.id == "consistency0" else grade for grade in five()]
    cell = cells(scores("m", grades))["mean"]
    # consistency: 0 alone; with the missing row worst 0 / 2, best 5 / 2; the others are whole
    assert (cell.rows, cell.marked) == (16, 15)
    assert cell.mean == pytest.approx((3 + 2.5 + 4.25 + 1.5 + 0) / 5)
    assert (cell.worst, cell.best) == (pytest.approx(2.25), pytest.approx(2.75))


def test_a_metric_without_any_mark_has_no_mean_and_neither_have_the_five():
    grades = [replace(grade, value=None, why="refused: no") if grade.metric == "detail" else grade for grade in five()]
    result = cells(scores("m", grades))
    assert result["detail"].mean is None and result["mean"].mean is None and result["mean"].rows == 16


def test_shares_are_bounded_by_one():
    cell = cells(scores("m", rows("accuracy", 1.0, 0.0, 1.0, None)))["accuracy"]
    assert (cell.mean, cell.worst, cell.best) == (pytest.approx(2 / 3), 0.5, 0.75)


def test_intervals_draw_whole_clips():
    """Two clips of four equal marks: one draw in four is all 0. Of eight items drawn one by one, one draw in 256 would be."""
    grades = [Grade(str(n), f"clip{n // 4}", "correctness", 5.0 * (n // 4)) for n in range(8)]
    cell = cells(scores("m", grades))["correctness"]
    assert (cell.mean, cell.low, cell.high) == (2.5, 0.0, 5.0)


def test_differences_by_hand():
    first = scores("sft", [*rows("correctness", 1.0, 2.0, None, 4.0), Grade("extra", "clip9", "correctness", 5.0)])
    second = scores("rlaif", rows("correctness", 3.0, 2.0, 5.0, 5.0))
    change = changes(first, second)["correctness"]
    assert (change.rows, change.left_out, change.mean) == (3, 2, 1.0)  # +2, 0, +1; one without a mark, one alone
    assert change.p == pytest.approx(0.5, abs=0.05)  # two clips of the same sign: two of four signs are as far


def test_the_mean_of_five_differences():
    better = [replace(grade, value=min(5.0, (grade.value or 0) + 1)) for grade in five()]
    result = changes(scores("a", five()), scores("b", better))
    # correctness +0 +1 +1 +1 = 0.75; detail +1; context +1 +1 +1 +0 = 0.75; temporal +1; consistency +0 +1 = 0.5
    assert result["mean"].mean == pytest.approx((0.75 + 1 + 0.75 + 1 + 0.5) / 5)


def by_clip(*values: float) -> list[Grade]:
    """All five metrics, one row of each per clip, with these marks."""
    return [Grade(f"{m}{n}", f"clip{n}", m, value) for m in FIVE for n, value in enumerate(values)]


def test_the_interval_of_the_mean_of_five():
    """Two clips, one all 0 and one all 5: one draw in four is all 0, one is all 5."""
    cell = cells(scores("m", by_clip(0, 5)))["mean"]
    assert (cell.mean, cell.low, cell.high) == (2.5, 0.0, 5.0)


def test_interval_and_p_of_the_mean_of_five_look_at_all_five():
    """Correctness stays; the other four rise by 1 on every second clip of two: a fifth of nothing and four fifths of 0 to 1."""
    two = [replace(m, value=1.0) if m.clip == "clip1" and m.metric != "correctness" else m for m in by_clip(0, 0)]
    result = changes(scores("a", by_clip(0, 0)), scores("b", two))
    assert (result["correctness"].low, result["correctness"].high, result["correctness"].p) == (0.0, 0.0, 1.0)
    assert (result["mean"].mean, result["mean"].low, result["mean"].high) == (pytest.approx(0.4), 0.0, pytest.approx(0.8))
    many = by_clip(*[0.0] * 12)
    risen = [grade if grade.metric == "correctness" else replace(grade, value=1.0) for grade in many]
    result = changes(scores("a", many), scores("b", risen))
    assert result["correctness"].p == 1.0 and result["mean"].p is not None
    assert result["mean"].p == pytest.approx(2 / 2**12, abs=5e-3)  # twelve clips of one sign: of 4096 signs two are as far


def test_rows_left_out_of_the_mean_of_five_are_those_of_all_five():
    gone = {"correctness0", "detail1", "temporal0"}
    second = [replace(grade, value=None, why="no such clip") if grade.id in gone else grade for grade in five()]
    result = changes(scores("a", five()), scores("b", second))
    assert {metric: change.left_out for metric, change in result.items()} == {
        "correctness": 1, "detail": 1, "context": 0, "temporal": 1, "consistency": 0, "mean": 3}  # fmt: skip


@pytest.mark.parametrize("other", [{"sha256": "e" * 64}, {"benchmark": "another"}])
def test_other_files_make_other_tables(other: dict[str, str]):
    one, two = scores("a", five()), scores("b", five(), **other)
    assert one.key != two.key and len(table_json([one, two])["tables"]) == 2
    with pytest.raises(ValueError, match="benchmarks"):
        changes(one, two)


@pytest.mark.parametrize("change", ["kind", "name", "version", "prompt"])
def test_other_judges_make_other_tables(change: str):
    one, two = scores("a", five()), scores("b", five(), replace(JUDGE, **{change: "other"}))
    assert one.key != two.key and len(table_json([one, two])["tables"]) == 2
    with pytest.raises(ValueError, match="different judges"):
        changes(one, two)
    table = table_json([one, two])
    assert [len(each["rows"]) for each in table["tables"]] == [1, 1] and not any(t["differences"] for t in table["tables"])
    text = table_page.markdown(table)
    assert text.count("## Judge: ") == 2 and all("| r a" not in part or "| r b" not in part for part in text.split("## "))


def test_the_date_is_told_and_does_not_part_tables():
    later = replace(JUDGE, dates=("2026-03-01", "2026-03-01"))
    (table,) = table_json([scores("a", five()), scores("b", five(), later)])["tables"]
    assert table["title"] == "judge (openai), version v1, prompt abc, 2026-01-01 to 2026-03-01"


def test_published_rows_stand_apart_with_their_judge():
    table = table_json([scores("a", five())])
    text = table_page.markdown(table)
    mine, theirs = text.split("## Published, judge: gpt-3.5-turbo, version not named")
    assert "| VLM-RLAIF 7B | 3.63 | 3.25 | 4.00 | 3.23 | 3.32 | 3.49 |" in theirs and "VLM-RLAIF" not in mine
    assert "| r a | 3.00 [" in mine


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [
        ("MSVD_Zero_Shot_QA", "qa", 0.764),
        ("msrvtt_qa", "qa", 0.630),
        ("anet_qa", "qa", 0.573),
        ("ActivityNet-QA", "qa", 0.573),
        ("activitynetqa-60-of-8000", "qa", 0.573),
        ("msr-vtt_qa", "qa", 0.630),
        ("UCF-101", "action", 0.6283),
        ("ucf101", "action", 0.6283),
        ("hmdb51", "action", 0.448),
        ("msvd-ret", "retrieval", 0.3603),
        ("MSRVTT_JSFUSION_test", "retrieval", 0.210),
    ],
)
def test_published_rows_by_name(name: str, kind: str, own: float):
    assert list(published(name, kind)[-1]["values"].values()) == [own]


PAPER = """
VideoChat 2.23 2.50 2.53 1.94 2.24
LLaMA-Adapter 2.03 2.32 2.30 1.98 2.15
Video-LLaMA 1.96 2.18 2.16 1.82 1.79
Video-ChatGPT 2.40 2.52 2.62 1.98 2.37
Valley 2.43 2.13 2.86 2.04 2.45
BT-Adapter 2.68 2.69 3.27 2.34 2.46
VTimeLLM 2.78 3.10 3.40 2.49 2.47
Video-LLaVA 2.84 2.86 3.44 2.46 2.57
VideoChat2 3.02 2.88 3.51 2.66 2.81
LLaMA-VID_7B 2.96 3.00 3.53 2.46 2.51
LLaMA-VID_13B 3.07 3.05 3.60 2.58 2.63
GPT-4V 3.85 3.45 3.84 3.63 2.80
VLM-SFT_7B 2.79 2.82 3.37 2.28 2.49
VLM-RLAIF_7B 3.63 3.25 4.00 3.23 3.32
"""  # Table 1, as printed: correctness, detail, context, temporal, consistency
MEANS = (2.288, 2.156, 1.982, 2.378, 2.382, 2.688, 2.848, 2.834, 2.976, 2.892, 2.986, 3.514, 2.750, 3.486)  # by hand
IN_PERCENT = {  # as printed; ~: read off the pixels of a figure
    ("msvd", "qa"): "Video-ChatGPT ~64.9, Video-LLaVA ~70.6, LLaMA-VID ~69.7, VLM-SFT 7B 67.2, VLM-RLAIF 7B 76.4",
    ("msrvtt", "qa"): "Video-ChatGPT ~49.3, Video-LLaVA ~58.9, LLaMA-VID ~57.6, VLM-SFT 7B 52.4, VLM-RLAIF 7B 63.0",
    ("activitynet", "qa"): "Video-ChatGPT ~35.2, Video-LLaVA ~45.3, LLaMA-VID ~47.3, VLM-SFT 7B 44.1, VLM-RLAIF 7B 57.3",
    ("msvd", "retrieval"): "Video-ChatGPT ~26.0, Video-LLaVA ~29.3, LLaMA-VID ~27.3, VLM-SFT 26.65, VLM-RLAIF 36.03",
    ("msrvtt", "retrieval"): "Video-ChatGPT ~14.5, Video-LLaVA ~18.6, LLaMA-VID ~16.5, VLM-SFT ~13.2, VLM-RLAIF ~21.0",
    ("ucf101", "action"): "Video-ChatGPT ~51.6, Video-LLaVA ~52.3, LLaMA-VID ~56.5, VLM-SFT 53.03, VLM-RLAIF 62.83",
    ("hmdb51", "action"): "Video-ChatGPT ~37.0, LLaMA-VID ~38.9, VLM-SFT ~38.5, VLM-RLAIF ~44.8",
}


def test_every_published_score_is_the_papers():
    result = {row["model"]: row for row in published("videoinstruct", "videoinstruct")}
    lines = [line.split() for line in PAPER.split("\n") if line]
    assert list(result) == [name.replace("_", " ") for name, *_ in lines]
    for (name, *values), mean in zip(lines, MEANS, strict=True):
        row = result[name.replace("_", " ")]
        assert row["values"] == {**dict(zip(FIVE, map(float, values), strict=True)), "mean": pytest.approx(mean, abs=1e-9)}, name
        assert "gpt-3.5-turbo" in row["judge"] and not row["read_off"]


@pytest.mark.parametrize("benchmark", IN_PERCENT, ids=" ".join)
def test_every_published_share_is_the_papers(benchmark: tuple[str, str]):
    metric = {"qa": "accuracy", "action": "top1", "retrieval": "r1"}[benchmark[1]]
    rows = [(row["model"], row["read_off"], row["values"]) for row in published(*benchmark)]
    wanted = [each.rsplit(" ", 1) for each in IN_PERCENT[benchmark].split(", ")]
    assert rows == [
        (name, "~" in value, {metric: pytest.approx(float(value.strip("~")) / 100, abs=1e-9)}) for name, value in wanted
    ]


def test_unknown_benchmarks_have_no_published_rows():
    assert published("mine", "qa") == [] == published("msvd", "choice")


@pytest.mark.parametrize(("name", "kind"), [("planet_qa", "qa"), ("janet", "qa"), ("msvdx", "retrieval"), ("hmdb5", "action")])
def test_a_part_of_a_word_is_no_name(name: str, kind: str):
    assert published(name, kind) == []


def test_markdown_says_what_is_missing():
    table = table_json([scores("m", rows("correctness", 4.0, None, 2.0, None))])
    text = table_page.markdown(table)
    assert "2 of 4 rows have no grade; with all of them worst or best the mean would be 1.50 or 4.00." in text
    assert "unreadable: 2 rows." in text and "| 4 | 2 | 2 of 4 |" in text  # two of the two clips have a mark


def test_rows_and_marks_are_told_apart():
    """Three metrics of one row: three marks. Two of four rows of the first part have no clip."""
    gone = {"g1", "g3"}
    grades = [
        Grade(f"g{n}", f"clip{n}", metric, None if f"g{n}" in gone else 3.0, "no such clip" if f"g{n}" in gone else "")
        for metric in ("correctness", "detail", "context")
        for n in range(4)
    ]
    grades += [Grade(f"{part}{n}", f"clip{n}", part, 2.0) for part in ("temporal", "consistency") for n in range(2)]
    table = table_json([scores("m", grades)])
    (row,) = table["tables"][0]["rows"]
    assert (row["rows"], row["clips"]) == (8, 3)  # clip 3 has no mark at all, clip 1 has two of the other parts
    assert (row["without_mark"], row["rows_without_mark"]) == ({"no such clip": 6}, {"no such clip": 2})
    text = table_page.markdown(table)
    assert "| 8 | 3 | 10 of 16 |" in text and "grades missing or wrong by form: no such clip: 2 rows (6 grades)." in text
    assert "Correctness: 2 of 4 rows have no grade" in text and "Mean of five: 6 of 16 grades are missing" in text
    both = table_page.markdown(table_json([scores("m", grades), scores("n", grades)]))
    assert re.search(r"\| Detail \| \S+ \[.*\| 2 \| 2 \| 2 \|", both)
    assert re.search(r"\| Mean of five \| \S+ \[.*\| 10 grades \| 6 grades \| 2 \|", both)


@pytest.mark.parametrize(("count", "marked"), [(29, True), (30, False)])
def test_figures_of_few_clips_are_marked(count: int, marked: bool):
    first = [Grade(f"q{n}", f"clip{n}", "accuracy", float(n % 2)) for n in range(count)]
    second = [replace(grade, value=1.0) for grade in first]
    kind = {"kind": "qa", "benchmark": "mine"}
    table = table_json([scores("a", first, **kind), scores("b", second, **kind)])
    (each,) = table["tables"]
    assert each["rows"][0]["cells"]["accuracy"]["clips"] == each["differences"][0]["changes"]["accuracy"]["clips"] == count
    text, page = table_page.markdown(table), table_page.document(table, "r", {}, [], {})
    assert all(
        (words in content) == marked
        for content in (text, page)
        for words in ("†", "Fewer than 30 clips: interval and p are not reliable")
    )
    assert text.count("] † |") == (3 if marked else 0)  # two means and their difference


def test_the_mean_of_five_stands_on_the_fewest_clips_of_one_of_them():
    grades = by_clip(*[1.0] * 40)
    few = [grade for grade in grades if grade.metric != "temporal" or grade.clip < "clip12"]  # clips 0, 1, 10 and 11
    assert cells(scores("m", few))["mean"].clips == 4 and cells(scores("m", few))["detail"].clips == 40
    assert changes(scores("m", few), scores("n", grades))["mean"].clips == 4


def models(count: int) -> list[Scores]:
    grades = rows("accuracy", 1.0, 0.0)
    return [scores(f"m{n}", grades, kind="qa", benchmark="mine") for n in range(count)]


def test_up_to_four_models_are_told_apart_in_all_pairs_more_from_the_first_alone():
    (four,) = table_json(models(4))["tables"]
    assert len(four["differences"]) == 6 and not any("compare" in note for note in table_page.notes(four))
    (five_models,) = table_json(models(5))["tables"]
    pairs = [(change["first"], change["second"]) for change in five_models["differences"]]
    assert pairs == [("r m0", f"r m{n}") for n in (1, 2, 3, 4)]
    (note,) = [note for note in table_page.notes(five_models) if "compare" in note]
    assert note.startswith("Differences are to r m0 only") and "such as r:m1 r:m2" in note
    (together,) = table_json(models(5), ["r m2", "r m4"])["tables"]  # named in one command
    assert ("r m2", "r m4") in [(change["first"], change["second"]) for change in together["differences"]]
    (note,) = [note for note in table_page.notes(together) if "compare" in note]
    assert note.startswith("Differences are to r m0 and between models named together")


def test_one_judge_asked_in_two_ways_has_two_heads():
    ways = [JudgeName("openai", "m", "m-1", "p", (), {"url": f"http://{host}/v1"}) for host in ("one", "two")]
    table = table_json([scores("a", rows("accuracy", 1.0), way, kind="qa", benchmark="mine") for way in ways])
    text, document = table_page.markdown(table), table_page.document(table, "r", {}, [], {})
    assert all(content.count("at one") == content.count("at two") == 1 for content in (text, document))


def test_heads_are_short_and_what_makes_them_exact_stands_below():
    judge = JudgeName("hf", "tiny", "c2403678ca3ee18a", "dd9adf493af2", ("2026-11-25",))
    table = table_json([scores("m", rows("accuracy", 1.0), judge, kind="action", benchmark="hmdb51")])
    text = table_page.markdown(table)
    assert "## Judge: tiny (hf)\n\nversion c2403678ca3ee18a, prompt dd9adf493af2, 2026-11-25\n" in text
    page = table_page.document(table, "r", {}, [], {})
    assert "<h2>Judge: tiny (hf)</h2>" in page and "<span>2026-11-25</span>" in page
    assert "## Published, protocol not named" in text and "Protocol not named. Not comparable" in page
    assert judge_head(vars(JudgeName("normalised", "normalised match", "1", ""))) == "normalised match"


def test_worst_and_best_examples():
    grades = [*rows("correctness", 5.0, 0.0, 3.0, 4.0), Grade("x", "c", "correctness", None, "no such clip")]
    assert examples(scores("m", grades), 1) == (["correctness1"], ["correctness0"])
    assert examples(scores("m", grades), 9) == (["correctness1", "correctness2"], ["correctness0", "correctness3"])
    good = rows("accuracy", 1.0, 1.0, 1.0, 0.0)
    assert examples(scores("m", good), 9) == (["accuracy3"], ["accuracy2", "accuracy1"])  # no perfect answer among the worst
    bad = rows("accuracy", 0.0, 0.0, 0.0, 1.0)
    assert examples(scores("m", bad), 9) == (["accuracy0", "accuracy1"], ["accuracy3"])  # nor a wrong one among the best


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_is_whole_and_loads_nothing():
    table = table_json([scores("<b>sft", five()), scores("rlaif", five())])
    drawn = {"radar.svg": "<svg onload='x'/>", "bars.svg": "<svg/>"}
    example = {"side": "worst", "question": "What?", "truth": "<script>", "answers": [("sft", "said <i>", "score 1 of 5")]}
    example |= {"strip": "s0", "frames": 8, "aspect": 1.0}
    page = table_page.document(table, "run r", drawn, [example], {"s0": b"jpeg"})
    tags = Tags()
    tags.feed(page)
    names = [name for name, _ in tags.seen]
    assert "script" not in names and "svg" not in names and names.count("img") == 2 and "<b>sft" not in page
    for _, attributes in tags.seen:
        assert not re.match(r"https?:|//", attributes.get("src") or attributes.get("href") or "")
    assert "score 1 of 5" in page and "+0.00 [+0.00, +0.00]" in page and "VLM-RLAIF 7B" in page


def test_pictures_keep_judges_apart():
    other = scores("b", five(), replace(JUDGE, version="v2"))
    result = plots.panels(table_json([scores("a", five()), other]))
    assert [[series.model for series in panel.series] for panel in result[:2]] == [["r a"], ["r b"]]
    assert result[2].title == "Published (gpt-3.5-turbo, version not named)"
    for svg in (plots.radar(result), plots.bars(result)):
        assert svg.startswith("<?xml") and svg.count('id="axes_') == 3


def test_pictures_say_whom_they_leave_out_and_which_whiskers_to_trust():
    (panel,) = plots.panels(table_json(models(8)))
    assert [series.model for series in panel.series] == [f"r m{n}" for n in range(6)]
    assert panel.caption(False) == "judge (openai)\nnot drawn, only in the table: r m6, r m7"
    assert panel.caption(True).endswith("\ndotted: fewer than 30 clips")
    many = [Grade(f"q{n}", f"clip{n}", "accuracy", 1.0) for n in range(30)]
    (panel,) = plots.panels(table_json([scores("m", many, kind="qa", benchmark="mine")]))
    assert panel.caption(True) == "judge (openai)"
    published_panel = plots.panels(table_json([scores("m", five())]))[1]
    assert published_panel.caption(False).endswith("not drawn: 10 more of the table's models")  # of fourteen four are drawn
    two = [scores("m", five()), scores("n", five(), replace(JUDGE, version="v2"))]
    assert "version v1" in plots.panels(table_json(two))[0].title  # two versions of one judge have different titles


def test_a_radar_says_who_lacks_one_of_the_five():
    four = [grade for grade in five() if grade.metric != "temporal"]
    svg = plots.radar(plots.panels(table_json([scores("a", five()), scores("b", four)])))
    assert "without all five, not drawn: r b" in svg
    assert "without all five" not in plots.radar(plots.panels(table_json([scores("a", five())])))


def bar_widths(svg: str) -> list[float]:
    """Widths of the bars in points, legend apart."""
    axes = svg.split('id="legend_1"')[0]
    paths = re.findall(r'<path d="M (\S+) \S+ \nL (\S+) \S+ \n[^"]*" clip-path[^>]*style="fill: #4d8c7d"', axes)
    return [float(right) - float(left) for left, right in paths]


def test_one_model_gets_no_huge_bar_and_values_have_an_axis():
    (panel,) = plots.panels(table_json(models(1)))
    svg = plots.bars([panel])
    score = next(iter(plots.panels(table_json([scores("a", five())]))))
    assert len(bar_widths(svg)) == 1 and 10 < bar_widths(svg)[0] < 40  # points: half an inch is 36
    assert "<!-- % -->" in svg and "<!-- 80 -->" in svg and "score, 0 to 5" not in svg
    scored = plots.bars([score])
    assert "<!-- score, 0 to 5 -->" in scored and "<!-- % -->" not in scored
    both = plots.Panel("j", [plots.Series("a", {"accuracy": 0.5, "score": 2.5}, {})])
    assert "<!-- % -->" in plots.bars([both]) and "<!-- score, 0 to 5 -->" in plots.bars([both])


def test_pictures_of_what_has_no_figures():
    nothing = plots.panels(table_json([scores("a", rows("accuracy", None), kind="qa", benchmark="mine")]))
    assert plots.radar(nothing) == plots.bars(nothing) == ""
