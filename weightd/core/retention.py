"""Which old snapshots of a ref may go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def due(old: Sequence[T], keep: int) -> Sequence[T]:
    """Those beyond the newest `keep`; `old` are all that are not current, the oldest first."""
    return old[: max(0, len(old) - keep)]
