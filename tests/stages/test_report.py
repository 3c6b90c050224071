"""Stage `report`: its numbers by hand, its words, and that nobody's text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minirlaif.config import Config, load
from minirlaif.errors import UserError
from minirlaif.reports import html as page
from minirlaif.reports import run_results
from minirlaif.runs.io import read_json
from minirlaif.runs.records import read_sealed, write_sealed
from minirlaif.runs.run import Run
from minirlaif.stages import report
from minirlaif.stages.registry import STAGES

SECTIONS = ["next", "accuracy", "controls", "judge", "reward", "training", "gallery", "time", "counts"]
ATTACK = '<script>alert(1)</script><img src="http://x.invalid/a" onerror=alert(2)>'
ANSWERS = {  # kind -> truth, SFT answer, aligned answer
    "worse": ("a cross", "a cross", "a circle"),
    "better": ("a cross", "a square", "a cross"),
    "both wrong": ("a cross", "a square", "a circle"),
    "both right": ("a cross", "a cross", "A cross."),
}


def jpeg(frames: int, colour: int = 0) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8 * frames, 8), (colour, 90, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def row(number: int, kind: str, truth: bool = True, strip: bool = True, **other: Any) -> dict[str, Any]:
    true, sft, rlaif = ANSWERS[kind]
    return {"id": f"q{number}", "video": f"clip{number}.mp4", "type": "what", "question": f"what is {number}?", "base": "a dot",
            "truth": true if truth else None, "strip": f"strips/{number:03d}.jpg" if strip else "", "sft": sft,
            "rlaif": rlaif, **other}  # fmt: skip


def result(rows: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    names = [model + control for model in ("base", "sft", "rlaif") for control in ("", "_blind", "_shuffled")]
    right = dict.fromkeys(names, 0.125) | {"base": 0.45, "sft": 0.23, "rlaif": 0.46, "guess": 0.12}
    ends = {"with_context_ci95": [0.9, 0.97], "without_context_ci95": [0.6, 0.7], "letter_ci95": None}
    judged = {
        "with_context": 0.95,
        "with_context_n": 60,
        "without_context": 0.65,
        "without_context_n": 50,
        "letter": None,
        "letter_n": 0,
    }
    numbers: dict[str, Any] = {"test_items": len(rows), "test_clips": len(rows), "seed": 3, "accuracy": right}
    numbers["test_clips_seen_before"] = 0
    numbers["accuracy_by_type"] = {"what": {**right, "n": len(rows)}}
    numbers["accuracy_gain"] = {"mean": 0.23, "ci95_low": 0.19, "ci95_high": 0.27}
    numbers["gain_over_base"] = {"mean": 0.01, "ci95_low": -0.02, "ci95_high": 0.04}
    numbers["judge"] = {**judged, **ends, "by_type": {"what": 0.95}, "swap_consistency": 1.0, "decided_share": 0.8}
    numbers["reward_model"] = {
        "accuracy": 0.9,
        "n": 20,
        "against_judge": 0.88,
        "by_type": {"what": 0.88},
        "bias": 0.1,
        "beta": 2.5,
    }
    return numbers | {"context": {"segment_accuracy": 0.94, "segments": 100}} | other


def verdict(number: int, without: str, letter: list[str] | None) -> dict[str, Any]:
    read = {"choice": without, "orders": [without, without]}
    row = {"id": f"p{number}", "answer_a": "a", "answer_b": "a b", "choice": "A", "orders": ["A", "A"], "without_context": read}
    return row if letter is None else {**row, "letter": {"choice": "disagree", "orders": letter}}


def make(
    root: Path, rows: list[dict[str, Any]], outcome: dict[str, Any], decodes: int = 10, overrides: tuple[str, ...] = ()
) -> tuple[Config, Run]:
    """A run whose stages are finished, with small files written by hand."""
    cfg, run = load(None, ["evaluate.bootstrap=50", *overrides]), Run(root)
    from minirlaif.config import plain

    before: list[str] = []
    for name in run.inputs("report"):
        parts = dict.fromkeys(("feedback", "reward", *(part for part in STAGES[name].sections if part not in ("model", "video"))))
        with run.stage(name, {part: plain(getattr(cfg, part)) for part in parts}, list(before)) as out:
            assert out is not None
            FILL.get(name, lambda out: None)(out)
            if name == "evaluate":
                (out.path / "result.json").write_text(json.dumps(outcome))
                (out.path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
                (out.path / "strips").mkdir()
                for line in rows:
                    if line["strip"]:
                        (out.path / line["strip"]).write_bytes(jpeg(12, int(line["id"].removeprefix("q")) * 20))
            counted = name in ("sft", "evaluate")
            out.counters = (
                {"decodes": decodes, "encodes": 10, "plans": 10, "encoded_frames": 120, "prefilled_tokens": 7} if counted else {}
            )
        before.append(name)
    return cfg, run


def _sft(out: Any) -> None:
    out.log(1, stage="short", loss=1.0)
    out.log(2, stage="long", loss=0.5)


def _feedback(out: Any) -> None:
    rows = [
        verdict(0, "A", ["A", "B"]),
        verdict(1, "tie", ["B", "B"]),
        verdict(2, "tie", ["A", "B"]),
        verdict(3, "B", ["B", "A"]),
    ]
    (out.path / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    out.summary.update({"decided": 4, "pairs": 5, "same_answers": 1, "decided_share": 0.8, "tie": 2, "invalid": 3, "disagree": 4,
                        "swap_consistency": 1.0, "longer_wins": 0.44})  # fmt: skip


def _reward(out: Any) -> None:
    out.log(1, loss=0.6, accuracy=0.5)
    out.summary.update({"accuracy": 0.88, "accuracy_by_type": {"what": 0.88}, "bias": 0.1, "beta": 2.5})


def _ppo(out: Any) -> None:
    out.log(1, score=0.1, kl=0.0, length=8.0, entropy=0.3)
    out.log(2, score=0.4, kl=0.2, length=9.0, entropy=0.2, dev_win_rate=0.6)
    out.summary.update({"chosen_iteration": 2, "dev_win_rate": 0.6, "dev_questions": 40, "kl": 0.2, "score": 0.4})


FILL = {"sft": _sft, "feedback": _feedback, "reward": _reward, "ppo": _ppo}
ROWS = [row(number, kind) for number, kind in enumerate([*ANSWERS, "better"])]


class Reader(HTMLParser):
    """Elements and attributes; asserts that they nest."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def written(cfg: Config, run: Run) -> tuple[dict[str, Any], str]:
    report.run(cfg, run)
    return json.loads((run.root / "report.json").read_text()), (run.root / "report.html").read_text()


def test_numbers(tmp_path: Path):
    numbers, _ = written(*make(tmp_path / "r", ROWS, result(ROWS)))
    assert numbers["accuracy"]["rlaif_blind"] == 0.125 and numbers["accuracy_gain"]["ci95_low"] == 0.19
    assert numbers["counts"]["decodes_per_clip"] == 1.0 == numbers["counts"]["encodes_per_clip"]
    assert numbers["counts"]["total"] == {
        "decodes": 20,
        "encodes": 20,
        "encoded_frames": 240,
        "plans": 20,
        "opened": 0,
        "prefilled_tokens": 14,
    }
    assert set(numbers["seconds"]) == {"sft", "feedback", "reward", "ppo", "evaluate"}
    assert numbers["seed"] == 3 and numbers["test_items"] == 5
    judge = numbers["judge"]
    assert (judge["with_context"], judge["swap_consistency"], judge["invalid"], judge["longer_wins"]) == (0.95, 1.0, 3, 0.44)
    assert judge["without_context_decided_share"] == 0.5  # A and B of four
    assert (judge["letter_swap_consistency"], judge["letter_first_shown_share"], judge["letter_second_shown_share"]) == (
        0.25,
        0.5,
        0.25,
    )
    assert numbers["cases"] == {"worse": 1, "better": 2, "both wrong": 1, "both right": 1}
    assert numbers["against_base"] == "level" and numbers["ppo"]["chosen_iteration"] == 2
    low, high = numbers["accuracy_ci95"]["sft"]
    assert 0 <= low < 0.4 < high <= 1  # two of five answers are right
    assert numbers["accuracy_ci95"]["base"] == [0, 0]


def test_tiles_say_out_of_how_many(tmp_path: Path):
    _, html = written(*make(tmp_path / "r", ROWS, result(ROWS)))
    tiles = [" ".join(text.split()) for text in Reader(html).words]
    for note in (
        "5 questions · ",
        "60 decided pairs",
        "against truth · 20 held-out pairs · ",
        "over its start, by the judge · 40 dev questions",
    ):
        assert any(note.strip() in text for text in tiles), note
    assert tiles.count("too few to rely on") == 4  # three models and the reward model


def test_an_interval_without_width_is_none(tmp_path: Path):
    """Of one clip every resample is the same: neither a gain nor a loss is shown by it."""
    nothing = {"mean": 1.0, "ci95_low": 1.0, "ci95_high": 1.0}
    rows = [row(0, "better")]
    numbers, html = written(*make(tmp_path / "r", rows, result(rows, accuracy_gain=nothing, gain_over_base=nothing)))
    read = Reader(html).text
    assert "No clear change" in read and "+100.0 points over SFT (too few questions for an interval)" in read
    assert "100.0 to" not in read and numbers["against_base"] == "level" and "0.0 to 0.0" not in read


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        (0.0, "No clear change in accuracy", "That is 0.0 points over the base (the same about every clip)"),
        (1.0, "Accuracy rose from", "That is +100.0 points over the base (the same about every clip)"),
        (-1.0, "Accuracy fell from", "That is −100.0 points over the base (the same about every clip)"),
    ],
)
def test_an_interval_of_many_questions_may_have_no_width(change: float, verdict: str, said: str):
    """A method that kept its start answers every question as its start does."""
    gain = dict.fromkeys(("mean", "ci95_low", "ci95_high"), change)
    right = {"base": 0.5 - change / 2, "rlaif": 0.5 + change / 2}
    numbers = {
        "test_items": 750, "answered_items": 750, "test_clips": 250, "test_clips_seen_before": 0, "start": "base", "seed": 0,
        "accuracy": right, "gain_over_base": gain, "accuracy_ci95": {name: (value, value) for name, value in right.items()},
        "method": "dpo", "dpo": {"chosen_iteration": 0, "dev_win_rate": None}, "reward_model": None,
        "judge": {"with_context": None, "decided_share": 0.5, "pairs": 100},
    }  # fmt: skip
    read = Reader(str(run_results.headline("run", numbers))).text
    assert verdict in read and said in read and "too few" not in read
    assert "no later checkpoint was better by more than the standard error" in read


def test_a_policy_that_was_not_kept_is_named(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    outputs = report.read(run)
    outputs.manifests["ppo"]["metrics"]["chosen_iteration"] = 0
    html = report.document(cfg.evaluate, "r", outputs, report.summary(cfg.evaluate, outputs))
    assert (
        Reader(html).text.count("No checkpoint of ppo was kept: the RLAIF model is the model that ppo started from.") == 2
        and "dashed line marks" not in html
        and html.count('"chosen"') == 1
    )  # SFT's own
    read = Reader(html).text
    assert "the start itself: nothing later was kept" in read and "over its start, by the judge" not in read
    assert "so both give the same answers" not in read  # it is that of another method: its answers differ from SFT's
    for row_ in outputs.answers:
        row_["rlaif"] = row_["sft"]
    said = "RLAIF is the model that it started from, so both give the same answers."
    assert said in Reader(report.document(cfg.evaluate, "r", outputs, report.summary(cfg.evaluate, outputs))).text
    outputs.manifests["ppo"]["metrics"]["chosen_iteration"] = 10
    assert said not in Reader(report.document(cfg.evaluate, "r", outputs, report.summary(cfg.evaluate, outputs))).text


def test_that_the_tiny_base_knows_the_tiny_world_alone_is_said_where_other_clips_may_be(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    said = "The tiny base knows the tiny world alone"
    outputs = report.read(run)
    assert said not in written(cfg, run)[1]
    outputs.manifests["feedback"]["config"]["model"] = {"base": "tiny"}
    numbers = report.summary(cfg.evaluate, outputs)
    assert numbers["base"] == "tiny"
    assert said in report.document(cfg.evaluate, "r", outputs, numbers)
    assert said not in report.document(cfg.evaluate, "r", outputs, numbers | {"world": True})


def test_why_the_judge_was_not_measured_is_said(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    outputs = report.read(run)
    numbers = report.summary(cfg.evaluate, outputs)
    for figures, why in (
        ({"with_context": None, "decided_share": 0.5}, "no truth is known for these pairs."),
        ({"with_context": None, "decided_share": 0.0}, "no pair was decided."),
        ({"without_context": None}, "no pair was decided without descriptions."),
    ):
        changed = numbers | {"judge": numbers["judge"] | figures}
        read = Reader(report.document(cfg.evaluate, "r", outputs, changed)).text
        assert f"Agreement with the truth was not measured: {why}" in read


def test_why_the_base_may_stay_ahead_in_the_tiny_world(tmp_path: Path):
    worse = {"mean": -0.05, "ci95_low": -0.08, "ci95_high": -0.02}
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS, gain_over_base=worse))
    assert "world.still_share" not in written(cfg, run)[1]
    with run.stage("world", {"world": {"dev_clips": 10, "test_clips": 10}}):
        pass
    assert "labels are as wrong as world.still_share and world.shuffled_share make them" in written(cfg, run)[1]


def test_no_text_about_what_is_not_there(tmp_path: Path):
    """Questions without types, and no letters: no table of one row, no heading over nothing, no remark about letters."""
    outcome = result(ROWS)
    outcome["accuracy_by_type"] = {"all": outcome["accuracy_by_type"]["what"]}
    outcome["judge"]["by_type"], outcome["reward_model"]["by_type"] = {"all": 0.9}, {}
    cfg, run = make(tmp_path / "r", ROWS, outcome, overrides=("feedback.readout=likelihood",))
    outputs = report.read(run)
    for line in outputs.verdicts:
        line.pop("letter", None)
    page_ = str(report.document(cfg.evaluate, "r", outputs, report.summary(cfg.evaluate, outputs)))
    html = Reader(page_[: page_.index("<footer")] + "</main></body></html>").text
    assert "by type" not in html.lower().replace("type of question", "") and "etter read-out" not in html
    assert page_[: page_.index('id="controls"')].count('<th scope="row">all</th>') == 1


def test_strips_keep_their_proportions(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    outputs = report.read(run)
    assert "--n:12;--aspect:1;" in report.document(cfg.evaluate, "r", outputs, report.summary(cfg.evaluate, outputs))
    outputs.manifests["evaluate"]["config"]["video"] = {"frames": 6}  # the same pictures, taken for half as many twice as wide
    html = report.document(cfg.evaluate, "r", outputs, report.summary(cfg.evaluate, outputs))
    assert "--n:6;--aspect:2;" in html and "aspect-ratio:var(--aspect,1)" in html


def test_status_knows_the_evaluation_that_a_report_shows(tmp_path: Path):
    from minirlaif.runs.status import report_state

    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    written(cfg, run)
    assert report_state(run) == ("finished", str(run.root / "report.html"))
    with run.stage("ppo", {"other": 1}, redo=True):
        pass
    assert report_state(run)[0].startswith("outdated")  # what the evaluation stands on was made again


def test_a_second_decode_shows(tmp_path: Path):
    numbers, html = written(*make(tmp_path / "r", ROWS, result(ROWS), decodes=15))
    assert numbers["counts"]["decodes_per_clip"] == 1.5
    assert "decoded and encoded once" not in html and "1.50" in html


def test_a_clip_that_a_copied_run_read_again_counts_once(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    (run.root / "cache").mkdir()
    with closing(sqlite3.connect(run.root / "cache" / "features.sqlite")) as db:
        db.execute("CREATE TABLE clips (path TEXT PRIMARY KEY, stamp TEXT, info TEXT)")
        db.execute("CREATE TABLE vectors (key TEXT)")
        infos = [(f"/{place}/{id}.mp4", "", json.dumps({"id": id})) for place in ("here", "copy") for id in ("a", "b")]
        db.executemany("INSERT INTO clips VALUES (?, ?, ?)", infos)
        db.commit()
    assert written(cfg, run)[0]["counts"]["clips"] == 2


def test_what_was_left_out_of_the_data_is_counted(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    numbers, html = written(cfg, run)
    assert "left_out" not in numbers["counts"] and "Left out of the data" not in html
    kinds = ["duplicate", "bad row", "bad row"]
    lines = [json.dumps({"kind": kind, "file": "rows.jsonl", "row": n, "reason": "x"}) for n, kind in enumerate(kinds, 1)]
    (run.root / "left_out.jsonl").write_text("\n".join(lines) + "\n")
    numbers, html = written(cfg, run)
    assert numbers["counts"]["left_out"] == {"bad row": 2, "duplicate": 1}
    assert "Left out of the data: 2 bad rows, 1 repeated rows." in " ".join(Reader(html).text.split())


def test_page_is_whole_and_in_order(tmp_path: Path):
    _, html = written(*make(tmp_path / "r", ROWS, result(ROWS)))
    read = Reader(html)
    assert [value for name, value in read.attributes if name == "id"] == SECTIONS
    assert "Accuracy rose from 23.0 % (SFT) to 46.0 % (RLAIF)" in read.text
    assert "+23.0 points over SFT (95 % interval +19.0 to +27.0)" in read.text
    assert "The dashed line marks iteration 2, whose weights were kept." in read.text
    assert read.names.count("svg") == 8 and read.names.count("article") == 5
    assert html.count("url(data:image/jpeg") == 5


def test_the_next_steps_stand_in_both_files_with_commands_of_this_run(tmp_path: Path):
    """40 dev questions and 5 test questions are too few; more dev questions come first."""
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    numbers, html = written(cfg, run)
    assert [step["symptom"] for step in numbers["next_steps"]] == [
        "The checkpoint was chosen on 40 dev questions.",
        "The test has 5 questions.",
    ]
    assert numbers["next_steps"][1]["command"] == (
        f"python -m minirlaif run evaluate report --config … --run r --runs-dir {tmp_path.name} --redo"
    )  # of folders outside only the name: a report is passed on
    text = Reader(html).text
    assert all(value in text for step in numbers["next_steps"] for value in step.values())


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.05, 0.02, 0.08), "RLAIF is above the base before SFT (45.0 %): +5.0 points, 95 % interval +2.0 to +8.0."),
        ((-0.05, -0.08, -0.02), "RLAIF is below the base before SFT (45.0 %): −5.0 points, 95 % interval −8.0 to −2.0."),
        (
            (0.01, -0.02, 0.04),
            "No clear difference from the base before SFT (45.0 %): +1.0 points, 95 % interval −2.0 to +4.0, which",
        ),
    ],
)
def test_whether_the_base_is_passed(tmp_path: Path, gain: tuple[float, float, float], words: str):
    over = dict(zip(("mean", "ci95_low", "ci95_high"), gain, strict=True))
    _, html = written(*make(tmp_path / "r", ROWS, result(ROWS, gain_over_base=over)))
    assert words in Reader(html).text


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (0, "on 5 held-out questions about 5 clips. No earlier stage used these clips."),
        (2, "on 5 test questions about 5 clips. Earlier stages used 2 of these clips, so"),
        (None, "on 5 test questions about 5 clips. Whether an earlier stage used these clips could not be determined."),
    ],
)
def test_whether_the_clips_are_new(tmp_path: Path, seen: int | None, words: str):
    numbers, html = written(*make(tmp_path / "r", ROWS, result(ROWS, test_clips_seen_before=seen)))
    assert words in Reader(html).text and numbers["test_clips_seen_before"] == seen
    assert seen == 0 or ("held-out questions" not in html and "No earlier stage" not in html)


def test_questions_without_an_answer_count_in_no_accuracy(tmp_path: Path):
    rows = [*ROWS, row(7, "both wrong", truth=False)]
    numbers, html = written(*make(tmp_path / "r", rows, result(rows, answered_items=5)))
    assert numbers["answered_items"] == 5 and numbers["test_items"] == 6
    alone, _ = written(*make(tmp_path / "alone", ROWS, result(ROWS)))
    assert numbers["accuracy_ci95"] == alone["accuracy_ci95"] and alone["answered_items"] == 5
    assert "1 of the questions have no true answer" in Reader(html).text and "1 of 5 questions" in Reader(html).text


def test_settings_are_those_that_the_stages_were_made_with(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    made = {"ppo": {"ppo": {"iterations": 40}, "video": {"frames": 8}, "data": {"dev": ["d"], "sha256": {"d": "34"}}}}
    made["evaluate"] = {"video": {"frames": 9}, "data": {"test": ["t"], "sha256": {"t": "12"}}}
    for stage, settings in made.items():
        path = run.dir(stage) / "manifest.json"
        manifest = read_sealed(path)
        write_sealed(path, {**manifest, "config": {**manifest["config"], **settings}})
    other = load(None, ["evaluate.bootstrap=50", "ppo.iterations=999", "seed=8"])
    assert written(other, run) == written(cfg, run)
    text = written(other, run)[1]
    assert "iterations: 40" in text and "999" not in text and "video (evaluate):" in text
    assert all(words in text for words in ("t: &#39;12&#39;", "d: &#39;34&#39;", "test:", "dev:")), text[-3000:]


@pytest.mark.parametrize(("low", "high", "words"), [(-0.2, -0.1, "Accuracy fell"), (-0.1, 0.1, "No clear change")])
def test_a_bad_result_is_stated(tmp_path: Path, low: float, high: float, words: str):
    poor = {"mean": (low + high) / 2, "ci95_low": low, "ci95_high": high}
    _, html = written(*make(tmp_path / "r", ROWS, result(ROWS, accuracy_gain=poor)))
    assert words in html and "Accuracy rose" not in html


def test_nobodys_text_becomes_markup(tmp_path: Path):
    texts = dict.fromkeys(("question", "type", "truth", "sft", "rlaif", "base"), ATTACK)
    rows = [*ROWS, {**row(9, "worse"), **texts}, {**row(8, "both wrong"), **texts, "truth": "x", "sft": ATTACK + "x"}]
    outcome = result(rows)
    outcome["accuracy_by_type"][ATTACK] = outcome["accuracy_by_type"]["what"]
    outcome["judge"]["by_type"][ATTACK] = outcome["reward_model"]["by_type"][ATTACK] = 0.5
    _, html = written(*make(tmp_path / "<script>r", rows, outcome))
    read = Reader(html)
    assert not {"script", "img", "link", "iframe", "object"} & set(read.names)
    assert ATTACK in read.text  # shown as it was written
    for name, value in read.attributes:
        assert not name.startswith("on") and name not in ("src", "href")
        assert "url(" not in value
    styles = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in styles and styles.count("url(") == styles.count("url(data:image/jpeg;base64,")
    assert f'<meta http-equiv="Content-Security-Policy" content="{page.POLICY}">' in html and "default-src 'none'" in page.POLICY


def test_worse_cases_are_never_left_out(tmp_path: Path):
    rows = [row(n, "better") for n in range(5)] + [row(7, "worse", strip=False)]
    cfg, run = make(tmp_path / "r", rows, result(rows), overrides=("evaluate.gallery=3",))
    _, html = written(cfg, run)
    assert "Right before RLAIF, wrong after it" in html and "what is 7?" in html and "Frames of this clip were not kept" in html
    assert html.count("<article") == 3


def test_gallery_shows_other_clips_first_and_borrows_frames():
    rows = [row(1, "worse"), row(2, "worse", video="clip1.mp4"), row(3, "worse"), row(4, "worse", strip=False, video="clip3.mp4")]
    shown = report.chosen(rows, 8)
    assert [line["id"] for line in shown] == ["q1", "q3", "q2", "q4"]
    assert shown[3]["strip"] == "strips/003.jpg"


def test_frames_are_kept_of_every_kind_of_case():
    """Ten clips put right come before the one made worse, but two pictures are enough for both kinds."""
    from minirlaif.stages.evaluate import _gallery
    from minirlaif.types import Sample, Turn

    kinds = ["better"] * 10 + ["worse", "worse"]
    tests = [Sample(f"q{n}", f"{n}.mp4", (Turn("what?", ANSWERS[name][0]),)) for n, name in enumerate(kinds)]
    answers = {model: [ANSWERS[name][place] for name in kinds] for place, model in ((1, "sft"), (2, "rlaif"))}
    answers["base"] = ["" for _ in kinds]
    assert _gallery(tests, answers, 2) == {"0.mp4", "10.mp4"}
    assert _gallery(tests, answers, 5) == {"0.mp4", "1.mp4", "2.mp4", "10.mp4", "11.mp4"}
    unknown = [Sample(row.id, row.video, (Turn("what?"),)) for row in tests]
    assert _gallery(unknown, answers, 3) == {"0.mp4", "1.mp4", "2.mp4"} and _gallery(tests, answers, 99) == {
        row.video for row in tests
    }


def test_gallery_is_balanced():
    """As many cards of harm as of help; harm is shown without frames rather than not at all; the rest is filled in turn."""
    rows = [row(n, "better") for n in range(30)] + [row(n, "worse", strip=n > 46) for n in range(40, 50)]
    kinds = [run_results.kind(line) for line in report.chosen([*rows, *(row(n, "both right") for n in range(60, 70))], 24)]
    assert kinds.count("worse") == 7 and 7 <= kinds.count("better") <= 11 and kinds.count("both right") >= 7


def test_no_worse_case_is_stated(tmp_path: Path):
    rows = [row(0, "better"), row(1, "both wrong")]
    _, html = written(*make(tmp_path / "r", rows, result(rows)))
    assert "No test question was right before RLAIF and wrong after it." in html


def test_clips_without_truth(tmp_path: Path):
    rows = [row(number, kind, truth=False) for number, kind in enumerate(ANSWERS)]
    numbers, html = written(*make(tmp_path / "r", rows, {"test_items": 4, "test_clips": 4, "seed": 3}))
    read = Reader(html)
    assert "have no true answers" in read.text and "side by side" in read.text
    assert "right" not in [word for word in read.words if "✓" in word] and "✓" not in html and "✗" not in html
    assert [value for name, value in read.attributes if name == "id"] == [
        s for s in SECTIONS if s not in ("accuracy", "controls")
    ]
    assert numbers["accuracy"]["sft"] is None and numbers["judge"]["decided_share"] == 0.8
    assert numbers["reward_model"]["accuracy"] is None and numbers["reward_model"]["against_judge"] == 0.88
    assert read.names.count("article") == 4


def test_departures_and_the_swap_note_follow_the_settings(tmp_path: Path):
    _, plain = written(*make(tmp_path / "a", ROWS, result(ROWS)))
    assert "reads the frames and the question" in plain and "as in the paper" in plain and "by construction" not in plain
    overrides = ("reward.context=true", "reward.likelihood=true", "feedback.readout=likelihood")
    _, html = written(*make(tmp_path / "b", ROWS, result(ROWS), overrides=overrides))
    gone = html[: html.index("<footer")]
    assert "reward.context" in gone and "reward.likelihood" in gone and "2.5" in gone
    assert "Departures from the paper" in gone and "by construction" in gone
    assert "reward.likelihood" not in plain


def test_intervals_of_a_few_pairs_are_not_compared():
    """One pair each, right and wrong: two intervals without width say nothing."""
    ends = {"with_context_ci95": [1.0, 1.0], "without_context_ci95": [0.0, 0.0]}
    counted = dict.fromkeys(("pairs", "tie_asked", "invalid", "disagree", "same_answers", "letter_pairs"), 0)
    shares = dict.fromkeys(("decided_share", "without_context_decided_share", "swap_consistency", "longer_wins"), 0.5)
    judged = {"with_context": 1.0, "without_context": 0.0, **ends, **counted, **shares}
    settings = {"readout": "letter", "margin": 0.0}
    for n, text in ((29, "too few pairs to compare"), (30, "do not overlap")):
        numbers = {"judge": {**judged, "with_context_n": 300, "without_context_n": n}, "context": None}
        assert text in str(run_results.judge(numbers, settings))


def test_a_share_of_nothing_is_a_dash(tmp_path: Path):
    """No held-out pair, and no pair of different answers: not 0 %."""
    cfg, run = make(tmp_path / "r", ROWS, {"test_items": 4, "test_clips": 4, "seed": 3})
    for name, field, value in (("reward", "held_out_pairs", 0), ("reward", "accuracy", 0.0)):
        manifest = read_json(run.dir(name) / "manifest.json")
        write_sealed(run.dir(name) / "manifest.json", {**manifest, "metrics": {**manifest["metrics"], field: value}})
    same = [{**verdict(0, "tie", None), "answer_a": "a dot", "answer_b": "a dot", "choice": "tie"}]
    outputs = replace(report.read(run), verdicts=same)
    numbers = report.summary(cfg.evaluate, outputs)
    judged, model = numbers["judge"], numbers["reward_model"]
    assert (judged["swap_consistency"], judged["longer_wins"], judged["decided_share"]) == (None, None, None)
    assert model["against_judge"] is None and model["held_out_pairs"] == 0
    text = Reader(str(report.document(cfg.evaluate, "r", outputs, numbers))).text
    shown = text[text.index("Accuracy on held-out pairs") :]
    assert "–" in shown[:100] and "0.0" not in shown[: shown.index("–")]


def test_controls_say_when_blank_frames_do_not_blind():
    right = {f"{m}{c}": 0.3 for m in run_results.MODELS for c in ("", "_blind", "_shuffled")} | {"guess": 0.28}
    assert "more than 2.0 points above guessing" in run_results.controls({"start": "sft", "accuracy": right, "test_items": 30})
    assert "still 6.0 points above" in (
        far := run_results.controls({"start": "sft", "accuracy": right | {"sft_blind": 0.34}, "test_items": 30})
    )
    assert "does not depend on the frames" in far and "too few" not in far
    # Below guessing is what blindness looks like, not a warning sign.
    below = run_results.controls(
        {"start": "sft", "accuracy": right | {f"{m}_blind": 0.1 for m in run_results.MODELS}, "test_items": 29}
    )
    assert "no model is better than guessing" in below and "29 questions are too few" in below


def test_that_answers_come_from_the_frames_is_said_only_where_it_was_shown():
    """Nine bars of zero say nothing, and neither does a gain whose interval holds zero."""
    right = {f"{m}{c}": 0.0 for m in run_results.MODELS for c in ("", "_blind", "_shuffled")} | {"guess": 0.09}
    numbers = {"start": "sft", "accuracy": right, "test_items": 300}

    def text(**gains: tuple[float, float, float]) -> str:
        ends = {name: dict(zip(("mean", "ci95_low", "ci95_high"), gain, strict=True)) for name, gain in gains.items()}
        return str(run_results.controls(numbers | {"gain_over_blank": ends}))

    nothing = (0.0, 0.0, 0.0)
    assert "not shown for Base, SFT, RLAIF" in text(base=nothing, sft=nothing, rlaif=nothing)
    sure, unsure = (0.5, 0.4, 0.6), (0.02, -0.01, 0.05)
    assert "not shown for SFT:" in (half := text(base=sure, sft=unsure, rlaif=sure)) and "come from the frames." not in half
    shown = text(base=sure, sft=(0.2, 0.15, 0.25), rlaif=sure)
    assert "at least 15.0 points better than with blank ones" in shown and "come from the frames." in shown
    assert "come from the frames" not in run_results.controls(numbers)  # of an evaluation that did not measure it


def test_written_anew_each_time_without_a_folder(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    before = {path.name for path in run.root.iterdir()}
    first = written(cfg, run)
    (run.root / "report.html").write_text("old")
    assert written(cfg, run) == first
    assert {path.name for path in run.root.iterdir()} - before == {"report.html", "report.json"}


def test_a_missing_stage_is_named(tmp_path: Path):
    cfg, run = make(tmp_path / "r", ROWS, result(ROWS))
    run.set_aside("evaluate")
    with pytest.raises(UserError, match="minirlaif evaluate"):
        report.run(cfg, run)
    assert not (run.root / "report.html").exists()


def test_words_for_numbers():
    assert page.percent(0.6546666) == "65.5\u00a0%" and page.percent(None) == "–" and page.share(0.5) == "50.0"
    assert [page.points(x) for x in (0.128, -0.02, 0.0, -0.0001)] == ["+12.8", "−2.0", "0.0", "0.0"]
    assert page.interval(-0.08, 0.1) == "−8.0 to +10.0"
    assert [page.duration(s) for s in (3.21, 18.187, 84.07, 7380)] == ["3.2 s", "18 s", "1 min 24 s", "2 h 03 min"]
    assert [page.number(x) for x in (421142, -0.7374, 2.0, None)] == ["421\u202f142", "−0.737", "2", "–"]


def test_ticks():
    assert page.ticks(0.0, 0.737) == [0, 0.25, 0.5, 0.75]
    assert page.ticks(-3, 4) == [-5, -2.5, 0, 2.5, 5]
    low, *_, high = page.ticks(5.0, 5.0)
    assert low < 5 < high
    with pytest.raises(ValueError):
        page.ticks(0, float("nan"))


def test_curve():
    drawn = page.curve("Score", [(1, 0.0), (2, None), (3, 1.0)], dashed=3)
    spots = drawn.split('points="')[1].split('"')[0].split()
    assert spots == [f"{page.LEFT:.1f},{page.HEIGHT - page.BOTTOM:.1f}", f"{page.WIDTH - page.RIGHT:.1f},{page.TOP:.1f}"]
    assert "chosen" in drawn and "chosen" not in page.curve("Score", [(1, 0.0)], dashed=7)
    share = page.curve("Win", [(1, 0.5), (2, 0.6)], span=(0.0, 1.0))
    assert [text.split("<")[0] for text in share.split('text-anchor="end">')[1:4]] == ["0", "0.5", "1"]
    assert "not measured" in page.curve("Score", [(1, None), (2, float("nan"))])
    Reader(page.curve("<b>", [(1, 2.0)]))
    assert [page.curve("Score", [(x, x) for x in range(n)]).count("<circle") for n in (25, 26)] == [25, 1]


def test_answers_are_marked_in_words_too():
    wrong = page.answer("SFT", "a red cross", False, "sft", "a blue cross")
    assert "✗ wrong" in wrong and "a <mark>red</mark> cross" in wrong
    assert "✓ right" in page.answer("SFT", "a", True, "sft", "a")
    assert "✗" not in page.answer("SFT", "a", None, "sft") and "no answer" in page.answer("SFT", "", None, "sft")


def test_a_bar_stays_in_its_track():
    drawn = page.bar("x", 1.7, ends=(-0.1, 0.5), dashed=0.25)
    assert "width:100.00%" in drawn and "left:0.00%;width:50.00%" in drawn and "left:25.00%" in drawn


def test_counts_of_a_run_that_read_only_the_cache():
    nothing = {"decodes": 0, "encodes": 0, "plans": 0, "encoded_frames": 0, "opened": 0, "prefilled_tokens": 0}
    counts = {"decodes_per_clip": None, "encodes_per_clip": None, "prefilled_tokens_per_clip": None, "clips": None,
              "cached_plans": None, "total": nothing, "by_stage": {"sft": nothing}}  # fmt: skip
    assert "decoded and encoded once" not in run_results.counts({"counts": counts})


@pytest.mark.parametrize(("rows", "outcome"), [
    ([], []), ([], {"test_items": {}}), ([row(1, "worse")], {"accuracy": 1}), ([row(1, "worse")], {"judge": None, "seed": {}}),
    ([{**row(1, "worse"), "sft": 1}], {}), ([{**row(1, "worse"), "video": None, "truth": ["x"]}], {}),
])  # fmt: skip
def test_content_of_another_version_is_one_line(rows: Any, outcome: Any, tmp_path: Path) -> None:
    whole = result([row(1, "worse")], **outcome) if isinstance(outcome, dict) else outcome
    cfg, run = make(tmp_path / "a", rows, whole)
    try:
        report.run(cfg, run)
    except UserError as error:
        assert (
            ("is not of this version" in str(error) or "row 1, " in str(error))
            and "minirlaif evaluate" in str(error)
            and "\n" not in str(error)
        )


@pytest.mark.parametrize("strip", ["../../secret.jpg", "strips/none.jpg"])
def test_a_picture_that_the_evaluation_did_not_make_is_not_shown(strip: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(12, 77))
    lines = [row(1, "worse")]
    cfg, run = make(tmp_path / "a", lines, result(lines))
    manifest = read_sealed(run.dir("evaluate") / "manifest.json")
    (run.dir("evaluate") / "answers.jsonl").write_text(json.dumps({**lines[0], "strip": strip}) + "\n")
    data = (run.dir("evaluate") / "answers.jsonl").read_bytes()
    manifest["outputs"]["answers.jsonl"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_sealed(run.dir("evaluate") / "manifest.json", manifest)
    report.run(cfg, run)
    assert base64.b64encode(jpeg(12, 77)).decode() not in (run.root / "report.html").read_text()
