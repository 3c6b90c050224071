"""The losses of methods without a value model, against numbers worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch

from minirlaif.algorithms.group import METHODS, group_policy_loss

# Two answers, of two tokens and of one; ratios to the old policy 1.1 and 1, and 2, which the clip of 0.2 cuts to 1.2.
OLD = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
NEW = OLD + torch.tensor([[math.log(1.1), 0.0], [math.log(2.0), 7.0]])
MASK = torch.tensor([[True, True], [True, False]])
REF = NEW + torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]])
ADVANTAGES = torch.tensor([[2.0, 2.0], [4.0, 99.0]])


def loss_of(
    name: str, new: torch.Tensor = NEW, sign: float = 1.0, rows: tuple[int, ...] = (0, 1), kl_coef: float = 0.5
) -> tuple[torch.Tensor, dict[str, float]]:
    part = list(rows)
    constants = OLD[part], REF[part], sign * ADVANTAGES[part], MASK[part]
    return group_policy_loss(METHODS[name], new[part], *constants, clip=0.2, kl_coef=kl_coef, limit=5, answers=2, tokens=3)


# k3 of the first token, whose reference is twice as likely: 2 - 1 - log 2; of the others 0.
KL = 1 - math.log(2)


@pytest.mark.parametrize(
    ("name", "policy", "kl"),
    [
        ("rloo", -(2 * 1.1 + 2 * 1 + 4 * 1.2) / 2, 0.0),  # sums over tokens, mean over two answers; the KL is in the reward
        ("grpo", -((2 * 1.1 + 2 * 1) / 2 + 4 * 1.2) / 2, KL / 2 / 2),  # means over two tokens and one
        ("dr_grpo", -(2 * 1.1 + 2 * 1 + 4 * 1.2) / 5 / 2, KL / 5 / 2),  # sums over the limit of five tokens
    ],
)
def test_losses_by_hand(name: str, policy: float, kl: float) -> None:
    """Statistics are means over three tokens, whatever the loss is a mean over."""
    loss, stats = loss_of(name)
    assert float(loss) == pytest.approx(policy + 0.5 * kl) and stats.get("kl_loss", 0.0) == pytest.approx(kl)
    assert stats["ratio_mean"] == pytest.approx((1.1 + 1 + 2) / 3) and stats["clip_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", METHODS)
def test_parts_add_up_and_padding_counts_for_nothing(name: str) -> None:
    whole = float(loss_of(name)[0])
    assert sum(float(loss_of(name, rows=(row,))[0]) for row in (0, 1)) == pytest.approx(whole)
    other = NEW.clone()
    other[1, 1] = -1000.0  # its ratio to the reference overflows
    loss = loss_of(name, other.requires_grad_())[0]
    loss.backward()
    assert float(loss) == pytest.approx(whole) and other.grad is not None and bool(other.grad.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_turns_with_the_reward(name: str) -> None:
    """At ratios of 1, where nothing is clipped."""
    slopes = []
    for sign in (1.0, -1.0):
        new = OLD.clone().requires_grad_()
        loss_of(name, new, sign, kl_coef=0.0)[0].backward()
        slopes.append(new.grad)
    one, other = slopes
    assert one is not None and other is not None and (one[MASK] < 0).all() and torch.equal(one, -other)


def test_the_kl_term_pulls_towards_the_reference() -> None:
    """Its slope at the first token is 1 - 2, times the coefficient, over two tokens and two answers."""
    new = NEW.clone().requires_grad_()
    with_kl, without = (torch.autograd.grad(loss_of("grpo", new, kl_coef=each)[0], new)[0] for each in (0.5, 0.0))
    assert (with_kl - without).tolist() == [[pytest.approx(-0.5 / 4), 0.0], [0.0, 0.0]]
