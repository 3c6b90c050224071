"""Rewards, advantages and whitening: numbers by hand and indifference to padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minirlaif.algorithms.advantages import (
    equal_rewards,
    explained_variance,
    gae,
    group_centred,
    group_relative,
    kl_per_token,
    leave_one_out,
    masked_mean,
    penalized_scores,
    shaped_rewards,
    whiten,
)

ROW = torch.ones(1, 3, dtype=torch.bool)
MASK_BR = torch.tensor([[True, True, True, False], [True, False, False, False], [True] * 4])


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def noise(seed: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_masked_mean() -> None:
    assert masked_mean(row(1, 3, 100), torch.tensor([[True, True, False]])).item() == 2
    assert masked_mean(row(1, 3, float("nan")), torch.tensor([[True, True, False]])).item() == 2
    with pytest.raises(ValueError, match="nothing counts"):
        masked_mean(row(1, 2, 3), ~ROW)


def test_whiten_by_hand() -> None:
    got = whiten(row(1, 3, 100), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(got, row(-1, 1, 0))
    torch.testing.assert_close(whiten(row(5, 5, 5), ROW), row(0, 0, 0))


def test_kl_by_hand() -> None:
    policy, reference = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    torch.testing.assert_close(kl_per_token(policy, reference, "k1"), row(math.log(2), -math.log(2)))
    torch.testing.assert_close(kl_per_token(policy, reference, "k3"), row(0.5 - 1 + math.log(2), 2 - 1 - math.log(2)))
    with pytest.raises(ValueError, match="k1 or k3"):
        kl_per_token(policy, reference, "k2")


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_have_the_right_mean(estimator: str) -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    expected = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    mean = (policy * kl_per_token(policy.log(), reference.log(), estimator)).sum()
    assert mean.item() == pytest.approx(expected, abs=1e-6)


def test_score_terms_by_hand() -> None:
    scores = torch.tensor([1.0, 1.0])
    got = penalized_scores(scores, torch.tensor([True, False]), torch.tensor([5, 20]), 20, 8.0, 10.0)
    torch.testing.assert_close(got, torch.tensor([1 - 2.5, 1 - 8 - 10.0]))


def test_shaped_rewards_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[1.0, 2.0, 99.0], [0.0, -1.0, 3.0]])
    got = shaped_rewards(torch.tensor([5.0, -1.0]), kl, mask, 0.1, 10.0)
    torch.testing.assert_close(got, torch.tensor([[-1.0, 48.0, 0.0], [0.0, 1.0, -13.0]]))
    with pytest.raises(ValueError, match="counts no token"):
        shaped_rewards(torch.tensor([5.0, -1.0]), kl, torch.tensor([[False] * 3, [True] * 3]), 0.1)


@pytest.mark.parametrize(
    ("lam", "advantages", "returns"),
    [
        (1.0, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
        (0.0, (0.0, 0.0, 0.5), (0.5, 0.5, 1.0)),
        (0.95, (0.45125, 0.475, 0.5), (0.95125, 0.975, 1.0)),
    ],
)
def test_gae_by_hand(lam: float, advantages: tuple[float, ...], returns: tuple[float, ...]) -> None:
    got = gae(row(0, 0, 1), row(0.5, 0.5, 0.5), ROW, 1.0, lam)
    torch.testing.assert_close(got, (row(*advantages), row(*returns)))


def test_gae_discounts() -> None:
    # Without values and with lambda 1 the returns are the discounted sums.
    advantages, returns = gae(row(1, 0, 4), row(0, 0, 0), ROW, 0.5, 1.0)
    torch.testing.assert_close(advantages, row(2, 2, 4))
    torch.testing.assert_close(returns, advantages)


@pytest.mark.parametrize("keep", [[0, 1, 2], [2, 3, 4], [0, 2, 4]], ids=["right", "left", "holes"])
def test_gae_steps_over_padding(keep: list[int]) -> None:
    rewards, values, mask = torch.full((1, 5), 7.0), torch.full((1, 5), -9.0), torch.zeros(1, 5, dtype=torch.bool)
    rewards[0, keep], values[0, keep], mask[0, keep] = torch.tensor([0.1, 0.2, 1.0]), torch.tensor([0.5, -0.5, 0.3]), True
    got = gae(rewards, values, mask, 0.9, 0.8)
    wanted = gae(row(0.1, 0.2, 1.0), row(0.5, -0.5, 0.3), ROW, 0.9, 0.8)
    for padded, plain in zip(got, wanted, strict=True):
        torch.testing.assert_close(padded[:, keep], plain)
        assert (padded[~mask] == 0).all()


def test_explained_variance_by_hand() -> None:
    returns = row(0, 1, 2)
    assert explained_variance(row(0, 1, 2), returns, ROW) == pytest.approx(1)
    assert explained_variance(row(5, 5, 5), returns, ROW) == pytest.approx(0)
    assert explained_variance(row(2, 1, 0), returns, ROW) == pytest.approx(-3)
    assert explained_variance(row(0, 1, 2), row(4, 4, 4), ROW) == 0


def _whole(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([whiten(x, mask), whiten(y, mask) * explained_variance(x, y, mask)])


def _rewards(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    # Scores that depend on their row only, so that rows can be moved.
    scores = torch.where(mask, x, 0.0).sum(dim=1)
    return torch.stack([shaped_rewards(scores, kl_per_token(x, y, kind), mask, 0.1, 10.0) for kind in ("k1", "k3")])


def _gae(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return torch.stack(gae(x, y, mask, 0.9, 0.8))


Rows = Callable[[Tensor, Tensor, Tensor], Tensor]
ALL = pytest.mark.parametrize("function", [_whole, _rewards, _gae])


@ALL
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_padding_does_not_matter(function: Rows, garbage: float) -> None:
    clean = function(noise(1), noise(2), MASK_BR)
    dirty = function(noise(1).masked_fill(~MASK_BR, garbage), noise(2).masked_fill(~MASK_BR, garbage), MASK_BR)
    assert torch.equal(dirty, clean)
    assert (clean[:, ~MASK_BR] == 0).all()


@ALL
def test_order_of_rows_does_not_matter(function: Rows) -> None:
    order = torch.tensor([2, 0, 1])
    straight = function(noise(1), noise(2), MASK_BR)
    torch.testing.assert_close(function(noise(1)[order], noise(2)[order], MASK_BR[order]), straight[:, order])


@pytest.mark.parametrize("function", [_rewards, _gae])
def test_splitting_does_not_matter(function: Rows) -> None:
    parts = [function(noise(1)[r], noise(2)[r], MASK_BR[r]) for r in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(torch.cat(parts, dim=1), function(noise(1), noise(2), MASK_BR))


@ALL
def test_inputs_are_unchanged(function: Rows) -> None:
    inputs = [noise(1), noise(2), MASK_BR.clone()]
    function(inputs[0], inputs[1], inputs[2])
    for given, original in zip(inputs, [noise(1), noise(2), MASK_BR], strict=True):
        assert torch.equal(given, original)


def test_score_terms_leave_their_inputs() -> None:
    scores, stopped, lengths = torch.tensor([1.0, 2.0]), torch.tensor([True, False]), torch.tensor([3, 4])
    penalized_scores(scores, stopped, lengths, 4, 8.0, 10.0)
    assert (scores.tolist(), stopped.tolist(), lengths.tolist()) == ([1.0, 2.0], [True, False], [3, 4])


def test_targets_carry_no_gradient() -> None:
    leaf = noise(1).requires_grad_()
    assert not any(x.requires_grad for x in gae(leaf, leaf, MASK_BR, 1.0, 1.0))
    assert not shaped_rewards(leaf[:, 0], leaf, MASK_BR, 0.1).requires_grad


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        gae(noise(1), noise(2)[:, :1], MASK_BR, 1.0, 1.0)
    with pytest.raises(ValueError, match="shapes differ"):
        kl_per_token(noise(1), noise(2)[:, :1])
    with pytest.raises(ValueError, match="must be bool"):
        masked_mean(noise(1), MASK_BR.long())
    with pytest.raises(ValueError, match="shapes differ"):
        shaped_rewards(noise(1), noise(2), MASK_BR, 0.1)


def test_group_advantages_by_hand() -> None:
    """Whole rewards 3 and 1 of one prompt; 2, 2 and 5 of another. Padding counts for nothing."""
    rewards = torch.tensor([[1.0, 2.0], [1.0, 99.0], [2.0, 0.0], [0.0, 2.0], [5.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True], [True, False]])
    prompts = torch.tensor([7, 7, 8, 8, 8])
    alone = leave_one_out(rewards, mask, prompts)
    assert alone.tolist() == [[2.0, 2.0], [-2.0, 0.0], [-1.5, -1.5], [-1.5, -1.5], [3.0, 0.0]]
    group = group_relative(rewards, mask, prompts, epsilon=0.0)[:, 0]
    half, third = 0.5**0.5, 3**-0.5  # deviations: the root of 2, and of 3
    assert torch.allclose(group, torch.tensor([half, -half, -third, -third, 2 * third]))
    centred = group_centred(rewards, mask, prompts)
    assert centred.tolist() == [[1.0, 1.0], [-1.0, 0.0], [-1.0, -1.0], [-1.0, -1.0], [2.0, 0.0]]
    with pytest.raises(ValueError, match="single answer"):
        leave_one_out(rewards[:3], mask[:3], prompts[:3])


@pytest.mark.parametrize("estimate", [leave_one_out, group_centred, group_relative])
def test_equal_rewards_teach_exactly_nothing(estimate: Callable[..., torch.Tensor]) -> None:
    """Three times 1.7, whose mean is not 1.7 in floats; the other prompt has other rewards."""
    rewards = torch.tensor([[1.7], [1.7], [1.7], [1.7], [1.7], [0.4]])
    assert float(rewards[:3].sum() / 3 - 1.7) != 0
    mask, prompts = torch.ones(6, 1, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 1, 1])
    assert equal_rewards(rewards, mask, prompts).tolist() == [True, True, True, False, False, False]
    advantages = estimate(rewards, mask, prompts)[:, 0]
    assert advantages[:3].tolist() == [0.0, 0.0, 0.0] and (advantages[3:] != 0).all()


def test_the_gradients_of_the_kl_estimators() -> None:
    """A distribution over three tokens: the expected policy gradient of an estimator that is taken off the reward, and that of
    the estimator as a term of the loss, against the derivatives of the two divergences."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logits = torch.tensor([0.3, -0.4, 0.8], dtype=torch.float64, requires_grad=True)

    def slope(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits)[0]

    def policy() -> torch.Tensor:
        return logits.log_softmax(0)

    here = policy().detach()
    forward = slope((policy().exp() * (policy() - reference)).sum())  # KL(policy || reference)
    backward = slope((reference.exp() * (reference - policy())).sum())  # KL(reference || policy)
    in_reward = {kind: slope((here.exp() * kl_per_token(here, reference, kind) * policy()).sum()) for kind in ("k1", "k3")}
    in_loss = slope((here.exp() * kl_per_token(policy(), reference, "k3")).sum())
    torch.testing.assert_close(in_reward["k1"], forward)
    torch.testing.assert_close(in_reward["k3"], forward - backward)
    torch.testing.assert_close(in_loss, backward)
    assert float(forward.abs().max()) > 0.1 and float((forward - backward).abs().max()) < 0.5 * float(forward.abs().max())
