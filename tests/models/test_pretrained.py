"""Models of strangers: code in their folder is never run, and what cannot be used is one line."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest

import minirlaif
from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models import chat_template
from minirlaif.models.loading import empty_model, read_config
from minirlaif.models.pretrained import load_config, load_tokenizer, load_weights

ROOT = Path(minirlaif.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def calls(name: str) -> list[tuple[str, ast.Call]]:
    return [
        (file, node)
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


def test_one_module_opens_models_and_never_with_code_of_theirs() -> None:
    opened = calls("from_pretrained")
    assert {file for file, _ in opened} == {"models/pretrained.py"} and len(opened) >= 4
    for file, call in opened:
        trust = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
        assert [value.value for value in trust if isinstance(value, ast.Constant)] == [False], (file, call.lineno)


def test_templates_render_in_one_place() -> None:
    assert not calls("apply_chat_template") and not calls("create_chat_completion")
    assert {file for file, tree in SOURCES.items() if "render_jinja_template" in ast.dump(tree)} == {"models/chat_template.py"}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose config, tokenizer and model want to run code of their own; the code leaves a file."""
    names = {"AutoConfig": "trap.Config", "AutoTokenizer": ["trap.Tokenizer", None], "AutoModelForCausalLM": "trap.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "trap", "auto_map": names}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Trap", "auto_map": names}))
    (tmp_path / "trap.py").write_text(
        f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Config: ...\nclass Tokenizer: ...\nclass Model: ...\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # transformers would ask
    return tmp_path


def test_code_in_a_folder_is_not_run(trap: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for load in (
        lambda: load_config(str(trap), "main"),
        lambda: load_tokenizer(str(trap), "main"),
        lambda: load_weights(AutoModelForCausalLM, str(trap), "main", torch.float32, None, torch.device("cpu")),
        lambda: read_config(ModelSection(base=str(trap))),
    ):
        with pytest.raises(UserError) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not (trap / "sprung").exists()


BROKEN = {
    "text": "hello",
    "list": [],
    "nested": "[" * 20000,
    "heads of zero": {"model_type": "llava", "text_config": {"num_attention_heads": 0, "hidden_size": 64}},
    "text of text": {"model_type": "llava", "text_config": "llama"},
    "layers of text": {"model_type": "llava", "text_config": {"num_hidden_layers": "two"}},
    "negative": {"model_type": "llava", "vision_config": {"hidden_size": -4}},
    "no type": {"hidden_size": 4},
    "list as type": {"model_type": ["llava"]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_one_line(name: str, tmp_path: Path) -> None:
    value = BROKEN[name]
    (tmp_path / "config.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(UserError) as caught:
        empty_model(read_config(ModelSection(base=str(tmp_path))))
    assert "\n" not in str(caught.value) and str(caught.value)


def test_a_template_renders_as_transformers_does() -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    turns = [{"role": "user", "content": "Hi"}]
    assert chat_template.render(template, turns, {"bos_token": "<s>"}) == "<s>[user] Hi>"
    assert chat_template.render(template, turns, {}, answer=False) == "[user] Hi"
    assert chat_template.parts(template, {}, ["system", "user"]) == ["[system] ", 0, "[user] ", 1, ">"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took more than 3 seconds"),
        ("{% set x = 'a' * 20000000000 %}{{ x }}", "memory|MemoryError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe|has no"),
        ("{{ ''.__class__ }}{{ raise_exception('no') }}", "no"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_attacks_fails_in_time(template: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        chat_template.render(template, [{"role": "user", "content": "Hi"}], {}, seconds=3)
