"""Stacking, cutting and log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from minirlaif.models.tokens import entropy, log_distribution, pad_stack, pick_logprobs


def logits() -> torch.Tensor:
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))


TARGETS_BT = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 0, 0]], [[True, True, True], [True, False, False]]),
        ("left", [[5, 6, 7], [0, 0, 8]], [[True, True, True], [False, False, True]]),
    ],
)
def test_pad_stack(side: str, ids: list[list[int]], mask: list[list[bool]]) -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    got_ids, got_mask = pad_stack(rows, 0, side)
    assert (got_ids.tolist(), got_mask.tolist()) == (ids, mask)
    assert got_ids.dtype == torch.int64 and got_mask.dtype == torch.bool
    got_ids.fill_(99)
    assert rows[0].tolist() == [5, 6, 7]  # a stack, not a view


def test_pad_stack_marks_by_place_not_by_value() -> None:
    # A real token may have the padding's id (many tokenizers pad with the end token).
    assert pad_stack([torch.tensor([1, 0]), torch.tensor([1])], 0, "right")[1].tolist() == [[True, True], [True, False]]


def test_pad_stack_keeps_other_dtypes() -> None:
    flags = pad_stack([torch.tensor([True]), torch.tensor([True, True])], False, "left")[0]
    assert flags.tolist() == [[False, True], [True, True]]
    assert pad_stack([torch.tensor([0.5])], 0.0, "left")[0].dtype == torch.float32


def test_pad_stack_refuses() -> None:
    with pytest.raises(ValueError, match="no rows"):
        pad_stack([], 0, "left")
    with pytest.raises(ValueError, match="left or right"):
        pad_stack([torch.tensor([1])], 0, "middle")
    with pytest.raises(ValueError, match="one-dimensional"):
        pad_stack([torch.tensor([[1]])], 0, "left")
    with pytest.raises(ValueError, match="one dtype"):
        pad_stack([torch.tensor([1]), torch.tensor([1.0])], 0, "left")


def test_pick_logprobs_by_hand() -> None:
    # Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
    one = torch.tensor([1.0, 2.0, 5.0]).log().expand(1, 3, 3)
    targets = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(pick_logprobs(one, targets).exp(), torch.tensor([[0.125, 0.25, 0.625]]))
    # Without the last token: 1/3 and 2/3. At temperature 1/2 the odds are squared: 1, 4, 25 out of 30.
    banned = torch.tensor([False, False, True])
    torch.testing.assert_close(pick_logprobs(one, targets, banned).exp(), torch.tensor([[1 / 3, 2 / 3, 0.0]]))
    torch.testing.assert_close(pick_logprobs(one, targets, None, 0.5).exp(), torch.tensor([[1 / 30, 4 / 30, 25 / 30]]))
    torch.testing.assert_close(pick_logprobs(one, targets, banned, 0.5).exp(), torch.tensor([[0.2, 0.8, 0.0]]))


def test_pick_logprobs_is_aligned() -> None:
    # A position sure of its own target: had the function shifted, this would be near minus infinity.
    sure = torch.full((1, 3, 4), -50.0)
    targets = torch.tensor([[2, 0, 3]])
    sure[0, torch.arange(3), targets[0]] = 50.0
    torch.testing.assert_close(pick_logprobs(sure, targets), torch.zeros(1, 3))


def test_half_precision_is_normalised_in_float32() -> None:
    got = pick_logprobs(logits().bfloat16(), TARGETS_BT)
    assert got.dtype == torch.float32
    wide = torch.zeros(1, 1, 4096, dtype=torch.bfloat16)
    assert pick_logprobs(wide, torch.tensor([[7]])).item() == pytest.approx(-math.log(4096), abs=1e-5)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_chunks_give_the_same(step: int) -> None:
    banned = torch.tensor([False] * 6 + [True])
    for function in (lambda x, t: pick_logprobs(x, t, banned, 0.7), lambda x, t: entropy(x, banned, 0.7)):
        parts = [function(logits()[:, t : t + step], TARGETS_BT[:, t : t + step]) for t in range(0, 5, step)]
        torch.testing.assert_close(torch.cat(parts, dim=1), function(logits(), TARGETS_BT))


def test_rows_are_independent() -> None:
    noisy = logits()
    noisy[1] = float("nan")
    assert torch.equal(pick_logprobs(noisy, TARGETS_BT)[0], pick_logprobs(logits(), TARGETS_BT)[0])
    assert torch.equal(pick_logprobs(logits().flip(0), TARGETS_BT.flip(0)), pick_logprobs(logits(), TARGETS_BT).flip(0))


def test_a_ban_leaves_finite_gradients() -> None:
    # A banned target on a masked-out position has -inf; the others must still learn.
    leaf = logits().requires_grad_()
    banned = torch.tensor([True] + [False] * 6)
    picked = pick_logprobs(leaf, TARGETS_BT, banned)
    assert picked[0, 0] == float("-inf")
    torch.where(picked.isfinite(), picked, torch.zeros_like(picked)).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert (leaf.grad[..., 0] == 0).all() and (leaf.grad[..., 1:] != 0).any()


def test_entropy_by_hand() -> None:
    assert entropy(torch.zeros(1, 1, 4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.zeros(1, 1, 4), torch.tensor([True, True, False, False])).item() == pytest.approx(math.log(2))
    assert entropy(torch.tensor([[[100.0, 0.0]]])).item() == pytest.approx(0, abs=1e-6)
    hot = 2 * torch.tensor([0.25, 0.75]).log()
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert entropy(hot.view(1, 1, 2), None, 2.0).item() == pytest.approx(expected)


def test_inputs_are_unchanged() -> None:
    given, banned = logits(), torch.tensor([True] + [False] * 6)
    pick_logprobs(given, TARGETS_BT, banned, 0.5)
    entropy(given, banned, 0.5)
    log_distribution(given, banned)
    assert torch.equal(given, logits()) and banned.tolist() == [True] + [False] * 6


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        pick_logprobs(logits(), TARGETS_BT[:, :3])
    with pytest.raises(ValueError, match="temperature"):
        pick_logprobs(logits(), TARGETS_BT, None, 0.0)
    with pytest.raises(ValueError, match="disallowed_V"):
        pick_logprobs(logits(), TARGETS_BT, torch.zeros(7))


def test_the_gradient_of_the_entropy_is_that_of_torch_distributions() -> None:
    """Also with a token that answers cannot contain, whose probability is 0: torch's own distribution has only the others."""
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    disallowed = torch.tensor([False, True, False, False, False])
    entropy(logits, disallowed, 0.7).sum().backward()
    other = logits.detach()[..., ~disallowed].requires_grad_()
    expected = torch.distributions.Categorical(logits=other / 0.7).entropy()
    expected.sum().backward()
    assert torch.allclose(entropy(logits, disallowed, 0.7), expected, atol=1e-6)
    assert torch.allclose(entropy(logits.detach(), disallowed, 0.7), expected, atol=1e-6)
    assert torch.allclose(logits.grad[..., ~disallowed], other.grad, atol=1e-6) and not logits.grad[..., 1].any()
