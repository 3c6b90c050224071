"""`plan`: counts from config.json alone, the table, the verdict, shrinking, and the shipped 24 GB configs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.cli import main
from minirlaif.cli.plan import plan_of
from minirlaif.config import ModelSection, RewardSection
from minirlaif.errors import UserError
from minirlaif.memory import fit, formulas, planner, shapes
from minirlaif.memory.formulas import Batch, Numbers
from minirlaif.models import loading
from minirlaif.models.backbones import family_of

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(set((ROOT / "configs").glob("24gb-*.yaml")) - {ROOT / "configs" / "24gb-own-clips.yaml"})
TARGETS = ModelSection().lora_targets


@pytest.mark.parametrize("name", sorted(loading.known_models()))
def test_standard_backbones_have_the_published_number_of_weights(name: str):
    entry = json.loads(loading.KNOWN_FILE.read_text())[name]
    n = shapes.shape_of(entry["config"], TARGETS).numbers
    count = (n.linear_weights + n.plain_weights + n.head_weights + n.vision_weights) / 1e9
    digits = len(entry["billions"].replace(".", "").lstrip("0"))  # to as many as were published
    assert f"{count:.{digits}g}" == entry["billions"]
    assert entry["billions_from"] and all(" (" in source for source in entry["sources"])  # where, and for which part


def test_the_vision_tower_of_qwen3_5_2b_has_its_published_weights():
    n = shapes.shape_of(loading.known_config("qwen3.5-2b") or {}, TARGETS).numbers
    assert round(n.vision_weights / 1e6) == 331  # strands-labs/strands-decider docs/vision.md


def test_counts_of_a_real_model_and_its_adapter(tmp_path: Path):
    from minirlaif.models.adapters import AdapterSet
    from tests.fixtures.tiny import backbone, settings

    base = backbone()
    base.model.config.save_pretrained(tmp_path)
    n = shapes.shape_of(loading.read_config(ModelSection(), str(tmp_path)), TARGETS).numbers
    every = {p.data_ptr(): p.numel() for p in base.model.parameters()}
    assert n.linear_weights + n.plain_weights + n.head_weights + n.vision_weights == sum(every.values())
    assert n.vision_weights == sum(p.numel() for part in base.vision_modules for p in part.parameters())
    roles = AdapterSet(base, settings().model)
    roles.add("sft", 0)
    assert n.lora_units * settings().model.lora_r == sum(p.numel() for p in roles.named("sft").values())


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("smolvlm2-500m", (16, 8, 8)),  # 512 / 16 / 4
        ("smolvlm2-2.2b", (16, 9, 9)),  # 384 / 14 / 3
        ("llava-1.5-7b", (1, 16 + 576, 1)),
        ("qwen3-vl-2b", (8, 6, 10)),  # pairs; 192 x 320 pixels are the most of 16:9 in cells of 32 under 65536
    ],
)
def test_vision_tokens(name: str, grid: tuple[int, int, int]):
    assert shapes.shape_of(loading.known_config(name) or {}, TARGETS).grid(16, 65536) == grid


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_fit_24_gib(path: Path, capsys):
    assert main.main(["plan", "--config", str(path), "--gpu-gib", "24"]) == 0
    message = capsys.readouterr().out
    assert "\nfits: " in message
    assert all(title in message for title in ("sft", "feedback", "reward", "ppo collect", "ppo update", "evaluate"))
    assert "not measured" in path.read_text()
    cfg = config.load(path)
    assert (cfg.video.frames, cfg.rollout.max_new_tokens) in ((16, 256), (50, 256)) and cfg.rollout.batch_size >= 4
    bits = "none" if "qwen3.5" in path.name else "nf4"  # four bits are advised against there
    assert (cfg.model.quantization, cfg.model.lora_r, cfg.model.lora_alpha) == (bits, 64, 16)
    assert (cfg.model.optimizer, cfg.model.gradient_checkpointing) == ("paged_adamw_8bit", True)
    assert cfg.model.lora_targets == TARGETS and cfg.feedback.max_new_tokens == 256


def test_the_papers_setup_fits_24_gib_and_is_the_papers(capsys):
    path = ROOT / "configs" / "paper.yaml"
    assert main.main(["plan", "--config", str(path), "--gpu-gib", "24"]) == 0
    cfg = config.load(path)
    actual = plan_of(cfg, gpu=True)
    for shape in (actual.policy, actual.critic):
        groups, height, width = shape.grid(cfg.video.frames, cfg.video.frame_pixels)
        assert groups * height * width == 626
    assert (actual.policy.numbers.layers, actual.critic.numbers.layers) == (32, 40)  # 7B and 13B
    assert "SmolVLM" not in path.read_text()
    got = {name: getattr(getattr(cfg, name.split(".")[0]), name.split(".")[1]) for name in PAPER}
    assert got == PAPER


PAPER = {  # as in the paper and the scripts of its released code
    "model.quantization": "nf4", "model.lora_r": 64, "model.lora_alpha": 16, "model.lora_targets": TARGETS,
    "video.frames": 50, "video.segment_frames": 20, "video.max_segments": 3,
    "sft.epochs": 1.0, "sft.learning_rate": 1e-4, "sft.batch_size": 128, "sft.max_length": 2048,
    "feedback.answers": 2, "feedback.context": True, "feedback.judge_frames": True,
    "reward.epochs": 1.0, "reward.learning_rate": 2e-5, "reward.schedule": "constant", "reward.warmup_ratio": 0.03,
    "reward.batch_size": 16, "reward.weight_decay": 0.0, "reward.max_grad_norm": 0.3, "reward.centering": 0.001,
    "reward.context": False, "reward.likelihood": False,
    "rollout.rollouts": 256, "rollout.temperature": 1.0, "rollout.max_new_tokens": 896, "rollout.kl_coef": 0.1,
    "rollout.kl_estimator": "k1", "rollout.missing_eos_penalty": 8.0, "rollout.length_coef": 10.0, "rollout.reward_scale": 10.0,
    "rollout.normalize_score": False, "rollout.gamma": 1.0, "rollout.lam": 1.0,
    "ppo.epochs": 2, "ppo.minibatch_size": 128, "ppo.learning_rate": 3e-5, "ppo.warmup_steps": 5, "ppo.schedule": "cosine",
    "ppo.weight_decay": 0.0, "ppo.max_grad_norm": 1.0, "ppo.clip": 0.2, "ppo.value_clip": 0.2, "ppo.vf_coef": 0.1,
    "ppo.max_kl": 0.0, "evaluate.max_new_tokens": 512,
}  # fmt: skip


# Four frames of 64 tokens (512 / 16 / 4 a side) with 12 of text each, and 96 of the question: a prompt of 400.
SMALL = """
    video.frames=4 video.segment_frames=2 video.max_segments=3 sft.batch_size=8 sft.micro_batch_size=2 sft.max_length=650
    feedback.answers=3 feedback.max_new_tokens=30 feedback.describe_tokens=16 feedback.batch_size=5 feedback.readout=letter
    reward.batch_size=7 reward.micro_batch_size=2 rollout.rollouts=9 rollout.batch_size=6 rollout.max_new_tokens=20
    ppo.minibatch_size=8 ppo.micro_batch_size=3 evaluate.batch_size=11 evaluate.max_new_tokens=25 model.lora_r=2
""".split()
NUMBERS = Numbers(
    width=4, full_layers=2, delta_layers=0, query=4, keys=2, heads=2, ffn=8, vocabulary=10,
    linear_weights=6400, plain_weights=100, head_weights=40, vision_weights=1000, lora_units=50, lora_modules=7, biggest=64,
)  # fmt: skip
VISION = {"image_size": 512, "patch_size": 16, "hidden_size": 24, "intermediate_size": 48}
SHAPE = shapes.Shape(family_of("smolvlm"), NUMBERS, {"scale_factor": 4, "vision_config": VISION}, 4)


def small(*more: str, gpu: bool = True) -> planner.Planned:
    return planner.Planned(config.load(None, [*SMALL, *more]), SHAPE, SHAPE, gpu)


def moments(
    actual: planner.Planned, monkeypatch: pytest.MonkeyPatch, known: dict[str, tuple[int, int]] | None = None
) -> list[Any]:
    """What is asked of `memory`, in order."""
    questions: list[Any] = []

    def watched(name: str) -> Any:
        def call(numbers: Numbers, precision: formulas.Precision, *given: Any) -> dict[str, float]:
            questions.append((name, *given))
            return {}

        return call

    def encoding(precision: formulas.Precision, *given: Any) -> float:
        questions.append(("encoding", *given))
        return 0.0

    for name in ("training", "sampling", "scoring"):
        monkeypatch.setattr(formulas, name, watched(name))
    monkeypatch.setattr(formulas, "encoding", encoding)
    planner.estimate(actual, known)
    return questions


def test_what_is_in_memory_in_each_stage(monkeypatch: pytest.MonkeyPatch):
    seen, encoding = 4 * 64, ("encoding", 4 * 32 * 32, 24, 48)
    message = 3 * (16 + 4)  # tokens of the descriptions
    judged = Batch(5, 400 + message + 2 * 30 + 160, 1, seen)
    assert moments(small(), monkeypatch) == [
        ("training", Batch(2, 650, 250, seen)),  # sft: 400 + 256 are cut
        encoding,
        ("sampling", Batch(5, 2 * 76 + 96, 0, 2 * 64), 1, 16),  # feedback: a segment is described
        ("sampling", Batch(5, 400, 0, seen), 3, 30),
        ("scoring", judged),
        encoding,
        ("training", Batch(2 * 2, 430, 0, seen)),  # reward: both answers of a pair
        ("scoring", Batch(7, 430, 0, seen)),
        encoding,
        ("sampling", Batch(6, 400, 0, seen), 1, 20),  # ppo collects: samples, scores, criticises
        ("scoring", Batch(6, 420, 20, seen)),
        ("scoring", Batch(6, 420, 0, seen)),
        ("training", Batch(3, 420, 20, seen)),  # and updates policy and value
        ("training", Batch(3, 420, 0, seen)),
        ("sampling", Batch(11, 400, 0, seen), 1, 25),  # evaluate
        encoding,
    ]  # fmt: skip
    with_judge = moments(small("data.dev=[a.jsonl]"), monkeypatch)
    assert with_judge[12:14] == [("sampling", Batch(5, 400, 0, seen), 1, 20), ("scoring", judged)]


def test_what_is_in_memory_when_the_reward_model_reads_more(monkeypatch: pytest.MonkeyPatch):
    message, seen = 3 * (16 + 4), 4 * 64
    more = ("reward.context=true", "reward.likelihood=true", "feedback.readout=likelihood", "feedback.judge_frames=false")
    questions = moments(small(*more), monkeypatch)
    assert questions[4] == ("scoring", Batch(5, max(400 + 30, 96 + message + 30), 30, seen))  # the bare comparison has the frames
    assert questions[6] == ("training", Batch(4, 400 + message + 30, 30, seen))
    assert questions[11] == ("scoring", Batch(6, 400 + message + 20, 20, seen))
    assert questions[13] == ("training", Batch(3, 400 + message + 20, 0, seen))


def test_what_a_bench_knows_wins_over_the_settings(monkeypatch: pytest.MonkeyPatch):
    actual = replace(small("data.dev=[a.jsonl]"), encodes=False)
    known = {"sft": (300, 40), "reward": (310, 50), "collect": (320, 0), "evaluate": (330, 0)}
    questions = moments(actual, monkeypatch, known)
    assert questions[0] == ("training", Batch(2, 340, 40, 256)) and not any(name == "encoding" for name, *_ in questions)
    assert questions[4] == ("training", Batch(4, 360, 0, 256))
    assert questions[6:10] == [
        ("sampling", Batch(6, 320, 0, 256), 1, 20),
        ("scoring", Batch(6, 340, 20, 256)),
        ("scoring", Batch(6, 340, 0, 256)),
        ("training", Batch(3, 420, 20, 256)),  # no judge, whom a bench has not
    ]
    assert questions[-1] == ("sampling", Batch(11, 330, 0, 256), 1, 25)


@pytest.mark.parametrize(
    ("more", "policy", "critic", "adapters"),
    [
        # bases (of the policy's size, of the critic's) and adapters while PPO samples, scores, criticises and updates
        ("", (1, 1, 1, 1), (0, 0, 0, 0), (1, 1, 2, 2)),
        ("reference.rest=device", (1, 1, 1, 1), (0, 0, 0, 0), (2, 2, 3, 3)),
        ("reference.kind=model", (1, 2, 1, 1), (0, 0, 0, 0), (1, 1, 2, 2)),
        ("reference.kind=model reference.rest=device", (2, 2, 2, 2), (0, 0, 0, 0), (2, 2, 3, 3)),
        ("reward.base=other", (1, 1, 1, 1), (0, 0, 1, 1), (1, 1, 2, 2)),
        ("reward.base=other reward.rest=device", (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 2, 2)),
    ],
)
def test_who_stands_in_each_phase_of_ppo(more: str, policy: tuple[int, ...], critic: tuple[int, ...], adapters: tuple[int, ...]):
    big = replace(SHAPE, numbers=replace(NUMBERS, linear_weights=64000))
    actual = small(*more.split(), "model.dtype=bfloat16")
    actual = replace(actual, critic=big if actual.settings.reward.base else SHAPE)
    for phase, own, others, there in zip(("sample", "score", "critic", "update"), policy, critic, adapters, strict=True):
        lines = planner._ppo(actual, phase)
        assert lines["weights"] == own * 2 * (6400 + 140) + others * 2 * (64000 + 140)  # the eyes rest
        assert lines["adapters"] == there * 50 * 2 * 4
        assert lines["optimiser"] == 2 * 50 * 2 * (4 + 8)


def test_on_a_cpu_rest_is_no_rest():
    every = 6400 + 140 + 1000
    for more, bases in (("", 1), ("reference.kind=model", 2), ("reward.base=other", 2)):
        lines = planner._ppo(small(more, gpu=False) if more else small(gpu=False), "sample")
        assert (lines["weights"], lines["adapters"]) == (bases * 4 * every, 4 * 50 * 2 * 4)


def test_8_bit_moments_take_a_quarter():
    sizes = [planner.estimate(small(f"model.optimizer={name}"))["sft"]["optimiser"] for name in ("adamw", "paged_adamw_8bit")]
    assert sizes == [100 * (4 + 8), 100 * (4 + 2)]  # gradients and moments


def test_the_eyes_take_room_while_they_see_and_only_then():
    wide_vision = {**SHAPE.config, "vision_config": {**VISION, "hidden_size": 10_000}}
    base, wide = 6400 + 140, replace(SHAPE, config=wide_vision)
    actual = replace(small("model.dtype=bfloat16"), policy=wide, critic=wide)
    for stage in ("sft", "feedback", "reward", "evaluate"):
        assert planner.estimate(actual)[stage]["weights"] == 2 * (base + 1000)
        assert planner.estimate(replace(actual, encodes=False))[stage]["weights"] == 2 * base


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("smolvlm2-500m", 15 * (64 + 12) + 96),
        ("llava-1.5-7b", 15 + 576 + 96),
        ("qwen3-vl-2b", 8 * (60 + 10) + 96),  # the odd frame is a pair with itself
        ("qwen3.5-2b", 8 * (60 + 10) + 96),
    ],
)
def test_tokens_of_a_prompt(name: str, tokens: int):
    assert shapes.shape_of(loading.known_config(name) or {}, TARGETS).prompt_tokens(15, 65536, 96) == tokens


def test_the_room_on_a_card():
    """CUDA and its libraries take 0.6 GiB beside the allocator, and gaps 3 %."""
    assert fit.Card("", 24 * planner.GIB, True).room == pytest.approx((24 - 0.6) * 0.97 * planner.GIB)
    assert fit.Card("", 24 * planner.GIB, False).room == 24 * planner.GIB


def test_pooled_frames_are_not_shrunk():
    actual = plan_of(config.load(None, ["model.base=llava-1.5-7b", "video.frames=50"]), gpu=True)
    output = fit.fitted(actual, fit.Card("", 12 * planner.GIB, True))[1]
    assert output and not any(change.startswith("video.frames") for change in output)


def test_one_config_per_backbone():
    assert len(SHIPPED) == 6


def test_what_does_not_fit_is_shrunk_frames_first(tmp_path: Path, capsys):
    wide = tmp_path / "wide.yaml"
    wide.write_text("model: {base: qwen3-vl-4b, gradient_checkpointing: true}\nvideo: {frames: 64, frame_pixels: 262144}\n")
    small = tmp_path / "small.yaml"
    assert main.main(["plan", "--config", str(wide), "--gpu-gib", "24"]) == 1
    message = capsys.readouterr().out
    assert "does not fit: " in message and "shrink first: video.frames" in message
    assert main.main(["plan", "--config", str(wide), "--gpu-gib", "24", "--fit", str(small)]) == 0
    before, after = config.load(wide), config.load(small)
    assert after.video.frames < before.video.frames
    assert (after.ppo.learning_rate, after.seed, after.data) == (before.ppo.learning_rate, before.seed, before.data)
    assert main.main(["plan", "--config", str(small), "--gpu-gib", "24"]) == 0


def test_the_order_of_shrinking():
    cfg = config.load(None, ["model.base=qwen3-vl-4b"])
    message, actual = [], plan_of(cfg, gpu=True)
    while (step := fit._shrunk(actual)) is not None:
        actual = step[0]
        message.append(step[1])
    output = [step.split(" ")[0] for step in message]
    kinds = ["micro" if "batch" in name else name for name in dict.fromkeys(output)]
    order = ["video.frames", "video.frame_pixels", "micro", "model.gradient_checkpointing", "model.quantization"]
    assert list(dict.fromkeys(kinds)) == order
    sizes = [int(step.split(" ")[1]) for step in message if "batch" in step]
    assert sizes == sorted(sizes, reverse=True)  # the largest batch is halved first
    changes = [change.split(" ")[0] for change in fit.fitted(plan_of(cfg, gpu=True), fit.Card("", 7e9, True))[1]]
    assert len(changes) == len(set(changes)) > 1  # the last value of each setting is told


def test_a_model_too_big_for_a_card_is_said_so():
    cfg = config.load(None, ["model.base=llava-1.5-13b"])
    with pytest.raises(UserError, match="choose a smaller model.base"):
        fit.fitted(plan_of(cfg, gpu=True), fit.Card("a small one", 4 * planner.GIB, True))


def test_a_reward_base_of_its_own_is_counted_while_it_scores():
    alone = config.load(None, ["model.base=llava-1.5-7b", "model.quantization=nf4"])
    pair = config.load(None, ["model.base=llava-1.5-7b", "model.quantization=nf4", "reward.base=llava-1.5-13b"])
    one, two = (planner.estimate(plan_of(cfg, gpu=True)) for cfg in (alone, pair))
    assert two["update"]["weights"] > 2.5 * one["update"]["weights"]
    assert two["sft"] == one["sft"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no config.json"),
        ({"model_type": "gpt2"}, "model type 'gpt2' is not supported"),
        ({"model_type": "llava", "mm_vision_tower": "clip"}, "is in LLaVA's old layout"),
    ],
)
def test_a_bad_reward_base_is_named_as_one(content: dict[str, Any] | None, words: str, tmp_path: Path):
    """Also where the folder of --model-config stands in for model.base; and by the stages, before they load anything."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    (good / "config.json").write_text(json.dumps(loading.known_config("llava-1.5-7b")))
    if content:
        (bad / "config.json").write_text(json.dumps(content))
    model, reward = ModelSection(base="llava-1.5-7b"), RewardSection(base=str(bad))
    for check in (
        lambda: planner.shapes_of(model, reward),
        lambda: planner.shapes_of(model, reward, str(good)),
        lambda: loading.check_tokenizers(model, reward),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            check()
        assert str(caught.value).startswith(f"reward.base {bad}: ") and "model.base" not in str(caught.value)


def test_an_unreachable_model_is_one_line(capsys, tmp_path: Path):
    (tmp_path / "c.yaml").write_text("model: {base: nobody/nothing}\n")
    assert main.main(["plan", "--config", str(tmp_path / "c.yaml"), "--gpu-gib", "24"]) == 2
    message = capsys.readouterr().err
    assert "nobody/nothing" in message and "--model-config" in message and message.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps(loading.known_config("smolvlm2-256m")))
    words = ["plan", "--config", str(tmp_path / "c.yaml"), "--gpu-gib", "24", "--model-config", str(tmp_path)]
    assert main.main(words) == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"model_type": "llava", "mm_vision_tower": "openai/clip", "hidden_size": 5120},
            "old layout; run `python -m minirlaif convert",
        ),
        ({"model_type": "qwen3_vl", "text_config": 5}, "transformers refuses it"),
        ({"model_type": "smolvlm", "text_config": {"hidden_size": 64, "num_attention_heads": 7}}, "transformers refuses it"),
        ([1], "no config.json that can be read"),
        ({"model_type": "qwen2_5_vl"}, "is not supported; known are"),
    ],
)
def test_a_config_that_is_none_is_one_line(content: Any, says: str, tmp_path: Path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "c.yaml").write_text(f"model: {{base: {tmp_path}}}\n")
    assert main.main(["plan", "--config", str(tmp_path / "c.yaml"), "--gpu-gib", "24"]) == 2
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1
    words = ["plan", "--config", str(tmp_path / "c.yaml"), "--gpu-gib", "24", "--model-config", "/no/such"]
    assert main.main(words) == 2 and "--model-config /no/such: no such folder" in capsys.readouterr().err


def test_the_hardware_table_has_a_row_per_config(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main.main(["plan", "--table"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows[0].count("GiB") == 4 and len(rows) == 2 + len(SHIPPED)
    assert all("| planned |" in row for row in rows[2:])
    assert "\n".join(rows) in (ROOT / ".github" / "docs" / "hardware.md").read_text()


def test_methods_without_a_value_model_need_less():
    """On a CPU all adapters stay: policy, reference, reward, and with PPO the value model, which has moments, too."""
    settings = [
        "model.base=smolvlm2-500m",
        "optimize.methods=[ppo,rloo]",
        "rollout.samples_per_prompt=4",
        "group.micro_batch_size=2",
    ]
    cfg = config.load(None, settings)
    lines = planner.estimate(plan_of(cfg, gpu=False))
    for one, other in (("rloo_collect", "collect"), ("rloo_update", "update")):
        assert lines[one]["adapters"] / 3 == pytest.approx(lines[other]["adapters"] / 4)
        assert lines[one]["optimiser"] == pytest.approx(lines[other]["optimiser"] / 2)
    gpu = planner.estimate(plan_of(cfg, gpu=True))
    assert gpu["rloo_update"]["optimiser"] == pytest.approx(gpu["update"]["optimiser"] / 2)
    assert gpu["rloo_update"]["activations"] < 0.6 * gpu["update"]["activations"]  # its own micro-batches: two rows, not four
    assert gpu["rloo_update"]["weights"] == gpu["update"]["weights"]
    apart = config.load(None, [*settings, "reward.base=smolvlm2-2.2b"])
    own = planner.estimate(plan_of(apart, gpu=True))
    assert own["rloo_update"]["weights"] < 0.5 * own["update"]["weights"]  # the reward model's base stays in host memory
    assert own["rloo_collect"]["weights"] == own["collect"]["weights"]
    assert not [name for name in planner.estimate(plan_of(config.load(None, settings[:1]), gpu=True)) if "rloo" in name]


def test_what_is_shrunk_for_a_method_without_a_value_model():
    cfg = config.load(None, ["model.base=smolvlm2-500m", "optimize.methods=[dr_grpo]", "rollout.samples_per_prompt=4"])
    assert set(fit._batches(("dr_grpo",))) == {("group", "micro_batch_size"), ("rollout", "batch_size")}
    _, size = planner.peak(plan_of(cfg, gpu=True))
    smaller, changes = fit.fitted(plan_of(cfg, gpu=True), fit.Card("", size * 0.7 / 0.97 + planner.CONTEXT, True))
    assert planner.peak(smaller)[1] < 0.7 * size and changes
