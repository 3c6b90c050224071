"""Qwen3-VL and Qwen3.5 as GGUF: the same ids and logits as in transformers, frames seen in pairs; merged, and as adapters."""

from __future__ import annotations

from pathlib import Path

from minirlaif.gguf import export_info
from tests.fixtures import bases_qwen, export_runs


def test_qwen3_5_is_the_same_in_gguf(tmp_path: Path) -> None:
    run = export_runs.trained(tmp_path / "runs" / "red", bases_qwen.qwen3_5(tmp_path / "base"))
    assert export_runs.export(run, "--types", "f16") == 0
    export_runs.check_parity(run)
    assert export_runs.manifest(run)["accuracy"]["f16"] == export_runs.manifest(run)["accuracy"]["hf"] == 0.5


def test_qwen3_vl_is_the_same_in_gguf_with_its_adapters_apart(tmp_path: Path) -> None:
    run = export_runs.trained(tmp_path / "runs" / "red", bases_qwen.qwen3_vl(tmp_path / "base"))
    assert export_runs.export(run, "--types", "f16", "--adapters") == 0
    export_runs.check_parity(run)  # of rlaif, sft and base, whichever is worst
    folder = run.dir("export")
    actual = export_info.read(folder)
    assert actual.models == ("rlaif", "sft", "base")
    assert dict(actual.adapters) == {"rlaif": "red-rlaif-LoRA-F32.gguf", "sft": "red-sft-LoRA-F32.gguf"}
    assert {path.name for path in folder.glob("*.gguf")} == {
        "red-base-F16.gguf",
        "mmproj-red-F16.gguf",
        *actual.adapters.values(),
    }
    assert not (folder / "hf").exists()
    assert export_runs.manifest(run)["agreement"]["f16"] >= 0.75  # of eight answers; random weights leave ties
