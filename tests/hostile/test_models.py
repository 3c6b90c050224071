"""Three hundred mutated exports, adapters and bases: `chat` answers with them, or refuses them in one line."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minirlaif.cli import main
from minirlaif.models.loading import TINY
from tests.fixtures import chat_run, forked
from tests.fixtures.forged import forge, write_json
from tests.fixtures.mutations import mutated, mutated_value

pytestmark = pytest.mark.hostile
CASES = {"gguf": 120, "adapter": 120, "base": 60}
LIMIT = 60.0  # seconds
GGUF_HEAD = 4096  # bytes of counts and settings; token texts come behind them
QUESTION = "what happens first?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, a run `a` on a base of its own beside it, and a clip."""
    forked.preload()
    folder = tmp_path_factory.mktemp("models")
    chat_run.world_clip(folder / "clip.mp4")
    chat_run.exported(folder / "export")
    shutil.copytree(TINY, folder / "base")
    chat_run.run_of(folder / "runs" / "a")
    return folder


def changed_tensors(path: Path, dice: random.Random) -> str:
    """A safetensors file that is sound, with a tensor of another shape, type, name or value; how."""
    tensors = load_file(path)
    name = dice.choice(sorted(tensors))
    how = dice.choice(("shape", "type", "half", "name", "gone", "more", "not finite", "none"))
    if how == "shape":
        tensors[name] = np.zeros((3, *tensors[name].shape), np.float32)
    elif how == "type":
        tensors[name] = tensors[name].astype(dice.choice((np.int64, np.uint8, np.bool_)))
    elif how == "half":
        tensors = {key: tensor.astype(np.float16) for key, tensor in tensors.items()}
    elif how == "name":
        tensors[f"{name}.x"] = tensors.pop(name)
    elif how == "gone":
        del tensors[name]
    elif how == "more":
        tensors["a.b"] = np.zeros(3, np.float32)
    elif how == "not finite":
        tensors[name] = np.full_like(tensors[name], dice.choice((np.nan, np.inf)))
    else:
        tensors = {}
    save_file(tensors, path, metadata={"format": "pt"})
    return how


def change(path: Path, other: bytes, dice: random.Random, head: int = 512) -> str:
    """Mutate one file; its name and how."""
    if path.suffix == ".json" and dice.random() < 0.6:
        write_json(path, mutated_value(json.loads(path.read_text()), dice))
        return f"{path.name}: values"
    if path.suffix == ".safetensors" and dice.random() < 0.5:
        return f"{path.name}: {changed_tensors(path, dice)}"
    if dice.random() < 0.05:
        path.unlink()
        return f"{path.name}: gone"
    how, data = mutated(path.read_bytes(), dice, other, head)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def gguf(place: Path, folder: Path, dice: random.Random) -> tuple[str, list[str]]:
    shutil.copytree(place / "export", folder / "export")
    name = dice.choice(("text.gguf", "text.gguf", "mmproj.gguf", "sft.gguf", "minirlaif.json"))
    other = (place / "export" / "mmproj.gguf").read_bytes()
    how = change(folder / "export" / name, other, dice, GGUF_HEAD)
    return how, ["--gguf", str(folder / "export"), "--model", "sft" if name == "sft.gguf" else ""]


def adapter(place: Path, folder: Path, dice: random.Random) -> tuple[str, list[str]]:
    shutil.copytree(place / "runs", folder / "runs")
    stage = dice.choice(("sft", "ppo", "reward"))
    files = ["adapter_model.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    name = dice.choice([*files, *(["head.safetensors"] if stage == "reward" else [])])
    other = (TINY / "model.safetensors").read_bytes()
    how = change(folder / "runs" / "a" / stage / "adapter" / name, other, dice)
    if dice.random() < 0.9:
        forge(folder / "runs" / "a", stage)
    return f"{stage}, {how}", ["--run", "a", "--runs-dir", str(folder / "runs")]


def base(place: Path, folder: Path, dice: random.Random) -> tuple[str, list[str]]:
    shutil.copytree(place / "runs", folder / "runs")
    shutil.copytree(place / "base", folder / "base")
    names = (
        "model.safetensors",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_layout.json",
    )
    how = change(folder / "base" / dice.choice(names), (TINY / "tokenizer.json").read_bytes(), dice)
    settings = folder / "runs" / "a" / "config.yaml"
    settings.write_text(settings.read_text().replace("base: tiny", f"base: {folder / 'base'}"))
    return how, ["--run", "a", "--runs-dir", str(folder / "runs")]


MAKERS: dict[str, Callable[[Path, Path, random.Random], tuple[str, list[str]]]] = {"gguf": gguf, "adapter": adapter, "base": base}


def outcome_of(case: tuple[Path, Path, str, int]) -> tuple[str, str]:
    """How `chat` ended with one changed file, and what is wrong with that."""
    place, folder, kind, number = case
    folder.mkdir()
    how, words = MAKERS[kind](place, folder, random.Random(f"{kind} {number}"))
    call = functools.partial(main.main, ["chat", "--video", str(place / "clip.mp4"), *words, QUESTION])
    outcome = forked.forked(call, 2 * LIMIT)
    lines = [line for line in outcome.text.splitlines() if line.startswith("minirlaif: ")]
    problem = outcome.fault or (f"took {outcome.seconds:.0f} s" if outcome.seconds > LIMIT else "")
    if not problem and outcome.code == 2 and len(lines) != 1:
        problem = outcome.text[-500:]
    shutil.rmtree(folder)
    return f"{kind} {'refused' if outcome.code else 'answered'}", f"{kind} {number}, {how}: {problem}" if problem else ""


def test_mutated_models_answer_or_are_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    cases = [(place, tmp_path / f"{kind} {number}", kind, number) for kind, count in CASES.items() for number in range(count)]
    results = forked.each(outcome_of, cases)
    counts, problems = Counter(end for end, _ in results), [problem for _, problem in results if problem]
    print(f"{len(cases)} models: {dict(sorted(counts.items()))}; {len(problems)} faults")
    assert not problems, "\n\n".join(problems)
    for kind, count in CASES.items():
        assert min(counts[f"{kind} answered"], counts[f"{kind} refused"]) >= 0.1 * count, counts
