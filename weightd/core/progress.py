"""Bytes, rate and time left, by file and by model."""

from __future__ import annotations

import enum
from collections import deque

import msgspec

WINDOW = 5.0
"""Seconds over which the rate is a mean."""


class Phase(enum.Enum):
    """What a fetch or load is doing. The values are those of the wire."""

    RESOLVING = 1
    FETCHING = 2
    LOADING = 3
    VERIFYING = 4


class FileProgress(msgspec.Struct, frozen=True):
    """Bytes of one file."""

    path: str
    done: int
    total: int


class Progress(msgspec.Struct, frozen=True):
    """`rate` in bytes per second over about the last five; `seconds_left` is negative while unknown."""

    phase: Phase
    done: int = 0
    total: int = 0
    rate: float = 0.0
    seconds_left: float = -1.0
    files: tuple[FileProgress, ...] = ()


class RateMeter:
    """Mean rate over the window, from samples of a count that only grows."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> float:
        """Take a sample at `now` (seconds, monotonic); returns bytes per second, 0.0 while unknown."""
        samples = self._samples
        samples.append((now, done))
        while len(samples) > 2 and now - samples[0][0] > WINDOW:
            samples.popleft()
        (t0, d0), (t1, d1) = samples[0], samples[-1]
        return (d1 - d0) / (t1 - t0) if t1 > t0 else 0.0


def seconds_left(done: int, total: int, rate: float) -> float:
    """Negative while the rate is unknown."""
    if done >= total:
        return 0.0
    return (total - done) / rate if rate > 0 else -1.0
