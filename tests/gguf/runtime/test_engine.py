"""The engine over exported files: the answers of transformers, children that may die, faults in one line, and no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.export_info import ExportInfo
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.gguf.runtime.worker import AnswerGenerator, choose
from minirlaif.inference.engine import LoadedClip, SamplingParams
from minirlaif.models.backbones import smolvlm
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import TINY
from minirlaif.models.renderer import FrameLayout, Layout
from minirlaif.runs import hash_cache, io, records
from minirlaif.types import Turn
from minirlaif.video.frame_sampling import FrameSize, Sizing, uniform_plan
from minirlaif.video.reader import ClipReader
from tests.fixtures import chat_run, gguf_files

QUESTIONS = ("what happens first?", "describe the video.", "how many things happen?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = gguf_files.tiny(tmp_path_factory.mktemp("export"))
    chat_run.world_clip(made / "a.mp4")
    chat_run.world_clip(made / "b.mp4", chat_run.TWO[::-1], 1)
    return made


@pytest.fixture
def engine(folder: Path) -> Iterator[GgufEngine]:
    with closing(GgufEngine(folder)) as opened:
        yield opened


def ask(engine: Any, clip: LoadedClip, question: str, turns: Sequence[Turn] = (), **how: Any) -> str:
    return "".join(engine.stream(clip, turns, question, replace(engine.sampling, **how)))


def test_answers_are_those_of_transformers(engine: GgufEngine, folder: Path) -> None:
    base = smolvlm.SmolVLM.load(str(TINY), "main", torch.float32, None, torch.device("cpu"))
    for name in ("a.mp4", "b.mp4"):
        clip = engine.load_clip(str(folder / name))
        with ClipReader(60) as decoder:
            (pixels,) = decoder.frames(folder / name, [uniform_plan(clip.seconds, 4)], FrameSize(32, 32))
        assert np.array_equal(clip.pixels_FHW3, pixels)
        assert clip.times == pytest.approx([clip.seconds * part / 8 for part in (1, 3, 5, 7)])
        shown = FrameLayout(clip.times, clip.seconds, 1)
        talked = [Turn(QUESTIONS[0], "a red circle moves left.")]
        heard = []
        for turns, question in [*(((), question) for question in QUESTIONS), (talked, QUESTIONS[1])]:
            calls = EncodedPrompt(base.renderer.prompt(shown, question, turns=turns), base.encode_frames(pixels))
            ((answer,),) = sample(base, [calls], 1, 0.0, 1.0, 32)
            heard.append(ask(engine, clip, question, turns))
            assert heard[-1] == base.renderer.decode(answer.ids)
        assert len(set(heard)) == 4  # what was talked about before counts
    assert engine.models == ("rlaif",) and engine.title == "text.gguf, run tiny"
    assert engine.score(clip, "", "") is None


def test_a_clip_is_decoded_encoded_and_read_once(engine: GgufEngine, folder: Path) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"))
    first = ask(engine, clip, QUESTIONS[0])
    before = dict(engine.counters)
    assert before["decodes"] == before["encodes"] == 1 and before["reused_tokens"] == 0
    ask(engine, clip, QUESTIONS[1])
    after = dict(engine.counters)
    assert (after["decodes"], after["encodes"]) == (1, 1)
    # <|im_start|>, "User", ":", four frames and a line break are in the memory; "describe the video." and what follows it is not
    assert after["reused_tokens"] == 8 and after["prefilled_tokens"] < 2 * before["prefilled_tokens"] - 7
    assert engine.load_clip(str(folder / "a.mp4")).key == clip.key and engine.counters["decodes"] == 1
    assert engine.load_clip(str(folder / "a.mp4"), 6).pixels_FHW3.shape == (6, 32, 32, 3)
    stream = engine.stream(clip, (), QUESTIONS[1], engine.sampling)
    assert next(stream)
    stream.close()  # a consumer that has heard enough
    assert ask(engine, clip, QUESTIONS[0]) == first


def test_sampling_depends_on_the_seed_alone(engine: GgufEngine, folder: Path) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"))
    hot = {"temperature": 3.0, "max_new_tokens": 8}
    answers = [ask(engine, clip, QUESTIONS[0], seed=seed, **hot) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert ask(engine, clip, QUESTIONS[0], seed=3, temperature=3.0, top_p=1e-6) == ask(engine, clip, QUESTIONS[0])


def test_choosing_a_token() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))

    class Drawn:
        def __init__(self, number: float) -> None:
            self.number = number

        def random(self) -> float:
            return self.number

    def chosen(draw: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
        return choose(logits, temperature, top_p, Drawn(draw))  # type: ignore[arg-type]

    assert [chosen(draw) for draw in (0.05, 0.15, 0.55, 0.75, 0.999)] == [0, 1, 2, 3, 3]
    assert chosen(0.0, temperature=0) == 1
    # the smallest set with 0.65: 0.4 and 0.3; a draw of 0.5 is 0.35 of 0.7, one of 0.6 is 0.42
    assert [chosen(draw, top_p=0.65) for draw in (0.0, 0.5, 0.6)] == [1, 1, 3]
    # at temperature 0.5 chances are squared: 1, 16, 4, 9 of 30
    assert [chosen(draw, temperature=0.5) for draw in (0.03, 0.04, 0.56, 0.58, 0.69, 0.71)] == [0, 1, 1, 2, 2, 3]


def test_image_and_chat_tokens_are_never_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = AnswerGenerator(folder, folder / "text.gguf", folder / "mmproj.gguf")
    try:
        generator.encode_clip("k", (0.5,), 1.0, np.zeros((1, 32, 32, 3), np.uint8))
        word, end = generator.renderer.text_ids(" red")[0], generator.renderer.end_id
        logits = np.zeros(len(generator._session.vocabulary), np.float32)
        logits[list(generator._session.vocabulary.added_tokens_decoder)] = 9.0
        logits[end], logits[word] = -9.0, 1.0
        monkeypatch.setattr(generator._session, "prefill", lambda items, prefix: logits.copy())
        stops = logits.copy()
        stops[end] = 2.0
        steps = iter([logits.copy(), stops])
        monkeypatch.setattr(generator._session, "step", lambda token: next(steps))
        assert "".join(generator.stream("k", (), "what?", SamplingParams(max_new_tokens=9), "rlaif")) == "red red"
    finally:
        generator.close()


def test_the_memory_grows_with_the_conversation(engine: GgufEngine, folder: Path) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"))
    short = ask(engine, clip, QUESTIONS[0])
    assert ask(engine, clip, QUESTIONS[0], [Turn("red circle " * 300, "blue")])  # past the first memory of 256 or 512 tokens
    assert ask(engine, clip, QUESTIONS[0]) == short
    with pytest.raises(UserError, match="has 26.. tokens, the model takes 2048"):
        ask(engine, clip, "red circle " * 1300)
    assert ask(engine, clip, QUESTIONS[0]) == short
    with pytest.raises(UserError, match="has 2500 tokens, the model takes 2048: clear the conversation, use fewer frames"):
        ask(engine, engine.load_clip(str(folder / "a.mp4"), 2500), QUESTIONS[0])
    assert engine.counters["encodes"] == 1  # said before anything is computed
    with closing(GgufEngine(folder, n_ctx=30)) as tight:
        assert ask(tight, clip, QUESTIONS[0])[:5] == short[:5]
        with pytest.raises(UserError, match="--ctx allows 30: raise it"):
            ask(tight, clip, "red circle " * 12)


def test_a_model_that_dies_is_started_again(engine: GgufEngine, folder: Path) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"))
    first = ask(engine, clip, QUESTIONS[0])
    counted = engine.counters["prefilled_tokens"]
    process = engine._process
    assert process is not None
    os.kill(process.pid, signal.SIGABRT)
    process._process.wait()
    with pytest.raises(UserError, match="text.gguf and .*mmproj.gguf: llama.cpp exited with status -6"):
        ask(engine, clip, QUESTIONS[0])
    assert ask(engine, clip, QUESTIONS[0]) == first
    assert engine.counters["prefilled_tokens"] == 2 * counted and engine.counters["encodes"] == 2


def test_a_native_assertion_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    """A projector whose patches do not divide its image makes ggml assert, which ends the process that asked."""
    gguf_files.tiny(tmp_path)
    odd = gguf_files.VISION | {"clip.vision.projector.scale_factor": 3}
    weights = gguf_files.load_file(TINY / "model.safetensors")
    gguf_files.write(tmp_path / "mmproj.gguf", odd, gguf_files.vision_tensors(weights))
    with pytest.raises(UserError) as caught, closing(GgufEngine(tmp_path)) as engine:
        ask(engine, engine.load_clip(str(folder / "a.mp4")), QUESTIONS[0])
    assert "\n" not in str(caught.value) and "ASSERT" in str(caught.value)


def test_a_swapped_adapter_changes_the_answer(folder: Path, tmp_path: Path) -> None:
    made = gguf_files.tiny(tmp_path / "two", ("rlaif", "sft"), {"sft": "sft.gguf"})
    random = np.random.default_rng(0)
    noise = {
        f"blk.{layer}.ffn_down": tuple(random.standard_normal(shape).astype(np.float32) for shape in ((2, 384), (128, 2)))
        for layer in range(4)
    }
    gguf_files.adapter(made / "sft.gguf", noise, alpha=2)  # type: ignore[arg-type]
    with closing(GgufEngine(made)) as both, closing(GgufEngine(folder)) as alone:
        clip = both.load_clip(str(folder / "a.mp4"))
        aligned = ask(alone, clip, QUESTIONS[1])
        assert ask(both, clip, QUESTIONS[1]) == aligned
        noisy = "".join(both.stream(clip, (), QUESTIONS[1], both.sampling, "sft"))
        assert noisy != aligned
        assert "".join(both.stream(clip, (), QUESTIONS[1], both.sampling, "rlaif")) == aligned
        assert both.counters["encodes"] == 1


def test_faults_of_files_are_one_line(folder: Path, tmp_path: Path) -> None:
    def fault(*words: Any, **named: Any) -> str:
        with pytest.raises(UserError) as caught:
            GgufEngine(*words, **named).close()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    data = (folder / "text.gguf").read_bytes()
    (tmp_path / "none").mkdir()
    assert "no minirlaif.json" in fault(tmp_path / "none")
    assert "no such file or folder" in fault(tmp_path / "missing.gguf")
    assert "it has f32" in fault(folder, kind="q8_0")
    assert "leave --type out" in fault(folder / "text.gguf", kind="f32")
    assert "mmproj.gguf: llama.cpp cannot open it (llama_model_load: error loading model: CLIP" in fault(folder / "mmproj.gguf")
    assert "text.gguf: cannot be used with this text model" in fault(folder, folder / "text.gguf")
    assert "no such file" in fault(folder, folder / "none.gguf")
    assert "the model takes 2048" in fault(folder, n_ctx=5000)
    for name, broken in {"cut": data[: len(data) // 2], "head": data[:999], "prose": b"not a model", "empty": b""}.items():
        (folder / f"{name}.gguf").write_bytes(broken)
        assert f"{name}.gguf: llama.cpp cannot open it" in fault(folder / f"{name}.gguf")
        assert f"{name}.gguf: cannot be used with this text model" in fault(folder, folder / f"{name}.gguf")


def test_a_file_that_changed_since_the_export_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = gguf_files.tiny(tmp_path / "export")
    outputs = {path.name: {"bytes": path.stat().st_size, "sha256": io.sha256(path)} for path in made.iterdir()}
    records.write_sealed(made / "manifest.json", {"outputs": outputs})
    hashed: list[str] = []
    monkeypatch.setattr(hash_cache, "sha256", lambda path: hashed.append(path.name) or io.sha256(path))
    for _ in range(2):
        GgufEngine(made).close()
    assert sorted(hashed) == sorted(outputs), "once is enough"
    for name in outputs:
        data = (made / name).read_bytes()
        (made / name).write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        with pytest.raises(UserError, match=f"^{made / name}: (changed since it was exported|cannot be understood)"):
            GgufEngine(made)
        (made / name).write_bytes(data)
    GgufEngine(made).close()


def test_logits_that_are_not_finite_answer_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = gguf_files.load_file(TINY / "model.safetensors")
    norm = "model.text_model.norm.weight"
    monkeypatch.setattr(gguf_files, "load_file", lambda path: weights | {norm: weights[norm] * np.nan})
    with (
        closing(GgufEngine(gguf_files.tiny(tmp_path))) as engine,
        pytest.raises(UserError, match=r"^text.gguf: its logits are not finite, .*export the model again$"),
    ):
        ask(engine, engine.load_clip(str(folder / "a.mp4")), QUESTIONS[0])


def test_a_projector_of_another_model_is_noticed(folder: Path, tmp_path: Path) -> None:
    """One of the same width, that makes other numbers of vectors."""
    made = gguf_files.tiny(tmp_path)
    export_info.write(made, replace(export_info.read(made), sizing=Sizing(16, 32)))
    with (
        closing(GgufEngine(made)) as engine,
        pytest.raises(UserError, match="mmproj.gguf: makes 1 vectors of a frame, .* requires 4"),
    ):
        ask(engine, engine.load_clip(str(folder / "a.mp4")), QUESTIONS[0])


def test_a_file_of_an_export_may_be_named_itself(folder: Path) -> None:
    (folder / "other.gguf").write_bytes((folder / "text.gguf").read_bytes())
    with closing(GgufEngine(folder / "other.gguf", folder / "mmproj.gguf")) as engine:
        assert engine.title == "other.gguf, run tiny"
        assert ask(engine, engine.load_clip(str(folder / "a.mp4")), QUESTIONS[0])


INFO = ExportInfo(
    run="r",
    family="qwen3_vl",
    layout=Layout(group=2),
    sizing=Sizing(32, pad=(1, 2, 3)),
    frames=16,
    frame_pixels=65536,
    text={"f16": "a.gguf", "q8_0": "b.gguf"},
    mmproj="m.gguf",
    options=SamplingParams(0.7, 0.9, 64, 3),
    models=("rlaif", "sft"),
    adapters={"sft": "s.gguf"},
)


def test_facts_are_read_as_written(tmp_path: Path) -> None:
    export_info.write(tmp_path, INFO)
    assert export_info.read(tmp_path) == INFO


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"text": {}}, "no text model"),
        ({"adapters": {"other": "x.gguf"}}, "adapters of unknown models: other"),
        ({"layout": {"colour": "red"}}, "colour"),
        ({"surplus": 1}, "surplus"),
        ({"sizing": None}, "minirlaif.json: cannot be understood"),
        ({"text": {"f16": 1.5}}, "a file is not named"),
        ({"mmproj": "../other/mmproj.gguf"}, "lies outside its folder"),
        ({"frames": 4.5}, "frames: 4.5, not a whole number"),
        ({"models": "rlaif"}, "models: 'rlaif', not a list of texts"),
        ({"options": {"temperature": None}}, "options, temperature: missing"),
    ],
)
def test_facts_that_are_wrong_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    export_info.write(tmp_path, INFO)
    path = tmp_path / export_info.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=reason):
        export_info.read(tmp_path)


CLOSED = """
import sys
closed = "torch transformers peft datasets accelerate tokenizers safetensors huggingface_hub bitsandbytes".split()

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in closed:
            raise ModuleNotFoundError(f"no {name}", name=name)

sys.meta_path.insert(0, Refused())
"""


@pytest.fixture
def chat(folder: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python -m minirlaif chat` where torch and its friends cannot be imported, in this process or in its children."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOSED)
    root = Path(main.__file__).parents[2]

    def call(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), str(root)])
        return subprocess.run(
            [sys.executable, "-m", "minirlaif", "chat", "--video", str(folder / "a.mp4"), *words],
            input=typed,
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def test_chat_answers_where_there_is_no_torch(
    chat: Callable[..., subprocess.CompletedProcess[str]], folder: Path, engine: GgufEngine
) -> None:
    clip = engine.load_clip(str(folder / "a.mp4"))
    expected = [ask(engine, clip, question) for question in QUESTIONS[:2]]
    one = chat("--gguf", str(folder), QUESTIONS[0])
    assert (one.returncode, one.stdout, one.stderr) == (0, expected[0] + "\n", "")
    many = chat("--gguf", str(folder / "text.gguf"), typed=f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n/quit\nnever\n")
    assert many.returncode == 0 and many.stderr == ""
    assert many.stdout.splitlines() == [
        "text.gguf, run tiny: 4 frames at 0.2, 0.7, 1.2, 1.7 seconds. Ask about the clip; /quit to leave.",
        *expected,
    ]
    hook = chat("--run", "none")  # the way through torch, to see that the door is shut
    assert hook.returncode == 2 and "chat --run: torch is not installed" in hook.stderr


def test_what_chat_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = ["--video", str(folder / "a.mp4")]
    for words, fault in {
        (): "name exported files with --gguf DIR, or a training run with --run NAME",
        ("--gguf", str(folder), "--run", "a"): "name exported files",
        ("--run", "a", "--ctx", "9"): "--ctx and --threads need --gguf",
        ("--gguf", str(folder), "--model", "sft"): "--model sft: not available; choose one of rlaif",
        ("--gguf", str(folder), "--temperature", "-1"): "--temperature must be 0 or more",
        ("--gguf", str(folder), "--top-p", "0"): "--top-p above 0",
        ("--gguf", str(folder), "--frames", "0"): "must be above 0",
        ("--gguf", str(folder), "--video", "none.mp4"): "none.mp4: no such file",
    }.items():
        assert main.main(["chat", *clip, *words, "what happens first?"]) == 2
        assert fault in capsys.readouterr().err


def test_chat_asks_a_training_run(folder: Path, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat_run.run_of(runs_dir / "a")
    words = ["chat", "--video", str(folder / "a.mp4"), "--run", "a", "--runs-dir", str(runs_dir), "--model", "base"]
    assert main.main([*words, "--frames", "4", QUESTIONS[0]]) == 0
    with closing(GgufEngine(folder)) as engine:
        assert capsys.readouterr().out == ask(engine, engine.load_clip(str(folder / "a.mp4")), QUESTIONS[0]) + "\n"


def test_how_many_pixels_and_vectors() -> None:
    tile = Sizing(64, 512, longest=2048, filter="lanczos")  # SmolVLM2: 16-pixel patches, four by four in a vector
    assert tile.size(640, 360, 1) == FrameSize(512, 512, longest=2048, filter="lanczos")
    assert tile.vectors(tile.size(640, 360, 1)) == 64
    assert Sizing(42, 384).vectors(FrameSize(384, 384)) == 81  # the 2.2B: 27 patches a side, three by three
    units = Sizing(32)
    assert units.size(1920, 1080, 65536) == FrameSize(192, 320) and units.vectors(FrameSize(192, 320)) == 60


def test_a_part_of_a_clip(engine: GgufEngine, folder: Path) -> None:
    path = str(folder / "a.mp4")
    whole, part = engine.load_clip(path, 4), engine.load_clip(f"{path}#t=0.5,1.5", 4)
    with ClipReader(60) as decoder:
        (pixels,) = decoder.frames(path, [uniform_plan(whole.seconds, 4, 0.5, 1.5)], FrameSize(32, 32))
    assert np.array_equal(part.pixels_FHW3, pixels) and not np.array_equal(part.pixels_FHW3, whole.pixels_FHW3)
    assert (part.times, part.seconds, part.key == whole.key) == ((0.125, 0.375, 0.625, 0.875), 1.0, False)
    assert ask(engine, part, QUESTIONS[0]) == ask(engine, engine.load_clip(f"{path}#t=0.5,1.5", 4), QUESTIONS[0])
