"""The export: GGUF files that are the model, for every family; what is refused, what is noticed, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import bases_qwen
import exported
import pytest
import talking

from minirlaif.artifacts import Run

TEXT_GATE, FRAMES_GATE = 1e-4, 5e-3  # float32: other order of additions; llama.cpp's activations come from a table


def check_parity(run: Run) -> None:
    parity = exported.manifest(run)["parity"]
    assert parity["text_f32"] < TEXT_GATE, parity
    assert parity["frames_f32"] < FRAMES_GATE, parity
    assert parity["control"] >= 10 * FRAMES_GATE, parity
    assert all(not found["wrong_ids"] for found in parity["types"].values())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An exported run of the shipped base."""
    clip = lambda path, seed: talking.world_clip(path, seed=seed)  # noqa: E731
    made = exported.trained(tmp_path_factory.mktemp("runs") / "red", "tiny", clip=clip)
    assert exported.export(made, "--types", "f16,q4_k_m") == 0
    return made


def test_the_tiny_base_is_the_same_in_gguf(run: Run) -> None:
    check_parity(run)
    print(json.dumps({k: v for k, v in exported.manifest(run).items() if k not in ("outputs", "config")}, indent=1)[:3000])


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_other_families_are_the_same_in_gguf(family: str, tmp_path: Path) -> None:
    base = getattr(bases_qwen, family)(tmp_path / "base")
    run = exported.trained(tmp_path / "runs" / "red", base)
    assert exported.export(run, "--types", "f16", *(["--adapters"] if family == "qwen3_vl" else [])) == 0
    check_parity(run)
    print(json.dumps({k: v for k, v in exported.manifest(run).items() if k not in ("outputs", "config")}, indent=1)[:3000])
