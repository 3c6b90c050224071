"""Randomness that depends on the run's seed and the place of its use alone, so that a resumed run draws what it would have."""

import hashlib
from typing import Any

import torch


def generator(seed: int, *place: Any) -> torch.Generator:
    """A CPU generator for a place such as ("ppo", step)."""
    return torch.Generator().manual_seed(seed_of(seed, *place))


def seed_of(seed: int, *place: Any) -> int:
    """A 62-bit seed from the run's seed and a place such as ("ppo", step)."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:8], "big") >> 2


def shuffled(count: int, seed: int, *place: Any) -> list[int]:
    """0 .. count-1 in an order that the seed and the place decide."""
    return list(torch.randperm(count, generator=generator(seed, *place)).tolist())
