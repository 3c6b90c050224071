"""The rows of the registry against the config, the stages' modules and each other; which stage made a model of a run."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest

from minirlaif.config import Config, DataSection
from minirlaif.errors import UserError
from minirlaif.runs import run as runs
from minirlaif.runs.run import Run
from minirlaif.stages import registry
from minirlaif.stages.registry import ADAPTERS, MODELS, PIPELINE, STAGES, Stage
from tests.fixtures import tiny

PACKAGE = Path(__file__).parents[2] / "minirlaif"


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_rows_name_what_exists(stage: Stage):
    assert importlib.util.find_spec(f"minirlaif.stages.{stage.name}") is not None and stage.help
    assert set(stage.sections) <= {field.name for field in fields(Config)}
    assert set(stage.reads) <= {field.name for field in fields(DataSection)}
    before = list(STAGES.values())[: list(STAGES).index(stage.name)]
    assert set(stage.inputs) <= {name for other in before for name in (other.name, other.produces)}
    assert len({curve.field for curve in stage.curves}) == len(stage.curves)


def test_lists_that_derive_from_the_rows():
    assert PIPELINE == ("world", "sft", "feedback", "reward", "ppo", "evaluate", "report")
    assert list(MODELS) == ["base", "sft", "rlaif"] and ADAPTERS == ("rlaif", "sft")
    assert registry.until("reward") == ("world", "sft", "feedback", "reward")
    readers = {part: registry.first_reader(part) for part in ("sft", "prompts", "dev", "preferences", "test")}
    expected = {"sft": "sft", "prompts": "feedback", "dev": "feedback", "preferences": "reward", "test": "evaluate"}
    assert readers == expected
    needs = {name: stage.needs for name, stage in STAGES.items() if stage.needs}
    assert needs == {"sft": ("sft",), "feedback": ("prompts",), "ppo": ("prompts",), "evaluate": ("test",)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of a package with two stages that train the RLAIF model, "ppo" and "grpo" in this order."""
    rows = [*registry.producers("rlaif"), Stage("grpo", "", produces="rlaif")]
    real = runs.producers
    monkeypatch.setattr(runs, "producers", lambda model: tuple(rows) if model == "rlaif" else real(model))
    return Run(tmp_path / "a")


def adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()


def test_the_aligned_model_is_that_of_the_last_finished_method(run: Run):
    with pytest.raises(UserError, match="ppo: does not exist yet; run `python -m minirlaif ppo"):
        run.adapter("rlaif")
    assert run.models() == ("base",)
    tiny.finished(run, "sft", adapter)
    assert run.models() == ("sft", "base") and run.adapter("sft") == run.root / "sft" / "adapter"
    tiny.finished(run, "grpo", adapter)
    assert run.adapter("rlaif") == run.root / "grpo" / "adapter" and run.models() == ("rlaif", "sft", "base")
    assert run.inputs("evaluate") == ["sft", "feedback", "reward", "grpo"]
    tiny.finished(run, "ppo", adapter)
    assert run.producer("rlaif") == "grpo"  # in the order of the registry, not of time
    run.set_aside("grpo")
    assert run.adapter("rlaif") == run.root / "ppo" / "adapter"
    assert run.inputs("report") == ["sft", "feedback", "reward", "ppo", "evaluate"]


def test_no_other_module_knows_the_method():
    """Its own stage and algorithms, its settings, the planner's and the ablation's entries about it may name it."""
    allowed = {"algorithms", "config", "memory", "ablation"}
    naming = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in allowed
        and any(isinstance(node, ast.Constant) and node.value == "ppo" for node in ast.walk(ast.parse(path.read_text())))
    }
    assert naming == {"stages/ppo.py", "stages/registry.py"}
