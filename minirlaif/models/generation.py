"""The one place that samples: prompts in, answers out. A prompt is prefilled once, however many answers it gets.

Letters: B prompts, N = B x answers per prompt, V vocabulary, R answer tokens.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from minirlaif.models.language_model import EncodedPrompt, LanguageModel
from minirlaif.models.prefix_cache import Prefill, PrefixCache, prefill
from minirlaif.models.tokens import log_distribution


@dataclass(frozen=True)
class Completion:
    """A sampled answer. ids include the end token when `stopped`; logprobs are the sampler's own, one per id."""

    ids: tuple[int, ...]
    stopped: bool
    logprobs: tuple[float, ...]


@torch.no_grad()
def sample(
    backbone: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    answers: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    generator: torch.Generator | None = None,
) -> list[list[Completion]]:
    """Sample `answers` answers per prompt with the adapter that is active now.

    temperature: 0 takes the most likely token every time. top_p: keep the smallest set of tokens with this much probability; 1
    keeps all. generator: on the CPU; the draws depend on it and on the order of the prompts, on nothing else.
    Returns each prompt's answers. Image and chat tokens are never chosen.
    """
    start = prefill(backbone, prompts).expand_for_answers(answers)
    steps = list(decode_steps(backbone, start, temperature, top_p, max_new_tokens, generator))
    tokens_NR, logprobs_NR, running_NR = (torch.stack(x, 1).tolist() for x in zip(*steps, strict=True))
    completions = [
        Completion(tuple(ids[:length]), ids[length - 1] == backbone.end_id, tuple(logprobs[:length]))
        for ids, logprobs, length in zip(tokens_NR, logprobs_NR, map(sum, running_NR), strict=True)
    ]
    return [completions[i : i + answers] for i in range(0, len(completions), answers)]


def greedy(
    backbone: LanguageModel, prompts: Iterable[EncodedPrompt], batch_size: int, max_new_tokens: int
) -> Iterator[Completion]:
    """The most likely answer to each prompt, in batches in the prompts' order; prompts are made when their batch is."""
    waiting = iter(prompts)
    while batch := list(islice(waiting, batch_size)):
        for (answer,) in sample(backbone, batch, temperature=0, max_new_tokens=max_new_tokens):
            yield answer


def greedy_texts(
    backbone: LanguageModel, prompts: Iterable[EncodedPrompt], batch_size: int, max_new_tokens: int
) -> Iterator[str]:
    """As `greedy`, as texts."""
    for answer in greedy(backbone, prompts, batch_size, max_new_tokens):
        yield backbone.decode(answer.ids)


@torch.no_grad()
def stream(
    backbone: LanguageModel,
    prompt: EncodedPrompt,
    cache: PrefixCache,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    generator: torch.Generator | None = None,
) -> Generator[int]:
    """Token ids of one answer as they are sampled, its end token left out; arguments as for `sample`, and the same answer.

    cache: of this conversation; only what follows the prefix shared with earlier prompts is prefilled. A consumer may stop early.
    """
    ids = list(prompt.ids)
    start = cache.prefill(backbone, prompt)
    try:
        for choice_N, _, _ in decode_steps(backbone, start, temperature, top_p, max_new_tokens, generator):
            ids.append(int(choice_N))
            if ids[-1] != backbone.end_id:
                yield ids[-1]
    except Exception:
        cache.drop()
        raise
    finally:
        cache.keep(start.cache, ids)


def decode_steps(
    backbone: LanguageModel,
    start: Prefill,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One token per row and step, until every row has ended: (choice_N, its log-probability_N, running_N). A row that is not
    running had ended before this step."""
    disallowed_V = backbone.disallowed_V.to(backbone.device)
    state_ND, mask_NT, position = start.state_ND, start.mask_NT, start.position
    rows = len(state_ND)
    running_N = torch.ones(rows, dtype=torch.bool, device=backbone.device)
    for step in range(max_new_tokens):
        logprobs_NV = log_distribution(backbone.logits(state_ND), disallowed_V, temperature or 1.0)
        choice_N = _choose(logprobs_NV, temperature, top_p, generator)
        yield choice_N, logprobs_NV.gather(1, choice_N[:, None])[:, 0], running_N
        running_N = running_N & (choice_N != backbone.end_id)
        if step + 1 == max_new_tokens or not bool(running_N.any()):
            return
        mask_NT = torch.cat([mask_NT, torch.ones_like(mask_NT[:, :1])], 1)
        embedded = backbone.embed(choice_N[:, None], [None] * rows)
        state_ND = backbone.hidden(embedded, mask_NT, position, start.cache)[:, -1]
        position = position + 1


def _choose(logprobs_NV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logprobs_NV.argmax(-1)
    probs_NV = logprobs_NV.exp()
    if top_p < 1:
        ordered_NV, index_NV = probs_NV.sort(-1, descending=True)
        before_NV = ordered_NV.cumsum(-1) - ordered_NV
        nucleus_NV = torch.where(before_NV < top_p, ordered_NV, 0.0)
        probs_NV = torch.zeros_like(probs_NV).scatter(-1, index_NV, nucleus_NV)
    # Inverse of the cumulative distribution, with the draws made on the CPU: the same on every device.
    cumulative_NV = probs_NV.double().cumsum(-1)
    draw_N1 = torch.rand(len(probs_NV), 1, generator=generator, dtype=torch.float64).to(cumulative_NV.device)
    choice_N = torch.searchsorted(cumulative_NV, draw_N1 * cumulative_NV[:, -1:], right=True)[:, 0]
    return choice_N.clamp(max=probs_NV.shape[-1] - 1)
