"""`plan`: counts from config.json alone, the table, the verdict, shrinking, and the shipped 24 GB configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minirlaif import cli, config, fitting, plan, shapes
from minirlaif.config import ModelSection
from minirlaif.records import UserError

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").glob("24gb-*.yaml"))
TARGETS = ModelSection().lora_targets


@pytest.mark.parametrize("name", shapes.known_names())
def test_standard_backbones_have_the_published_number_of_weights(name: str):
    entry = json.loads(shapes.KNOWN_FILE.read_text())[name]
    n = shapes.shape_of(entry["config"], TARGETS).numbers
    count = (n.linear_weights + n.plain_weights + n.head_weights + n.vision_weights) / 1e9
    digits = len(entry["billions"].replace(".", "").lstrip("0"))  # to as many as were published
    assert f"{count:.{digits}g}" == entry["billions"]
    assert entry["billions_from"] and all(" (" in source for source in entry["sources"])  # where, and for which part


def test_the_vision_tower_of_qwen3_5_2b_has_its_published_weights():
    n = shapes.shape_of(shapes.known_config("qwen3.5-2b") or {}, TARGETS).numbers
    assert round(n.vision_weights / 1e6) == 331  # strands-labs/strands-decider docs/vision.md


def test_counts_of_a_real_model_and_its_adapter(tmp_path: Path):
    from tiny import backbone, settings

    from minirlaif.roles import Roles

    base = backbone()
    base.model.config.save_pretrained(tmp_path)
    n = shapes.shape_of(shapes.read_config(ModelSection(), str(tmp_path)), TARGETS).numbers
    every = {p.data_ptr(): p.numel() for p in base.model.parameters()}
    assert n.linear_weights + n.plain_weights + n.head_weights + n.vision_weights == sum(every.values())
    assert n.vision_weights == sum(p.numel() for part in base.eyes for p in part.parameters())
    roles = Roles(base, settings().model)
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
    assert shapes.shape_of(shapes.known_config(name) or {}, TARGETS).grid(16, 65536) == grid


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_fit_24_gib(path: Path, capsys):
    assert cli.main(["plan", "--config", str(path), "--gpu-gib", "24"]) == 0
    told = capsys.readouterr().out
    assert "\nfits: " in told
    assert all(title in told for title in ("sft", "feedback", "reward", "ppo collect", "ppo update", "evaluate"))
    assert "not measured" in path.read_text()
    cfg = config.load(path)
    assert (cfg.video.frames, cfg.rollout.max_new_tokens) in ((16, 256), (50, 256)) and cfg.rollout.batch_size >= 4


def test_the_papers_setup_fits_24_gib_and_is_the_papers(capsys):
    path = ROOT / "configs" / "paper.yaml"
    assert cli.main(["plan", "--config", str(path), "--gpu-gib", "24"]) == 0
    cfg = config.load(path)
    found = plan.planned(cfg, gpu=True)
    for shape in (found.policy, found.critic):
        groups, height, width = shape.grid(cfg.video.frames, cfg.video.frame_pixels)
        assert groups * height * width == 626
    assert (found.policy.numbers.layers, found.critic.numbers.layers) == (32, 40)  # 7B and 13B
    assert (cfg.video.frames, cfg.sft.max_length, cfg.rollout.max_new_tokens) == (50, 2048, 896)
    assert "SmolVLM" not in path.read_text()


def test_pooled_frames_are_not_shrunk():
    found = plan.planned(config.load(None, ["model.base=llava-1.5-7b", "video.frames=50"]), gpu=True)
    said = fitting.fitted(found, fitting.Card("", 12 * plan.GIB, True))[1]
    assert said and not any(change.startswith("video.frames") for change in said)


def test_one_config_per_backbone():
    assert len(SHIPPED) == 6


def test_what_does_not_fit_is_shrunk_frames_first(tmp_path: Path, capsys):
    wide = tmp_path / "wide.yaml"
    wide.write_text("model: {base: qwen3-vl-4b, gradient_checkpointing: true}\nvideo: {frames: 64, frame_pixels: 262144}\n")
    small = tmp_path / "small.yaml"
    assert cli.main(["plan", "--config", str(wide), "--gpu-gib", "24"]) == 1
    told = capsys.readouterr().out
    assert "does not fit: " in told and "shrink first: video.frames" in told
    assert cli.main(["plan", "--config", str(wide), "--gpu-gib", "24", "--fit", str(small)]) == 0
    before, after = config.load(wide), config.load(small)
    assert after.video.frames < before.video.frames
    assert (after.ppo.learning_rate, after.seed, after.data) == (before.ppo.learning_rate, before.seed, before.data)
    assert cli.main(["plan", "--config", str(small), "--gpu-gib", "24"]) == 0


def test_the_order_of_shrinking():
    cfg = config.load(None, ["model.base=qwen3-vl-4b"])
    said, found = [], plan.planned(cfg, gpu=True)
    while (step := fitting._shrunk(found)) is not None:
        found = step[0]
        said.append(step[1].split(" ")[0])
    kinds = ["micro" if "batch" in name else name for name in dict.fromkeys(said)]
    order = ["video.frames", "video.frame_pixels", "micro", "model.gradient_checkpointing", "model.quantization"]
    assert list(dict.fromkeys(kinds)) == order


def test_a_model_too_big_for_a_card_is_said_so():
    cfg = config.load(None, ["model.base=llava-1.5-13b"])
    with pytest.raises(UserError, match="choose a smaller model.base"):
        fitting.fitted(plan.planned(cfg, gpu=True), fitting.Card("a small one", 4 * plan.GIB, True))


def test_a_reward_base_of_its_own_is_counted_while_it_scores():
    alone = config.load(None, ["model.base=llava-1.5-7b", "model.quantization=nf4"])
    pair = config.load(None, ["model.base=llava-1.5-7b", "model.quantization=nf4", "reward.base=llava-1.5-13b"])
    one, two = (plan.estimate(plan.planned(cfg, gpu=True)) for cfg in (alone, pair))
    assert two["update"]["weights"] > 2.5 * one["update"]["weights"]
    assert two["sft"] == one["sft"]


def test_an_unreachable_model_is_one_line(capsys, tmp_path: Path):
    (tmp_path / "c.yaml").write_text("model: {base: nobody/nothing}\n")
    assert cli.main(["plan", "--config", str(tmp_path / "c.yaml"), "--gpu-gib", "24"]) == 2
    told = capsys.readouterr().err
    assert "nobody/nothing" in told and "--model-config" in told and told.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps(shapes.known_config("smolvlm2-256m")))
    words = ["plan", "--config", str(tmp_path / "c.yaml"), "--gpu-gib", "24", "--model-config", str(tmp_path)]
    assert cli.main(words) == 0


def test_the_readme_table_has_a_row_per_config(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["plan", "--table"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows[0].count("GiB") == 4 and len(rows) == 2 + len(SHIPPED)
    assert all("| planned |" in row for row in rows[2:])
