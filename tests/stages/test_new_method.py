"""A method that the package does not have: rejection sampling, in four files. Every verb then shows its model without change.

Per prompt, sample some answers with the SFT model, keep the one that the reward model scores best, and make one step of
supervised fine-tuning on those. The extension stands below; the test adds it to a copy of the package and runs that copy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fixtures import small_config

PACKAGE = Path(__file__).parents[2] / "minirlaif"
FILES = {"algorithms/rejection.py", "stages/rejection.py", "config/schema.py", "stages/registry.py"}

ALGORITHM = '''"""Rejection sampling: which of several answers is kept."""

from __future__ import annotations

from collections.abc import Sequence


def best_of(scores: Sequence[float]) -> int:
    """The place of the highest score; of equal ones the first."""
    return max(range(len(scores)), key=lambda place: scores[place])
'''

STAGE = '''"""Stage `rejection`: one step of fine-tuning on the best of some sampled answers."""

from __future__ import annotations

import torch

from minirlaif.algorithms.rejection import best_of
from minirlaif.config import Config
from minirlaif.data.preflight import read_samples
from minirlaif.models.generation import sample
from minirlaif.models.logprobs import EncodedPair, reward_scores, token_logprobs
from minirlaif.models.seeds import generator
from minirlaif.runs.run import Run
from minirlaif.session import open_session, settings_of
from minirlaif.stages.registry import STAGES


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. sample 2. keep the best answer to each prompt 3. one step."""
    section, stage = cfg.rejection, STAGES["rejection"]
    settings = settings_of(cfg.seed, cfg.data, stage.reads, **cfg.sections(*stage.sections))
    with run.stage(stage.name, settings, inputs=run.inputs(stage.name), redo=redo) as out:
        if out is None:
            return
        rows = read_samples(cfg.data, run, "prompts", need_answers=False)[: section.prompts]
        with open_session(run, cfg.model, cfg.video) as session:
            adapters, backbone = session.adapters, session.backbone
            adapters.add("policy", 0, run.adapter("sft"))
            adapters.add("reward", 0, run.adapter("reward"))
            adapters.load_head("reward", run.adapter("reward"))
            # 1. sample
            rows = session.readable(rows)
            prompts = [session.encode_prompt(session.video_input(r.video), r.turns[0].question) for r in rows]
            with adapters.inference_as("policy"):
                source = generator(cfg.seed, stage.name)
                answers = sample(backbone, prompts, section.answers, 1.0, 1.0, section.max_new_tokens, source)
            # 2. keep the best answer to each prompt
            pairs, scores = [], []
            with adapters.inference_as("reward"):
                for prompt, group in zip(prompts, answers, strict=True):
                    candidates = [EncodedPair(prompt.ids, answer.ids, prompt.features) for answer in group]
                    scores_K = reward_scores(backbone, adapters.heads["reward"], candidates).tolist()
                    pairs.append(candidates[best_of(scores_K)])
                    scores.append(max(scores_K))
            # 3. one step
            optimizer = torch.optim.AdamW(adapters.parameters("policy"), lr=section.learning_rate)
            with adapters.training_as("policy"):
                logprobs_BR, mask_BR, _ = token_logprobs(backbone, pairs)
                loss = -logprobs_BR.sum() / mask_BR.sum()
                loss.backward()
            optimizer.step()
            out.log(1, loss=float(loss.detach()), best_score=sum(scores) / len(scores))
            out.summary["best_score"] = sum(scores) / len(scores)
            adapters.save("policy", out.path / "adapter")
            session.add_counters(out)
'''

SECTION = '''@dataclass(frozen=True)
class RejectionSection:
    """Rejection sampling."""

    prompts: PositiveInt = 6
    answers: PositiveInt = 3  # sampled per prompt
    max_new_tokens: PositiveInt = 24
    learning_rate: PositiveFloat = 0.02


'''

ROW = """    Stage(
        "rejection",
        "fine-tune on the best of some sampled answers",
        inputs=("sft", "feedback", "reward"),
        reads=("prompts",),
        sections=("model", "video", "rejection"),
        produces="rlaif",
        curves=(Curve("best_score", "Best score of each prompt"),),
    ),
"""

# `chat`, the app and `export` up to the converter of llama.cpp, on the finished run.
USE = """
import json
import sys
from contextlib import closing
from pathlib import Path

from minirlaif.app import run_reader, server, views
from minirlaif.cli import main
from minirlaif.inference.engine import SamplingParams
from minirlaif.runs.run import Run
from minirlaif.stages import export

folder, clip, question, tokens = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
run, runs = Run(folder), ["--runs-dir", str(folder.parent)]
assert run.adapter("rlaif") == folder / "rejection" / "adapter" and run.models() == ("rlaif", "sft", "base")
words = ["chat", "--run", "a", *runs, "--video", clip, "--max-new-tokens", tokens, question]
for model in run.models():
    assert main.main([*words, "--model", model]) == 0

assert run_reader.newest_run(folder.parent).root == folder
assert "rejection" in views.progress(run) and "Best score of each prompt" in views.curves(run)
options = server._parser().parse_args(runs)
shown, votes = server._run_and_votes(options)
assert shown.root == folder and votes == folder / "votes"
with closing(server._engine(options, shown, Path(folder.parent))) as engine:
    assert engine.models == run.models()
    print("".join(engine.stream(engine.load_clip(clip), (), question, SamplingParams(0.0, 1.0, int(tokens), 0))))

def stopped(pre_tokenizers, jobs, probes, control):
    assert jobs and probes  # made from the merged model
    raise KeyboardInterrupt

export.check_installed = export.fetch = lambda: None
export.convert = stopped
assert main.main(["export", "--run", "a", *runs, "--types", "f16"]) == 130
half = folder / "export.partial"
begun, done = (json.loads((half / name).read_text()) for name in ("begun.json", "state/results.json"))
assert set(begun["inputs"]) == {"sft", "rejection", "evaluate"}, begun
assert done["merge"]["logit_difference"] < 1e-3 and (half / "hf" / "model.safetensors").is_file(), done
"""


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")


def extended(folder: Path) -> Path:
    """A copy of the package with the method in it."""
    package = folder / "minirlaif"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "algorithms" / "rejection.py").write_text(ALGORITHM)
    (package / "stages" / "rejection.py").write_text(STAGE)
    schema = package / "config" / "schema.py"
    last = "    export: ExportSection = field(default_factory=ExportSection)\n"
    replaced(schema, last, f"{last}    rejection: RejectionSection = field(default_factory=RejectionSection)\n")
    config = "@dataclass(frozen=True)\nclass Config:\n"
    replaced(schema, config, SECTION + config)
    evaluate = '    Stage(\n        "evaluate",\n'
    replaced(package / "stages" / "registry.py", evaluate, ROW + evaluate)
    return package


def test_a_method_is_four_files(python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path):
    package = extended(tmp_path)
    changed = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if not (own := PACKAGE / path.relative_to(package)).is_file() or own.read_bytes() != path.read_bytes()
    }
    assert changed == FILES

    def call(*words: str) -> str:
        done = python(*words, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    stages = ("world", "sft", "feedback", "reward", "rejection", "evaluate", "report")  # without ppo
    call(
        "-m",
        "minirlaif",
        *small_config.words(tmp_path / "runs", stages, "evaluate.max_new_tokens=24", "optimize.methods=[rejection]"),
    )
    run = tmp_path / "runs" / "a"
    status = {line.split()[0]: line for line in call("-m", "minirlaif", "status", "--run", "a").splitlines()}
    assert "finished" in status["rejection"] and "best_score" in status["rejection"] and "ppo" not in status
    assert "rejection" in call("-m", "minirlaif", "--help")

    evaluated = small_config.manifest(run, "evaluate")
    assert set(evaluated["inputs"]) == {"sft", "feedback", "reward", "rejection"}
    rows: list[dict[str, Any]] = small_config.lines(run / "evaluate" / "answers.jsonl")
    row = next(row for row in rows if row["rlaif"] != row["sft"])  # the step has changed what the model says
    assert json.loads((run / "report.json").read_text())["method"] == "rejection"
    page = (run / "report.html").read_text()
    assert "Best score of each prompt" in page and row["rlaif"] in page

    clip = (run / "evaluate" / row["video"]).resolve()
    output = call("-c", USE, str(run), str(clip), row["question"], "24").splitlines()
    assert output[:3] == [row["rlaif"], row["sft"], row["base"]]  # greedy, as in `evaluate`
    assert row["rlaif"] in output[3:]  # by the app's engine
