"""`bench` runs every stage's own code on random weights, and `plan` is right about what it measures: resident memory on a CPU."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from minirlaif import config
from minirlaif.algorithms.rollout import Rollout
from minirlaif.cli import main, plan
from minirlaif.errors import UserError
from minirlaif.feedback import label as labels
from minirlaif.memory import measure, random_model, steps
from minirlaif.memory.planner import steps_for
from minirlaif.models.loading import read_config
from minirlaif.runs.run import Run
from minirlaif.stages.registry import pipeline
from minirlaif.types import Comparison
from tests.fixtures.bases_llava import llava
from tests.fixtures.bases_middle import middle
from tests.fixtures.bases_qwen import qwen3_5, qwen3_vl

SMALL = (
    "model.device=cpu model.dtype=float32 model.lora_r=8 video.frames=4 video.segment_frames=2 video.max_segments=1"
    " feedback.describe_tokens=4 feedback.max_new_tokens=8 feedback.batch_size=2"
    " rollout.max_new_tokens=8 rollout.batch_size=2 rollout.samples_per_prompt=2 ppo.micro_batch_size=1 group.micro_batch_size=1"
    " questions.max_new_tokens=4 evaluate.max_new_tokens=4 evaluate.batch_size=2 sft.micro_batch_size=1 reward.micro_batch_size=1"
).split()
FOUR_BITS = "model.quantization=nf4 model.gradient_checkpointing=true"
SIZES = [(384, 1024, 8, 16384), (512, 1536, 6, 32768), (256, 2048, 12, 4096)]  # width, feed-forward, layers, words
MIDDLE = (
    "model.device=cpu model.dtype=float32 model.lora_r=16 video.frames=8 feedback.max_new_tokens=32 rollout.max_new_tokens=32"
    " video.max_segments=2 feedback.describe_tokens=8 questions.max_new_tokens=16"
    " evaluate.max_new_tokens=8 evaluate.batch_size=12 sft.micro_batch_size=3"
    " sft.batch_size=3 reward.micro_batch_size=2 reward.batch_size=2 ppo.micro_batch_size=3 ppo.minibatch_size=3"
    " rollout.batch_size=3 feedback.batch_size=3 rollout.rollouts=6 rollout.samples_per_prompt=3 group.micro_batch_size=3"
    " group.minibatch_size=3"
).split()


@pytest.mark.parametrize("name", measure.STEPS)
@pytest.mark.parametrize("four_bits", [False, True])
def test_every_stage_takes_a_step_on_random_weights(name: str, four_bits: bool, tmp_path: Path):
    more = FOUR_BITS.split() if four_bits else []
    cfg = config.load(None, [*SMALL, *more, middle(tmp_path, "smolvlm", 64, 96, 2, 300)])
    stage = steps.StageProbe(cfg, name, tmp_path)
    with stage.open(None) as (models, worst):
        made = models.policy
        done, seconds = steps.timed(stage.prepare(models, worst))
        kinds = {type(module).__name__ for module in made.backbone.model.modules()}
        trained = [n for n, p in made.backbone.model.named_parameters() if "lora_B" in n and p.numel() and bool(p.any())]
    assert done.samples > 0 and 0 < done.share <= 1 and seconds > 0
    assert ("Linear4bit" in kinds) == four_bits
    assert bool(trained) == (
        name in ("sft", "reward", "distill", "bestofn", "dpo")
    )  # a real step; after ppo's all roles rest, so nothing is there to see
    assert (done.tokens > 0) == (name in ("questions", "feedback", "evaluate") or name.endswith("collect"))


def test_a_read_out_that_is_not_named_is_measured_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    monkeypatch.setattr(steps, "judge_pairs", lambda session, section, pairs: judged.append(section.readout))
    for name in ("auto", "likelihood"):
        cfg = config.load(None, [*SMALL, f"feedback.readout={name}", middle(tmp_path, "smolvlm", 64, 96, 2, 300)])
        stage = steps.StageProbe(cfg, "feedback", tmp_path)
        with stage.open(None) as (models, worst):
            stage.prepare(models, worst)()
    assert judged == ["letter", "likelihood", "likelihood"]


def test_random_weights_are_made_without_the_whole_model_in_full_precision(tmp_path: Path, monkeypatch):
    cfg = config.load(None, [*SMALL, "model.quantization=nf4", middle(tmp_path, "smolvlm", 64, 96, 2, 300)])
    biggest, real = [0], torch.Tensor.normal_

    def watched(tensor: torch.Tensor, *args: object, **named: object) -> torch.Tensor:
        biggest[0] = max(biggest[0], tensor.numel())
        return real(tensor, *args, **named)

    monkeypatch.setattr(torch.Tensor, "normal_", watched)
    made = random_model.random_backbone(cfg.model, read_config(cfg.model))
    weights = [p for n, p in made.model.named_parameters() if "text_model.layers" in n and "proj" in n]
    assert all(p.dtype == torch.uint8 for p in weights) and len(weights) == 2 * 7
    assert biggest[0] == 64 * 96 * 4 * 4  # one matrix at a time: here the connector's is the biggest


def close(result: dict[str, object]) -> None:
    assert "error" not in result, result
    off = result["planned"] / result["peak"] - 1  # type: ignore[operator]
    assert -0.05 <= off <= 0.10, f"{result['stage']}: planned {off:+.1%} of {result['peak'] / 2**20:.0f} MiB"  # type: ignore[operator]


def test_plan_is_near_the_measured_peak(tmp_path: Path):
    settings = config.load(None, [*MIDDLE, middle(tmp_path, "smolvlm", 256, 768, 6, 8192)])
    close(measure.measure(config.dump(settings), "sft", None))


CASES = [
    *(("smolvlm", stage, size) for stage in ("sft", "questions", "reward", "update", "evaluate") for size in SIZES),
    *(("smolvlm", stage, SIZES[0]) for stage in ("feedback", "collect", "rloo_collect", "grpo_update")),
    *((family, stage, SIZES[0]) for family in ("qwen3_vl", "qwen3_5", "llava") for stage in measure.STEPS if "grpo" not in stage),
]


@pytest.mark.learning
@pytest.mark.parametrize(("family", "stage", "size"), CASES, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("more", ["", FOUR_BITS], ids=["whole", "nf4"])
def test_plan_is_near_the_measured_peak_wherever_one_looks(
    family: str, stage: str, size: tuple[int, ...], more: str, tmp_path: Path
):
    settings = config.load(None, [*MIDDLE, *more.split(), middle(tmp_path, family, *size)])
    close(measure.measure(config.dump(settings), stage, None))


def test_bench_prints_a_table_and_writes_json(tmp_path: Path, capsys, monkeypatch):
    row = {"stage": "sft", "peak": 3 * 2**20, "planned": 2 * 2**20, "seconds_per_step": 1.5}
    row |= {"tokens_per_second": 0.0, "samples_per_second": 2.0}
    monkeypatch.setattr(
        measure, "measure", lambda settings, stage, gib: row if stage == "sft" else {"stage": stage, "error": "full"}
    )
    assert main.main(["bench", "--model", "smolvlm2-500m", "--stages", "sft,reward", "--out", str(tmp_path / "b.json")]) == 1
    message = capsys.readouterr()
    assert message.out.splitlines()[1].split() == ["sft", "3", "2", "1.50", "-", "2.00"]
    assert "failed" in message.out and message.err.strip() == "reward: full"
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["stages"][0] == row and written["versions"]["torch"]


def test_stage_names():
    usual = steps_for(pipeline())
    assert measure.chosen("sft,ppo", usual) == ["sft", "collect", "update"]
    assert measure.chosen("", usual) == usual
    assert measure.chosen("distill", [*usual, "distill"]) == ["distill"]
    with pytest.raises(UserError, match="--stages distill: no such stage in this config; choose from sft, feedback, reward, ppo"):
        measure.chosen("distill", usual)
    with pytest.raises(UserError, match="--stages grpo"):
        measure.chosen("grpo", usual)
    assert measure.chosen("grpo", steps_for(pipeline(["grpo"]))) == ["grpo_collect", "grpo_update"]


# SmolVLM: test_every_stage_takes_a_step_on_random_weights, and the probe in test_planning.
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava"])
@pytest.mark.parametrize("four_bits", [False, True], ids=["whole", "nf4"])
def test_every_family_through_every_stage(family: str, four_bits: bool, tiny_bases: dict[str, Path], tmp_path: Path):
    more = FOUR_BITS.split() if four_bits else []
    short = ["video.frames=2", "video.frame_pixels=4096", "feedback.max_new_tokens=3", "rollout.max_new_tokens=3"]
    cfg = config.load(None, [*SMALL, *more, *short, f"model.base={tiny_bases[family]}"])
    for stage in measure.STEPS:
        folder = tmp_path / stage
        folder.mkdir()
        actual = measure.measure_step(steps.StageProbe(cfg, stage, folder), None, None)
        numbers = [actual[name] for name in ("peak", "planned", "seconds_per_step", "samples_per_second", "prompt_tokens")]
        assert all(math.isfinite(number) and number > 0 for number in numbers), (stage, actual)
        assert (actual["tokens_per_second"] > 0) == (stage in ("questions", "feedback", "evaluate") or stage.endswith("collect"))


@pytest.fixture(scope="module")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = {"qwen3_vl": qwen3_vl, "qwen3_5": qwen3_5, "llava": llava}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


def test_a_run_on_a_gpu_probes_what_is_ahead_and_stops_where_a_stage_fails(monkeypatch, tmp_path: Path):
    questions: list[str] = []

    def probe(cfg: config.Config, folder: Path, gib: float | None, stages: Sequence[str]) -> list[dict[str, str]]:
        questions[:] = stages
        return [{"stage": stage, **({"error": "too big"} if stage == "update" else {})} for stage in stages]

    monkeypatch.setattr("minirlaif.models.loading.pick_device", lambda wanted: torch.device("cuda", 0))
    monkeypatch.setattr(plan, "probe", probe)
    cfg, run = config.load(None, ["data.sft=[a.jsonl]"]), Run(tmp_path)
    with run.stage("sft", {}):
        pass
    with pytest.raises(UserError, match="probe: update fails on the longest row .too big.*minirlaif plan"):
        plan.before_run(cfg, run, ["sft", "feedback", "ppo", "report"])
    assert questions == ["feedback", "collect", "update"]
    plan.before_run(cfg, run, ["sft"], redo=True)
    assert questions == ["sft"]
    questions.clear()
    plan.before_run(cfg, run, ["sft", "report"])  # nothing is ahead
    plan.before_run(config.load(None, ["data.world=tiny"]), run, ["feedback"])  # its clips are made by the run
    plan.before_run(config.load(None, ["model.device=cpu"]), run, ["report"])
    assert not questions


def test_a_run_on_a_cpu_does_not_probe(monkeypatch):
    monkeypatch.setattr(plan, "probe", lambda *_: pytest.fail("probed"))
    plan.before_run(config.load(None, ["model.device=cpu", "data.sft=[a.jsonl]"]), Run(Path("nowhere")), ["sft"])


def test_run_asks_for_the_probe_before_the_first_stage(monkeypatch, tmp_path: Path):
    questions: list[object] = []

    def before_run(*given: object) -> None:
        questions.extend(given)
        raise UserError("probed")

    monkeypatch.setattr(plan, "before_run", before_run)
    (tmp_path / "c.yaml").write_text("model: {device: cpu}\ndata: {sft: [a.jsonl]}\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--run", "a", "--runs-dir", str(tmp_path)]
    assert main.main(["run", "sft", "reward", *words, "--redo"]) == 2
    assert questions[2:] == [["sft", "reward"], True]


def test_a_child_works_alone(monkeypatch):
    """`accelerate launch` tells its processes of each other; a child that believed it would wait for the others for ever."""
    seen: dict[str, str] = {}

    def run(*given: object, env: dict[str, str], **named: object) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess([], 0, '{"stage": "sft"}', "")

    monkeypatch.setattr(subprocess, "run", run)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "KEPT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert measure.measure(config.dump(config.load(None)), "sft", None) == {"stage": "sft"}
    assert seen["KEPT"] == "1" and not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & seen.keys()


def test_a_capped_card_has_the_libraries_beside_the_allocator():
    assert measure.allowed(24, 80 * 2**30) == pytest.approx((24 - 0.6) / 80)
    assert measure.allowed(100, 80 * 2**30) == 1.0
    assert measure.allowed(0.5, 80 * 2**30) == 0.0


def test_a_model_that_is_not_known_is_said_once(capsys):
    assert main.main(["bench", "--model", "nobody/nothing"]) == 2
    message = capsys.readouterr()
    assert message.err.count("\n") == 1 and "model.base nobody/nothing" in message.err and not message.out


@pytest.mark.parametrize("more", [["reward.context=true"], ["reward.base=BASE"], []], ids=["context", "base", "plain"])
def test_the_rows_of_an_update_differ_in_length(more: list[str], tmp_path: Path, monkeypatch):
    """Rows of one length need no mask, so they would take less memory than a real minibatch."""
    base = middle(tmp_path, "smolvlm", 64, 96, 1, 300)
    more = [each.replace("BASE", base.split("=")[1]) for each in more]
    actual: list[Rollout] = []
    monkeypatch.setattr(steps.ppo, "step", lambda learner, rollout, number: actual.append(rollout))
    cfg = config.load(None, [*SMALL, "ppo.micro_batch_size=3", "ppo.minibatch_size=3", "rollout.rollouts=4", *more, base])
    stage = steps.StageProbe(cfg, "update", tmp_path)
    with stage.open(None) as (models, worst):
        stage.prepare(models, worst)()
    for rows in (actual[0].rows, actual[0].critic_rows):
        lengths = [len(row) for row in rows]
        assert sorted({length - max(lengths) for length in lengths}) == [-1, 0]
    assert (len(actual[0].critic_rows[1]) > len(actual[0].rows[1])) == ("context" in more[0] if more else False)


@pytest.mark.parametrize("rest", ["cpu", "device"])
def test_stand_ins_have_the_bases_of_their_own_that_a_run_has(rest: str, tmp_path: Path):
    base = middle(tmp_path, "smolvlm", 64, 96, 1, 300)
    more = [base, base.replace("model.", "reward."), "reference.kind=model", f"reference.rest={rest}", f"reward.rest={rest}"]
    with steps.StageProbe(config.load(None, [*SMALL, *more]), "collect", tmp_path).open(None) as (models, _):
        for other in (models.reference, models.critic):
            assert other is not models.policy
            assert bool(other.backbone.text_model.embed_tokens.weight.numel()) == (rest == "device")


def test_the_feedback_step_describes_answers_and_judges_twice(tmp_path: Path, monkeypatch):
    """As the stage: the comparison without context is made for the report."""
    base = middle(tmp_path, "smolvlm", 64, 96, 1, 300)
    more = ["video.max_segments=3", "feedback.describe_tokens=2", "feedback.max_new_tokens=4", "feedback.judge_frames=false"]
    judged: list[tuple[bool, bool]] = []
    real = labels.judge

    def judge(session: object, pairs: list[Comparison], inputs: dict[str, object], *others: object) -> object:
        judged.append((bool(pairs[0].context), all(each is not None for each in inputs.values())))
        return real(session, pairs, inputs, *others)

    monkeypatch.setattr(labels, "judge", judge)
    cfg = config.load(None, [*SMALL, *more, base])
    stage = steps.StageProbe(cfg, "feedback", tmp_path)
    with stage.open(None) as (models, worst):
        done = stage.prepare(models, worst)()
    assert judged == [(True, False), (False, True)]
    assert 0 < done.tokens - 2 * 3 * 2 <= 2 * 2 * 4  # two prompts: three descriptions of 2 tokens, two answers of at most 4


def test_the_bench_needs_no_reader_of_clips_or_rows(python, tmp_path: Path):
    code = "import sys; sys.modules.update(dict.fromkeys(['datasets', 'decord', 'av', 'gradio', 'matplotlib']));"
    code += "from minirlaif.memory import measure, random_model, steps"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
