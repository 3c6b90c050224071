"""Randomness that depends on the run's seed and the place of its use alone, so that a resumed run draws what it would have."""

from typing import Any

import torch

from minirlaif.config.seeds import seed_of


def generator(seed: int, *place: Any) -> torch.Generator:
    """A CPU generator for a place such as ("ppo", step)."""
    return torch.Generator().manual_seed(seed_of(seed, *place))


def shuffled(count: int, seed: int, *place: Any) -> list[int]:
    """0 .. count-1 in an order that the seed and the place decide."""
    return list(torch.randperm(count, generator=generator(seed, *place)).tolist())
