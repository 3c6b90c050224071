"""Choosing a PPO checkpoint without the truth: how often the judge prefers the policy to the model it started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minirlaif.feedback.judge import judge
from minirlaif.models.generation import sample
from minirlaif.session import Workbench
from minirlaif.types import Pair, Sample


class DevJudge:
    """How often the judge prefers the policy's greedy answer to the SFT model's, on dev prompts. Ties count half."""

    def __init__(self, bench: Workbench, dev: Sequence[Sample], contexts: Mapping[str, str]) -> None:
        self._bench, self._dev, self._contexts = bench, list(dev), contexts
        self._sft: list[str] | None = None

    def win_rate(self) -> float:
        """Share of dev prompts won by the policy as it is now."""
        bench, f = self._bench, self._bench.cfg.feedback
        judging = bench.reference
        now = self._answers(bench, "policy")
        with judging.roles.visiting("reference"):
            if self._sft is None:
                self._sft = self._answers(judging, "reference")
            pairs = [
                Pair(row.id, row.video, row.turns[0].question, new, old, self._contexts[row.video] if f.context else "")
                for row, new, old in zip(self._dev, now, self._sft, strict=True)
            ]
            views = {row.video: bench.whole(row.video) if f.judge_frames else None for row in self._dev}
            with judging.roles.reading_as("reference"):
                verdicts = judge(judging, pairs, views, f.readout, 0.0, f.disagreement, f.batch_size)
        return sum({"A": 1.0, "B": 0.0}.get(v.choice, 0.5) for v in verdicts) / len(verdicts)

    def _answers(self, bench: Workbench, role: str) -> list[str]:
        size = bench.cfg.feedback.batch_size
        texts: list[str] = []
        with bench.roles.visiting(role), bench.roles.reading_as(role):
            for start in range(0, len(self._dev), size):
                some = self._dev[start : start + size]
                asked = [bench.asked(bench.whole(row.video), row.turns[0].question) for row in some]
                for (answer,) in sample(bench.backbone, asked, temperature=0, max_new_tokens=bench.cfg.rollout.max_new_tokens):
                    texts.append(bench.backbone.renderer.decode(answer.ids))
        return texts
