"""Learning rate as a pure function of the step: a resumed run needs no scheduler state."""

import math


def learning_rate(step: int, total: int, peak: float, warmup: int, kind: str) -> float:
    """Rate of optimiser step `step` (from 0) out of `total`: a straight warm-up to `peak`, then cosine, linear or constant.

    The first step already learns (peak / warmup) and step warmup - 1 is at the peak. Cosine and linear reach 0 at step
    `total`, one past the last, so the last step learns too. A warm-up longer than the run never reaches the peak.
    """
    if step < 0 or total < 1 or warmup < 0:
        raise ValueError(f"step {step}, total {total}, warmup {warmup}: need step >= 0, total >= 1, warmup >= 0")
    if kind not in ("cosine", "linear", "constant"):
        raise ValueError(f"unknown schedule {kind!r}: cosine, linear or constant")
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if kind == "linear":
        return peak * (1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
