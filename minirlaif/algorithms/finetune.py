"""Fine-tuning the policy on answers that exist as token ids: the update of context distillation.

Letters: B answers, R answer tokens.
"""

from collections.abc import Sequence

from minirlaif import distributed
from minirlaif.algorithms.losses import sft_loss
from minirlaif.config import DistillSection
from minirlaif.models.logprobs import EncodedPair, micro_batches, token_logprobs
from minirlaif.training.optim import AdapterTrainer


def finetune_step(trainer: AdapterTrainer[DistillSection], rows: Sequence[EncodedPair], rate: float) -> dict[str, float]:
    """One optimiser step on answers, each after its prompt. Returns the loss (nats per answer token of the whole batch) and the
    gradient norm before clipping."""
    session, section = trainer.session, trainer.section
    denominator = sum(len(row.answer) for row in rows)
    total = 0.0
    for index in distributed.share(list(micro_batches([len(row) for row in rows], section.micro_batch_size))):
        with session.adapters.training_as(trainer.role), trainer.accelerator.autocast():
            logprobs_BR, mask_BR, _ = token_logprobs(session.backbone, [rows[i] for i in index])
            loss = sft_loss(logprobs_BR, mask_BR, denominator)
            trainer.accelerator.backward(loss)
        total += float(loss.detach())
    distributed.sum_gradients(trainer.parameters)
    return {"loss": distributed.total({"loss": total})["loss"], "grad_norm": trainer.step(rate)}
