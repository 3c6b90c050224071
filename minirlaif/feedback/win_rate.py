"""How often the judge prefers the policy's answers to those of the SFT model."""

from collections.abc import Mapping, Sequence

from minirlaif.config import FeedbackSection
from minirlaif.feedback.judge import judge
from minirlaif.session import ModelSession, PPOModels
from minirlaif.types import Comparison, Sample


class WinRateEvaluator:
    """How often the judge, the SFT model, prefers the policy's greedy answer to its own, on dev prompts (ties count half): how a
    checkpoint is chosen without the truth."""

    def __init__(
        self, models: PPOModels, dev: Sequence[Sample], contexts: Mapping[str, str], section: FeedbackSection, max_new_tokens: int
    ) -> None:
        self._models, self._dev, self._contexts = models, list(dev), contexts
        self._section, self._max_new_tokens = section, max_new_tokens
        self._sft: list[str] | None = None

    def win_rate(self) -> float:
        """Share of dev prompts won by the policy as it is now."""
        session, reference, f = self._models.policy, self._models.reference, self._section
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
        questions = ((session.video_input(row.video), row.turns[0].question) for row in self._dev)
        with session.adapters.on_device(role), session.adapters.inference_as(role):
            return session.greedy_answers(questions, self._max_new_tokens, self._section.batch_size)
