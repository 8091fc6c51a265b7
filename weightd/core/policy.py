"""When a model is in shared memory."""

from __future__ import annotations

import enum


class Policy(enum.Enum):
    """Of one model, from the configuration; WARM where it says nothing."""

    HOT = "hot"
    """Fetched and loaded at the start, never evicted."""
    WARM = "warm"
    """Loaded on first use, evicted by need, or when it was idle for `keep_idle`."""
    COLD = "cold"
    """On NVMe until it is acquired; leaves shared memory when it was idle for a while."""
