"""`minirlaif.load`: a run and an export answer as their engines do, and what cannot be opened or asked is one line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import minirlaif
from minirlaif.app.loading import VideoModel
from minirlaif.errors import UserError
from minirlaif.feedback.readout import judge_of_run
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.inference.engine import ChatEngine, SamplingParams
from minirlaif.inference.hf_engine import HfEngine
from minirlaif.runs.run import Run
from tests.fixtures import chat_run

QUESTION = "what happens first?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    chat_run.world_clip(folder / "a.mp4")
    chat_run.run_of(folder / "run")
    chat_run.exported(folder / "export")
    return folder


def said(engine: ChatEngine, clip: Path, model: str = "", **sampling: float) -> str:
    with closing(engine):  # type: ignore[type-var]
        loaded = engine.load_clip(str(clip))
        options = SamplingParams(**{"max_new_tokens": engine.sampling.max_new_tokens, **sampling})  # type: ignore[arg-type]
        return "".join(engine.stream(loaded, (), QUESTION, options, model))


def test_a_run_answers_as_its_engine_does(folder: Path) -> None:
    with minirlaif.load(folder / "run") as model:
        assert model.models == ("rlaif", "sft", "base")
        answers = {name: model.ask(folder / "a.mp4", QUESTION, model=name) for name in model.models}
        assert model.ask(str(folder / "a.mp4"), QUESTION) == answers["rlaif"]
        sampled = model.ask(folder / "a.mp4", QUESTION, temperature=1.0, seed=5, max_new_tokens=7)
    for name, answer in answers.items():
        assert answer == said(HfEngine(Run(folder / "run"), judge_of_run), folder / "a.mp4", name)
    warm = {"temperature": 1.0, "seed": 5, "max_new_tokens": 7}
    assert sampled == said(HfEngine(Run(folder / "run"), judge_of_run), folder / "a.mp4", **warm)


def test_an_export_answers_as_its_engine_does(folder: Path) -> None:
    with minirlaif.load(str(folder / "export")) as model:
        answer = model.ask(folder / "a.mp4", QUESTION)
    assert answer == said(GgufEngine(folder / "export"), folder / "a.mp4")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none: no such folder; name a run, such as runs/tiny, or its export"),
        ("a.mp4", "a.mp4: no such folder"),
        ("empty", "holds neither a run (config.yaml) nor an export (.gguf)"),
    ],
)
def test_what_is_no_model_is_one_line(name: str, words: str, folder: Path) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError) as error:
        minirlaif.load(folder / name)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_asked_is_one_line(folder: Path) -> None:
    with minirlaif.load(folder / "run") as model:
        for asked, words in (
            ({"clip": folder / "none.mp4"}, "none.mp4: no such file"),
            ({"model": "dpo"}, "model dpo: not available; choose one of rlaif, sft, base"),
        ):
            with pytest.raises(UserError) as error:
                model.ask(**{"clip": folder / "a.mp4", "question": QUESTION, **asked})  # type: ignore[arg-type]
            assert words in str(error.value)


def test_a_run_without_torch_is_one_line_that_names_the_export(folder: Path) -> None:
    code = "import sys; sys.modules['torch'] = None\nimport minirlaif\n"
    code += f"try: minirlaif.load({str(folder / 'run')!r})\nexcept minirlaif.errors.UserError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.count("\n") == 1 and "a run needs torch, which is not installed" in said.stdout, said.stderr


def test_importing_the_package_loads_nothing() -> None:
    heavy = ("torch", "numpy", "gradio", "transformers", "llama_cpp")
    code = f"import sys, minirlaif; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_every_value_of_an_answer_is_documented() -> None:
    text = inspect.getdoc(VideoModel.ask) or ""
    assert all(f"{name}:" in text for name in ("model", "frames", "temperature", "max_new_tokens"))
