"""Seeds that depend on the run's seed and the place of their use alone, so that a resumed run draws what it would have."""

import hashlib
from typing import Any


def seed_of(seed: int, *place: Any) -> int:
    """A 62-bit seed from the run's seed and a place such as ("ppo", step)."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:8], "big") >> 2
