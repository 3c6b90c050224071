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
ADVANTAGES = torch.tensor([[2.0, 2.0], [4.0, 99.0]])


def loss_of(
    name: str, new: torch.Tensor = NEW, sign: float = 1.0, rows: tuple[int, ...] = (0, 1)
) -> tuple[torch.Tensor, dict[str, float]]:
    part = list(rows)
    advantages = sign * ADVANTAGES[part]
    return group_policy_loss(METHODS[name], new[part], OLD[part], advantages, MASK[part], 0.2, answers=2, tokens=3)


def test_rloo_by_hand() -> None:
    """-(2 x 1.1 + 2 x 1 + 4 x 1.2) / 2 answers = -4.5; statistics are means over three tokens."""
    loss, stats = loss_of("rloo")
    assert float(loss) == pytest.approx(-4.5)
    assert stats["ratio_mean"] == pytest.approx((1.1 + 1 + 2) / 3) and stats["clip_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", METHODS)
def test_parts_add_up_and_padding_counts_for_nothing(name: str) -> None:
    whole = float(loss_of(name)[0])
    assert sum(float(loss_of(name, rows=(row,))[0]) for row in (0, 1)) == pytest.approx(whole)
    other = NEW.clone()
    other[1, 1] = math.inf
    assert float(loss_of(name, other)[0]) == pytest.approx(whole)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_turns_with_the_reward(name: str) -> None:
    """At ratios of 1, where nothing is clipped."""
    slopes = []
    for sign in (1.0, -1.0):
        new = OLD.clone().requires_grad_()
        loss_of(name, new, sign)[0].backward()
        slopes.append(new.grad)
    one, other = slopes
    assert one is not None and other is not None and (one[MASK] < 0).all() and torch.equal(one, -other)
