"""All stages, one after the other, on a shrunken world: files, repeatability, kills, truth, 4-bit, clips of a user's own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minirlaif import config
from minirlaif.cli import main
from minirlaif.runs.records import write_sealed
from minirlaif.runs.run import Run
from minirlaif.stages.registry import Stage
from minirlaif.video.reader import ClipReader
from tests.fixtures import small_config
from tests.fixtures.processes import kill_once_saved
from tests.fixtures.small_config import STAGES, begin, files, lines, make, manifest, results

ROOT = Path(__file__).parents[1]
ADAPTER = {"adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
INPUTS = {
    "world": [],
    "sft": ["world"],
    "feedback": ["sft"],
    "reward": ["sft", "feedback"],
    "ppo": ["sft", "feedback", "reward"],
    "evaluate": ["sft", "feedback", "reward", "ppo"],
}


@dataclasses.dataclass
class Counts:
    """What a run asked of clips: (stage, verb, clip, frame plan) and the frames that were encoded."""

    requests: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    encoded: list[int] = dataclasses.field(default_factory=list)
    stage: str = ""


@pytest.fixture(scope="session")
def counts() -> Counts:
    return Counts()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, counts: Counts) -> Path:
    """A run that nothing interrupted. No test changes it."""
    from minirlaif.models.backbones.smolvlm import SmolVLM

    real = {"info": ClipReader.info, "frames": ClipReader.frames, "encode": SmolVLM.encode_frames, "load": Stage.load}

    def info(self: ClipReader, path: Any) -> Any:
        counts.requests.append((counts.stage, "info", Path(path).name, ""))
        return real["info"](self, path)

    def frames(self: ClipReader, path: Any, plans: Any, size: Any = None) -> Any:
        counts.requests += [(counts.stage, "frames", Path(path).name, plan.key) for plan in plans]
        return real["frames"](self, path, plans, size)

    def encode(self: Any, pixels: Any) -> Any:
        counts.encoded.append(len(pixels))
        return real["encode"](self, pixels)

    def load(stage: Stage) -> Any:
        counts.stage = stage.name
        return real["load"](stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipReader, "info", info)
        patch.setattr(ClipReader, "frames", frames)
        patch.setattr(SmolVLM, "encode_frames", encode)
        patch.setattr(Stage, "load", load)
        return make(tmp_path_factory.mktemp("finished"), STAGES)


def test_every_stage_leaves_exactly_its_files(finished: Path):
    clips = {f"clips/{part}{n:04d}.mp4" for part, count in
             {"short": 6, "sft": 6, "prompts": 8, "dev": 3, "test": 4}.items() for n in range(count)}  # fmt: skip
    expected = {
        "world": clips | {"card.md", *(f"{part}.jsonl" for part in ("sft", "prompts", "dev", "test", "truth"))},
        "sft": ADAPTER | {"metrics.jsonl", "samples.jsonl"},
        "feedback": {f"{name}.jsonl" for name in ("answers", "contexts", "verdicts", "preferences", "samples", "metrics")},
        "reward": ADAPTER | {"adapter/head.safetensors", "held_out.jsonl", "metrics.jsonl", "samples.jsonl"},
        "ppo": ADAPTER | {"metrics.jsonl", "samples.jsonl"},
        "evaluate": {"answers.jsonl", "metrics.jsonl", "result.json", "samples.jsonl"}
        | {f"strips/{n:03d}.jpg" for n in range(4)},  # one picture per clip
    }
    for stage in STAGES:
        assert files(finished / stage) == expected[stage] | {"manifest.json"}, stage
    assert {path.name for path in finished.iterdir()} == {*STAGES, "cache", "config.yaml"}


def test_manifests_form_a_chain(finished: Path):
    manifests = {stage: manifest(finished, stage) for stage in STAGES}
    for stage, actual in manifests.items():
        assert actual["stage"] == stage
        assert actual["inputs"] == {name: manifests[name]["identity"] for name in INPUTS[stage]}
        assert actual["outputs"].keys() == files(finished / stage) - {"manifest.json"}
        for name, output in actual["outputs"].items():
            data = (finished / stage / name).read_bytes()
            assert output == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert actual["config"]["seed"] == 0 and actual["seconds"] > 0
        Run(finished).require(stage)
    assert len({actual["identity"] for actual in manifests.values()}) == len(STAGES)


def test_settings_inputs_and_world_keep_their_hashes(finished: Path):
    """golden/identities.json was written by an earlier version: runs that it finished stay finished. Trained weights differ
    between processor types, so of them only settings and inputs are compared. A wanted change of results changes the file."""
    before = json.loads((ROOT / "tests" / "golden" / "identities.json").read_text())
    for stage in STAGES:
        content = manifest(finished, stage)
        content["config"].get("video", {}).pop("reader", None)  # younger than the file: runs without it have decord
        config = hashlib.sha256(json.dumps(content["config"], sort_keys=True).encode()).hexdigest()
        assert {"config": config, "inputs": sorted(content["inputs"])} == {k: before[stage][k] for k in ("config", "inputs")}, (
            stage
        )
    assert manifest(finished, "world")["identity"] == before["world"]["identity"]


def test_finished_stages_are_left_alone(finished: Path, capsys):
    def state() -> dict[str, tuple[int, int]]:
        stats = {name: (finished / name).stat() for name in files(finished)}
        return {n: (s.st_size, s.st_mtime_ns) for n, s in stats.items() if not n.startswith(("cache/", "config.yaml"))}

    before = state()
    make(finished.parent, STAGES)
    assert state() == before
    assert capsys.readouterr().out.count("finished already") == len(STAGES)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_adapters_open_with_peft(finished: Path, stage: str):
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    from minirlaif.models.loading import open_backbone

    folder = finished / stage / "adapter"
    model = PeftModel.from_pretrained(open_backbone(config.ModelSection()).model, folder)
    written, loaded = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    assert written.keys() == loaded.keys()
    assert all(written[name].equal(loaded[name]) for name in written)
    assert any(weights.any() for name, weights in written.items() if "lora_B" in name), "nothing was learned"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_one_decode_and_one_encode_per_clip_and_plan(finished: Path, counts: Counts):
    counters = [manifest(finished, stage)["counters"] for stage in STAGES[1:]]
    decoded = [(clip, plan) for _, verb, clip, plan in counts.requests if verb == "frames"]
    assert len(decoded) == len(set(decoded)), "a clip was decoded twice for the same frames"
    assert sum(c["decodes"] for c in counters) == sum(c["encodes"] for c in counters) == len(decoded)
    assert sum(counts.encoded) == sum(c["encoded_frames"] for c in counters) + 12  # and one blank clip, for the blind control
    with contextlib.closing(sqlite3.connect(finished / "cache" / "features.sqlite")) as cache:
        assert cache.execute("SELECT count(*) FROM vectors").fetchone() == (len(decoded),)
    # Prompt and dev clips: the whole clip, and a plan for each of its seconds. Test clips: the whole clip.
    segments = {row["video"]: len(row["segments"]) for row in lines(finished / "feedback" / "contexts.jsonl")}
    feedback, test = manifest(finished, "feedback")["counters"], manifest(finished, "evaluate")["counters"]
    assert (feedback["decodes"], test["decodes"]) == (11 + sum(segments.values()), 4)
    assert manifest(finished, "reward")["counters"]["decodes"] == manifest(finished, "ppo")["counters"]["decodes"] == 0


def test_no_test_clip_is_looked_at_before_evaluate(counts: Counts, finished: Path):
    assert {stage for stage, _, clip, _ in counts.requests if clip.startswith("test")} == {"evaluate"}
    assert {stage for stage, _, clip, _ in counts.requests if clip.startswith("prompts")} == {"feedback"}


def killed(command: list[str], run: Path, stage: str, folder: Path) -> int:
    """Start a command, kill -9 it once `stage` has saved a state; returns the number of steps that were saved."""
    position = run / f"{stage}.partial" / "state" / "position.json"
    kill_once_saved(["-m", "minirlaif", *command], position, folder)
    assert not (run / stage).exists(), f"{stage} was finished before it could be killed"
    return int(json.loads(position.read_text())["step"])


def test_killed_stages_go_on_to_the_same_result(finished: Path, tmp_path: Path, monkeypatch):
    """The same command four times: killed in feedback, then in reward, then in ppo. Run from another folder, by a short path."""
    monkeypatch.chdir(tmp_path)
    run = begin(finished, Path("runs"), ["world", "sft"])
    command = small_config.words(Path("runs"), STAGES)
    for stage, steps in (("feedback", 5), ("reward", 20), ("ppo", 3)):
        assert 0 < killed(command, run.absolute(), stage, tmp_path) < steps
    assert main.main(command) == 0
    assert not list(run.glob("*.partial"))
    timed = {"reward/metrics.jsonl", "ppo/metrics.jsonl", "sft/metrics.jsonl"}
    mine, theirs = results(run, STAGES), results(finished, STAGES)
    assert mine.keys() == theirs.keys()
    assert {name for name in mine if mine[name] != theirs[name]} <= timed
    assert all(len(lines(run / name)) == len(lines(finished / name)) for name in timed)
    for stage in STAGES:
        assert manifest(run, stage)["identity"] == manifest(finished, stage)["identity"]


@pytest.fixture(scope="module")
def misled(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's world with its truth shuffled, and all later stages made from it, from a clean start."""
    run = begin(finished, tmp_path_factory.mktemp("misled"), ["world"])
    book = manifest(run, "world")
    for name, columns in (("truth.jsonl", ("answer", "segments")), ("test.jsonl", ("answer", "key"))):
        rows = sorted(lines(run / "world" / name), key=lambda row: row["answer"])
        half = len(rows) // 2
        message = [{column: row[column] for column in columns} for row in rows[half:] + rows[:half]]
        moved = {row["id"]: {**row, **other} for row, other in zip(rows, message, strict=True)}
        assert all(moved[row["id"]]["answer"] != row["answer"] for row in rows)
        ordered = [moved[row["id"]] for row in lines(run / "world" / name)]
        data = "".join(json.dumps(row) + "\n" for row in ordered).encode()
        (run / "world" / name).write_bytes(data)
        book["outputs"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    book["identity"] = "another world"
    write_sealed(run / "world" / "manifest.json", book)
    return make(run.parent, STAGES[1:])


def test_truth_reaches_evaluate_alone(finished: Path, misled: Path):
    learned = ["sft", "feedback", "reward", "ppo"]
    mine, theirs = results(misled, learned), results(finished, learned)
    assert {name for name in mine if mine[name] != theirs[name]} <= {f"{stage}/metrics.jsonl" for stage in learned}
    one, other = (json.loads((run / "evaluate" / "result.json").read_text()) for run in (misled, finished))
    assert other["accuracy"]["base"] > 0 and one["accuracy"] != other["accuracy"]
    assert one["context"]["segment_accuracy"] != other["context"]["segment_accuracy"]
    output = [[row["rlaif"] for row in lines(run / "evaluate" / "answers.jsonl")] for run in (misled, finished)]
    assert output[0] == output[1]


def test_a_moved_run_goes_on(finished: Path, tmp_path: Path):
    """Rows name clips from the stage's folder on, so the clips of the world move with the run."""
    for name in ("feedback/preferences.jsonl", "feedback/contexts.jsonl", "evaluate/answers.jsonl", "ppo/samples.jsonl"):
        assert str(finished.parent) not in (finished / name).read_text()
    run = begin(finished, tmp_path / "elsewhere", ["world", "sft", "feedback"])
    make(run.parent, ["reward", "ppo"])
    assert (
        results(run, ["reward", "ppo"])["ppo/adapter/adapter_model.safetensors"]
        == (results(finished, ["ppo"])["ppo/adapter/adapter_model.safetensors"])
    )


def test_every_stage_runs_in_four_bits(finished: Path, tmp_path: Path, monkeypatch):
    import torch
    from safetensors.torch import load_file

    from minirlaif.models.backbones.smolvlm import SmolVLM

    kinds: list[set[str]] = []
    load = SmolVLM.load

    def loaded(*arguments: Any) -> Any:
        backbone = load(*arguments)
        kinds.append({type(parameter).__name__ for parameter in backbone.text_model.layers.parameters()})
        return backbone

    monkeypatch.setattr(SmolVLM, "load", loaded)
    run = begin(finished, tmp_path, ["world"])
    make(tmp_path, STAGES[1:], "model.quantization=nf4", "ppo.iterations=1")
    assert len(kinds) == 5 and all("Params4bit" in kind for kind in kinds)
    for stage in ("sft", "reward", "ppo"):
        weights = load_file(run / stage / "adapter" / "adapter_model.safetensors")
        assert all(w.dtype == torch.float32 and bool(w.isfinite().all()) for w in weights.values())
    assert results(run, ["sft"]) != results(finished, ["sft"])
    assert 0 < lines(run / "sft" / "metrics.jsonl")[-1]["loss"] < 20


def test_four_bits_leave_eyes_and_output_head_alone():
    from minirlaif.models.loading import open_backbone

    backbone = open_backbone(config.ModelSection(quantization="nf4"))
    quantized = {name for name, p in backbone.model.named_parameters() if type(p).__name__ == "Params4bit"}
    assert quantized and all(".text_model.layers." in name for name in quantized), sorted(quantized)[:3]


def test_four_bits_have_a_backward_pass_after_a_look():
    """On CPUs with AVX512-BF16 a first look without gradients repacks the weights, and packed ones have no backward pass."""
    import torch

    from minirlaif.models.loading import open_backbone

    backbone = open_backbone(config.ModelSection(quantization="nf4"))
    layer = backbone.text_model.layers[0].mlp.gate_proj
    grads = []
    for _ in range(2):
        x = torch.ones(1, 2, backbone.width, requires_grad=True)
        layer(x).sum().backward()
        grads.append(x.grad)
        with torch.no_grad():
            layer(torch.ones(1, 2, backbone.width))
    assert grads[1] is not None and grads[1].equal(grads[0])


def test_reward_can_be_turned_round(finished: Path, tmp_path: Path, monkeypatch):
    from minirlaif.stages import ppo

    collected, real = [], ppo.step

    def step(learner: Any, rollout: Any, number: int) -> Any:
        collected.append(rollout)
        return real(learner, rollout, number)

    monkeypatch.setattr(ppo, "step", step)
    for scale in (1, -1):
        run = begin(finished, tmp_path / str(scale), ["world", "sft", "feedback", "reward"])
        make(run.parent, ["ppo"], f"rollout.reward_scale={scale}", "ppo.iterations=1")
        assert ADAPTER <= files(run / "ppo")
    one, other = collected
    assert [row.answer for row in one.rows] == [row.answer for row in other.rows]
    assert one.advantages_BR.abs().max() > 0.1 and other.advantages_BR.allclose(-one.advantages_BR, atol=1e-5)


def gradio_videos() -> Path:
    spec = importlib.util.find_spec("gradio")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "media_assets" / "videos"


def test_clips_and_questions_of_ones_own(tmp_path: Path, capsys):
    """Three real clips without any truth: every stage runs, and what it wrote can be looked at."""
    from PIL import Image

    folder, names = tmp_path / "clips", ("a.mp4", "b.mp4", "world.mp4")
    folder.mkdir()
    for name in names:
        shutil.copy(gradio_videos() / name, folder)
    (folder / "questions.txt").write_text("What happens first?\nIs anybody moving?\n")
    rows = [
        {
            "video": name,
            "conversations": [{"from": "human", "value": "<video>\nWhat is shown?"}, {"from": "gpt", "value": output}],
        }
        for name, output in zip(names, ("a person is moving.", "two things happen.", "the world is turning."), strict=True)
    ]
    (folder / "sft.json").write_text(json.dumps(rows))
    requests = [{"video": name, "question": "What is this about?"} for name in names]
    (folder / "test.json").write_text(json.dumps([*requests[:2], {**requests[2], "answer": "the world."}]))
    ours = {"question": "What is this about?"}
    (folder / "dev.jsonl").write_text("".join(json.dumps({"video": name, **ours}) + "\n" for name in names))
    settings = [
        'data.world=""', f"data.sft=[{folder / 'sft.json'}]", f"data.prompts=[{folder}]", f"data.dev=[{folder / 'dev.jsonl'}]",
        f"data.test=[{folder / 'test.json'}]",
        "video.frames=4", "video.segment_frames=2", "video.segment_seconds=5", "video.max_segments=3",
        "rollout.rollouts=4", "rollout.max_new_tokens=12", "feedback.max_new_tokens=12", "ppo.iterations=1",
        "evaluate.max_new_tokens=12",
    ]  # fmt: skip
    with_report = importlib.util.find_spec("minirlaif.stages.report") is not None
    run = make(tmp_path, [] if with_report else STAGES[1:], *settings)
    assert not (run / "world").exists()
    answers = lines(run / "evaluate" / "answers.jsonl")
    assert len(answers) == 3 and {Path(row["video"]) for row in answers} == {folder / name for name in names}
    result = json.loads((run / "evaluate" / "result.json").read_text())
    assert result["test_items"] == 3 and result["answered_items"] == 1 and "judge" not in result
    assert set(result["accuracy"].values()) <= {0.0, 1.0} and result["accuracy_by_type"]["all"]["n"] == 1
    assert result["test_clips_seen_before"] == 3, "sft has read all of them"
    for stage in ("feedback", "reward", "ppo"):
        samples = lines(run / stage / "samples.jsonl")
        assert samples and all(Path(row["video"]).is_file() and row["question"].endswith("?") for row in samples)
    assert all(row["strip"] for row in answers)
    for row in answers:  # all three clips are 16 by 9
        picture = Image.open(io.BytesIO((run / "evaluate" / row["strip"]).read_bytes()))
        assert picture.size == (4 * 171, 96) and np.asarray(picture).std() > 10
    described = {Path(row["video"]).name: len(row["segments"]) for row in lines(run / "feedback" / "contexts.jsonl")}
    assert described == {"a.mp4": 1, "b.mp4": 1, "world.mp4": 3}
    if with_report:
        assert not [name for name in ("report.html", "report.json") if str(tmp_path) in (run / name).read_text()]
    contents = {str(folder / name): hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16] for name in names}
    for stage in STAGES[1:]:
        recorded = {row["video"]: row["id"] for row in lines(run / stage / "clips.jsonl")}
        assert recorded and recorded.items() <= contents.items()  # `reward` reads those of decided pairs
    shutil.copy(folder / "b.mp4", folder / "a.mp4")
    assert main.main(small_config.words(tmp_path, STAGES[1:], *settings)) == 2
    assert f"{folder / 'a.mp4'}: replaced since `sft` read it; make the stage again: `" in capsys.readouterr().err


def test_two_bases_a_reference_model_and_8_bit_moments_resume_to_the_same_result(finished: Path, tmp_path: Path, monkeypatch):
    """The shape of the paper's run, in 4 bits: reward and value on a base of their own, a reference with its own weights."""
    from minirlaif.stages import ppo
    from minirlaif.stages.tiny import pretrain
    from tests.fixtures import tiny

    pretrain.save(tiny.backbone(9, 3), tmp_path / "judge")
    settings = [f"reward.base={tmp_path / 'judge'}", "reference.kind=model", "model.quantization=nf4"]
    settings += ["model.optimizer=paged_adamw_8bit", "model.gradient_checkpointing=true"]
    straight = begin(finished, tmp_path / "straight", ["world", "sft", "feedback"])
    make(straight.parent, ["reward", "ppo"], *settings)
    counted = manifest(straight, "ppo")["counters"]
    assert counted["encodes"] == counted["decodes"] > 0 and counted["prefilled_tokens"] > 0

    killed = begin(finished, tmp_path / "killed", ["world", "sft", "feedback"])
    shutil.copytree(straight / "reward", killed / "reward")
    real = ppo.step

    def dies(learner: Any, rollout: Any, number: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return real(learner, rollout, number)

    monkeypatch.setattr(ppo, "step", dies)
    assert main.main(small_config.words(killed.parent, ["ppo"], *settings)) == 130
    assert (killed / "ppo.partial" / "state").is_dir()
    monkeypatch.setattr(ppo, "step", real)
    make(killed.parent, ["ppo"], *settings)
    name = "ppo/adapter/adapter_model.safetensors"
    assert results(killed, ["ppo"])[name] == results(straight, ["ppo"])[name]
    # The kept adapter may be the one of iteration 0; the losses tell the runs apart.
    message = [
        [(row["policy_loss"], row["value_loss"]) for row in lines(r / "ppo" / "metrics.jsonl")]
        for r in (killed, straight, finished)
    ]
    assert message[0] == message[1] != message[2]
    own = json.loads((straight / "reward" / "adapter" / "adapter_config.json").read_text())
    assert own["base_model_name_or_path"] == str(tmp_path / "judge")
    assert "layers.2." in (straight / "reward" / "adapter" / "adapter_model.safetensors").read_bytes()[:20000].decode("latin-1")
