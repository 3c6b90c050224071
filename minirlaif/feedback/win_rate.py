"""Choosing a PPO checkpoint without the truth: how often the judge prefers the policy to the model it started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minirlaif.feedback.judge import judge
from minirlaif.models.generation import sample
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Sample


class WinRateEvaluator:
    """How often the judge prefers the policy's greedy answer to the SFT model's, on dev prompts. Ties count half."""

    def __init__(self, session: ModelSession, dev: Sequence[Sample], contexts: Mapping[str, str]) -> None:
        self._bench, self._dev, self._contexts = session, list(dev), contexts
        self._sft: list[str] | None = None

    def win_rate(self) -> float:
        """Share of dev prompts won by the policy as it is now."""
        session, f = self._bench, self._bench.cfg.feedback
        judging = session.reference
        now = self._answers(session, "policy")
        with judging.adapters.on_device("reference"):
            if self._sft is None:
                self._sft = self._answers(judging, "reference")
            pairs = [
                Comparison(row.id, row.video, row.turns[0].question, new, old, self._contexts[row.video] if f.context else "")
                for row, new, old in zip(self._dev, now, self._sft, strict=True)
            ]
            views = {row.video: session.video_input(row.video) if f.judge_frames else None for row in self._dev}
            with judging.adapters.inference_as("reference"):
                verdicts = judge(judging, pairs, views, f.readout, 0.0, f.disagreement, f.batch_size)
        return sum({"A": 1.0, "B": 0.0}.get(v.choice, 0.5) for v in verdicts) / len(verdicts)

    def _answers(self, session: ModelSession, role: str) -> list[str]:
        size = session.cfg.feedback.batch_size
        texts: list[str] = []
        with session.adapters.on_device(role), session.adapters.inference_as(role):
            for start in range(0, len(self._dev), size):
                some = self._dev[start : start + size]
                asked = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in some]
                for (answer,) in sample(
                    session.backbone, asked, temperature=0, max_new_tokens=session.cfg.rollout.max_new_tokens
                ):
                    texts.append(session.backbone.renderer.decode(answer.ids))
        return texts
