"""Models of strangers: code in their folder is never run, and what cannot be used is one line."""

from __future__ import annotations

import ast
import io
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

import minirlaif
from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models import chat_template
from minirlaif.models.loading import base_folder, empty_model, read_config
from minirlaif.models.pretrained import check_hub, load_config, load_tokenizer, load_weights

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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, str], None]]:
    """A hub on this machine with nothing in its cache; the fixture sets status and error code of its answers."""
    reply: list[Any] = [200, ""]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            assert self.path.startswith("/some/model/resolve/main/config.json")
            self.send_response(reply[0])
            for name, value in {"X-Error-Code": reply[1], "ETag": "a", "X-Repo-Commit": "c" * 40, "Content-Length": "2"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    check_hub.cache_clear()

    def answers(status: int, code: str = "") -> None:
        reply[:] = [status, code]

    yield answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", r"accept its licence at http://127.0.0.1:\d+/some/model, then log in with `hf auth login`"),
        (401, "RepoNotFound", "no such folder, and no such model on the hub; a private one needs `hf auth login`"),
        (404, "RepoNotFound", "no such folder, and no such model on the hub"),
        (404, "RevisionNotFound", "the hub has no revision main of it"),
        (404, "EntryNotFound", "the hub has no config.json of it"),
        (503, "", "the hub cannot be reached .*503"),
    ],
)
def test_what_the_hub_says_is_one_line_with_the_way_out(hub, status: int, code: str, words: str) -> None:
    hub(status, code)
    with pytest.raises(UserError, match=f"^model.base some/model: .*{words}") as error:
        read_config(ModelSection(base="some/model"), standard=False)
    assert "\n" not in str(error.value)


def test_a_hub_that_has_the_model_is_asked_once(hub) -> None:
    hub(200)
    check_hub("some/model", "main")
    hub(404, "RepoNotFound")
    check_hub("some/model", "main")


@pytest.mark.parametrize("silent", [False, True])
def test_a_hub_out_of_reach_is_one_line_in_time_that_names_the_ways_without_it(silent: bool, monkeypatch, tmp_path: Path) -> None:
    """A closed port, and one that takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1] if silent else 9}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        started = time.monotonic()
        with pytest.raises(UserError, match="hub cannot be reached") as error:
            read_config(ModelSection(base="some/model"), standard=False)
        assert time.monotonic() - started < 15
    assert all(way in str(error.value) for way in ("hf download some/model --local-dir FOLDER", "HF_HOME", "HF_ENDPOINT"))


def test_offline_mode_asks_nobody(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(404, "RepoNotFound")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be reached \(HF_HUB_OFFLINE is set\)"):
        check_hub("some/model", "main")


@pytest.mark.parametrize("name", ["./models/mine", "/models/mine", "models/mine/last", "~/mine", "mine/", "../mine", "a b"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        read_config(ModelSection(base=name), standard=False)
    assert str(error.value) == f"model.base {name}: no such folder"


def test_the_short_name_of_a_standard_backbone_is_that_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_folder(ModelSection(base="qwen3-vl-2b")) == "Qwen/Qwen3-VL-2B-Instruct"
    assert base_folder(ModelSection(base="some/model")) == "some/model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-vl-2b").mkdir()
    assert base_folder(ModelSection(base="qwen3-vl-2b")) == "qwen3-vl-2b"  # a folder of that name comes first
