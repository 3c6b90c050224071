"""The export of the shipped base: the files are the model; what is noticed, and how it goes on after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from minirlaif.config import ModelSection
from minirlaif.gguf import export_info
from minirlaif.gguf.export import model_card, verify
from minirlaif.gguf.export.quantize import listed
from minirlaif.models.loading import TINY, open_backbone
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.stages import export as stage
from tests.fixtures import export_runs, tiny

TYPES = "f16,q4_k_m"
BEFORE_THE_KILL = 3  # answers of the first type


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An exported run; the export was stopped among its questions, every answer saved, and gone on with."""
    made = export_runs.trained(tmp_path_factory.mktemp("runs") / "red", "tiny", export_runs.world_clip)

    answers = verify.answers

    def stopped(*arguments: Any) -> Iterator[str]:
        for number, text in enumerate(answers(*arguments)):
            if number == BEFORE_THE_KILL:
                raise KeyboardInterrupt
            yield text

    def again(*arguments: Any) -> Any:
        raise AssertionError("made a second time")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageDir, "due", lambda *_: True)
        patch.setattr(verify, "answers", stopped)
        assert export_runs.export(made, "--types", TYPES) == 130
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "convert", again)
        patch.setattr(stage, "quantize", again)
        assert export_runs.export(made, "--types", TYPES) == 0
    return made


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.dir("export") / "answers.jsonl").read_text().splitlines()]


def test_the_files_are_the_model(run: Run) -> None:
    export_runs.check_parity(run)
    manifest = export_runs.manifest(run)
    assert manifest["pre_tokenizer"] == "gpt-2" and manifest["converter"] == "0.3.36"
    assert manifest["frame_grid"]["tile"] == 32 and manifest["frame_grid"]["frames"] == 4
    assert manifest["merge"]["logit_difference"] < 1e-4 and manifest["merge"]["trained_on"] == "none"
    folder = run.dir("export")
    names = {"red-F16.gguf", "red-Q4_K_M.gguf", "mmproj-red-F16.gguf"}
    assert {path.name for path in folder.glob("*.gguf")} == names == set(manifest["sizes"])
    assert names | {"minirlaif.json", "README.md", "Modelfile", "answers.jsonl", "hf/model.safetensors"} <= set(
        manifest["outputs"]
    )
    # No row of the base is a multiple of 256 wide but those of ffn_down (384 is none either): 7 matrices in each of 4 layers,
    # and the embeddings.
    assert manifest["fell_back"]["f16"] == {} and len(manifest["fell_back"]["q4_k_m"]) == 7 * 4 + 1


def test_the_questions_are_answered_as_in_transformers(run: Run) -> None:
    manifest = export_runs.manifest(run)
    assert manifest["questions"] == export_runs.ROWS
    assert manifest["accuracy"]["hf"] == manifest["accuracy"]["f16"] == 0.5  # every second truth is what the model says
    assert manifest["agreement"]["f16"] == 1.0 and manifest["agreement"]["f16_blind"] < 1.0


def test_a_killed_export_goes_on(run: Run) -> None:
    """The fixture stopped it behind the third answer, and lets nobody convert or quantise twice."""
    files = [line["file"] for line in lines(run)]
    assert files == ["f16"] * export_runs.ROWS + ["q4_k_m"] * export_runs.ROWS + ["f16_blind"] * export_runs.ROWS
    assert [line["question"] for line in lines(run)[: export_runs.ROWS]] == list(export_runs.QUESTIONS) * export_runs.CLIPS


def test_a_finished_export_is_not_made_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run.dir("export") / "manifest.json").stat().st_mtime_ns
    assert export_runs.export(run, "--types", TYPES) == 0
    assert "finished already" in capsys.readouterr().out
    assert (run.dir("export") / "manifest.json").stat().st_mtime_ns == before
    assert export_runs.export(run, "--types", "f16") == 2
    assert "minirlaif export --types f16 --run red" in (said := capsys.readouterr().err) and "--redo" in said


def test_the_merged_weights_are_base_plus_adapter(run: Run) -> None:
    base, merged = load_file(TINY / "model.safetensors"), load_file(run.dir("export") / "hf" / "model.safetensors")
    adapter = load_file(run.dir("ppo") / "adapter" / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    start, adapted = "base_model.model.", 0
    for name, weight in base.items():
        stem = start + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in adapter:  # alpha / r is 4 / 4
            weight = weight + adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            adapted += 1
        np.testing.assert_allclose(merged[name], weight, rtol=0, atol=1e-6, err_msg=name)
    assert adapted == 7 * 4 == len(adapter) // 2


def test_the_saved_folder_opens_in_transformers(run: Run) -> None:
    from transformers import AutoTokenizer, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    folder = run.dir("export") / "hf"
    _, info = SmolVLMForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert SmolVLMImageProcessorPil.from_pretrained(folder).size["longest_edge"] == 32
    backbone = open_backbone(ModelSection(base=str(folder), device="cpu"))
    turns = [{"role": "user", "content": "what happens first?"}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert tuple(ids) == backbone.renderer.prompt(None, "what happens first?")
    assert (folder / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert json.loads((folder / "config.json").read_text())["text_config"]["architectures"] == ["VLlama3ForCausalLM"]


def test_the_readme_names_files_that_are_there(run: Run) -> None:
    folder = run.dir("export")
    text, model = (folder / "README.md").read_text(), (folder / "Modelfile").read_text()
    for program in ("llama-mtmd-cli", "llama-server", "ollama create", ".lmstudio", "minirlaif chat --gguf"):
        assert program in text
    named = {word.strip("`'\"") for word in text.split() if word.endswith(".gguf")}
    assert len(named) == 2 and all((folder / word).is_file() for word in named)
    sources = [line.removeprefix("FROM ./") for line in model.splitlines() if line.startswith("FROM")]
    assert sources == ["red-Q4_K_M.gguf", "mmproj-red-F16.gguf"] and all((folder / name).is_file() for name in sources)


def test_the_readme_says_where_no_checkpoint_was_kept(run: Run, tmp_path: Path) -> None:
    assert "No checkpoint" not in (run.dir("export") / "README.md").read_text() and stage.not_kept(run) == ""
    other = Run(tmp_path / "other")
    tiny.finished(other, "ppo", chosen_iteration=0)
    note = stage.not_kept(other)
    assert note == "No checkpoint of ppo was kept on the dev questions: this is the model that ppo started from."
    model_card.write(tmp_path, export_info.read(run.dir("export")), {**(run.manifest("export") or {}), "note": note})
    assert note in (tmp_path / "README.md").read_text().split("|")[0]  # above the table


def test_what_is_published_names_no_folder_and_depends_on_no_place(tmp_path: Path) -> None:
    identities = set()
    shutil.copytree(TINY, tmp_path / "base")
    for place, name in (("one", "red"), ("other", "blue")):
        made = export_runs.trained(tmp_path / place / name, tmp_path / "base", export_runs.world_clip)
        assert export_runs.export(made, "--types", "f16") == 0
        files = [path for path in made.dir("export").rglob("*") if path.is_file()]
        assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]
        identities.add(export_runs.manifest(made)["identity"])
    assert len(identities) == 1


def test_the_converters_reader_lists_them(run: Run) -> None:
    found = listed(run.dir("export") / "red-F16.gguf")
    assert found["fields"]["general.architecture"] == "llama" and found["fields"]["llama.block_count"] == 4
    assert found["fields"]["tokenizer.ggml.pre"] == "gpt-2" and "<|im_start|>" in found["fields"]["tokenizer.chat_template"]
    assert found["tensors"]["blk.3.ffn_up.weight"] == ["F16", 128] and len(found["tensors"]) == 7 * 4 + 1


def elsewhere(run: Run, folder: Path) -> Path:
    """The F16 files alone, as if another tool had made them."""
    folder.mkdir()
    for name in ("red-F16.gguf", "mmproj-red-F16.gguf"):
        shutil.copyfile(run.dir("export") / name, folder / name)
    return folder


def test_verify_takes_files_made_elsewhere(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = elsewhere(run, tmp_path / "theirs")
    assert export_runs.export(run, "--verify", str(folder), "--questions", "2") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| f16"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[2]) < 0.05 and float(cells[3]) < 0.05 and cells[-2:] == ["0.500", "1.000"]
    assert {path.name for path in folder.iterdir()} == {"red-F16.gguf", "mmproj-red-F16.gguf"}


def test_verify_notices_a_model_that_lost_its_sight(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = elsewhere(run, tmp_path / "theirs") / "mmproj-red-F16.gguf"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))  # the tensors of its second half are zero
    assert export_runs.export(run, "--verify", str(path.parent), "--questions", "2") == 1
    assert "differs: red-F16.gguf: with the right frames" in capsys.readouterr().out


def test_verify_needs_whole_files(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = elsewhere(run, tmp_path / "theirs") / "red-F16.gguf"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert export_runs.export(run, "--verify", str(path.parent)) == 2
    assert (said := capsys.readouterr().err).count("\n") == 1 and "red-F16.gguf" in said
    path.unlink()
    assert export_runs.export(run, "--verify", str(path.parent)) == 2
    assert "no text model" in capsys.readouterr().err
