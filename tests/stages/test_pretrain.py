"""Stage `pretrain`, with few rows and steps: what it writes, and that a killed one resumes to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.models.loading import open_backbone
from minirlaif.runs.run import Run
from minirlaif.stages.tiny import pretrain
from tests.fixtures import small_config

STEPS, KILLED_AT = 4, 3
CFG = config.load(small_config.TINY, [f"pretrain.steps={STEPS}"])


def test_a_killed_pretraining_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pretrain, "FIRST", {"segment": 2, "text": 1})
    monkeypatch.setattr(pretrain, "THEN", {"segment": 1, "text": 1, "whole": 1, "both": 1})
    monkeypatch.setattr(pretrain, "SAVE_STEPS", 2)
    make_model = pretrain.base_model.make_model
    monkeypatch.setattr(pretrain.base_model, "make_model", lambda tokenizer, seed: make_model(tokenizer, seed, layers=1))
    measure, step, steps = pretrain.measure, pretrain._step, []
    monkeypatch.setattr(pretrain, "measure", lambda backbone, seed: measure(backbone, seed, clips=1))

    def counted(*arguments: Any) -> float:
        steps.append(arguments[4])
        if len(steps) == STEPS + KILLED_AT + 1:  # of the second run
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(pretrain, "_step", counted)
    straight, killed = Run(tmp_path / "straight"), Run(tmp_path / "killed")
    pretrain.run(CFG, straight)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(CFG, killed)
    pretrain.run(CFG, killed)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3]
    results = small_config.results(straight.root, ["pretrain"])
    assert results == small_config.results(killed.root, ["pretrain"])
    assert {"pretrain/base/model.safetensors", "pretrain/base/tokenizer.json", "pretrain/metrics.jsonl"} <= results.keys()
    rows = small_config.lines(killed.dir("pretrain") / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    section = config.ModelSection(base=str(killed.dir("pretrain") / "base"), device="cpu")
    assert open_backbone(section).renderer.layout == pretrain.base_model.LAYOUT
