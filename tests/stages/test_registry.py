"""The rows of the registry against the config, the stages' modules and each other; which stage made a model of a run."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest

from minirlaif.algorithms.group import METHODS
from minirlaif.config import Config, DataSection
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from minirlaif.stages import registry
from minirlaif.stages.registry import ADAPTERS, MODELS, PIPELINE, STAGES, Stage
from tests.fixtures import tiny

PACKAGE = Path(__file__).parents[2] / "minirlaif"


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_rows_name_what_exists(stage: Stage):
    assert importlib.util.find_spec(f"minirlaif.stages.{stage.module or stage.name}") is not None and stage.help
    assert set(stage.sections) <= {field.name for field in fields(Config)}
    assert set(stage.reads) <= {field.name for field in fields(DataSection)}
    before = list(STAGES.values())[: list(STAGES).index(stage.name)]
    assert set(stage.inputs) <= {name for other in before for name in (other.name, other.produces)}
    assert len({curve.field for curve in stage.curves}) == len(stage.curves)


def test_lists_that_derive_from_the_rows():
    assert PIPELINE == (
        "world",
        "sft",
        "questions",
        "feedback",
        "reward",
        "distill",
        "bestofn",
        "dpo",
        "ppo",
        "rloo",
        "grpo",
        "dr_grpo",
        "evaluate",
        "report",
    )
    assert registry.pipeline() == ("world", "sft", "feedback", "reward", "ppo", "evaluate", "report")
    assert registry.METHODS == ("distill", "bestofn", "dpo", "ppo", "rloo", "grpo", "dr_grpo") and set(
        registry.GROUP_METHODS
    ) == set(METHODS)
    assert list(MODELS) == ["base", "sft", "rlaif"] and ADAPTERS == ("rlaif", "sft")
    assert registry.until("reward") == ("world", "sft", "questions", "feedback", "reward")
    readers = {part: registry.first_reader(part) for part in ("sft", "prompts", "dev", "preferences", "test")}
    expected = {"sft": "sft", "prompts": "feedback", "dev": "feedback", "preferences": "reward", "test": "evaluate"}
    assert readers == expected
    needs = {name: stage.needs for name, stage in STAGES.items() if stage.needs}
    sampling = dict.fromkeys(("feedback", "ppo", *METHODS), ("prompts",))
    assert needs == {"sft": ("sft",), **sampling, "evaluate": ("test",)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two methods, "distill" and "ppo" in this order."""
    run = Run(tmp_path / "a")
    run.stages = registry.pipeline(("distill", "ppo"))
    return run


def adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()


def test_the_aligned_model_is_that_of_the_last_finished_method(run: Run):
    with pytest.raises(UserError, match="distill: does not exist yet; run `python -m minirlaif distill"):
        run.adapter("rlaif")
    assert run.models() == ("base",)
    tiny.finished(run, "sft", adapter)
    assert run.models() == ("sft", "base") and run.adapter("sft") == run.root / "sft" / "adapter"
    assert (run.start("distill"), run.start("ppo")) == ("sft", "distill")
    tiny.finished(run, "distill", adapter)
    assert run.adapter("rlaif") == run.root / "distill" / "adapter" and run.models() == ("rlaif", "sft", "base")
    assert run.inputs("ppo") == ["sft", "feedback", "reward", "distill"]
    tiny.finished(run, "ppo", adapter)
    assert run.adapter("rlaif") == run.start_adapter("ppo").parents[1] / "ppo" / "adapter"  # the last of the list
    assert run.inputs("report") == ["sft", "feedback", "reward", "ppo", "evaluate"]
    run.set_aside("ppo")
    assert run.producer("rlaif") == "distill"


def test_methods_in_another_order(run: Run):
    run.stages = registry.pipeline(("ppo", "distill"))
    assert (run.start("distill"), run.start("ppo")) == ("ppo", "sft") and run.methods == ("ppo", "distill")
    assert run.stages == ("world", "sft", "feedback", "reward", "ppo", "distill", "evaluate", "report")


def test_a_run_without_sft_starts_from_the_base(run: Run):
    run.stages = registry.pipeline(("distill",), sft=False)
    assert run.stages == ("world", "feedback", "distill", "evaluate", "report")  # nothing scores with a reward model
    assert run.start("distill") == run.start_model == "base" and run.start_adapter("distill") is None
    tiny.finished(run, "sft", adapter)  # left by an earlier attempt with other settings
    assert run.models() == ("base",) and run.inputs("feedback") == [] and run.inputs("distill") == ["feedback"]


def test_a_run_that_writes_its_questions_has_a_stage_for_it(run: Run, tmp_path: Path):
    run.stages = registry.pipeline(("distill",), sft=False, questions=True)
    assert run.stages == ("world", "questions", "feedback", "distill", "evaluate", "report")
    assert run.inputs("questions") == [] and run.inputs("feedback") == ["questions"]
    for name, data, there in (("own", "clips: c, prompts: []", True), ("rows", "clips: c, prompts: [q.jsonl]", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            f"optimize: {{methods: [distill]}}\nsft: {{enabled: true}}\ndata: {{{data}}}\n"
        )
        assert ("questions" in Run(tmp_path / name).stages) is there


def test_stages_come_from_the_settings_that_the_run_was_made_with(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("optimize: {methods: [distill, ppo]}\nsft: {enabled: false}\n")
    assert Run(tmp_path).stages == registry.pipeline(("distill", "ppo"), sft=False)
    for text in ("", "optimize: {methods: [nothing]}", "[1", "sft: 1", "optimize: 7", "model: {base: tiny}"):
        (tmp_path / "config.yaml").write_text(text)
        assert Run(tmp_path).stages == registry.pipeline()


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
