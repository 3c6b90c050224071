from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from minirlaif.models import logprobs as scoring
from minirlaif.models.adapters import ScalarHead
from minirlaif.models.backbones.smolvlm import SmolVLM
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.logprobs import EncodedPair, micro_batches, reward_scores, token_logprobs, token_values
from tests.fixtures import tiny

FRAMES = (2, 3, 0, 1)  # of tiny.rows


@pytest.fixture(scope="module")
def base() -> SmolVLM:
    return tiny.backbone(seed=1)


def head(width: int = 128, beta: float | None = None) -> ScalarHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScalarHead(width, 0.5, beta).requires_grad_(False)


@torch.no_grad()
def from_pixels(base: SmolVLM, row: EncodedPair, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits before each answer token and hidden states of the whole row, by transformers' own forward pass."""
    more = {}
    if FRAMES[number]:
        frames = torch.from_numpy(tiny.pixels(FRAMES[number], number)).permute(0, 3, 1, 2)
        more["pixel_values"] = (frames / 127.5 - 1)[None]
    out = base.model(input_ids=torch.tensor([row.prompt + row.answer]), output_hidden_states=True, **more)
    start = len(row.prompt)
    return out.logits[0, start - 1 : -1], out.hidden_states[-1][0]


@torch.no_grad()
def test_rows_in_a_batch_score_as_they_do_alone(base: SmolVLM) -> None:
    rows, scalar = tiny.rows(base), head(beta=2.0)
    logprobs, mask, spread = token_logprobs(base, rows, 0.7, with_entropy=True)
    values, value_mask = token_values(base, scalar, rows)
    scores = reward_scores(base, scalar, rows)
    assert spread is not None and mask.sum(1).tolist() == [len(row.answer) for row in rows]
    assert torch.equal(mask, value_mask)
    for number, row in enumerate(rows):
        length = len(row.answer)
        alone, _, alone_spread = token_logprobs(base, [row], 0.7, with_entropy=True)
        assert alone_spread is not None
        torch.testing.assert_close(logprobs[number, :length], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(spread[number, :length], alone_spread[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values[number, :length], token_values(base, scalar, [row])[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores[number], reward_scores(base, scalar, [row])[0], atol=1e-5, rtol=1e-5)
        for padded in (logprobs, spread, values):
            assert not padded[number, length:].any()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_plain_forward_pass_from_pixels(base: SmolVLM, temperature: float) -> None:
    rows = tiny.rows(base)
    with torch.no_grad():
        actual, _, _ = token_logprobs(base, rows, temperature)
    for number, row in enumerate(rows):
        logits = from_pixels(base, row, number)[0] / temperature
        logits[:, base.disallowed_V] = float("-inf")
        expected = logits.log_softmax(-1)[torch.arange(len(row.answer)), torch.tensor(row.answer)]
        torch.testing.assert_close(actual[number, : len(row.answer)], expected, atol=1e-4, rtol=1e-4)


def test_the_frames_are_looked_at(base: SmolVLM) -> None:
    row = tiny.rows(base)[0]
    assert row.features is not None
    blind = EncodedPair(row.prompt, row.answer, torch.zeros_like(row.features))
    turned = EncodedPair(row.prompt, row.answer, row.features.flip(0))
    with torch.no_grad():
        logprobs = [token_logprobs(base, [r])[0] for r in (row, blind, turned)]
    assert float((logprobs[0] - logprobs[1]).abs().max()) > 1e-3
    assert float((logprobs[0] - logprobs[2]).abs().max()) > 1e-4  # the order of frames counts


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_sampler_and_the_scorer_speak_of_one_distribution(base: SmolVLM, temperature: float) -> None:
    rows = tiny.rows(base)
    prompts = [EncodedPrompt(row.prompt, row.features) for row in rows]
    drawn = sample(base, prompts, 2, temperature, 1.0, 6, torch.Generator().manual_seed(0))
    answered = [EncodedPair(row.prompt, c.ids, row.features) for row, cs in zip(rows, drawn, strict=True) for c in cs]
    own = [c.logprobs for cs in drawn for c in cs]
    with torch.no_grad():
        actual, _, _ = token_logprobs(base, answered, temperature)
    for number, logprobs in enumerate(own):
        torch.testing.assert_close(actual[number, : len(logprobs)], torch.tensor(logprobs), atol=1e-4, rtol=1e-4)


def test_banned_tokens_have_no_mass(base: SmolVLM) -> None:
    row = tiny.rows(base)[2]
    tokens = [token for token in range(base.vocabulary) if token != base.renderer.image_id]  # that one has no embedding
    with torch.no_grad():
        logprobs = token_logprobs(base, [EncodedPair(row.prompt, (token,), None) for token in tokens])[0][:, 0]
    assert torch.equal(logprobs == float("-inf"), base.disallowed_V[tokens])
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-4)


def test_all_special_tokens_but_the_end_are_banned(base: SmolVLM) -> None:
    from minirlaif.tiny_world.base_model import SPECIAL

    banned = {tiny.tokenizer().convert_ids_to_tokens(i) for i in base.disallowed_V.nonzero()[:, 0].tolist()}
    assert banned == set(SPECIAL) - {"<end_of_utterance>"}


def test_values_stand_before_their_tokens_and_scores_on_the_last_one(base: SmolVLM) -> None:
    rows, scalar = tiny.rows(base), head()
    with torch.no_grad():
        values, _ = token_values(base, scalar, rows)
        scores = reward_scores(base, scalar, rows)
    for number, row in enumerate(rows):
        along = scalar(from_pixels(base, row, number)[1])
        torch.testing.assert_close(values[number, : len(row.answer)], along[len(row.prompt) - 1 : -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scores[number], along[-1], atol=1e-4, rtol=1e-4)


def test_beta_adds_the_mean_loglikelihood_of_the_answer(base: SmolVLM) -> None:
    rows = tiny.rows(base)
    with torch.no_grad():
        plain, weighed = reward_scores(base, head(), rows), reward_scores(base, head(beta=2.5), rows)
        logprobs, _, _ = token_logprobs(base, rows)
    for number, row in enumerate(rows):
        mean = float(logprobs[number, : len(row.answer)].mean())
        assert float(weighed[number] - plain[number]) == pytest.approx(2.5 * mean, abs=1e-4)


def test_beta_learns_and_so_does_the_head(base: SmolVLM) -> None:
    scalar = head(beta=1.0).requires_grad_(True)
    reward_scores(base, scalar, tiny.rows(base)).sum().backward()
    assert scalar.beta is not None and scalar.beta.grad is not None and scalar.linear.weight.grad is not None
    logprobs, mask, _ = token_logprobs(base, tiny.rows(base))
    assert float(scalar.beta.grad) == pytest.approx(float((logprobs.sum(1) / mask.sum(1)).sum()), abs=1e-3)


def test_chunks_do_not_change_a_number(base: SmolVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        at_once = token_logprobs(base, tiny.rows(base), with_entropy=True)
        monkeypatch.setattr(scoring, "CHUNK", 3)
        parts = token_logprobs(base, tiny.rows(base), with_entropy=True)
    assert at_once[2] is not None and parts[2] is not None
    torch.testing.assert_close(at_once[0], parts[0])
    torch.testing.assert_close(at_once[2], parts[2])


def test_chunks_follow_the_vocabulary(base: SmolVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 positions of V float32 logits fit into the budget, whatever V is."""
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 5 * 4 * base.vocabulary + 3)
    sizes, real = [], base.lm_head
    monkeypatch.setattr(base, "logits", lambda hidden: sizes.append(len(hidden)) or real(hidden))
    with torch.no_grad():
        token_logprobs(base, tiny.rows(base))
    total = sum(len(row.answer) for row in tiny.rows(base))
    assert sizes == [5] * (total // 5) + [total % 5] * (total % 5 > 0)
    sizes.clear()
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 1)  # a vocabulary that never fits goes one by one
    with torch.no_grad():
        token_logprobs(base, tiny.rows(base)[2:3])
    assert sizes == [1] * len(tiny.rows(base)[2].answer)


def test_logits_are_not_kept_for_the_backward_pass(base: SmolVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing as wide as the vocabulary waits for it; loss and gradient are those of log-softmax over all logits at once."""
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 4 * base.vocabulary)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(2, 9, base.width, generator=draw)
    targets = torch.randint(base.vocabulary, (2, 9), generator=draw)
    targets[base.disallowed_V[targets]] = base.renderer.end_id
    mask, weights = torch.ones(2, 9, dtype=torch.bool), torch.randn(2, 9, generator=draw)
    mask[1, 6:] = False

    def wide(run: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[int], float, torch.Tensor]:
        leaf, saved = states.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            loss = (run(leaf) * weights * mask).sum()
        loss.backward()
        assert leaf.grad is not None
        own = {id(base.lm_head.weight), id(base.disallowed_V)}
        return [t.numel() for t in saved if base.vocabulary in t.shape and id(t) not in own], float(loss.detach()), leaf.grad

    def plainly(leaf: torch.Tensor) -> torch.Tensor:
        logits = base.lm_head(leaf).masked_fill(base.disallowed_V, float("-inf"))
        return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]

    held, loss, gradient = wide(lambda leaf: scoring.logprobs_of(base, leaf, targets, mask, 1.0, False)[0])
    plain_held, plain_loss, plain_gradient = wide(plainly)
    assert max(plain_held) >= 18 * base.vocabulary and held == []
    assert loss == pytest.approx(plain_loss, abs=1e-4)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-5, rtol=1e-4)


def test_micro_batches_hold_every_row_once_and_like_lengths_together() -> None:
    assert list(micro_batches([5, 1, 9, 2, 5], 2)) == [[1, 3], [0, 4], [2]]
    assert list(micro_batches([], 2)) == []


def test_placeholders_and_features_must_agree(base: SmolVLM) -> None:
    row = tiny.rows(base)[0]
    assert row.features is not None
    for wrong in (None, row.features[:1]):
        with pytest.raises(ValueError, match="placeholders"):
            token_logprobs(base, [EncodedPair(row.prompt, row.answer, wrong)])
