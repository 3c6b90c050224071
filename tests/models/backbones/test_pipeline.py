"""Every family goes through all stages in 4 bits on a CPU, and a run that is killed in each stage ends the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minirlaif.cli import main
from minirlaif.models.language_model import LanguageModel
from minirlaif.runs.stage_dir import StageDir
from tests.fixtures import bases_llava, bases_qwen, bases_smolvlm
from tests.fixtures.small_config import STAGES, TINY, begin, results

BASES: dict[str, Callable[[Path], None]] = {
    "smolvlm2": bases_smolvlm.smolvlm,
    "qwen3-vl": bases_qwen.qwen3_vl,
    "qwen3.5": bases_qwen.qwen3_5,
    "llava": bases_llava.llava,
}
SETTINGS = (
    "model.quantization=nf4 model.dtype=float32 model.device=cpu model.gradient_checkpointing=true model.lora_r=2"
    " video.frames=3 video.segment_frames=2 video.segment_seconds=2.0 video.max_segments=2 video.frame_pixels=4096"
    " world.sft_clips=2 world.sft_short_clips=2 world.prompt_clips=3 world.dev_clips=1 world.test_clips=1"
    " world.questions_per_clip=1"
    " sft.epochs=1 sft.batch_size=2 sft.micro_batch_size=1 sft.save_steps=1 sft.max_length=1024"
    " feedback.answers=3 feedback.pairs_per_prompt=1 feedback.batch_size=2 feedback.margin=0 feedback.readout=likelihood"
    " feedback.judge_frames=true feedback.max_new_tokens=6 feedback.describe_tokens=6"
    " reward.epochs=1 reward.batch_size=1 reward.save_steps=1 reward.min_accuracy=0 reward.held_out=0.34"
    " rollout.rollouts=2 rollout.batch_size=2 rollout.max_new_tokens=6"
    " ppo.iterations=2 ppo.minibatch_size=2 ppo.micro_batch_size=1 ppo.dev_every=2 ppo.save_every=1"
    " evaluate.bootstrap=10 evaluate.max_new_tokens=6"
).split()


def command(base: Path, runs_dir: Path) -> list[str]:
    words = ["--config", str(TINY), "--run", "a", "--runs-dir", str(runs_dir)]
    return ["run", *STAGES, *words, "--set", *SETTINGS, f"model.base={base}"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", BASES)
def test_all_stages_in_four_bits_and_a_killed_run_ends_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    BASES[name](base)
    model_logits = LanguageModel.logits

    def logits(self: LanguageModel, hidden: Tensor) -> Tensor:
        """Random weights hardly ever end an answer, and an answer that is cut is in no pair: their end is made likelier."""
        end_V = torch.zeros(self.vocabulary, device=hidden.device)
        end_V[self.end_id] = 4.0
        return model_logits(self, hidden) + end_V

    monkeypatch.setattr(LanguageModel, "logits", logits)
    assert main.main(command(base, tmp_path / "straight")) == 0
    straight = tmp_path / "straight" / "a"

    real, died = StageDir.commit_state, set()

    def commit(self: StageDir, step: int, write: Callable[[Path], None], kept: str = "") -> None:
        real(self, step, write, kept)
        if self.name not in died:  # right after its first state
            died.add(self.name)
            raise Killed

    begin(straight, tmp_path / "killed", ["world"])
    monkeypatch.setattr(StageDir, "commit_state", commit)
    for _ in ("sft", "feedback", "reward", "ppo", "evaluate"):
        with pytest.raises(Killed):
            main.main(command(base, tmp_path / "killed"))
    assert main.main(command(base, tmp_path / "killed")) == 0
    assert died == {"sft", "feedback", "reward", "ppo", "evaluate"}
    mine, theirs = results(tmp_path / "killed" / "a", STAGES), results(straight, STAGES)
    assert mine.keys() == theirs.keys()
    assert {key for key in mine if mine[key] != theirs[key]} <= {f"{stage}/metrics.jsonl" for stage in STAGES}
