"""The table of what fits, what bench prints for a config's header, and the probe on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.cli import main
from minirlaif.cli.plan import plan_of
from minirlaif.errors import UserError
from minirlaif.memory import fit, longest_row, measure, steps
from minirlaif.memory.planner import STEPS, Planned
from minirlaif.types import Turn
from tests.fixtures.bases_smolvlm import smolvlm
from tests.fixtures.clips import write_clip

RESULTS = [
    {"stage": "sft", "peak": 5.0 * 2**30, "seconds_per_step": 12.34, "device": "NVIDIA GeForce RTX 4090"},
    {"stage": "collect", "peak": 6.24 * 2**30, "seconds_per_step": 70.0, "device": "NVIDIA GeForce RTX 4090"},
]
VERSIONS = {"torch": "2.13.0", "peft": "0.18.0", "date": "2026-11-25"}
LINE = (
    "# Card or cap: NVIDIA GeForce RTX 4090, capped at 24 GiB. Measured peak: 6.2 GiB (ppo collect)."
    " Seconds: sft 12.3, ppo collect 70.0. Date: 2026-11-25. Versions: torch 2.13.0, peft 0.18.0."
)


def test_the_line_for_a_header():
    assert fit.header(RESULTS, 24.0, VERSIONS) == LINE
    assert ", capped" not in fit.header(RESULTS, None, VERSIONS)


def written(tmp_path: Path, line: str) -> Path:
    path = tmp_path / "24gb-mine.yaml"
    path.write_text(f"# Mine.\n{line}\nmodel: {{base: smolvlm2-500m, quantization: nf4, gradient_checkpointing: true}}\n")
    return path


def test_the_table_says_what_was_measured(tmp_path: Path):
    path = written(tmp_path, LINE)
    row = fit.markdown([(path, plan_of(config.load(path), gpu=True))], (24,)).splitlines()[-1]
    assert row.endswith("| yes | measured 6.2 GiB (ppo collect) on NVIDIA GeForce RTX 4090, capped at 24 GiB, 2026-11-25 |")


@pytest.mark.parametrize("line", ["# Card or cap: not measured. Measured peak: not measured. Seconds: not measured.", "# none"])
def test_the_table_says_what_was_planned(line: str, tmp_path: Path):
    path = written(tmp_path, line)
    assert fit.markdown([(path, plan_of(config.load(path), gpu=True))], (24,)).splitlines()[-1].endswith("| yes | planned |")


def test_a_header_that_says_neither_is_refused(tmp_path: Path):
    path = written(tmp_path, "# Card or cap: mine. Measured peak: a lot.")
    with pytest.raises(UserError, match="24gb-mine.yaml: its line `# Card or cap:` cannot be read"):
        fit.markdown([(path, plan_of(config.load(path), gpu=True))], (24,))


@pytest.mark.parametrize(("stages", "printed"), [("", True), ("sft,reward", False)])
def test_bench_prints_the_line_when_every_stage_was_measured(stages: str, printed: bool, monkeypatch, capsys):
    row = {"planned": 1.0, "tokens_per_second": 0.0, "samples_per_second": 1.0}
    monkeypatch.setattr(measure, "measure", lambda settings, stage, gib: RESULTS[0] | row | {"stage": stage})
    assert main.main(["bench", "--model", "smolvlm2-500m", "--stages", stages]) == 0
    message = capsys.readouterr().out
    assert ("\n# Card or cap: NVIDIA GeForce RTX 4090. Measured peak: 5.0 GiB (" in message) == printed


@pytest.mark.parametrize("words", [["bench", "--model", "tiny", "--out"], ["plan", "--config", "c.yaml", "--fit"]])
def test_a_file_that_cannot_be_written_is_said_before_the_work(words: list[str], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("worked"))
    for place in (tmp_path / "nowhere" / "b.json", tmp_path):
        assert main.main([*words, str(place)]) == 2
        assert f"{words[-1]} {place}: no file can be written there" in capsys.readouterr().err


def data(tmp_path: Path) -> Path:
    """A config with two clips and rows of several lengths, over a tiny SmolVLM2."""
    write_clip(tmp_path / "wide.mp4", width=96, height=32)
    write_clip(tmp_path / "square.mp4")
    rows = [
        {"id": "1", "video": "wide.mp4", "question": "what happens?", "answer": "it moves and then it stops"},
        {"id": "2", "video": "square.mp4", "question": "what?", "answer": "it moves"},
    ]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"id": "3", "video": "wide.mp4", "question": "what happens first, and what happens after that?"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompts) + "\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {{base: {smolvlm(tmp_path / 'base')}, device: cpu, dtype: float32, lora_r: 4}}\n"
        "video: {frames: 2, segment_frames: 2, max_segments: 1}\n"
        f"data: {{videos: {tmp_path}, sft: [{tmp_path}/sft.jsonl], prompts: [{tmp_path}/prompts.jsonl]}}\n"
        "sft: {micro_batch_size: 1}\nfeedback: {describe_tokens: 4, max_new_tokens: 4, batch_size: 2}\n"
        "reward: {micro_batch_size: 1}\nrollout: {max_new_tokens: 4, batch_size: 2}\nppo: {micro_batch_size: 1}\n"
        "evaluate: {max_new_tokens: 4, batch_size: 2}\n"
    )
    return tmp_path / "c.yaml"


def test_a_probe_runs_the_longest_row_through_every_stage(tmp_path: Path, monkeypatch, capsys):
    path = data(tmp_path)
    questions: list[dict[str, Any]] = []

    def here(settings: str, stage: str, gib: float | None, rows: Any = None) -> dict[str, Any]:
        questions.append(rows)
        folder = tmp_path / stage
        folder.mkdir()
        return measure.measure_step(steps.StageProbe(config.load(path), stage, folder), gib, rows)

    encodes: dict[str, bool] = {}
    real = measure.estimate

    def estimate(plan: Planned, tokens: Any, names: Any) -> Any:
        encodes[next(iter(tokens))] = plan.encodes
        return real(plan, tokens, names)

    monkeypatch.setattr(measure, "estimate", estimate)
    monkeypatch.setattr(measure, "measure", here)  # without a process for each
    assert main.main(["plan", "--config", str(path), "--probe"]) == 0
    for row in questions:
        assert row["question"] == "what happens first, and what happens after that?"
        assert row["turns"] == [("what happens?", "it moves and then it stops")] and Path(row["video"]).name == "square.mp4"
    assert (encodes["sft"], encodes["evaluate"]) == (True, False)  # a clip is seen once, and the tower is planned for then
    message = capsys.readouterr().out.split("planned MiB")[1].splitlines()[1:]
    names = ["sft", "feedback", "reward", "ppo collect", "ppo update", "evaluate"]
    assert [line[:11].strip() for line in message] == names
    for line, name in zip(message, names, strict=True):
        numbers = [float(word.replace(",", "")) for word in line.removeprefix(name).split() if word != "-"]
        assert len(numbers) >= 4 and all(number > 0 for number in numbers)


def test_a_stage_that_fails_the_probe_is_the_exit_code(tmp_path: Path, monkeypatch):
    path = data(tmp_path)
    monkeypatch.setattr(measure, "measure", lambda settings, stage, gib, rows: {"stage": stage, "error": "out of memory"})
    assert main.main(["plan", "--config", str(path), "--probe"]) == 1


def longest(cfg: config.Config, folder: Path) -> dict[str, Any]:
    return longest_row.longest(cfg.data, cfg.video, folder)


def test_the_tiny_world_has_no_row_to_probe(tmp_path: Path):
    with pytest.raises(UserError, match="data.world.*use `bench`"):
        longest(config.load(None, ["data.world=tiny"]), tmp_path)
    with pytest.raises(UserError, match="data: names no file"):
        longest(config.load(None), tmp_path)


def test_the_longest_rows_are_found_wherever_they_stand(tmp_path: Path):
    """A conversation of many short turns may be longer than the longest question with the longest answer."""
    write_clip(tmp_path / "a.mp4")
    turns = [("what moves?", "a ball moves"), ("and then?", "it stops there"), ("and at last?", "nothing at all")]
    talk = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    talk[0]["value"] = "<video>\n" + talk[0]["value"]
    files = {
        "sft": [
            {"id": "1", "video": "a.mp4", "question": "what happens in the video?", "answer": "something happens"},
            {"id": "2", "video": "a.mp4", "conversations": talk},
        ],
        "test": [{"id": "3", "video": "b.mp4", "question": "a question that only the test has, longer than all others?"}],
        "preferences": [
            {"id": "4", "video": "a.mp4", "question": "which?", "chosen": "no", "rejected": "a long answer, not so good"}
        ],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.mp4").write_bytes(b"not opened before evaluate")
    named = [f"data.{name}=[{tmp_path}/{name}.jsonl]" for name in files]
    actual = longest(config.load(None, [f"data.videos={tmp_path}", *named]), tmp_path)
    assert actual["turns"] == turns and actual["answer"] == "a long answer, not so good"
    assert actual["question"].startswith("a question that only the test") and Path(actual["video"]).name == "a.mp4"
    write_clip(tmp_path / "b.mp4")
    alone = longest(config.load(None, [f"data.videos={tmp_path}", named[1]]), tmp_path)
    assert Path(alone["video"]).name == "b.mp4" and alone["turns"] == [(alone["question"], "")]


def test_a_folder_of_clips_has_a_long_question_to_probe(tmp_path: Path):
    """Its own questions are written by the run, so a made-up one as long as they can be stands for them."""
    for name in "abc":
        write_clip(tmp_path / f"{name}.mp4")
    actual = longest(config.load(None, [f"data.clips={tmp_path}"]), tmp_path)
    assert len(actual["question"]) == 200 and Path(actual["video"]).parent == tmp_path
    assert actual["turns"] == [(actual["question"], "")] and actual["answer"] == ""


def test_the_longest_conversation_is_what_sft_trains_on(tmp_path: Path):
    cfg = config.load(data(tmp_path))
    turns = [("what happens?", "it moves"), ("then?", "it stops"), ("then?", "it moves again and stops")]
    rows = {**longest(cfg, tmp_path), "turns": turns, "answer": "w" * 300}
    stage = steps.StageProbe(cfg, "sft", tmp_path)
    with stage.open(rows) as (models, worst):
        session = models.policy
        known = stage.size(session, worst)
        renderer, layout = session.backbone.renderer, session.video_input(worst.video).frame_layout
        whole = len(renderer.conversation(layout, [Turn(*turn) for turn in turns]))
        answers = sum(len(renderer.answer(answer)) for _, answer in turns)
    assert known == (whole - answers, answers)
    stage = steps.StageProbe(cfg, "reward", tmp_path)
    with stage.open(rows) as (models, worst):
        assert worst.sampled == "w" * 300  # a written answer longer than a sampled one may get
        assert stage.size(models.policy, worst)[1] == len(models.policy.answer_ids("w" * 300))


@pytest.mark.learning
def test_a_probe_in_processes_of_its_own(tmp_path: Path, capsys):
    assert main.main(["plan", "--config", str(data(tmp_path)), "--probe"]) == 0
    assert "failed" not in capsys.readouterr().out


def test_a_header_may_name_any_step(tmp_path: Path):
    """Titles are words and underscores."""
    for stage, step in STEPS.items():
        row = {**RESULTS[0], "stage": stage, "peak": 7.0 * 2**30}
        assert fit.measured(written(tmp_path, fit.header([row], None, VERSIONS))) == (
            f"measured 7.0 GiB ({step.title}) on NVIDIA GeForce RTX 4090, 2026-11-25"
        )
