"""Chooses a PPO checkpoint without reference answers: how often the judge prefers the policy to the SFT model it started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minirlaif.feedback.judge import judge
from minirlaif.models.generation import greedy_texts
from minirlaif.session import ModelSession
from minirlaif.types import Comparison, Sample


class WinRateEvaluator:
    """How often the judge prefers the policy's greedy answer to the SFT model's, on dev prompts. Ties count half."""

    def __init__(self, session: ModelSession, dev: Sequence[Sample], contexts: Mapping[str, str]) -> None:
        self._session, self._dev, self._contexts = session, list(dev), contexts
        self._sft: list[str] | None = None

    def win_rate(self) -> float:
        """Share of dev prompts won by the policy as it is now."""
        session, f = self._session, self._session.cfg.feedback
        reference = session.reference
        policy = self._answers(session, "policy")
        with reference.adapters.on_device("reference"):
            if self._sft is None:
                self._sft = self._answers(reference, "reference")
            pairs = [
                Comparison(row.id, row.video, row.turns[0].question, new, old, self._contexts[row.video] if f.context else "")
                for row, new, old in zip(self._dev, policy, self._sft, strict=True)
            ]
            views = {row.video: session.video_input(row.video) if f.judge_frames else None for row in self._dev}
            with reference.adapters.inference_as("reference"):
                verdicts = judge(reference, pairs, views, f.readout, 0.0, f.disagreement, f.batch_size)
        return sum({"A": 1.0, "B": 0.0}.get(v.choice, 0.5) for v in verdicts) / len(verdicts)

    def _answers(self, session: ModelSession, role: str) -> list[str]:
        size, length = session.cfg.feedback.batch_size, session.cfg.rollout.max_new_tokens
        prompts = (session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in self._dev)
        with session.adapters.on_device(role), session.adapters.inference_as(role):
            return list(greedy_texts(session.backbone, prompts, size, length))
