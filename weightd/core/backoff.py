"""How long to wait before trying again: full jitter, as in AWS's "Exponential Backoff And Jitter" (2015)."""

from __future__ import annotations

BASE_S = 0.2
"""The longest first pause."""


def full_jitter(attempt: int, draw: float, *, base: float = BASE_S, cap: float = 10.0) -> float:
    """Seconds before attempt `attempt` + 1 (the first attempt is 0); `draw` is uniform in [0, 1)."""
    return draw * min(cap, base * 2.0**attempt)
