from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from minirlaif.models import generation
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.generation import Completion, greedy_texts, sample
from minirlaif.models.language_model import Embedded, EncodedPrompt
from minirlaif.models.tokens import pad_stack
from tests.fixtures import tiny


@pytest.fixture
def base() -> SmolVLM:
    return tiny.backbone(seed=2)


def encoded(base: SmolVLM) -> list[EncodedPrompt]:
    return [EncodedPrompt(row.prompt, row.features) for row in tiny.rows(base)]


def drawn(base: SmolVLM, prompts: list[EncodedPrompt], seed: int = 0, **named: float) -> list[list[tuple[int, ...]]]:
    named = {"max_new_tokens": 8, **named}
    completions = sample(base, prompts, generator=torch.Generator().manual_seed(seed), **named)  # type: ignore[arg-type]
    return [[c.ids for c in group] for group in completions]


@pytest.mark.parametrize("push", [0.0, 1.4])
def test_greedy_is_what_transformers_generates(base: SmolVLM, push: float) -> None:
    """With a push the end token comes up at different steps, so that rows of one batch stop apart."""
    end = base.renderer.end_id
    prompts = encoded(base)
    ids, mask = pad_stack([torch.tensor(p.ids) for p in prompts], base.pad_id, "left")
    with torch.no_grad():
        embeds = base.embed(ids, [p.features for p in prompts]).vectors_BTD
        theirs = base.model.generate(
            inputs_embeds=embeds, attention_mask=mask.long(), max_new_tokens=12, do_sample=False,
            suppress_tokens=base.disallowed_V.nonzero()[:, 0].tolist(),
            sequence_bias=[[[end], push]] if push else None,
        )  # fmt: skip
    if push:
        tiny.biased(base, {end: push})
    ours = sample(base, prompts, temperature=0, max_new_tokens=12)
    for (answer,), expected in zip(ours, theirs.tolist(), strict=True):
        cut = expected[: expected.index(end) + 1] if end in expected else expected
        assert list(answer.ids) == cut
        assert answer.stopped == (end in expected)
        assert len(answer.logprobs) == len(answer.ids)
    assert len({answer.ids for (answer,) in ours}) > 1  # the prompts do differ
    if push:
        assert len({len(answer.ids) for (answer,) in ours}) == 3


def test_a_shared_prompt_equals_prompts_of_their_own(base: SmolVLM) -> None:
    prompts = encoded(base)
    alone = [drawn(base, [prompt], temperature=0)[0][0] for prompt in prompts]
    assert drawn(base, prompts, answers=3, temperature=0) == [[ids] * 3 for ids in alone]
    copies = [prompt for prompt in prompts for _ in range(3)]
    shared = drawn(base, prompts, answers=3, seed=5)
    assert [ids for group in shared for ids in group] == [ids for (ids,) in drawn(base, copies, seed=5)]
    assert len({ids for group in shared for ids in group}) == 12


def test_a_prompt_is_read_once_however_many_answers_it_gets(base: SmolVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real = base.hidden

    def counting(embeds: Embedded, *others: object, **named: object) -> torch.Tensor:
        shapes.append(tuple(embeds.vectors_BTD.shape[:2]))
        return real(embeds, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "hidden", counting)
    prompts = encoded(base)
    drawn(base, prompts, answers=3, max_new_tokens=3)
    longest = max(len(p.ids) for p in prompts)
    assert shapes == [(4, longest), (12, 1), (12, 1)]


def test_banned_tokens_are_never_chosen_even_where_they_are_the_likeliest(base: SmolVLM) -> None:
    banned = set(base.disallowed_V.nonzero()[:, 0].tolist())
    tiny.biased(base, dict.fromkeys(banned, 50.0))
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (2.0, 0.9)):
        groups = drawn(base, encoded(base), answers=8, temperature=temperature, top_p=top_p)
        assert not banned & {token for group in groups for ids in group for token in ids}


def test_the_generator_decides_the_answers(base: SmolVLM) -> None:
    prompts = encoded(base)
    assert drawn(base, prompts, seed=1, answers=2) == drawn(base, prompts, seed=1, answers=2)
    assert drawn(base, prompts, seed=1, answers=2) != drawn(base, prompts, seed=2, answers=2)
    state = torch.get_rng_state()
    drawn(base, prompts, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is taken from the global one


def known(base: SmolVLM) -> dict[int, float]:
    """Make every next token one of three, with chances 0.5, 0.3 and 0.2."""
    probs = {base.renderer.text_ids(word)[0]: p for word, p in ((" red", 0.5), (" blue", 0.3), (" green", 0.2))}
    bias = dict.fromkeys(range(base.vocabulary), -1e4) | {t: float(torch.tensor(p).log()) for t, p in probs.items()}
    tiny.biased(base, bias, flat=True)
    return probs


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, (0.5, 0.3, 0.2)),
        (1.0, 0.6, (0.625, 0.375, 0.0)),  # 0.5 is not enough, with 0.3 it is
        (1.0, 0.45, (1.0, 0.0, 0.0)),
        (0.5, 1.0, (0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38)),
    ],
)
def test_answers_follow_the_distribution(base: SmolVLM, temperature: float, top_p: float, expected: tuple[float, ...]) -> None:
    tokens = list(known(base))
    sampled = drawn(base, encoded(base)[:1], answers=2000, temperature=temperature, top_p=top_p, max_new_tokens=1)[0]
    counts = Counter(ids[0] for ids in sampled)
    for token, share in zip(tokens, expected, strict=True):
        assert counts[token] / 2000 == pytest.approx(share, abs=0.0 if share in (0.0, 1.0) else 0.04)
    assert sum(counts[token] for token in tokens) == 2000


def test_logprobs_are_those_of_the_whole_distribution_at_the_temperature(base: SmolVLM) -> None:
    probs = known(base)
    for (answer,) in sample(base, encoded(base), 1, 0.5, 0.6, 3, torch.Generator().manual_seed(0)):
        for token, logprob in zip(answer.ids, answer.logprobs, strict=True):
            assert logprob == pytest.approx(float(torch.tensor(probs[token] ** 2 / 0.38).log()), abs=1e-4)


def test_an_answer_ends_with_its_end_token_or_at_the_limit(base: SmolVLM) -> None:
    end = base.renderer.end_id
    tiny.biased(base, {end: 4.0})
    completions = [c for group in sample(base, encoded(base), 8, 1.0, 1.0, 5, torch.Generator().manual_seed(0)) for c in group]
    assert {c.stopped for c in completions} == {True, False}
    for c in completions:
        assert end not in c.ids[:-1]
        assert c.stopped == (c.ids[-1] == end)
        assert c.stopped or len(c.ids) == 5
        assert len(c.logprobs) == len(c.ids) <= 5


def test_sampling_ends_early_when_every_answer_has(base: SmolVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.biased(base, {base.renderer.end_id: 100.0})
    calls = []
    real = base.hidden
    monkeypatch.setattr(base, "hidden", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    assert drawn(base, encoded(base), max_new_tokens=50) == [[(base.renderer.end_id,)]] * 4
    assert len(calls) == 1


def test_greedy_texts_are_made_batch_by_batch(base: SmolVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, sizes = encoded(base), []
    alone = [base.renderer.decode(drawn(base, [prompt], temperature=0)[0][0]) for prompt in prompts]
    rendered: list[int] = []

    def source() -> Iterator[EncodedPrompt]:
        for number, prompt in enumerate(prompts):
            rendered.append(number)
            yield prompt

    def counting(backbone: SmolVLM, batch: list[EncodedPrompt], **named: Any) -> list[list[Completion]]:
        sizes.append((len(batch), len(rendered)))
        return sample(backbone, batch, **named)

    monkeypatch.setattr(generation, "sample", counting)
    assert list(greedy_texts(base, source(), 3, 8)) == alone
    assert sizes == [(3, 3), (1, 4)]  # a batch is sampled before the next one is rendered
