"""Which of several requests under way is not worth waiting for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import median
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

THIRD = 1 / 3
"""Of the median rate: slower requests are put on another connection, as AWS advises for slow S3 connections."""
FEWEST = 3
"""Requests under way that make a median worth something."""


def slow(rates: Mapping[K, float], ended: Sequence[float] = ()) -> set[K]:
    """Of `rates` (bytes per second by request), those below a third of the median; none among fewer than three.

    `ended` are the rates of the last requests that have ended. They count where fewer than three are left: at the end
    of a file the slow ones are among themselves. Not before, because with more requests each brings less.
    """
    known = list(rates.values())
    if len(known) < FEWEST:
        known += ended
    if len(known) < FEWEST:
        return set()
    limit = median(known) * THIRD
    return {key for key, rate in rates.items() if rate < limit}


def allowance(parts: int) -> int:
    """How many requests of a transfer of `parts` may be replaced: a twentieth, and a few for small ones. An origin
    that is slow by nature is not asked again and again."""
    return 4 + parts // 20
