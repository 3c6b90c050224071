"""Objectives: numbers by hand, and what must not change them (padding, splitting, order, swapping)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minirlaif.algorithms.losses import (
    bradley_terry_loss,
    centering_penalty,
    dpo_loss,
    entropy_bonus,
    ppo_policy_loss,
    sft_loss,
    total_stats,
    value_loss,
)

MASK_BR = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, False, False], [True] * 4])
COUNTED = 10

TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def _sft(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, denominator: float) -> Tensor:
    return sft_loss(new, mask, denominator)


def _policy(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, denominator: float) -> Tensor:
    return ppo_policy_loss(new, old, extra, mask, 0.2, denominator)[0]


def _value(new: Tensor, old: Tensor, extra: Tensor, mask: Tensor, denominator: float) -> Tensor:
    return value_loss(new, old, extra, mask, 0.2, denominator)[0]


TOKEN_LOSSES = pytest.mark.parametrize("loss", [_sft, _policy, _value])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """new, old, advantages or returns; [4, 4], double so that sums can be compared to the last digit."""
    generator = torch.Generator().manual_seed(3)
    new, old, extra = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    return new * 0.5, old * 0.5, extra


def with_gradient(loss: TokenLoss, new: Tensor, *rest: Tensor, denominator: float = COUNTED) -> tuple[Tensor, Tensor]:
    leaf = new.clone().requires_grad_()
    value = loss(leaf, rest[0], rest[1], rest[2], denominator)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def test_sft_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -50.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert sft_loss(logprobs, mask, 3).item() == pytest.approx(2.0)
    assert sft_loss(logprobs, mask, 6).item() == pytest.approx(1.0)  # half of a minibatch of six tokens


def test_bradley_terry_by_hand() -> None:
    equal = torch.tensor([0.7, -3.0])
    assert bradley_terry_loss(equal, equal).item() == pytest.approx(math.log(2), abs=1e-6)
    assert bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(1.126928, abs=1e-6)
    assert bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)  # no overflow


def test_dpo_by_hand() -> None:
    """Two pairs: log-ratios 1 and -1 (margin 2), and 0.5 and 1.5 (margin -1); beta 0.5. -log sigmoid(1) is 0.313262, -log
    sigmoid(-0.5) is 0.974077."""
    chosen, rejected = torch.tensor([-2.0, -4.5], requires_grad=True), torch.tensor([-6.0, -1.5], requires_grad=True)
    loss, stats = dpo_loss(chosen, rejected, torch.tensor([-3.0, -5.0]), torch.tensor([-5.0, -3.0]), 0.5, 2)
    assert loss.item() == pytest.approx((0.313262 + 0.974077) / 2, abs=1e-6)
    assert stats == pytest.approx({"accuracy": 0.5, "margin": 0.5, "chosen_reward": 0.375, "rejected_reward": 0.125})
    loss.backward()
    # beta x (sigmoid of the margin - 1) / pairs: 0.5 x -0.268941 / 2 and 0.5 x -0.622459 / 2, and the opposite for rejected ones
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.067235, -0.155615]), atol=1e-6, rtol=0)
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    whole = dpo_loss(chosen.detach(), rejected.detach(), torch.tensor([-3.0, -5.0]), torch.tensor([-5.0, -3.0]), 0.5, 8)[0]
    assert whole.item() == pytest.approx((0.313262 + 0.974077) / 8, abs=1e-6)  # a part of a minibatch of eight pairs


def test_bradley_terry_swap_mirrors_the_gradient() -> None:
    chosen, rejected = torch.tensor([2.0, 0.3], requires_grad=True), torch.tensor([0.5, 1.0], requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    one, other = chosen.detach().clone().requires_grad_(), rejected.detach().clone().requires_grad_()
    bradley_terry_loss(one, other).backward()
    assert chosen.grad is not None and rejected.grad is not None
    torch.testing.assert_close(chosen.grad, -rejected.grad)
    assert (chosen.grad < 0).all()  # a step downhill raises the chosen score
    # Scores the other way round: gradients of the pair add up to one unit of probability.
    back = chosen.detach().clone().requires_grad_()
    bradley_terry_loss(other.detach(), back).backward()
    assert back.grad is not None
    torch.testing.assert_close(back.grad - chosen.grad, torch.full((2,), 0.5))


def test_centering_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -3.5])
    assert centering_penalty(chosen, rejected).item() == pytest.approx(2.0)  # |1.5 - 5.5| / 2
    assert centering_penalty(torch.tensor([1.0, -1.0]), torch.zeros(2)).item() == 0  # pairs that cancel cost nothing


def test_reward_losses_split_exactly() -> None:
    scores = torch.tensor([[1.0, 0.5], [-2.0, -3.5], [0.25, 1.0], [0.5, -4.0]], dtype=torch.float64)
    whole_sum = scores.sum()

    def both(rows: Tensor, first_pass: Tensor | None, pairs: float | None) -> Tensor:
        chosen, rejected = rows[:, 0], rows[:, 1]
        return bradley_terry_loss(chosen, rejected, pairs) + centering_penalty(chosen, rejected, first_pass, pairs)

    whole = scores.clone().requires_grad_()
    value = both(whole, None, None)
    value.backward()
    split = scores.clone().requires_grad_()
    parts = [both(split[rows], whole_sum, 4) for rows in (slice(0, 1), slice(1, 4))]
    sum(parts, torch.zeros(())).backward()
    torch.testing.assert_close(sum(parts, torch.zeros(())), value)
    torch.testing.assert_close(split.grad, whole.grad)
    # Opposite signs in the parts: without the sum over the batch the answer would be another one.
    alone = sum(centering_penalty(scores[rows, 0], scores[rows, 1], None, None).item() for rows in (slice(0, 1), slice(1, 4)))
    assert abs(alone - abs(whole_sum.item()) / 4) > 0.1


def test_centering_wants_both_numbers() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        centering_penalty(torch.zeros(2), torch.zeros(2), batch_sum=1.0)


def test_ppo_by_hand() -> None:
    ratio, advantages = torch.tensor([[1.5, 1.5, 0.5, 0.5]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    wanted = [-1.2, 1.5, -0.5, 0.8]
    old = torch.full((1, 4), -1.0)
    for r, value in enumerate(wanted):
        one = torch.zeros(1, 4, dtype=torch.bool)
        one[0, r] = True
        assert ppo_policy_loss(old + ratio.log(), old, advantages, one, 0.2, 1)[0].item() == pytest.approx(value)
    loss, stats = ppo_policy_loss(old + ratio.log(), old, advantages, torch.ones(1, 4, dtype=torch.bool), 0.2, 4)
    assert loss.item() == pytest.approx(sum(wanted) / 4)
    assert stats["ratio_mean"] == pytest.approx(1.0)
    assert stats["ratio_max"] == pytest.approx(1.5)
    assert stats["ratio_gap"] == pytest.approx(0.5)
    assert stats["clip_fraction"] == pytest.approx(0.5)  # the two whose gradient the clip cut off
    assert stats["approx_kl"] == pytest.approx(-0.5 * math.log(1.5) - 0.5 * math.log(0.5))


def test_ratio_gap_sees_falls_too() -> None:
    ratio = torch.tensor([[0.25, 1.5]])
    stats = ppo_policy_loss(ratio.log(), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.2, 2)[1]
    assert stats["ratio_max"] == pytest.approx(1.5) and stats["ratio_gap"] == pytest.approx(0.75)


def test_ppo_first_step_is_the_plain_policy_gradient() -> None:
    old = torch.tensor([[-1.0, -2.0]])
    new = old.clone().requires_grad_()
    loss, stats = ppo_policy_loss(new, old, torch.tensor([[3.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.2, 2)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([[-1.5, 0.5]]))
    assert (stats["ratio_gap"], stats["approx_kl"], stats["clip_fraction"]) == (0, 0, 0)


def test_ppo_clip_stops_the_gradient() -> None:
    old = torch.zeros(1, 4)
    new = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    ppo_policy_loss(new, old, advantages, torch.ones(1, 4, dtype=torch.bool), 0.2, 1)[0].backward()
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, 1.5, -0.5, 0.0]]))


def test_value_by_hand() -> None:
    every = torch.ones(1, 2, dtype=torch.bool)
    new, old, returns = torch.tensor([[4.0, 3.1]]), torch.full((1, 2), 3.0), torch.tensor([[4.0, 4.0]])
    loss, stats = value_loss(new, old, returns, every, 0.2, 2)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 0.81) / 2)  # clipped to 3.2; free
    assert stats["value_clip_fraction"] == pytest.approx(0.5)
    assert stats["value_error"] == pytest.approx((0 + 0.81) / 2)


@TOKEN_LOSSES
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_padding_does_not_matter(loss: TokenLoss, garbage: float) -> None:
    clean = with_gradient(loss, *batch(), MASK_BR)
    dirty = with_gradient(loss, *(x.masked_fill(~MASK_BR, garbage) for x in batch()), MASK_BR)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    assert (clean[1][~MASK_BR] == 0).all() and (clean[1][MASK_BR] != 0).any()


@TOKEN_LOSSES
def test_splitting_does_not_matter(loss: TokenLoss) -> None:
    new, old, extra = batch()
    whole = with_gradient(loss, new, old, extra, MASK_BR)
    parts = [with_gradient(loss, new[r], old[r], extra[r], MASK_BR[r]) for r in (slice(0, 1), slice(1, 2), slice(2, 4))]
    torch.testing.assert_close(sum(value for value, _ in parts), whole[0])
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole[1])


@TOKEN_LOSSES
def test_order_of_rows_does_not_matter(loss: TokenLoss) -> None:
    order = torch.tensor([2, 0, 3, 1])
    value, gradient = with_gradient(loss, *batch(), MASK_BR)
    shuffled = with_gradient(loss, *(x[order] for x in batch()), MASK_BR[order])
    torch.testing.assert_close(shuffled, (value, gradient[order]))


@TOKEN_LOSSES
def test_inputs_are_unchanged(loss: TokenLoss) -> None:
    inputs = [*batch(), MASK_BR.clone()]
    copies = [x.clone() for x in inputs]
    loss(inputs[0], inputs[1], inputs[2], inputs[3], COUNTED)
    for given, copy in zip(inputs, copies, strict=True):
        assert torch.equal(given, copy)


def test_statistics_add_up() -> None:
    new, old, extra = batch()
    for loss in (ppo_policy_loss, value_loss):
        whole = loss(new, old, extra, MASK_BR, 0.2, COUNTED)[1]
        rows = (slice(0, 2), slice(2, 4))
        parts = [loss(new[r], old[r], extra[r], MASK_BR[r], 0.2, COUNTED)[1] for r in rows]
        assert total_stats(parts) == pytest.approx(whole)
        assert all(value != 0 for value in whole.values())


@TOKEN_LOSSES
def test_old_and_advantages_carry_no_gradient(loss: TokenLoss) -> None:
    new, old, extra = (x.requires_grad_() for x in batch())
    loss(new, old, extra, MASK_BR, COUNTED).backward()
    assert new.grad is not None and old.grad is None and extra.grad is None


@TOKEN_LOSSES
def test_wrong_inputs_are_refused(loss: TokenLoss) -> None:
    new, old, extra = batch()
    with pytest.raises(ValueError, match="shapes differ"):
        loss(new[:, :1], old, extra, MASK_BR, COUNTED)
    with pytest.raises(ValueError, match="must be bool"):
        loss(new, old, extra, MASK_BR.long(), COUNTED)
    with pytest.raises(ValueError, match="denominator"):
        loss(new, old, extra, MASK_BR, 0)
    with pytest.raises(ValueError, match="no pairs"):
        bradley_terry_loss(new[0, :0], old[0, :0])
    with pytest.raises(ValueError, match="one length"):
        bradley_terry_loss(new[0], old[:, :1])


def test_the_entropy_bonus_is_the_mean_over_the_counted_tokens_of_the_minibatch() -> None:
    entropy_BR = torch.tensor([[1.0, 2.0, 99.0], [4.0, 99.0, 99.0]], requires_grad=True)
    mask_BR = torch.tensor([[True, True, False], [True, False, False]])
    bonus = entropy_bonus(entropy_BR, mask_BR, 10)
    assert bonus.item() == pytest.approx(0.7)
    bonus.backward()
    assert entropy_BR.grad is not None
    assert entropy_BR.grad.flatten().tolist() == pytest.approx([0.1, 0.1, 0, 0.1, 0, 0])
