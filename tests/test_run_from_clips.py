"""A run from a folder of clips without any rows: questions, feedback that describes nothing twice, a kill, what is refused."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from minirlaif import config
from minirlaif.cli import main
from minirlaif.runs.run import Run
from minirlaif.stages import questions
from minirlaif.stages.tiny.world import _write_clip
from minirlaif.tiny_world import clips as tinyworld
from tests.fixtures.processes import kill_once_saved
from tests.fixtures.small_config import lines, manifest, results

CONFIG = """
model: {base: tiny, dtype: float32}
video: {frames: 12, segment_frames: 6, segment_seconds: 1.0}
data: {clips: clips}
sft: {enabled: false}
questions: {written: false, per_clip: 4}
feedback: {answers: 1, context_answers: 1, max_new_tokens: 40, describe_prompt: describe this part., describe_tokens: 16,
  judge_frames: false, readout: auto, margin: 0.2, batch_size: 4}
optimize: {methods: [distill]}
distill: {epochs: 1.0, learning_rate: 0.003, batch_size: 8, micro_batch_size: 8, dev_every: 2, save_every: 2}
evaluate: {max_new_tokens: 40, batch_size: 25, bootstrap: 50}
"""
CLIPS = 12


def folder_of_clips(root: Path, count: int = CLIPS) -> Path:
    """A folder with a config beside clips of the tiny world, one of them in a folder of its own."""
    (root / "clips" / "more").mkdir(parents=True)
    rng = np.random.default_rng(7)
    videos = tinyworld.render(rng, [tinyworld.draw_events(rng) for _ in range(count)], 64)
    for number, video in enumerate(videos):
        _write_clip(root / "clips" / ("more" if number == 0 else "") / f"c{number:02}.mp4", video)
    (root / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    return root


def words(root: Path, *settings: str, stages: tuple[str, ...] = (), runs: str = "runs") -> list[str]:
    flags = ["--config", str(root / "mine.yaml"), "--run", "a", "--runs-dir", str(root / runs)]
    return ["run", *stages, *flags, *(["--set", *settings] if settings else [])]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = folder_of_clips(tmp_path_factory.mktemp("clips"))
    assert main.main(words(root)) == 0
    return root / "runs" / "a"


def test_every_clip_has_questions_about_what_was_described(finished: Path) -> None:
    rows, made = lines(finished / "questions" / "questions.jsonl"), manifest(finished, "questions")
    described = {row["video"]: row for row in lines(finished / "questions" / "contexts.jsonl")}
    assert len(described) == CLIPS and len(rows) == 4 * CLIPS == len({(row["video"], row["question"]) for row in rows})
    assert {row["type"] for row in rows} >= {"before", "after", "which way", "describe", "how many"}
    naming = [row for row in rows if row["names_part"]]
    assert len(naming) == 2 * CLIPS == made["metrics"]["naming_a_part"]
    for row in naming:
        subject = " ".join(row["question"].rstrip("?").split("the ")[1].split()[:2])
        assert sum(subject in text for text in described[row["video"]]["segments"]) == 1
    assert all(len(row["segments"]) == len(row["spans"]) >= 2 for row in described.values())


def test_each_part_has_clips_of_its_own_and_the_stages_read_them(finished: Path) -> None:
    parts = {part: lines(finished / "questions" / f"{part}.jsonl") for part in ("prompts", "dev", "test")}
    clips = {part: {row["video"] for row in rows} for part, rows in parts.items()}
    assert [len(clips[part]) for part in ("prompts", "dev", "test")] == [CLIPS - 2, 1, 1]
    assert len(set().union(*clips.values())) == CLIPS and "names_part" not in parts["prompts"][0]
    assert {row["id"] for row in lines(finished / "feedback" / "answers.jsonl")} == {row["id"] for row in parts["prompts"]}
    assert {row["id"] for row in lines(finished / "evaluate" / "answers.jsonl")} == {row["id"] for row in parts["test"]}
    metrics = manifest(finished, "distill")["metrics"]
    assert metrics["dev_questions"] == 4 and manifest(finished, "feedback")["inputs"].keys() == {"questions"}
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "None" not in page and "Dev win rate" in page


def test_feedback_describes_no_clip_again(finished: Path) -> None:
    before = {row["video"]: row for row in lines(finished / "questions" / "contexts.jsonl")}
    after = lines(finished / "feedback" / "contexts.jsonl")
    learned = {row["video"] for part in ("prompts", "dev") for row in lines(finished / "questions" / f"{part}.jsonl")}
    assert {row["video"] for row in after} == learned
    assert all(row == {name: value for name, value in before[row["video"]].items() if name != "spans"} for row in after)
    assert manifest(finished, "questions")["counters"]["prefilled_tokens"] > 0
    # Prompts, their context prompts and scores: no description among them.
    assert manifest(finished, "feedback")["counters"].get("encodes", 0) <= CLIPS


def test_the_read_out_is_tried_and_survives_a_kill(finished: Path, tmp_path: Path) -> None:
    """The tiny base says one letter in both orders, so its likelihoods judge; a resumed run uses what was found before."""
    made = manifest(finished, "feedback")["metrics"]
    probe = made["readout_probe"]
    assert made["readout"] == "likelihood" and probe["pairs"] >= 5 and probe["letter"] < 0.75 <= probe["likelihood"]
    run = tmp_path / "runs" / "a"
    command = words(finished.parents[1], stages=("questions", "feedback"))
    command[command.index("--runs-dir") + 1] = str(tmp_path / "runs")
    kill_once_saved(["-m", "minirlaif", *command], run / "feedback.partial" / "state" / "position.json", tmp_path)
    assert not (run / "feedback").exists()
    assert main.main(command) == 0
    assert manifest(run, "feedback")["identity"] == manifest(finished, "feedback")["identity"]
    assert manifest(run, "feedback")["metrics"] == made


def test_clips_of_the_trial_are_described_as_if_there_had_been_none(tmp_path: Path) -> None:
    """Thirty questions about six clips, two of which the trial of the read-outs leaves out: killed and resumed, byte for byte."""
    root = folder_of_clips(tmp_path, 6)
    names = ["c00.mp4"] * 25 + [f"c0{number}.mp4" for number in range(1, 6)]
    places = [f"more/{name}" if name == "c00.mp4" else name for name in names]
    rows = [f'{{"video": "{place}", "question": "what is {number}?"}}' for number, place in enumerate(places)]
    (root / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    own = (f"data.prompts=[{root / 'rows.jsonl'}]", f"data.videos={root / 'clips'}", "feedback.batch_size=8")
    straight, killed = (words(root, *own, stages=("feedback",), runs=name) for name in ("straight", "killed"))
    assert main.main(straight) == 0
    position = root / "killed" / "a" / "feedback.partial" / "state" / "position.json"
    kill_once_saved(["-m", "minirlaif", *killed], position, tmp_path)
    assert main.main(killed) == 0
    one, other = (root / name / "a" / "feedback" for name in ("straight", "killed"))
    assert (one / "contexts.jsonl").read_bytes() == (other / "contexts.jsonl").read_bytes()
    assert manifest(one.parent, "feedback")["identity"] == manifest(other.parent, "feedback")["identity"]


def test_it_resumes_behind_the_last_chunk_to_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    root, run = finished.parents[1], tmp_path / "runs" / "a"
    position = run / "questions.partial" / "state" / "position.json"
    command = words(root, stages=("questions",))
    command[command.index("--runs-dir") + 1] = str(tmp_path / "runs")
    kill_once_saved(["-m", "minirlaif", *command], position, tmp_path)
    assert not (run / "questions").exists()
    assert main.main(command) == 0
    mine, theirs = (results(folder, ("questions",)) for folder in (run, finished))
    assert {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)} <= {"questions/metrics.jsonl"}
    assert manifest(run, "questions")["identity"] == manifest(finished, "questions")["identity"]


def test_questions_of_ones_own_win(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_clips(tmp_path, 3)
    (root / "clips" / "questions.txt").write_text("what happens first?\n", encoding="utf-8")
    own = f"data.prompts=[{root / 'clips'}]"
    assert main.main(words(root, own, "feedback.batch_size=3", stages=("feedback",))) == 0
    run = root / "runs" / "a"
    assert not (run / "questions").exists() and len(lines(run / "feedback" / "answers.jsonl")) == 3
    assert main.main(words(root, own)) == 2
    out = capsys.readouterr()
    assert "data.clips is not read, because data.prompts names questions" in out.out
    assert "data.test names no file" in out.err


def test_a_file_of_questions_in_the_folder_takes_the_place_of_others(tmp_path: Path) -> None:
    """Asked of every clip, or of the one that a row names; split by clip, and true answers go to the test alone."""
    root = folder_of_clips(tmp_path, 6)
    rows = [
        f'{{"video": "c0{number}.mp4", "question": "what is {number}?", "answer": "it is {number}."}}' for number in range(1, 6)
    ]
    (root / "clips" / "questions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert main.main(words(root, stages=("questions", "feedback"))) == 0
    folder = root / "runs" / "a" / "questions"
    parts = {part: lines(folder / f"{part}.jsonl") for part in ("prompts", "dev", "test")}
    assert sorted(row["question"] for of_part in parts.values() for row in of_part) == [f"what is {n}?" for n in range(1, 6)]
    assert all("answer" not in row for part in ("prompts", "dev") for row in parts[part])
    assert all(row["answer"].startswith("it is ") for row in parts["test"]) and len(parts["prompts"]) == 3
    assert {row["type"] for row in parts["prompts"]} == {"own"}


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (0, [], "has no clips"),
        (2, [], "has 2 clips, and 3 are needed at least"),
        (3, ["questions.templates=none.yaml"], "none.yaml: cannot be read"),
        (3, ["data.clips=nowhere"], "data.clips: nowhere is no folder"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    tmp_path: Path, count: int, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any stage begins, SFT included."""
    root = folder_of_clips(tmp_path, count) if count else tmp_path
    if not count:
        (root / "clips").mkdir()
        (root / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    (root / "sft.jsonl").write_text('{"video": "clips/c01.mp4", "question": "what?", "answer": "a circle."}\n', encoding="utf-8")
    assert main.main(words(root, "sft.enabled=true", f"data.sft=[{root / 'sft.jsonl'}]", *settings)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (root / "runs" / "a").exists()


def test_what_the_model_writes_is_kept_where_it_can_answer_it(tmp_path: Path) -> None:
    """It reads the descriptions, without frames; a question that it answers with "not said" is dropped."""
    prompts: list[tuple[object, str, str]] = []
    replies = [["what: What colour is the circle?\nafter: What happens after the jump?\nno question"], ["red", "not said."]]

    def encode(view: object, question: str, context: str) -> str:
        prompts.append((view, question, context))
        return question

    session: Any = SimpleNamespace(
        adapters=SimpleNamespace(inference_as=lambda role: nullcontext()),
        encode_prompt=encode,
        greedy_texts=lambda encoded, limit, size: replies.pop(0),
    )
    described = {"a.mp4": {"context": "0s: a red circle jumps.\n", "segments": ["a red circle jumps."]}}
    made = questions._written_by_model(session, Run(tmp_path), config.FeedbackSection(), config.QuestionsSection(), described)
    assert [(each.kind, each.text, each.names_part) for each in made["a.mp4"]] == [("what", "What colour is the circle?", True)]
    assert len(prompts) == 3 and all(view is None and context == "0s: a red circle jumps.\n" for view, _, context in prompts)
    assert "6 short questions" in prompts[0][1] and prompts[1][1].startswith("What colour is the circle? ")


def test_a_base_that_writes_none_still_has_the_templates(tmp_path: Path) -> None:
    root = folder_of_clips(tmp_path, 3)
    assert main.main(words(root, "questions.written=true", "questions.max_new_tokens=8", stages=("questions",))) == 0
    assert len(lines(root / "runs" / "a" / "questions" / "questions.jsonl")) == 12


def test_a_dry_run_shows_what_would_be_made_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_clips(tmp_path, 5)
    (root / "sft.jsonl").write_text('{"video": "clips/c01.mp4", "question": "what?", "answer": "a circle."}\n', encoding="utf-8")
    before = sorted(root.rglob("*"))
    assert main.main([*words(root), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output[: output.index("\ndata.clips")])["distill"]["dev_every"] == 2
    assert "data.clips: 5 clips, about each at most 4 questions" in output
    assert "stages to make: questions, feedback, distill, evaluate, report\n" in output
    assert "fits: " in output and sorted(root.rglob("*")) == before
    rows = (f"data.sft=[{root / 'sft.jsonl'}]", "sft.enabled=true")
    assert main.main([*words(root, *rows), "--dry-run"]) == 0
    assert "data.sft: 1 row about 1 clip\n" in capsys.readouterr().out
    assert main.main([*words(root, "evaluate.batch_size=10000000"), "--dry-run"]) == 1
    assert "does not fit" in capsys.readouterr().out
    (root / "sft.jsonl").write_text('{"video": "clips/none.mp4", "question": "what?", "answer": "a."}\n', encoding="utf-8")
    assert main.main([*words(root, *rows), "--dry-run"]) == 2
    assert "none.mp4" in capsys.readouterr().err and not (root / "runs").exists()


def test_a_dry_run_leaves_out_what_is_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*words(finished.parents[1], stages=("questions", "feedback")), "--dry-run"]) == 0
    assert "stages to make: none\n" in capsys.readouterr().out
    assert main.main([*words(finished.parents[1], stages=("questions", "feedback")), "--redo", "--dry-run"]) == 0
    assert "stages to make: questions, feedback\n" in capsys.readouterr().out
    assert (finished / "feedback" / "manifest.json").is_file()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_another_config_does_not_touch_a_finished_run(
    flags: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config of one more stage in front, with a name that is taken: refused before that stage is made."""
    root = folder_of_clips(tmp_path)
    shutil.copytree(finished, root / "runs" / "a")
    shutil.rmtree(root / "runs" / "a" / "questions")  # what is left is a run without it
    before = {path: path.read_bytes() for path in (root / "runs").rglob("*") if path.is_file()}
    assert main.main([*words(root, "feedback.max_new_tokens=20", "video.frames=6"), *flags]) == 2
    message = capsys.readouterr().err
    assert "/a/feedback: made with other settings or inputs (feedback.max_new_tokens 40 -> 20, video.frames 12 -> 6)" in message
    assert message.rstrip().endswith("or keep it and name another run with --run")
    assert {path: path.read_bytes() for path in (root / "runs").rglob("*") if path.is_file()} == before
