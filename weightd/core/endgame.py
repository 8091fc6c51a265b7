"""When no parts are left to begin: what one request has yet to bring is shared with a receiver that has nothing to do.

Positions and lengths are bytes of one part, rates bytes per second.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

from weightd.core.parts import ALIGN

K = TypeVar("K", bound=Hashable)

LEAST = 1 << 19
"""Fewer are not worth a request."""
WORTH_S = 0.05
"""A request that ends sooner is left alone."""
TRIPS = 3
"""So is one that ends within so many times of what it takes until a request brings its first byte."""
COLD_TRIPS = 20
"""The same where a connection has to be opened first, which is slow for some more round trips."""


class Running(NamedTuple):
    """A request: what comes after `reach` and before `end` it has yet to ask its connection for. It began `age` seconds
    ago, and has brought so much per second since."""

    reach: int
    end: int
    rate: float
    age: float


def border(reach: int, end: int, kept: float = 0.5) -> int | None:
    """Where the rear begins that another takes over when the share `kept` stays, a multiple of ALIGN beyond
    `reach`; None where there is too little."""
    found = (reach + int((end - reach) * kept)) // ALIGN * ALIGN + ALIGN
    return found if end - found >= LEAST else None


def last_to_end(
    running: Mapping[K, Running], ended: Sequence[float], first_byte: float, *, warm: bool
) -> tuple[K, float] | None:
    """The one that would be the last, if it is a gain that another takes over some of it; and the share that it keeps,
    so that both end together. `ended`: rates of the last ones that did; `first_byte`: seconds until a request brings
    one. `warm`: the other has a connection."""
    known = list(ended) or [r.rate for r in running.values() if r.rate]
    if not known:
        return None
    usual, young = median(known), COLD_TRIPS * first_byte
    # A young one may yet become as fast as the others.
    rates = {key: max(r.rate, usual if r.age < young else 1.0) for key, r in running.items()}
    times = {key: (r.end - r.reach) / rates[key] for key, r in running.items() if border(r.reach, r.end) is not None}
    last = max(times, key=times.__getitem__, default=None)
    if last is None or times[last] <= max(WORTH_S, (TRIPS if warm else COLD_TRIPS) * first_byte):
        return None
    return last, min(0.5, rates[last] / (rates[last] + usual))
