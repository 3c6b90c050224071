"""Bytes worked out by hand for small round numbers, and how they grow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minirlaif.memory import formulas
from minirlaif.memory.formulas import Batch, Delta, Numbers, Precision

# Two layers of width 4 with two heads of 2, one key head, feed-forward 8, ten words.
N = Numbers(
    width=4, full_layers=2, delta_layers=0, query=4, keys=2, heads=2, ffn=8, vocabulary=10,
    linear_weights=6400, plain_weights=100, head_weights=40, vision_weights=1000, lora_units=50, lora_modules=7, biggest=64,
)  # fmt: skip
FULL = Precision(nf4=False, compute=4, autocast=False, checkpointing=False, rank=2)


def test_weights_adapters_and_optimiser():
    standing = formulas.resident(N, FULL, adapters=3, trained=1)
    assert standing == {"weights": 4 * (6400 + 100 + 40 + 1000), "adapters": 3 * 100 * 4, "optimiser": 100 * (4 + 8)}
    packed = formulas.resident(N, replace(FULL, nf4=True, compute=2), 1, 0, vision=False)
    # 6400 weights of 4 bits; 100 scales of a byte; 100/256 scales of scales in float32; 140 weights in bfloat16
    assert packed["weights"] == pytest.approx(3200 + 100 + 4 * 100 / 256 + 280)


def test_kv_cache():
    assert formulas.kv_bytes(N, FULL, rows=3, tokens=5) == 2 * 2 * 2 * 4 * 3 * 5  # keys and values, layers, key width, bytes
    hybrid = replace(N, full_layers=1, delta_layers=1, delta=Delta(1, 2, 3, 5, 4))
    state = 2 * 3 * 5 * 4 + (2 * 1 * 3 + 2 * 5) * 4 * 4  # float32 state of two heads, and the convolution's window
    assert formulas.kv_bytes(hybrid, FULL, 3, 5) == 2 * 1 * 2 * 4 * 15 + 3 * state
    assert formulas.kv_bytes(hybrid, FULL, 3, 50) - formulas.kv_bytes(hybrid, FULL, 3, 5) == 2 * 1 * 2 * 4 * 3 * 45


def activation_bytes(p: Precision, tokens: int, layers: int = 2, rows: int = 1) -> float:
    lines = formulas.training(replace(N, full_layers=layers), p, Batch(rows, tokens, 1, 0))
    return lines["activations"] + lines["logits"]


def test_what_a_layer_keeps_for_its_backward_pass():
    # float32, one row, no mask: 4 D + 2 Q + 2 K + 4 I + heads + 2 + 7 r numbers
    per_token = 4 * (4 * 4 + 2 * 4 + 2 * 2 + 4 * 8 + 2 + 2 + 7 * 2)
    assert activation_bytes(FULL, 100, layers=3) - activation_bytes(FULL, 100, layers=2) == 100 * per_token
    # with checkpointing a layer keeps its input alone
    light = replace(FULL, checkpointing=True)
    assert activation_bytes(light, 100, layers=3) - activation_bytes(light, 100, layers=2) == 100 * 4 * 4
    # padding brings a mask in numbers and keys repeated to all heads
    padded = activation_bytes(FULL, 100, layers=3, rows=2) - activation_bytes(FULL, 100, layers=2, rows=2)
    assert padded == 2 * 100 * (per_token + 4 * 2 * (4 - 2) + 4 * 100)


def test_linear_in_tokens_without_padding():
    a, b, c = (activation_bytes(FULL, tokens) for tokens in (1000, 2000, 3000))
    assert c - b == pytest.approx(b - a)


def test_logits_are_held_by_chunks():
    lines = formulas.training(N, FULL, Batch(1, 100, 50, 0))
    assert lines["logits"] == 3 * 4 * 10 * 50
    wide = replace(N, vocabulary=2**20)
    assert formulas.training(wide, FULL, Batch(1, 100, 50, 0))["logits"] == 3 * 4 * 2**20 * 32  # 128 MiB hold 32 positions


def test_sampling_holds_the_cache_of_all_answers():
    few = formulas.sampling(N, FULL, Batch(2, 10, 0, 0), answers=1, new=10_000)
    many = formulas.sampling(N, FULL, Batch(2, 10, 0, 0), answers=4, new=10_000)
    assert few["kv cache"] == formulas.kv_bytes(N, FULL, 2, 10_010)
    assert many["kv cache"] == 4 * few["kv cache"]


def test_what_a_linear_layer_keeps() -> None:
    # Two key heads of 3, four value heads of 5, one full chunk of 64 tokens, no full layer.
    hybrid = replace(N, full_layers=0, delta_layers=2, delta=Delta(2, 4, 3, 5, 4))
    per_head = (5 * 64 + 6 * 3 + 3 * 5 + 4 + 15 / 64) + 2 * 3 + 4 * 5 + 5
    others = 3 * 8 + (2 * 4 + 2) + (2 * 4 + 8) + 7 * 2  # gate, norms, adapters' inputs and what is between their halves
    both = 2 * (2 * 2 * 3 + 4 * 5) + 4 * 5  # the convolution's input and output, the gate

    def layer(p: Precision, tokens: int) -> float:
        one, two = (formulas.training(replace(hybrid, delta_layers=n), p, Batch(1, tokens, 1, 0)) for n in (1, 2))
        return two["activations"] - one["activations"]

    assert layer(FULL, 64) == pytest.approx(64 * 4 * (4 * per_head + both + others))
    # in bfloat16 the rule stays in float32, and each of the four projections' adapters keeps a float32 copy of its input
    low = 64 * (4 * (4 * per_head) + 2 * both + 2 * 3 * 8 + 4 * (2 * 4 + 2) + 4 * (4 * 4 + 2 * 4 + 8) + 4 * 7 * 2)
    assert layer(replace(FULL, compute=2), 64) == pytest.approx(low)
    # a chunk is filled up: 65 tokens take two
    more = layer(FULL, 65) - layer(FULL, 64)
    inside = 64 * (5 * 64 + 6 * 3 + 3 * 5 + 4 + 15 / 64)
    assert more == pytest.approx(4 * (4 * (inside + 2 * 3 + 4 * 5 + 5) + both + others))


def test_what_a_gated_layer_keeps_more() -> None:
    gated = [replace(N, gated=on, full_layers=3) for on in (False, True)]
    for compute, numbers in ((4, 4 * 4), (2, 2 * 4)):
        p = replace(FULL, compute=compute)
        plain, more = (formulas.training(n, p, Batch(1, 10, 1, 0))["activations"] for n in gated)
        assert more - plain == 3 * 10 * compute * numbers


def test_features_are_held_twice_with_those_of_deeper_layers() -> None:
    assert formulas.training(N, FULL, Batch(2, 20, 1, 10))["features"] == 2 * (2 * 10) * 4 * 4
    assert formulas.scoring(replace(N, deep=3), FULL, Batch(1, 20, 1, 10))["features"] == 2 * 10 * 4 * (1 + 3) * 4


def test_a_vision_tower_at_work() -> None:
    assert formulas.encoding(FULL, patches=10, width=4, ffn=8) == 10 * (2 * 8 + 6 * 4) * 4


def test_choosing_a_token_takes_five_arrays_over_the_vocabulary() -> None:
    wide = replace(N, vocabulary=2**20)
    lines = formulas.sampling(wide, FULL, Batch(1, 1, 0, 0), answers=3, new=1)
    assert lines["logits"] == 3 * 2**20 * (3 * 4 + 2 * 8)


def test_four_bits_are_unpacked_one_matrix_at_a_time() -> None:
    """No tokens, so nothing else is there."""
    for p, size in ((replace(FULL, nf4=True), 64 * 4), (replace(FULL, nf4=True, compute=2), 64 * 2), (FULL, 0)):
        assert formulas.scoring(N, p, Batch(1, 0, 0, 0))["activations"] == size
        assert formulas.training(N, p, Batch(1, 0, 0, 0))["activations"] == size


def test_autocast_keeps_the_adapters_once_more_in_low_precision() -> None:
    low = replace(FULL, compute=2, autocast=True)
    assert formulas.training(N, low, Batch(1, 0, 0, 0))["activations"] == 50 * 2 * 2  # inputs + outputs, rank, bytes
