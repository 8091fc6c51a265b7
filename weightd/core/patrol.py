"""Which blobs are verified next in the background, and when: each once in a period, the longest ago first, spread out.

Nothing but the recorded times is needed, so a restart changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from weightd.core.digest import Digest

PER_BLOB: Final = 64 << 10
"""Bytes that one more blob is worth beside its own: opening it, and recording what was found."""
RETRY_S: Final = 60.0
RETRY_MOST_S: Final = 6 * 3600.0
"""Seconds before a blob that could not be verified or repaired is tried again: doubled from the one to the other."""


@dataclass(frozen=True, slots=True)
class AtRest:
    """A blob. Times in Unix seconds: `last_verified`, 0 for never; `retry_at` after a failure, else None."""

    digest: Digest
    size: int
    last_verified: float
    retry_at: float | None = None


def next_checks(blobs: Iterable[AtRest], period: float, now: float) -> tuple[list[AtRest], float]:
    """The blobs to verify now, in order, and the time from which there are more; infinite when nothing is held.

    Each blob is due `period` seconds after it was last verified, and gets a share of the period as large as its size
    is of all. The one that is due first begins as late as it can so that all behind it are in time: blobs that came
    within a minute are spread over the whole period, and blobs that are spread stay so. What failed is apart from
    these, and waits for its own time. What is overdue is not spread any more.
    """
    blobs = list(blobs)
    well = sorted(((_since(b, now), b) for b in blobs if b.retry_at is None), key=lambda p: (p[0], p[1].digest))
    total = sum(b.size + PER_BLOB for b in blobs)
    begin, before = math.inf, 0.0
    for last, blob in well:
        begin = min(begin, last + period - before)
        before += period * (blob.size + PER_BLOB) / total
    first = well[0][1] if well else None
    chosen = [blob for last, blob in well if last + period <= now or (blob is first and begin <= now)]
    retries = [(b.retry_at, b) for b in blobs if b.retry_at is not None]
    chosen += [b for at, b in retries if at <= now]
    later = begin if first not in chosen else now
    return chosen, min([later, *(at for at, _ in retries if at > now)])


def _since(blob: AtRest, now: float) -> float:
    # A time in the future was written under a wrong clock, and proves nothing.
    return blob.last_verified if blob.last_verified <= now else 0.0


def retry_after(failures: int, draw: float, period: float) -> float:
    """Seconds to wait after so many failures in a row, the first is 1; `draw` is uniform in [0, 1).

    Between half and the whole of a time that doubles, so that many that failed together do not come back together; no
    longer than `period`.
    """
    longest = min(RETRY_MOST_S, period, RETRY_S * 2.0 ** min(failures - 1, 30))
    return longest * (1 + draw) / 2
