"""The cards of adapters and of the merged model: metadata, and lines that run elsewhere and give the model's own answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from minirlaif.config import ModelSection
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.loading import open_backbone
from minirlaif.reports import adapter_card
from minirlaif.reports.adapter_card import Base
from minirlaif.runs.stage_dir import StageDir
from minirlaif.stages.registry import STAGES
from tests.fixtures.bases_smolvlm import smolvlm

METRICS = {"dev_win_rate": 0.625, "dev_questions": 1200, "chosen_iteration": 0, "kl": None, "score": 3.0}
DATA = {"world": "", "videos": "clips", "dev": ["/home/me/dev.jsonl"], "preferences": [], "sha256": {"dev": "0"}}
ROOT = Path(__file__).parents[2]


def made(
    folder: Path, base: str, stage: str = "ppo", data: dict[str, Any] = DATA
) -> tuple[Path, VisionLanguageModel, AdapterSet]:
    """An adapter with weights of its own and its card."""
    section = ModelSection(base=base, dtype="float32", device="cpu", lora_r=4, lora_alpha=8)
    backbone = open_backbone(section)
    roles = AdapterSet(backbone, section)
    roles.add("policy", 0)
    noise = torch.Generator().manual_seed(1)
    for name, weight in roles.named("policy").items():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=noise) * 0.5)
    out = StageDir(folder, stage, {"data": data, "model": {"base": base}})
    out.summary.update(METRICS)
    roles.save("policy", folder / "adapter")
    adapter_card.write_adapter(out, roles)
    return folder / "adapter", backbone, roles


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def printed(folder: Path) -> str:
    """What the lines of a card print, typed in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert 4 <= len(code.splitlines()) <= 8
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def own_answer(backbone: VisionLanguageModel, roles: AdapterSet, prompt: str) -> str:
    """Greedy, through the adapter, token by token."""
    ids = backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with roles.inference_as("policy"), torch.no_grad():
        for _ in range(40):
            logits = backbone.logits(backbone.hidden(backbone.embed(torch.tensor([ids]), [None]), None))
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == backbone.end_id:
                break
    return str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_a_card_by_hand(tmp_path: Path) -> None:
    folder, backbone, _ = made(tmp_path / "ppo", "tiny")
    card = (folder / "README.md").read_text()
    assert metadata(card) == {
        "library_name": "peft",
        "pipeline_tag": "video-text-to-text",
        "tags": ["minirlaif", "rlaif", "lora", "ppo"],
        "license": "apache-2.0",
    }
    assert f"- Method: `ppo` ({STAGES['ppo'].help}).\n- Data: rows of `dev.jsonl`.\n- Base: `tiny`. Its licence holds for" in card
    assert "- Win rate over its start, by the judge, on dev questions: 62.5%.\n- Dev questions: 1,200.\n" in card
    assert "- Step that was kept; 0 is its start: 0.\n" in card and "KL" not in card and "/home/me" not in card
    assert backbone.example_prompt == "<|im_start|>User:What can happen in a video?<end_of_utterance>\nAssistant:"
    assert json.dumps(backbone.example_prompt) in card


@pytest.mark.parametrize("base", ["a folder", "tiny"])
def test_the_lines_of_a_card_give_the_adapters_answer(base: str, tmp_path: Path) -> None:
    """In a process of its own, through PEFT and transformers alone (the tiny base lies in the package's folder)."""
    name = str(smolvlm(tmp_path / "base")) if base == "a folder" else base
    folder, backbone, roles = made(tmp_path / "distill", name, "distill")
    answer = own_answer(backbone, roles, backbone.example_prompt)
    assert printed(folder) == answer and len(answer) > len("User:What can happen in a video?\nAssistant:")
    assert ("AutoPeftModel.from_pretrained" in (folder / "README.md").read_text()) == (base != "tiny")
    for path in folder.glob("*.safetensors"):  # the answer depends on the adapter
        path.unlink()
    with pytest.raises(AssertionError):
        printed(folder)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", {"license": "apache-2.0", "base_model": "Qwen/Qwen3-VL-4B-Instruct"}),
        ("someone/their-model", {"base_model": "someone/their-model"}),
        ("/home/me/models/mine", {}),
    ],
)
def test_the_base_in_the_metadata(name: str, known: dict[str, str], tmp_path: Path) -> None:
    adapter_card.write_merged(tmp_path, Base(name, "main"), ["sft", "bestofn"], {"RLAIF, right": 0.7041}, "Q:")
    card = (tmp_path / "README.md").read_text()
    rest = {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["minirlaif", "rlaif", "sft", "bestofn"],
    }
    assert metadata(card) == rest | known
    assert "- Methods, in order: `sft`, `bestofn`.\n" in card and "/home/me" not in card
    assert "- RLAIF, right: 70.4%.\n" in card and ("revision `main`" in card) == ("base_model" in known)


def test_a_card_without_files_says_where_the_questions_come_from(tmp_path: Path) -> None:
    folder, _, _ = made(tmp_path / "a", "tiny", data={"world": "", "prompts": [], "sha256": {}})
    assert "Data: questions about a folder of clips." in (folder / "README.md").read_text()
    folder, _, _ = made(tmp_path / "b", "tiny", data={"world": "tiny", "prompts": [], "sha256": {}})
    assert "Data: the tiny world, which the run makes itself." in (folder / "README.md").read_text()
