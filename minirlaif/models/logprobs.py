"""The one place that scores answers: log-probabilities, values and scores of (prompt, answer) rows. Nothing is sampled here.

Letters: B rows, T tokens of prompt + answer, R answer tokens, D width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minirlaif.models.adapters import ScalarHead
from minirlaif.models.language_model import LanguageModel
from minirlaif.models.tokens import entropy, log_distribution, pad_stack, pick_logprobs

R = TypeVar("R")
CHUNK = 2048  # most answer positions whose logits are in memory at once
LOGITS_BYTES = 1 << 27  # fewer where the vocabulary is large: of 150k words, 221; softmax and gradient need some copies of it


@dataclass(frozen=True)
class EncodedPair:
    """One answer to one prompt. features: the frames' vectors [G, H, W, E], None for a prompt without video."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def micro_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in groups of at most `size`, rows of similar length together so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def map_micro_batches(
    function: Callable[[int, list[int]], Sequence[R]],
    lengths: Sequence[int],
    size: int,
    over: Callable[[Callable[[tuple[int, list[int]]], Sequence[R]], list[tuple[int, list[int]]]], Iterable[Sequence[R]]] = map,
) -> list[R]:
    """Results of a function over rows, micro-batch by micro-batch, in the order of the rows.

    function: from a micro-batch's number and the indices of its rows to a result for each of them; lengths: of the rows in
    tokens; size: most rows of a micro-batch; over: `map`, or `distributed.mapped` where every process has the same rows.
    """
    groups = list(enumerate(micro_batches(lengths, size)))
    placed: dict[int, R] = {}
    for (_, index), results in zip(groups, over(lambda group: function(*group), groups), strict=True):
        placed.update(zip(index, results, strict=True))
    return [placed[i] for i in range(len(lengths))]


def answer_states(backbone: LanguageModel, rows: Sequence[EncodedPair]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the language model over prompt + answer. states_BRD: hidden states *before* each answer token, those that predict it;
    targets_BR: the answer ids; mask_BR: True where there is an answer token."""
    hidden_BTD, targets_BR, mask_BR, index_BR = _run(backbone, rows)
    return _at(hidden_BTD, index_BR - 1), targets_BR, mask_BR


def token_logprobs(
    backbone: LanguageModel, rows: Sequence[EncodedPair], temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability of every answer token (nats, float32), the mask, and with `with_entropy` the entropy; each [B, R].

    Tokens that sampling may not choose (image and chat tokens) are left out of the distribution here too, so that both
    use the same one. Padding holds 0.
    """
    states_BRD, targets_BR, mask_BR = answer_states(backbone, rows)
    logprobs_BR, entropy_BR = logprobs_of(backbone, states_BRD, targets_BR, mask_BR, temperature, with_entropy)
    return logprobs_BR, mask_BR, entropy_BR


def logprobs_of(
    backbone: LanguageModel, states_BRD: Tensor, targets_BR: Tensor, mask_BR: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (and entropies) from hidden states, counted positions only and in chunks."""
    states_ND, targets_N = states_BRD[mask_BR], targets_BR[mask_BR]
    disallowed_V = backbone.disallowed_V.to(states_ND.device)

    def measured(part_ND: Tensor, part_N: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_NV = backbone.logits(part_ND)
        entropy_N = entropy(logits_NV, disallowed_V, temperature) if with_entropy else None
        return pick_logprobs(logits_NV, part_N, disallowed_V, temperature), entropy_N

    size = min(CHUNK, max(1, LOGITS_BYTES // (4 * backbone.vocabulary)))
    picked, entropies = [], []
    for part_ND, part_N in zip(torch.split(states_ND, size), torch.split(targets_N, size), strict=True):
        if torch.is_grad_enabled() and part_ND.requires_grad:
            # Logits are made again in the backward pass: those of a long answer are never all in memory.
            logprobs_N, entropy_N = checkpoint(measured, part_ND, part_N, use_reentrant=False, preserve_rng_state=False)
        else:
            logprobs_N, entropy_N = measured(part_ND, part_N)
        picked.append(logprobs_N)
        entropies += [] if entropy_N is None else [entropy_N]
    empty = torch.zeros(mask_BR.shape, dtype=torch.float32, device=mask_BR.device)
    logprobs_BR = empty.masked_scatter(mask_BR, torch.cat(picked))
    return logprobs_BR, empty.masked_scatter(mask_BR, torch.cat(entropies)) if with_entropy else None


def first_token_logprobs(backbone: LanguageModel, rows: Sequence[EncodedPair], choices: Sequence[int]) -> Tensor:
    """Log-probability of each of `choices` as the first answer token, [B, len(choices)]; the rows' own answers are not read."""
    states_BRD, _, _ = answer_states(backbone, rows)
    logprobs_BV = log_distribution(backbone.logits(states_BRD[:, 0]), backbone.disallowed_V.to(states_BRD.device))
    return logprobs_BV[:, list(choices)]


def token_values(backbone: LanguageModel, head: ScalarHead, rows: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
    """Value before each answer token, as in the paper's code: values_BR and mask_BR."""
    states_BRD, _, mask_BR = answer_states(backbone, rows)
    return head(states_BRD) * mask_BR, mask_BR


def reward_scores(backbone: LanguageModel, head: ScalarHead, rows: Sequence[EncodedPair]) -> Tensor:
    """Scores_B of whole answers, read at the last answer token.

    With `head.beta` the mean log-likelihood of the answer under the same adapter is added, beta times. That term is not in
    the paper; it lets a small model compare an answer with what stands in its prompt.
    """
    hidden_BTD, targets_BR, mask_BR, index_BR = _run(backbone, rows)
    last_B = mask_BR.sum(1) - 1
    scores_B: Tensor = head(_at(hidden_BTD, index_BR.gather(1, last_B[:, None]))[:, 0])
    if head.beta is not None:
        logprobs_BR, _ = logprobs_of(backbone, _at(hidden_BTD, index_BR - 1), targets_BR, mask_BR, 1.0, False)
        scores_B = scores_B + head.beta * logprobs_BR.sum(1) / mask_BR.sum(1)
    return scores_B


def _run(backbone: LanguageModel, rows: Sequence[EncodedPair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden_BTD, answer ids_BR, mask_BR, and the place of each answer token in T (index_BR, clipped on padding)."""
    device = backbone.device
    ids_BT, mask_BT = pad_stack([torch.tensor(row.prompt + row.answer) for row in rows], backbone.pad_id, "right")
    targets_BR, mask_BR = pad_stack([torch.tensor(row.answer) for row in rows], backbone.pad_id, "right")
    starts_B = torch.tensor([len(row.prompt) for row in rows])
    index_BR = (starts_B[:, None] + torch.arange(mask_BR.shape[1])).clamp(max=ids_BT.shape[1] - 1)
    ids_BT, mask_BT, features = ids_BT.to(device), mask_BT.to(device), [row.features for row in rows]
    positions = backbone.positions(ids_BT, mask_BT, features)
    hidden_BTD = backbone.hidden(backbone.embed(ids_BT, features), mask_BT, positions)
    return hidden_BTD, targets_BR.to(device), mask_BR.to(device), index_BR.to(device)


def _at(hidden_BTD: Tensor, index_BR: Tensor) -> Tensor:
    return hidden_BTD.gather(1, index_BR[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
