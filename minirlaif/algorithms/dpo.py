"""Direct preference optimisation: one step of the policy on pairs of answers, against a frozen reference.

Letters: B pairs, R answer tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from minirlaif import distributed
from minirlaif.algorithms.losses import dpo_loss, total_stats
from minirlaif.config import DpoSection
from minirlaif.models.language_model import LanguageModel
from minirlaif.models.logprobs import EncodedPair, map_micro_batches, micro_batches, token_logprobs
from minirlaif.session import PPOModels
from minirlaif.training.optim import AdapterTrainer


@dataclass(frozen=True)
class DPOLearner:
    """What a step changes. reference: by pair the reference's log-probabilities of the chosen and the rejected answer, each
    computed once, when its pair first comes up."""

    models: PPOModels
    trainer: AdapterTrainer[DpoSection]
    reference: dict[str, tuple[float, float]] = field(default_factory=dict)

    def update(self, pairs: Mapping[str, tuple[EncodedPair, EncodedPair]], rate: float) -> dict[str, float]:
        """One optimiser step on pairs (by name: chosen and rejected, each after the same prompt). Returns the loss, the
        statistics of `dpo_loss` and the gradient norm before clipping."""
        trainer, names = self.trainer, list(pairs)
        self._fill_reference({name: pairs[name] for name in names if name not in self.reference})
        groups = list(micro_batches([max(map(len, pairs[name])) for name in names], trainer.section.micro_batch_size))
        part = partial(self._micro_batch, pairs, names)
        stats = total_stats(distributed.mapped(part, groups))
        distributed.sum_gradients(trainer.parameters)
        return stats | {"grad_norm": trainer.step(rate)}

    def _micro_batch(
        self, pairs: Mapping[str, tuple[EncodedPair, EncodedPair]], names: Sequence[str], index: list[int]
    ) -> dict[str, float]:
        trainer, backbone = self.trainer, self.models.policy.backbone
        chosen = [names[i] for i in index]
        with trainer.session.adapters.training_as("policy"), trainer.accelerator.autocast():
            sums_B = answer_logprobs(backbone, [row for name in chosen for row in pairs[name]])
            ref_B = torch.tensor([value for name in chosen for value in self.reference[name]], device=sums_B.device)
            beta = trainer.section.beta
            loss, stats = dpo_loss(sums_B[0::2], sums_B[1::2], ref_B[0::2], ref_B[1::2], beta, len(names))
            trainer.accelerator.backward(loss)
        return stats | {"loss": float(loss.detach())}

    def _fill_reference(self, pairs: Mapping[str, tuple[EncodedPair, EncodedPair]]) -> None:
        rows = [row for both in pairs.values() for row in both]
        if not rows:
            return
        session = self.models.reference

        def sums(_: int, index: list[int]) -> list[float]:
            return list(answer_logprobs(session.backbone, [rows[i] for i in index]).tolist())

        size = 2 * self.trainer.section.micro_batch_size
        with session.adapters.on_device("reference"), session.adapters.inference_as("reference"):
            values = map_micro_batches(sums, [len(row) for row in rows], size, distributed.mapped)
        self.reference.update({name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(pairs)})


def answer_logprobs(backbone: LanguageModel, rows: Sequence[EncodedPair]) -> Tensor:
    """Summed log-probability of each whole answer [B], in nats."""
    logprobs_BR, _mask, _entropy = token_logprobs(backbone, rows)  # padding holds 0
    return logprobs_BR.sum(1)
